// Screens: every set packs and bounds like the scalar one, bounds hold, and the products that are asked for are those
// of linear() to the same bits.
#include "backend/cpu/screen.h"

#include <algorithm>
#include <limits>

#include "base/half.h"
#include "kernel_cases.h"
#include "quant/dequantize.h"

using namespace gemma;
using namespace gemma::cpu;

namespace {

struct Panel {
  std::vector<uint8_t> codes;
  std::vector<float> step, deviation, rounding;
  bool finite = false;

  Panel(const Kernels& kernels, const std::vector<float>& rows, int n_cols, int block)
      : codes(static_cast<size_t>(n_cols) * 8 + 1, 0xee),
        step(17, test::kUntouched),
        deviation(17, test::kUntouched),
        rounding(17, test::kUntouched) {
    std::vector<float> columns(rows.size());
    for (size_t i = 0; i < rows.size(); ++i)
      columns[i % static_cast<size_t>(n_cols) * 16 + i / static_cast<size_t>(n_cols)] = rows[i];
    finite = kernels.screen_pack(columns.data(), n_cols, block, codes.data(), step.data(), deviation.data(),
                                 rounding.data());
  }
};

// A matrix of any type with rows of different lengths, some of zeros, some equal.
std::vector<std::byte> matrix(std::mt19937& rng, TensorType type, int n_out, int n_in) {
  if (!is_float_type(type)) return test::random_weights(rng, type, n_out, n_in);
  std::vector<std::byte> bytes(static_cast<size_t>(n_out) * row_bytes(type, n_in));
  for (int r = 0; r < n_out; ++r) {
    const std::vector<float> row = test::random_floats(
        rng, static_cast<size_t>(n_in), r % 97 == 5 ? 0.0f : 0.02f + 0.001f * static_cast<float>(r % 31));
    for (size_t j = 0; j < row.size(); ++j) {
      const size_t at = static_cast<size_t>(r) * row.size() + j;
      const uint16_t half =
          type == TensorType::kF16 ? f32_to_f16(row[j]) : static_cast<uint16_t>(std::bit_cast<uint32_t>(row[j]) >> 16);
      if (type == TensorType::kF32) {
        std::memcpy(&bytes[at * 4], &row[j], 4);
      } else {
        std::memcpy(&bytes[at * 2], &half, 2);
      }
    }
  }
  return bytes;
}

// Activations with a few very large columns, as Gemma's final hidden states have them.
std::vector<float> activations(std::mt19937& rng, int n, int n_in) {
  std::vector<float> x = test::random_floats(rng, static_cast<size_t>(n * n_in));
  for (int i = 0; i < n; ++i) {
    for (int k = 0; k < 3; ++k) x[static_cast<size_t>(i * n_in) + rng() % static_cast<size_t>(n_in)] *= 40;
  }
  return x;
}

}  // namespace

TEST("load_columns: every set equals the dequantised rows up to a rounding, every type; missing rows are zero") {
  std::mt19937 rng(20);
  test::ScratchMemory memory;
  for (const TensorType type : kTensorTypes) {
    constexpr int kIn = 512;
    const std::vector<std::byte> data = matrix(rng, type, 40, kIn);
    const test::TightBytes tight(data);
    const size_t stored = row_bytes(type, kIn);
    test::for_each_set([&](const Kernels& kernels) {
      for (const int begin : {0, 16, 32}) {
        const int end = std::min(begin + 16, 40);
        std::vector<float> columns(kIn * 16, test::kUntouched);
        kernels.load_columns({type, tight.data(), stored, begin, end}, kIn, columns.data(), memory.scratch());
        for (int lane = 0; lane < 16; ++lane) {
          std::vector<float> row(kIn);
          if (begin + lane < end)
            dequantize_row(type, &data[static_cast<size_t>(begin + lane) * stored], row.data(), kIn);
          for (size_t c = 0; c < kIn; ++c) {
            const float got = columns[c * 16 + static_cast<size_t>(lane)];
            if (!(std::fabs(got - row[c]) <= 4e-7f * (std::fabs(row[c]) + 1)))
              test::fail(__FILE__, __LINE__,
                         std::string(kernels.isa) + " " + type_traits(type).name + ": got " + test::describe(got) +
                             ", want " + test::describe(row[c]));
          }
        }
      }
    });
  }
}

TEST("screen_pack: every set equals ref bit for bit; codes give the row back within its residual") {
  std::mt19937 rng(21);
  for (const int n_cols : {8, 24, 64, 640, 1152}) {
    for (int block = 1; block <= 128 && n_cols % block == 0; block *= 2) {
      std::vector<float> rows = test::random_floats(rng, static_cast<size_t>(16 * n_cols), 0.03f);
      std::fill_n(rows.begin() + 3 * n_cols, n_cols, 0.0f);
      std::fill_n(rows.begin() + 4 * n_cols, n_cols, 1e-30f);
      rows[static_cast<size_t>(5 * n_cols)] = 9;  // alone far outside
      const Panel want(kernels_ref(), rows, n_cols, block);
      CHECK(want.finite && want.codes.back() == 0xee && test::is_untouched(want.step.back()));
      test::for_each_set([&](const Kernels& kernels) {
        const Panel got(kernels, rows, n_cols, block);
        const std::string what =
            std::string(kernels.isa) + " columns " + std::to_string(n_cols) + " block " + std::to_string(block);
        if (got.codes != want.codes) test::fail(__FILE__, __LINE__, what + ": codes differ");
        test::check_same_bits(got.step, want.step, what + " step");
        test::check_same_bits(got.deviation, want.deviation, what + " deviation");
        test::check_same_bits(got.rounding, want.rounding, what + " rounding");
      });
      if (block != 1) continue;
      for (size_t lane = 0; lane < 16; ++lane) {
        double left = 0;
        double norm = 0;
        for (size_t c = 0; c < static_cast<size_t>(n_cols); ++c) {
          const uint8_t byte = want.codes[c / 8 * 64 + lane * 4 + c % 4];
          const int code = c % 8 < 4 ? byte & 15 : byte >> 4;
          const double w = rows[lane * static_cast<size_t>(n_cols) + c];
          left += (w - want.step[lane] * (code - 7.5)) * (w - want.step[lane] * (code - 7.5));
          norm += w * w;
        }
        const double deviation = static_cast<double>(want.deviation[lane]);
        CHECK(std::fabs(norm - 2 * deviation * static_cast<double>(want.rounding[lane])) <= 1e-4 * norm + 1e-37);
        CHECK(std::fabs(left - deviation * deviation) <= 1e-3 * norm + 1e-37);
        if (lane != 5 && norm > 1e-20 && n_cols >= 64) CHECK(left < 0.03 * norm);
      }
    }
  }
}

TEST("screen_pack: NaN, infinity and squares that overflow are refused") {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e25f}) {
    std::mt19937 rng(22);
    std::vector<float> rows = test::random_floats(rng, 16 * 64);
    rows[777] = bad;
    test::for_each_set([&](const Kernels& kernels) { CHECK(!Panel(kernels, rows, 64, 64).finite); });
  }
}

TEST("screen_bound: every set equals ref bit for bit") {
  std::mt19937 rng(23);
  for (const int n_cols : {8, 40, 640}) {
    constexpr size_t kPanels = 5;
    constexpr int kQueries = 11;  // more than any set takes at a time
    const size_t cols = static_cast<size_t>(n_cols);
    std::vector<uint8_t> codes(kPanels * cols * 8);
    for (uint8_t& c : codes) c = static_cast<uint8_t>(rng());
    std::fill_n(codes.begin(), cols * 8, 0xff);
    const std::vector<float> step = test::random_floats(rng, kPanels * 16);
    const std::vector<float> margin = test::random_floats(rng, kPanels * 16);
    std::vector<int8_t> q(kQueries * cols);
    for (size_t i = 0; i < q.size(); ++i)
      q[i] = i < cols ? 127 : (i < 2 * cols ? -127 : static_cast<int8_t>(rng() % 255 - 127));
    const ScreenTable table{n_cols, codes.data(), step.data(), margin.data(), margin.data()};
    for (int n = 1; n <= kQueries; ++n) {
      const auto run = [&](const Kernels& kernels, std::vector<float>* bounds, std::vector<float>* maxima) {
        bounds->assign(kQueries * kPanels * 16, test::kUntouched);
        maxima->assign(kQueries * kPanels, test::kUntouched);
        ScreenQuery queries[kQueries];
        for (size_t i = 0; i < kQueries; ++i) {
          queries[i] = {q.data() + i * cols,
                        0.01f * static_cast<float>(i + 1),
                        -7.5f * static_cast<float>(i),
                        0.3f,
                        0.2f,
                        bounds->data() + i * kPanels * 16,
                        maxima->data() + i * kPanels};
        }
        kernels.screen_bound(table, 1, kPanels - 1, queries, n);
      };
      std::vector<float> want, want_maxima, got, got_maxima;
      run(kernels_ref(), &want, &want_maxima);
      CHECK(test::is_untouched(want[0]) && !test::is_untouched(want[16]) &&
            test::is_untouched(want[(kPanels - 1) * 16]));
      test::for_each_set([&](const Kernels& kernels) {
        run(kernels, &got, &got_maxima);
        const std::string what =
            std::string(kernels.isa) + " columns " + std::to_string(n_cols) + " queries " + std::to_string(n);
        test::check_same_bits(got, want, what);
        test::check_same_bits(got_maxima, want_maxima, what + " maxima");
      });
    }
  }
}

TEST("top_linear: what is asked for equals linear bit for bit, nothing larger is missed, every type") {
  std::mt19937 rng(24);
  constexpr int kOut = 5003;  // the last panel is not full
  constexpr int kRows = 6;
  constexpr int kRoom = kRows * (kOut + kOutputLanes - 1);
  for (const TensorType type : kTensorTypes) {
    const int n_in = 256;
    const std::vector<std::byte> data = matrix(rng, type, kOut, n_in);
    const std::vector<float> x = activations(rng, kRows, n_in);
    test::for_each_set([&](const Kernels& kernels) {
      if (std::string(kernels.isa) == "ref" && type != TensorType::kF16 && type != TensorType::kQ8_0) return;
      const std::string what = std::string(kernels.isa) + " " + type_traits(type).name;
      const std::unique_ptr<Backend> backend = make_cpu_backend(kernels.isa, 2);
      const Weight weight = backend->load_weight(type, kOut, n_in, data.data());
      std::vector<float> want(kRows * kOut);
      const LinearJob job{&weight, want.data()};
      backend->linear({&job, 1}, x.data(), kRows, {});
      const std::unique_ptr<OutputMatrix> output = backend->make_output(weight, true, kRows);
      const std::vector<int32_t> always = {0, 17, 4999, 5002};
      std::vector<int32_t> never = {1, 5001};
      for (int i = 0; i < kRows; ++i) {  // the best of each row are forbidden
        const auto row = want.begin() + i * kOut;
        never.push_back(static_cast<int32_t>(std::max_element(row, row + kOut) - row));
      }
      std::sort(never.begin(), never.end());
      never.erase(std::unique(never.begin(), never.end()), never.end());
      std::vector<TopRows> wanted;
      for (int i = 0; i < kRows; ++i) wanted.push_back({i % 2 == 0 ? 1 : 40, always, never, {}});
      for (int call = 0; call < Screen::kSlices + 2; ++call) {
        std::vector<float> got(kRoom, test::kUntouched);
        std::vector<TopProducts> found(kRows);
        backend->top_linear(*output, got.data(), x.data(), kRows, wanted, found);
        for (const TopProducts& row : found) CHECK(row.all == (call < Screen::kSlices));
        if (found[0].all) {
          test::check_same_bits(std::span(got).first(want.size()), want, what + " while building");
          continue;
        }
        for (size_t i = 0; i < kRows; ++i) {
          const TopProducts& row = found[i];
          CHECK(row.rows.size() == row.values.size() && std::equal(always.begin(), always.end(), row.rows.begin()));
          std::fill_n(got.begin() + static_cast<ptrdiff_t>(i * kOut), kOut, -std::numeric_limits<float>::infinity());
          for (size_t r = 0; r < row.rows.size(); ++r) {
            float& product = got[i * kOut + static_cast<size_t>(row.rows[r])];
            CHECK(product == -std::numeric_limits<float>::infinity());  // each once
            product = row.values[r];
          }
        }
        size_t n_computed = 0;
        for (int i = 0; i < kRows; ++i) {
          const std::span<const float> w = std::span(want).subspan(static_cast<size_t>(i * kOut), kOut);
          const std::span<const float> g = std::span(got).subspan(static_cast<size_t>(i * kOut), kOut);
          std::vector<float> others;  // that count
          for (size_t r = 0; r < kOut; ++r) {
            const bool is_minus_infinity = g[r] == -std::numeric_limits<float>::infinity();
            if (!is_minus_infinity && !test::same_bits(g[r], w[r]))
              test::fail(__FILE__, __LINE__, what + ": another product");
            n_computed += !is_minus_infinity;
            const int32_t id = static_cast<int32_t>(r);
            if (std::find(always.begin(), always.end(), id) != always.end()) {
              CHECK(!is_minus_infinity);
            } else if (std::find(never.begin(), never.end(), id) == never.end()) {
              others.push_back(w[r]);
            }
          }
          const size_t k = static_cast<size_t>(wanted[static_cast<size_t>(i)].n_best);
          std::nth_element(others.begin(), others.begin() + static_cast<ptrdiff_t>(k - 1), others.end(),
                           std::greater<>());
          for (size_t r = 0; r < kOut; ++r) {
            const int32_t id = static_cast<int32_t>(r);
            if (w[r] < others[k - 1] || std::find(never.begin(), never.end(), id) != never.end()) continue;
            if (!test::same_bits(g[r], w[r])) test::fail(__FILE__, __LINE__, what + ": a best product is missing");
          }
        }
        // Random weights of one length are the worst case: the best stand out by little.
        if (is_float_type(type)) CHECK(n_computed < kRows * kOut / 4);
      }
      // Few rows allowed, all of them wanted by name; many allowed, in one row the best of all not; all allowed.
      std::vector<uint32_t> few((kOut + 31) / 32);
      for (const int32_t row : always) few[static_cast<size_t>(row) / 32] |= 1u << row % 32;
      std::vector<uint32_t> many(few.size(), 0xf0ff0fffu);
      const auto best = [&](int i) {
        const auto row = want.begin() + i * kOut;
        return static_cast<size_t>(std::max_element(row, row + kOut) - row);
      };
      many[best(1) / 32] = 0x000f0000u;
      const std::vector<uint32_t> every(few.size(), ~0u);
      const std::vector<TopRows> masked = {{1, always, {}, few, true}, {9, {}, {}, many}, {1, always, {}, few, true},
                                           {3, {}, never, every},      {1, {}, {}, many}, {1, always, {}, few, true}};
      std::vector<float> memory(kRoom);
      std::vector<TopProducts> kept(kRows);
      backend->top_linear(*output, memory.data(), x.data(), kRows, masked, kept);
      for (size_t i = 0; i < kRows; ++i) {
        const TopRows& top = masked[i];
        const std::span<const float> w = std::span(want).subspan(i * kOut, kOut);
        CHECK(!kept[i].all && kept[i].rows.size() == kept[i].values.size());
        std::vector<bool> is_here(kOut);
        for (size_t r = 0; r < kept[i].rows.size(); ++r) {
          const size_t row = static_cast<size_t>(kept[i].rows[r]);
          CHECK((top.allowed[row / 32] >> row % 32 & 1u) != 0 && !is_here[row] &&
                test::same_bits(kept[i].values[r], w[row]));
          is_here[row] = true;
        }
        if (top.only_always) {
          CHECK(std::equal(always.begin(), always.end(), kept[i].rows.begin(), kept[i].rows.end()));
          continue;
        }
        std::vector<float> others;
        for (size_t row = 0; row < kOut; ++row) {
          const bool is_out =
              std::find(top.never.begin(), top.never.end(), static_cast<int32_t>(row)) != top.never.end();
          if (!is_out && (top.allowed[row / 32] >> row % 32 & 1u) != 0) others.push_back(w[row]);
        }
        const auto kth = others.begin() + (top.n_best - 1);
        std::nth_element(others.begin(), kth, others.end(), std::greater<>());
        for (const float product : others) {
          if (product < *kth) continue;
          const auto found = std::find(kept[i].values.begin(), kept[i].values.end(), product);
          if (found == kept[i].values.end())
            test::fail(__FILE__, __LINE__, what + ": a best allowed product is missing");
        }
      }
      // One row that wants everything.
      wanted[2].n_best = 0;
      std::vector<float> got(kRoom, test::kUntouched);
      std::vector<TopProducts> found(kRows);
      backend->top_linear(*output, got.data(), x.data(), kRows, wanted, found);
      for (const TopProducts& row : found) CHECK(row.all && row.rows.empty());
      test::check_same_bits(std::span(got).first(want.size()), want, what + " all rows");
    });
  }
}

TEST("top_linear: x or weights with NaN or infinity take the exhaustive path") {
  std::mt19937 rng(25);
  constexpr int kOut = 4200;
  constexpr int kIn = 64;
  constexpr int kRoom = kOut + kOutputLanes - 1;
  std::vector<std::byte> data = matrix(rng, TensorType::kF32, kOut, kIn);
  std::vector<float> x = activations(rng, 1, kIn);
  const std::unique_ptr<Backend> backend = make_cpu_backend("", 2);
  const TopRows wanted{3, {}, {}, {}};
  for (const bool in_weights : {false, true}) {
    if (in_weights) {
      const float bad = std::numeric_limits<float>::infinity();
      std::memcpy(&data[static_cast<size_t>(kIn) * 4 * 4000], &bad, 4);
    }
    const Weight weight = backend->load_weight(TensorType::kF32, kOut, kIn, data.data());
    const std::unique_ptr<OutputMatrix> output = backend->make_output(weight, true, 1);
    std::vector<float> got(kRoom);
    TopProducts found;
    for (int call = 0; call < Screen::kSlices + 1; ++call)
      backend->top_linear(*output, got.data(), x.data(), 1, {&wanted, 1}, {&found, 1});
    CHECK(found.all == in_weights);
    std::vector<float> bad_x = x;
    if (!in_weights) bad_x[5] = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> want(kOut);
    const LinearJob job{&weight, want.data()};
    backend->linear({&job, 1}, bad_x.data(), 1, {});
    backend->top_linear(*output, got.data(), bad_x.data(), 1, {&wanted, 1}, {&found, 1});
    CHECK(found.all);
    test::check_same_bits(std::span(got).first(kOut), want, in_weights ? "weights" : "x");
  }
}

TEST("top_linear: the widest rows a model may have fit into the working memory") {
  std::mt19937 rng(27);
  constexpr int kOut = 4099;
  constexpr int kIn = 65536;  // kMaxModelDim
  const size_t stored = row_bytes(TensorType::kQ8_0, kIn);
  const std::vector<std::byte> one = test::random_weights(rng, TensorType::kQ8_0, 1, kIn);
  std::vector<std::byte> data(stored * kOut);
  for (size_t r = 0; r < kOut; ++r)
    std::copy(one.begin(), one.end(), data.begin() + static_cast<ptrdiff_t>(r * stored));
  const std::vector<float> x = activations(rng, 1, kIn);
  const std::unique_ptr<Backend> backend = make_cpu_backend("", 2);
  const Weight weight = backend->load_weight(TensorType::kQ8_0, kOut, kIn, data.data());
  const std::unique_ptr<OutputMatrix> output = backend->make_output(weight, true, 1);
  const TopRows wanted{7, {}, {}, {}};
  std::vector<float> got(kOut + kOutputLanes - 1);
  TopProducts found;
  for (int call = 0; call < Screen::kSlices; ++call)
    backend->top_linear(*output, got.data(), x.data(), 1, {&wanted, 1}, {&found, 1});
  backend->top_linear(*output, got.data(), x.data(), 1, {&wanted, 1}, {&found, 1});
  CHECK(!found.all && found.rows.size() == kOut);  // all rows are the same
  for (const float value : found.values) CHECK(test::same_bits(value, got[0]));
}

TEST("bounds: the margin is kScreenSigmas true standard deviations, also along rows of the matrix") {
  std::mt19937 rng(26);
  constexpr int kOut = 16000;
  constexpr int kIn = 640;
  constexpr int kRows = 60;
  const std::vector<float> values = test::random_floats(rng, static_cast<size_t>(kOut) * kIn, 0.03f);
  const std::unique_ptr<Backend> backend = make_cpu_backend("", 2);
  const Weight weight =
      backend->load_weight(TensorType::kF32, kOut, kIn, reinterpret_cast<const std::byte*>(values.data()));
  std::vector<float> x = activations(rng, kRows, kIn);
  Screen screen(*backend, weight, true, kRows);
  ThreadPool pool(2);
  const Kernels& kernels = select_kernels("");
  test::ScratchMemory memory[2];
  const Scratch scratch[] = {memory[0].scratch(), memory[1].scratch()};
  while (!screen.ready()) screen.build_slice(kernels, pool, scratch);
  // The second half of x lies along a row, whose own product must not be off to one side: that is what sampling asks
  // for.
  for (int i = kRows / 2; i < kRows; ++i) {
    for (int j = 0; j < kIn; ++j) x[static_cast<size_t>(i * kIn + j)] = values[static_cast<size_t>(100 * i * kIn + j)];
  }
  std::vector<float> products(static_cast<size_t>(kOut) * kRows);
  const LinearJob job{&weight, products.data()};
  backend->linear({&job, 1}, x.data(), kRows, {});
  std::copy(x.begin(), x.end(), screen.input(kRows).begin());
  std::vector<float> bounds(products.size());
  CHECK(screen.bound(kernels, pool, kRows, bounds.data()));
  // Over the rows of x, (bound - product) / |x| of a row of the matrix has the margin as its mean and the error's
  // deviation.
  std::vector<double> length(kRows);
  for (size_t i = 0; i < kRows; ++i) {
    for (size_t j = 0; j < kIn; ++j) length[i] += std::pow(static_cast<double>(x[i * kIn + j]), 2) / kRows;
    length[i] = std::sqrt(length[i]);
  }
  double margins = 0;
  double variances = 0;
  double own = 0;  // errors of products with the own row, in margins
  for (size_t r = 0; r < kOut; ++r) {
    double sum = 0;
    double squares = 0;
    for (size_t i = 0; i < kRows; ++i) {
      const double slack =
          (static_cast<double>(screen.bounds(static_cast<int>(i))[r]) - products[i * kOut + r]) / length[i];
      CHECK(slack > 0);
      sum += slack;
      squares += slack * slack;
    }
    const double mean = sum / kRows;
    margins += mean * mean;
    variances += squares / kRows - mean * mean;
    const size_t i = r / 100;
    if (r % 100 == 0 && i >= kRows / 2 && i < kRows)
      own +=
          (static_cast<double>(screen.bounds(static_cast<int>(i))[r]) - products[i * kOut + r]) / length[i] / mean - 1;
  }
  const double ratio = std::sqrt(margins / variances);
  if (!(std::fabs(ratio / kScreenSigmas - 1) < 0.02))
    test::fail(__FILE__, __LINE__, "margin / deviation: " + std::to_string(ratio));
  // The mean of 30 errors of one deviation each.
  own *= kScreenSigmas / (kRows / 2);
  if (!(std::fabs(own) < 3 / std::sqrt(30.0))) test::fail(__FILE__, __LINE__, "own rows: " + std::to_string(own));
}

TEST_MAIN

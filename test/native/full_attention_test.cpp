// Attention without mask or cache: every set against a softmax in double, chunks of rows at their borders, groups and
// threads through the backend.
#include <algorithm>
#include <limits>

#include "backend/backend.h"
#include "emulated_tiles.h"
#include "kernel_cases.h"

using namespace gemma;
using namespace gemma::cpu;

namespace {

constexpr double kHalfUlp = 0x1p-24;
// Of fast results, in deviations of the values.
constexpr double kDeviation = 0.02;
constexpr double kLargest = 0.06;

// Rows of one head, `stride` apart; between them NaN that nobody may use or overwrite.
struct Rows {
  int n = 0;
  int dim = 0;
  size_t stride = 0;
  std::vector<float> data;

  Rows(int n_rows, int row_dim)
      : n(n_rows),
        dim(row_dim),
        stride(static_cast<size_t>(row_dim) + 19),
        data(static_cast<size_t>(n_rows) * stride, test::kUntouched) {}
  float* at(int row) { return data.data() + static_cast<size_t>(row) * stride; }
  const float* at(int row) const { return data.data() + static_cast<size_t>(row) * stride; }
};

Rows random_rows(std::mt19937& rng, int n, int dim, float size) {
  Rows rows(n, dim);
  for (int r = 0; r < n; ++r) {
    const std::vector<float> values = test::random_floats(rng, static_cast<size_t>(dim), size);
    std::copy(values.begin(), values.end(), rows.at(r));
  }
  return rows;
}

struct HeadCase {
  Rows q, k, v;
  float scale;
};

// A part that all rows share, as the bias of the projections makes it, and parts of their own.
HeadCase random_case(std::mt19937& rng, int n, int head_dim, float size, float shared) {
  HeadCase c{random_rows(rng, n, head_dim, size), random_rows(rng, n, head_dim, size),
             random_rows(rng, n, head_dim, 1.0f), 1.0f / std::sqrt(static_cast<float>(head_dim))};
  for (Rows* rows : {&c.q, &c.k, &c.v}) {
    const std::vector<float> mean = test::random_floats(rng, static_cast<size_t>(head_dim), shared);
    for (int r = 0; r < n; ++r) {
      for (int j = 0; j < head_dim; ++j) rows->at(r)[j] += mean[static_cast<size_t>(j)];
    }
  }
  return c;
}

// Runs a kernel over all rows of the head in chunks, the last one first.
Rows attend(const FullAttention& kernel, const HeadCase& c, const std::string& what) {
  static test::ScratchMemory memory;
  memory.poison(kScratchBytes);
  Rows out(c.q.n, c.q.dim);
  const size_t packed_bytes = kernel.packed_bytes(c.q.n, c.q.dim);
  std::vector<float> packed((packed_bytes + 128) / sizeof(float), test::kUntouched);
  std::byte* aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(packed.data()) + 63) / 64 * 64);
  const FullAttentionHead head{c.q.at(0), c.k.at(0), c.v.at(0), out.at(0), c.q.stride,
                               c.q.n,     c.q.dim,   c.scale,   aligned};
  kernel.pack(head, memory.scratch());
  for (int begin = (c.q.n - 1) / kFullAttentionRows * kFullAttentionRows; begin >= 0; begin -= kFullAttentionRows)
    kernel.attend(head, begin, std::min(c.q.n, begin + kFullAttentionRows), memory.scratch());
  for (int r = 0; r < out.n; ++r) {
    for (size_t j = static_cast<size_t>(out.dim); j < out.stride; ++j) {
      if (!test::is_untouched(out.at(r)[j])) test::fail(__FILE__, __LINE__, what + ": written past the end of a row");
    }
  }
  for (const float* end = reinterpret_cast<float*>(aligned + packed_bytes); end < packed.data() + packed.size();
       ++end) {
    if (!test::is_untouched(*end)) test::fail(__FILE__, __LINE__, what + ": written past the packed head");
  }
  return out;
}

// A softmax in double, and how far float32 may be off.
struct Exact {
  std::vector<double> out;
  std::vector<double> tolerance;
};
Exact exact_row(const HeadCase& c, int row) {
  const size_t dim = static_cast<size_t>(c.q.dim);
  std::vector<double> scores;
  double magnitude = 0;
  for (int p = 0; p < c.k.n; ++p) {
    double score = 0;
    double absolute = 0;
    for (size_t j = 0; j < dim; ++j) {
      const double product = static_cast<double>(c.q.at(row)[j]) * c.k.at(p)[j] * c.scale;
      score += product;
      absolute += std::fabs(product);
    }
    scores.push_back(score);
    magnitude = std::max(magnitude, absolute);
  }
  const double max = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  Exact exact{std::vector<double>(dim), std::vector<double>(dim)};
  for (int p = 0; p < c.k.n; ++p) {
    const double weight = std::exp(scores[static_cast<size_t>(p)] - max);
    sum += weight;
    for (size_t j = 0; j < dim; ++j) {
      exact.out[j] += weight * c.v.at(p)[j];
      exact.tolerance[j] += weight * std::fabs(c.v.at(p)[j]);
    }
  }
  // A score is one chain of head_dim additions, its weight off by two scores' errors and exp's; then additions and
  // rescalings.
  const double relative = (2 * (c.q.dim + 4.0) * magnitude + 2.0 * c.k.n + 16) * kHalfUlp;
  for (size_t j = 0; j < dim; ++j) {
    exact.out[j] /= sum;
    exact.tolerance[j] *= relative / sum;
  }
  return exact;
}

// f(name, kernel) of every set's fast arithmetic, and of the tiles' where only an emulation of them can run.
template <class F>
void for_each_fast(const F& f) {
  test::for_each_set([&](const Kernels& kernels) { f(std::string(kernels.isa), kernels.fast_attention); });
  if (test::emulated_full_attention() != nullptr) f(std::string("emulated tiles"), *test::emulated_full_attention());
}

const int kRowCounts[] = {1, 2, 15, 17, 63, 64, 65, 131, 257};
const int kHeadDims[] = {1, 3, 16, 31, 72, 129, 256};

}  // namespace

TEST("full_attention exact: every set equals a softmax in double, odd sizes, NaN around the rows") {
  std::mt19937 rng(61);
  for (const int n : kRowCounts) {
    for (const int head_dim : kHeadDims) {
      if (n > 100 && head_dim > 80) continue;
      for (const float size : {0.3f, 4.0f}) {  // weights alike, nearly all on one key
        const HeadCase c = random_case(rng, n, head_dim, size, size);
        std::vector<Exact> exact;
        for (int r = 0; r < n; ++r) exact.push_back(exact_row(c, r));
        test::for_each_set([&](const Kernels& kernels) {
          const std::string what = std::string(kernels.isa) + " rows " + std::to_string(n) + " head_dim " +
                                   std::to_string(head_dim) + " size " + std::to_string(size);
          const Rows got = attend(kernels.exact_attention, c, what);
          for (int r = 0; r < n; ++r) {
            for (int j = 0; j < head_dim; ++j) {
              const size_t i = static_cast<size_t>(j);
              const Exact& want = exact[static_cast<size_t>(r)];
              if (!(std::fabs(got.at(r)[i] - want.out[i]) <= want.tolerance[i])) {
                test::fail(__FILE__, __LINE__,
                           what + " at " + std::to_string(r) + ", " + std::to_string(j) + ": got " +
                               test::describe(got.at(r)[i]) + ", want " + std::to_string(want.out[i]) + " +- " +
                               std::to_string(want.tolerance[i]));
              }
            }
          }
        });
      }
    }
  }
}

TEST("full_attention fast: rows whose codes are exact and whose weights are one key's get that key's values") {
  std::mt19937 rng(64);
  for (const int n : {2, 5, 17, 64, 95, 96, 97, 131, 193, 300}) {
    for (const int head_dim : kHeadDims) {
      // Whole numbers up to 127 that one in each row and column of a tile reaches, in pairs of both signs: means are 0,
      // steps 1. An odd row at the end is zero.
      HeadCase c{Rows(n, head_dim), Rows(n, head_dim), Rows(n, head_dim), 0.05f};
      for (Rows* rows : {&c.q, &c.k, &c.v}) {
        for (int r = 0; r < n; r += 2) {
          for (int j = 0; j < head_dim; ++j) {
            const bool largest = j == r % head_dim || (rows == &c.v && r % 96 == 0);
            const float value = largest ? 127.0f : static_cast<float>(static_cast<int>(rng() % 255) - 127);
            rows->at(r)[j] = r + 1 < n ? value : 0;
            if (r + 1 < n) rows->at(r + 1)[j] = -value;
          }
        }
      }
      std::vector<int> chosen(static_cast<size_t>(n), -1);  // -1: no key is alone at the top
      int n_chosen = 0;
      for (int r = 0; r < n; ++r) {
        double best = -std::numeric_limits<double>::infinity();
        double second = best;
        for (int p = 0; p < n; ++p) {
          double score = 0;
          for (int j = 0; j < head_dim; ++j) score += static_cast<double>(c.q.at(r)[j]) * c.k.at(p)[j] * c.scale;
          if (score > best) {
            second = best;
            best = score;
            chosen[static_cast<size_t>(r)] = p;
          } else {
            second = std::max(second, score);
          }
        }
        if (!(best - second > 20)) chosen[static_cast<size_t>(r)] = -1;
        if (best - second > 20) ++n_chosen;
      }
      if (n >= 16 && head_dim >= 16) CHECK(n_chosen > n / 2);
      for_each_fast([&](const std::string& name, const FullAttention& kernel) {
        const std::string what = name + " rows " + std::to_string(n) + " head_dim " + std::to_string(head_dim);
        const Rows got = attend(kernel, c, what);
        for (int r = 0; r < n; ++r) {
          const int p = chosen[static_cast<size_t>(r)];
          for (int j = 0; p >= 0 && j < head_dim; ++j) {
            if (!(std::fabs(got.at(r)[j] - c.v.at(p)[j]) <= 1e-4f)) {
              test::fail(__FILE__, __LINE__,
                         what + " at " + std::to_string(r) + ", " + std::to_string(j) + ": got " +
                             test::describe(got.at(r)[j]) + ", want " + std::to_string(c.v.at(p)[j]));
            }
          }
        }
      });
    }
  }
}

TEST("full_attention fast: the error of 8 bits, however large what all rows share") {
  std::mt19937 rng(65);
  for (const int n : kRowCounts) {
    for (const int head_dim : kHeadDims) {
      if (n > 100 && head_dim > 80) continue;
      for (const float shared : {0.0f, 10.0f}) {
        const HeadCase c = random_case(rng, n, head_dim, 1.0f, shared);
        std::vector<Exact> exact;
        for (int r = 0; r < n; ++r) exact.push_back(exact_row(c, r));
        for_each_fast([&](const std::string& name, const FullAttention& kernel) {
          const std::string what = name + " rows " + std::to_string(n) + " head_dim " + std::to_string(head_dim) +
                                   " shared " + std::to_string(shared);
          const Rows got = attend(kernel, c, what);
          double squares = 0;
          double largest = 0;
          for (int r = 0; r < n; ++r) {
            for (int j = 0; j < head_dim; ++j) {
              const double error = std::fabs(got.at(r)[j] - exact[static_cast<size_t>(r)].out[static_cast<size_t>(j)]);
              if (!(error <= 1)) test::fail(__FILE__, __LINE__, what + ": off by " + std::to_string(error));
              squares += error * error;
              largest = std::max(largest, error);
            }
          }
          // Values deviate by 1 from their mean.
          const double deviation = std::sqrt(squares / (n * head_dim));
          if (!(deviation <= kDeviation && largest <= kLargest)) {
            test::fail(__FILE__, __LINE__,
                       what + ": deviation " + std::to_string(deviation) + ", largest " + std::to_string(largest));
          }
        });
      }
    }
  }
}

TEST("full_attention: scores of thousands, and a NaN that stays in its head") {
  std::mt19937 rng(62);
  HeadCase c = random_case(rng, 70, 72, 1.0f, 0.0f);
  for (int p = 0; p < 70; ++p) {
    for (int j = 0; j < 72; ++j) c.k.at(p)[j] = p == 66 ? 1000.0f : -1000.0f;
  }
  for (int r = 0; r < 70; ++r) {
    for (int j = 0; j < 72; ++j) c.q.at(r)[j] = 10.0f;
  }
  const auto check = [&](const std::string& name, const FullAttention& kernel, double tolerance) {
    const Rows got = attend(kernel, c, name);
    for (int r = 0; r < 70; ++r) {
      for (int j = 0; j < 72; ++j) CHECK(std::fabs(got.at(r)[j] - c.v.at(66)[j]) <= tolerance);
    }
    HeadCase bad = c;
    bad.q.at(13)[5] = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(attend(kernel, bad, name).at(13)[0]));
    bad = c;
    bad.k.at(69)[71] = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(attend(kernel, bad, name).at(40)[7]));
    bad = c;
    bad.v.at(66)[3] = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(attend(kernel, bad, name).at(1)[3]));
  };
  test::for_each_set([&](const Kernels& kernels) { check(kernels.isa, kernels.exact_attention, 1e-6); });
  for_each_fast([&](const std::string& name, const FullAttention& kernel) { check(name, kernel, 0.05); });
}

TEST("full_attention of a backend: to the bit the same with any number of threads, alone or in company, out may be q") {
  std::mt19937 rng(63);
  constexpr int kGroups = 3;
  constexpr int kHeads = 5;
  constexpr int kHeadDim = 20;
  constexpr int kRows = 77;
  constexpr size_t kPad = 32;
  const size_t group = static_cast<size_t>(kRows * kHeads * kHeadDim);
  const auto values = [&] {
    std::vector<float> x = test::random_floats(rng, kGroups * group, 2.0f);
    x.resize(x.size() + kPad, test::kUntouched);
    return x;
  };
  const std::vector<float> q = values();
  const std::vector<float> k = values();
  const std::vector<float> v = values();
  for (const KernelRow& row : kernel_table()) {
    if (!row.available()) continue;
    for (const Arithmetic arithmetic : {Arithmetic::kExact, Arithmetic::kFast}) {
      const auto one = make_cpu_backend(row.isa, 1);
      std::vector<float> want(q.size(), test::kUntouched);
      for (size_t g = 0; g < kGroups; ++g) {
        const size_t at = g * group;
        one->full_attention(&want[at], &q[at], &k[at], &v[at], 1, kRows, kHeads, kHeadDim, 0.2f, arithmetic);
      }
      for (size_t i = kGroups * group; i < want.size(); ++i) CHECK(test::is_untouched(want[i]));
      // Row 3 of head 2 of group 1 against the kernel itself.
      HeadCase c{Rows(kRows, kHeadDim), Rows(kRows, kHeadDim), Rows(kRows, kHeadDim), 0.2f};
      const auto offset = [&](int r) { return group + static_cast<size_t>((r * kHeads + 2) * kHeadDim); };
      for (int r = 0; r < kRows; ++r) {
        std::copy_n(&q[offset(r)], kHeadDim, c.q.at(r));
        std::copy_n(&k[offset(r)], kHeadDim, c.k.at(r));
        std::copy_n(&v[offset(r)], kHeadDim, c.v.at(r));
      }
      const Kernels& kernels = select_kernels(row.isa);
      const Rows head =
          attend(arithmetic == Arithmetic::kExact ? kernels.exact_attention : kernels.fast_attention, c, row.isa);
      test::check_same_bits({head.at(3), kHeadDim}, {&want[offset(3)], kHeadDim}, row.isa);
      for (const int n_threads : {1, 2, 3, 7}) {
        const auto backend = make_cpu_backend(row.isa, n_threads);
        std::vector<float> out = q;
        backend->full_attention(out.data(), out.data(), k.data(), v.data(), kGroups, kRows, kHeads, kHeadDim, 0.2f,
                                arithmetic);
        test::check_same_bits(out, want, std::string(row.isa) + " threads " + std::to_string(n_threads));
      }
    }
  }
}

TEST_MAIN

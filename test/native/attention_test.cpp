// Attention over the paged cache: every set against a plain softmax in double, spans around the borders of pages, tiles
// of unlike rows, merging of segments, the backend's division into tiles and segments.
#include <algorithm>
#include <limits>
#include <optional>

#include "backend/backend.h"
#include "base/half.h"
#include "cache_cases.h"
#include "emulated_tiles.h"
#include "kernel_cases.h"

using namespace gemma;
using namespace gemma::cpu;
using test::Cache;
using test::Exact;
using test::exact_attention;
using test::type_name;

namespace {

constexpr double kHalfUlp = 0x1p-24;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Result {
  std::vector<float> out;
  float max = 0;
  float sum = 0;
};

using Attention = void (*)(const AttentionTile& tile, const Scratch& scratch);

std::vector<Result> attend(Attention attention, const std::string& name, const Cache& cache, int kv_head,
                           const std::vector<std::vector<float>>& q, const std::vector<RowSpan>& spans) {
  static test::ScratchMemory memory;
  memory.poison(kScratchBytes);
  const size_t n = q.size();
  const size_t head_dim = static_cast<size_t>(cache.layout.head_dim);
  std::vector<std::vector<float>> outs(n, std::vector<float>(head_dim + 16, test::kUntouched));
  std::vector<const float*> q_rows;
  std::vector<float*> out_rows;
  for (size_t r = 0; r < n; ++r) {
    q_rows.push_back(q[r].data());
    out_rows.push_back(outs[r].data());
  }
  std::vector<float> max(n, test::kUntouched);
  std::vector<float> sum(n, test::kUntouched);
  AttentionTile tile;
  const KvLayout& layout = cache.layout;
  const size_t head_offset = static_cast<size_t>(kv_head) * kPagePositions * layout.row_bytes;
  tile.type = layout.type;
  tile.head_dim = layout.head_dim;
  tile.row_bytes = layout.row_bytes;
  tile.pages = cache.pages.data();
  tile.k_offset = layout.layer_offset + head_offset;
  tile.v_offset = layout.v_offset() + head_offset;
  tile.n_rows = static_cast<int>(n);
  tile.q = q_rows.data();
  tile.out = out_rows.data();
  tile.spans = spans.data();
  tile.max = max.data();
  tile.sum = sum.data();
  attention(tile, memory.scratch());
  std::vector<Result> results;
  for (size_t r = 0; r < n; ++r) {
    for (size_t j = head_dim; j < outs[r].size(); ++j) {
      if (!test::is_untouched(outs[r][j])) test::fail(__FILE__, __LINE__, name + ": written past the end of a row");
    }
    outs[r].resize(head_dim);
    results.push_back({outs[r], max[r], sum[r]});
  }
  return results;
}

std::vector<Result> attend(const Kernels& kernels, const Cache& cache, int kv_head,
                           const std::vector<std::vector<float>>& q, const std::vector<RowSpan>& spans) {
  return attend(kernels.attention, kernels.isa, cache, kv_head, q, spans);
}

void check_result(const Result& got, const Exact& exact, const std::string& what) {
  if (!(std::fabs(got.max - exact.max) <= exact.score_tolerance)) {
    test::fail(__FILE__, __LINE__, what + ": max " + test::describe(got.max) + ", want " + std::to_string(exact.max));
  }
  double sum = 0;
  for (const double score : exact.scores) sum += std::exp(score - got.max);
  const double sum_tolerance = sum * (2 * exact.score_tolerance + exact.sum_rounding +
                                      (static_cast<double>(exact.scores.size()) + 16) * kHalfUlp);
  if (!(std::fabs(got.sum - sum) <= sum_tolerance)) {
    test::fail(__FILE__, __LINE__, what + ": sum " + test::describe(got.sum) + ", want " + std::to_string(sum));
  }
  for (size_t j = 0; j < got.out.size(); ++j) {
    const double value = static_cast<double>(got.out[j]) / got.sum;
    if (!(std::fabs(value - exact.out[j]) <= exact.tolerance[j])) {
      test::fail(__FILE__, __LINE__,
                 what + " at " + std::to_string(j) + ": got " + std::to_string(value) + ", want " +
                     std::to_string(exact.out[j]) + " +- " + std::to_string(exact.tolerance[j]));
    }
  }
}

// What bulk_attention may be off by: weights (also in their sum) and values have 8 significant bits, queries and keys
// twice as many.
constexpr double kBulkRounding = 3 * 0x1p-9;
constexpr double kBulkScoreRounding = 0x1p-15;

void widen_tolerances(Exact& exact) {
  const double score = kBulkScoreRounding * exact.score_magnitude;
  exact.score_tolerance += score;
  exact.sum_rounding = 0x1p-9;
  for (size_t j = 0; j < exact.out.size(); ++j) exact.tolerance[j] += (kBulkRounding + 4 * score) * exact.magnitude[j];
}

void check_same(const Result& a, const Result& b, const std::string& what) {
  test::check_same_bits(a.out, b.out, what);
  CHECK(test::same_bits(a.max, b.max) && test::same_bits(a.sum, b.sum));
}

std::vector<std::vector<float>> make_q(std::mt19937& rng, int n_rows, int head_dim, float size) {
  std::vector<std::vector<float>> q;
  for (int r = 0; r < n_rows; ++r) {
    q.push_back(
        test::random_floats(rng, static_cast<size_t>(head_dim), size / std::sqrt(static_cast<float>(head_dim))));
  }
  return q;
}

struct CacheCase {
  KvType type;
  int head_dim;
};
std::vector<CacheCase> cache_cases() {
  std::vector<CacheCase> all;
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    for (const int head_dim : {16, 20, 24, 32, 80, 128, 256}) {
      if (type != KvType::kQ8_0 || head_dim % 32 == 0) all.push_back({type, head_dim});
    }
  }
  return all;
}

}  // namespace

TEST("attention: every set equals a softmax in double, spans around the borders of pages, unlike rows in a tile") {
  std::mt19937 rng(31);
  constexpr int kPositions = 100;
  std::vector<RowSpan> spans;
  for (const int end : {1, 31, 32, 33, 63, 64, 65, 100}) spans.push_back({0, end});
  for (const RowSpan span : {RowSpan{31, 32},
                             {31, 33},
                             {32, 33},
                             {32, 64},
                             {33, 65},
                             {63, 100},
                             {64, 65},
                             {99, 100},
                             {5, 9},
                             {17, 83},
                             {40, 40}}) {
    spans.push_back(span);
  }
  for (const CacheCase c : cache_cases()) {
    Cache cache(c.type, 2, c.head_dim, kPositions);
    cache.fill(rng, kPositions);
    for (const float size : {1.0f, 30.0f}) {  // weights spread out, and nearly all on one position
      const std::vector<std::vector<float>> q = make_q(rng, static_cast<int>(spans.size()), c.head_dim, size);
      for (int head = 0; head < 2; ++head) {
        std::vector<std::optional<Exact>> exact;
        for (size_t r = 0; r < spans.size(); ++r) {
          if (spans[r].begin < spans[r].end) {
            exact.emplace_back(exact_attention(cache, head, q[r], spans[r]));
          } else {
            exact.emplace_back(std::nullopt);
          }
        }
        test::for_each_distinct(&Kernels::attention, [&](const Kernels& kernels) {
          const std::string name =
              std::string(kernels.isa) + " " + type_name(c.type) + " head_dim " + std::to_string(c.head_dim);
          std::vector<Result> alone;
          for (size_t r = 0; r < spans.size(); ++r) {
            const std::string what =
                name + " span " + std::to_string(spans[r].begin) + ".." + std::to_string(spans[r].end);
            alone.push_back(attend(kernels, cache, head, {q[r]}, {spans[r]}).front());
            if (exact[r]) {
              check_result(alone[r], *exact[r], what);
            } else {
              CHECK(alone[r].max == kMinusInfinity && alone[r].sum == 0);
              for (const float v : alone[r].out) CHECK(v == 0);
            }
          }
          // Tiles of every size, each from another row on.
          for (int n_rows = 2; n_rows <= kAttentionRows; ++n_rows) {
            std::vector<size_t> rows;
            for (int i = 0; i < n_rows; ++i)
              rows.push_back((static_cast<size_t>(n_rows) + static_cast<size_t>(i)) % spans.size());
            std::vector<std::vector<float>> tile_q;
            std::vector<RowSpan> tile_spans;
            for (const size_t r : rows) {
              tile_q.push_back(q[r]);
              tile_spans.push_back(spans[r]);
            }
            const std::vector<Result> together = attend(kernels, cache, head, tile_q, tile_spans);
            for (size_t i = 0; i < rows.size(); ++i)
              check_same(together[i], alone[rows[i]], name + " tile of " + std::to_string(n_rows));
          }
        });
      }
    }
  }
}

TEST("bulk attention: a softmax in double within the rounding of its products, unlike rows, tiles of every size") {
  std::mt19937 rng(41);
  std::vector<std::pair<std::string, Attention>> all;
  test::for_each_set([&](const Kernels& kernels) {
    if (kernels.bulk_attention != nullptr) all.emplace_back(kernels.isa, kernels.bulk_attention);
  });
  if (test::emulated_bulk_attention() != nullptr) all.emplace_back("emulated tiles", test::emulated_bulk_attention());
  // All in the second segment.
  constexpr int kPositions = 2 * kSegment;
  std::vector<RowSpan> spans;
  for (const int end : {1, 31, 32, 33, 63, 64, 65, 100, 255, 256}) spans.push_back({kSegment, kSegment + end});
  for (const RowSpan span : {RowSpan{31, 32}, {31, 33}, {33, 65}, {99, 100}, {5, 9}, {17, 203}, {224, 256}, {40, 40}})
    spans.push_back({kSegment + span.begin, kSegment + span.end});
  for (const CacheCase c : cache_cases()) {
    Cache cache(c.type, 2, c.head_dim, kPositions);
    cache.fill(rng, kPositions);
    for (const float size : {1.0f, 30.0f}) {
      const std::vector<std::vector<float>> q = make_q(rng, static_cast<int>(spans.size()), c.head_dim, size);
      std::vector<std::optional<Exact>> exact;
      for (size_t r = 0; r < spans.size(); ++r) {
        exact.emplace_back(std::nullopt);
        if (spans[r].begin == spans[r].end) continue;
        exact.back() = exact_attention(cache, 1, q[r], spans[r]);
        widen_tolerances(*exact.back());
      }
      for (const auto& [kernel, attention] : all) {
        const std::string name = kernel + " " + type_name(c.type) + " head_dim " + std::to_string(c.head_dim);
        std::vector<Result> alone;
        for (size_t r = 0; r < spans.size(); ++r) {
          const std::string what =
              name + " span " + std::to_string(spans[r].begin) + ".." + std::to_string(spans[r].end);
          alone.push_back(attend(attention, what, cache, 1, {q[r]}, {spans[r]}).front());
          if (exact[r]) {
            check_result(alone[r], *exact[r], what);
          } else {
            CHECK(alone[r].max == kMinusInfinity && alone[r].sum == 0);
            for (const float v : alone[r].out) CHECK(v == 0);
          }
        }
        for (const int n_rows : {2, 15, 16, 17, 31, 33, 47, 48, 49, 63, kBulkAttentionRows}) {
          std::vector<std::vector<float>> tile_q;
          std::vector<RowSpan> tile_spans;
          const auto row = [&](int i) { return static_cast<size_t>(n_rows + i) % spans.size(); };
          for (int i = 0; i < n_rows; ++i) {
            tile_q.push_back(q[row(i)]);
            tile_spans.push_back(spans[row(i)]);
          }
          const std::vector<Result> together = attend(attention, name, cache, 1, tile_q, tile_spans);
          for (int i = 0; i < n_rows; ++i)
            check_same(together[static_cast<size_t>(i)], alone[row(i)], name + " tile of " + std::to_string(n_rows));
        }
      }
    }
    // Pages that no span reaches may be null; a NaN among the values reaches those who see it.
    const std::vector<RowSpan> two = {{kSegment + 70, kSegment + 90}, {kSegment + 130, kSegment + 160}};
    const std::vector<std::vector<float>> q = make_q(rng, 2, c.head_dim, 1.0f);
    for (const auto& [kernel, attention] : all) {
      Cache holes = cache;
      for (size_t p = 0; p < holes.pages.size(); ++p)
        holes.pages[p] = p == kSegment / 32 + 2 || p == kSegment / 32 + 4 ? cache.pages[p] : nullptr;
      const std::vector<Result> want = attend(attention, kernel, cache, 1, q, two);
      const std::vector<Result> got = attend(attention, kernel, holes, 1, q, two);
      for (size_t r = 0; r < 2; ++r) check_same(got[r], want[r], kernel + " beside missing pages");
      std::vector<std::vector<float>> bad = q;
      bad[1][3] = std::numeric_limits<float>::quiet_NaN();
      const std::vector<Result> results = attend(attention, kernel, cache, 1, bad, two);
      CHECK(std::isnan(results[1].out[0]) && std::isnan(results[1].sum));
      check_same(results[0], want[0], kernel + " beside a row with NaN");
    }
  }
}

TEST("attention: scores that rise or fall from page to page, and far apart") {
  std::mt19937 rng(32);
  constexpr int kPositions = 160;
  constexpr int kHeadDim = 32;
  for (const float slope : {1.0f, -1.0f, 0.02f}) {
    Cache cache(KvType::kF32, 1, kHeadDim, kPositions);
    cache.fill(rng, kPositions);
    for (int p = 0; p < kPositions; ++p) {
      std::vector<float> k(kHeadDim, 0.0f);
      k[3] = slope * static_cast<float>(p);
      kernels_ref().store_kv_row(KvType::kF32, k.data(), cache.row(false, 0, p), kHeadDim);
    }
    std::vector<float> q(kHeadDim, 0.0f);
    q[3] = 1.5f;
    const RowSpan span{3, kPositions - 5};
    const Exact exact = exact_attention(cache, 0, q, span);
    test::for_each_distinct(&Kernels::attention, [&](const Kernels& kernels) {
      check_result(attend(kernels, cache, 0, {q}, {span}).front(), exact,
                   std::string(kernels.isa) + " slope " + std::to_string(slope));
    });
  }
}

TEST("attention: pages that no span reaches may be null or hold NaN") {
  std::mt19937 rng(33);
  constexpr int kPositions = 224;
  for (const CacheCase c : cache_cases()) {
    Cache cache(c.type, 1, c.head_dim, kPositions);
    cache.fill(rng, kPositions);
    const std::vector<RowSpan> spans = {{70, 90}, {64, 96}, {75, 76}, {130, 160}};  // pages 2 and 4, nothing of 3
    const std::vector<std::vector<float>> q = make_q(rng, 4, c.head_dim, 1.0f);
    test::for_each_distinct(&Kernels::attention, [&](const Kernels& kernels) {
      const std::vector<Result> want = attend(kernels, cache, 0, q, spans);
      Cache poisoned = cache;
      for (size_t page = 0; page < poisoned.pages.size(); ++page) {
        poisoned.pages[page] = nullptr;
        if (page == 2 || page == 4) poisoned.pages[page] = poisoned.memory[page].data();
      }
      std::fill(poisoned.memory[1].begin(), poisoned.memory[1].end(), std::byte{0xff});
      poisoned.pages[1] = poisoned.memory[1].data();
      std::fill(poisoned.memory[5].begin(), poisoned.memory[5].end(), std::byte{0xff});
      poisoned.pages[5] = poisoned.memory[5].data();
      const std::vector<Result> got = attend(kernels, poisoned, 0, q, spans);
      for (size_t r = 0; r < q.size(); ++r)
        check_same(got[r], want[r], std::string(kernels.isa) + " " + type_name(c.type));
    });
  }
}

TEST("attention: NaN in a visible key or value shows") {
  std::mt19937 rng(34);
  for (const bool values : {false, true}) {
    for (const int position : {0, 5, 40, 63}) {
      Cache cache(KvType::kF32, 1, 32, 64);
      cache.fill(rng, 64);
      const float nan = std::numeric_limits<float>::quiet_NaN();
      std::memcpy(cache.row(values, 0, position), &nan, 4);
      test::for_each_distinct(&Kernels::attention, [&](const Kernels& kernels) {
        const Result result = attend(kernels, cache, 0, make_q(rng, 1, 32, 1.0f), {{0, 64}}).front();
        CHECK(std::isnan(result.out[0] / result.sum));
        if (!values) CHECK(std::isnan(result.sum));
      });
    }
  }
}

TEST("merge_segments: two parts equal one long run within rounding, the whole range of exp") {
  std::mt19937 rng(35);
  constexpr int kPositions = 200;
  for (const int head_dim : {16, 20, 80, 256}) {
    Cache cache(KvType::kF32, 1, head_dim, kPositions);
    cache.fill(rng, kPositions);
    const std::vector<std::vector<float>> q = make_q(rng, 1, head_dim, 5.0f);
    const Exact exact = exact_attention(cache, 0, q[0], {0, kPositions});
    test::for_each_set([&](const Kernels& kernels) {
      for (const int cut : {1, 64, 100, 199}) {
        for (const bool swap : {false, true}) {
          Result first = attend(kernels, cache, 0, q, {{0, cut}}).front();
          Result second = attend(kernels, cache, 0, q, {{cut, kPositions}}).front();
          if (swap) std::swap(first, second);
          first.out.resize(first.out.size() + 16, test::kUntouched);
          kernels.merge_segments(first.out.data(), &first.max, &first.sum, second.out.data(), second.max, second.sum,
                                 head_dim);
          for (size_t j = static_cast<size_t>(head_dim); j < first.out.size(); ++j)
            CHECK(test::is_untouched(first.out[j]));
          first.out.resize(static_cast<size_t>(head_dim));
          check_result(first, exact, std::string(kernels.isa) + " cut at " + std::to_string(cut));
        }
      }
    });
  }
  test::for_each_set([&](const Kernels& kernels) {
    for (int i = 0; i <= 12000; ++i) {  // acc = 0 + exp(-t) * 1
      const float t = static_cast<float>(i) * 0.01f;
      std::vector<float> acc(16, 0.0f);
      const std::vector<float> one(16, 1.0f);
      float max = 0;
      float sum = 0;
      kernels.merge_segments(acc.data(), &max, &sum, one.data(), -t, 1.0f, 16);
      const double want = std::exp(-static_cast<double>(t));
      // 1.5 ulp, or half the smallest number and a bit
      const double tolerance = 3 * kHalfUlp * want + 0x1p-149;
      for (const float v : acc) CHECK(std::fabs(v - want) <= tolerance);
      CHECK(max == 0 && std::fabs(sum - want) <= tolerance);
    }
    // A part that saw nothing leaves the other as it is, to the bit.
    std::vector<float> acc = {0.0f, 0.0f};
    const std::vector<float> other = {0.3f, -7e-20f};
    float max = kMinusInfinity;
    float sum = 0;
    kernels.merge_segments(acc.data(), &max, &sum, other.data(), -55.5f, 1.7f, 2);
    CHECK(acc == other && max == -55.5f && sum == 1.7f);
  });
}

namespace {

// Two sequences' rows of q in one batch over caches with more than two segments.
struct Batch {
  int n_heads;
  int n_kv_heads;
  int head_dim;
  KvType type;
  int n_window;  // 0: global
};

}  // namespace

TEST(
    "backend attention: long contexts; alone, in a prefill, beside another sequence, any number of threads: the same "
    "bits") {
  constexpr int kPositions[2] = {2500, 1100};
  for (const Batch& batch :
       {Batch{6, 2, 32, KvType::kF16, 0}, Batch{6, 2, 32, KvType::kF16, 1500}, Batch{20, 1, 16, KvType::kF32, 0},
        Batch{4, 4, 64, KvType::kQ8_0, 0}, Batch{8, 4, 64, KvType::kF16, 600}}) {
    std::mt19937 rng(36);
    std::vector<Cache> caches;
    std::vector<std::vector<float>> q;  // [sequence][position from the end backwards]
    constexpr int kRows = 20;
    const size_t width = static_cast<size_t>(batch.n_heads * batch.head_dim);
    for (const int n : kPositions) {
      caches.emplace_back(batch.type, batch.n_kv_heads, batch.head_dim, n);
      caches.back().fill(rng, n);
      q.push_back(test::random_floats(rng, kRows * width, 0.3f));
    }
    const auto span = [&](int sequence, int row) {  // row of the last kRows positions
      const int position = kPositions[sequence] - kRows + row;
      return RowSpan{batch.n_window == 0 ? 0 : std::max(0, position - batch.n_window + 1), position + 1};
    };
    test::for_each_set([&](const Kernels& kernels) {
      std::vector<float> wants[2];  // exact and bulk: [sequence][row], one row alone, one thread
      for (const int n_threads : {1, 2, 3}) {
        const std::unique_ptr<Backend> backend = make_cpu_backend(kernels.isa, n_threads);
        struct Part {
          int sequence;
          int first;
          int n_rows;
        };
        const auto run = [&](const std::vector<Part>& parts, int n_bulk) {
          std::vector<float> batch_q;
          std::vector<RowSpan> spans;
          std::vector<BatchSequence> sequences;
          for (const Part& part : parts) {
            const size_t s = static_cast<size_t>(part.sequence);
            sequences.push_back({static_cast<int>(spans.size()), part.n_rows, caches[s].pages.data()});
            for (int r = part.first; r < part.first + part.n_rows; ++r) {
              const auto row = q[s].begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(r) * width);
              batch_q.insert(batch_q.end(), row, row + static_cast<std::ptrdiff_t>(width));
              spans.push_back(span(part.sequence, r));
            }
          }
          std::vector<float> out(batch_q.size(), test::kUntouched);
          backend->attention(out.data(), batch_q.data(), caches[0].layout, sequences, spans.data(), batch.n_heads,
                             Bulk{n_bulk});
          return out;
        };
        for (const bool bulk : {false, true}) {
          const std::string name =
              std::string(kernels.isa) + (bulk ? " bulk" : "") + " threads " + std::to_string(n_threads);
          const auto run_all = [&](const std::vector<Part>& parts) {
            int n = 0;
            for (const Part& part : parts) n += part.n_rows;
            return run(parts, bulk ? n : 0);
          };
          std::vector<float> single;
          for (int s = 0; s < 2; ++s) {
            for (int r = 0; r < kRows; ++r) {
              const std::vector<float> row = run_all({{s, r, 1}});
              single.insert(single.end(), row.begin(), row.end());
            }
          }
          std::vector<float>& want = wants[bulk ? 1 : 0];
          if (want.empty()) want = single;
          test::check_same_bits(single, want, name + " row by row");
          const std::span<const float> all(want);
          test::check_same_bits(run_all({{0, 0, kRows}}), all.first(kRows * width), name + " prefill");
          test::check_same_bits(run_all({{0, 0, kRows}, {1, 0, kRows}}), all, name + " two prefills");
          test::check_same_bits(run_all({{0, 17, 3}}), all.subspan(17 * width, 3 * width), name + " three rows");
          const std::vector<float> mixed = run({{0, 19, 1}, {1, 2, 12}}, bulk ? 12 : 0);
          test::check_same_bits(std::span(mixed).first(width), std::span(wants[0]).subspan(19 * width, width),
                                name + " decode beside prefill");
          test::check_same_bits(std::span(mixed).subspan(width), all.subspan((kRows + 2) * width, 12 * width),
                                name + " prefill beside decode");
        }
      }
      // A cache in float32 asks for exact arithmetic.
      if (batch.type == KvType::kF32) test::check_same_bits(wants[1], wants[0], kernels.isa);
      for (int s = 0; s < 2; ++s) {
        for (int h = 0; h < batch.n_heads; h += 3) {
          const size_t head_dim = static_cast<size_t>(batch.head_dim);
          const size_t at = static_cast<size_t>(h) * head_dim;
          const auto row = q[static_cast<size_t>(s)].begin() + static_cast<std::ptrdiff_t>(at);
          const std::vector<float> head_q(row, row + batch.head_dim);
          Exact exact = exact_attention(caches[static_cast<size_t>(s)], h / (batch.n_heads / batch.n_kv_heads), head_q,
                                        span(s, 0));
          for (const std::vector<float>& want : wants) {
            for (size_t j = 0; j < head_dim; ++j) {
              const float got = want[static_cast<size_t>(s) * kRows * width + at + j];
              CHECK(std::fabs(got - exact.out[j]) <= exact.tolerance[j]);
            }
            widen_tolerances(exact);
          }
        }
      }
    });
  }
}

TEST("backend store_kv: rows land at their positions, nothing else changes") {
  std::mt19937 rng(37);
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8_0}) {
    test::for_each_set([&](const Kernels& kernels) {
      const std::unique_ptr<Backend> backend = make_cpu_backend(kernels.isa, 2);
      constexpr int kHeads = 3;
      constexpr int kHeadDim = 32;
      Cache got(type, kHeads, kHeadDim, 96);
      Cache want(type, kHeads, kHeadDim, 96);
      std::vector<int32_t> positions(20);
      for (int i = 0; i < 20; ++i) positions[static_cast<size_t>(i)] = 25 + i;  // over the border of a page
      const std::vector<float> k = test::random_floats(rng, 20 * kHeads * kHeadDim);
      const std::vector<float> v = test::random_floats(rng, 20 * kHeads * kHeadDim);
      const BatchSequence sequence{0, 20, got.pages.data()};
      backend->store_kv(got.layout, {&sequence, 1}, positions.data(), k.data(), v.data());
      for (size_t i = 0; i < 20; ++i) {
        for (int h = 0; h < kHeads; ++h) {
          const size_t source = (i * kHeads + static_cast<size_t>(h)) * kHeadDim;
          kernels_ref().store_kv_row(type, &k[source], want.row(false, h, positions[i]), kHeadDim);
          kernels_ref().store_kv_row(type, &v[source], want.row(true, h, positions[i]), kHeadDim);
        }
      }
      CHECK(got.memory == want.memory);
    });
  }
}

TEST_MAIN

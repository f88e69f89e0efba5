// The paged cache: what is taken, given back, zeroed and kept while sequences grow past their window.
#include "model/cache.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>

#include "check.h"

using namespace gemma;

namespace {

// Memory full of ones, counted, and refused after a number of allocations. The cache uses nothing else of a backend.
class MemoryBackend final : public Backend, public BackendTraits {
 public:
  size_t n_live = 0;
  int n_allowed = 1 << 20;

  bool has_bulk() const override { return false; }
  bool maps_weights() const override { return true; }
  uint64_t weight_bytes(TensorType, int, int) const override { return 0; }
  uint64_t buffer_bytes(uint64_t bytes) const override { return bytes; }
  uint64_t output_bytes(int, int, int) const override { return 0; }
  std::vector<uint64_t> workspace_bytes(const WorkLimits&) const override { return {}; }
  const BackendTraits& traits() const override { return *this; }
  void reserve(const WorkLimits&) override {}

  const char* device() const override { return "memory"; }
  const char* isa() const override { return ""; }
  int n_threads() const override { return 1; }
  std::unique_ptr<Buffer> allocate(size_t bytes) override {
    if (n_allowed-- <= 0) throw Error(ErrorCode::kOutOfMemory, "", "none left");
    return std::make_unique<Memory>(*this, bytes);
  }
  void upload(void* dst, const void* src, size_t bytes) override { std::memcpy(dst, src, bytes); }
  void download(void* dst, const void* src, size_t bytes) override { std::memcpy(dst, src, bytes); }
  void fill_zero(void* dst, size_t bytes) override { std::memset(dst, 0, bytes); }
  Weight load_weight(TensorType, int, int, const std::byte*) override { return {}; }
  void requantize(std::byte*, const Weight&, int, int) override {}
  void embed(float*, const Weight&, const int32_t*, int, float) override {}
  void rms_norm(float*, const float*, const float*, int, int, float) override {}
  void add_rms_norm(float*, const float*, const float*, int, int, float) override {}
  using Backend::linear;
  void linear(std::span<const LinearJob>, const float*, int, Bulk, std::span<const LowRank>) override {}
  void add_low_rank(std::span<const LowRank>) override {}
  bool computes_bulk_apart(TensorType) const override { return false; }
  std::unique_ptr<OutputMatrix> make_output(const Weight&, bool, int) override { return nullptr; }
  void top_linear(OutputMatrix&, float*, const float*, int, std::span<const TopRows>, std::span<TopProducts>) override {
  }
  void rope_table(float*, const int32_t*, const float*, int, int) override {}
  void norm_rope(float*, const float*, const float*, int, int, int, float, float) override {}
  void store_kv(const KvLayout&, std::span<const BatchSequence>, const int32_t*, const float*, const float*) override {}
  void attention(float*, const float*, const KvLayout&, std::span<const BatchSequence>, const RowSpan*, int,
                 Bulk) override {}
  void geglu(float*, const float*, const float*, int, int) override {}
  void layer_norm(float*, const float*, const float*, const float*, int, int, float) override {}
  void add_bias(float*, const float*, int, int) override {}
  void bias_gelu(float*, const float*, int, int) override {}
  void add_residual_bias(float*, const float*, const float*, int, int) override {}
  void full_attention(float*, const float*, const float*, const float*, int, int, int, int, float,
                      Arithmetic) override {}
  void gather_rows(float* out, const float* x, const int32_t* rows, int n, int dim) override {
    for (int i = 0; i < n; ++i) std::memcpy(out + i * dim, x + rows[i] * dim, static_cast<size_t>(dim) * sizeof(float));
  }
  void softcap(float*, size_t, float) override {}

 private:
  class Memory final : public Buffer {
   public:
    Memory(MemoryBackend& owner, size_t bytes) : owner_(owner), memory_(bytes, std::byte{0xff}) {
      data_ = memory_.data();
      bytes_ = bytes;
      ++owner_.n_live;
    }
    ~Memory() override { --owner_.n_live; }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

   private:
    MemoryBackend& owner_;
    std::vector<std::byte> memory_;
  };
};

// windows: of each layer; 0: global.
ModelConfig make_config(const std::vector<int>& windows, int head_dim = 32) {
  ModelConfig config;
  LayerConfig layer;
  layer.n_kv_heads = 2;
  layer.head_dim = head_dim;
  for (const int n_window : windows) {
    layer.n_window = n_window;
    config.layers.push_back(layer);
  }
  return config;
}

// Five local layers to one global, as in the models.
ModelConfig usual_config(int window = 40) {
  return make_config({window, window, window, window, window, 0, window});
}

// Groups of that model, by their first layers.
constexpr size_t kLocal = 0;
constexpr size_t kGlobal = 1;

bool is_zero(const std::byte* page, size_t bytes) {
  return std::all_of(page, page + bytes, [](std::byte b) { return b == std::byte{0}; });
}

const std::byte* page_of(const KvSequence& sequence, size_t group, int position) {
  return sequence.pages(group)[position / kPagePositions];
}

}  // namespace

TEST("pool: layers of a group lie one after the other in its pages") {
  MemoryBackend backend;
  const ModelConfig config = usual_config();
  struct Case {
    KvType type;
    size_t row;
  };
  for (const Case c : {Case{KvType::kF32, 128}, Case{KvType::kF16, 64}, Case{KvType::kQ8_0, 34}}) {
    const KvPool pool(backend, config, c.type);
    const size_t layer_bytes = 2 * 2 * kPagePositions * c.row;
    CHECK(pool.page_bytes(kLocal) == 6 * layer_bytes && pool.page_bytes(kGlobal) == layer_bytes);
    size_t n_local = 0;
    for (int layer = 0; layer < config.n_layers(); ++layer) {
      const KvLayout& layout = pool.layout(layer);
      const bool local = config.layers[static_cast<size_t>(layer)].is_local();
      CHECK(pool.group(layer) == (local ? kLocal : kGlobal));
      CHECK(layout.type == c.type && layout.n_kv_heads == 2 && layout.head_dim == 32 && layout.row_bytes == c.row);
      CHECK(layout.layer_offset == (local ? n_local++ : 0) * layer_bytes && layout.layer_offset % 64 == 0);
      CHECK(layout.v_offset() == layout.layer_offset + layer_bytes / 2);
    }
    CHECK(pool.bytes_resident() == 0 && pool.pages_in_use() == 0);
  }
}

TEST("pool: q8_0 needs whole blocks") {
  MemoryBackend backend;
  CHECK_THROWS(kInvalidArgument, "KV_TYPE", KvPool(backend, make_config({0}, 80), KvType::kQ8_0));
  KvPool(backend, make_config({0}, 80), KvType::kF16);
}

TEST("pool: pages are zero when taken, the first time and again; they do not overlap; an idle pool holds nothing") {
  MemoryBackend backend;
  KvPool pool(backend, usual_config(), KvType::kF16);
  for (const size_t group : {kLocal, kGlobal}) {
    const size_t bytes = pool.page_bytes(group);
    std::vector<std::byte*> pages;
    for (int i = 0; i < 1000; ++i) {
      pages.push_back(pool.take(group));
      CHECK(is_zero(pages.back(), bytes));
      std::memset(pages.back(), 0xff, bytes);
    }
    CHECK(pool.pages_in_use() == 1000 && pool.bytes_resident() >= 1000 * bytes);
    // Slabs of some megabytes at most are more than what is used.
    CHECK(pool.bytes_resident() <= 1000 * bytes + (size_t{4} << 20));
    std::vector<std::byte*> sorted = pages;
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 1; i < sorted.size(); ++i) CHECK(sorted[i - 1] + bytes <= sorted[i]);

    const size_t resident = pool.bytes_resident();
    for (int i = 0; i < 400; ++i) pool.give_back(group, pages[static_cast<size_t>(i)]);
    CHECK(pool.pages_in_use() == 600);
    // Slabs of which no page is in use went back, all but one.
    const size_t slab = (size_t{4} << 20) / bytes * bytes;
    CHECK(resident - pool.bytes_resident() == (400 * bytes / slab > 1 ? (400 * bytes / slab - 1) * slab : 0));
    for (size_t i = 0; i < 400; ++i) {
      pages[i] = pool.take(group);
      CHECK(is_zero(pages[i], bytes));
    }
    CHECK(pool.bytes_resident() == resident);  // used again
    for (std::byte* page : pages) pool.give_back(group, page);
    CHECK(pool.pages_in_use() == 0 && pool.bytes_resident() == 0 && backend.n_live == 0);
  }
}

TEST("sequence: reserve takes whole pages, at borders none too many, and keeps what it has") {
  MemoryBackend backend;
  KvPool pool(backend, usual_config(64), KvType::kF16);
  KvSequence sequence(pool);
  CHECK(sequence.n_pages(kLocal) == 0);
  sequence.reserve(0, 1);
  CHECK(sequence.n_pages(kLocal) == 1 && sequence.n_pages(kGlobal) == 1);
  const std::byte* first = page_of(sequence, kGlobal, 0);
  sequence.reserve(1, 32);
  CHECK(sequence.n_pages(kLocal) == 1 && sequence.n_pages(kGlobal) == 1);
  sequence.reserve(31, 33);
  CHECK(sequence.n_pages(kLocal) == 2 && sequence.n_pages(kGlobal) == 2);
  sequence.reserve(33, 64);
  CHECK(sequence.n_pages(kLocal) == 2 && sequence.n_pages(kGlobal) == 2);
  sequence.reserve(64, 129);
  CHECK(sequence.n_pages(kLocal) == 5 && sequence.n_pages(kGlobal) == 5);
  CHECK(page_of(sequence, kGlobal, 31) == first);
  std::set<const std::byte*> distinct;
  for (int position = 0; position < 129; position += kPagePositions) {
    distinct.insert(page_of(sequence, kLocal, position));
    distinct.insert(page_of(sequence, kGlobal, position));
  }
  CHECK(distinct.size() == 10 && distinct.count(nullptr) == 0 && pool.pages_in_use() == 10);
}

TEST("sequence: local pages are given back once the window has passed them, not a position earlier") {
  MemoryBackend backend;
  KvPool pool(backend, usual_config(40), KvType::kF16);
  KvSequence sequence(pool);
  sequence.reserve(0, 200);
  // Position next sees next - 39 .. next. The first that no longer sees position 31 is 71.
  sequence.trim(0);
  sequence.trim(70);
  CHECK(sequence.n_pages(kLocal) == 7 && page_of(sequence, kLocal, 31) != nullptr);
  sequence.trim(71);
  CHECK(sequence.n_pages(kLocal) == 6 && page_of(sequence, kLocal, 31) == nullptr);
  CHECK(page_of(sequence, kLocal, 32) != nullptr);
  sequence.trim(71);
  sequence.trim(50);  // nothing comes back, nothing goes
  CHECK(sequence.n_pages(kLocal) == 6);
  sequence.trim(200);  // sees 161..
  CHECK(sequence.n_pages(kLocal) == 2 && page_of(sequence, kLocal, 160) != nullptr);
  CHECK(sequence.n_pages(kGlobal) == 7 && pool.pages_in_use() == 9);
  sequence.trim(100000);  // past what is there
  CHECK(sequence.n_pages(kLocal) == 0);
  sequence.reserve(200, 201);  // the own page and those the window reaches
  CHECK(sequence.n_pages(kLocal) == 2 && sequence.n_pages(kGlobal) == 7);
}

TEST("sequence: chunks and single tokens far past the window: what is visible is there, memory is bounded") {
  MemoryBackend backend;
  for (const int window : {1, 8, 32, 33, 100}) {
    KvPool pool(backend, usual_config(window), KvType::kF16);
    for (const int chunk : {1, 7, 32, 50}) {
      KvSequence sequence(pool);
      int position = 0;
      while (position < 1000) {
        const int n = position < 600 ? chunk : 1;
        sequence.reserve(position, position + n);
        // Every row of this chunk reaches window - 1 positions back from its own.
        for (int p = std::max(0, position - window + 1); p < position + n; ++p)
          CHECK(page_of(sequence, kLocal, p) != nullptr);
        for (int p = 0; p < position + n; p += kPagePositions) CHECK(page_of(sequence, kGlobal, p) != nullptr);
        position += n;
        sequence.trim(position);
        CHECK(sequence.n_pages(kLocal) <= static_cast<size_t>((window + kPagePositions) / kPagePositions + 1));
        CHECK(sequence.n_pages(kGlobal) == static_cast<size_t>((position + kPagePositions - 1) / kPagePositions));
      }
    }
    CHECK(pool.pages_in_use() == 0 && pool.bytes_resident() == 0);
  }
}

TEST("sequence: what was written stays through growth and trimming, new pages are zero") {
  MemoryBackend backend;
  KvPool pool(backend, usual_config(40), KvType::kF16);
  KvSequence sequence(pool);
  for (int position = 0; position < 500; ++position) {
    sequence.reserve(position, position + 1);
    for (const size_t group : {kLocal, kGlobal}) {
      // Pages are const for readers; the test writes as the backend does.
      std::byte* page = const_cast<std::byte*>(page_of(sequence, group, position));
      if (position % kPagePositions == 0) CHECK(is_zero(page, pool.page_bytes(group)));
      page[position % kPagePositions] = static_cast<std::byte>(position % 251 + 1);
    }
    sequence.trim(position + 1);
    for (int p = 0; p <= position; ++p) {
      const std::byte want = static_cast<std::byte>(p % 251 + 1);
      CHECK(page_of(sequence, kGlobal, p)[p % kPagePositions] == want);
      if (p > position - 39) CHECK(page_of(sequence, kLocal, p)[p % kPagePositions] == want);
    }
  }
}

TEST("sequences share a pool; what one gives back the other uses; the last one leaves nothing") {
  MemoryBackend backend;
  KvPool pool(backend, usual_config(512), KvType::kQ8_0);
  std::optional<KvSequence> a(std::in_place, pool);
  std::optional<KvSequence> b(std::in_place, pool);
  a->reserve(0, 3000);
  b->reserve(0, 100);
  CHECK(page_of(*a, kGlobal, 0) != page_of(*b, kGlobal, 0));
  CHECK(pool.pages_in_use() == a->n_pages(kLocal) + a->n_pages(kGlobal) + 8);
  const size_t resident = pool.bytes_resident();
  a.reset();
  CHECK(pool.pages_in_use() == 8);
  b->reserve(100, 2900);
  CHECK(pool.bytes_resident() <= resident);
  b.reset();
  CHECK(pool.pages_in_use() == 0 && pool.bytes_resident() == 0 && backend.n_live == 0);
}

TEST("a model of local or of global layers alone has no pages of the other kind") {
  MemoryBackend backend;
  for (const int window : {0, 64}) {
    KvPool pool(backend, make_config({window, window}), KvType::kF16);
    CHECK(pool.n_groups() == 1 && pool.window(0) == window);
    KvSequence sequence(pool);
    sequence.reserve(0, 500);
    CHECK(sequence.n_pages(0) == 16 && pool.pages_in_use() == 16);
    sequence.trim(500);
    CHECK(sequence.n_pages(0) == (window != 0 ? 3u : 16u));
  }
}

TEST("layers of several windows and shapes: a group for each window, each trimmed by its own") {
  MemoryBackend backend;
  ModelConfig config = make_config({64, 0, 33, 64, 0});
  config.layers[3].head_dim = 96;
  config.layers[4].n_kv_heads = 1;
  KvPool pool(backend, config, KvType::kF16);
  CHECK(pool.n_groups() == 3 && pool.window(0) == 64 && pool.window(1) == 0 && pool.window(2) == 33);
  const size_t groups[] = {0, 1, 2, 0, 1};
  for (int layer = 0; layer < 5; ++layer) CHECK(pool.group(layer) == groups[layer]);
  const size_t layer_bytes = 2 * 2 * kPagePositions * 64;
  CHECK(pool.page_bytes(0) == 4 * layer_bytes && pool.page_bytes(1) == 3 * layer_bytes / 2);
  CHECK(pool.page_bytes(2) == layer_bytes);
  CHECK(pool.layout(3).row_bytes == 192 && pool.layout(3).layer_offset == layer_bytes);
  CHECK(pool.layout(4).v_offset() == layer_bytes + layer_bytes / 4);

  KvSequence sequence(pool);
  sequence.reserve(0, 320);
  CHECK(pool.pages_in_use() == 30);
  sequence.trim(320);  // sees 257.., all, 288..
  CHECK(sequence.n_pages(0) == 2 && sequence.n_pages(1) == 10 && sequence.n_pages(2) == 1);
  CHECK(sequence.first_fork() == 320 && sequence.can_fork(320) &&
        !sequence.can_fork(319));  // the narrowest window decides
  const std::unique_ptr<KvSequence> forked = sequence.fork(320);
  for (size_t group = 0; group < 3; ++group) CHECK(forked->n_pages(group) == sequence.n_pages(group));
  forked->reserve(320, 321);
  CHECK(forked->n_pages(0) == 3 && forked->n_pages(1) == 11 && forked->n_pages(2) == 2);
}

TEST("rollback: pages that hold nothing else go back, what is left of the window stays") {
  MemoryBackend backend;
  KvPool pool(backend, usual_config(40), KvType::kF16);
  KvSequence sequence(pool);
  int n = 0;
  // Steps of 1 to 16 positions of which some are taken back, over many pages and windows.
  for (int step = 0; step < 500; ++step) {
    const int rows = 1 + step % 16;
    const int kept = 1 + (step * 7) % rows;
    sequence.reserve(n, n + rows);
    // A mark in every position that counts, at a byte of its own.
    for (int p = n; p < n + kept; ++p) {
      for (const size_t group : {kLocal, kGlobal}) {
        auto* page = const_cast<std::byte*>(page_of(sequence, group, p));
        CHECK(page != nullptr);
        page[p % kPagePositions] = static_cast<std::byte>(p % 251 + 1);
      }
    }
    for (int p = n; p < n + rows; ++p) CHECK(page_of(sequence, kLocal, p) != nullptr);
    n += kept;
    sequence.rollback(n);
    sequence.trim(n);
    const size_t n_global = static_cast<size_t>((n + kPagePositions - 1) / kPagePositions);
    CHECK(sequence.n_pages(kGlobal) == n_global && sequence.n_pages(kLocal) <= 3);
    CHECK(pool.pages_in_use() == sequence.n_pages(kLocal) + n_global);
    for (int p = 0; p < n; ++p) {
      CHECK(page_of(sequence, kGlobal, p)[p % kPagePositions] == static_cast<std::byte>(p % 251 + 1));
      if (p > n - 40) CHECK(page_of(sequence, kLocal, p)[p % kPagePositions] == static_cast<std::byte>(p % 251 + 1));
    }
  }
  sequence.rollback(0);
  CHECK(pool.pages_in_use() == 0 && backend.n_live == 0);
  sequence.reserve(0, 70);
  CHECK(sequence.n_pages(kLocal) == 3 && sequence.n_pages(kGlobal) == 3);
}

TEST("fork: the same positions, full pages shared, each sequence's later ones its own, all given back in any order") {
  MemoryBackend backend;
  KvPool pool(backend, usual_config(40), KvType::kF16);
  const auto mark = [](const KvSequence& sequence, int position, int value) {
    for (const size_t group : {kLocal, kGlobal})
      const_cast<std::byte*>(page_of(sequence, group, position))[position % kPagePositions] =
          static_cast<std::byte>(value);
  };
  const auto marked = [](const KvSequence& sequence, int position, int value, int end) {
    const auto has = [&](size_t group) {
      return page_of(sequence, group, position)[position % kPagePositions] == static_cast<std::byte>(value);
    };
    return has(kGlobal) && (position <= end - 40 || has(kLocal));  // the window
  };
  for (const int n : {33, 64, 100, 127, 128, 129, 200}) {
    auto sequence = std::make_unique<KvSequence>(pool);
    sequence->reserve(0, 200);
    for (int p = 0; p < 200; ++p) mark(*sequence, p, p + 1);
    CHECK(sequence->can_fork(n));
    auto forked = sequence->fork(n);
    const size_t n_all = static_cast<size_t>((n + 31) / 32);
    CHECK(forked->n_pages(kGlobal) == n_all);
    CHECK(forked->n_pages(kLocal) == n_all - static_cast<size_t>(std::max(0, n - 39) / 32));
    // Only the page that is not full is a new one.
    CHECK(pool.pages_in_use() == 14 + (n % 32 != 0 ? 2u : 0u));
    auto again = forked->fork(n - 1);
    // One that can be gone on from earlier than its end.
    {
      const auto longer = sequence->fork(n, 20);
      CHECK(longer->first_fork() == 0 && longer->can_fork(20) && longer->n_pages(kLocal) == n_all);
      const auto later = sequence->fork(200, n);
      const int first_seen = std::max(0, n - 39) / 32;
      CHECK(later->n_pages(kGlobal) == 7 && later->n_pages(kLocal) == static_cast<size_t>(7 - first_seen));
      CHECK(later->first_fork() == (first_seen == 0 ? 0 : first_seen * 32 + 39) && later->first_fork() <= n);
    }
    sequence->trim(200);
    CHECK(sequence->can_fork(200) && sequence->can_fork(199) && !sequence->can_fork(160));
    CHECK(forked->can_fork(n) && forked->can_fork(n - 1));
    // Both go on.
    forked->reserve(n, n + 70);
    for (int p = n; p < n + 70; ++p) mark(*forked, p, 255);
    sequence->reserve(200, 260);
    for (int p = 200; p < 260; ++p) mark(*sequence, p, 254);
    for (int p = 0; p < 200; ++p) CHECK(marked(*sequence, p, p + 1, 200));
    for (int p = 0; p < n; ++p) CHECK(marked(*forked, p, p + 1, n));
    for (int p = 0; p < n - 1; ++p) CHECK(marked(*again, p, p + 1, n - 1));
    std::unique_ptr<KvSequence>* order[] = {&sequence, &forked, &again};
    for (int i = 0; i < 3; ++i) {
      order[(i + n) % 3]->reset();
      for (int p = 0; p < n; ++p) CHECK(forked == nullptr || marked(*forked, p, p + 1, n));
    }
    CHECK(pool.pages_in_use() == 0 && backend.n_live == 0);
  }
}

TEST("out of memory: what the sequence had stays usable and is given back") {
  MemoryBackend backend;
  // Pages of 2 MiB, two to a slab.
  const ModelConfig config = make_config({64, 0}, 8192);
  for (int n_allowed = 0; n_allowed < 8; ++n_allowed) {
    KvPool pool(backend, config, KvType::kF16);
    {
      KvSequence sequence(pool);
      backend.n_allowed = 2;  // a slab of each group
      sequence.reserve(0, 1);
      const std::byte* first = page_of(sequence, kGlobal, 0);
      backend.n_allowed = n_allowed;
      CHECK_THROWS(kOutOfMemory, "", sequence.reserve(1, 2000));
      CHECK(page_of(sequence, kGlobal, 0) == first);
      backend.n_allowed = 1 << 20;
      sequence.reserve(1, 100);
      for (int p = 0; p < 100; ++p)
        CHECK(page_of(sequence, kLocal, p) != nullptr && page_of(sequence, kGlobal, p) != nullptr);
    }
    CHECK(pool.pages_in_use() == 0 && pool.bytes_resident() == 0 && backend.n_live == 0);
  }
}

TEST_MAIN

// Prompts and pictures with AMX (Xeons since Sapphire Rapids): bulk_tiles.h, attention_tiles.h and
// full_attention_tiles.h on the processor's tiles.
#include <immintrin.h>

#include <atomic>

#include "backend/cpu/attention_tiles.h"
#include "backend/cpu/bulk_tiles.h"
#include "backend/cpu/full_attention_tiles.h"

namespace gemma::cpu {
namespace {

// The intrinsics take numbers of tiles as literals. 0 to 3: sums, 4 and 5: x, 6 and 7: weights.
struct AmxTiles {
  static void configure() {
    struct alignas(64) Config {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static_assert(sizeof(Config) == 64);
    static constexpr Config kConfig;
    _tile_loadconfig(&kConfig);
  }
  static void release() { _tile_release(); }
  // Memory was written that tiles are loaded from: GCC's intrinsics do not tell the compiler that they read it.
  static void written() { std::atomic_signal_fence(std::memory_order_seq_cst); }

  template <int i, int j>
  static void zero() {
    if constexpr (i == 0 && j == 0) _tile_zero(0);
    if constexpr (i == 0 && j == 1) _tile_zero(1);
    if constexpr (i == 1 && j == 0) _tile_zero(2);
    if constexpr (i == 1 && j == 1) _tile_zero(3);
  }
  template <int i, int j>
  static void load_sums(const float (*rows)[kLanes]) {
    if constexpr (i == 0 && j == 0) _tile_loadd(0, rows, 64);
    if constexpr (i == 0 && j == 1) _tile_loadd(1, rows, 64);
    if constexpr (i == 1 && j == 0) _tile_loadd(2, rows, 64);
    if constexpr (i == 1 && j == 1) _tile_loadd(3, rows, 64);
  }
  template <int i, int j>
  static void store_sums(float (*rows)[kLanes]) {
    if constexpr (i == 0 && j == 0) _tile_stored(0, rows, 64);
    if constexpr (i == 0 && j == 1) _tile_stored(1, rows, 64);
    if constexpr (i == 1 && j == 0) _tile_stored(2, rows, 64);
    if constexpr (i == 1 && j == 1) _tile_stored(3, rows, 64);
  }
  template <int i>
  static void load_rows(const uint16_t (*rows)[kTileColumns]) {
    if constexpr (i == 0) _tile_loadd(4, rows, 64);
    if constexpr (i == 1) _tile_loadd(5, rows, 64);
  }
  template <int j>
  static void load_pairs(const uint32_t (*pairs)[kLanes]) {
    if constexpr (j == 0) _tile_loadd(6, pairs, 64);
    if constexpr (j == 1) _tile_loadd(7, pairs, 64);
  }
  // Sums (i, j) += x i * weights j.
  template <int i, int j>
  static void multiply() {
    if constexpr (i == 0 && j == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (i == 0 && j == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (i == 1 && j == 0) _tile_dpbf16ps(2, 5, 6);
    if constexpr (i == 1 && j == 1) _tile_dpbf16ps(3, 5, 7);
  }
};

}  // namespace

const BulkGemm kBulkAmxBf16 = BulkTiles<AmxTiles>::kKernel;
const FullAttention kFastAttentionAmxBf16 = TileAttention<AmxTiles>::kKernel;

void bulk_attention_amx_bf16(const AttentionTile& tile, const Scratch& scratch) {
  TileSegment<AmxTiles>::attend(tile, scratch);
}

}  // namespace gemma::cpu

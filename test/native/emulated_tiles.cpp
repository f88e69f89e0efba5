#include "emulated_tiles.h"

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
#include <cstring>

#include "backend/cpu/attention_tiles.h"
#include "backend/cpu/bulk_tiles.h"
#include "backend/cpu/full_attention_tiles.h"

namespace gemma::cpu {
namespace {

struct EmulatedTiles {
  static inline thread_local float sums[2][2][16][16];
  static inline thread_local uint16_t x[2][16][kTileColumns];
  static inline thread_local uint32_t w[2][16][16];
  static inline thread_local bool configured;

  static void configure() { configured = true; }
  static void release() {
    configured = false;
    std::memset(sums, 0xff, sizeof sums);  // nothing may be left for the next call
    std::memset(x, 0xff, sizeof x);
    std::memset(w, 0xff, sizeof w);
  }
  static void written() {}
  template <int i, int j>
  static void zero() {
    std::memset(sums[i][j], 0, sizeof sums[i][j]);
  }
  template <int i, int j>
  static void load_sums(const float (*rows)[kLanes]) {
    std::memcpy(sums[i][j], rows, sizeof sums[i][j]);
  }
  template <int i, int j>
  static void store_sums(float (*rows)[kLanes]) {
    std::memcpy(rows, sums[i][j], sizeof sums[i][j]);
  }
  template <int i>
  static void load_rows(const uint16_t (*rows)[kTileColumns]) {
    std::memcpy(x[i], rows, sizeof x[i]);
  }
  template <int j>
  static void load_pairs(const uint32_t (*pairs)[kLanes]) {
    std::memcpy(w[j], pairs, sizeof w[j]);
  }
  static float value(uint32_t half) {
    const bool is_subnormal = (half & 0x7f80) == 0;  // or zero
    const uint32_t bits = is_subnormal ? 0 : half << 16;
    float v = 0;
    std::memcpy(&v, &bits, sizeof v);
    return v;
  }
  template <int i, int j>
  static void multiply() {
    if (!configured) std::memset(sums, 0xff, sizeof sums);
    for (int r = 0; r < 16; ++r) {
      for (int lane = 0; lane < 16; ++lane) {
        float even = 0;
        float odd = 0;
        for (int k = 0; k < 16; ++k) {
          even += value(x[i][r][2 * k]) * value(w[j][k][lane] & 0xffff);
          odd += value(x[i][r][2 * k + 1]) * value(w[j][k][lane] >> 16);
        }
        sums[i][j][r][lane] += even + odd;
      }
    }
  }
};

}  // namespace
}  // namespace gemma::cpu

namespace gemma::test {

namespace {
bool has_vectors() {
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
}
}  // namespace

const cpu::BulkGemm* emulated_bulk() {
  return has_vectors() ? &cpu::BulkTiles<cpu::EmulatedTiles>::kKernel : nullptr;
}

void (*emulated_bulk_attention())(const cpu::AttentionTile& tile, const cpu::Scratch& scratch) {
  return has_vectors() ? cpu::TileSegment<cpu::EmulatedTiles>::attend : nullptr;
}

const cpu::FullAttention* emulated_full_attention() {
  return has_vectors() ? &cpu::TileAttention<cpu::EmulatedTiles>::kKernel : nullptr;
}

}  // namespace gemma::test

#else

namespace gemma::test {

const cpu::BulkGemm* emulated_bulk() {
  return nullptr;
}

void (*emulated_bulk_attention())(const cpu::AttentionTile& tile, const cpu::Scratch& scratch) {
  return nullptr;
}

const cpu::FullAttention* emulated_full_attention() {
  return nullptr;
}

}  // namespace gemma::test

#endif

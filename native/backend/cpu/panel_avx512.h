// Panels of 16 weight rows for AVX-512, a row in each lane: how bytes of stored rows are loaded and fetched ahead, and
// what unpacked blocks are kept in. Internal to each file that includes it (they are compiled with different flags).
#pragma once

#include <immintrin.h>

#include <cstring>

#include "backend/cpu/inlining.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/small_math.h"

namespace gemma::cpu {
namespace {

constexpr int kLanes = 16;

// One block of 32 columns of 16 weight rows.
struct alignas(64) PanelBlock {
  uint8_t u[8][64];    // u[j][4 * lane + i]: column 4 * j + i
  float d[2][kLanes];  // scale of each half (equal when the type has one per block)
  float m[2][kLanes];  // minimum, for types that have one
};

// A value whose origin the compiler forgets, so that it keeps it in a register instead of deriving it again.
inline size_t opaque(size_t value) {
#if defined(__GNUC__)
  asm("" : "+r"(value));
#endif
  return value;
}

// 16 rows at equal distances. Two bases and four multiples of the distance reach all of them with the processor's own
// addressing (1, 2, 4 or 8 times an index), without an addition per row and without running out of registers.
class PanelRows {
 public:
  PanelRows(const uint8_t* p, size_t stride)
      : p_(p),
        p8_(p + 8 * stride),
        s1_(stride),
        s3_(opaque(3 * stride)),
        s5_(opaque(5 * stride)),
        s7_(opaque(7 * stride)) {}

  PanelRows at(int offset) const {
    PanelRows moved = *this;
    moved.p_ += offset;
    moved.p8_ += offset;
    return moved;
  }
  const uint8_t* row(int lane) const {
    const uint8_t* p = lane < 8 ? p_ : p8_;
    switch (lane % 8) {
      case 0: return p;
      case 3: return p + s3_;
      case 5: return p + s5_;
      case 6: return p + 2 * s3_;
      case 7: return p + s7_;
      default: return p + static_cast<size_t>(lane % 8) * s1_;  // 1, 2, 4
    }
  }

 private:
  const uint8_t* p_;
  const uint8_t* p8_;
  size_t s1_, s3_, s5_, s7_;
};

// 16 bytes at offset of each row, transposed: out[j] holds dword j of all 16 rows, in the order of rows.
inline void load_transposed(const PanelRows& rows, int offset, __m512i out[4]) {
  __m512i r[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto load = [&](int lane) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.row(i + 4 * lane) + offset));
    };
    // Loads into a part of the register need no shuffle.
    r[i] = _mm512_castsi128_si512(load(0));
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x00f0, load(1));
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0x0f00, load(2));
    r[i] = _mm512_mask_broadcast_i32x4(r[i], 0xf000, load(3));
  }
  const __m512i t0 = _mm512_unpacklo_epi32(r[0], r[1]);
  const __m512i t1 = _mm512_unpackhi_epi32(r[0], r[1]);
  const __m512i t2 = _mm512_unpacklo_epi32(r[2], r[3]);
  const __m512i t3 = _mm512_unpackhi_epi32(r[2], r[3]);
  out[0] = _mm512_unpacklo_epi64(t0, t2);
  out[1] = _mm512_unpackhi_epi64(t0, t2);
  out[2] = _mm512_unpacklo_epi64(t1, t3);
  out[3] = _mm512_unpackhi_epi64(t1, t3);
}

// The low 16 bits of each lane as half floats.
inline __m512 halves_to_floats(__m512i v) {
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v));
}
inline __m512 high_halves_to_floats(__m512i v) {
  return halves_to_floats(_mm512_srli_epi32(v, 16));
}

// Two or four bytes at offset of each row. Row i of a group of 8 is loaded from so many bytes before them that they
// land in place i: a blend with memory takes half the instructions of an insertion.
inline __m128i load_8_words(const PanelRows& rows, int first, int offset) {
  const auto load = [&](int i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.row(first + i) + offset - 2 * i));
  };
  __m128i v = load(0);
  v = _mm_blend_epi16(v, load(1), 0x02);
  v = _mm_blend_epi16(v, load(2), 0x04);
  v = _mm_blend_epi16(v, load(3), 0x08);
  v = _mm_blend_epi16(v, load(4), 0x10);
  v = _mm_blend_epi16(v, load(5), 0x20);
  v = _mm_blend_epi16(v, load(6), 0x40);
  return _mm_blend_epi16(v, load(7), 0x80);
}
inline __m256i load_8_dwords(const PanelRows& rows, int first, int offset) {
  const auto load = [&](int i) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows.row(first + i) + offset - 4 * i));
  };
  __m256i v = load(0);
  v = _mm256_blend_epi32(v, load(1), 0x02);
  v = _mm256_blend_epi32(v, load(2), 0x04);
  v = _mm256_blend_epi32(v, load(3), 0x08);
  v = _mm256_blend_epi32(v, load(4), 0x10);
  v = _mm256_blend_epi32(v, load(5), 0x20);
  v = _mm256_blend_epi32(v, load(6), 0x40);
  return _mm256_blend_epi32(v, load(7), 0x80);
}
inline __m256i load_words(const PanelRows& rows, int offset) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load_8_words(rows, 0, offset)), load_8_words(rows, 8, offset),
                                 1);
}
inline __m512i load_dwords(const PanelRows& rows, int offset) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load_8_dwords(rows, 0, offset)), load_8_dwords(rows, 8, offset), 1);
}
inline __m512 load_scales(const PanelRows& rows, int offset) {
  return _mm512_cvtph_ps(load_words(rows, offset));
}

inline __m512i mask_bytes(char value) {
  return _mm512_set1_epi8(value);
}

// Fetches the bytes that come after a panel's share, spread over the work on the panel: sixteen rows are more streams
// than the hardware follows, and a burst of prefetches fills the queues that the panel's own loads need.
class Prefetcher {
 public:
  // panel_bytes: of 16 whole rows, the time that passes before what is fetched is used.
  Prefetcher(const uint8_t* next, size_t panel_bytes) : next_(next), near_(panel_bytes <= kNear) {}
  void advance(size_t bytes) {
    GEMMA_NO_UNROLL
    for (end_ += bytes; done_ < end_; done_ += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(next_ + done_ + kFar), _MM_HINT_T1);
      if (near_) _mm_prefetch(reinterpret_cast<const char*>(next_ + done_), _MM_HINT_T0);
    }
  }

 private:
  static constexpr size_t kFar = 4096;    // first into L2, which has more requests under way than L1
  static constexpr size_t kNear = 24576;  // a larger panel would leave L1 again before its turn
  const uint8_t* next_;
  bool near_;
  size_t done_ = 0;
  size_t end_ = 0;
};

// The bytes of a panel of 16 rows, stride apart. A last panel with fewer rows is copied, so that no load leaves the
// matrix.
struct PanelBytes {
  const uint8_t* p;
  size_t stride;
};
inline PanelBytes panel_bytes(const WeightRows& w, int row, size_t offset, size_t bytes, uint8_t* tail) {
  const uint8_t* p = reinterpret_cast<const uint8_t*>(w.w) + static_cast<size_t>(row) * w.w_row_bytes + offset;
  const int rows = w.row_end - row;
  if (rows >= kLanes) return {p, w.w_row_bytes};
  for (int r = 0; r < kLanes; ++r)
    std::memcpy(tail + static_cast<size_t>(r) * bytes, p + static_cast<size_t>(least(r, rows - 1)) * w.w_row_bytes,
                bytes);
  return {tail, bytes};
}
inline PanelRows panel_rows(const WeightRows& w, int row, size_t offset, size_t bytes, uint8_t* tail) {
  const PanelBytes panel = panel_bytes(w, row, offset, bytes, tail);
  return {panel.p, panel.stride};
}

}  // namespace
}  // namespace gemma::cpu

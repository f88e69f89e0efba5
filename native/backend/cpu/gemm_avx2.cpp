// Matrix products with AVX2. As with AVX-512 (gemm_avx512_vnni.cpp), weight rows ride in the lanes, here 8: a group of
// blocks of 8 rows is unpacked once into a panel, four columns of a row beside each other, and then used by every row
// of x, whose four bytes are broadcast. There is no horizontal sum, so the order of arithmetic of kernels.h holds for
// any number of rows.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds pairs in 16 bits, saturating. |x| <= 127, so a pair of codes
// up to kMaxCode is at most kMaxCode * 254: for small codes several such sums fit into 16 bits before they must be
// widened. Types with 8-bit codes stay signed in the panel and are multiplied as |w| times x with the sign of w: at
// most 128 * 254 = 32512.
#include <immintrin.h>

#include <cstring>

#include "backend/cpu/kernels_avx2.h"

namespace gemma::cpu {
namespace {

constexpr int kLanes = 8;

inline int least(int a, int b) {
  return a < b ? a : b;
}

// One block of 32 columns of 8 weight rows.
struct alignas(32) PanelBlock {
  uint8_t u[8][32];    // u[j][4 * lane + i]: column 4 * j + i
  float d[2][kLanes];  // scale of each half (equal when the type has one per block)
  float m[2][kLanes];  // minimum, for types that have one
};

// Columns that are unpacked at a time: a multiple of every type's block.
constexpr int kFewColumns = 256;   // one panel of 3 KiB
constexpr int kManyColumns = 512;  // two panels of 6 KiB each, beside the x rows of a tile in L1
constexpr int kBlocksMany = kManyColumns / 32;

// What the product needs to know of a type.
template <int kMax, int kShift, bool kHasMin, bool kHasHalves>
struct Form {
  static constexpr int kMaxCode = kMax;        // 128: signed codes
  static constexpr int kOffsetShift = kShift;  // offset 2^kShift, none if negative
  static constexpr bool kMin = kHasMin;
  static constexpr bool kHalves = kHasHalves;
  static constexpr bool kSigned = kMaxCode == 128;
  static constexpr int kParts = kHalves ? 2 : 1;
  // Sums of pairs that fit into 16 bits: a power of two, at most the dwords of a part.
  static constexpr int kFit = 32767 / (kMaxCode * 254);
  static constexpr int kSums = kFit >= 8 && !kHalves ? 8 : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
};

// 16 bytes at p + lane * stride of each row, transposed: out[j] holds dword j of all 8 rows, in the order of rows.
inline void load_transposed(const uint8_t* p, size_t stride, __m256i out[4]) {
  const auto load = [&](size_t row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + row * stride)); };
  __m256i r[4];
  for (size_t i = 0; i < 4; ++i) r[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(load(i)), load(i + 4), 1);
  const __m256i t0 = _mm256_unpacklo_epi32(r[0], r[1]);
  const __m256i t1 = _mm256_unpackhi_epi32(r[0], r[1]);
  const __m256i t2 = _mm256_unpacklo_epi32(r[2], r[3]);
  const __m256i t3 = _mm256_unpackhi_epi32(r[2], r[3]);
  out[0] = _mm256_unpacklo_epi64(t0, t2);
  out[1] = _mm256_unpackhi_epi64(t0, t2);
  out[2] = _mm256_unpacklo_epi64(t1, t3);
  out[3] = _mm256_unpackhi_epi64(t1, t3);
}

inline void store(PanelBlock& block, int j, __m256i v) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(block.u[j]), v);
}

// The low 16 bits of each lane as half floats.
inline __m256 halves_to_floats(__m256i v) {
  const __m256i low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}

inline __m256 load_scales(const uint8_t* p, size_t stride) {
  const auto half = [&](size_t row) {
    short bits = 0;
    std::memcpy(&bits, p + row * stride, 2);
    return bits;
  };
  return _mm256_cvtph_ps(_mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7)));
}

inline __m256i mask_bytes(char value) {
  return _mm256_set1_epi8(value);
}

// Each type: how 8 rows' group of blocks becomes panel blocks. kGroup: blocks of 32 a call unpacks.
struct Q4_0 : Form<15, 3, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 18;
  static void unpack(const uint8_t* p, size_t stride, PanelBlock* out) {
    const __m256i low = mask_bytes(0x0f);
    __m256i q[4];
    load_transposed(p + 2, stride, q);
    for (int j = 0; j < 4; ++j) {
      store(*out, j, _mm256_and_si256(q[j], low));
      store(*out, j + 4, _mm256_and_si256(_mm256_srli_epi16(q[j], 4), low));
    }
    _mm256_store_ps(out->d[0], load_scales(p, stride));
  }
};

struct Q5_0 : Form<31, 4, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 22;
  static void unpack(const uint8_t* p, size_t stride, PanelBlock* out) {
    const __m256i low = mask_bytes(0x0f);
    const __m256i bit4 = mask_bytes(0x10);
    __m256i head[4];  // d, qh, first codes
    __m256i q[4];
    load_transposed(p, stride, head);
    load_transposed(p + 6, stride, q);
    const __m256i high = _mm256_or_si256(_mm256_srli_epi32(head[0], 16), _mm256_slli_epi32(head[1], 16));
    // Byte i of dword j: bit 4 * j + i of qh. Bring the byte that holds it to all four places, then test one bit each.
    const __m256i even = _mm256_set1_epi32(0x08040201);
    const __m256i odd = _mm256_set1_epi32(static_cast<int>(0x80402010u));
    const __m256i byte_of_dword =
        _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
    for (int j = 0; j < 8; ++j) {
      const __m256i codes = _mm256_and_si256(j < 4 ? q[j] : _mm256_srli_epi16(q[j - 4], 4), low);
      const __m256i pick = _mm256_add_epi8(byte_of_dword, mask_bytes(static_cast<char>(j / 2)));
      const __m256i bit = j % 2 == 0 ? even : odd;
      const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(high, pick), bit), bit);
      store(*out, j, _mm256_or_si256(codes, _mm256_and_si256(set, bit4)));
    }
    _mm256_store_ps(out->d[0], halves_to_floats(head[0]));
  }
};

struct Q8_0 : Form<128, -1, false, false> {
  static constexpr int kGroup = 1;
  static constexpr int kGroupBytes = 34;
  static void unpack(const uint8_t* p, size_t stride, PanelBlock* out) {
    for (int half = 0; half < 2; ++half) {
      __m256i q[4];
      load_transposed(p + 2 + 16 * half, stride, q);
      for (int j = 0; j < 4; ++j) store(*out, 4 * half + j, q[j]);
    }
    _mm256_store_ps(out->d[0], load_scales(p, stride));
  }
};

struct Q4_K : Form<15, -1, true, false> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 144;
  static void unpack(const uint8_t* p, size_t stride, PanelBlock* out) {
    __m256i head[4];  // d | dmin, then the 12 bytes of 6-bit scales and minima
    load_transposed(p, stride, head);
    unpack_scales(head, out);
    const __m256i low = mask_bytes(0x0f);
    for (int chunk = 0; chunk < 4; ++chunk) {
      for (int part = 0; part < 2; ++part) {
        __m256i q[4];
        load_transposed(p + 16 + 32 * chunk + 16 * part, stride, q);
        for (int j = 0; j < 4; ++j) {
          store(out[2 * chunk], 4 * part + j, _mm256_and_si256(q[j], low));
          store(out[2 * chunk + 1], 4 * part + j, _mm256_and_si256(_mm256_srli_epi16(q[j], 4), low));
        }
      }
    }
  }
  // Scales of the eight blocks, one byte each of two dwords per row; minima likewise.
  static void unpack_scales(const __m256i head[4], PanelBlock* out) {
    const __m256 d = halves_to_floats(head[0]);
    const __m256 dmin = _mm256_xor_ps(halves_to_floats(_mm256_srli_epi32(head[0], 16)), _mm256_set1_ps(-0.0f));
    const __m256i six = _mm256_set1_epi32(0x3f3f3f3f);
    const __m256i four = _mm256_set1_epi32(0x0f0f0f0f);
    const __m256i two = _mm256_set1_epi32(0x30303030);
    const __m256i scales[2] = {
        _mm256_and_si256(head[1], six),
        _mm256_or_si256(_mm256_and_si256(head[3], four), _mm256_and_si256(_mm256_srli_epi32(head[1], 2), two))};
    const __m256i minima[2] = {_mm256_and_si256(head[2], six),
                               _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(head[3], 4), four),
                                               _mm256_and_si256(_mm256_srli_epi32(head[2], 2), two))};
    const __m256i byte = _mm256_set1_epi32(0xff);
    for (int s = 0; s < 8; ++s) {
      const int shift = s % 4 * 8;
      const __m256i scale = _mm256_and_si256(_mm256_srli_epi32(scales[s / 4], shift), byte);
      const __m256i minimum = _mm256_and_si256(_mm256_srli_epi32(minima[s / 4], shift), byte);
      _mm256_store_ps(out[s].d[0], _mm256_mul_ps(d, _mm256_cvtepi32_ps(scale)));
      _mm256_store_ps(out[s].m[0], _mm256_mul_ps(dmin, _mm256_cvtepi32_ps(minimum)));
    }
  }
};

struct Q5_K : Form<31, -1, true, false> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 176;
  static void unpack(const uint8_t* p, size_t stride, PanelBlock* out) {
    __m256i head[4];  // as in Q4_K
    load_transposed(p, stride, head);
    Q4_K::unpack_scales(head, out);
    const __m256i low = mask_bytes(0x0f);
    const __m256i bit4 = mask_bytes(0x10);
    for (int part = 0; part < 2; ++part) {
      __m256i high[4];  // bit s: of block s
      load_transposed(p + 16 + 16 * part, stride, high);
      for (int chunk = 0; chunk < 4; ++chunk) {
        __m256i q[4];
        load_transposed(p + 48 + 32 * chunk + 16 * part, stride, q);
        for (int j = 0; j < 4; ++j) {
          const __m256i even =
              chunk < 2 ? _mm256_slli_epi16(high[j], 4 - 2 * chunk) : _mm256_srli_epi16(high[j], 2 * chunk - 4);
          const __m256i odd =
              chunk < 2 ? _mm256_slli_epi16(high[j], 3 - 2 * chunk) : _mm256_srli_epi16(high[j], 2 * chunk - 3);
          store(out[2 * chunk], 4 * part + j,
                _mm256_or_si256(_mm256_and_si256(q[j], low), _mm256_and_si256(even, bit4)));
          store(out[2 * chunk + 1], 4 * part + j,
                _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(q[j], 4), low), _mm256_and_si256(odd, bit4)));
        }
      }
    }
  }
};

struct Q6_K : Form<63, 5, false, true> {
  static constexpr int kGroup = 8;
  static constexpr int kGroupBytes = 210;
  static void unpack(const uint8_t* p, size_t stride, PanelBlock* out) {
    const __m256i low = mask_bytes(0x0f);
    const __m256i high = mask_bytes(0x30);
    const auto join = [&](__m256i codes, __m256i bits) {
      return _mm256_or_si256(_mm256_and_si256(codes, low), _mm256_and_si256(bits, high));
    };
    for (int n = 0; n < 2; ++n) {
      for (int part = 0; part < 2; ++part) {  // 16 of the 32 columns of each of the four blocks
        __m256i a[4];
        __m256i b[4];
        __m256i h[4];
        load_transposed(p + 64 * n + 16 * part, stride, a);
        load_transposed(p + 64 * n + 32 + 16 * part, stride, b);
        load_transposed(p + 128 + 32 * n + 16 * part, stride, h);
        PanelBlock* block = out + 4 * n;
        for (int j = 0; j < 4; ++j) {
          const int column = 4 * part + j;
          store(block[0], column, join(a[j], _mm256_slli_epi16(h[j], 4)));
          store(block[1], column, join(b[j], _mm256_slli_epi16(h[j], 2)));
          store(block[2], column, join(_mm256_srli_epi16(a[j], 4), h[j]));
          store(block[3], column, join(_mm256_srli_epi16(b[j], 4), _mm256_srli_epi16(h[j], 2)));
        }
      }
    }
    __m256i scales[4];
    load_transposed(p + 192, stride, scales);
    const __m256 d = load_scales(p + 208, stride);
    for (int s = 0; s < 16; ++s) {  // a signed byte per half block
      const __m256i scale = _mm256_srai_epi32(_mm256_slli_epi32(scales[s / 4], 24 - 8 * (s % 4)), 24);
      _mm256_store_ps(out[s / 2].d[s % 2], _mm256_mul_ps(d, _mm256_cvtepi32_ps(scale)));
    }
  }
};

// Integer offset times the sum of x, the start value of a dot product of unsigned codes.
template <class Type>
inline __m256i start(const QuantizedRows& x, size_t block, size_t half) {
  if constexpr (Type::kOffsetShift < 0) {
    return _mm256_setzero_si256();
  } else {
    const int32_t neg_sum = Type::kHalves ? x.neg_sum16[2 * block + half] : x.neg_sum[block];
    return _mm256_slli_epi32(_mm256_set1_epi32(neg_sum), Type::kOffsetShift);
  }
}

inline __m256i broadcast4(const int8_t* q) {
  int32_t four = 0;
  std::memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

// The first n lanes; all of them is the common case.
inline __m256 load_lanes(const float* p, int n) {
  if (n == kLanes) return _mm256_loadu_ps(p);
  alignas(32) float lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * sizeof(float));
  return _mm256_load_ps(lanes);
}
inline void store_lanes(float* p, int n, __m256 v) {
  if (n == kLanes) return _mm256_storeu_ps(p, v);
  alignas(32) float lanes[kLanes];
  _mm256_store_ps(lanes, v);
  std::memcpy(p, lanes, static_cast<size_t>(n) * sizeof(float));
}

// Some columns of kPanels panels: where they are, and how many of their lanes are rows of the weight.
struct Panels {
  const PanelBlock* blocks;  // panels are kBlocksMany apart
  int n_blocks;
  int first_block;  // of x's row
  int lanes[2];
};

// Panels times kRows rows of x, added to out (or replacing it at the first columns). out points at the first of these
// rows of x and row 0 of the panels.
template <class Type, int kPanels, int kRows>
void multiply(const Panels& panels, const QuantizedRows& x, int first_row, float* out, size_t out_stride) {
  const size_t blocks_per_row = static_cast<size_t>(x.n_cols / 32);
  const __m256i ones = _mm256_set1_epi16(1);
  size_t index[kRows];
  __m256 acc[kPanels][kRows];
  for (int r = 0; r < kRows; ++r) {
    index[r] = static_cast<size_t>(first_row + r) * blocks_per_row + static_cast<size_t>(panels.first_block);
    for (int p = 0; p < kPanels; ++p) {
      const float* o = out + static_cast<size_t>(r) * out_stride + p * kLanes;
      acc[p][r] = panels.first_block == 0 ? _mm256_setzero_ps() : load_lanes(o, panels.lanes[p]);
    }
  }
  for (int b = 0; b < panels.n_blocks; ++b) {
    const PanelBlock* block[kPanels];
    for (int p = 0; p < kPanels; ++p) block[p] = panels.blocks + p * kBlocksMany + b;
    constexpr int kPartDwords = 8 / Type::kParts;
    for (int h = 0; h < Type::kParts; ++h) {
      __m256i dot[kPanels][kRows];
      for (int r = 0; r < kRows; ++r) {
        const __m256i begin = start<Type>(x, index[r] + static_cast<size_t>(b), static_cast<size_t>(h));
        for (int p = 0; p < kPanels; ++p) dot[p][r] = begin;
      }
      for (int g = 0; g < kPartDwords; g += Type::kSums) {
        __m256i sum[kPanels][kRows];  // 16 bits
        for (auto& panel : sum) {
          for (__m256i& v : panel) v = _mm256_setzero_si256();
        }
        for (int i = 0; i < Type::kSums; ++i) {
          const int j = h * kPartDwords + g + i;
          __m256i w[kPanels];
          __m256i magnitude[kPanels];
          for (int p = 0; p < kPanels; ++p) {
            w[p] = _mm256_load_si256(reinterpret_cast<const __m256i*>(block[p]->u[j]));
            magnitude[p] = Type::kSigned ? _mm256_abs_epi8(w[p]) : w[p];
          }
          for (int r = 0; r < kRows; ++r) {
            const __m256i four = broadcast4(x.q + (index[r] + static_cast<size_t>(b)) * 32 + 4 * j);
            for (int p = 0; p < kPanels; ++p) {
              const __m256i pairs =
                  _mm256_maddubs_epi16(magnitude[p], Type::kSigned ? _mm256_sign_epi8(four, w[p]) : four);
              sum[p][r] = _mm256_add_epi16(sum[p][r], pairs);
            }
          }
        }
        for (int p = 0; p < kPanels; ++p) {
          for (int r = 0; r < kRows; ++r) dot[p][r] = _mm256_add_epi32(dot[p][r], _mm256_madd_epi16(sum[p][r], ones));
        }
      }
      for (int r = 0; r < kRows; ++r) {
        const size_t i = index[r] + static_cast<size_t>(b);
        for (int p = 0; p < kPanels; ++p) {
          const __m256 scale = _mm256_mul_ps(_mm256_load_ps(block[p]->d[h]), _mm256_set1_ps(x.d[i]));
          acc[p][r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[p][r]), scale, acc[p][r]);
          if constexpr (Type::kMin) {
            const __m256 sum = _mm256_set1_ps(Type::kHalves ? x.dsum16[2 * i + static_cast<size_t>(h)] : x.dsum[i]);
            acc[p][r] = _mm256_fmadd_ps(_mm256_load_ps(block[p]->m[h]), sum, acc[p][r]);
          }
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p)
      store_lanes(out + static_cast<size_t>(r) * out_stride + p * kLanes, panels.lanes[p], acc[p][r]);
  }
}

// The last n_rows < kRows + 1 rows of x.
template <class Type, int kPanels, int kRows>
void multiply_tail(int n_rows, const Panels& panels, const QuantizedRows& x, int first_row, float* out,
                   size_t out_stride) {
  if constexpr (kRows > 0) {
    if (n_rows == kRows) {
      multiply<Type, kPanels, kRows>(panels, x, first_row, out, out_stride);
    } else {
      multiply_tail<Type, kPanels, kRows - 1>(n_rows, panels, x, first_row, out, out_stride);
    }
  }
}

template <class Type, int kPanels>
void multiply_all(const Panels& panels, const QuantizedRows& x, float* out, size_t out_stride) {
  constexpr int kRows = kPanels == 1 ? 6 : 3;  // accumulators and dot products of a tile fit into 16 registers
  int r = 0;
  for (; r + kRows <= x.n_rows; r += kRows) {
    multiply<Type, kPanels, kRows>(panels, x, r, out + static_cast<size_t>(r) * out_stride, out_stride);
  }
  multiply_tail<Type, kPanels, kRows - 1>(x.n_rows - r, panels, x, r, out + static_cast<size_t>(r) * out_stride,
                                          out_stride);
}

// Panels of 8 rows over the wanted range. unpack(row, first_block, n_blocks, panel) fills a panel.
template <class Type, class Unpack>
void run_panels(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride, const Scratch& scratch,
                const Unpack& unpack) {
  const int n_blocks = x.n_cols / 32;
  PanelBlock* blocks = reinterpret_cast<PanelBlock*>(scratch.data);
  const bool many = x.n_rows > 8;
  const int step = (many ? kManyColumns : kFewColumns) / 32;
  const int rows_step = many ? 2 * kLanes : kLanes;
  for (int row = w.row_begin; row < w.row_end; row += rows_step) {
    Panels panels;
    panels.blocks = blocks;
    const int rows = least(rows_step, w.row_end - row);
    panels.lanes[0] = least(kLanes, rows);
    panels.lanes[1] = rows - panels.lanes[0];
    for (int b = 0; b < n_blocks; b += step) {
      panels.first_block = b;
      panels.n_blocks = least(step, n_blocks - b);
      unpack(row, b, panels.n_blocks, blocks);
      if (panels.lanes[1] > 0) {
        unpack(row + kLanes, b, panels.n_blocks, blocks + kBlocksMany);
        multiply_all<Type, 2>(panels, x, out + row, out_stride);
      } else {
        multiply_all<Type, 1>(panels, x, out + row, out_stride);
      }
    }
  }
}

template <class Type>
void gemm_type(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride, const Scratch& scratch) {
  const uint8_t* base = reinterpret_cast<const uint8_t*>(w.w);
  // A last panel with fewer than 8 rows is unpacked from a copy, so that no load leaves the matrix.
  uint8_t* tail = reinterpret_cast<uint8_t*>(scratch.data) + 2 * kBlocksMany * sizeof(PanelBlock);
  run_panels<Type>(w, x, out, out_stride, scratch, [&](int row, int b, int n, PanelBlock* panel) {
    const size_t offset = static_cast<size_t>(b / Type::kGroup) * Type::kGroupBytes;
    const uint8_t* p = base + static_cast<size_t>(row) * w.w_row_bytes + offset;
    size_t stride = w.w_row_bytes;
    const int rows = least(kLanes, w.row_end - row);
    const size_t bytes = static_cast<size_t>(n / Type::kGroup) * Type::kGroupBytes;
    if (rows < kLanes) {
      stride = bytes;
      for (int r = 0; r < kLanes; ++r) {
        std::memcpy(tail + static_cast<size_t>(r) * stride, p + static_cast<size_t>(least(r, rows - 1)) * w.w_row_bytes,
                    bytes);
      }
      p = tail;
    } else {
      // The next panel's bytes, a line ahead for each line used; prefetches past the matrix are harmless.
      const uint8_t* next = base + static_cast<size_t>(row + kLanes) * w.w_row_bytes + offset * kLanes;
      for (size_t line = 0; line < bytes * kLanes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(next + line), _MM_HINT_T0);
    }
    for (int g = 0; g < n; g += Type::kGroup) {
      Type::unpack(p + static_cast<size_t>(g / Type::kGroup) * Type::kGroupBytes, stride, panel + g);
    }
  });
}

// Types without an unpacker here: the scalar one fills the panels, the product is the same.
template <class Type>
void gemm_common(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride, const Scratch& scratch) {
  run_panels<Type>(w, x, out, out_stride, scratch, [&](int row, int b, int n, PanelBlock* panel) {
    const std::byte* rows[kLanes];
    for (int r = 0; r < kLanes; ++r) rows[r] = w.w + static_cast<size_t>(least(row + r, w.row_end - 1)) * w.w_row_bytes;
    for (int i = 0; i < n; ++i) {
      unpack_panel_common(w.type, rows, kLanes, b + i, panel[i].u[0], panel[i].d[0], panel[i].m[0]);
      if constexpr (Type::kSigned) {
        for (auto& u : panel[i].u) {
          __m256i* v = reinterpret_cast<__m256i*>(u);
          _mm256_store_si256(v, _mm256_xor_si256(_mm256_load_si256(v), mask_bytes(static_cast<char>(0x80))));
        }
      }
    }
  });
}

struct F32 {
  static constexpr size_t kBytes = 4;
  static __m256 load(const std::byte* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
};
struct F16 {
  static constexpr size_t kBytes = 2;
  static __m256 load(const std::byte* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
};
struct BF16 {
  static constexpr size_t kBytes = 2;
  static __m256 load(const std::byte* p) {
    const __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
  }
};

// The sum of 16 lanes as the tree of kernels.h.
inline float tree_sum(__m256 low, __m256 high) {
  const __m256 eight = _mm256_add_ps(low, high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// kW weight rows times kX rows of x; acc[..][h] are partial sums 8 * h .. 8 * h + 7.
template <class Type, int kW, int kX>
void multiply_float(const std::byte* w, size_t w_row_bytes, const float* x, int n_cols, float* out, size_t out_stride) {
  __m256 acc[kW][kX][2];
  for (int i = 0; i < kW; ++i) {
    for (int r = 0; r < kX; ++r) acc[i][r][0] = acc[i][r][1] = _mm256_setzero_ps();
  }
  const size_t cols = static_cast<size_t>(n_cols);
  size_t j = 0;
  for (; j + 16 <= cols; j += 16) {
    for (int h = 0; h < 2; ++h) {
      const size_t column = j + static_cast<size_t>(8 * h);
      __m256 wv[kW];
      for (int i = 0; i < kW; ++i) {
        const std::byte* p = w + static_cast<size_t>(i) * w_row_bytes + column * Type::kBytes;
        if constexpr (kX == 1) _mm_prefetch(reinterpret_cast<const char*>(p + kW * w_row_bytes), _MM_HINT_T0);
        wv[i] = Type::load(p);
      }
      for (int r = 0; r < kX; ++r) {
        const __m256 xv = _mm256_loadu_ps(x + static_cast<size_t>(r) * cols + column);
        for (int i = 0; i < kW; ++i) acc[i][r][h] = _mm256_fmadd_ps(wv[i], xv, acc[i][r][h]);
      }
    }
  }
  for (int h = 0; j < cols; ++h, j += 8) {
    const size_t left = cols - j < 8 ? cols - j : 8;
    const __m256i lanes =
        _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(left)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    for (int i = 0; i < kW; ++i) {
      alignas(32) std::byte values[8 * Type::kBytes] = {};
      std::memcpy(values, w + static_cast<size_t>(i) * w_row_bytes + j * Type::kBytes, left * Type::kBytes);
      const __m256 wv = Type::load(values);
      for (int r = 0; r < kX; ++r) {
        const __m256 xv = _mm256_maskload_ps(x + static_cast<size_t>(r) * cols + j, lanes);
        // Lanes past the end keep their bits: adding 0 would turn -0 into 0.
        acc[i][r][h] =
            _mm256_blendv_ps(acc[i][r][h], _mm256_fmadd_ps(wv, xv, acc[i][r][h]), _mm256_castsi256_ps(lanes));
      }
    }
  }
  for (int i = 0; i < kW; ++i) {
    for (int r = 0; r < kX; ++r)
      out[static_cast<size_t>(r) * out_stride + static_cast<size_t>(i)] = tree_sum(acc[i][r][0], acc[i][r][1]);
  }
}

template <class Type, int kW, int kX>
void multiply_float_rows(const std::byte* w, size_t w_row_bytes, const float* x, int n_x, int n_cols, float* out,
                         size_t out_stride) {
  int r = 0;
  for (; r + kX <= n_x; r += kX) {
    multiply_float<Type, kW, kX>(w, w_row_bytes, x + static_cast<size_t>(r) * static_cast<size_t>(n_cols), n_cols,
                                 out + static_cast<size_t>(r) * out_stride, out_stride);
  }
  for (; r < n_x; ++r) {
    multiply_float<Type, kW, 1>(w, w_row_bytes, x + static_cast<size_t>(r) * static_cast<size_t>(n_cols), n_cols,
                                out + static_cast<size_t>(r) * out_stride, out_stride);
  }
}

template <class Type>
void gemm_float_type(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride) {
  int n = w.row_begin;
  const auto row = [&] { return w.w + static_cast<size_t>(n) * w.w_row_bytes; };
  if (n_x == 1) {
    for (; n + 4 <= w.row_end; n += 4) multiply_float<Type, 4, 1>(row(), w.w_row_bytes, x, n_cols, out + n, out_stride);
  } else {
    for (; n + 2 <= w.row_end; n += 2)
      multiply_float_rows<Type, 2, 3>(row(), w.w_row_bytes, x, n_x, n_cols, out + n, out_stride);
  }
  for (; n < w.row_end; ++n) multiply_float_rows<Type, 1, 3>(row(), w.w_row_bytes, x, n_x, n_cols, out + n, out_stride);
}

}  // namespace

void gemm_quantized_avx2(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                         const Scratch& scratch) {
  switch (w.type) {
    case TensorType::kQ4_0: return gemm_type<Q4_0>(w, x, out, out_stride, scratch);
    case TensorType::kQ5_0: return gemm_type<Q5_0>(w, x, out, out_stride, scratch);
    case TensorType::kQ8_0: return gemm_type<Q8_0>(w, x, out, out_stride, scratch);
    case TensorType::kQ4_K: return gemm_type<Q4_K>(w, x, out, out_stride, scratch);
    case TensorType::kQ5_K: return gemm_type<Q5_K>(w, x, out, out_stride, scratch);
    case TensorType::kQ6_K: return gemm_type<Q6_K>(w, x, out, out_stride, scratch);
    case TensorType::kQ4_1:
    case TensorType::kQ5_1: return gemm_common<Form<31, -1, true, false>>(w, x, out, out_stride, scratch);
    case TensorType::kQ2_K: return gemm_common<Form<3, -1, true, true>>(w, x, out, out_stride, scratch);
    case TensorType::kQ3_K: return gemm_common<Form<7, 2, false, true>>(w, x, out, out_stride, scratch);
    case TensorType::kIQ4_NL:
    case TensorType::kIQ4_XS: return gemm_common<Form<128, -1, false, false>>(w, x, out, out_stride, scratch);
    case TensorType::kMXFP4: return gemm_common<Form<28, 4, false, false>>(w, x, out, out_stride, scratch);
    case TensorType::kTQ2_0: return gemm_common<Form<3, 0, false, false>>(w, x, out, out_stride, scratch);
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16: return;  // gemm_float's
  }
}

void gemm_float_avx2(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                     const Scratch& /*scratch*/) {
  switch (w.type) {
    case TensorType::kF32: return gemm_float_type<F32>(w, x, n_x, n_cols, out, out_stride);
    case TensorType::kF16: return gemm_float_type<F16>(w, x, n_x, n_cols, out, out_stride);
    default: return gemm_float_type<BF16>(w, x, n_x, n_cols, out, out_stride);
  }
}

}  // namespace gemma::cpu

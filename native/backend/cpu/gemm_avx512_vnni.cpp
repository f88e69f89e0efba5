// Matrix products with AVX-512 VNNI. 16 weight rows ride in the 16 lanes of a register: a group of blocks of these rows
// is unpacked once into a panel of unsigned bytes, four columns of a row beside each other, with float scales, and then
// used by every row of x (vpdpbusd: unsigned weights times signed activations, whose four bytes are broadcast). Because
// a lane is a weight row there is no horizontal sum, and the order of arithmetic of kernels.h holds for one row of x as
// for a thousand: decode and prefill run the same code, the panel living in L1 in the first case and in L2 in the
// second.
#include <immintrin.h>

#include "backend/cpu/float_products.h"
#include "backend/cpu/inlining.h"
#include "backend/cpu/kernels_avx512.h"
#include "backend/cpu/low_rank.h"
#include "backend/cpu/products_avx512.h"
#include "backend/cpu/small_math.h"
#include "backend/cpu/unpack_avx512.h"

namespace gemma::cpu {
namespace {

// Columns that are unpacked at a time: a multiple of every type's block.
constexpr int kFewColumns = 256;    // one or two panels of 6 KiB, stay in L1
constexpr int kManyColumns = 1024;  // at most: eight panels of 24 KiB each, in L2
constexpr int kBlocksMany = kManyColumns / 32;
constexpr int kPanelsMany = 8;
// Of x. Up to here two panels are multiplied while they are in L1, so that weights come from memory while others are
// multiplied (16 rows of the 1B on Zen 5: 0.95 of the time). Of 32 rows x is what costs: 1.25 of the time.
constexpr int kSomeRows = 16;
constexpr int kRowsAlone = 8;  // of a tile with one panel

// The product is started at offset * -sum(x): what unsigned codes add too much.
template <int kShift>
inline __m512i start(int32_t neg_sum) {
  if constexpr (kShift < 0) {
    return _mm512_setzero_si512();
  } else {
    return _mm512_slli_epi32(_mm512_set1_epi32(neg_sum), kShift);
  }
}

// Straight into the product with a single row of x. Dot products stay in registers.
template <class Type>
struct ToProduct {
  static constexpr int kParts = Type::kHalves ? 2 : 1;
  const int8_t* q;
  __m512i dot[Type::kGroup][kParts];
  __m512 d[Type::kGroup][kParts];
  __m512 m[Type::kMin ? Type::kGroup : 1][kParts];

  Prefetcher& prefetcher;

  // x from its block i on.
  ToProduct(const QuantizedRows& x, size_t i, Prefetcher& p) : q(x.q + i * 32), prefetcher(p) {
#pragma GCC unroll 8
    for (size_t b = 0; b < Type::kGroup; ++b) {
#pragma GCC unroll 2
      for (size_t h = 0; h < kParts; ++h)
        dot[b][h] = start<Type::kOffsetShift>(kParts == 2 ? x.neg_sum16[2 * (i + b) + h] : x.neg_sum[i + b]);
    }
  }
  void codes(int b, int j, __m512i v) {
    __m512i& sum = dot[b][kParts == 2 ? j / 4 : 0];
    add_products(sum, v, q + 32 * b + 4 * j);
    if (j % 4 == 0) prefetcher.advance(Type::kGroupBytes * kLanes / (2 * Type::kGroup));
  }
  void scale(int b, int half, __m512 v) { d[b][half] = v; }
  void minimum(int b, int half, __m512 v) { m[b][half] = v; }

  __m512 add_to(__m512 acc, const QuantizedRows& x, size_t i) const {
#pragma GCC unroll 8
    for (size_t b = 0; b < Type::kGroup; ++b) {
      const __m512 step = _mm512_set1_ps(x.d[i + b]);
#pragma GCC unroll 2
      for (size_t h = 0; h < kParts; ++h) {
        acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[b][h]), _mm512_mul_ps(d[b][h], step), acc);
        if constexpr (Type::kMin) {
          const float sum = kParts == 2 ? x.dsum16[2 * (i + b) + h] : x.dsum[i + b];
          acc = _mm512_fmadd_ps(m[b][h], _mm512_set1_ps(sum), acc);
        }
      }
    }
    return acc;
  }
};

// kPanels panels of 16 weight rows times kRows rows of x over n_blocks blocks, added to out (or replacing it at the
// first columns). out points at the first row of x and weight row 0 of the panels.
template <int kShift, bool kMin, bool kHalves, int kPanels, int kRows>
void multiply(const PanelBlock* panels, size_t panel_stride, int n_blocks, const QuantizedRows& x, int first_row,
              int first_block, float* out, size_t out_stride, bool first, const __mmask16* lanes) {
  const size_t blocks_per_row = static_cast<size_t>(x.n_cols / 32);
  size_t index[kRows];
  __m512 acc[kPanels][kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    index[r] = static_cast<size_t>(first_row + r) * blocks_per_row + static_cast<size_t>(first_block);
    for (int p = 0; p < kPanels; ++p) {
      float* o = out + static_cast<size_t>(r) * out_stride + p * kLanes;
      acc[p][r] = first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(lanes[p], o);
    }
  }
  for (int b = 0; b < n_blocks; ++b) {
    __m512i dot[kPanels][kRows];
    const PanelBlock* block[kPanels];
    for (int p = 0; p < kPanels; ++p) block[p] = panels + static_cast<size_t>(p) * panel_stride + b;
    const int8_t* q[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) q[r] = x.q + (index[r] + static_cast<size_t>(b)) * 32;
    constexpr int kParts = kHalves ? 2 : 1;
#pragma GCC unroll 2
    for (int h = 0; h < kParts; ++h) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const size_t i = index[r] + static_cast<size_t>(b);
        const __m512i s = start<kShift>(kHalves ? x.neg_sum16[2 * i + static_cast<size_t>(h)] : x.neg_sum[i]);
        for (int p = 0; p < kPanels; ++p) dot[p][r] = s;
      }
#pragma GCC unroll 8
      for (int j = h * (8 / kParts); j < (h + 1) * (8 / kParts); ++j) {
        __m512i w[kPanels];
        for (int p = 0; p < kPanels; ++p) w[p] = load_codes(block[p]->u[j]);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          if constexpr (kPanels == 1) {
            add_products(dot[0][r], w[0], q[r] + 4 * j);
          } else {
            const __m512i four = broadcast4(q[r] + 4 * j);
            for (int p = 0; p < kPanels; ++p) add_products(dot[p][r], w[p], four);
          }
        }
      }
      for (int p = 0; p < kPanels; ++p) {
        const __m512 d = _mm512_load_ps(block[p]->d[h]);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const size_t i = index[r] + static_cast<size_t>(b);
          const __m512 scale = _mm512_mul_ps(d, _mm512_set1_ps(x.d[i]));
          acc[p][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[p][r]), scale, acc[p][r]);
        }
        if constexpr (kMin) {
          const __m512 m = _mm512_load_ps(block[p]->m[h]);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) {
            const size_t i = index[r] + static_cast<size_t>(b);
            const float sum = kHalves ? x.dsum16[2 * i + static_cast<size_t>(h)] : x.dsum[i];
            acc[p][r] = _mm512_fmadd_ps(m, _mm512_set1_ps(sum), acc[p][r]);
          }
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) {
      _mm512_mask_storeu_ps(out + static_cast<size_t>(r) * out_stride + p * kLanes, lanes[p], acc[p][r]);
    }
  }
}

constexpr __mmask16 kAllLanes = 0xffff;

// Fetches a share of the columns of the rows of x that come next: of n_parts shares, part and the one after it.
inline void prefetch_rows(const QuantizedRows& x, int first_row, int n_rows, int first_block, int n_blocks, int part,
                          int n_parts) {
  const int begin = n_blocks * part / n_parts / 2 * 2;  // two blocks are a cache line
  const int end = n_blocks * least(part + 2, n_parts) / n_parts;
  for (int r = first_row; r < least(first_row + n_rows, x.n_rows); ++r) {
    const int8_t* q = x.q + static_cast<size_t>(r) * static_cast<size_t>(x.n_cols) + first_block * 32;
    for (int b = begin; b < end; b += 2) _mm_prefetch(reinterpret_cast<const char*>(q + 32 * b), _MM_HINT_T1);
  }
}

// The same for n_rows <= kRows rows.
template <int kShift, bool kMin, bool kHalves, int kPanels, int kRows>
void multiply_tail(int n_rows, const PanelBlock* panels, size_t panel_stride, int n_blocks, const QuantizedRows& x,
                   int first_row, int first_block, float* out, size_t out_stride, bool first, const __mmask16* lanes) {
  if constexpr (kRows > 0) {
    if (n_rows == kRows) {
      multiply<kShift, kMin, kHalves, kPanels, kRows>(panels, panel_stride, n_blocks, x, first_row, first_block, out,
                                                      out_stride, first, lanes);
    } else {
      multiply_tail<kShift, kMin, kHalves, kPanels, kRows - 1>(n_rows, panels, panel_stride, n_blocks, x, first_row,
                                                               first_block, out, out_stride, first, lanes);
    }
  }
}

// The rows of x in tiles, each with all panels before the next one, so that a tile is read from far away once. n_panels
// panels, kBlocksMany apart; lanes of the last one only.
template <int kShift, bool kMin, bool kHalves>
void multiply_all(const PanelBlock* panels, int n_panels, int n_blocks, const QuantizedRows& x, int first_block,
                  float* out, size_t out_stride, bool first, __mmask16 last_lanes) {
  // Accumulators and dot products of a tile fit into 32 registers.
  constexpr int kRows = 6;
  const int tile = n_panels == 1 ? kRowsAlone : kRows;
  for (int r = 0; r < x.n_rows; r += tile) {
    const int n = least(tile, x.n_rows - r);
    float* o = out + static_cast<size_t>(r) * out_stride;
    for (int p = 0; p < n_panels; p += 2) {
      prefetch_rows(x, r + tile, tile, first_block, n_blocks, p, n_panels);
      const PanelBlock* panel = panels + static_cast<size_t>(p) * kBlocksMany;
      const __mmask16 lanes[2] = {p + 1 < n_panels ? kAllLanes : last_lanes, p + 2 < n_panels ? kAllLanes : last_lanes};
      if (p + 1 < n_panels) {
        multiply_tail<kShift, kMin, kHalves, 2, kRows>(n, panel, kBlocksMany, n_blocks, x, r, first_block,
                                                       o + p * kLanes, out_stride, first, lanes);
      } else {
        multiply_tail<kShift, kMin, kHalves, 1, kRowsAlone>(n, panel, kBlocksMany, n_blocks, x, r, first_block,
                                                            o + p * kLanes, out_stride, first, lanes);
      }
    }
  }
}

// Panels of 16 rows over the wanted range. unpack(row, first_block, n_blocks, panel, ahead) fills a panel, and fetches what
// comes so many rows later.
template <int kShift, bool kMin, bool kHalves, class Unpack>
void run_panels(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride, const Scratch& scratch,
                const Unpack& unpack) {
  const int n_blocks = x.n_cols / 32;
  PanelBlock* panels = reinterpret_cast<PanelBlock*>(scratch.data);
  const bool many = x.n_rows > kSomeRows;
  // Many: steps of about equal length, in whole groups of 8 blocks.
  const int n_steps = (n_blocks + kBlocksMany - 1) / kBlocksMany;
  const int step = many ? ((n_blocks + n_steps - 1) / n_steps + 7) / 8 * 8 : kFewColumns / 32;
  const int rows_step = (many ? kPanelsMany : x.n_rows > kRowsAlone ? 2 : 1) * kLanes;
  const int ahead = many ? kLanes : rows_step;
  for (int row = w.row_begin; row < w.row_end; row += rows_step) {
    const int n_rows = least(rows_step, w.row_end - row);
    const int n_panels = (n_rows + kLanes - 1) / kLanes;
    const __mmask16 last_lanes = static_cast<__mmask16>((1u << (n_rows - (n_panels - 1) * kLanes)) - 1u);
    for (int b = 0; b < n_blocks; b += step) {
      const int n = least(step, n_blocks - b);
      for (int p = 0; p < n_panels; ++p) unpack(row + p * kLanes, b, n, panels + p * kBlocksMany, ahead);
      multiply_all<kShift, kMin, kHalves>(panels, n_panels, n, x, b, out + row, out_stride, b == 0, last_lanes);
    }
  }
}

// One row of x: products straight from the unpacked registers.
template <class Type>
GEMMA_FLATTEN void gemv_type(const WeightRows& w, const QuantizedRows& x, float* out, const Scratch& scratch) {
  const int n_groups = x.n_cols / 32 / Type::kGroup;
  uint8_t* tail = reinterpret_cast<uint8_t*>(scratch.data);
  const int groups_per_step = kManyColumns / 32 / Type::kGroup;  // what the copy of a last panel has room for
  for (int row = w.row_begin; row < w.row_end; row += kLanes) {
    Prefetcher prefetcher(reinterpret_cast<const uint8_t*>(w.w) + static_cast<size_t>(row + kLanes) * w.w_row_bytes,
                          kLanes * w.w_row_bytes);
    __m512 acc = _mm512_setzero_ps();
    for (int first = 0; first < n_groups; first += groups_per_step) {
      const int n = least(groups_per_step, n_groups - first);
      PanelRows from = panel_rows(w, row, static_cast<size_t>(first) * Type::kGroupBytes,
                                  static_cast<size_t>(n) * Type::kGroupBytes, tail);
      for (int g = 0; g < n; ++g) {
        const size_t i = static_cast<size_t>((first + g) * Type::kGroup);
        ToProduct<Type> product(x, i, prefetcher);
        Type::unpack(from, product);
        from = from.at(Type::kGroupBytes);
        acc = product.add_to(acc, x, i);
      }
    }
    const int left = least(kLanes, w.row_end - row);
    _mm512_mask_storeu_ps(out + row, static_cast<__mmask16>((1u << left) - 1u), acc);
  }
}

template <class Type>
void gemm_type(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride, const Scratch& scratch) {
  if (x.n_rows == 1) return gemv_type<Type>(w, x, out, scratch);
  uint8_t* tail = reinterpret_cast<uint8_t*>(scratch.data) + kPanelsMany * kBlocksMany * sizeof(PanelBlock);
  run_panels<Type::kOffsetShift, Type::kMin, Type::kHalves>(
      w, x, out, out_stride, scratch, [&](int row, int b, int n, PanelBlock* panel, int ahead) {
        unpack_panel<Type, ToPanel>(w, row, b, n, panel, tail, ahead);
      });
}

// A panel's values as columns of floats, for each of the 16 rows a lane.
template <class Type>
GEMMA_FLATTEN void columns_of(const WeightRows& w, int n_cols, float* columns, const Scratch& scratch) {
  const int n_groups = n_cols / 32 / Type::kGroup;
  const size_t bytes = static_cast<size_t>(Type::kGroupBytes);
  const __m512i byte = _mm512_set1_epi32(0xff);
  const __m512i offset = _mm512_set1_epi32(Type::kOffsetShift < 0 ? 0 : 1 << (Type::kOffsetShift & 31));
  uint8_t* tail = reinterpret_cast<uint8_t*>(scratch.data);
  alignas(64) PanelBlock blocks[Type::kGroup];
  for (int g = 0; g < n_groups; ++g) {
    ToPanel sink{blocks};
    Type::unpack(panel_rows(w, w.row_begin, static_cast<size_t>(g) * bytes, bytes, tail), sink);
    for (const PanelBlock& block : blocks) {
      for (size_t j = 0; j < 8; ++j) {
        const __m512i codes = _mm512_load_si512(block.u[j]);
        const size_t half = Type::kHalves ? j / 4 : 0;
        const __m512 d = _mm512_load_ps(block.d[half]);
        for (unsigned i = 0; i < 4; ++i, columns += kLanes) {
          const __m512i code = _mm512_and_si512(_mm512_srli_epi32(codes, 8 * i), byte);
          __m512 value = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_sub_epi32(code, offset)));
          if constexpr (Type::kMin) value = _mm512_add_ps(value, _mm512_load_ps(block.m[half]));
          _mm512_storeu_ps(columns, value);
        }
      }
    }
  }
}

// The sum of the 16 lanes as the tree of kernels.h.
inline float tree_sum(__m512 v) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

struct F32 {
  static constexpr size_t kBytes = 4;
  static __m512 load(const std::byte* p) { return _mm512_loadu_ps(p); }
  static __m128 load4(const std::byte* p) { return _mm_loadu_ps(reinterpret_cast<const float*>(p)); }
  static __m512 load(const std::byte* p, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, p); }
};
struct F16 {
  static constexpr size_t kBytes = 2;
  static __m128 load4(const std::byte* p) { return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
  static __m512 load(const std::byte* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512 load(const std::byte* p, __mmask16 lanes) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, p));
  }
};
struct BF16 {
  static constexpr size_t kBytes = 2;
  static __m128 load4(const std::byte* p) {
    const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), v));
  }
  static __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
  static __m512 load(const std::byte* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static __m512 load(const std::byte* p, __mmask16 lanes) { return widen(_mm256_maskz_loadu_epi16(lanes, p)); }
};

template <class Type>
GEMMA_FLATTEN void columns_of_floats(const WeightRows& w, int n_cols, float* columns) {
  const PanelRows rows(reinterpret_cast<const uint8_t*>(w.w) + static_cast<size_t>(w.row_begin) * w.w_row_bytes,
                       w.w_row_bytes);
  for (int c = 0; c < n_cols; c += 4) {  // four columns of 16 rows
    alignas(64) float four[kLanes][4];
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::byte* p = reinterpret_cast<const std::byte*>(rows.row(lane)) + static_cast<size_t>(c) * Type::kBytes;
      _mm_store_ps(four[lane], Type::load4(p));
    }
    __m512i transposed[4];
    load_transposed(PanelRows(reinterpret_cast<const uint8_t*>(four), 16), 0, transposed);
    for (int i = 0; i < 4; ++i, columns += kLanes) _mm512_storeu_ps(columns, _mm512_castsi512_ps(transposed[i]));
  }
}

struct FloatKernel {
  using F32 = cpu::F32;
  using F16 = cpu::F16;
  using BF16 = cpu::BF16;
  static constexpr int kSingle = 8;
  static constexpr int kW = 4;
  static constexpr int kX = 6;

  // kW weight rows times kX rows of x.
  template <class Type, int kW, int kX>
  static void multiply(const std::byte* w, size_t w_row_bytes, const float* x, int n_cols, float* out,
                       size_t out_stride) {
    __m512 acc[kW][kX];
    for (int i = 0; i < kW; ++i) {
      for (int r = 0; r < kX; ++r) acc[i][r] = _mm512_setzero_ps();
    }
    const size_t cols = static_cast<size_t>(n_cols);
    size_t j = 0;
    for (; j + 16 <= cols; j += 16) {
      __m512 xv[kX];
      for (int r = 0; r < kX; ++r) xv[r] = _mm512_loadu_ps(x + static_cast<size_t>(r) * cols + j);
      for (int i = 0; i < kW; ++i) {
        const std::byte* p = w + static_cast<size_t>(i) * w_row_bytes + j * Type::kBytes;
        if constexpr (kX == 1) _mm_prefetch(reinterpret_cast<const char*>(p + kW * w_row_bytes), _MM_HINT_T0);
        const __m512 wv = Type::load(p);
        for (int r = 0; r < kX; ++r) acc[i][r] = _mm512_fmadd_ps(wv, xv[r], acc[i][r]);
      }
    }
    if (j < cols) {
      const __mmask16 lanes = static_cast<__mmask16>((1u << (cols - j)) - 1u);
      for (int i = 0; i < kW; ++i) {
        const __m512 wv = Type::load(w + static_cast<size_t>(i) * w_row_bytes + j * Type::kBytes, lanes);
        for (int r = 0; r < kX; ++r) {
          const __m512 xv = _mm512_maskz_loadu_ps(lanes, x + static_cast<size_t>(r) * cols + j);
          acc[i][r] = _mm512_mask3_fmadd_ps(wv, xv, acc[i][r], lanes);
        }
      }
    }
    for (int i = 0; i < kW; ++i) {
      for (int r = 0; r < kX; ++r)
        out[static_cast<size_t>(r) * out_stride + static_cast<size_t>(i)] = tree_sum(acc[i][r]);
    }
  }
};

}  // namespace

void gemm_quantized_avx512_vnni(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                                const Scratch& scratch) {
  with_unpacker(w.type, x.n_cols, [&]<class Type> { gemm_type<Type>(w, x, out, out_stride, scratch); });
}

void gemm_float_avx512(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                       const Scratch& /*scratch*/) {
  gemm_float<FloatKernel>(w, x, n_x, n_cols, out, out_stride);
}

namespace {

struct LowRankLanes {
  using F32 = cpu::F32;
  using F16 = cpu::F16;
  using BF16 = cpu::BF16;
  using Float = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRows = 8;
  static constexpr int kColumns = 32;
  static constexpr int kSingleColumns = 128;
  static Float set1(float v) { return _mm512_set1_ps(v); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float root(Float v) { return _mm512_sqrt_ps(v); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace

void add_low_rank_avx512(const LowRankRows& rows, int col_begin, int col_end) {
  add_low_rank<LowRankLanes>(rows, col_begin, col_end);
}

void load_columns_avx512(const WeightRows& w, int n_cols, float* columns, const Scratch& scratch) {
  if (w.row_end - w.row_begin < kLanes) return load_columns_ref(w, n_cols, columns, scratch);  // the last rows
  switch (w.type) {
    case TensorType::kF32: return columns_of_floats<F32>(w, n_cols, columns);
    case TensorType::kF16: return columns_of_floats<F16>(w, n_cols, columns);
    case TensorType::kBF16: return columns_of_floats<BF16>(w, n_cols, columns);
    default: with_unpacker(w.type, n_cols, [&]<class Type> { columns_of<Type>(w, n_cols, columns, scratch); });
  }
}

}  // namespace gemma::cpu

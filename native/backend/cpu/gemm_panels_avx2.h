// Quantised matrix products of the two sets with 256-bit registers, AVX2 and AVX-VNNI, which differ only in how bytes
// are multiplied. Internal to each file that includes it: every name is local to the file, so that code compiled with
// one set's flags can never be linked into the other.
//
// As with AVX-512 (gemm_avx512_vnni.cpp), weight rows ride in the lanes, here 8, four columns of a row beside each
// other; the four bytes of x are broadcast. There is no horizontal sum, so the order of arithmetic of kernels.h holds
// for any number of rows. One row of x (decoding) is multiplied straight from the registers that codes are unpacked
// into. For more rows a group of blocks of 8 weight rows is unpacked once into a panel, and then used by every row.
//
// An Isa supplies
//   kSigned           whether codes of all 8 bits (Q8_0, IQ4) are multiplied as signed bytes
//   Codes<Form>       codes ready to be multiplied, made from a register of bytes
//   kOffsetLast       whether a dot product begins with nothing, and the type's offset is added to its total; else the
//                     total begins with that
//   Dot<Form>         a dot product over one part of a block: for each dword j of the part
//                     add(j, codes, four bytes of x, whether in a tile of several rows); total; latest(), the register
//                     that the last add wrote for the next one
#pragma once

#include <immintrin.h>

#include <cstring>

#include "backend/cpu/inlining.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/small_math.h"
#include "backend/cpu/unpack_avx2.h"

namespace gemma::cpu {
namespace {

// Columns that are unpacked at a time: a multiple of every type's block.
constexpr int kFewColumns = 256;   // two panels of 3 KiB each
constexpr int kManyColumns = 512;  // 6 KiB each, beside the x rows of a tile in L1
constexpr int kBlocksMany = kManyColumns / 32;

GEMMA_INLINE __m256i broadcast4(const int8_t* q) {
  int32_t four = 0;
  std::memcpy(&four, q, 4);
  return _mm256_set1_epi32(four);
}

// Whether codes are multiplied as they are stored, without the type's offset.
template <class Isa, class Kind>
constexpr bool kHasOffset = Kind::kOffsetShift >= 0 && !(Kind::kAllBits && Isa::kSigned);

// Integer offset times minus the sum of x, which belongs to a dot product of unsigned codes. i: block of x.
template <class Isa, class Kind>
GEMMA_INLINE __m256i offset(const QuantizedRows& x, size_t i, int part) {
  if constexpr (kHasOffset<Isa, Kind>) {
    const int32_t neg_sum = Kind::kHalves ? x.neg_sum16[2 * i + static_cast<size_t>(part)] : x.neg_sum[i];
    return _mm256_slli_epi32(_mm256_set1_epi32(neg_sum), Kind::kOffsetShift);
  } else {
    return _mm256_setzero_si256();
  }
}

// acc plus one part's contribution.
template <class Kind>
GEMMA_INLINE __m256 accumulate(__m256 acc, __m256i dot, __m256 d, __m256 m, const QuantizedRows& x, size_t i,
                               int part) {
  acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(d, _mm256_set1_ps(x.d[i])), acc);
  if constexpr (Kind::kMin) {
    const float sum = Kind::kHalves ? x.dsum16[2 * i + static_cast<size_t>(part)] : x.dsum[i];
    acc = _mm256_fmadd_ps(m, _mm256_set1_ps(sum), acc);
  }
  return acc;
}

// Has clang compute v before what follows that touches memory. It moves no load across a prefetch or a branch, but all
// arithmetic behind it, to where its result is used, so that what was loaded for it waits on the stack: a decode of
// Q6_K ran at 47 instead of 76 billion operations a second.
GEMMA_INLINE void settle(__m256i& v) {
#if defined(__clang__)
  asm volatile("" : "+x"(v));
#else
  (void)v;
#endif
}

// Fetches memory a panel ahead of its use, in step with it: 8 row streams of a few hundred bytes each are too short for
// the hardware to follow. Past the end of the matrix this is harmless. Without a branch, for settle()'s reason.
class Prefetcher {
 public:
  // panel_bytes: of 8 whole rows, the time that passes before what is fetched is used.
  Prefetcher(const uint8_t* first, size_t panel_bytes)
      : far_(first + kFar), near_(first), is_near_(panel_bytes <= kNear) {}
  // One of kSteps shares of the kBytes that follow.
  template <int kBytes, int kSteps>
  GEMMA_INLINE void fetch(int step) const {
    constexpr int kLines = (kBytes + 63) / 64;
    for (int line = kLines * step / kSteps; line < kLines * (step + 1) / kSteps; ++line) {
      _mm_prefetch(reinterpret_cast<const char*>(far_ + 64 * line), _MM_HINT_T1);
      _mm_prefetch(reinterpret_cast<const char*>(near_ + 64 * line), _MM_HINT_T0);
    }
  }
  GEMMA_INLINE void advance(size_t n_bytes) {
    far_ += n_bytes;
    near_ += is_near_ ? n_bytes : 0;  // or the same lines again, which are there
  }

 private:
  static constexpr size_t kFar = 4096;    // first into L2, which has more requests under way than L1
  static constexpr size_t kNear = 24576;  // a larger panel would leave L1 again before its turn
  const uint8_t* far_;
  const uint8_t* near_;
  bool is_near_;
};

// The sink of one row of x: codes are multiplied as they come.
template <class Isa, class Type>
struct RowProduct {
  static constexpr bool kSigned = Isa::kSigned;
  using Kind = typename Type::Kind;
  using Dot = typename Isa::template Dot<Kind>;

  const QuantizedRows& x;
  Prefetcher& ahead;
  __m256 acc = _mm256_setzero_ps();
  size_t first_block = 0;
  Dot dot[Type::kGroup][Kind::kParts];
  __m256 d[Type::kGroup][Kind::kParts];
  __m256 m[Type::kGroup][Kind::kParts];

  GEMMA_INLINE RowProduct(const QuantizedRows& row, Prefetcher& prefetcher) : x(row), ahead(prefetcher) {}
  GEMMA_INLINE size_t index(int block) const { return first_block + static_cast<size_t>(block); }
  GEMMA_INLINE void codes(int block, int j, __m256i v) {
    const int part = j / Kind::kPartDwords;
    const int dword = j % Kind::kPartDwords;
    Dot& sum = dot[block][part];
    if (dword == 0 && !Isa::kOffsetLast) sum.total = offset<Isa, Kind>(x, index(block), part);
    sum.add(dword, typename Isa::template Codes<Kind>(v), broadcast4(x.q + index(block) * 32 + 4 * j), false);
    if (j % 4 != 3) return;
    settle(sum.latest());
    ahead.template fetch<kLanes * Type::kGroupBytes, 2 * Type::kGroup>(2 * block + j / 4);
  }
  GEMMA_INLINE void scale(int block, int part, __m256 v) { d[block][part] = v; }
  GEMMA_INLINE void minimum(int block, int part, __m256 v) { m[block][part] = v; }
  GEMMA_INLINE void end(int block) {
    unroll<Kind::kParts>([&](auto part) {
      const __m256 minimum_or_none = Kind::kMin ? m[block][part] : acc;
      __m256i total = dot[block][part].total;
      if (kHasOffset<Isa, Kind> && Isa::kOffsetLast)
        total = _mm256_add_epi32(total, offset<Isa, Kind>(x, index(block), part));
      acc = accumulate<Kind>(acc, total, d[block][part], minimum_or_none, x, index(block), part);
    });
  }
};

// The sink of a panel.
template <class Isa>
struct PanelWriter {
  static constexpr bool kSigned = Isa::kSigned;
  PanelBlock* blocks;
  GEMMA_INLINE void codes(int block, int j, __m256i v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(blocks[block].u[j]), v);
  }
  GEMMA_INLINE void scale(int block, int part, __m256 v) { _mm256_store_ps(blocks[block].d[part], v); }
  GEMMA_INLINE void minimum(int block, int part, __m256 v) { _mm256_store_ps(blocks[block].m[part], v); }
  GEMMA_INLINE void end(int) {}
};

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
template <class Isa, class Kind, int kPanels, int kRows>
GEMMA_NOINLINE void multiply(const Panels& panels, const QuantizedRows& x, int first_row, float* out,
                             size_t out_stride) {
  const size_t blocks_per_row = static_cast<size_t>(x.n_cols / 32);
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
    unroll<Kind::kParts>([&](auto part) {
      using Dot = typename Isa::template Dot<Kind>;
      using Codes = typename Isa::template Codes<Kind>;
      Dot dot[kPanels][kRows];
      if constexpr (!Isa::kOffsetLast) {
        unroll<kRows>([&](auto r) {
          const __m256i start = offset<Isa, Kind>(x, index[r] + static_cast<size_t>(b), part);
          unroll<kPanels>([&](auto p) { dot[p][r].total = start; });
        });
      }
      unroll<Kind::kPartDwords>([&](auto i) {
        const int j = part * Kind::kPartDwords + i;
        Codes w[kPanels];
        unroll<kPanels>(
            [&](auto p) { w[p] = Codes(_mm256_load_si256(reinterpret_cast<const __m256i*>(block[p]->u[j]))); });
        unroll<kRows>([&](auto r) {
          const __m256i four = broadcast4(x.q + (index[r] + static_cast<size_t>(b)) * 32 + 4 * j);
          unroll<kPanels>([&](auto p) { dot[p][r].add(i, w[p], four, true); });
        });
      });
      unroll<kRows>([&](auto r) {
        if constexpr (kHasOffset<Isa, Kind> && Isa::kOffsetLast) {
          const __m256i last = offset<Isa, Kind>(x, index[r] + static_cast<size_t>(b), part);
          unroll<kPanels>([&](auto p) { dot[p][r].total = _mm256_add_epi32(dot[p][r].total, last); });
        }
        unroll<kPanels>([&](auto p) {
          const __m256 m = Kind::kMin ? _mm256_load_ps(block[p]->m[part]) : acc[p][r];
          acc[p][r] = accumulate<Kind>(acc[p][r], dot[p][r].total, _mm256_load_ps(block[p]->d[part]), m, x,
                                       index[r] + static_cast<size_t>(b), part);
        });
      });
    });
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p)
      store_lanes(out + static_cast<size_t>(r) * out_stride + p * kLanes, panels.lanes[p], acc[p][r]);
  }
}

// The last n_rows < kRows + 1 rows of x.
template <class Isa, class Kind, int kPanels, int kRows>
void multiply_tail(int n_rows, const Panels& panels, const QuantizedRows& x, int first_row, float* out,
                   size_t out_stride) {
  if constexpr (kRows > 0) {
    if (n_rows == kRows) {
      multiply<Isa, Kind, kPanels, kRows>(panels, x, first_row, out, out_stride);
    } else {
      multiply_tail<Isa, Kind, kPanels, kRows - 1>(n_rows, panels, x, first_row, out, out_stride);
    }
  }
}

template <class Isa, class Kind, int kPanels>
void multiply_all(const Panels& panels, const QuantizedRows& x, float* out, size_t out_stride) {
  // The dot products of 2 panels and 4 rows stay in registers; their accumulators are touched once per block.
  constexpr int kRows = 4;
  int r = 0;
  for (; r + kRows <= x.n_rows; r += kRows) {
    multiply<Isa, Kind, kPanels, kRows>(panels, x, r, out + static_cast<size_t>(r) * out_stride, out_stride);
  }
  multiply_tail<Isa, Kind, kPanels, kRows - 1>(x.n_rows - r, panels, x, r, out + static_cast<size_t>(r) * out_stride,
                                               out_stride);
}

// One row of x, all full panels; returns the first weight row that is left.
template <class Isa, class Type>
GEMMA_NOINLINE GEMMA_FLATTEN int multiply_row(const WeightRows& w, const QuantizedRows& x, float* out) {
  const size_t n_groups = static_cast<size_t>(x.n_cols / 32 / Type::kGroup);
  int row = w.row_begin;
  const uint8_t* p = reinterpret_cast<const uint8_t*>(w.w) + static_cast<size_t>(row) * w.w_row_bytes;
  Prefetcher ahead(p + kLanes * w.w_row_bytes, kLanes * w.w_row_bytes);
  for (; row + kLanes <= w.row_end; row += kLanes, p += kLanes * w.w_row_bytes) {
    RowProduct<Isa, Type> product(x, ahead);
    for (size_t g = 0; g < n_groups; ++g) {
      product.first_block = g * Type::kGroup;
      Type::unpack(p + g * Type::kGroupBytes, w.w_row_bytes, product);
      ahead.advance(kLanes * Type::kGroupBytes);
    }
    _mm256_storeu_ps(out + row, product.acc);
  }
  return row;
}

// n blocks of 8 rows (of which `rows` exist) into a panel.
template <class Isa, class Type>
GEMMA_NOINLINE GEMMA_FLATTEN void unpack_panel(const WeightRows& w, int row, int b, int n, PanelBlock* panel,
                                               uint8_t* tail) {
  const size_t offset = static_cast<size_t>(b / Type::kGroup) * Type::kGroupBytes;
  const uint8_t* p = reinterpret_cast<const uint8_t*>(w.w) + static_cast<size_t>(row) * w.w_row_bytes + offset;
  size_t stride = w.w_row_bytes;
  const int rows = least(kLanes, w.row_end - row);
  Prefetcher ahead(p - offset + kLanes * (w.w_row_bytes + offset), kLanes * w.w_row_bytes);
  if (rows < kLanes) {
    stride = static_cast<size_t>(n / Type::kGroup) * Type::kGroupBytes;
    for (int r = 0; r < kLanes; ++r) {
      std::memcpy(tail + static_cast<size_t>(r) * stride, p + static_cast<size_t>(least(r, rows - 1)) * w.w_row_bytes,
                  stride);
    }
    p = tail;
  }
  for (int g = 0; g < n; g += Type::kGroup, p += Type::kGroupBytes) {
    ahead.template fetch<kLanes * Type::kGroupBytes, 1>(0);
    ahead.advance(kLanes * Type::kGroupBytes);
    PanelWriter<Isa> writer{panel + g};
    Type::unpack(p, stride, writer);
  }
}

template <class Isa, class Type>
void gemm_type(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride, const Scratch& scratch) {
  const int n_blocks = x.n_cols / 32;
  PanelBlock* blocks = reinterpret_cast<PanelBlock*>(scratch.data);
  // A last panel with fewer than 8 rows is unpacked from a copy, so that no load leaves the matrix.
  uint8_t* tail = reinterpret_cast<uint8_t*>(scratch.data) + 2 * kBlocksMany * sizeof(PanelBlock);
  const int step = (x.n_rows > 8 ? kManyColumns : kFewColumns) / 32;
  // Two panels share the loads of x.
  for (int row = x.n_rows == 1 ? multiply_row<Isa, Type>(w, x, out) : w.row_begin; row < w.row_end; row += 2 * kLanes) {
    Panels panels;
    panels.blocks = blocks;
    const int rows = least(2 * kLanes, w.row_end - row);
    panels.lanes[0] = least(kLanes, rows);
    panels.lanes[1] = rows - panels.lanes[0];
    for (int b = 0; b < n_blocks; b += step) {
      panels.first_block = b;
      panels.n_blocks = least(step, n_blocks - b);
      unpack_panel<Isa, Type>(w, row, b, panels.n_blocks, blocks, tail);
      if (panels.lanes[1] > 0) {
        unpack_panel<Isa, Type>(w, row + kLanes, b, panels.n_blocks, blocks + kBlocksMany, tail);
        multiply_all<Isa, typename Type::Kind, 2>(panels, x, out + row, out_stride);
      } else {
        multiply_all<Isa, typename Type::Kind, 1>(panels, x, out + row, out_stride);
      }
    }
  }
}

template <class Isa>
void gemm_quantized(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                    const Scratch& scratch) {
  switch (w.type) {
    case TensorType::kQ4_0: return gemm_type<Isa, Q4_0>(w, x, out, out_stride, scratch);
    case TensorType::kQ4_1: return gemm_type<Isa, Q4_1>(w, x, out, out_stride, scratch);
    case TensorType::kQ5_0: return gemm_type<Isa, Q5_0>(w, x, out, out_stride, scratch);
    case TensorType::kQ5_1: return gemm_type<Isa, Q5_1>(w, x, out, out_stride, scratch);
    case TensorType::kQ8_0: return gemm_type<Isa, Q8_0>(w, x, out, out_stride, scratch);
    case TensorType::kQ2_K: return gemm_type<Isa, Q2_K>(w, x, out, out_stride, scratch);
    case TensorType::kQ3_K: return gemm_type<Isa, Q3_K>(w, x, out, out_stride, scratch);
    case TensorType::kQ4_K: return gemm_type<Isa, Q4_K>(w, x, out, out_stride, scratch);
    case TensorType::kQ5_K: return gemm_type<Isa, Q5_K>(w, x, out, out_stride, scratch);
    case TensorType::kQ6_K: return gemm_type<Isa, Q6_K>(w, x, out, out_stride, scratch);
    case TensorType::kIQ4_NL: return gemm_type<Isa, IQ4_NL>(w, x, out, out_stride, scratch);
    case TensorType::kIQ4_XS: return gemm_type<Isa, IQ4_XS>(w, x, out, out_stride, scratch);
    case TensorType::kMXFP4: return gemm_type<Isa, MXFP4>(w, x, out, out_stride, scratch);
    case TensorType::kTQ2_0: return gemm_type<Isa, TQ2_0>(w, x, out, out_stride, scratch);
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16: return;  // gemm_float's
  }
}

}  // namespace
}  // namespace gemma::cpu

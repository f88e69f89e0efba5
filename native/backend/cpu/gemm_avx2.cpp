// Matrix products with AVX2: what multiplies bytes (the rest is in gemm_panels_avx2.h), and products of float types.
//
// vpmaddubsw multiplies unsigned by signed bytes and adds pairs in 16 bits, saturating. |x| <= 127, so a pair of codes
// up to kMaxCode is at most kMaxCode * 254: for small codes several such sums fit into 16 bits before they must be
// widened. Types with 8-bit codes stay signed and are multiplied as |w| times x with the sign of w: at most
// 128 * 254 = 32512.
#include <immintrin.h>

#include <cstring>

#include "backend/cpu/float_products.h"
#include "backend/cpu/gemm_panels_avx2.h"
#include "backend/cpu/kernels_avx2.h"
#include "backend/cpu/low_rank.h"

namespace gemma::cpu {
namespace {

// A sum that is complete before the next product is added. Free to reorder, GCC computes all products of a tile first
// and sends them through memory: 4-bit types with 128 rows of x ran at 171 instead of 205 billion operations a second.
GEMMA_INLINE __m256i in_order(__m256i v) {
#if defined(__GNUC__)
  asm("" : "+x"(v));
#endif
  return v;
}

struct Maddubs {
  static constexpr bool kSigned = true;
  static constexpr bool kOffsetLast = true;

  template <class Kind>
  struct Codes {
    __m256i w;
    __m256i magnitude;
    Codes() = default;
    GEMMA_INLINE explicit Codes(__m256i v) : w(v), magnitude(Kind::kAllBits ? _mm256_abs_epi8(v) : v) {}
  };

  template <class Kind>
  struct Dot {
    // Sums of pairs that fit into 16 bits: a power of two, at most the dwords of a part.
    static constexpr int kFit = Kind::kAllBits ? 1 : 32767 / (Kind::kMaxCode * 254);
    static constexpr int kSums = least(kFit >= 8 ? 8 : kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1, Kind::kPartDwords);

    __m256i total;
    __m256i pairs;  // 16 bits
    GEMMA_INLINE __m256i& latest() { return kSums == 1 ? total : pairs; }
    GEMMA_INLINE void add(int j, const Codes<Kind>& codes, __m256i four, bool in_tile) {
      const __m256i signed_four = Kind::kAllBits ? _mm256_sign_epi8(four, codes.w) : four;
      const __m256i products = _mm256_maddubs_epi16(codes.magnitude, signed_four);
      pairs = j % kSums == 0 ? products : _mm256_add_epi16(pairs, products);
      if (in_tile && kSums > 1) pairs = in_order(pairs);  // a loss for one row of x
      if (j % kSums != kSums - 1) return;
      const __m256i sum = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
      total = j < kSums ? sum : _mm256_add_epi32(total, sum);
      if (in_tile && kSums < Kind::kPartDwords) total = in_order(total);
    }
  };
};

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

struct FloatKernel {
  using F32 = cpu::F32;
  using F16 = cpu::F16;
  using BF16 = cpu::BF16;
  static constexpr int kSingle = 4;
  static constexpr int kW = 2;
  static constexpr int kX = 3;

  // kW weight rows times kX rows of x; acc[..][h] are partial sums 8 * h .. 8 * h + 7.
  template <class Type, int kW, int kX>
  static void multiply(const std::byte* w, size_t w_row_bytes, const float* x, int n_cols, float* out,
                       size_t out_stride) {
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
};

}  // namespace

void gemm_quantized_avx2(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                         const Scratch& scratch) {
  gemm_quantized<Maddubs>(w, x, out, out_stride, scratch);
}

void gemm_float_avx2(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                     const Scratch& /*scratch*/) {
  gemm_float<FloatKernel>(w, x, n_x, n_cols, out, out_stride);
}

namespace {

struct LowRankLanes {
  using F32 = cpu::F32;
  using F16 = cpu::F16;
  using BF16 = cpu::BF16;
  using Float = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kRows = 4;
  static constexpr int kColumns = 16;
  static constexpr int kSingleColumns = 64;
  static Float set1(float v) { return _mm256_set1_ps(v); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float root(Float v) { return _mm256_sqrt_ps(v); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace

void add_low_rank_avx2(const LowRankRows& rows, int col_begin, int col_end) {
  add_low_rank<LowRankLanes>(rows, col_begin, col_end);
}

}  // namespace gemma::cpu

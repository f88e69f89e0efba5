// Norms, rotation, GELU, quantisation of activations and cache rows with AVX-512.
#include <immintrin.h>

#include <cstring>
#include <limits>

#include "backend/cpu/exp_avx512.h"
#include "backend/cpu/kernels_avx512.h"

namespace gemma::cpu {
namespace {

inline __mmask16 first_lanes(int n) {
  return static_cast<__mmask16>((1u << n) - 1u);
}

inline float inverse_rms(const float* x, int dim, float eps) {
  // Squares of large activations stay exact enough in float: sums of 16 lanes, then a tree.
  __m512 sum = _mm512_setzero_ps();
  int j = 0;
  for (; j + 16 <= dim; j += 16) {
    const __m512 v = _mm512_loadu_ps(x + j);
    sum = _mm512_fmadd_ps(v, v, sum);
  }
  if (j < dim) {
    const __m512 v = _mm512_maskz_loadu_ps(first_lanes(dim - j), x + j);
    sum = _mm512_fmadd_ps(v, v, sum);
  }
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(_mm512_reduce_add_ps(sum) / static_cast<float>(dim) + eps)));
}

template <class F>
inline void for_vectors(int n, const F& f) {
  int j = 0;
  for (; j + 16 <= n; j += 16) f(j, static_cast<__mmask16>(0xffff));
  if (j < n) f(j, first_lanes(n - j));
}

// The step of a block of 32 with the least squared error (kernels.h).
inline int best_level(__m512 v0, __m512 v1, float reciprocal) {
  constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  __m128 four[kLevels];
  for (int i = 0; i < kLevels; ++i) {
    const __m512 inverse = _mm512_set1_ps(kLevel[i] * reciprocal);
    const __m512 s0 = _mm512_mul_ps(v0, inverse);
    const __m512 s1 = _mm512_mul_ps(v1, inverse);
    const __m512 e0 = _mm512_sub_ps(s0, _mm512_roundscale_ps(s0, kRound));
    const __m512 e1 = _mm512_sub_ps(s1, _mm512_roundscale_ps(s1, kRound));
    const __m512 sum = _mm512_fmadd_ps(e1, e1, _mm512_mul_ps(e0, e0));
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
    four[i] = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  }
  _MM_TRANSPOSE4_PS(four[0], four[1], four[2], four[3]);
  const __m128 sums = _mm_add_ps(_mm_add_ps(four[0], four[2]), _mm_add_ps(four[1], four[3]));
  const __m128 errors = _mm_mul_ps(sums, _mm_loadu_ps(kLevelWeights));
  __m128 least = _mm_min_ps(errors, _mm_movehl_ps(errors, errors));
  least = _mm_min_ss(least, _mm_movehdup_ps(least));
  const int equal = _mm_movemask_ps(_mm_cmpeq_ps(errors, _mm_broadcastss_ps(least)));
  return __builtin_ctz(static_cast<unsigned>(equal | 8));
}

}  // namespace

void quantize_row_avx512(const float* x, int n_cols, const QuantizedRowOut& out) {
  const __m512 zero = _mm512_setzero_ps();
  for (int b = 0; b < n_cols / 32; ++b) {
    const __m512 v0 = _mm512_loadu_ps(x + b * 32);
    const __m512 v1 = _mm512_loadu_ps(x + b * 32 + 16);
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(v0), _mm512_abs_ps(v1)));
    // x * 0 is NaN for NaN and infinity, which max hides.
    const __m512 check = _mm512_fmadd_ps(v0, zero, _mm512_mul_ps(v1, zero));
    const bool finite = _mm512_cmp_ps_mask(check, check, _CMP_UNORD_Q) == 0;
    const bool usable = finite && largest > 1e-30f;
    const float reciprocal = usable ? 1.0f / largest : 0.0f;
    const int best = usable ? best_level(v0, v1, reciprocal) : 0;
    const float d = finite ? (usable ? largest * kLevelSteps[best] : 0.0f) : std::numeric_limits<float>::quiet_NaN();
    // Not usable: the reciprocal is 0, but 0 * infinity is not; mask by zeroing lanes.
    const __mmask16 lanes = usable ? 0xffff : 0;
    const __m512 inverse = _mm512_set1_ps(kLevel[best] * reciprocal);
    const __m128i q0 = _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(lanes, _mm512_mul_ps(v0, inverse)));
    const __m128i q1 = _mm512_cvtepi32_epi8(_mm512_maskz_cvtps_epi32(lanes, _mm512_mul_ps(v1, inverse)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out.q + b * 32), q0);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out.q + b * 32 + 16), q1);
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(q0), q1, 1);
    __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), both);  // four of each half
    sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0x4e));
    sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32(sums, 0xb1));
    const int s0 = _mm256_extract_epi32(sums, 0);
    const int s1 = _mm256_extract_epi32(sums, 4);
    out.d[b] = d;
    out.neg_sum[b] = -(s0 + s1);
    out.dsum[b] = d * static_cast<float>(s0 + s1);
    out.neg_sum16[2 * b] = -s0;
    out.neg_sum16[2 * b + 1] = -s1;
    out.dsum16[2 * b] = d * static_cast<float>(s0);
    out.dsum16[2 * b + 1] = d * static_cast<float>(s1);
  }
}

void rms_norm_avx512(float* out, const float* x, const float* weight, int dim, float eps) {
  const __m512 scale = _mm512_set1_ps(inverse_rms(x, dim, eps));
  for_vectors(dim, [&](int j, __mmask16 m) {
    const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + j), scale);
    _mm512_mask_storeu_ps(out + j, m, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, weight + j)));
  });
}

void add_rms_norm_avx512(float* x, const float* branch, const float* weight, int dim, float eps) {
  const __m512 scale = _mm512_set1_ps(inverse_rms(branch, dim, eps));
  for_vectors(dim, [&](int j, __mmask16 m) {
    const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, branch + j), scale);
    const __m512 sum =
        _mm512_add_ps(_mm512_maskz_loadu_ps(m, x + j), _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, weight + j)));
    _mm512_mask_storeu_ps(x + j, m, sum);
  });
}

void norm_rope_avx512(float* x, const float* weight, const float* table, int head_dim, float eps, float scale) {
  const __m512 norm = _mm512_set1_ps(inverse_rms(x, head_dim, eps));
  const __m512 factor = _mm512_set1_ps(scale);
  const int half = head_dim / 2;
  for_vectors(half, [&](int j, __mmask16 m) {
    const __m512 a =
        _mm512_mul_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + j), norm), _mm512_maskz_loadu_ps(m, weight + j));
    const __m512 b = _mm512_mul_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + j + half), norm),
                                   _mm512_maskz_loadu_ps(m, weight + j + half));
    const __m512 c = _mm512_maskz_loadu_ps(m, table + j);
    const __m512 s = _mm512_maskz_loadu_ps(m, table + j + half);
    _mm512_mask_storeu_ps(x + j, m, _mm512_mul_ps(_mm512_sub_ps(_mm512_mul_ps(a, c), _mm512_mul_ps(b, s)), factor));
    _mm512_mask_storeu_ps(x + j + half, m,
                          _mm512_mul_ps(_mm512_add_ps(_mm512_mul_ps(b, c), _mm512_mul_ps(a, s)), factor));
  });
}

void geglu_avx512(float* out, const float* gate, const float* up, int dim) {
  for_vectors(dim, [&](int j, __mmask16 m) {
    // 0.5 v (1 + tanh(y)) = v / (1 + exp(-2 y))
    const __m512 v = _mm512_maskz_loadu_ps(m, gate + j);
    const __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(v, v), v), _mm512_set1_ps(0.044715f), v);
    const __m512 e = exp_ps(_mm512_mul_ps(cubic, _mm512_set1_ps(-2.0f * 0.7978845608028654f)));
    const __m512 gelu = _mm512_div_ps(v, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
    _mm512_mask_storeu_ps(out + j, m, _mm512_mul_ps(gelu, _mm512_maskz_loadu_ps(m, up + j)));
  });
}

void store_kv_row_avx512(KvType type, const float* x, std::byte* row, int head_dim) {
  if (type == KvType::kF32) {
    std::memcpy(row, x, static_cast<size_t>(head_dim) * 4);
  } else if (type == KvType::kF16) {
    for_vectors(head_dim, [&](int j, __mmask16 m) {
      const __m256i half =
          _mm512_cvtps_ph(_mm512_maskz_loadu_ps(m, x + j), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      _mm256_mask_storeu_epi16(row + static_cast<size_t>(j) * 2, m, half);
    });
  } else {
    store_kv_row_ref(type, x, row, head_dim);
  }
}

void merge_segments_avx512(float* acc, float* max, float* sum, const float* acc2, float max2, float sum2,
                           int head_dim) {
  const float new_max = *max > max2 || *max != *max ? *max : max2;
  const float a = _mm512_cvtss_f32(exp_ps(_mm512_set1_ps(*max - new_max)));
  const float b = _mm512_cvtss_f32(exp_ps(_mm512_set1_ps(max2 - new_max)));
  for_vectors(head_dim, [&](int j, __mmask16 m) {
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, acc + j), _mm512_set1_ps(a));
    _mm512_mask_storeu_ps(acc + j, m, _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, acc2 + j), _mm512_set1_ps(b), scaled));
  });
  *sum = sum2 * b + *sum * a;
  *max = new_max;
}

const Kernels& kernels_avx512_vnni() {
  static const Kernels kernels = {
      "avx512_vnni",       gemm_quantized_avx512_vnni, gemm_float_avx512,    quantize_row_avx512,
      rms_norm_avx512,     add_rms_norm_avx512,        norm_rope_avx512,     geglu_avx512,
      store_kv_row_avx512, attention_avx512,           merge_segments_avx512, load_columns_avx512, screen_pack_avx512, screen_bound_avx512_vnni};
  return kernels;
}

}  // namespace gemma::cpu

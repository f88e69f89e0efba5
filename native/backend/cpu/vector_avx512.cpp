// Norms, rotation, GELU, quantisation of activations and cache rows with AVX-512.
#include "backend/cpu/vector_avx512.h"

#include <immintrin.h>

#include <cstring>

#include "backend/cpu/kernels_avx512.h"
#include "backend/cpu/lanes_avx512.h"

namespace gemma::cpu {
namespace {

inline float inverse_root(float x) {
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
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
  return inverse_root(_mm512_reduce_add_ps(sum) / static_cast<float>(dim) + eps);
}

template <class F>
inline void for_vectors(int n, const F& f) {
  int j = 0;
  for (; j + 16 <= n; j += 16) f(j, static_cast<__mmask16>(0xffff));
  if (j < n) f(j, first_lanes(n - j));
}

// 0.5 v (1 + tanh(y)) = v / (1 + exp(-2 y)), y = sqrt(2 / pi) (v + 0.044715 v^3)
inline __m512 gelu_tanh(__m512 v) {
  const __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_mul_ps(v, v), v), _mm512_set1_ps(0.044715f), v);
  const __m512 e = Vector512::exp(_mm512_mul_ps(cubic, _mm512_set1_ps(-2.0f * 0.7978845608028654f)));
  return _mm512_div_ps(v, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

// Largest magnitude of each of four blocks of 32, block b in all lanes of the b-th 128 bits; as integers, so that NaN
// and infinity are larger than all numbers.
inline __m512i largest_magnitudes(const __m512* v) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i m[4];
  for (int b = 0; b < 4; ++b) {
    m[b] = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(v[2 * b]), magnitude),
                            _mm512_and_si512(_mm512_castps_si512(v[2 * b + 1]), magnitude));
  }
  __m512i halves[2];
  for (int i = 0; i < 2; ++i) {
    halves[i] = _mm512_max_epi32(_mm512_shuffle_i32x4(m[2 * i], m[2 * i + 1], 0x44),
                                 _mm512_shuffle_i32x4(m[2 * i], m[2 * i + 1], 0xee));
  }
  __m512i all = _mm512_max_epi32(_mm512_shuffle_i32x4(halves[0], halves[1], 0x88),
                                 _mm512_shuffle_i32x4(halves[0], halves[1], 0xdd));
  all = _mm512_max_epi32(all, _mm512_shuffle_epi32(all, _MM_PERM_BADC));
  return _mm512_max_epi32(all, _mm512_shuffle_epi32(all, _MM_PERM_CDAB));
}

// Four blocks of 32 at once; says false, and writes nothing, when one of them has no usable step (kernels.h): 0, too
// small, NaN or infinity.
inline bool quantize_four_blocks(const float* x, const QuantizedRowOut& out) {
  constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  __m512 v[8];
  for (int i = 0; i < 8; ++i) v[i] = _mm512_loadu_ps(x + 16 * i);
  const __m512i bits = largest_magnitudes(v);
  const __m512 largest = _mm512_castsi512_ps(bits);
  if (_mm512_cmp_ps_mask(largest, _mm512_set1_ps(1e-30f), _CMP_GT_OQ) != 0xffff ||
      _mm512_cmplt_epi32_mask(bits, _mm512_set1_epi32(0x7f800000)) != 0xffff) {
    return false;
  }
  // Lane 4 b + i: block b with level i.
  const __m512 reciprocal = _mm512_div_ps(_mm512_set1_ps(1.0f), largest);
  const __m512 inverses = _mm512_mul_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(kLevel)), reciprocal);
  alignas(64) float inverse[16];
  _mm512_store_ps(inverse, inverses);
  __m512 errors[16];
  for (int b = 0; b < 4; ++b) {
    for (int i = 0; i < kLevels; ++i) {
      const __m512 scale = _mm512_set1_ps(inverse[4 * b + i]);
      const __m512 s0 = _mm512_mul_ps(v[2 * b], scale);
      const __m512 s1 = _mm512_mul_ps(v[2 * b + 1], scale);
      const __m512 e0 = _mm512_sub_ps(s0, _mm512_roundscale_ps(s0, kRound));
      const __m512 e1 = _mm512_sub_ps(s1, _mm512_roundscale_ps(s1, kRound));
      errors[4 * i + b] = _mm512_fmadd_ps(e1, e1, _mm512_mul_ps(e0, e0));
    }
  }
  const __m512 error = _mm512_mul_ps(sum_lanes(errors), _mm512_broadcast_f32x4(_mm_loadu_ps(kLevelWeights)));
  __m512 least = _mm512_min_ps(error, _mm512_permute_ps(error, 0x4e));
  least = _mm512_min_ps(least, _mm512_permute_ps(least, 0xb1));
  uint32_t best = _mm512_cmp_ps_mask(error, least, _CMP_EQ_OQ);
  best &= ~((best << 1 & 0xeeeeu) | (best << 2 & 0xccccu) | (best << 3 & 0x8888u));  // the first of equals
  const __mmask16 first = static_cast<__mmask16>(best);
  const __m512 steps = _mm512_mul_ps(largest, _mm512_broadcast_f32x4(_mm_loadu_ps(kLevelSteps)));
  const __m128 d = _mm512_castps512_ps128(_mm512_maskz_compress_ps(first, steps));
  const __m512 chosen = _mm512_maskz_compress_ps(first, inverses);

  __m512i q[8];
  for (int b = 0; b < 4; ++b) {
    const __m512 scale = _mm512_permutexvar_ps(_mm512_set1_epi32(b), chosen);
    q[2 * b] = _mm512_cvtps_epi32(_mm512_mul_ps(v[2 * b], scale));
    q[2 * b + 1] = _mm512_cvtps_epi32(_mm512_mul_ps(v[2 * b + 1], scale));
  }
  // Packing works within 128-bit lanes; the permutation brings the dwords back into order.
  const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  __m512i sums[2];  // of four codes; four sums a half block
  for (int i = 0; i < 2; ++i) {
    const __m512i packed =
        _mm512_packs_epi16(_mm512_packs_epi32(q[4 * i], q[4 * i + 1]), _mm512_packs_epi32(q[4 * i + 2], q[4 * i + 3]));
    const __m512i codes = _mm512_permutexvar_epi32(in_order, packed);
    _mm512_storeu_si512(out.q + 64 * i, codes);
    sums[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), codes);
  }
  __m512i halves = _mm512_add_epi32(_mm512_unpacklo_epi32(sums[0], sums[1]), _mm512_unpackhi_epi32(sums[0], sums[1]));
  halves = _mm512_add_epi32(halves, _mm512_shuffle_epi32(halves, _MM_PERM_BADC));
  // Half block h of the first 64 codes is in lane 4 h, of the others in lane 4 h + 1.
  const __m512i s16 =
      _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 8, 1, 9, 4, 12, 5, 13), halves);
  const __m256i half_sums = _mm512_castsi512_si256(s16);
  const __m256i split = _mm512_extracti32x8_epi32(s16, 1);  // first halves, second halves
  const __m128i block_sums = _mm_add_epi32(_mm256_castsi256_si128(split), _mm256_extracti128_si256(split, 1));
  const __m256 d_twice = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(d), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
  _mm_storeu_ps(out.d, d);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out.neg_sum), _mm_sub_epi32(_mm_setzero_si128(), block_sums));
  _mm_storeu_ps(out.dsum, _mm_mul_ps(d, _mm_cvtepi32_ps(block_sums)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.neg_sum16), _mm256_sub_epi32(_mm256_setzero_si256(), half_sums));
  _mm256_storeu_ps(out.dsum16, _mm256_mul_ps(d_twice, _mm256_cvtepi32_ps(half_sums)));
  return true;
}

}  // namespace

void quantize_row_avx512(const float* x, int n_cols, const QuantizedRowOut& out) {
  QuantizedRowOut o = out;
  int j = 0;
  for (; j < n_cols; j += 128) {
    const int n = n_cols - j < 128 ? n_cols - j : 128;
    if (n < 128 || !quantize_four_blocks(x + j, o)) quantize_row_ref(x + j, n, o);
    o.q += n;
    o.d += n / 32;
    o.neg_sum += n / 32;
    o.neg_sum16 += n / 16;
    o.dsum += n / 32;
    o.dsum16 += n / 16;
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
    const __m512 gelu = gelu_tanh(_mm512_maskz_loadu_ps(m, gate + j));
    _mm512_mask_storeu_ps(out + j, m, _mm512_mul_ps(gelu, _mm512_maskz_loadu_ps(m, up + j)));
  });
}

void layer_norm_avx512(float* out, const float* x, const float* weight, const float* bias, int dim, float eps) {
  // Two passes over a row that stays in the nearest cache: differences to the mean are exact where squares are not.
  __m512 sum = _mm512_setzero_ps();
  for_vectors(dim, [&](int j, __mmask16 m) { sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(m, x + j)); });
  const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / static_cast<float>(dim));
  __m512 squares = _mm512_setzero_ps();
  for_vectors(dim, [&](int j, __mmask16 m) {
    const __m512 v = _mm512_maskz_sub_ps(m, _mm512_maskz_loadu_ps(m, x + j), mean);
    squares = _mm512_fmadd_ps(v, v, squares);
  });
  const __m512 scale = _mm512_set1_ps(inverse_root(_mm512_reduce_add_ps(squares) / static_cast<float>(dim) + eps));
  for_vectors(dim, [&](int j, __mmask16 m) {
    const __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + j), mean), scale);
    _mm512_mask_storeu_ps(out + j, m,
                          _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(m, weight + j), _mm512_maskz_loadu_ps(m, bias + j)));
  });
}

void add_bias_avx512(float* x, const float* bias, int dim) {
  for_vectors(dim, [&](int j, __mmask16 m) {
    _mm512_mask_storeu_ps(x + j, m, _mm512_add_ps(_mm512_maskz_loadu_ps(m, x + j), _mm512_maskz_loadu_ps(m, bias + j)));
  });
}

void bias_gelu_avx512(float* x, const float* bias, int dim) {
  for_vectors(dim, [&](int j, __mmask16 m) {
    const __m512 v = _mm512_add_ps(_mm512_maskz_loadu_ps(m, x + j), _mm512_maskz_loadu_ps(m, bias + j));
    _mm512_mask_storeu_ps(x + j, m, gelu_tanh(v));
  });
}

void add_residual_bias_avx512(float* x, const float* branch, const float* bias, int dim) {
  for_vectors(dim, [&](int j, __mmask16 m) {
    const __m512 v = _mm512_add_ps(_mm512_maskz_loadu_ps(m, branch + j), _mm512_maskz_loadu_ps(m, bias + j));
    _mm512_mask_storeu_ps(x + j, m, _mm512_add_ps(_mm512_maskz_loadu_ps(m, x + j), v));
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
    for (int b = 0; b < head_dim / 32; ++b, x += 32, row += kKvBlockBytes) {
      const __m512 v0 = _mm512_loadu_ps(x);
      const __m512 v1 = _mm512_loadu_ps(x + 16);
      const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
      // As integers NaN and infinity are larger than all numbers.
      const int bits = _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(v0), magnitude),
                                                                _mm512_and_si512(_mm512_castps_si512(v1), magnitude)));
      if (bits >= 0x7f800000) {
        store_kv_row_ref(type, x, row, 32);
        continue;
      }
      const __m128i half = _mm_cvtps_ph(_mm_div_ss(_mm_castsi128_ps(_mm_cvtsi32_si128(bits)), _mm_set_ss(127.0f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      const float d = _mm_cvtss_f32(_mm_cvtph_ps(half));
      const __m512 inverse = _mm512_set1_ps(d > 0 ? 1.0f / d : 0.0f);
      const auto codes = [&](__m512 v) {
        const __m512 scaled = _mm512_mul_ps(v, inverse);
        return _mm512_cvtepi32_epi8(
            _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(scaled, _mm512_set1_ps(-127.0f)), _mm512_set1_ps(127.0f))));
      };
      const uint16_t scale = static_cast<uint16_t>(_mm_cvtsi128_si32(half));
      std::memcpy(row, &scale, 2);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row + 2), codes(v0));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row + 18), codes(v1));
    }
  }
}

void merge_segments_avx512(float* acc, float* max, float* sum, const float* acc2, float max2, float sum2,
                           int head_dim) {
  const float new_max = *max > max2 || *max != *max ? *max : max2;
  const float a = _mm512_cvtss_f32(Vector512::exp(_mm512_set1_ps(*max - new_max)));
  const float b = _mm512_cvtss_f32(Vector512::exp(_mm512_set1_ps(max2 - new_max)));
  for_vectors(head_dim, [&](int j, __mmask16 m) {
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, acc + j), _mm512_set1_ps(a));
    _mm512_mask_storeu_ps(acc + j, m, _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, acc2 + j), _mm512_set1_ps(b), scaled));
  });
  *sum = sum2 * b + *sum * a;
  *max = new_max;
}

}  // namespace gemma::cpu

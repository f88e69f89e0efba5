// Norms, rotation, GELU, quantisation of activations and cache rows with AVX2.
#include "backend/cpu/vector_avx2.h"

#include <immintrin.h>

#include <cstring>

#include "backend/cpu/kernels_avx2.h"
#include "backend/cpu/lanes_avx2.h"
#include "backend/cpu/small_math.h"

namespace gemma::cpu {
namespace {

// All bits set in the first n lanes.
inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// Eight values, or fewer at the end of a row. Masked stores are slow on some processors, so whole vectors avoid them.
struct Whole {
  static __m256 load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, __m256 v) { _mm256_storeu_ps(p, v); }
  static __m256 keep(__m256 v) { return v; }
};
struct Part {
  __m256i lanes;
  __m256 load(const float* p) const { return _mm256_maskload_ps(p, lanes); }
  void store(float* p, __m256 v) const { _mm256_maskstore_ps(p, lanes, v); }
  __m256 keep(__m256 v) const { return _mm256_and_ps(v, _mm256_castsi256_ps(lanes)); }  // the others become 0
};

template <class F>
inline void for_vectors(int n, const F& f) {
  int j = 0;
  for (; j + 8 <= n; j += 8) f(j, Whole{});
  if (j < n) f(j, Part{first_lanes(n - j)});
}

inline float inverse_root(float x) {
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
}

inline float inverse_rms(const float* x, int dim, float eps) {
  // Two chains of eight partial sums, then a tree: squares of large activations stay exact enough in float.
  __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
  for_vectors(dim, [&](int j, auto lanes) {
    const __m256 v = lanes.load(x + j);
    __m256& sum = sums[(j / 8) % 2];
    sum = _mm256_fmadd_ps(v, v, sum);
  });
  return inverse_root(sum_lanes(_mm256_add_ps(sums[0], sums[1])) / static_cast<float>(dim) + eps);
}

// 0.5 v (1 + tanh(y)) = v / (1 + exp(-2 y)), y = sqrt(2 / pi) (v + 0.044715 v^3)
inline __m256 gelu_tanh(__m256 v) {
  const __m256 cubic = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_mul_ps(v, v), v), _mm256_set1_ps(0.044715f), v);
  const __m256 e = Vector256::exp(_mm256_mul_ps(cubic, _mm256_set1_ps(-2.0f * 0.7978845608028654f)));
  return _mm256_div_ps(v, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

// 32 codes as bytes. Packing works within 128-bit lanes; the permutation brings the dwords back into order.
inline __m256i pack_codes(const __m256i q[4]) {
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// The step of a block of 32 with the least squared error (kernels.h).
inline int best_level(const __m256 v[4], float reciprocal) {
  constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  __m128 four[kLevels];
  for (int i = 0; i < kLevels; ++i) {
    const __m256 inverse = _mm256_set1_ps(kLevel[i] * reciprocal);
    __m256 e[4];
    for (int j = 0; j < 4; ++j) {
      const __m256 scaled = _mm256_mul_ps(v[j], inverse);
      e[j] = _mm256_sub_ps(scaled, _mm256_round_ps(scaled, kRound));
    }
    const __m256 low = _mm256_fmadd_ps(e[2], e[2], _mm256_mul_ps(e[0], e[0]));
    const __m256 high = _mm256_fmadd_ps(e[3], e[3], _mm256_mul_ps(e[1], e[1]));
    const __m256 eight = _mm256_add_ps(low, high);
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

void quantize_row_avx2(const float* x, int n_cols, const QuantizedRowOut& out) {
  const __m256 zero = _mm256_setzero_ps();
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  for (int b = 0; b < n_cols / 32; ++b) {
    __m256 v[4];
    __m256 top = zero;
    __m256 check = zero;  // x * 0 is NaN for NaN and infinity, which max hides
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + b * 32 + i * 8);
      top = _mm256_max_ps(_mm256_and_ps(v[i], magnitude), top);
      check = _mm256_fmadd_ps(v[i], zero, check);
    }
    const float largest = max_lanes(top);
    const bool finite = _mm256_movemask_ps(_mm256_cmp_ps(check, check, _CMP_UNORD_Q)) == 0;
    const bool usable = finite && largest > 1e-30f;
    const float reciprocal = usable ? 1.0f / largest : 0.0f;
    const int best = usable ? best_level(v, reciprocal) : 0;
    const float d = finite ? (usable ? largest * kLevelSteps[best] : 0.0f) : kNaN;
    __m256i q[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    if (usable) {
      const __m256 inverse = _mm256_set1_ps(kLevel[best] * reciprocal);
      for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.q + b * 32), pack_codes(q));
    const int32_t s0 = sum_lanes(_mm256_add_epi32(q[0], q[1]));
    const int32_t s1 = sum_lanes(_mm256_add_epi32(q[2], q[3]));
    out.d[b] = d;
    out.neg_sum[b] = -(s0 + s1);
    out.dsum[b] = d * static_cast<float>(s0 + s1);
    out.neg_sum16[2 * b] = -s0;
    out.neg_sum16[2 * b + 1] = -s1;
    out.dsum16[2 * b] = d * static_cast<float>(s0);
    out.dsum16[2 * b + 1] = d * static_cast<float>(s1);
  }
}

void rms_norm_avx2(float* out, const float* x, const float* weight, int dim, float eps) {
  const __m256 scale = _mm256_set1_ps(inverse_rms(x, dim, eps));
  for_vectors(dim, [&](int j, auto lanes) {
    lanes.store(out + j, _mm256_mul_ps(_mm256_mul_ps(lanes.load(x + j), scale), lanes.load(weight + j)));
  });
}

void add_rms_norm_avx2(float* x, const float* branch, const float* weight, int dim, float eps) {
  const __m256 scale = _mm256_set1_ps(inverse_rms(branch, dim, eps));
  for_vectors(dim, [&](int j, auto lanes) {
    const __m256 v = _mm256_mul_ps(_mm256_mul_ps(lanes.load(branch + j), scale), lanes.load(weight + j));
    lanes.store(x + j, _mm256_add_ps(lanes.load(x + j), v));
  });
}

void norm_rope_avx2(float* x, const float* weight, const float* table, int head_dim, float eps, float scale) {
  const __m256 norm = _mm256_set1_ps(inverse_rms(x, head_dim, eps));
  const __m256 factor = _mm256_set1_ps(scale);
  const int half = head_dim / 2;
  for_vectors(half, [&](int j, auto lanes) {
    const __m256 a = _mm256_mul_ps(_mm256_mul_ps(lanes.load(x + j), norm), lanes.load(weight + j));
    const __m256 b = _mm256_mul_ps(_mm256_mul_ps(lanes.load(x + j + half), norm), lanes.load(weight + j + half));
    const __m256 c = lanes.load(table + j);
    const __m256 s = lanes.load(table + j + half);
    lanes.store(x + j, _mm256_mul_ps(_mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)), factor));
    lanes.store(x + j + half, _mm256_mul_ps(_mm256_add_ps(_mm256_mul_ps(b, c), _mm256_mul_ps(a, s)), factor));
  });
}

void geglu_avx2(float* out, const float* gate, const float* up, int dim) {
  for_vectors(dim, [&](int j, auto lanes) {
    lanes.store(out + j, _mm256_mul_ps(gelu_tanh(lanes.load(gate + j)), lanes.load(up + j)));
  });
}

void layer_norm_avx2(float* out, const float* x, const float* weight, const float* bias, int dim, float eps) {
  // Two passes over a row that stays in the nearest cache: differences to the mean are exact where squares are not.
  __m256 sum = _mm256_setzero_ps();
  for_vectors(dim, [&](int j, auto lanes) { sum = _mm256_add_ps(sum, lanes.load(x + j)); });
  const __m256 mean = _mm256_set1_ps(sum_lanes(sum) / static_cast<float>(dim));
  __m256 squares = _mm256_setzero_ps();
  for_vectors(dim, [&](int j, auto lanes) {
    const __m256 v = lanes.keep(_mm256_sub_ps(lanes.load(x + j), mean));
    squares = _mm256_fmadd_ps(v, v, squares);
  });
  const __m256 scale = _mm256_set1_ps(inverse_root(sum_lanes(squares) / static_cast<float>(dim) + eps));
  for_vectors(dim, [&](int j, auto lanes) {
    const __m256 v = _mm256_mul_ps(_mm256_sub_ps(lanes.load(x + j), mean), scale);
    lanes.store(out + j, _mm256_fmadd_ps(v, lanes.load(weight + j), lanes.load(bias + j)));
  });
}

void add_bias_avx2(float* x, const float* bias, int dim) {
  for_vectors(dim,
              [&](int j, auto lanes) { lanes.store(x + j, _mm256_add_ps(lanes.load(x + j), lanes.load(bias + j))); });
}

void bias_gelu_avx2(float* x, const float* bias, int dim) {
  for_vectors(dim, [&](int j, auto lanes) {
    lanes.store(x + j, gelu_tanh(_mm256_add_ps(lanes.load(x + j), lanes.load(bias + j))));
  });
}

void add_residual_bias_avx2(float* x, const float* branch, const float* bias, int dim) {
  for_vectors(dim, [&](int j, auto lanes) {
    const __m256 v = _mm256_add_ps(lanes.load(branch + j), lanes.load(bias + j));
    lanes.store(x + j, _mm256_add_ps(lanes.load(x + j), v));
  });
}

void store_kv_row_avx2(KvType type, const float* x, std::byte* row, int head_dim) {
  if (type == KvType::kF32) {
    std::memcpy(row, x, static_cast<size_t>(head_dim) * 4);
  } else if (type == KvType::kF16) {
    for_vectors(head_dim, [&](int j, auto lanes) {
      const __m128i halves = _mm256_cvtps_ph(lanes.load(x + j), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      const int n = head_dim - j < 8 ? head_dim - j : 8;
      std::memcpy(row + static_cast<size_t>(j) * 2, &halves, static_cast<size_t>(n) * 2);
    });
  } else {
    for (int b = 0; b < head_dim / 32; ++b, x += 32, row += kKvBlockBytes) {
      __m256 v[4];
      __m256i top = _mm256_setzero_si256();  // magnitudes as integers: NaN and infinity are larger than all numbers
      for (int i = 0; i < 4; ++i) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_castps_si256(v[i]), _mm256_set1_epi32(0x7fffffff)));
      }
      __m128i most = _mm_max_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
      most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
      most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1));
      if (_mm_cvtsi128_si32(most) >= 0x7f800000) {
        store_kv_row_ref(type, x, row, 32);
        continue;
      }
      const __m128i half = _mm_cvtps_ph(_mm_div_ss(_mm_castsi128_ps(most), _mm_set_ss(127.0f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      const float d = _mm_cvtss_f32(_mm_cvtph_ps(half));
      const __m256 inverse = _mm256_set1_ps(d > 0 ? 1.0f / d : 0.0f);
      __m256i q[4];
      for (int i = 0; i < 4; ++i) {
        q[i] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(v[i], inverse), _mm256_set1_ps(-127.0f)),
                                                _mm256_set1_ps(127.0f)));
      }
      const uint16_t scale = static_cast<uint16_t>(_mm_cvtsi128_si32(half));
      std::memcpy(row, &scale, 2);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + 2), pack_codes(q));
    }
  }
}

void merge_segments_avx2(float* acc, float* max, float* sum, const float* acc2, float max2, float sum2, int head_dim) {
  const float new_max = *max > max2 || *max != *max ? *max : max2;
  const __m256 a = Vector256::exp(_mm256_set1_ps(*max - new_max));
  const __m256 b = Vector256::exp(_mm256_set1_ps(max2 - new_max));
  for_vectors(head_dim, [&](int j, auto lanes) {
    lanes.store(acc + j, _mm256_fmadd_ps(lanes.load(acc2 + j), b, _mm256_mul_ps(lanes.load(acc + j), a)));
  });
  *sum = sum2 * _mm256_cvtss_f32(b) + *sum * _mm256_cvtss_f32(a);
  *max = new_max;
}

}  // namespace gemma::cpu

// Norms, rotation, GELU, quantisation of activations and cache rows with NEON.
#include "backend/cpu/vector_neon.h"

#include <arm_neon.h>

#include <cstring>

#include "backend/cpu/kernels_neon.h"
#include "backend/cpu/lanes_neon.h"
#include "backend/cpu/small_math.h"

namespace gemma::cpu {
namespace {

// Four values, or fewer at the end of a row.
struct Whole {
  static float32x4_t load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, float32x4_t v) { vst1q_f32(p, v); }
  static float32x4_t keep(float32x4_t v) { return v; }
};
struct Part {
  size_t bytes;
  float32x4_t load(const float* p) const {
    float lanes[4] = {};
    std::memcpy(lanes, p, bytes);
    return vld1q_f32(lanes);
  }
  void store(float* p, float32x4_t v) const {
    float lanes[4];
    vst1q_f32(lanes, v);
    std::memcpy(p, lanes, bytes);
  }
  float32x4_t keep(float32x4_t v) const {  // the others become 0
    float lanes[4] = {};
    store(lanes, v);
    return vld1q_f32(lanes);
  }
};

template <class F>
inline void for_vectors(int n, const F& f) {
  int j = 0;
  for (; j + 4 <= n; j += 4) f(j, Whole{});
  if (j < n) f(j, Part{static_cast<size_t>(n - j) * sizeof(float)});
}

inline float inverse_rms(const float* x, int dim, float eps) {
  // Sixteen partial sums, then a tree: squares of large activations stay exact enough in float.
  float32x4_t sums[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
  int j = 0;
  for (; j + 16 <= dim; j += 16) {
    for (int i = 0; i < 4; ++i) {
      const float32x4_t v = vld1q_f32(x + j + 4 * i);
      sums[i] = vfmaq_f32(sums[i], v, v);
    }
  }
  for_vectors(dim - j, [&](int i, auto lanes) {
    const float32x4_t v = lanes.load(x + j + i);
    sums[i / 4] = vfmaq_f32(sums[i / 4], v, v);
  });
  const float sum = sum_lanes(vaddq_f32(vaddq_f32(sums[0], sums[2]), vaddq_f32(sums[1], sums[3])));
  return 1.0f / square_root(sum / static_cast<float>(dim) + eps);
}

// 0.5 v (1 + tanh(y)) = v / (1 + exp(-2 y)), y = sqrt(2 / pi) (v + 0.044715 v^3)
inline float32x4_t gelu_tanh(float32x4_t v) {
  const float32x4_t cubic = vfmaq_f32(v, vmulq_f32(vmulq_f32(v, v), v), vdupq_n_f32(0.044715f));
  const float32x4_t e = Vector128::exp(vmulq_n_f32(cubic, -2.0f * 0.7978845608028654f));
  return vdivq_f32(v, vaddq_f32(vdupq_n_f32(1.0f), e));
}

// The step of a block of 32 with the least squared error (kernels.h).
inline int best_level(const float32x4_t v[8], float reciprocal) {
  float32x4_t four[kLevels];
  for (int i = 0; i < kLevels; ++i) {
    const float inverse = kLevel[i] * reciprocal;
    float32x4_t e[8];
    for (int j = 0; j < 8; ++j) {
      const float32x4_t scaled = vmulq_n_f32(v[j], inverse);
      e[j] = vsubq_f32(scaled, vrndnq_f32(scaled));
    }
    float32x4_t sums[4];
    for (int j = 0; j < 4; ++j) sums[j] = vfmaq_f32(vmulq_f32(e[j], e[j]), e[j + 4], e[j + 4]);
    four[i] = vaddq_f32(vaddq_f32(sums[0], sums[2]), vaddq_f32(sums[1], sums[3]));
  }
  float errors[kLevels];
  for (int i = 0; i < kLevels; ++i) errors[i] = sum_lanes(four[i]) * kLevelWeights[i];
  int best = 0;
  for (int i = 1; i < kLevels; ++i) {
    if (errors[i] < errors[best]) best = i;
  }
  return best;
}

}  // namespace

void quantize_row_neon(const float* x, int n_cols, const QuantizedRowOut& out) {
  for (int b = 0; b < n_cols / 32; ++b) {
    float32x4_t v[8];
    float32x4_t top = vdupq_n_f32(0);
    for (int i = 0; i < 8; ++i) {
      v[i] = vld1q_f32(x + b * 32 + i * 4);
      top = vmaxq_f32(top, vabsq_f32(v[i]));  // NaN stays NaN
    }
    const float largest = vmaxvq_f32(top);
    const bool finite = largest <= kMaxFloat;
    const bool usable = finite && largest > 1e-30f;
    const float reciprocal = usable ? 1.0f / largest : 0.0f;
    const int best = usable ? best_level(v, reciprocal) : 0;
    const float d = finite ? (usable ? largest * kLevelSteps[best] : 0.0f) : kNaN;
    const float inverse = kLevel[best] * reciprocal;
    int32_t sums[2] = {0, 0};
    for (int h = 0; h < 2; ++h) {
      int32x4_t q[4];
      for (int i = 0; i < 4; ++i) q[i] = usable ? vcvtnq_s32_f32(vmulq_n_f32(v[4 * h + i], inverse)) : vdupq_n_s32(0);
      const int16x8_t low = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
      const int16x8_t high = vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]));
      vst1q_s8(out.q + b * 32 + 16 * h, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
      sums[h] = vaddvq_s32(vaddq_s32(vaddq_s32(q[0], q[1]), vaddq_s32(q[2], q[3])));
    }
    out.d[b] = d;
    out.neg_sum[b] = -(sums[0] + sums[1]);
    out.dsum[b] = d * static_cast<float>(sums[0] + sums[1]);
    for (int h = 0; h < 2; ++h) {
      out.neg_sum16[2 * b + h] = -sums[h];
      out.dsum16[2 * b + h] = d * static_cast<float>(sums[h]);
    }
  }
}

void rms_norm_neon(float* out, const float* x, const float* weight, int dim, float eps) {
  const float scale = inverse_rms(x, dim, eps);
  for_vectors(dim, [&](int j, auto lanes) {
    lanes.store(out + j, vmulq_f32(vmulq_n_f32(lanes.load(x + j), scale), lanes.load(weight + j)));
  });
}

void add_rms_norm_neon(float* x, const float* branch, const float* weight, int dim, float eps) {
  const float scale = inverse_rms(branch, dim, eps);
  for_vectors(dim, [&](int j, auto lanes) {
    const float32x4_t v = vmulq_f32(vmulq_n_f32(lanes.load(branch + j), scale), lanes.load(weight + j));
    lanes.store(x + j, vaddq_f32(lanes.load(x + j), v));
  });
}

void norm_rope_neon(float* x, const float* weight, const float* table, int head_dim, float eps, float scale) {
  const float norm = inverse_rms(x, head_dim, eps);
  const int half = head_dim / 2;
  for_vectors(half, [&](int j, auto lanes) {
    const float32x4_t a = vmulq_f32(vmulq_n_f32(lanes.load(x + j), norm), lanes.load(weight + j));
    const float32x4_t b = vmulq_f32(vmulq_n_f32(lanes.load(x + j + half), norm), lanes.load(weight + j + half));
    const float32x4_t c = lanes.load(table + j);
    const float32x4_t s = lanes.load(table + j + half);
    lanes.store(x + j, vmulq_n_f32(vsubq_f32(vmulq_f32(a, c), vmulq_f32(b, s)), scale));
    lanes.store(x + j + half, vmulq_n_f32(vaddq_f32(vmulq_f32(b, c), vmulq_f32(a, s)), scale));
  });
}

void geglu_neon(float* out, const float* gate, const float* up, int dim) {
  for_vectors(dim, [&](int j, auto lanes) {
    lanes.store(out + j, vmulq_f32(gelu_tanh(lanes.load(gate + j)), lanes.load(up + j)));
  });
}

void layer_norm_neon(float* out, const float* x, const float* weight, const float* bias, int dim, float eps) {
  // Two passes over a row that stays in the nearest cache: differences to the mean are exact where squares are not.
  float32x4_t sums[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
  for_vectors(dim, [&](int j, auto lanes) {
    float32x4_t& sum = sums[(j / 4) % 2];
    sum = vaddq_f32(sum, lanes.load(x + j));
  });
  const float mean = sum_lanes(vaddq_f32(sums[0], sums[1])) / static_cast<float>(dim);
  float32x4_t squares[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
  for_vectors(dim, [&](int j, auto lanes) {
    const float32x4_t v = lanes.keep(vsubq_f32(lanes.load(x + j), vdupq_n_f32(mean)));
    float32x4_t& sum = squares[(j / 4) % 2];
    sum = vfmaq_f32(sum, v, v);
  });
  const float scale = 1.0f / square_root(sum_lanes(vaddq_f32(squares[0], squares[1])) / static_cast<float>(dim) + eps);
  for_vectors(dim, [&](int j, auto lanes) {
    const float32x4_t v = vmulq_n_f32(vsubq_f32(lanes.load(x + j), vdupq_n_f32(mean)), scale);
    lanes.store(out + j, vfmaq_f32(lanes.load(bias + j), v, lanes.load(weight + j)));
  });
}

void add_bias_neon(float* x, const float* bias, int dim) {
  for_vectors(dim, [&](int j, auto lanes) { lanes.store(x + j, vaddq_f32(lanes.load(x + j), lanes.load(bias + j))); });
}

void bias_gelu_neon(float* x, const float* bias, int dim) {
  for_vectors(dim, [&](int j, auto lanes) {
    lanes.store(x + j, gelu_tanh(vaddq_f32(lanes.load(x + j), lanes.load(bias + j))));
  });
}

void add_residual_bias_neon(float* x, const float* branch, const float* bias, int dim) {
  for_vectors(dim, [&](int j, auto lanes) {
    const float32x4_t v = vaddq_f32(lanes.load(branch + j), lanes.load(bias + j));
    lanes.store(x + j, vaddq_f32(lanes.load(x + j), v));
  });
}

void store_kv_row_neon(KvType type, const float* x, std::byte* row, int head_dim) {
  if (type == KvType::kF32) {
    std::memcpy(row, x, static_cast<size_t>(head_dim) * 4);
  } else if (type == KvType::kF16) {
    for_vectors(head_dim, [&](int j, auto lanes) {
      const float16x4_t halves = vcvt_f16_f32(lanes.load(x + j));
      const int n = head_dim - j < 4 ? head_dim - j : 4;
      std::memcpy(row + static_cast<size_t>(j) * 2, &halves, static_cast<size_t>(n) * 2);
    });
  } else {
    store_kv_row_ref(type, x, row, head_dim);
  }
}

void merge_segments_neon(float* acc, float* max, float* sum, const float* acc2, float max2, float sum2, int head_dim) {
  const float new_max = *max > max2 || *max != *max ? *max : max2;
  const float a = vgetq_lane_f32(Vector128::exp(vdupq_n_f32(*max - new_max)), 0);
  const float b = vgetq_lane_f32(Vector128::exp(vdupq_n_f32(max2 - new_max)), 0);
  for_vectors(head_dim, [&](int j, auto lanes) {
    lanes.store(acc + j, vfmaq_n_f32(vmulq_n_f32(lanes.load(acc + j), a), lanes.load(acc2 + j), b));
  });
  *sum = sum2 * b + *sum * a;
  *max = new_max;
}

}  // namespace gemma::cpu

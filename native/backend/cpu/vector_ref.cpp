// Norms, rotation, GELU and the quantisation of activations in plain loops. Source: Hugging Face modeling_gemma3.py
// (Gemma3RMSNorm, apply_rotary_pos_emb, gelu_pytorch_tanh); norm weights come as 1 + w from GGUF.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/kernels_ref.h"

namespace gemma::cpu {
namespace {

float inverse_rms(const float* x, int dim, float eps) {
  double sum = 0;
  for (int j = 0; j < dim; ++j) sum += static_cast<double>(x[j]) * x[j];
  return 1.0f / std::sqrt(static_cast<float>(sum / dim) + eps);
}

// Sum of (x * inverse - q)^2 over a block of 32.
float squared_error(const float* x, float inverse) {
  float partial[16] = {};
  for (int j = 0; j < 32; ++j) {
    const float scaled = x[j] * inverse;
    const float error = scaled - std::nearbyint(scaled);
    partial[j % 16] = std::fma(error, error, partial[j % 16]);
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) partial[j] += partial[j + half];
  }
  return partial[0];
}

// 0.5 v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3)))
float gelu_tanh(float v) {
  const float inner = 0.7978845608028654f * (v + 0.044715f * v * v * v);
  return 0.5f * v * (1.0f + std::tanh(inner));
}

}  // namespace

void quantize_row_ref(const float* x, int n_cols, const QuantizedRowOut& out) {
  for (int b = 0; b < n_cols / 32; ++b) {
    const float* xb = x + b * 32;
    float largest = 0;
    bool finite = true;
    for (int j = 0; j < 32; ++j) {
      largest = std::max(largest, std::fabs(xb[j]));
      finite = finite && std::isfinite(xb[j]);
    }
    // Below 1e-30 the reciprocal would overflow; such a block is zero for all that follows.
    const bool usable = finite && largest > 1e-30f;
    const float reciprocal = usable ? 1.0f / largest : 0.0f;
    int best = 0;
    float least = std::numeric_limits<float>::infinity();
    for (int i = 0; i < kLevels && usable; ++i) {
      const float error = squared_error(xb, kLevel[i] * reciprocal) * kLevelWeights[i];
      if (error < least) {
        least = error;
        best = i;
      }
    }
    const float inverse = kLevel[best] * reciprocal;
    const float d = finite ? (usable ? largest * kLevelSteps[best] : 0.0f) : std::numeric_limits<float>::quiet_NaN();
    int sums[2] = {0, 0};
    for (int j = 0; j < 32; ++j) {
      const int q = finite ? static_cast<int>(std::nearbyint(xb[j] * inverse)) : 0;
      out.q[b * 32 + j] = static_cast<int8_t>(q);
      sums[j / 16] += q;
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

void rms_norm_ref(float* out, const float* x, const float* weight, int dim, float eps) {
  const float scale = inverse_rms(x, dim, eps);
  for (int j = 0; j < dim; ++j) out[j] = x[j] * scale * weight[j];
}

void add_rms_norm_ref(float* x, const float* branch, const float* weight, int dim, float eps) {
  const float scale = inverse_rms(branch, dim, eps);
  for (int j = 0; j < dim; ++j) x[j] += branch[j] * scale * weight[j];
}

void norm_rope_ref(float* x, const float* weight, const float* table, int head_dim, float eps, float scale) {
  const float norm = inverse_rms(x, head_dim, eps);
  const int half = head_dim / 2;
  for (int j = 0; j < half; ++j) {
    const float a = x[j] * norm * weight[j];
    const float b = x[j + half] * norm * weight[j + half];
    const float c = table[j];
    const float s = table[j + half];
    x[j] = (a * c - b * s) * scale;
    x[j + half] = (b * c + a * s) * scale;
  }
}

void geglu_ref(float* out, const float* gate, const float* up, int dim) {
  for (int j = 0; j < dim; ++j) out[j] = gelu_tanh(gate[j]) * up[j];
}

void layer_norm_ref(float* out, const float* x, const float* weight, const float* bias, int dim, float eps) {
  double sum = 0;
  for (int j = 0; j < dim; ++j) sum += x[j];
  const double mean = sum / dim;
  double squares = 0;
  for (int j = 0; j < dim; ++j) squares += (x[j] - mean) * (x[j] - mean);
  const double scale = 1.0 / std::sqrt(squares / dim + eps);
  for (int j = 0; j < dim; ++j) out[j] = static_cast<float>((x[j] - mean) * scale * weight[j] + bias[j]);
}

void add_bias_ref(float* x, const float* bias, int dim) {
  for (int j = 0; j < dim; ++j) x[j] += bias[j];
}

void bias_gelu_ref(float* x, const float* bias, int dim) {
  for (int j = 0; j < dim; ++j) x[j] = gelu_tanh(x[j] + bias[j]);
}

void add_residual_bias_ref(float* x, const float* branch, const float* bias, int dim) {
  for (int j = 0; j < dim; ++j) x[j] += branch[j] + bias[j];
}

}  // namespace gemma::cpu

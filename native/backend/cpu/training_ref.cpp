// The kernels of training in plain loops.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/kernels_ref.h"
#include "quant/dequantize.h"

namespace gemma::cpu {

void multiply_panels_ref(const PanelProduct& p) {
  constexpr int kHalf = kPanelColumns / 2;
  for (int r = 0; r < p.n_rows; ++r) {
    const float* a = p.a + static_cast<size_t>(r / kPanelRows) * p.a_stride + r % kPanelRows;
    for (int j = 0; j < p.n_cols; ++j) {
      const float* b = p.b + (j < kHalf ? static_cast<size_t>(j) : p.b_half + static_cast<size_t>(j - kHalf));
      float& c = p.c[static_cast<size_t>(r) * p.c_stride + static_cast<size_t>(j)];
      float sum = p.add ? c : 0.0f;
      for (int k = 0; k < p.depth; ++k)
        sum = std::fma(a[static_cast<size_t>(k) * kPanelRows], b[static_cast<size_t>(k) * p.b_stride], sum);
      c = sum;
    }
  }
}

void load_panels_ref(const WeightRows& w, int n_cols, float* panels, size_t panel_stride, const Scratch& scratch) {
  float* row = reinterpret_cast<float*>(scratch.data);
  for (int r = w.row_begin; r < w.row_end; ++r, panels += kPanelColumns) {
    dequantize_row(w.type, w.w + static_cast<size_t>(r) * w.w_row_bytes, row, n_cols);
    for (int c = 0; c < n_cols; c += kPanelColumns)
      std::copy_n(row + c, std::min(kPanelColumns, n_cols - c),
                  panels + static_cast<size_t>(c / kPanelColumns) * panel_stride);
  }
}

float largest_ref(const float* x, int n) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int i = 0; i < n; ++i) largest = std::max(largest, x[i]);
  return largest;
}

float exp_row_ref(float* x, int n, float scale, float shift) {
  float sum = 0;
  for (int i = 0; i < n; ++i) {
    x[i] = std::exp(std::fma(x[i], scale, -shift));
    sum += x[i];
  }
  return sum;
}

void geglu_backward_ref(float* d_gate, float* d_up, const float* gate, const float* up, const float* d, int dim) {
  constexpr float kRoot = 0.7978845608028654f;
  for (int i = 0; i < dim; ++i) {
    const float v = gate[i];
    const float tanh = std::tanh(kRoot * (v + 0.044715f * v * v * v));
    const float slope = kRoot * (1 + 3 * 0.044715f * v * v);
    const float d_gelu = 0.5f * (1 + tanh) + 0.5f * v * (1 - tanh * tanh) * slope;
    d_up[i] = d[i] * 0.5f * v * (1 + tanh);
    d_gate[i] = d[i] * up[i] * d_gelu;
  }
}

}  // namespace gemma::cpu

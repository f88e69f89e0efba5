// The kernels of training with AVX-512.
#include "backend/cpu/kernels_avx512.h"
#include "backend/cpu/kernels_ref.h"
#include "backend/cpu/training_kernels.h"
#include "backend/cpu/vector_avx512.h"

namespace gemma::cpu {
namespace {

struct Lanes : Vector512 {
  static constexpr int kTileVectors = 2;  // 24 sums, two vectors of b; a comes from memory
  static constexpr int kTileRows = 12;
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
};

// 16 rows of load_panels() from columns[c][row].
void transpose(const float* columns, int n_cols, float* panels, size_t panel_stride) {
  int c = 0;
  for (; c + 16 <= n_cols; c += 16) {
    __m512 v[16];
    __m512 t[16];
    for (int i = 0; i < 16; ++i) v[i] = _mm512_loadu_ps(columns + (c + i) * 16);
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
      t[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    }
    // v[4 i + j]: lanes j, j + 4, j + 8, j + 12 of columns 4 i .. 4 i + 3.
    for (int i = 0; i < 4; ++i) {
      v[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      v[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      v[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      v[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    float* out = panels + static_cast<size_t>(c / kPanelColumns) * panel_stride + c % kPanelColumns;
    for (int j = 0; j < 4; ++j) {
      const __m512 a = _mm512_shuffle_f32x4(v[j], v[4 + j], 0x44);
      const __m512 b = _mm512_shuffle_f32x4(v[j], v[4 + j], 0xee);
      const __m512 d = _mm512_shuffle_f32x4(v[8 + j], v[12 + j], 0x44);
      const __m512 e = _mm512_shuffle_f32x4(v[8 + j], v[12 + j], 0xee);
      _mm512_storeu_ps(row_of(out, j, kPanelColumns), _mm512_shuffle_f32x4(a, d, 0x88));
      _mm512_storeu_ps(row_of(out, j + 4, kPanelColumns), _mm512_shuffle_f32x4(a, d, 0xdd));
      _mm512_storeu_ps(row_of(out, j + 8, kPanelColumns), _mm512_shuffle_f32x4(b, e, 0x88));
      _mm512_storeu_ps(row_of(out, j + 12, kPanelColumns), _mm512_shuffle_f32x4(b, e, 0xdd));
    }
  }
  for (; c < n_cols; ++c) {
    for (int lane = 0; lane < 16; ++lane)
      panels[static_cast<size_t>(c / kPanelColumns) * panel_stride +
             static_cast<size_t>(lane * kPanelColumns + c % kPanelColumns)] = columns[c * 16 + lane];
  }
}

}  // namespace

void multiply_panels_avx512(const PanelProduct& p) {
  multiply_panels_of<Lanes>(p);
}

float largest_avx512(const float* x, int n) {
  return largest_of<Lanes>(x, n);
}

float exp_row_avx512(float* x, int n, float scale, float shift) {
  return exp_row_of<Lanes>(x, n, scale, shift);
}

void geglu_backward_avx512(float* d_gate, float* d_up, const float* gate, const float* up, const float* d, int dim) {
  geglu_backward_of<Lanes>(d_gate, d_up, gate, up, d, dim);
}

void load_panels_avx512(const WeightRows& w, int n_cols, float* panels, size_t panel_stride, const Scratch& scratch) {
  constexpr size_t kColumnBytes = sizeof(float) * 16 * kMostRowColumns;
  static_assert(kColumnBytes < kScratchBytes);
  float* columns = reinterpret_cast<float*>(scratch.data);
  WeightRows part = w;
  for (; part.row_begin + 16 <= w.row_end; part.row_begin += 16) {
    part.row_end = part.row_begin + 16;
    load_columns_avx512(part, n_cols, columns, {scratch.data + kColumnBytes, scratch.bytes - kColumnBytes});
    transpose(columns, n_cols, panels, panel_stride);
    panels += 16 * kPanelColumns;
  }
  part.row_end = w.row_end;
  load_panels_ref(part, n_cols, panels, panel_stride, scratch);
}

}  // namespace gemma::cpu

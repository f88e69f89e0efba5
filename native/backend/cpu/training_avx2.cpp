// The kernels of training with AVX2.
#include "backend/cpu/kernels_avx2.h"
#include "backend/cpu/training_kernels.h"
#include "backend/cpu/vector_avx2.h"

namespace gemma::cpu {
namespace {

struct Lanes : Vector256 {
  static constexpr int kTileVectors = 2;  // 12 sums, two vectors of b, one of a
  static constexpr int kTileRows = 6;
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
};

}  // namespace

void multiply_panels_avx2(const PanelProduct& p) {
  multiply_panels_of<Lanes>(p);
}

float largest_avx2(const float* x, int n) {
  return largest_of<Lanes>(x, n);
}

float exp_row_avx2(float* x, int n, float scale, float shift) {
  return exp_row_of<Lanes>(x, n, scale, shift);
}

void geglu_backward_avx2(float* d_gate, float* d_up, const float* gate, const float* up, const float* d, int dim) {
  geglu_backward_of<Lanes>(d_gate, d_up, gate, up, d, dim);
}

}  // namespace gemma::cpu

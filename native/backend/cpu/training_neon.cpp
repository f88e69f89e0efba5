// The kernels of training with NEON.
#include "backend/cpu/kernels_neon.h"
#include "backend/cpu/training_kernels.h"
#include "backend/cpu/vector_neon.h"

namespace gemma::cpu {
namespace {

struct Lanes : Vector128 {
  static constexpr int kTileVectors = 2;  // 24 sums, two vectors of b, three of a
  static constexpr int kTileRows = 12;
  static Float div(Float a, Float b) { return vdivq_f32(a, b); }
};

}  // namespace

void multiply_panels_neon(const PanelProduct& p) {
  multiply_panels_of<Lanes>(p);
}

float largest_neon(const float* x, int n) {
  return largest_of<Lanes>(x, n);
}

float exp_row_neon(float* x, int n, float scale, float shift) {
  return exp_row_of<Lanes>(x, n, scale, shift);
}

void geglu_backward_neon(float* d_gate, float* d_up, const float* gate, const float* up, const float* d, int dim) {
  geglu_backward_of<Lanes>(d_gate, d_up, gate, up, d, dim);
}

}  // namespace gemma::cpu

// Matrix products in plain loops, the definition of what every other kernel computes (see kernels.h for the order of
// arithmetic). Kept forever.
#include <cmath>
#include <cstring>

#include "backend/cpu/kernels_ref.h"
#include "base/half.h"
#include "quant/dequantize.h"

namespace gemma::cpu {

void gemm_quantized_ref(const WeightRows& w, const QuantizedRows& x, float* out, size_t out_stride,
                        const Scratch& /*scratch*/) {
  const CanonicalTraits traits = canonical_traits(w.type);
  const int n_blocks = x.n_cols / 32;
  for (int n = w.row_begin; n < w.row_end; ++n) {
    const std::byte* row = w.w + static_cast<size_t>(n) * w.w_row_bytes;
    for (int r = 0; r < x.n_rows; ++r) out[static_cast<size_t>(r) * out_stride + static_cast<size_t>(n)] = 0;
    for (int b = 0; b < n_blocks; ++b) {
      Block32 block;
      unpack_block32(w.type, row, b, &block);
      for (int r = 0; r < x.n_rows; ++r) {
        const size_t i = static_cast<size_t>(r) * static_cast<size_t>(n_blocks) + static_cast<size_t>(b);
        const int8_t* q = x.q + i * 32;
        int32_t dot[2] = {0, 0};
        for (int j = 0; j < 32; ++j) dot[j / 16] += (block.u[j] - traits.offset) * q[j];
        float& acc = out[static_cast<size_t>(r) * out_stride + static_cast<size_t>(n)];
        if (traits.halves) {
          for (int h = 0; h < 2; ++h) {
            acc = std::fma(static_cast<float>(dot[h]), block.d[h] * x.d[i], acc);
            if (traits.has_min) acc = std::fma(block.m[h], x.dsum16[2 * i + static_cast<size_t>(h)], acc);
          }
        } else {
          acc = std::fma(static_cast<float>(dot[0] + dot[1]), block.d[0] * x.d[i], acc);
          if (traits.has_min) acc = std::fma(block.m[0], x.dsum[i], acc);
        }
      }
    }
  }
}

void gemm_float_ref(const WeightRows& w, const float* x, int n_x, int n_cols, float* out, size_t out_stride,
                    const Scratch& /*scratch*/) {
  for (int n = w.row_begin; n < w.row_end; ++n) {
    const std::byte* row = w.w + static_cast<size_t>(n) * w.w_row_bytes;
    for (int r = 0; r < n_x; ++r) {
      const float* xr = x + static_cast<size_t>(r) * static_cast<size_t>(n_cols);
      float partial[16] = {};
      for (int j = 0; j < n_cols; ++j) {
        float value = 0;
        if (w.type == TensorType::kF32) {
          std::memcpy(&value, row + static_cast<size_t>(j) * 4, 4);
        } else {
          uint16_t half = 0;
          std::memcpy(&half, row + static_cast<size_t>(j) * 2, 2);
          value = w.type == TensorType::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
        }
        partial[j % 16] = std::fma(value, xr[j], partial[j % 16]);
      }
      for (int half = 8; half > 0; half /= 2) {
        for (int j = 0; j < half; ++j) partial[j] += partial[j + half];
      }
      out[static_cast<size_t>(r) * out_stride + static_cast<size_t>(n)] = partial[0];
    }
  }
}

void add_low_rank_ref(const LowRankRows& a, int col_begin, int col_end) {
  for (int r = 0; r < a.n_rows; ++r) {
    const float* t = a.t + static_cast<size_t>(r) * static_cast<size_t>(a.rank);
    for (int column = col_begin; column < col_end; ++column) {
      const size_t j = static_cast<size_t>(column);
      float acc = a.bias != nullptr ? a.bias[j] : 0.0f;
      for (int k = 0; k < a.rank; ++k) {
        float value = 0;
        dequantize_row(a.type, a.b + static_cast<size_t>(k) * a.b_row_bytes + row_bytes(a.type, column), &value, 1);
        acc = std::fma(t[k], value, acc);
      }
      float& out = a.out[static_cast<size_t>(r) * a.out_stride + j];
      out = std::fma(a.scale, acc, out);
      if (a.norms == nullptr) continue;
      const auto norm = [&](size_t which) { return a.norms[which * a.norms_stride + j]; };
      out *= norm(0) / std::sqrt(std::fma(a.scale, std::fma(a.scale, norm(3), norm(2)), norm(1)));
    }
  }
}

}  // namespace gemma::cpu

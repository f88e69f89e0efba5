// Operations on rows of floats: norms, rotation, activations, the quantisation of activations, rows of the embedding.
#pragma once

#include "backend/gpu/blocks.h"

namespace gemma::gpu::GPU_CHIP_NAMESPACE {

// The sum over all threads of the block; part is shared memory of its own for each call.
template <class T>
GPU_FUNCTION T block_sum(T v, T* part) {
  v = warp_sum(v);
  if (thread_index() % kLanes == 0) part[thread_index() / kLanes] = v;
  block_barrier();
  T sum = 0;
  GPU_UNROLL
  for (int i = 0; i < kWarps; ++i) sum += part[i];
  return sum;
}

// 0.5 v (1 + tanh(sqrt(2 / pi) (v + 0.044715 v^3)))
GPU_FUNCTION float gelu_tanh(float v) {
  const float inner = 0.7978845608028654f * (v + 0.044715f * v * v * v);
  return 0.5f * v * (1.0f + tanhf(inner));
}

// Block number at of out from 32 values, aligned to 16 bytes. The step is the one with the least squared error of
// largest / 127, / 126, / 125 and / 124; errors are summed as kernels.h of the CPU says, so all backends choose alike.
GPU_FUNCTION void quantize_block(const QuantizedOut& out, size_t at, const float* values_of_block) {
  const float4* x = reinterpret_cast<const float4*>(values_of_block);
  float values[32];
  float largest = 0;
  float not_finite = 0;
  GPU_UNROLL
  for (int i = 0; i < 8; ++i) {
    const float4 four = x[i];
    values[4 * i] = four.x, values[4 * i + 1] = four.y, values[4 * i + 2] = four.z, values[4 * i + 3] = four.w;
  }
  GPU_UNROLL
  for (int j = 0; j < 32; ++j) {
    largest = fmaxf(largest, fabsf(values[j]));
    not_finite += values[j] * 0.0f;
  }
  // Below 1e-30 the reciprocal would overflow; such a block is zero for all that follows.
  const bool finite = not_finite == 0.0f;
  const bool usable = finite && largest > 1e-30f;
  const float reciprocal = usable ? 1.0f / largest : 0.0f;
  float best_level = 127.0f;
  float best_step = 1.0f / 127;
  float least = INFINITY;
  GPU_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float level = static_cast<float>(127 - i);
    const float inverse = level * reciprocal;
    float partial[16];
    GPU_UNROLL
    for (int j = 0; j < 16; ++j) {
      const float first = values[j] * inverse - rintf(values[j] * inverse);
      const float second = values[j + 16] * inverse - rintf(values[j + 16] * inverse);
      partial[j] = fmaf(second, second, fmaf(first, first, 0.0f));
    }
    GPU_UNROLL
    for (int step = 0; step < 4; ++step) {
      GPU_UNROLL
      for (int j = 0; j < 8; ++j) {
        if (j < 8 >> step) partial[j] += partial[j + (8 >> step)];
      }
    }
    const float error = partial[0] * (1.0f / (level * level));
    if (error < least) {
      least = error;
      best_level = level;
      best_step = 1.0f / level;
    }
  }
  const float inverse = best_level * reciprocal;
  const float d = finite ? (usable ? largest * best_step : 0.0f) : NAN;
  int sums[2] = {0, 0};
  unsigned words[8];
  GPU_UNROLL
  for (int w = 0; w < 8; ++w) {
    words[w] = 0;
    GPU_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int q = usable ? static_cast<int>(rintf(values[4 * w + i] * inverse)) : 0;
      sums[w / 4] += q;
      words[w] |= (static_cast<unsigned>(q) & 255u) << (8 * i);
    }
  }
  uint4* codes = reinterpret_cast<uint4*>(out.q) + 2 * at;
  codes[0] = {words[0], words[1], words[2], words[3]};
  codes[1] = {words[4], words[5], words[6], words[7]};
  out.d[at] = d;
  out.sums[at] = d * static_cast<float>(sums[0] + sums[1]);
  out.half_sums[2 * at] = d * static_cast<float>(sums[0]);
  out.half_sums[2 * at + 1] = d * static_cast<float>(sums[1]);
}

// Row number row of a matrix [., dim], which the threads of the block have written, where its blocks are wanted too: a
// thread for each block. dim is a multiple of 32 then.
GPU_FUNCTION void quantize_row(const QuantizedOut& out, const float* values, int row, int dim) {
  if (out.q == nullptr) return;
  block_barrier();
  const int n_blocks = dim / 32;
  GPU_ROLLED
  for (int b = thread_index(); b < n_blocks; b += kThreads) {
    quantize_block(out, static_cast<size_t>(row) * static_cast<size_t>(n_blocks) + static_cast<size_t>(b),
                   values + 32 * b);
  }
}

// A block for each row.
GPU_KERNEL(rms_norm)(const NormArguments a) {
  GPU_SHARED(float, part, [kWarps]);
  const size_t offset = static_cast<size_t>(block_x()) * static_cast<size_t>(a.dim);
  const float* x = a.x + offset;
  float* out = a.out + offset;
  float squares = 0;
  for (int j = thread_index(); j < a.dim; j += kThreads) squares = fmaf(x[j], x[j], squares);
  const float scale = 1.0f / sqrtf(block_sum(squares, part) / static_cast<float>(a.dim) + a.eps);
  for (int j = thread_index(); j < a.dim; j += kThreads) {
    const float value = x[j] * scale * a.weight[j];
    out[j] = a.add != 0 ? out[j] + value : value;
  }
  quantize_row(a.quantized, out, block_x(), a.dim);
}

GPU_KERNEL(layer_norm)(const NormArguments a) {
  GPU_SHARED(float, part, [2][kWarps]);
  const size_t offset = static_cast<size_t>(block_x()) * static_cast<size_t>(a.dim);
  const float* x = a.x + offset;
  float* out = a.out + offset;
  float sum = 0;
  for (int j = thread_index(); j < a.dim; j += kThreads) sum += x[j];
  const float mean = block_sum(sum, part[0]) / static_cast<float>(a.dim);
  float squares = 0;
  for (int j = thread_index(); j < a.dim; j += kThreads) squares = fmaf(x[j] - mean, x[j] - mean, squares);
  const float scale = 1.0f / sqrtf(block_sum(squares, part[1]) / static_cast<float>(a.dim) + a.eps);
  for (int j = thread_index(); j < a.dim; j += kThreads) out[j] = (x[j] - mean) * scale * a.weight[j] + a.bias[j];
  quantize_row(a.quantized, out, block_x(), a.dim);
}

// A warp for each head of each row. A lane has pairs (j, j + head_dim / 2) from beginning to end: in place is safe.
GPU_KERNEL(norm_rope)(const NormRopeArguments a) {
  const int lane = thread_index() % kLanes;
  const int item = block_x() * kWarps + thread_index() / kLanes;
  const bool used = item < a.n * a.n_heads;
  const int half = a.head_dim / 2;
  const size_t row = static_cast<size_t>(used ? item : 0);
  float* x = a.x + row * static_cast<size_t>(a.head_dim);
  const float* table = a.table + row / static_cast<size_t>(a.n_heads) * static_cast<size_t>(a.head_dim);
  float squares = 0;
  for (int j = lane; j < half && used; j += kLanes) squares = fmaf(x[j], x[j], fmaf(x[j + half], x[j + half], squares));
  const float norm = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(a.head_dim) + a.eps);
  for (int j = lane; j < half && used; j += kLanes) {
    const float first = x[j] * norm * a.weight[j];
    const float second = x[j + half] * norm * a.weight[j + half];
    const float c = table[j];
    const float s = table[j + half];
    x[j] = (first * c - second * s) * a.scale;
    x[j + half] = (second * c + first * s) * a.scale;
  }
}

GPU_KERNEL(elementwise)(const ElementwiseArguments a) {
  constexpr int kValues = kThreads * kElementwise;  // of a block
  for (int i = 0; i < kElementwise; ++i) {
    const uint64_t at =
        static_cast<uint64_t>(block_x()) * kValues + static_cast<uint64_t>(i * kThreads + thread_index());
    if (at >= a.n) break;
    const float x = a.x[at];
    float out = 0;
    switch (a.operation) {
      case Elementwise::kGeglu: out = gelu_tanh(x) * a.a[at]; break;
      case Elementwise::kAddBias: out = x + a.bias[at % static_cast<uint64_t>(a.dim)]; break;
      case Elementwise::kBiasGelu: out = gelu_tanh(x + a.bias[at % static_cast<uint64_t>(a.dim)]); break;
      case Elementwise::kAddResidualBias: out = x + (a.a[at] + a.bias[at % static_cast<uint64_t>(a.dim)]); break;
      case Elementwise::kSoftcap: out = a.cap * tanhf(x / a.cap); break;
    }
    a.out[at] = out;
  }
  if (a.quantized.q == nullptr) return;
  block_barrier();
  // As many blocks of 32 as the threads have written together.
  const uint64_t b = static_cast<uint64_t>(block_x()) * (kValues / 32) + static_cast<uint64_t>(thread_index());
  if (thread_index() < kValues / 32 && 32 * b < a.n) quantize_block(a.quantized, b, a.out + 32 * b);
}

// A block for each row. Angles are float32 products, as the reference's.
GPU_KERNEL(rope_table)(const RopeTableArguments a) {
  const int half = a.head_dim / 2;
  float* row = a.table + static_cast<size_t>(block_x()) * static_cast<size_t>(a.head_dim);
  const float position = static_cast<float>(a.positions[block_x()]);
  for (int j = thread_index(); j < half; j += kThreads) {
    const float angle = position * a.inv_freq[j];
    row[j] = cosf(angle);
    row[j + half] = sinf(angle);
  }
}

constexpr int kValuesPerThread = 8;

// Parts of kThreads * kValuesPerThread values of each row. Bits move, not numbers: a page of the cache is such a row.
GPU_KERNEL(gather_rows)(const GatherArguments a) {
  const size_t dim = static_cast<size_t>(a.dim);
  const uint32_t* x = reinterpret_cast<const uint32_t*>(a.x) + static_cast<size_t>(a.rows[block_y()]) * dim;
  uint32_t* out = reinterpret_cast<uint32_t*>(a.out) + static_cast<size_t>(block_y()) * dim;
  for (int i = 0; i < kValuesPerThread; ++i) {
    const size_t j = (static_cast<size_t>(block_x()) * kValuesPerThread + static_cast<size_t>(i)) * kThreads +
                     static_cast<size_t>(thread_index());
    if (j < dim) out[j] = x[j];
  }
}

GPU_FUNCTION float byte_of(const Block& block, int j) {
  return static_cast<float>(static_cast<int8_t>(static_cast<unsigned>(block.q[j / 4]) >> (8 * (j % 4)) & 255u));
}

// Values of block b of a row of any type; n of the 32 exist.
GPU_FUNCTION void load_values(const Matrix& matrix, const void* weight, int row, int b, int n, float* values) {
  if (weight != nullptr) {
    const size_t first = static_cast<size_t>(row) * static_cast<size_t>(matrix.n_in) + static_cast<size_t>(32 * b);
    GPU_UNROLL
    for (int j = 0; j < 32; ++j) {
      if (j < n) values[j] = load_float(matrix.type, weight, first + static_cast<size_t>(j));
    }
    return;
  }
  for_type(matrix.type, [&](auto tag) {
    constexpr PlaneLayout kLayout = plane_layout(decltype(tag)::value);
    const Block block = load_block<decltype(tag)::value>(matrix, row, b);
    GPU_UNROLL
    for (int j = 0; j < 32; ++j) {
      values[j] = block.d[j / 16] * byte_of(block, j);
      if constexpr (kLayout.has_min) values[j] += block.m[j / 16];
    }
  });
}

// A thread for each 32 values.
GPU_KERNEL(embed)(const EmbedArguments a) {
  const int n_blocks = (a.matrix.n_in + 31) / 32;
  const int b = block_x() * kThreads + thread_index();
  if (b >= n_blocks) return;
  const int n = a.matrix.n_in - 32 * b < 32 ? a.matrix.n_in - 32 * b : 32;
  float values[32];
  load_values(a.matrix, a.weight, a.tokens[block_y()], b, n, values);
  float* out =
      a.out + static_cast<size_t>(block_y()) * static_cast<size_t>(a.matrix.n_in) + static_cast<size_t>(32 * b);
  GPU_UNROLL
  for (int j = 0; j < 32; ++j) {
    if (j < n) out[j] = values[j] * a.scale;
  }
}

// quantize_row_q8_0 (quant/dequantize.h): the step is rounded to half first. Values that are not finite: a block of
// NaN.
GPU_KERNEL_WITH_REGISTERS(requantize)(const RequantizeArguments a) {
  const int n_blocks = a.n_in / 32;
  const int b = block_x() * kThreads + thread_index();
  const int row = block_y();
  if (b >= n_blocks) return;
  float values[32] = {};
  const int rest = row < a.matrix.n_out ? a.matrix.n_in - 32 * b : 0;
  if (rest > 0) load_values(a.matrix, a.weight, row, b, rest < 32 ? rest : 32, values);
  float largest = 0;
  float not_finite = 0;
  for (int j = 0; j < 32; ++j) {
    largest = fmaxf(largest, fabsf(values[j]));
    not_finite += values[j] * 0.0f;
  }
  const uint16_t half = float_to_half(largest / 127.0f + not_finite);
  const float d = half_to_float(half);
  const size_t at = static_cast<size_t>(row) * static_cast<size_t>(n_blocks) + static_cast<size_t>(b);
  a.tail[at] = half;
  const bool usable = d > 0 && d < INFINITY;
  const float levels = usable ? 1.0f / d : 0.0f;
  for (int j = 0; j < 32; ++j) {
    const float code = usable ? fminf(fmaxf(rintf(values[j] * levels), -127.0f), 127.0f) : 0.0f;
    a.low[at * 32 + static_cast<size_t>(j)] = static_cast<int8_t>(code);
  }
}

// A thread for each block of 32.
GPU_KERNEL(quantize_rows)(const QuantizeArguments a) {
  const int b = block_x() * kThreads + thread_index();
  if (b >= a.n_blocks) return;
  quantize_block(a.out, static_cast<size_t>(b), a.x + static_cast<size_t>(b) * 32);
}

}  // namespace gemma::gpu::GPU_CHIP_NAMESPACE

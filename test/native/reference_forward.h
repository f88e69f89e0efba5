// The decoder as its paper describes it and nothing more: float32 values, one position after the other, one loop inside
// the other, no cache, no batch, no threads, no backend. It is slow and stays so: it is what the engine is held against
// wherever no golden data exists, and the text in which to read what Gemma 3 computes.
// Source: Gemma 3 report; transformers' modeling_gemma3.py for the order of operations.
#pragma once

#include <span>
#include <vector>

#include "model/config.h"
#include "model/tensor_source.h"

namespace gemma::test {

// An image's embeddings in place of the tokens from first_position on.
struct ReferenceImage {
  int first_position = 0;
  std::vector<float> rows;  // [n, model_dim], as the encoder makes them
};

// Logits [n_tokens, n_vocab] of a sequence that begins at position 0. Sums are in float64, everything else is rounded to
// float32. Ids of tokens where images stand do not matter.
std::vector<float> reference_logits(const ModelConfig& config, const TensorSource& tensors,
                                    std::span<const int32_t> tokens, std::span<const ReferenceImage> images = {});

}  // namespace gemma::test

// Attention of whole sequences and its gradient. Probabilities are computed for some rows at a time, again in the
// backward pass from the logarithm of their sum, so no array of rows times rows exists.
// Source: FlashAttention-2 (Dao 2023) for the backward pass from log sums.
#pragma once

#include <cstddef>
#include <span>

#include "train/products.h"
#include "train/row_layout.h"

namespace gemma::train {

struct AttentionShape {
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;

  size_t q_dim() const { return static_cast<size_t>(n_heads) * static_cast<size_t>(head_dim); }
  size_t kv_dim() const { return static_cast<size_t>(n_kv_heads) * static_cast<size_t>(head_dim); }
};

class Attention {
 public:
  explicit Attention(Products& products) : products_(products) {}

  // Floats of working memory for each thread, for sequences of up to n rows.
  static size_t workspace_floats(int longest, int head_dim);
  void set_workspace(float* workspace, size_t floats_per_thread) {
    workspace_ = workspace;
    thread_floats_ = floats_per_thread;
  }

  // q: [n, q_dim], rotated and scaled; k, v: [n, kv_dim]; out: [n, q_dim]; log_sums: [n, n_heads].
  void forward(const AttentionShape& shape, const RowLayout& rows, std::span<const RowSpan> spans, const float* q,
               const float* k, const float* v, float* out, float* log_sums);
  // From d_out the gradients d_q, d_k, d_v. parts: 2 * n * q_dim floats of working memory. d_q may be d_out.
  void backward(const AttentionShape& shape, const RowLayout& rows, std::span<const RowSpan> spans, const float* q,
                const float* k, const float* v, const float* out, const float* log_sums, const float* d_out, float* d_q,
                float* d_k, float* d_v, float* parts);

 private:
  // Some rows of one head of one sequence, and the keys that they see together.
  struct Block {
    int first = 0;
    int n = 0;
    int key_begin = 0;
    int key_end = 0;

    int n_keys() const { return key_end - key_begin; }
  };
  static Block block_of(std::span<const RowSpan> spans, int first, int n);
  float* workspace(int thread) const { return workspace_ + static_cast<size_t>(thread) * thread_floats_; }

  Products& products_;
  float* workspace_ = nullptr;
  size_t thread_floats_ = 0;
};

}  // namespace gemma::train

#include "train/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace gemma::train {
namespace {

constexpr int kBlockRows = 8 * cpu::kPanelRows;

size_t score_stride(int n_keys) {
  return static_cast<size_t>(n_keys) + kReadAhead;
}

// The working memory of a thread.
struct Parts {
  float* queries;    // packed block of q, or of d_out
  float* scores;     // [kBlockRows, score_stride]
  float* gradients;  // likewise
  float* packed;     // scores as the left side of a product, also transposed
};

size_t query_floats(int head_dim) {
  return packed_floats(kBlockRows, static_cast<size_t>(head_dim));
}

Parts parts_of(float* workspace, int longest, int head_dim) {
  Parts parts;
  parts.queries = workspace;
  parts.scores = parts.queries + query_floats(head_dim);
  parts.gradients = parts.scores + kBlockRows * score_stride(longest);
  parts.packed = parts.gradients + kBlockRows * score_stride(longest);
  return parts;
}

RightSide floats(const FloatView& view) {
  RightSide b;
  b.floats = view;
  return b;
}

}  // namespace

size_t Attention::workspace_floats(int longest, int head_dim) {
  const size_t packed = packed_floats(static_cast<size_t>(longest) + cpu::kPanelRows, kBlockRows);
  return (query_floats(head_dim) + 2 * kBlockRows * score_stride(longest) + packed + 15) / 16 * 16;
}

Attention::Block Attention::block_of(std::span<const RowSpan> spans, int first, int n) {
  Block block{first, n, spans[static_cast<size_t>(first)].begin, spans[static_cast<size_t>(first)].end};
  for (int i = first; i < first + n; ++i) {
    block.key_begin = std::min(block.key_begin, spans[static_cast<size_t>(i)].begin);
    block.key_end = std::max(block.key_end, spans[static_cast<size_t>(i)].end);
  }
  return block;
}

void Attention::forward(const AttentionShape& shape, const RowLayout& rows, std::span<const RowSpan> spans,
                        const float* q, const float* k, const float* v, float* out, float* log_sums) {
  const size_t q_dim = shape.q_dim();
  const size_t kv_dim = shape.kv_dim();
  const int dim = shape.head_dim;
  const int longest = rows.longest();
  const cpu::Kernels& kernels = products_.kernels();
  std::vector<Block> blocks;
  for (const RowLayout::Sequence& sequence : rows.sequences) {
    for (int i = 0; i < sequence.n; i += kBlockRows)
      blocks.push_back(block_of(spans, sequence.first + i, std::min(kBlockRows, sequence.n - i)));
  }
  const int n_blocks = static_cast<int>(blocks.size());
  products_.pool().parallel_for(n_blocks * shape.n_heads, [&](int chunk, int thread) {
    const Block& block = blocks[static_cast<size_t>(chunk % n_blocks)];
    const int head = chunk / n_blocks;
    const Parts parts = parts_of(workspace(thread), longest, dim);
    const size_t at = static_cast<size_t>(head) * static_cast<size_t>(dim);
    const size_t kv_at = static_cast<size_t>(head / (shape.n_heads / shape.n_kv_heads)) * static_cast<size_t>(dim);
    const size_t stride = score_stride(block.n_keys());
    const size_t first_key = static_cast<size_t>(block.key_begin);

    pack_rows({q + at, q_dim}, block.first, block.n, dim, 1, parts.queries);
    const Term score = {{parts.queries, static_cast<size_t>(dim) * cpu::kPanelRows},
                        dim,
                        floats(FloatView{k + first_key * kv_dim + kv_at, kv_dim}.transposed())};
    products_.multiply_alone(thread, {&score, 1}, block.n, block.n_keys(), parts.scores, stride, false);
    for (int i = 0; i < block.n; ++i) {
      const RowSpan& span = spans[static_cast<size_t>(block.first + i)];
      float* row = parts.scores + static_cast<size_t>(i) * stride;
      float* seen = row + (span.begin - block.key_begin);
      const int n_seen = span.end - span.begin;
      const float most = kernels.largest(seen, n_seen);
      const float sum = kernels.exp_row(seen, n_seen, 1, most);
      for (int j = 0; j < n_seen; ++j) seen[j] /= sum;
      std::fill(row, seen, 0.0f);
      std::fill(seen + n_seen, row + block.n_keys(), 0.0f);
      log_sums[static_cast<size_t>(block.first + i) * static_cast<size_t>(shape.n_heads) + static_cast<size_t>(head)] =
          most + std::log(sum);
    }
    pack_rows({parts.scores, stride}, 0, block.n, block.n_keys(), 1, parts.packed);
    const Term value = {{parts.packed, static_cast<size_t>(block.n_keys()) * cpu::kPanelRows},
                        block.n_keys(),
                        floats({v + first_key * kv_dim + kv_at, kv_dim})};
    products_.multiply_alone(thread, {&value, 1}, block.n, dim, out + static_cast<size_t>(block.first) * q_dim + at,
                             q_dim, false);
  });
}

void Attention::backward(const AttentionShape& shape, const RowLayout& rows, std::span<const RowSpan> spans,
                         const float* q, const float* k, const float* v, const float* out, const float* log_sums,
                         const float* d_out, float* d_q, float* d_k, float* d_v, float* parts_of_heads) {
  const size_t q_dim = shape.q_dim();
  const size_t kv_dim = shape.kv_dim();
  const size_t n_rows = static_cast<size_t>(rows.n());
  const int dim = shape.head_dim;
  const int group = shape.n_heads / shape.n_kv_heads;
  const int longest = rows.longest();
  const cpu::Kernels& kernels = products_.kernels();
  // What each head of queries adds to the gradients of its keys and values.
  float* k_parts = parts_of_heads;
  float* v_parts = k_parts + n_rows * q_dim;
  const int n_sequences = static_cast<int>(rows.sequences.size());
  products_.pool().parallel_for(n_sequences * shape.n_heads, [&](int chunk, int thread) {
    const RowLayout::Sequence& sequence = rows.sequences[static_cast<size_t>(chunk % n_sequences)];
    const int head = chunk / n_sequences;
    const Parts parts = parts_of(workspace(thread), longest, dim);
    const size_t at = static_cast<size_t>(head) * static_cast<size_t>(dim);
    const size_t kv_at = static_cast<size_t>(head / group) * static_cast<size_t>(dim);
    const Packed queries = {parts.queries, static_cast<size_t>(dim) * cpu::kPanelRows};
    for (int i = 0; i < sequence.n; ++i) {
      const size_t row = static_cast<size_t>(sequence.first + i) * q_dim + at;
      std::fill_n(k_parts + row, dim, 0.0f);
      std::fill_n(v_parts + row, dim, 0.0f);
    }
    for (int first = 0; first < sequence.n; first += kBlockRows) {
      const Block block = block_of(spans, sequence.first + first, std::min(kBlockRows, sequence.n - first));
      const int n_keys = block.n_keys();
      const size_t stride = score_stride(n_keys);
      const size_t first_key = static_cast<size_t>(block.key_begin);
      const size_t first_row = static_cast<size_t>(block.first) * q_dim + at;
      const FloatView keys = {k + first_key * kv_dim + kv_at, kv_dim};
      const FloatView values = {v + first_key * kv_dim + kv_at, kv_dim};

      pack_rows({q + at, q_dim}, block.first, block.n, dim, 1, parts.queries);
      const Term score = {queries, dim, floats(keys.transposed())};
      products_.multiply_alone(thread, {&score, 1}, block.n, n_keys, parts.scores, stride, false);
      pack_rows({d_out + at, q_dim}, block.first, block.n, dim, 1, parts.queries);
      const Term gradient = {queries, dim, floats(values.transposed())};
      products_.multiply_alone(thread, {&gradient, 1}, block.n, n_keys, parts.gradients, stride, false);
      for (int i = 0; i < block.n; ++i) {
        const size_t row = static_cast<size_t>(block.first + i);
        const RowSpan& span = spans[row];
        float* p = parts.scores + static_cast<size_t>(i) * stride;
        float* d = parts.gradients + static_cast<size_t>(i) * stride;
        const int begin = span.begin - block.key_begin;
        const int end = span.end - block.key_begin;
        kernels.exp_row(p + begin, end - begin, 1,
                        log_sums[row * static_cast<size_t>(shape.n_heads) + static_cast<size_t>(head)]);
        std::fill(p, p + begin, 0.0f);
        std::fill(p + end, p + n_keys, 0.0f);
        double product = 0;  // of the row of out with its gradient: what the softmax takes away
        for (size_t j = row * q_dim + at; j < row * q_dim + at + static_cast<size_t>(dim); ++j)
          product += static_cast<double>(out[j]) * static_cast<double>(d_out[j]);
        const float away = static_cast<float>(product);
        std::fill(d, d + begin, 0.0f);
        std::fill(d + end, d + n_keys, 0.0f);
        for (int j = begin; j < end; ++j) d[j] = p[j] * (d[j] - away);
      }
      // d_v += p^T d_out, d_k += d^T q, d_q = d k.
      const size_t transposed_stride = static_cast<size_t>(block.n) * cpu::kPanelRows;
      const size_t key_row = first_key * q_dim + at;
      pack_rows(FloatView{parts.scores, stride}.transposed(), 0, n_keys, block.n, 1, parts.packed);
      const Term to_values = {{parts.packed, transposed_stride}, block.n, floats({d_out + first_row, q_dim})};
      products_.multiply_alone(thread, {&to_values, 1}, n_keys, dim, v_parts + key_row, q_dim, true);
      pack_rows(FloatView{parts.gradients, stride}.transposed(), 0, n_keys, block.n, 1, parts.packed);
      const Term to_keys = {{parts.packed, transposed_stride}, block.n, floats({q + first_row, q_dim})};
      products_.multiply_alone(thread, {&to_keys, 1}, n_keys, dim, k_parts + key_row, q_dim, true);
      pack_rows({parts.gradients, stride}, 0, block.n, n_keys, 1, parts.packed);
      const Term to_queries = {{parts.packed, static_cast<size_t>(n_keys) * cpu::kPanelRows}, n_keys, floats(keys)};
      products_.multiply_alone(thread, {&to_queries, 1}, block.n, dim, d_q + first_row, q_dim, false);
    }
  });
  constexpr int kChunk = 16;
  products_.pool().parallel_for((rows.n() + kChunk - 1) / kChunk, [&](int chunk, int) {
    for (size_t i = static_cast<size_t>(chunk) * kChunk; i < std::min(n_rows, static_cast<size_t>(chunk + 1) * kChunk);
         ++i) {
      for (size_t kv_head = 0; kv_head < static_cast<size_t>(shape.n_kv_heads); ++kv_head) {
        for (size_t j = 0; j < static_cast<size_t>(dim); ++j) {
          float to_key = 0;
          float to_value = 0;
          for (size_t h = 0; h < static_cast<size_t>(group); ++h) {
            const size_t from = i * q_dim + (kv_head * static_cast<size_t>(group) + h) * static_cast<size_t>(dim) + j;
            to_key += k_parts[from];
            to_value += v_parts[from];
          }
          const size_t to = i * kv_dim + kv_head * static_cast<size_t>(dim) + j;
          d_k[to] = to_key;
          d_v[to] = to_value;
        }
      }
    }
  });
}

}  // namespace gemma::train

#include "train/decoder.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/layer_tensors.h"
#include "quant/dequantize.h"

namespace gemma::train {
namespace {

constexpr int kRowChunk = 8;
constexpr size_t kPartial = 16;

const Tensor& require(const TensorSource& tensors, const std::string& name) {
  const Tensor* tensor = tensors.find(name);
  if (tensor == nullptr) bad_tensor(name, "missing");
  return *tensor;
}

// f(i) summed over dim values in kPartial interleaved sums: compilers make vectors of them.
template <class F>
float sum_of(size_t dim, const F& f) {
  float partial[kPartial] = {};
  size_t i = 0;
  for (; i + kPartial <= dim; i += kPartial) {
    for (size_t j = 0; j < kPartial; ++j) partial[j] += f(i + j);
  }
  for (size_t j = 0; i + j < dim; ++j) partial[j] += f(i + j);
  for (size_t half = kPartial / 2; half > 0; half /= 2) {
    for (size_t j = 0; j < half; ++j) partial[j] += partial[j + half];
  }
  return partial[0];
}

float inverse_rms(const float* x, size_t dim, float eps) {
  return 1.0f / std::sqrt(sum_of(dim, [&](size_t i) { return x[i] * x[i]; }) / static_cast<float>(dim) + eps);
}

size_t sz(int n) {
  return static_cast<size_t>(n);
}

}  // namespace

void stop_if(const std::function<bool()>* should_stop) {
  if (should_stop != nullptr && *should_stop && (*should_stop)())
    throw Error(ErrorCode::kDisposed, "CANCELLED", "the training was cancelled");
}

void rms_norm(float* out, const float* x, const float* weight, size_t dim, float eps) {
  const float inverse = inverse_rms(x, dim, eps);
  for (size_t i = 0; i < dim; ++i) out[i] = x[i] * inverse * weight[i];
}

void rms_norm_backward(float* d_x, const float* x, const float* weight, const float* d, size_t dim, float eps,
                       bool add) {
  const float inverse = inverse_rms(x, dim, eps);
  const float along = sum_of(dim, [&](size_t i) { return x[i] * weight[i] * d[i]; });
  const float away = along * inverse * inverse * inverse / static_cast<float>(dim);
  for (size_t i = 0; i < dim; ++i) {
    const float own = d[i] * weight[i] * inverse - x[i] * away;
    d_x[i] = add ? d_x[i] + own : own;
  }
}

FrozenWeights::FrozenWeights(const TensorSource& tensors, const ModelConfig& config) : layers(config.layers.size()) {
  const auto matrix = [&](const std::string& name) {
    const Tensor& t = require(tensors, name);
    if (t.data == nullptr) bad_tensor(name, "only its header was read");
    return Weight{t.type, static_cast<int>(t.shape[0]), static_cast<int>(t.shape[1]), t.data};
  };
  const auto vector = [&](const std::string& name) {
    const Tensor& t = require(tensors, name);
    std::vector<float>& values = vectors.emplace_back(static_cast<size_t>(t.shape[0]));
    dequantize_row(t.type, t.data, values.data(), t.shape[0]);
    return values.data();
  };
  token_embd = matrix(kTokenEmbd);
  output = config.has_output ? matrix(kOutput) : token_embd;
  output.n_out = config.n_vocab;
  output_norm = vector(kOutputNorm);
  for (int i = 0; i < config.n_layers(); ++i) {
    LayerWeights& layer = layers[sz(i)];
    for (const LayerTensor& tensor : layer_tensors(config, i)) {
      if (tensor.matrix != nullptr) {
        layer.*tensor.matrix = matrix(tensor.name);
      } else {
        layer.*tensor.vector = vector(tensor.name);
      }
    }
  }
}

// What buffers are made for.
struct Decoder::Shape {
  size_t n;
  size_t longest;
  size_t rank;
  size_t n_threads;
  size_t model_dim;
  size_t q_dim;
  size_t kv_dim;
  size_t ffn_dim;
  size_t head_dim;
  size_t n_ropes;

  Shape(const ModelConfig& config, int rank_, int n_threads_, int n_, int longest_)
      : n(sz(n_)),
        longest(sz(longest_)),
        rank(sz(rank_)),
        n_threads(sz(n_threads_)),
        model_dim(sz(config.model_dim)),
        q_dim(sz(config.widest(&LayerConfig::q_dim))),
        kv_dim(sz(config.widest(&LayerConfig::kv_dim))),
        ffn_dim(sz(config.widest(&LayerConfig::ffn_dim))),
        head_dim(sz(config.widest(&LayerConfig::head_dim))),
        n_ropes(rope_groups(config).size()) {}
  size_t widest() const { return std::max({model_dim, q_dim, kv_dim, ffn_dim}); }
};

template <class F>
void Decoder::each(Buffers& b, const Shape& s, F& f) {
  f(b.x, s.n * s.model_dim);
  f(b.normed, s.n * s.model_dim);
  f(b.middle, s.n * s.model_dim);
  f(b.rotated_q, s.n * s.q_dim);
  f(b.rotated_k, s.n * s.kv_dim);
  f(b.hidden, s.n * s.ffn_dim);
  f(b.d_wide, s.n * s.widest());
  f(b.d_first, s.n * s.widest());
  f(b.d_second, s.n * s.widest());
  f(b.d_third, s.n * s.kv_dim);
  f(b.parts, 2 * s.n * s.q_dim);
  f(b.dropped, s.n * s.widest());
  f(b.packed, packed_floats(s.n, s.widest()));
  f(b.packed_many, packed_floats(s.n, std::max({s.q_dim + 2 * s.kv_dim, 2 * s.ffn_dim, s.model_dim})));
  f(b.packed_t, 3 * packed_floats(s.n, s.rank));
  f(b.packed_rank, packed_floats(s.rank, s.n));
  f(b.d_t, s.n * s.rank);
  f(b.rank_rows, s.rank * s.widest());
  f(b.rope, s.n_ropes * s.n * s.head_dim);
  f(b.attention, s.n_threads * Attention::workspace_floats(static_cast<int>(s.longest), static_cast<int>(s.head_dim)));
}

template <class F>
void Decoder::each(LayerRecord& r, const ModelConfig& config, int layer, int rank, int n, F& f) {
  const LayerConfig& c = config.layers[sz(layer)];
  const size_t rows = sz(n);
  f(r.q, rows * sz(c.q_dim()));
  f(r.k, rows * sz(c.kv_dim()));
  f(r.v, rows * sz(c.kv_dim()));
  f(r.attended, rows * sz(c.q_dim()));
  f(r.log_sums, rows * sz(c.n_heads));
  f(r.output, rows * sz(config.model_dim));
  f(r.gate, rows * sz(c.ffn_dim));
  f(r.up, rows * sz(c.ffn_dim));
  f(r.down, rows * sz(config.model_dim));
  for (float*& t : r.t) f(t, rows * sz(rank));
}

Decoder::Decoder(const ModelConfig& config, const FrozenWeights& weights, const AdapterParameters& parameters,
                 Products& products)
    : config_(config),
      weights_(weights),
      parameters_(parameters),
      products_(products),
      attention_(products),
      rope_groups_(rope_groups(config)) {
  const LayerGroups windows = window_groups(config);
  window_of_layer_ = windows.of_layer;
  for (const size_t layer : windows.first_layer) windows_.push_back(config.layers[layer].n_window);
  for (const size_t layer : rope_groups_.first_layer) frequencies_.push_back(inverse_frequencies(config.layers[layer]));
}

Decoder::Plan Decoder::plan(const ModelConfig& config, int rank, int first_layer, int n_threads, int n, int longest,
                            uint64_t activation_bytes) {
  Plan plan;
  Buffers buffers;
  LayerRecord record;
  Arena workspace;
  each(buffers, Shape(config, rank, n_threads, n, longest), workspace);
  // Layers may differ: the shared record has room for any.
  size_t widest = 0;
  Arena kept;
  float* input = nullptr;
  for (int layer = first_layer; layer <= config.n_layers(); ++layer) kept(input, sz(n) * sz(config.model_dim));
  for (int layer = config.n_layers() - 1; layer >= 0; --layer) {
    Arena own;
    each(record, config, layer, rank, n, own);
    widest = std::max(widest, own.bytes());
    const bool is_next = plan.kept_layers == config.n_layers() - 1 - layer;
    if (is_next && layer >= first_layer && kept.bytes() + own.bytes() <= activation_bytes) {
      each(record, config, layer, rank, n, kept);
      ++plan.kept_layers;
    }
  }
  plan.workspace = workspace.bytes() + widest;
  plan.kept = kept.bytes();
  return plan;
}

void Decoder::reserve(int n, int longest, uint64_t activation_bytes) {
  if (n <= n_reserved_ && longest <= longest_reserved_) return;
  n = std::max(n, n_reserved_);
  longest = std::max(longest, longest_reserved_);
  n_reserved_ = longest_reserved_ = 0;
  workspace_.reset();
  kept_.reset();
  const int rank = parameters_.rank();
  const int first = parameters_.first_layer();
  const Plan p = plan(config_, rank, first, products_.n_threads(), n, longest, activation_bytes);
  workspace_ = std::make_unique<LargeMemory>(p.workspace);
  kept_ = std::make_unique<LargeMemory>(p.kept);
  Arena workspace(workspace_->data());
  const Shape shape(config_, rank, products_.n_threads(), n, longest);
  each(buffers_, shape, workspace);
  std::byte* const shared = workspace_->data() + workspace.bytes();
  // Of the layer that takes most.
  for (int layer = 0; layer < config_.n_layers(); ++layer) {
    LayerRecord record;
    Arena own(shared);
    each(record, config_, layer, rank, n, own);
    if (workspace.bytes() + own.bytes() == p.workspace) shared_ = record;
  }
  Arena kept(kept_->data());
  inputs_.assign(sz(config_.n_layers() + 1), nullptr);
  records_.assign(sz(config_.n_layers()), LayerRecord());
  for (int layer = first; layer <= config_.n_layers(); ++layer) kept(inputs_[sz(layer)], sz(n) * sz(config_.model_dim));
  for (int i = 0; i < p.kept_layers; ++i) {
    const int layer = config_.n_layers() - 1 - i;
    each(records_[sz(layer)], config_, layer, rank, n, kept);
  }
  attention_.set_workspace(buffers_.attention, Attention::workspace_floats(longest, static_cast<int>(shape.head_dim)));
  n_reserved_ = n;
  longest_reserved_ = longest;
}

template <class F>
void Decoder::for_rows(int n, const F& f) {
  products_.pool().parallel_for((n + kRowChunk - 1) / kRowChunk, [&](int chunk, int) {
    for (int i = chunk * kRowChunk; i < std::min(n, (chunk + 1) * kRowChunk); ++i) f(sz(i));
  });
}

void Decoder::embed(const RowLayout& rows, float* x) {
  const size_t dim = sz(config_.model_dim);
  const float scale = std::sqrt(static_cast<float>(config_.model_dim));
  const Weight& table = weights_.token_embd;
  const size_t bytes = row_bytes(table.type, table.n_in);
  for_rows(rows.n(), [&](size_t i) {
    float* row = x + i * dim;
    dequantize_row(table.type, table.data + static_cast<size_t>(rows.tokens[i]) * bytes, row, table.n_in);
    for (size_t j = 0; j < dim; ++j) row[j] *= scale;
  });
  for (const RowLayout::Image& image : rows.images)
    std::copy(image.rows->embeddings.begin(), image.rows->embeddings.end(), x + sz(image.first) * dim);
}

void Decoder::fill_rope(const RowLayout& rows) {
  float* table = buffers_.rope;
  for (const std::vector<float>& frequencies : frequencies_) {
    const size_t half = frequencies.size();
    for_rows(rows.n(), [&](size_t i) {
      float* row = table + i * 2 * half;
      for (size_t j = 0; j < half; ++j) {
        const double angle = static_cast<double>(static_cast<float>(rows.positions[i]) * frequencies[j]);
        row[j] = static_cast<float>(std::cos(angle));
        row[half + j] = static_cast<float>(std::sin(angle));
      }
    });
    table += sz(rows.n()) * 2 * half;
  }
}

namespace {

// A norm of each head, then the rotation of the pairs (j, j + dim / 2).
void norm_rotate(float* out, const float* x, const float* weight, const float* table, size_t n_heads, size_t dim,
                 float eps, float scale) {
  const size_t half = dim / 2;
  for (size_t head = 0; head < n_heads; ++head, x += dim, out += dim) {
    const float inverse = inverse_rms(x, dim, eps) * scale;
    for (size_t j = 0; j < half; ++j) {
      const float a = x[j] * inverse * weight[j];
      const float b = x[j + half] * inverse * weight[j + half];
      out[j] = a * table[j] - b * table[j + half];
      out[j + half] = b * table[j] + a * table[j + half];
    }
  }
}

// In place: from the gradient of the rotated to that of x.
void norm_rotate_backward(float* d, const float* x, const float* weight, const float* table, size_t n_heads, size_t dim,
                          float eps, float scale) {
  const size_t half = dim / 2;
  for (size_t head = 0; head < n_heads; ++head, x += dim, d += dim) {
    for (size_t j = 0; j < half; ++j) {
      const float a = d[j] * scale;
      const float b = d[j + half] * scale;
      d[j] = a * table[j] + b * table[j + half];
      d[j + half] = b * table[j] - a * table[j + half];
    }
    rms_norm_backward(d, x, weight, d, dim, eps, false);
  }
}

}  // namespace

void Decoder::rotate(int layer, const RowLayout& rows, const LayerRecord& record) {
  const LayerConfig& c = config_.layers[sz(layer)];
  const LayerWeights& w = weights_.layers[sz(layer)];
  const size_t dim = sz(c.head_dim);
  const float* table = buffers_.rope;
  for (size_t group = 0; group < rope_groups_.of_layer[sz(layer)]; ++group)
    table += sz(rows.n()) * 2 * frequencies_[group].size();
  for_rows(rows.n(), [&](size_t i) {
    norm_rotate(buffers_.rotated_q + i * sz(c.q_dim()), record.q + i * sz(c.q_dim()), w.attn_q_norm, table + i * dim,
                sz(c.n_heads), dim, config_.rms_eps, c.query_scale);
    norm_rotate(buffers_.rotated_k + i * sz(c.kv_dim()), record.k + i * sz(c.kv_dim()), w.attn_k_norm, table + i * dim,
                sz(c.n_kv_heads), dim, config_.rms_eps, 1);
  });
}

const float* Decoder::dropped_input(int layer, int target, const Pass& pass, const float* x, int n, int dim) {
  if (pass.dropout == 0) return x;
  const RandomStream stream = pass.dropout_stream.at(sz(layer) * kTargets + sz(target));
  const float scale = 1 / (1 - pass.dropout);
  for_rows(n, [&](size_t i) {
    for (size_t j = i * sz(dim); j < (i + 1) * sz(dim); ++j)
      buffers_.dropped[j] = stream.uniform(j) < pass.dropout ? 0.0f : x[j] * scale;
  });
  return buffers_.dropped;
}

void Decoder::project(int layer, const RowLayout& rows, const Pass& pass, const LayerRecord& record,
                      std::span<const Projection> projections, const float* x) {
  const int n = rows.n();
  const int n_in = target_in(config_, layer, projections.front().target);
  const int rank = parameters_.rank();
  const LayerWeights& w = weights_.layers[sz(layer)];
  const Packed packed = products_.pack({x, sz(n_in)}, n, n_in, 1, buffers_.packed);
  for (const Projection& projection : projections) {
    const Weight& weight = w.*kTargetMatrices[sz(projection.target)].weight;
    const LowRankPair& pair = parameters_.pair(layer, projection.target);
    Term terms[2];
    terms[0] = {packed, n_in, {RightSide::Kind::kWeight, &weight, 0, {}}};
    size_t n_terms = 1;
    if (pass.use_adapter && pair.a != nullptr) {
      float* t = record.t[projection.target];
      Packed input = packed;
      if (pass.dropout > 0) {
        const float* dropped = dropped_input(layer, projection.target, pass, x, n, n_in);
        input = products_.pack({dropped, sz(n_in)}, n, n_in, 1, buffers_.packed_many);
      }
      const Term down = {input, n_in, {RightSide::Kind::kFloats, nullptr, 0, FloatView{pair.a, sz(n_in)}.transposed()}};
      products_.multiply({&down, 1}, n, rank, t, sz(rank), false);
      terms[1] = {products_.pack({t, sz(rank)}, n, rank, parameters_.scale(), buffers_.packed_t),
                  rank,
                  {RightSide::Kind::kFloats, nullptr, 0, FloatView{pair.b, sz(rank)}.transposed()}};
      n_terms = 2;
    }
    products_.multiply(std::span(terms).first(n_terms), n, weight.n_out, projection.out, sz(weight.n_out), false);
  }
}

void Decoder::project_backward(int layer, const RowLayout& rows, const Pass& pass, const LayerRecord& record,
                               std::span<const Projection> projections, const float* x, float* d_x) {
  const int n = rows.n();
  const int n_in = target_in(config_, layer, projections.front().target);
  const int rank = parameters_.rank();
  const LayerWeights& w = weights_.layers[sz(layer)];
  Term terms[6];
  size_t n_terms = 0;
  Term low_rank[3];  // of pairs
  int targets[3];
  size_t n_low_rank = 0;
  float* packed = buffers_.packed_many;
  for (const Projection& projection : projections) {
    const Weight& weight = w.*kTargetMatrices[sz(projection.target)].weight;
    const LowRankPair& pair = parameters_.pair(layer, projection.target);
    if (d_x == nullptr && pair.a == nullptr) continue;
    const size_t n_out = sz(weight.n_out);
    const Packed d_out = products_.pack({projection.d_out, n_out}, n, weight.n_out, 1, packed);
    packed += packed_floats(sz(n), n_out);
    terms[n_terms++] = {d_out, weight.n_out, {RightSide::Kind::kWeightTransposed, &weight, 0, {}}};
    if (pair.a == nullptr) continue;
    // d_t = scale d_out B; B += (scale t)^T d_out, transposed; A += d_t^T x.
    float* d_t = buffers_.d_t;
    const Term up = {d_out, weight.n_out, {RightSide::Kind::kFloats, nullptr, 0, {pair.b, sz(rank)}}};
    products_.multiply({&up, 1}, n, rank, d_t, sz(rank), false);
    const Packed t = products_.pack(FloatView{record.t[projection.target], sz(rank)}.transposed(), rank, n,
                                    parameters_.scale(), buffers_.packed_rank);
    const Term to_b = {t, n, {RightSide::Kind::kFloats, nullptr, 0, {projection.d_out, n_out}}};
    float* rows_of_b = buffers_.rank_rows;
    products_.multiply({&to_b, 1}, rank, weight.n_out, rows_of_b, n_out, false);
    for_rows(weight.n_out, [&](size_t i) {
      for (size_t j = 0; j < sz(rank); ++j) pair.b_gradient[i * sz(rank) + j] += rows_of_b[j * n_out + i];
    });
    const float* input = dropped_input(layer, projection.target, pass, x, n, n_in);
    const Packed d_t_rows =
        products_.pack(FloatView{d_t, sz(rank)}.transposed(), rank, n, parameters_.scale(), buffers_.packed_rank);
    const Term to_a = {d_t_rows, n, {RightSide::Kind::kFloats, nullptr, 0, {input, sz(n_in)}}};
    products_.multiply({&to_a, 1}, rank, n_in, pair.a_gradient, sz(n_in), true);
    if (d_x == nullptr) continue;
    float* packed_t = buffers_.packed_t + n_low_rank * packed_floats(sz(n), sz(rank));
    low_rank[n_low_rank] = {products_.pack({d_t, sz(rank)}, n, rank, parameters_.scale(), packed_t),
                            rank,
                            {RightSide::Kind::kFloats, nullptr, 0, {pair.a, sz(n_in)}}};
    targets[n_low_rank++] = projection.target;
  }
  if (d_x == nullptr) return;
  if (pass.dropout == 0) {
    for (size_t i = 0; i < n_low_rank; ++i) terms[n_terms++] = low_rank[i];
  }
  products_.multiply(std::span(terms).first(n_terms), n, n_in, d_x, sz(n_in), false);
  for (size_t i = 0; pass.dropout > 0 && i < n_low_rank; ++i) {
    float* own = buffers_.dropped;
    products_.multiply({&low_rank[i], 1}, n, n_in, own, sz(n_in), false);
    const RandomStream stream = pass.dropout_stream.at(sz(layer) * kTargets + sz(targets[i]));
    const float scale = 1 / (1 - pass.dropout);
    for_rows(n, [&](size_t row) {
      for (size_t j = row * sz(n_in); j < (row + 1) * sz(n_in); ++j) {
        if (!(stream.uniform(j) < pass.dropout)) d_x[j] += own[j] * scale;
      }
    });
  }
}

void Decoder::compute_layer(int layer, const RowLayout& rows, const Pass& pass, const float* x,
                            const LayerRecord& record, float* out) {
  const LayerConfig& c = config_.layers[sz(layer)];
  const LayerWeights& w = weights_.layers[sz(layer)];
  const int n = rows.n();
  const size_t dim = sz(config_.model_dim);
  const float eps = config_.rms_eps;
  const Buffers& b = buffers_;
  stop_if(pass.should_stop);
  for_rows(n, [&](size_t i) { rms_norm(b.normed + i * dim, x + i * dim, w.attn_norm, dim, eps); });
  const Projection qkv[] = {{kQ, record.q, nullptr}, {kK, record.k, nullptr}, {kV, record.v, nullptr}};
  project(layer, rows, pass, record, qkv, b.normed);
  rotate(layer, rows, record);
  attention_.forward({c.n_heads, c.n_kv_heads, c.head_dim}, rows, rows.spans[window_of_layer_[sz(layer)]], b.rotated_q,
                     b.rotated_k, record.v, record.attended, record.log_sums);
  const Projection output[] = {{kO, record.output, nullptr}};
  project(layer, rows, pass, record, output, record.attended);
  stop_if(pass.should_stop);
  for_rows(n, [&](size_t i) {
    float* middle = b.middle + i * dim;
    rms_norm(middle, record.output + i * dim, w.post_attention_norm, dim, eps);
    for (size_t j = 0; j < dim; ++j) middle[j] += x[i * dim + j];
    rms_norm(b.normed + i * dim, middle, w.ffn_norm, dim, eps);
  });
  const Projection gate_up[] = {{kGate, record.gate, nullptr}, {kUp, record.up, nullptr}};
  project(layer, rows, pass, record, gate_up, b.normed);
  const size_t ffn_dim = sz(c.ffn_dim);
  for_rows(n, [&](size_t i) {
    products_.kernels().geglu(b.hidden + i * ffn_dim, record.gate + i * ffn_dim, record.up + i * ffn_dim, c.ffn_dim);
  });
  const Projection down[] = {{kDown, record.down, nullptr}};
  project(layer, rows, pass, record, down, b.hidden);
  if (out == nullptr) return;
  for_rows(n, [&](size_t i) {
    float* row = b.normed + i * dim;
    rms_norm(row, record.down + i * dim, w.post_ffw_norm, dim, eps);
    for (size_t j = 0; j < dim; ++j) out[i * dim + j] = b.middle[i * dim + j] + row[j];
  });
}

void Decoder::backward_layer(int layer, const RowLayout& rows, const Pass& pass, const float* x,
                             const LayerRecord& record, float* d_x) {
  const LayerConfig& c = config_.layers[sz(layer)];
  const LayerWeights& w = weights_.layers[sz(layer)];
  const int n = rows.n();
  const size_t dim = sz(config_.model_dim);
  const size_t ffn_dim = sz(c.ffn_dim);
  const float eps = config_.rms_eps;
  const Buffers& b = buffers_;
  const bool is_last = layer == parameters_.first_layer();
  stop_if(pass.should_stop);
  // The feed-forward half: what it was computed from, then back.
  for_rows(n, [&](size_t i) {
    products_.kernels().geglu(b.hidden + i * ffn_dim, record.gate + i * ffn_dim, record.up + i * ffn_dim, c.ffn_dim);
    float* middle = b.middle + i * dim;
    rms_norm(middle, record.output + i * dim, w.post_attention_norm, dim, eps);
    for (size_t j = 0; j < dim; ++j) middle[j] += x[i * dim + j];
    rms_norm(b.normed + i * dim, middle, w.ffn_norm, dim, eps);
    rms_norm_backward(b.d_first + i * dim, record.down + i * dim, w.post_ffw_norm, d_x + i * dim, dim, eps, false);
  });
  const Projection down[] = {{kDown, nullptr, b.d_first}};
  project_backward(layer, rows, pass, record, down, b.hidden, b.d_wide);
  for_rows(n, [&](size_t i) {
    const size_t at = i * ffn_dim;
    products_.kernels().geglu_backward(b.d_first + at, b.d_second + at, record.gate + at, record.up + at, b.d_wide + at,
                                       c.ffn_dim);
  });
  const Projection gate_up[] = {{kGate, nullptr, b.d_first}, {kUp, nullptr, b.d_second}};
  project_backward(layer, rows, pass, record, gate_up, b.normed, b.d_wide);
  stop_if(pass.should_stop);
  // The attention half.
  for_rows(n, [&](size_t i) {
    rms_norm_backward(d_x + i * dim, b.middle + i * dim, w.ffn_norm, b.d_wide + i * dim, dim, eps, true);
    rms_norm(b.normed + i * dim, x + i * dim, w.attn_norm, dim, eps);
    rms_norm_backward(b.d_first + i * dim, record.output + i * dim, w.post_attention_norm, d_x + i * dim, dim, eps,
                      false);
  });
  const Projection output[] = {{kO, nullptr, b.d_first}};
  project_backward(layer, rows, pass, record, output, record.attended, b.d_wide);
  rotate(layer, rows, record);
  attention_.backward({c.n_heads, c.n_kv_heads, c.head_dim}, rows, rows.spans[window_of_layer_[sz(layer)]], b.rotated_q,
                      b.rotated_k, record.v, record.attended, record.log_sums, b.d_wide, b.d_first, b.d_second,
                      b.d_third, b.parts);
  const float* table = b.rope;
  for (size_t group = 0; group < rope_groups_.of_layer[sz(layer)]; ++group)
    table += sz(n) * 2 * frequencies_[group].size();
  for_rows(n, [&](size_t i) {
    const size_t q_at = i * sz(c.q_dim());
    const size_t kv_at = i * sz(c.kv_dim());
    norm_rotate_backward(b.d_first + q_at, record.q + q_at, w.attn_q_norm, table + i * sz(c.head_dim), sz(c.n_heads),
                         sz(c.head_dim), eps, c.query_scale);
    norm_rotate_backward(b.d_second + kv_at, record.k + kv_at, w.attn_k_norm, table + i * sz(c.head_dim),
                         sz(c.n_kv_heads), sz(c.head_dim), eps, 1);
  });
  const Projection qkv[] = {{kQ, nullptr, b.d_first}, {kK, nullptr, b.d_second}, {kV, nullptr, b.d_third}};
  project_backward(layer, rows, pass, record, qkv, b.normed, is_last ? nullptr : b.d_wide);
  if (is_last) return;
  for_rows(n, [&](size_t i) {
    rms_norm_backward(d_x + i * dim, x + i * dim, w.attn_norm, b.d_wide + i * dim, dim, eps, true);
  });
}

const float* Decoder::forward(const RowLayout& rows, const Pass& pass) {
  fill_rope(rows);
  const int n_layers = config_.n_layers();
  const auto place = [&](int layer) {
    float* kept = inputs_[sz(layer)];
    return pass.is_training && kept != nullptr ? kept : buffers_.x;
  };
  embed(rows, place(0));
  for (int layer = 0; layer < n_layers; ++layer) {
    const LayerRecord& own = records_[sz(layer)];
    compute_layer(layer, rows, pass, place(layer), own.q != nullptr ? own : shared_, place(layer + 1));
  }
  return place(n_layers);
}

void Decoder::backward(const RowLayout& rows, const Pass& pass, float* d_x) {
  for (int layer = config_.n_layers() - 1; layer >= parameters_.first_layer(); --layer) {
    const float* x = inputs_[sz(layer)];
    const LayerRecord* record = &records_[sz(layer)];
    if (record->q == nullptr) {
      record = &shared_;
      compute_layer(layer, rows, pass, x, shared_, nullptr);
    }
    backward_layer(layer, rows, pass, x, *record, d_x);
  }
}

}  // namespace gemma::train

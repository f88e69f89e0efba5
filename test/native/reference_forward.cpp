#include "reference_forward.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>
#include <string>

#include "quant/dequantize.h"

namespace gemma::test {
namespace {

using Vector = std::vector<float>;

// A tensor in float32, whatever it is stored as: [n_rows, n_columns].
class Matrix {
 public:
  Matrix(const TensorSource& tensors, const std::string& name) {
    const Tensor* tensor = tensors.find(name);
    if (tensor == nullptr) throw std::runtime_error("no tensor " + name);
    n_columns_ = static_cast<size_t>(tensor->shape.back());
    size_t n = 1;
    for (const int64_t size : tensor->shape) n *= static_cast<size_t>(size);
    values_.resize(n);
    const size_t row_bytes = tensor->bytes / (n / n_columns_);
    for (size_t i = 0; i < n; i += n_columns_) {
      dequantize_row(tensor->type, tensor->data + i / n_columns_ * row_bytes, &values_[i],
                     static_cast<int64_t>(n_columns_));
    }
  }

  std::span<const float> row(size_t i) const { return std::span(values_).subspan(i * n_columns_, n_columns_); }
  std::span<const float> vector() const { return values_; }

  // out[n_rows] = W x
  Vector times(std::span<const float> x) const {
    Vector out;
    for (size_t i = 0; i * n_columns_ < values_.size(); ++i) {
      double sum = 0;
      for (size_t j = 0; j < n_columns_; ++j) sum += static_cast<double>(row(i)[j]) * static_cast<double>(x[j]);
      out.push_back(static_cast<float>(sum));
    }
    return out;
  }

 private:
  size_t n_columns_ = 0;
  Vector values_;
};

// x / rms(x) * weight; the tensors hold 1 + w of the checkpoint.
Vector rms_norm(std::span<const float> x, const Matrix& weight, float eps) {
  double squares = 0;
  for (const float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + static_cast<double>(eps));
  Vector out;
  for (size_t i = 0; i < x.size(); ++i)
    out.push_back(static_cast<float>(static_cast<double>(x[i]) * scale) * weight.vector()[i]);
  return out;
}

void add(Vector& x, const Vector& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

float gelu_tanh(float x) {
  const double v = static_cast<double>(x);
  return static_cast<float>(0.5 * v * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (v + 0.044715 * v * v * v))));
}

// Queries or keys of one position: a norm over each head, then the rotation of the pairs (j, j + head_dim / 2).
void norm_and_rotate(Vector& x, const Matrix& weight, const LayerConfig& layer, int position, float eps) {
  const auto dim = static_cast<size_t>(layer.head_dim);
  for (size_t head = 0; head < x.size(); head += dim) {
    const Vector normed = rms_norm(std::span(x).subspan(head, dim), weight, eps);
    for (size_t j = 0; j < dim / 2; ++j) {
      const double frequency =
          std::pow(static_cast<double>(layer.rope_base), -2.0 * static_cast<double>(j) / static_cast<double>(dim)) /
          static_cast<double>(layer.rope_factor);
      const auto angle = static_cast<double>(static_cast<float>(position) * static_cast<float>(frequency));
      const double a = static_cast<double>(normed[j]);
      const double b = static_cast<double>(normed[j + dim / 2]);
      x[head + j] = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
      x[head + j + dim / 2] = static_cast<float>(b * std::cos(angle) + a * std::sin(angle));
    }
  }
}

// Which image a position belongs to, or none.
const ReferenceImage* image_at(std::span<const ReferenceImage> images, int position, size_t model_dim) {
  for (const ReferenceImage& image : images) {
    const int end = image.first_position + static_cast<int>(image.rows.size() / model_dim);
    if (position >= image.first_position && position < end) return &image;
  }
  return nullptr;
}

}  // namespace

std::vector<float> reference_logits(const ModelConfig& config, const TensorSource& tensors,
                                    std::span<const int32_t> tokens, std::span<const ReferenceImage> images) {
  const size_t n = tokens.size();
  const auto dim = static_cast<size_t>(config.model_dim);
  const Matrix embedding(tensors, "token_embd.weight");

  // The residual stream of every position. Tokens are scaled, images are not.
  std::vector<Vector> x(n);
  for (size_t i = 0; i < n; ++i) {
    const int position = static_cast<int>(i);
    if (const ReferenceImage* image = image_at(images, position, dim)) {
      const size_t row = static_cast<size_t>(position - image->first_position);
      x[i].assign(&image->rows[row * dim], &image->rows[row * dim] + dim);
      continue;
    }
    for (const float v : embedding.row(static_cast<size_t>(tokens[i])))
      x[i].push_back(v * std::sqrt(static_cast<float>(config.model_dim)));
  }

  for (size_t index = 0; index < config.layers.size(); ++index) {
    const LayerConfig& layer = config.layers[index];
    const auto tensor = [&](const char* name) {
      return Matrix(tensors, "blk." + std::to_string(index) + "." + name + ".weight");
    };
    const auto head_dim = static_cast<size_t>(layer.head_dim);
    const size_t heads_per_kv = static_cast<size_t>(layer.n_heads / layer.n_kv_heads);

    // x += post_attention_norm(attn_output(attention(q, k, v)))
    const Matrix attn_norm = tensor("attn_norm");
    const Matrix wq = tensor("attn_q");
    const Matrix wk = tensor("attn_k");
    const Matrix wv = tensor("attn_v");
    const Matrix q_norm = tensor("attn_q_norm");
    const Matrix k_norm = tensor("attn_k_norm");
    const Matrix wo = tensor("attn_output");
    const Matrix post_attention_norm = tensor("post_attention_norm");
    std::vector<Vector> q(n);
    std::vector<Vector> k(n);
    std::vector<Vector> v(n);
    for (size_t i = 0; i < n; ++i) {
      const Vector normed = rms_norm(x[i], attn_norm, config.rms_eps);
      q[i] = wq.times(normed);
      k[i] = wk.times(normed);
      v[i] = wv.times(normed);
      norm_and_rotate(q[i], q_norm, layer, static_cast<int>(i), config.rms_eps);
      norm_and_rotate(k[i], k_norm, layer, static_cast<int>(i), config.rms_eps);
    }
    for (size_t i = 0; i < n; ++i) {
      // What a position sees: itself and all before it, as far as the window of a local layer reaches. An image's rows
      // also see the rows of their image that follow.
      const int position = static_cast<int>(i);
      const ReferenceImage* image = image_at(images, position, dim);
      const int first = layer.n_window > 0 ? std::max(0, position - layer.n_window + 1) : 0;
      const auto begin = static_cast<size_t>(first);
      const size_t end = image ? static_cast<size_t>(image->first_position) + image->rows.size() / dim : i + 1;

      Vector attended;
      for (size_t head = 0; head < static_cast<size_t>(layer.n_heads); ++head) {
        const size_t q_at = head * head_dim;
        const size_t kv_at = head / heads_per_kv * head_dim;
        std::vector<double> weights;
        for (size_t j = begin; j < end; ++j) {
          double score = 0;
          for (size_t d = 0; d < head_dim; ++d)
            score += static_cast<double>(q[i][q_at + d]) * static_cast<double>(k[j][kv_at + d]);
          weights.push_back(score * static_cast<double>(layer.query_scale));
        }
        const double most = *std::max_element(weights.begin(), weights.end());
        double total = 0;
        for (double& weight : weights) total += weight = std::exp(weight - most);
        for (size_t d = 0; d < head_dim; ++d) {
          double sum = 0;
          for (size_t j = begin; j < end; ++j) sum += weights[j - begin] * static_cast<double>(v[j][kv_at + d]);
          attended.push_back(static_cast<float>(sum / total));
        }
      }
      add(x[i], rms_norm(wo.times(attended), post_attention_norm, config.rms_eps));
    }

    // x += post_ffw_norm(ffn_down(gelu(ffn_gate h) * ffn_up h)), h = ffn_norm(x)
    const Matrix ffn_norm = tensor("ffn_norm");
    const Matrix gate = tensor("ffn_gate");
    const Matrix up = tensor("ffn_up");
    const Matrix down = tensor("ffn_down");
    const Matrix post_ffw_norm = tensor("post_ffw_norm");
    for (Vector& row : x) {
      const Vector normed = rms_norm(row, ffn_norm, config.rms_eps);
      Vector hidden = gate.times(normed);
      const Vector raised = up.times(normed);
      for (size_t j = 0; j < hidden.size(); ++j) hidden[j] = gelu_tanh(hidden[j]) * raised[j];
      add(row, rms_norm(down.times(hidden), post_ffw_norm, config.rms_eps));
    }
  }

  const Matrix output_norm(tensors, "output_norm.weight");
  const Matrix output(tensors, config.has_output ? "output.weight" : "token_embd.weight");
  std::vector<float> logits;
  for (const Vector& row : x) {
    Vector all = output.times(rms_norm(row, output_norm, config.rms_eps));
    all.resize(static_cast<size_t>(config.n_vocab));
    if (config.final_softcap > 0) {
      for (float& logit : all) logit = config.final_softcap * std::tanh(logit / config.final_softcap);
    }
    logits.insert(logits.end(), all.begin(), all.end());
  }
  return logits;
}

}  // namespace gemma::test

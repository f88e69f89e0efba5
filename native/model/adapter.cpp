#include "model/adapter.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/half.h"
#include "base/hash.h"
#include "model/heads.h"
#include "model/layer_tensors.h"
#include "model/vision_tensors.h"
#include "quant/dequantize.h"

namespace gemma {
namespace {

// Above what anybody trains; working memory grows with it.
constexpr int64_t kMaxRank = 4096;
constexpr size_t kAlignment = 64;
constexpr size_t kStopRows = 256;  // should_stop is asked once for so many rows

size_t aligned(size_t n) {
  return (n + kAlignment - 1) / kAlignment * kAlignment;
}

size_t padded_columns(int n_out) {
  return static_cast<size_t>((n_out + kOutputLanes - 1) / kOutputLanes * kOutputLanes);
}

std::vector<float> floats_of(const Tensor& tensor) {
  size_t n = 1;
  for (const int64_t dim : tensor.shape) n *= static_cast<size_t>(dim);
  std::vector<float> values(n);
  dequantize_row(tensor.type, tensor.data, values.data(), static_cast<int64_t>(n));
  return values;
}

// Of the 16 or 32 bits of a float.
bool is_finite(TensorType type, const std::byte* value) {
  if (type == TensorType::kF32) {
    float number = 0;
    std::memcpy(&number, value, sizeof number);
    return std::isfinite(number);
  }
  uint16_t bits = 0;
  std::memcpy(&bits, value, sizeof bits);
  const unsigned exponent = type == TensorType::kF16 ? 0x7c00u : 0x7f80u;
  return (bits & exponent) != exponent;
}

size_t element_bytes(TensorType type) {
  return type == TensorType::kF32 ? 4 : 2;
}

// A tensor of 32-bit floats times a power of two in 16-bit ones. The power brings the largest value to 1 .. 2, so that none
// but those that add next to nothing are among the subnormal numbers, which have fewer bits.
class Halves {
 public:
  // read: else the type and the shape are all that is made.
  Halves(const Tensor& from, bool read) : tensor(from) {
    tensor.type = TensorType::kF16;
    tensor.bytes = from.bytes / 2;
    tensor.data = nullptr;
    if (!read) return;
    const std::vector<float> values = floats_of(from);
    float largest = 0;
    for (const float value : values) largest = std::max(largest, std::fabs(value));
    if (largest > 0) shift = -std::ilogb(largest);
    halves_.reserve(values.size());
    for (const float value : values) halves_.push_back(f32_to_f16(std::ldexp(value, shift)));
    tensor.data = reinterpret_cast<const std::byte*>(halves_.data());
  }
  Halves(const Halves&) = delete;
  Halves& operator=(const Halves&) = delete;

  Tensor tensor;
  int shift = 0;  // values are those of the tensor times 2^shift

 private:
  std::vector<uint16_t> halves_;
};

}  // namespace

void bad_adapter(const char* detail, const std::string& message) {
  throw Error(ErrorCode::kAdapterInvalid, detail, message);
}

// Makes an adapter's pieces from the tensors of a file.
class AdapterBuilder {
 public:
  // should_stop null: only sizes are wanted.
  AdapterBuilder(Adapter& adapter, const AdapterTensors& tensors, const AdapterTarget& target,
                 const std::function<bool()>* should_stop)
      : a_(adapter), tensors_(tensors), target_(target), should_stop_(should_stop) {
    a_.stage_bytes_.resize(target.stages.size());
    scratch_floats_.resize(target.stages.size());
  }

  void run() {
    for (int layer = 0; layer < target_.config.n_layers(); ++layer) add_layer(layer);
    if (target_.vision != nullptr) {
      for (int layer = 0; layer < target_.vision->n_layers; ++layer) add_vision_layer(layer);
    }
    add_embedding();
    add_head();
    add_token_rows();
    refuse_others();
    add_scratch();
    if (should_stop_ != nullptr && tensors_.check) tensors_.check();
    const std::vector<PlannedStage>& stages = target_.stages;
    for (size_t s = 0; s < stages.size(); ++s) {
      if (a_.stage_bytes_[s] > 0) a_.info_.bytes += stages[s].traits->buffer_bytes(a_.stage_bytes_[s]);
    }
  }

 private:
  bool reads() const { return should_stop_ != nullptr; }
  size_t last_stage() const { return target_.stages.size() - 1; }
  size_t stage_of(int layer) const {
    size_t stage = 0;
    while (layer >= target_.stages[stage].end_layer) ++stage;
    return stage;
  }

  // A piece of a stage's memory; *address gets where it is. make(bytes) fills it.
  template <class T, class Make>
  void add(size_t stage, size_t n_bytes, const T** address, const Make& make) {
    Adapter::Piece piece;
    piece.stage = stage;
    piece.offset = a_.stage_bytes_[stage];
    piece.n_bytes = n_bytes;
    piece.set = [address](std::byte* at) { *address = reinterpret_cast<const T*>(at); };
    if (reads()) {
      piece.data.resize(n_bytes);
      make(piece.data.data());
    }
    a_.stage_bytes_[stage] += aligned(n_bytes);
    a_.pieces_.push_back(std::move(piece));
  }

  void check_shape(const std::string& name, const Tensor& tensor, const std::vector<int64_t>& expected) const {
    if (!is_float_type(tensor.type)) {
      bad_adapter("BAD_TENSOR", tensor.name + ": expected a type of floats (F32, F16, BF16) for " + name +
                                    ", file has " + type_traits(tensor.type).name);
    }
    if (tensor.shape != expected) {
      bad_adapter("BAD_TENSOR", tensor.name + ": expected " + shape_text(expected) + " for " + name + ", file has " +
                                    shape_text(tensor.shape));
    }
  }

  // Every value is looked at once, and becomes part of the adapter's hash.
  void take(const Tensor& tensor) {
    ++a_.info_.n_tensors;
    if (!reads()) return;
    const size_t size = element_bytes(tensor.type);
    for (size_t at = 0; at < tensor.bytes; at += size) {
      if (at % (size_t{1} << 20) == 0) check_stop();
      if (!is_finite(tensor.type, tensor.data + at)) bad_adapter("NONFINITE", tensor.name + ": holds NaN or infinity");
    }
    a_.hash_ = hash_bytes(hash_value(a_.hash_, tensor.type), {tensor.data, tensor.bytes});
  }
  void hash(const std::string& text) { a_.hash_ = hash_bytes(a_.hash_, std::as_bytes(std::span(text))); }

  void check_stop() const {
    if ((*should_stop_)()) throw Error(ErrorCode::kDisposed, "CANCELLED", "loading the adapter was cancelled");
  }

  // The change of a matrix [n_out, n_in] of the model into *out. n_in_computed: of the product, at least n_in.
  // is_table: rows are looked up, so that a is needed as [n_in, rank]. Returns the floats of t for a row.
  int add_matrix(const std::string& name, const AdapterMatrix& m, int64_t n_out, int64_t n_in, size_t stage,
                 const Tensor* base, LowRankWeights* out, int64_t n_in_computed, bool is_table) {
    if (!m.a || !m.b) bad_adapter("MISSING_TENSOR", name + ": expected both halves of a pair (A and B), found one");
    const int64_t rank = m.b->shape.size() == 2 ? m.b->shape[1] : 0;
    if (rank < 1 || rank > kMaxRank) {
      bad_adapter("BAD_RANK", m.b->name + ": expected [" + std::to_string(n_out) + ", rank] with a rank of 1 to " +
                                  std::to_string(kMaxRank) + ", file has " + shape_text(m.b->shape));
    }
    check_shape(name, *m.b, {n_out, rank});
    check_shape(name, *m.a, m.a_is_transposed ? std::vector{n_in, rank} : std::vector{rank, n_in});
    if (m.bias) check_shape(name, *m.bias, {n_out});
    if (m.magnitude) check_shape(name, *m.magnitude, {n_out});
    if (!std::isfinite(m.scale)) bad_adapter("NONFINITE", name + ": expected a finite scale (alpha / rank)");
    if (is_table && m.magnitude)
      bad_adapter("UNSUPPORTED", m.magnitude->name + ": DoRA on the embedding is not supported");
    if (is_table && m.bias) bad_adapter("UNSUPPORTED", m.bias->name + ": a bias on the embedding is not supported");
    if (m.magnitude && m.bias) bad_adapter("UNSUPPORTED", m.bias->name + ": a bias with DoRA is not supported");
    hash(name);
    a_.hash_ = hash_value(a_.hash_, m.scale);
    take(*m.a);
    take(*m.b);
    a_.info_.rank = std::max(a_.info_.rank, static_cast<int>(rank));
    out->scale = m.scale;
    out->n_out = static_cast<int>(n_out);

    // Beside a quantised matrix the rounding of halves is lost in that of its codes, and 32-bit floats are twice as much to
    // read for each token. A bias would have to be scaled, too.
    std::optional<Halves> a_halves;
    std::optional<Halves> b_halves;
    AdapterMatrix rounded = m;
    if (base != nullptr && !is_float_type(base->type) && !m.bias) {
      if (m.a->type == TensorType::kF32) rounded.a = a_halves.emplace(*m.a, reads()).tensor;
      if (m.b->type == TensorType::kF32) rounded.b = b_halves.emplace(*m.b, reads()).tensor;
      out->scale = std::ldexp(m.scale, -(a_halves ? a_halves->shift : 0) - (b_halves ? b_halves->shift : 0));
    }
    const Tensor& a = *rounded.a;
    const Tensor& b = *rounded.b;

    const size_t n_rank = static_cast<size_t>(rank);
    const size_t size_a = element_bytes(a.type);
    const int64_t a_rows = is_table ? n_in : rank;
    const int64_t a_columns = is_table ? rank : n_in_computed;
    out->a = {a.type, static_cast<int>(a_rows), static_cast<int>(a_columns), nullptr};
    add(stage, static_cast<size_t>(a_rows * a_columns) * size_a, &out->a.data, [&](std::byte* to) {
      if (is_table != m.a_is_transposed) {
        transpose(a.data, static_cast<size_t>(a.shape[0]), static_cast<size_t>(a.shape[1]), size_a, to,
                  static_cast<size_t>(a_columns));
      } else {
        const size_t row = static_cast<size_t>(a.shape[1]) * size_a;
        for (size_t i = 0; i < static_cast<size_t>(a_rows); ++i)
          std::memcpy(to + i * static_cast<size_t>(a_columns) * size_a, a.data + i * row, row);
      }
    });
    const size_t columns = padded_columns(out->n_out);
    const size_t size_b = element_bytes(b.type);
    out->b = {b.type, static_cast<int>(rank), static_cast<int>(columns), nullptr};
    add(stage, n_rank * columns * size_b, &out->b.data,
        [&](std::byte* to) { transpose(b.data, static_cast<size_t>(n_out), n_rank, size_b, to, columns); });
    if (m.bias) {
      take(*m.bias);
      add(stage, columns * sizeof(float), &out->bias, [&](std::byte* to) {
        const std::vector<float> values = floats_of(*m.bias);
        std::memcpy(to, values.data(), values.size() * sizeof(float));
      });
    }
    if (m.magnitude) {
      take(*m.magnitude);
      add(stage, 4 * columns * sizeof(float), &out->norms,
          [&](std::byte* to) { row_norms(rounded, *base, columns, reinterpret_cast<float*>(to)); });
    }
    return static_cast<int>(rank);
  }

  static void transpose(const std::byte* from, size_t rows, size_t columns, size_t size, std::byte* to,
                        size_t to_columns) {
    for (size_t i = 0; i < rows; ++i) {
      for (size_t j = 0; j < columns; ++j)
        std::memcpy(to + (j * to_columns + i) * size, from + (i * columns + j) * size, size);
    }
  }

  // Of each row w of the base matrix, with d = b[row] A as they are computed with: the magnitude, |w|^2, 2 w.d and |d|^2, so that |w + s d| follows
  // for every scale s. Sums in double precision: the three parts may cancel.
  void row_norms(const AdapterMatrix& m, const Tensor& base, size_t columns, float* norms) {
    const size_t n_out = static_cast<size_t>(base.shape[0]);
    const size_t n_in = static_cast<size_t>(base.shape[1]);
    const size_t rank = static_cast<size_t>(m.b->shape[1]);
    const std::vector<float> a = floats_of(*m.a);
    const std::vector<float> b = floats_of(*m.b);
    const std::vector<float> magnitude = floats_of(*m.magnitude);
    std::vector<float> w(n_in);
    std::vector<float> d(n_in);
    std::fill_n(norms, 4 * columns, 0.0f);
    std::fill_n(norms + columns, columns, 1.0f);  // no division by zero behind the last row
    for (size_t row = 0; row < n_out; ++row) {
      if (row % kStopRows == 0) check_stop();
      dequantize_row(base.type, base.data + row * row_bytes(base.type, base.shape[1]), w.data(), base.shape[1]);
      std::fill(d.begin(), d.end(), 0.0f);
      for (size_t k = 0; k < rank; ++k) {
        const float factor = b[row * rank + k];
        for (size_t j = 0; j < n_in; ++j) d[j] += factor * a[k * n_in + j];
      }
      double ww = 0;
      double wd = 0;
      double dd = 0;
      for (size_t j = 0; j < n_in; ++j) {
        ww += static_cast<double>(w[j]) * w[j];
        wd += static_cast<double>(w[j]) * d[j];
        dd += static_cast<double>(d[j]) * d[j];
      }
      norms[row] = magnitude[row];
      norms[columns + row] = static_cast<float>(ww);
      norms[2 * columns + row] = static_cast<float>(2 * wd);
      norms[3 * columns + row] = static_cast<float>(dd);
    }
  }

  const AdapterMatrix* matrix(const std::string& name) {
    const auto found = tensors_.matrices.find(name);
    if (found == tensors_.matrices.end()) return nullptr;
    ++n_used_;
    return &found->second;
  }
  const Tensor* replaced(const std::string& name) {
    const auto found = tensors_.replaced.find(name);
    if (found == tensors_.replaced.end()) return nullptr;
    ++n_used_;
    return &found->second;
  }

  // A place in the stage's memory for the t of a matrix; those that are multiplied together lie side by side.
  struct Place {
    LowRankWeights* weights;
    size_t stage;
    size_t offset;  // floats of a row before it
  };
  void place(LowRankWeights* weights, size_t stage, size_t offset, int rank) {
    places_.push_back({weights, stage, offset});
    scratch_floats_[stage] = std::max(scratch_floats_[stage], offset + static_cast<size_t>(rank));
  }

  void add_norm(const std::string& name, const Tensor& tensor, size_t stage, int64_t n, const float** address) {
    check_shape(name, tensor, {n});
    hash(name);
    take(tensor);
    add(stage, static_cast<size_t>(n) * sizeof(float), address, [&](std::byte* to) {
      std::vector<float> values = floats_of(tensor);
      if (tensors_.norms_without_one) {
        for (float& value : values) value += 1.0f;
      }
      std::memcpy(to, values.data(), values.size() * sizeof(float));
    });
  }

  void add_layer(int layer) {
    const size_t stage = stage_of(layer);
    const ModelConfig& config = target_.config;
    size_t offset = 0;  // attn_q, attn_k and attn_v share x, ffn_gate and ffn_up do
    for (const LayerTensor& tensor : layer_tensors(config, layer)) {
      if (tensor.vector != nullptr) {
        if (const Tensor* own = replaced(tensor.name)) {
          auto& change = a_.norms_.emplace_back(
              Adapter::NormChange{layer, tensor.vector, std::make_unique<const float*>(nullptr)});
          add_norm(tensor.name, *own, stage, tensor.shape[0], change.weights.get());
        }
        continue;
      }
      const bool begins = tensor.matrix != &LayerWeights::attn_k && tensor.matrix != &LayerWeights::attn_v &&
                          tensor.matrix != &LayerWeights::ffn_up;
      if (begins) offset = 0;
      if (const AdapterMatrix* m = matrix(tensor.name)) {
        auto& change = a_.layers_.emplace_back(
            Adapter::LayerChange<Weight LayerWeights::*>{layer, tensor.matrix, std::make_unique<LowRankWeights>()});
        const int rank = add_matrix(tensor.name, *m, tensor.shape[0], tensor.shape[1], stage,
                                    target_.tensors.find(tensor.name), change.weights.get(), tensor.shape[1], false);
        place(change.weights.get(), stage, offset, rank);
        offset += static_cast<size_t>(rank);
      }
    }
  }

  void add_vision_layer(int layer) {
    const VisionConfig& config = *target_.vision;
    size_t offset = 0;
    for (const VisionLayerTensor& tensor : vision_layer_tensors(config, layer)) {
      if (tensor.matrix == nullptr) continue;
      if (tensor.matrix != &VisionLayer::attn_k && tensor.matrix != &VisionLayer::attn_v) offset = 0;
      const AdapterMatrix* m = matrix(tensor.name);
      if (m == nullptr) continue;
      // Products of the padded feed-forward part are as wide as it is computed.
      const int64_t n_in = tensor.matrix == &VisionLayer::ffn_down ? vision_ffn_dim(config, target_.vision_requantizes)
                                                                   : tensor.shape[1];
      auto& change = a_.vision_.emplace_back(
          Adapter::LayerChange<Weight VisionLayer::*>{layer, tensor.matrix, std::make_unique<LowRankWeights>()});
      const int rank = add_matrix(tensor.name, *m, tensor.shape[0], tensor.shape[1], last_stage(),
                                  target_.vision_tensors->find(tensor.name), change.weights.get(), n_in, false);
      place(change.weights.get(), last_stage(), offset, rank);
      offset += static_cast<size_t>(rank);
      a_.info_.has_vision = true;
    }
  }

  void add_whole(const std::string& name, const Tensor& tensor, int64_t n_rows, size_t stage, Weight* out) {
    check_shape(name, tensor, {n_rows, target_.config.model_dim});
    hash(name);
    take(tensor);
    *out = {tensor.type, static_cast<int>(n_rows), target_.config.model_dim, nullptr};
    add(stage, tensor.bytes, &out->data, [&](std::byte* to) { std::memcpy(to, tensor.data, tensor.bytes); });
  }

  void add_embedding() {
    const int64_t n_rows = target_.tensors.find(kTokenEmbd)->shape[0];
    if (const Tensor* table = replaced(kTokenEmbd)) add_whole(kTokenEmbd, *table, n_rows, 0, &a_.embedding_.table);
    if (const AdapterMatrix* m = matrix(kTokenEmbd)) {
      LowRankWeights* weights = &a_.embedding_.low_rank;
      const int rank = add_matrix(kTokenEmbd, *m, target_.config.model_dim, n_rows, 0, nullptr, weights, n_rows, true);
      place(weights, 0, 0, rank);
    }
  }

  void add_head() {
    const ModelConfig& config = target_.config;
    if (const Tensor* own = replaced(kOutput)) add_whole(kOutput, *own, config.n_vocab, last_stage(), &a_.head_.matrix);
    if (const Tensor* own = replaced(kOutputNorm))
      add_norm(kOutputNorm, *own, last_stage(), config.model_dim, &a_.head_.norm);
    if (const AdapterMatrix* m = matrix(kOutput)) {
      LowRankWeights* weights = &a_.head_.low_rank;
      const Tensor* base = target_.tensors.find(config.has_output ? kOutput : kTokenEmbd);
      if (m->magnitude && base->shape[0] != config.n_vocab)
        bad_adapter("UNSUPPORTED", m->magnitude->name + ": DoRA on this output matrix is not supported");
      const int rank = add_matrix(kOutput, *m, config.n_vocab, config.model_dim, last_stage(), base, weights,
                                  config.model_dim, false);
      place(weights, last_stage(), 0, rank);
    }
  }

  // They stand in the embedding, and in the output matrix where that is the embedding.
  void add_token_rows() {
    if (!tensors_.token_rows) return;
    const Tensor& rows = *tensors_.token_rows;
    const int64_t n = static_cast<int64_t>(tensors_.token_ids.size());
    check_shape("rows of the embedding", rows, {n, target_.config.model_dim});
    for (size_t i = 0; i < tensors_.token_ids.size(); ++i) {
      const int32_t id = tensors_.token_ids[i];
      if (id < 0 || id >= target_.config.n_vocab || (i > 0 && id <= tensors_.token_ids[i - 1])) {
        bad_adapter("BAD_TENSOR", rows.name + ": expected ascending token ids in 0.." +
                                      std::to_string(target_.config.n_vocab - 1) + ", found " + std::to_string(id));
      }
    }
    a_.hash_ = hash_bytes(a_.hash_, std::as_bytes(std::span(tensors_.token_ids)));
    a_.token_ids_ = tensors_.token_ids;
    const auto copy = [&](size_t stage, Weight* out) {
      *out = {rows.type, static_cast<int>(n), target_.config.model_dim, nullptr};
      add(stage, rows.bytes, &out->data, [&](std::byte* to) { std::memcpy(to, rows.data, rows.bytes); });
    };
    take(rows);
    copy(0, &a_.token_rows_);
    if (target_.config.has_output) return;
    a_.head_.has_token_rows = true;
    if (last_stage() == 0) {
      output_rows_are_first_ = true;
    } else {
      copy(last_stage(), &a_.output_rows_);
    }
  }

  void refuse_others() const {
    if (n_used_ == tensors_.matrices.size() + tensors_.replaced.size()) return;
    const auto known = [&](const std::string& name) {
      for (const ExpectedTensor& tensor : expected_tensors(target_.config)) {
        if (tensor.name == name) return true;
      }
      if (name == kOutput) return true;
      if (target_.vision == nullptr) return false;
      for (const ExpectedTensor& tensor : expected_tensors(*target_.vision)) {
        if (tensor.name == name) return true;
      }
      return false;
    };
    const auto refuse = [&](const std::string& name, const std::string& of_file) {
      const bool is_vision = name.starts_with("v.") || name.starts_with("mm.");
      const std::string why = is_vision && target_.vision == nullptr
                                  ? ": changes the vision encoder, and the model was loaded without one (option mmproj)"
                              : known(name) ? ": adapters of this tensor are not supported"
                                            : ": the model has no such tensor";
      bad_adapter("BAD_TENSOR", of_file + " (" + name + ")" + why);
    };
    const auto is_layer_matrix = [&](const std::string& name) {
      for (int layer = 0; layer < target_.config.n_layers(); ++layer) {
        for (const LayerTensor& tensor : layer_tensors(target_.config, layer)) {
          if (tensor.name == name) return tensor.matrix != nullptr;
        }
      }
      for (int layer = 0; target_.vision != nullptr && layer < target_.vision->n_layers; ++layer) {
        for (const VisionLayerTensor& tensor : vision_layer_tensors(*target_.vision, layer)) {
          if (tensor.name == name) return tensor.matrix != nullptr;
        }
      }
      return name == kTokenEmbd || name == kOutput;
    };
    for (const auto& [name, m] : tensors_.matrices) {
      if (!is_layer_matrix(name)) refuse(name, m.a ? m.a->name : m.b ? m.b->name : name);
    }
    for (const auto& [name, tensor] : tensors_.replaced) {
      const bool is_norm = name == kOutputNorm || (name.starts_with("blk.") && known(name) && !is_layer_matrix(name));
      if (!is_norm && name != kTokenEmbd && name != kOutput) refuse(name, tensor.name);
    }
  }

  void add_scratch() {
    const size_t n_rows = static_cast<size_t>(target_.max_rows);
    for (const Place& place : places_) {
      add_working_memory(place.stage, &place.weights->t,
                         a_.stage_bytes_[place.stage] + n_rows * place.offset * sizeof(float));
    }
    for (size_t s = 0; s < scratch_floats_.size(); ++s)
      a_.stage_bytes_[s] += aligned(n_rows * scratch_floats_[s] * sizeof(float));
    if (a_.head_.has_token_rows) {
      const size_t bytes = static_cast<size_t>(kLogitRows) * a_.token_ids_.size() * sizeof(float);
      add_working_memory(last_stage(), &a_.output_products_, a_.stage_bytes_[last_stage()]);
      a_.stage_bytes_[last_stage()] += aligned(bytes);
    }
    if (output_rows_are_first_) a_.output_rows_ = a_.token_rows_;
  }
  void add_working_memory(size_t stage, float** address, size_t offset) {
    Adapter::Piece piece;
    piece.stage = stage;
    piece.offset = offset;
    piece.set = [address](std::byte* at) { *address = reinterpret_cast<float*>(at); };
    a_.pieces_.push_back(std::move(piece));
  }

  Adapter& a_;
  const AdapterTensors& tensors_;
  const AdapterTarget& target_;
  const std::function<bool()>* should_stop_;
  size_t n_used_ = 0;
  std::vector<Place> places_;
  std::vector<size_t> scratch_floats_;  // of a row, of each stage
  bool output_rows_are_first_ = false;
};

Adapter::Adapter(const AdapterTensors& tensors, const AdapterTarget& target, const std::function<bool()>& should_stop)
    : id_([] {
        static std::atomic<uint64_t> next{1};
        return next.fetch_add(1);
      }()) {
  AdapterBuilder(*this, tensors, target, &should_stop).run();
  info_.hash = std::to_string(hash_);
}

uint64_t Adapter::planned_bytes(const AdapterTensors& tensors, const AdapterTarget& target) {
  Adapter adapter;
  AdapterBuilder(adapter, tensors, target, nullptr).run();
  return adapter.info_.bytes;
}

void Adapter::install(std::span<const Stage> stages) {
  std::vector<std::unique_ptr<Buffer>> memory(stages.size());
  for (size_t s = 0; s < stages.size(); ++s) {
    if (stage_bytes_[s] > 0) memory[s] = stages[s].backend->allocate(stage_bytes_[s]);
  }
  for (Piece& piece : pieces_) {
    std::byte* at = memory[piece.stage]->data() + piece.offset;
    if (!piece.data.empty()) stages[piece.stage].backend->upload(at, piece.data.data(), piece.data.size());
    piece.set(at);
  }
  if (head_.has_token_rows && output_rows_.data == nullptr) output_rows_ = token_rows_;
  pieces_ = {};
  memory_ = std::move(memory);
}

template <class Member>
const LowRankWeights* Adapter::find_in(const std::vector<LayerChange<Member>>& changes, int layer, Member member) {
  auto at = std::lower_bound(changes.begin(), changes.end(), layer,
                             [](const LayerChange<Member>& change, int value) { return change.layer < value; });
  for (; at != changes.end() && at->layer == layer; ++at) {
    if (at->member == member) return at->weights.get();
  }
  return nullptr;
}

const LowRankWeights* Adapter::find(int layer, Weight LayerWeights::* matrix) const {
  return find_in(layers_, layer, matrix);
}

const LowRankWeights* Adapter::find(int layer, Weight VisionLayer::* matrix) const {
  return find_in(vision_, layer, matrix);
}

const float* Adapter::find(int layer, const float* LayerWeights::* norm) const {
  for (const NormChange& change : norms_) {
    if (change.layer == layer && change.member == norm) return *change.weights;
  }
  return nullptr;
}

const float* AdapterMix::find(int layer, const float* LayerWeights::* norm) const {
  for (const Use& use : uses) {
    if (const float* own = use.adapter->find(layer, norm)) return own;
  }
  return nullptr;
}

const float* AdapterMix::output_norm() const {
  for (const Use& use : uses) {
    if (use.adapter->head().norm != nullptr) return use.adapter->head().norm;
  }
  return nullptr;
}

bool AdapterMix::changes_output() const {
  return std::any_of(uses.begin(), uses.end(), [](const Use& use) { return use.adapter->changes_output(); });
}

bool AdapterMix::has_vision() const {
  return std::any_of(uses.begin(), uses.end(), [](const Use& use) { return use.adapter->info().has_vision; });
}

std::shared_ptr<const AdapterMix> make_mix(std::vector<AdapterMix::Use> uses) {
  if (uses.empty()) return nullptr;
  auto mix = std::make_shared<AdapterMix>();
  size_t n_tables = 0;
  size_t n_heads = 0;
  size_t n_norms = 0;
  for (const AdapterMix::Use& use : uses) {
    mix->key.emplace_back(use.adapter->id(), use.scale);
    mix->seed = hash_value(hash_value(mix->seed, use.adapter->id()), use.scale);
    mix->hash = hash_value(hash_value(mix->hash, use.adapter->hash()), use.scale);
    n_tables += use.adapter->embedding().table.data != nullptr || !use.adapter->token_ids().empty();
    n_heads += use.adapter->head().matrix.data != nullptr || use.adapter->head().has_token_rows;
    n_norms += use.adapter->has_norms();
  }
  if (n_tables > 1 || n_heads > 1 || n_norms > 1) {
    bad_adapter("CONFLICT", std::string("several adapters at once: more than one of them replaces ") +
                                (n_norms > 1 ? "norms" : "rows of the embedding or of the output matrix") +
                                ", and only one can");
  }
  mix->uses = std::move(uses);
  return mix;
}

bool same_mix(const AdapterMix* a, const AdapterMix* b) {
  return a == b || key_of(a) == key_of(b);
}

}  // namespace gemma

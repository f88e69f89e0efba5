#include "train/adapter_parameters.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/hash.h"
#include "quant/dequantize.h"
#include "train/products.h"
#include "train/random.h"

namespace gemma::train {
namespace {

// Optimisers and norms go through the flat arrays in pieces of this size.
constexpr size_t kChunk = 1 << 14;
constexpr char kMagic[8] = {'G', 'E', 'M', 'M', 'A', 'T', 'R', '1'};

[[noreturn]] void bad_option(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "TRAINING_OPTION", message);
}

int chunks(size_t size) {
  return static_cast<int>((size + kChunk - 1) / kChunk);
}

bool has_first_moments(const OptimizerConfig& optimizer) {
  return optimizer.kind == OptimizerConfig::Kind::kAdamW || optimizer.momentum != 0;
}
bool has_second_moments(const OptimizerConfig& optimizer) {
  return optimizer.kind == OptimizerConfig::Kind::kAdamW;
}

void check(const OptimizerConfig& o) {
  const auto fraction = [](float x) { return x >= 0 && x < 1; };
  if (!fraction(o.beta1) || !fraction(o.beta2)) bad_option("beta1 and beta2: expected at least 0 and below 1");
  if (!fraction(o.momentum)) bad_option("momentum: expected at least 0 and below 1");
  if (!(o.epsilon > 0) || !std::isfinite(o.epsilon)) bad_option("epsilon: expected above 0");
  if (!(o.weight_decay >= 0) || !std::isfinite(o.weight_decay)) bad_option("weight decay: expected at least 0");
  if (!(o.clip >= 0) || !std::isfinite(o.clip)) bad_option("clip: expected at least 0");
}

}  // namespace

const std::array<TargetMatrix, kTargets> kTargetMatrices = {
    {{"q_proj", "self_attn", "attn_q", &LayerWeights::attn_q},
     {"k_proj", "self_attn", "attn_k", &LayerWeights::attn_k},
     {"v_proj", "self_attn", "attn_v", &LayerWeights::attn_v},
     {"o_proj", "self_attn", "attn_output", &LayerWeights::attn_output},
     {"gate_proj", "mlp", "ffn_gate", &LayerWeights::ffn_gate},
     {"up_proj", "mlp", "ffn_up", &LayerWeights::ffn_up},
     {"down_proj", "mlp", "ffn_down", &LayerWeights::ffn_down}}};

int target_out(const ModelConfig& config, int layer, int target) {
  const LayerConfig& c = config.layers[static_cast<size_t>(layer)];
  switch (target) {
    case kQ: return c.q_dim();
    case kK:
    case kV: return c.kv_dim();
    case kGate:
    case kUp: return c.ffn_dim;
    default: return config.model_dim;
  }
}

int target_in(const ModelConfig& config, int layer, int target) {
  const LayerConfig& c = config.layers[static_cast<size_t>(layer)];
  switch (target) {
    case kO: return c.q_dim();
    case kDown: return c.ffn_dim;
    default: return config.model_dim;
  }
}

std::vector<AdapterParameters::Place> AdapterParameters::places(const ModelConfig& config, const LoraConfig& lora) {
  if (lora.rank < 1 || lora.rank > 1024) bad_option("rank: expected 1 to 1024, found " + std::to_string(lora.rank));
  if (!std::isfinite(lora.alpha)) bad_option("alpha: expected a finite number");
  if (!(lora.dropout >= 0 && lora.dropout < 1)) bad_option("dropout: expected at least 0 and below 1");
  std::array<bool, kTargets> wanted;
  wanted.fill(lora.targets.empty());
  for (const std::string& name : lora.targets) {
    const auto found = std::find_if(kTargetMatrices.begin(), kTargetMatrices.end(),
                                    [&](const TargetMatrix& target) { return name == target.name; });
    if (found == kTargetMatrices.end()) {
      bad_option("target " + quoted(name) +
                 ": expected q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj or down_proj");
    }
    wanted[static_cast<size_t>(found - kTargetMatrices.begin())] = true;
  }
  std::vector<bool> layers(config.layers.size(), lora.layers.empty());
  for (const int layer : lora.layers) {
    if (layer < 0 || layer >= config.n_layers()) {
      bad_option("layer " + std::to_string(layer) + ": expected 0 to " + std::to_string(config.n_layers() - 1));
    }
    layers[static_cast<size_t>(layer)] = true;
  }
  std::vector<Place> all;
  for (int layer = 0; layer < config.n_layers(); ++layer) {
    if (!layers[static_cast<size_t>(layer)]) continue;
    for (int target = 0; target < kTargets; ++target) {
      if (!wanted[static_cast<size_t>(target)]) continue;
      const TargetMatrix& matrix = kTargetMatrices[static_cast<size_t>(target)];
      const std::string name =
          "base_model.model.model.layers." + std::to_string(layer) + "." + matrix.module + "." + matrix.name;
      all.push_back(
          {{name + ".lora_A.weight", layer, matrix.name, true, lora.rank, target_in(config, layer, target), {}}});
      all.push_back(
          {{name + ".lora_B.weight", layer, matrix.name, false, target_out(config, layer, target), lora.rank, {}}});
    }
  }
  std::sort(all.begin(), all.end(), [](const Place& a, const Place& b) { return a.parameter.name < b.parameter.name; });
  size_t offset = 0;
  for (Place& place : all) {
    place.offset = offset;
    offset += place.size();
  }
  return all;
}

uint64_t AdapterParameters::planned_bytes(const ModelConfig& config, const LoraConfig& lora,
                                          const OptimizerConfig& optimizer) {
  uint64_t size = kReadAhead;
  for (const Place& place : places(config, lora)) size += place.size();
  const uint64_t n_arrays = 2u + has_first_moments(optimizer) + has_second_moments(optimizer);
  return size * n_arrays * sizeof(float);
}

AdapterParameters::AdapterParameters(const ModelConfig& config, const LoraConfig& lora,
                                     const OptimizerConfig& optimizer, const AdapterTensors* init)
    : lora_(lora),
      optimizer_(optimizer),
      rank_(lora.rank),
      scale_(lora.alpha / (lora.rslora ? std::sqrt(static_cast<float>(lora.rank)) : static_cast<float>(lora.rank))),
      first_layer_(config.n_layers()),
      places_(places(config, lora)),
      pairs_(config.layers.size()) {
  check(optimizer);
  size_ = places_.back().offset + places_.back().size();
  values_.resize(size_ + kReadAhead);
  gradients_.resize(size_ + kReadAhead);
  if (has_first_moments(optimizer)) first_moments_.resize(size_);
  if (has_second_moments(optimizer)) second_moments_.resize(size_);
  for (const Place& place : places_) {
    const AdapterParameter& p = place.parameter;
    first_layer_ = std::min(first_layer_, p.layer);
    for (size_t target = 0; target < kTargets; ++target) {
      if (p.target != kTargetMatrices[target].name) continue;
      LowRankPair& pair = pairs_[static_cast<size_t>(p.layer)][target];
      (p.is_a ? pair.a : pair.b) = &values_[place.offset];
      (p.is_a ? pair.a_gradient : pair.b_gradient) = &gradients_[place.offset];
    }
  }
  if (init != nullptr) {
    read(*init);
  } else {
    initialize(lora.seed);
  }
}

// As PEFT: kaiming_uniform_(A, a = sqrt(5)), B zero.
void AdapterParameters::initialize(uint64_t seed) {
  const RandomStream random = RandomStream(seed).at(0);
  for (size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    if (!place.parameter.is_a) continue;
    const RandomStream own = random.at(i);
    const float bound = 1.0f / std::sqrt(static_cast<float>(place.parameter.n_cols));
    for (size_t j = 0; j < place.size(); ++j) values_[place.offset + j] = (2 * own.uniform(j) - 1) * bound;
  }
}

void AdapterParameters::read(const AdapterTensors& init) {
  if (!init.replaced.empty() || init.token_rows)
    bad_adapter("UNSUPPORTED", "training goes on from low-rank pairs alone, and this adapter replaces tensors");
  if (init.check) init.check();
  size_t n_pairs = 0;
  for (const Place& place : places_) {
    const AdapterParameter& p = place.parameter;
    const char* tensor = nullptr;
    for (const TargetMatrix& target : kTargetMatrices) {
      if (p.target == target.name) tensor = target.tensor;
    }
    const std::string name = "blk." + std::to_string(p.layer) + "." + tensor + ".weight";
    const auto found = init.matrices.find(name);
    const std::optional<Tensor>* stored = nullptr;
    if (found != init.matrices.end()) stored = p.is_a ? &found->second.a : &found->second.b;
    if (stored == nullptr || !stored->has_value())
      bad_adapter("MISSING_TENSOR", p.name + ": missing in the adapter that training is to start from");
    const AdapterMatrix& matrix = found->second;
    if (matrix.bias || matrix.magnitude)
      bad_adapter("UNSUPPORTED", p.name + ": training goes on from plain pairs, this one has a bias or is DoRA's");
    if (!(std::fabs(matrix.scale - scale_) <= 1e-5f * std::fabs(scale_))) {
      bad_adapter("BAD_SCALE", p.name + ": expected the scale " + std::to_string(scale_) + " (alpha and rank), found " +
                                   std::to_string(matrix.scale));
    }
    const Tensor& t = **stored;
    if (t.shape.size() != 2 || t.shape[0] != p.n_rows || t.shape[1] != p.n_cols) {
      bad_adapter("BAD_RANK",
                  p.name + ": expected " + shape_text({p.n_rows, p.n_cols}) + ", found " + shape_text(t.shape));
    }
    const size_t bytes = row_bytes(t.type, p.n_cols);
    for (int i = 0; i < p.n_rows; ++i) {
      dequantize_row(t.type, t.data + static_cast<size_t>(i) * bytes,
                     &values_[place.offset + static_cast<size_t>(i) * static_cast<size_t>(p.n_cols)], p.n_cols);
    }
    const std::span<const float> read = std::span(values_).subspan(place.offset, place.size());
    if (!std::all_of(read.begin(), read.end(), [](float x) { return std::isfinite(x); }))
      bad_adapter("NONFINITE", p.name + ": NaN or infinity");
    n_pairs += p.is_a;
  }
  if (n_pairs != init.matrices.size())
    bad_adapter("BAD_NAME", "the adapter that training is to start from has matrices that are not trained");
  if (init.check) init.check();
}

void AdapterParameters::clear_gradients() {
  std::fill(gradients_.begin(), gradients_.end(), 0.0f);
}

double AdapterParameters::gradient_norm(ThreadPool& pool) const {
  std::vector<double> squares(static_cast<size_t>(chunks(size_)));
  pool.parallel_for(chunks(size_), [&](int chunk, int) {
    const size_t begin = static_cast<size_t>(chunk) * kChunk;
    double sum = 0;
    for (size_t i = begin; i < std::min(size_, begin + kChunk); ++i)
      sum += static_cast<double>(gradients_[i]) * static_cast<double>(gradients_[i]);
    squares[static_cast<size_t>(chunk)] = sum;
  });
  double sum = 0;
  for (const double square : squares) sum += square;
  return std::sqrt(sum);
}

void AdapterParameters::step(ThreadPool& pool, double learning_rate, double gradient_norm) {
  const OptimizerConfig& o = optimizer_;
  float factor = 1;
  if (o.clip > 0) factor = static_cast<float>(std::min(1.0, static_cast<double>(o.clip) / (gradient_norm + 1e-6)));
  const double n = static_cast<double>(steps_done_ + 1);
  const float step_size = static_cast<float>(learning_rate / (1 - std::pow(static_cast<double>(o.beta1), n)));
  const float root = static_cast<float>(std::sqrt(1 - std::pow(static_cast<double>(o.beta2), n)));
  const float rate = static_cast<float>(learning_rate);
  const float shrunk = static_cast<float>(1 - learning_rate * static_cast<double>(o.weight_decay));
  const bool is_first = steps_done_ == 0;
  pool.parallel_for(chunks(size_), [&](int chunk, int) {
    const size_t begin = static_cast<size_t>(chunk) * kChunk;
    for (size_t i = begin; i < std::min(size_, begin + kChunk); ++i) {
      float g = gradients_[i] * factor;
      float p = values_[i];
      if (o.kind == OptimizerConfig::Kind::kAdamW) {
        float& m = first_moments_[i];
        float& v = second_moments_[i];
        p *= shrunk;
        m += (g - m) * (1 - o.beta1);
        v = v * o.beta2 + g * g * (1 - o.beta2);
        p -= step_size * (m / (std::sqrt(v) / root + o.epsilon));
      } else {
        g += o.weight_decay * p;
        if (o.momentum != 0) {
          float& m = first_moments_[i];
          m = is_first ? g : m * o.momentum + g;
          g = m;
        }
        p -= rate * g;
      }
      values_[i] = p;
    }
  });
  ++steps_done_;
}

std::vector<AdapterParameter> AdapterParameters::list(bool gradients) const {
  std::vector<AdapterParameter> all;
  for (const Place& place : places_) {
    all.push_back(place.parameter);
    all.back().values = std::span(gradients ? gradients_ : values_).subspan(place.offset, place.size());
  }
  return all;
}

// Of everything that the arrays and random numbers mean.
uint64_t AdapterParameters::fingerprint() const {
  uint64_t hash = hash_value(0, static_cast<int>(optimizer_.kind));
  hash = hash_value(hash, has_first_moments(optimizer_));
  hash = hash_value(hash, scale_);
  hash = hash_value(hash, lora_.dropout);
  hash = hash_value(hash, lora_.seed);
  for (const Place& place : places_) {
    hash = hash_bytes(hash, std::as_bytes(std::span(place.parameter.name)));
    hash = hash_value(hash, place.parameter.n_rows);
    hash = hash_value(hash, place.parameter.n_cols);
  }
  return hash;
}

// Magic, fingerprint, steps, the arrays, a hash of all before it. Little endian, as every machine that this runs on.
std::vector<std::byte> AdapterParameters::save() const {
  std::vector<std::byte> state;
  // Not insert(): GCC 12 takes what it inlines of it for an overflow.
  const auto put = [&](std::span<const std::byte> bytes) {
    const size_t at = state.size();
    state.resize(at + bytes.size());
    std::copy(bytes.begin(), bytes.end(), state.begin() + static_cast<std::ptrdiff_t>(at));
  };
  put(std::as_bytes(std::span(kMagic)));
  const uint64_t print = fingerprint();
  put(std::as_bytes(std::span(&print, 1)));
  put(std::as_bytes(std::span(&steps_done_, 1)));
  put(std::as_bytes(std::span(values_).first(size_)));
  put(std::as_bytes(std::span(first_moments_)));
  put(std::as_bytes(std::span(second_moments_)));
  const uint64_t hash = hash_bytes(0, state);
  put(std::as_bytes(std::span(&hash, 1)));
  return state;
}

void AdapterParameters::load(std::span<const std::byte> state) {
  const auto bad = [](const char* what) {
    throw Error(ErrorCode::kInvalidArgument, "BAD_STATE", std::string("state of a training: ") + what);
  };
  const size_t header = sizeof kMagic + sizeof(uint64_t) + sizeof(int64_t);
  const size_t n_floats = size_ + first_moments_.size() + second_moments_.size();
  if (state.size() < header || std::memcmp(state.data(), kMagic, sizeof kMagic) != 0) bad("these bytes are none");
  uint64_t print;
  std::memcpy(&print, state.data() + sizeof kMagic, sizeof print);
  if (print != fingerprint()) bad("it is of other options or another model");
  if (state.size() != header + n_floats * sizeof(float) + sizeof(uint64_t))
    bad("it is cut off or longer than it should be");
  uint64_t hash;
  std::memcpy(&hash, state.data() + state.size() - sizeof hash, sizeof hash);
  if (hash != hash_bytes(0, state.first(state.size() - sizeof hash))) bad("it is damaged");
  int64_t steps;
  std::memcpy(&steps, state.data() + sizeof kMagic + sizeof print, sizeof steps);
  if (steps < 0) bad("it is damaged");
  steps_done_ = steps;
  const std::byte* at = state.data() + header;
  const auto get = [&](float* to, size_t n) {
    if (n > 0) std::memcpy(to, at, n * sizeof(float));
    at += n * sizeof(float);
  };
  get(values_.data(), size_);
  get(first_moments_.data(), first_moments_.size());
  get(second_moments_.data(), second_moments_.size());
}

}  // namespace gemma::train

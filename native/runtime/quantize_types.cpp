#include "runtime/quantize_types.h"

#include <algorithm>

#include "base/error.h"
#include "quant/quantize.h"

namespace gemma {
namespace {

constexpr FileQuantization kQuantizations[] = {
    {"f32", TensorType::kF32, false, 0},     {"f16", TensorType::kF16, false, 1},
    {"bf16", TensorType::kBF16, false, 32},  {"q8_0", TensorType::kQ8_0, false, 7},
    {"q4_0", TensorType::kQ4_0, false, 2},   {"q4_1", TensorType::kQ4_1, false, 3},
    {"q5_0", TensorType::kQ5_0, false, 8},   {"q5_1", TensorType::kQ5_1, false, 9},
    {"q4_k_m", TensorType::kQ4_K, true, 15}, {"q5_k_m", TensorType::kQ5_K, true, 17},
    {"q6_k", TensorType::kQ6_K, false, 18},  {"iq4_xs", TensorType::kIQ4_XS, false, 30},
};

bool same_word(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c; };
  return std::ranges::equal(a, b, [&](char x, char y) { return lower(x) == lower(y); });
}

// In time of the product of the lengths at most.
bool matches(std::string_view pattern, std::string_view text) {
  size_t p = 0;
  size_t t = 0;
  size_t star = std::string_view::npos;
  size_t after_star = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      after_star = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++after_star;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

constexpr std::string_view kWeight = ".weight";

// Tensors of other kinds keep their types: they are small, or nothing could use them otherwise.
bool is_chosen(const TensorToPlan& tensor) {
  const std::string_view name = tensor.name;
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  return tensor.shape.size() >= 2 && name.ends_with(kWeight) && !has("_norm.weight") && !has("position_emb") &&
         !has("patch_emb");
}

bool fits(TensorType type, int64_t n) {
  return n % type_traits(type).block_elems == 0;
}

// What llama.cpp takes where the rows do not fit.
TensorType fallback(TensorType type, int64_t n) {
  TensorType smaller = type;
  switch (type) {
    case TensorType::kQ4_K: smaller = TensorType::kQ5_0; break;
    case TensorType::kQ5_K: smaller = TensorType::kQ5_1; break;
    case TensorType::kQ6_K: smaller = TensorType::kQ8_0; break;
    case TensorType::kIQ4_XS: smaller = TensorType::kIQ4_NL; break;
    default: break;
  }
  return fits(smaller, n) ? smaller : TensorType::kF16;
}

// The layer in "blk.N." or "v.blk.N."; -1 elsewhere.
int layer_of(std::string_view name) {
  const size_t at = name.find("blk.");
  if (at == std::string_view::npos) return -1;
  int layer = 0;
  size_t i = at + 4;
  for (; i < name.size() && name[i] >= '0' && name[i] <= '9' && layer < 100000; ++i)
    layer = 10 * layer + (name[i] - '0');
  return i > at + 4 ? layer : -1;
}

// The first and the last eighth of the layers, and every third between.
bool gets_more_bits(int layer, int n_layers) {
  const int eighth = n_layers / 8;
  return layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2;
}

class Rules {
 public:
  Rules(std::span<const TensorToPlan> tensors, const QuantizedModel& model, const FileQuantization& quantization)
      : model_(model), quantization_(quantization) {
    for (const TensorToPlan& tensor : tensors) {
      is_tied_ &= tensor.name != "output.weight";
      int& n_layers = is_vision(tensor.name) ? n_vision_layers_ : n_layers_;
      n_layers = std::max(n_layers, layer_of(tensor.name) + 1);
    }
  }

  TensorType wanted(const TensorToPlan& tensor) const {
    const TensorType type = quantization_.type;
    const std::string_view name = tensor.name;
    if (is_float_type(type)) return type;
    // The projector is multiplied as its transpose, which llama.cpp makes of floats alone.
    if (name.starts_with("mm.")) return tensor.type;
    if (name == "output.weight" || (is_tied_ && name == "token_embd.weight")) {
      if (!fits(type, tensor.shape.back())) return TensorType::kQ8_0;
      return type == TensorType::kQ8_0 ? type : TensorType::kQ6_K;
    }
    const int layer = layer_of(name);
    const int n_layers = is_vision(name) ? n_vision_layers_ : n_layers_;
    const bool more = gets_more_bits(layer, n_layers);
    const bool is_first = layer < n_layers / 8;
    const bool is_iq4 = type == TensorType::kIQ4_XS;
    if (name.ends_with("attn_v.weight")) {
      if (is_iq4 && model_.heads_per_kv_head >= 4) return TensorType::kQ5_K;
      if (quantization_.mixed && more) return TensorType::kQ6_K;
    }
    if (name.ends_with("ffn_down.weight")) {
      if (quantization_.mixed && more) return TensorType::kQ6_K;
      if (is_iq4 && is_first && !model_.has_importance) return TensorType::kQ5_K;
      if (is_first && model_.has_importance && type == TensorType::kQ4_0) return TensorType::kQ4_1;
      if (is_first && model_.has_importance && type == TensorType::kQ5_0) return TensorType::kQ5_1;
    }
    return type;
  }

 private:
  static bool is_vision(std::string_view name) { return name.starts_with("v."); }

  const QuantizedModel& model_;
  const FileQuantization& quantization_;
  bool is_tied_ = true;  // the embedding is the output matrix too
  int n_layers_ = 0;
  int n_vision_layers_ = 0;
};

}  // namespace

std::span<const FileQuantization> file_quantizations() {
  return kQuantizations;
}

const FileQuantization* find_file_quantization(std::string_view name) {
  const auto found = std::ranges::find_if(kQuantizations, [&](const auto& q) { return same_word(q.name, name); });
  return found == std::end(kQuantizations) ? nullptr : found;
}

const FileQuantization& need_file_quantization(const std::string& name, const char* option) {
  const FileQuantization* found = find_file_quantization(name);
  if (found != nullptr) return *found;
  std::string known;
  for (const FileQuantization& q : kQuantizations) known += (known.empty() ? "" : ", ") + std::string(q.name);
  throw Error(ErrorCode::kInvalidArgument, "UNKNOWN_TYPE",
              std::string(option) + ": \"" + shown_path(name) + "\" is unknown; there are " + known);
}

std::optional<TensorType> find_quantizable_type(std::string_view name) {
  for (const TensorType type : kTensorTypes) {
    if (can_quantize(type) && same_word(type_traits(type).name, name)) return type;
  }
  return std::nullopt;
}

bool pattern_names(std::string_view pattern, std::string_view tensor) {
  if (matches(pattern, tensor)) return true;
  return tensor.ends_with(kWeight) && matches(pattern, tensor.substr(0, tensor.size() - kWeight.size()));
}

std::vector<PlannedType> plan_types(std::span<const TensorToPlan> tensors, const QuantizedModel& model,
                                    const FileQuantization& quantization, std::span<const TypeOverride> overrides) {
  const Rules rules(tensors, model, quantization);
  std::vector<bool> used(overrides.size(), false);
  std::vector<PlannedType> plan;
  plan.reserve(tensors.size());
  for (const TensorToPlan& tensor : tensors) {
    if (!is_chosen(tensor)) {
      plan.push_back({tensor.type, tensor.type});
      continue;
    }
    TensorType wanted = rules.wanted(tensor);
    bool is_named = false;
    for (size_t i = 0; i < overrides.size(); ++i) {
      if (!pattern_names(overrides[i].pattern, tensor.name)) continue;
      used[i] = true;
      if (!is_named) wanted = overrides[i].type;
      is_named = true;
    }
    const int64_t n = tensor.shape.back();
    plan.push_back({fits(wanted, n) ? wanted : fallback(wanted, n), wanted});
  }
  for (size_t i = 0; i < overrides.size(); ++i) {
    if (used[i]) continue;
    throw Error(ErrorCode::kInvalidArgument, "NO_SUCH_TENSOR",
                "overrides: \"" + shown_path(overrides[i].pattern) +
                    "\" names no tensor whose type can be chosen (vectors, norms and positions keep theirs)");
  }
  return plan;
}

}  // namespace gemma

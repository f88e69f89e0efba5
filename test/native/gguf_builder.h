// Writes GGUF files into memory for tests, sound ones and broken ones: every count, offset and header field can be
// overridden.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "gguf/gguf.h"
#include "quant/types.h"

namespace gemma::test {

class ByteWriter {
 public:
  template <class T>
  ByteWriter& put(T value) {
    static_assert(std::is_arithmetic_v<T>);
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof value);
    std::memcpy(&bytes_[at], &value, sizeof value);
    return *this;
  }
  ByteWriter& put_bytes(const std::vector<std::byte>& more) {
    bytes_.insert(bytes_.end(), more.begin(), more.end());
    return *this;
  }
  ByteWriter& put_text(std::string_view text) {
    for (const char c : text) bytes_.push_back(static_cast<std::byte>(c));
    return *this;
  }
  ByteWriter& put_string(std::string_view text) { return put<uint64_t>(text.size()).put_text(text); }
  ByteWriter& pad_to(uint64_t alignment) {
    while (alignment != 0 && bytes_.size() % alignment != 0) bytes_.push_back(std::byte{0});
    return *this;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

template <class T>
constexpr GgufType gguf_type_of() {
  if constexpr (std::is_same_v<T, bool>) return GgufType::kBool;
  if constexpr (std::is_same_v<T, uint8_t>) return GgufType::kU8;
  if constexpr (std::is_same_v<T, int8_t>) return GgufType::kI8;
  if constexpr (std::is_same_v<T, uint16_t>) return GgufType::kU16;
  if constexpr (std::is_same_v<T, int16_t>) return GgufType::kI16;
  if constexpr (std::is_same_v<T, uint32_t>) return GgufType::kU32;
  if constexpr (std::is_same_v<T, int32_t>) return GgufType::kI32;
  if constexpr (std::is_same_v<T, uint64_t>) return GgufType::kU64;
  if constexpr (std::is_same_v<T, int64_t>) return GgufType::kI64;
  if constexpr (std::is_same_v<T, float>) return GgufType::kF32;
  if constexpr (std::is_same_v<T, double>) return GgufType::kF64;
}

struct GgufBuilder {
  struct Metadata {
    std::string key;
    uint32_t type;
    std::vector<std::byte> value;            // as stored behind the type
    std::optional<uint64_t> key_bytes = {};  // a false length
  };
  struct Tensor {
    std::string name;
    uint32_t type;
    std::vector<int64_t> dims;  // as stored: row length first
    std::vector<std::byte> data;
    std::optional<uint64_t> offset = {};  // a false offset
    std::optional<uint32_t> n_dims = {};  // a false count
  };

  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t alignment = 32;                        // of the layout; general.alignment is only written when it is set
  std::optional<uint64_t> n_tensors, n_metadata;  // false counts
  std::vector<Metadata> metadata;
  std::vector<Tensor> tensors;

  // Adds the entry, or replaces one of this key.
  GgufBuilder& set_raw(const std::string& key, uint32_t type, const ByteWriter& value) {
    for (Metadata& m : metadata) {
      if (m.key == key) {
        m.type = type;
        m.value = value.bytes();
        return *this;
      }
    }
    metadata.push_back({key, type, value.bytes()});
    return *this;
  }
  template <class T>
  GgufBuilder& set(const std::string& key, T value) {
    return set_raw(key, static_cast<uint32_t>(gguf_type_of<T>()), ByteWriter().put(value));
  }
  GgufBuilder& set_string(const std::string& key, std::string_view value) {
    return set_raw(key, static_cast<uint32_t>(GgufType::kString), ByteWriter().put_string(value));
  }
  template <class T>
  GgufBuilder& set_array(const std::string& key, const std::vector<T>& values) {
    ByteWriter w;
    w.put(static_cast<uint32_t>(gguf_type_of<T>())).template put<uint64_t>(values.size());
    for (const T value : values) w.put(value);
    return set_raw(key, static_cast<uint32_t>(GgufType::kArray), w);
  }
  GgufBuilder& set_strings(const std::string& key, const std::vector<std::string>& values) {
    ByteWriter w;
    w.put(static_cast<uint32_t>(GgufType::kString)).put<uint64_t>(values.size());
    for (const std::string& value : values) w.put_string(value);
    return set_raw(key, static_cast<uint32_t>(GgufType::kArray), w);
  }
  GgufBuilder& remove(const std::string& key) {
    std::erase_if(metadata, [&](const Metadata& m) { return m.key == key; });
    return *this;
  }
  Metadata& entry(const std::string& key) {
    for (Metadata& m : metadata) {
      if (m.key == key) return m;
    }
    throw std::runtime_error("no metadata " + key);
  }

  // shape: outermost first. data: the stored bytes of the tensor.
  GgufBuilder& add_tensor(const std::string& name, TensorType type, std::vector<int64_t> shape,
                          std::vector<std::byte> data) {
    tensors.push_back({name, static_cast<uint32_t>(type), {shape.rbegin(), shape.rend()}, std::move(data)});
    return *this;
  }
  GgufBuilder& add_floats(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& values) {
    ByteWriter w;
    for (const float value : values) w.put(value);
    return add_tensor(name, TensorType::kF32, std::move(shape), w.bytes());
  }
  GgufBuilder& remove_tensor(const std::string& name) {
    std::erase_if(tensors, [&](const Tensor& t) { return t.name == name; });
    return *this;
  }
  Tensor& tensor(const std::string& name) {
    for (Tensor& t : tensors) {
      if (t.name == name) return t;
    }
    throw std::runtime_error("no tensor " + name);
  }

  // Another file's metadata and tensors.
  explicit GgufBuilder(const GgufFile& file) {
    for (const auto& [key, value] : file.metadata()) {
      ByteWriter w;
      if (value.is_array) w.put(static_cast<uint32_t>(value.type)).put<uint64_t>(value.count);
      if (value.type == GgufType::kString) {
        if (!value.is_array) w.put_string(value.string);
        for (const std::string_view text : value.strings) w.put_string(text);
      } else {
        w.put_bytes({value.raw.begin(), value.raw.end()});
      }
      set_raw(key, static_cast<uint32_t>(value.is_array ? GgufType::kArray : value.type), w);
    }
    for (const gemma::Tensor& t : file.tensors()) add_tensor(t.name, t.type, t.shape, {t.data, t.data + t.bytes});
  }
  GgufBuilder() = default;

  std::vector<std::byte> build() const {
    ByteWriter out;
    out.put_text(magic).put(version);
    out.put<uint64_t>(n_tensors.value_or(tensors.size())).put<uint64_t>(n_metadata.value_or(metadata.size()));
    for (const Metadata& m : metadata) {
      out.put<uint64_t>(m.key_bytes.value_or(m.key.size())).put_text(m.key).put(m.type).put_bytes(m.value);
    }
    ByteWriter data;
    for (const Tensor& t : tensors) {
      data.pad_to(alignment);
      out.put_string(t.name).put(t.n_dims.value_or(static_cast<uint32_t>(t.dims.size())));
      for (const int64_t dim : t.dims) out.put(dim);
      out.put(t.type).put<uint64_t>(t.offset.value_or(data.bytes().size()));
      data.put_bytes(t.data);
    }
    data.pad_to(alignment);
    if (!tensors.empty()) out.pad_to(alignment);
    return out.put_bytes(data.bytes()).bytes();
  }
};

// Random values in [-1, 1), the same on every platform.
class Uniform {
 public:
  explicit Uniform(uint32_t seed) : rng_(seed) {}
  float operator()() { return static_cast<float>(rng_() >> 8) * 0x1p-23f - 1.0f; }
  std::vector<float> values(const std::vector<int64_t>& shape, float mean, float width) {
    int64_t n = 1;
    for (const int64_t dim : shape) n *= dim;
    std::vector<float> all(static_cast<size_t>(n));
    for (float& value : all) value = mean + width * (*this)();
    return all;
  }

 private:
  std::mt19937 rng_;
};

// Sizes of a made-up Gemma 3; unequal on purpose, so that one width cannot stand in for another.
struct TinyGemma {
  int n_layers = 2;
  int model_dim = 48;
  int ffn_dim = 80;
  int n_heads = 4;
  int n_kv_heads = 2;
  int head_dim = 16;
  int n_ctx_train = 512;
  int n_window = 8;
  uint32_t seed = 1;
};

// Pieces of the tiny vocabulary: four specials, two turn markers, 256 bytes, a blank and some letters.
inline std::vector<std::string> tiny_pieces() {
  std::vector<std::string> pieces = {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"};
  for (int i = 0; i < 256; ++i) {
    constexpr char kHex[] = "0123456789ABCDEF";
    pieces.push_back(std::string("<0x") + kHex[i / 16] + kHex[i % 16] + ">");
  }
  pieces.push_back("\xe2\x96\x81");  // U+2581
  for (char c = 'a'; c <= 'z'; ++c) pieces.push_back(std::string(1, c));
  pieces.push_back("he");
  pieces.push_back("llo");
  return pieces;
}

// A sound gemma3 file with random float32 weights, in llama.cpp's layout.
inline GgufBuilder tiny_gemma3(const TinyGemma& size = {}) {
  GgufBuilder b;
  const auto u32 = [&](const char* key, int value) { b.set<uint32_t>(key, static_cast<uint32_t>(value)); };
  b.set_string("general.architecture", "gemma3").set_string("general.type", "model").set_string("general.name", "tiny");
  u32("gemma3.block_count", size.n_layers);
  u32("gemma3.context_length", size.n_ctx_train);
  u32("gemma3.embedding_length", size.model_dim);
  u32("gemma3.feed_forward_length", size.ffn_dim);
  u32("gemma3.attention.head_count", size.n_heads);
  u32("gemma3.attention.head_count_kv", size.n_kv_heads);
  u32("gemma3.attention.key_length", size.head_dim);
  u32("gemma3.attention.value_length", size.head_dim);
  u32("gemma3.attention.sliding_window", size.n_window);
  b.set("gemma3.attention.layer_norm_rms_epsilon", 1e-6f).set("gemma3.rope.freq_base", 1e6f);

  const std::vector<std::string> pieces = tiny_pieces();
  std::vector<float> scores;
  std::vector<int32_t> kinds;
  for (size_t i = 0; i < pieces.size(); ++i) {
    scores.push_back(i < 262 ? -1000.0f : -static_cast<float>(i - 262));
    kinds.push_back(i == 3 ? 2 : i < 6 ? 3 : i < 262 ? 6 : 1);
  }
  b.set_string("tokenizer.ggml.model", "llama").set_strings("tokenizer.ggml.tokens", pieces);
  b.set_array("tokenizer.ggml.scores", scores).set_array("tokenizer.ggml.token_type", kinds);
  u32("tokenizer.ggml.bos_token_id", 2);
  u32("tokenizer.ggml.eos_token_id", 1);
  u32("tokenizer.ggml.unknown_token_id", 3);
  u32("tokenizer.ggml.padding_token_id", 0);
  b.set("tokenizer.ggml.add_bos_token", true).set("tokenizer.ggml.add_space_prefix", false);

  Uniform uniform(size.seed);
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    const std::vector<float> values = uniform.values(shape, shape.size() == 1 ? 1.0f : 0.0f, 0.2f);
    b.add_floats(name, std::move(shape), values);
  };
  const int q_dim = size.n_heads * size.head_dim;
  const int kv_dim = size.n_kv_heads * size.head_dim;
  add("token_embd.weight", {static_cast<int64_t>(pieces.size()), size.model_dim});
  add("output_norm.weight", {size.model_dim});
  for (int i = 0; i < size.n_layers; ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    add(block + "attn_norm.weight", {size.model_dim});
    add(block + "attn_q.weight", {q_dim, size.model_dim});
    add(block + "attn_k.weight", {kv_dim, size.model_dim});
    add(block + "attn_v.weight", {kv_dim, size.model_dim});
    add(block + "attn_q_norm.weight", {size.head_dim});
    add(block + "attn_k_norm.weight", {size.head_dim});
    add(block + "attn_output.weight", {size.model_dim, q_dim});
    add(block + "post_attention_norm.weight", {size.model_dim});
    add(block + "ffn_norm.weight", {size.model_dim});
    add(block + "ffn_gate.weight", {size.ffn_dim, size.model_dim});
    add(block + "ffn_up.weight", {size.ffn_dim, size.model_dim});
    add(block + "ffn_down.weight", {size.model_dim, size.ffn_dim});
    add(block + "post_ffw_norm.weight", {size.model_dim});
  }
  return b;
}

// Sizes of a made-up vision encoder, unequal on purpose.
struct TinyVision {
  int n_layers = 3;
  int model_dim = 96;
  int ffn_dim = 100;
  int n_heads = 2;
  int image_size = 112;
  int patch_size = 14;
  int n_pool = 2;
  int text_dim = 48;
  uint32_t seed = 1;
};

// A sound mmproj file with random weights, in llama.cpp's layout.
inline GgufBuilder tiny_mmproj(const TinyVision& size = {}) {
  GgufBuilder b;
  const auto u32 = [&](const std::string& key, int value) {
    b.set<uint32_t>("clip.vision." + key, static_cast<uint32_t>(value));
  };
  b.set_string("general.architecture", "clip").set_string("general.type", "mmproj");
  b.set("clip.has_vision_encoder", true).set_string("clip.projector_type", "gemma3").set("clip.use_gelu", true);
  u32("projection_dim", size.text_dim);
  u32("image_size", size.image_size);
  u32("patch_size", size.patch_size);
  u32("embedding_length", size.model_dim);
  u32("feed_forward_length", size.ffn_dim);
  u32("block_count", size.n_layers);
  u32("attention.head_count", size.n_heads);
  u32("projector.scale_factor", size.n_pool);
  b.set("clip.vision.attention.layer_norm_epsilon", 1e-6f);
  b.set_array<float>("clip.vision.image_mean", {0.5f, 0.5f, 0.5f});
  b.set_array<float>("clip.vision.image_std", {0.5f, 0.5f, 0.5f});

  Uniform uniform(size.seed);
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float mean, float width) {
    const std::vector<float> values = uniform.values(shape, mean, width);
    b.add_floats(name, std::move(shape), values);
  };
  const auto norm = [&](const std::string& name) {
    add(name + ".weight", {size.model_dim}, 1.0f, 0.3f);
    add(name + ".bias", {size.model_dim}, 0.0f, 0.2f);
  };
  const auto linear = [&](const std::string& name, int n_out, int n_in) {
    add(name + ".weight", {n_out, n_in}, 0.0f, 1.7f / std::sqrt(static_cast<float>(n_in)));
    add(name + ".bias", {n_out}, 0.0f, 0.2f);
  };
  const int n_side = size.image_size / size.patch_size;
  add("v.patch_embd.weight", {size.model_dim, 3, size.patch_size, size.patch_size}, 0.0f,
      2.0f / static_cast<float>(size.patch_size));
  add("v.patch_embd.bias", {size.model_dim}, 0.0f, 0.2f);
  add("v.position_embd.weight", {n_side * n_side, size.model_dim}, 0.0f, 0.5f);
  norm("v.post_ln");
  add("mm.soft_emb_norm.weight", {size.model_dim}, 1.0f, 0.3f);
  add("mm.input_projection.weight", {size.model_dim, size.text_dim}, 0.0f, 0.2f);
  for (int i = 0; i < size.n_layers; ++i) {
    const std::string block = "v.blk." + std::to_string(i) + ".";
    norm(block + "ln1");
    norm(block + "ln2");
    for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_out"})
      linear(block + name, size.model_dim, size.model_dim);
    linear(block + "ffn_up", size.ffn_dim, size.model_dim);
    linear(block + "ffn_down", size.model_dim, size.ffn_dim);
  }
  return b;
}

}  // namespace gemma::test

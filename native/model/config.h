// What a Gemma 3 file says about its model, checked. Source: Gemma 3 report table 1; keys as llama.cpp and Ollama write
// them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "gguf/gguf.h"

namespace gemma {

struct ModelConfig {
  std::string name;        // general.name, may be empty
  std::string size_label;  // "270M", "1B", ... from general.size_label or the shape
  int n_layers = 0;
  int model_dim = 0;
  int ffn_dim = 0;
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int q_dim = 0;                  // n_heads * head_dim
  int kv_dim = 0;                 // n_kv_heads * head_dim
  int n_vocab = 0;                // rows of the embedding that are logits (<= rows in the file, see vocabulary)
  int n_ctx_train = 0;            // context_length
  int n_window = 0;               // local layers: positions seen, the own one included
  std::vector<uint8_t> is_local;  // [n_layers]
  float rms_eps = 1e-6f;
  float query_scale = 0;  // head_dim^-1/2, or (model_dim / n_heads)^-1/2 in the 27B shape (62 layers)
  float rope_base_global = 1e6f;
  float rope_base_local = 1e4f;
  float rope_factor_global = 1.0f;  // positions of global layers are divided by it
  float final_softcap = 0;          // 0: none
  bool ollama_layout = false;
};

// Checks architecture, hyper-parameters and every tensor's name, shape and type. Throws Error: kUnsupportedModel,
// kGgufInvalid with BAD_HPARAM, BAD_TENSOR, BAD_TYPE.
ModelConfig read_model_config(const GgufFile& file);

// Bytes of weights that are used, and of a cache of n_ctx positions for one sequence.
struct MemoryPlan {
  uint64_t weights_bytes = 0;
  uint64_t kv_bytes = 0;       // local layers: window plus one batch; global layers: n_ctx
  uint64_t scratch_bytes = 0;  // activations of one batch
  uint64_t screen_bytes = 0;   // of the output matrix (Backend::make_output)
  uint64_t vision_bytes = 0;   // of a vision encoder at work: weights, activations (plan_vision_bytes)
  uint64_t total_bytes = 0;

  MemoryPlan& operator+=(const MemoryPlan& other);
  void add_vision(uint64_t bytes) { vision_bytes += bytes, total_bytes += bytes; }
};
MemoryPlan plan_memory(const GgufFile& file, const ModelConfig& config, int n_ctx, KvType kv_type, int n_batch,
                       bool screened);

}  // namespace gemma

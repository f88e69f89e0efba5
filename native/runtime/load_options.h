// What a model is loaded with, and what came of it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "model/memory_plan.h"
#include "model/vision_config.h"
#include "reader/adapter_file.h"
#include "reader/gguf_reader.h"

namespace gemma {

inline constexpr int kDefaultContext = 32768;
inline constexpr int kDefaultBatch = 512;

struct NamedAdapter {
  std::string name;
  AdapterSource source;
};

struct LoadOptions {
  std::string path;               // GGUF file (first part of a split model)
  std::string device = "auto";    // "auto", "cpu", "cuda", "cuda:1", "cuda:0,cuda:1", likewise "rocm"
  std::string emulated_chip;      // for tests: the chip of device "emulated"; "": the first
  int n_gpu_layers = -1;          // so many of the last layers on GPUs; -1: as memory allows
  std::string isa;                // "" best; "avx512_vnni", "avx2", "ref": forced, error when unknown or not here
  int n_threads = 0;              // 0: physical cores this process may use
  int n_ctx = 0;                  // positions per sequence; 0: min(model's, 32768)
  std::optional<KvType> kv_type;  // nothing: as default_kv_type() says
  int n_batch =
      0;  // rows per step; 0: default (512). With vision at least an image and 64, of an encoder at least n_ctx
  std::string draft_path;  // a smaller model of the same vocabulary that guesses tokens ahead; "": none
  bool mmap = true;
  std::string mmproj_path;  // the model's vision encoder; "": the one in the model file, if it holds one
  bool needs_dense = true;  // an embedding model without its dense layers is an error
  bool vision = true;       // false: none, whatever the model file holds
  // kExact: the encoder's float weights as they are stored, in float32. kFast: requantised to Q8_0, int8 products.
  Arithmetic vision_arithmetic = Arithmetic::kFast;
  // Keys and values that are kept for prompts that begin alike (prefix_cache.h); 0: none.
  uint64_t prefix_cache_bytes = 0;
  // Keep a screen of the output matrix, a quarter of its size at 16 bits: sampled logits then cost a fraction of all.
  bool screen_logits = true;
  // A FileQuantization's name: weights of floats become what a file of that type has, also of the draft model. "": none.
  std::string quantize;
  std::vector<NamedAdapter> adapters;
  // fraction in 0..1, called on the loading thread
  std::function<void(double)> on_progress;
  const std::atomic<bool>* cancel = nullptr;  // looked at during load; throws Error{kDisposed, CANCELLED}
};

struct EngineInfo {
  std::string device;  // "cpu", "cuda:0", "cpu + cuda:0"
  std::string isa;     // "avx512_vnni", "sm_90": of the last of the devices
  int n_gpu_layers = 0;
  int n_threads = 0;
  int n_ctx = 0;
  KvType kv_type = KvType::kF16;
  MemoryPlan memory;  // the draft model included
  bool has_draft_model = false;
  std::string quantize;  // what weights became while they were loaded; "": they are as they are stored
  ChatMetadata chat;
  std::optional<VisionConfig> vision;
  Arithmetic vision_arithmetic = Arithmetic::kFast;
};

}  // namespace gemma

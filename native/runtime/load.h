// Loading: from a path and options to all that serving needs.
#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "grammar/grammar.h"
#include "model/adapter.h"
#include "model/config.h"
#include "model/forward.h"
#include "model/vision.h"
#include "runtime/draft.h"
#include "runtime/load_options.h"
#include "runtime/prefix_cache.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

// A model in memory with what belongs to it. Members are destroyed in the reverse order: whatever uses a backend before
// the backends.
struct LoadedModel {
  ModelConfig config;
  EngineInfo info;
  std::vector<TokenId> banned;  // never sampled: image markers, ids without text
  int max_image_rows = 0;       // of one image: all of them go through the layers in one step
  int max_text_rows = 0;        // of a step that embeds more than one text
  std::vector<std::unique_ptr<Backend>> backends;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<GrammarCompiler> grammars;
  std::unique_ptr<Model> model;
  std::unique_ptr<Drafter> drafter;
  std::unique_ptr<PrefixCache> prefixes;
  std::unique_ptr<VisionEncoder> encoder;  // null: none
  // Of the engine's thread once there is one. Those that only stand here are to be freed.
  std::vector<std::shared_ptr<const Adapter>> adapters;
  std::vector<Stage> stages;
  std::shared_ptr<const TensorSource> tensors;         // the model's
  std::shared_ptr<const TensorSource> vision_tensors;  // null: none

  // Gives back weights and cache. Configuration, info and tokenizer stay.
  void release();

  // What adapters are made for. tensors and vision: those above.
  AdapterTarget adapter_target(const TensorSource& model_tensors, const TensorSource* tensors_of_vision) const;
  // Throws Error{kOutOfMemory}.
  void install(const std::shared_ptr<Adapter>& adapter);
  // Adapters that nobody has any more.
  void free_adapters() noexcept;
};

// Blocking. Throws Error: kInvalidArgument, CONTEXT_SIZE; kDisposed, CANCELLED; and as ModelFile::open,
// its config and vocabulary, open_vision, open_devices and Drafter::load_model do.
std::unique_ptr<LoadedModel> load_model(const LoadOptions& options);

}  // namespace gemma

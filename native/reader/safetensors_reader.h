// The reader of Hugging Face checkpoints: a folder with config.json, the weights in safetensors files, the tokenizer and
// what goes with it: of sentence-transformers' models also the modules in folders of their own.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file_map.h"
#include "model/config.h"
#include "model/tensor_source.h"
#include "model/vision_config.h"
#include "reader/hf_config.h"
#include "reader/sentence_modules.h"
#include "safetensors/safetensors.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

// The weights of a checkpoint: its files, and its tensors as the model is to have them. Those that are not what a file
// holds (norms as 1 + w, tensors at addresses that no kernel reads from) are copies.
struct SafetensorsWeights {
  std::vector<std::shared_ptr<const SafetensorsFile>> files;
  std::vector<Tensor> tensors;     // of the files, in their order; what nothing computes with left out
  std::vector<std::string> names;  // of each tensor in the model
  std::vector<std::unique_ptr<std::byte[]>> copies;
  uint64_t file_bytes = 0;
};

class SafetensorsModel {
 public:
  // Reads the configuration and the headers of all files. Throws Error: kFile, kSafetensorsInvalid, kUnsupportedModel,
  // each with a message that names the file.
  static std::shared_ptr<const SafetensorsModel> open(const std::string& folder, const FileOptions& options);

  // Checked with every tensor's name, shape and type.
  const ModelConfig& config() const { return config_.model; }
  // How answers are sampled by default (generation_config.json).
  const HfSampling& sampling() const { return config_.sampling; }
  const std::string& model_type() const { return config_.model_type; }
  // How to get the dense layers, where config().lacks_dense.
  std::string dense_hint() const;
  std::shared_ptr<const TensorSource> decoder_tensors() const;
  // As many ids as the embedding has rows. Throws Error: kFile, kUnsupportedModel, kSafetensorsInvalid with BAD_VOCAB.
  Vocabulary vocabulary() const;

  bool has_vision() const { return has_vision_; }
  // Checked likewise. has_vision() is true.
  const VisionConfig& vision_config() const { return *config_.vision; }
  std::shared_ptr<const TensorSource> vision_tensors() const;

  const std::vector<Tensor>& tensors() const { return weights_->tensors; }
  uint64_t bytes() const { return weights_->file_bytes; }

 private:
  explicit SafetensorsModel(std::string folder) : folder_(std::move(folder)) {}
  void read_configuration();
  void open_weights(const FileOptions& options);
  void open_shards(const std::string& index, const FileOptions& options);
  void add_file(const std::string& path, const FileOptions& options);
  void make_tensors(const FileOptions& options);
  void add_tensor(const SafetensorsTensor& stored, std::string name, const FileOptions& options);
  void add_dense(const FileOptions& options);
  void check() const;
  std::shared_ptr<TensorSource> make_source(bool vision) const;
  std::string path(const char* name) const;

  std::string folder_;
  HfConfig config_;
  std::optional<SentenceModules> modules_;
  bool has_vision_ = false;
  std::shared_ptr<SafetensorsWeights> weights_ = std::make_shared<SafetensorsWeights>();
};

// model.safetensors.index.json: for each tensor the file that it is in, a name and no path. Throws Error.
std::map<std::string, std::string> read_safetensors_index(std::string_view text);

}  // namespace gemma

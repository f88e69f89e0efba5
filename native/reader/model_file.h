// A model file, whatever its format: the one door to what a file holds. A file is GGUF, a folder is a checkpoint of
// Hugging Face's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "reader/gguf_reader.h"
#include "reader/safetensors_reader.h"

namespace gemma {

class ModelFile {
 public:
  // Throws Error as GgufFile::open or SafetensorsModel::open does; everything below as the function of the reader that it
  // calls, with the file named in front.
  static ModelFile open(const std::string& path, const FileOptions& options);

  ModelConfig config() const;
  // Keeps the weights, not the headers.
  std::shared_ptr<const TensorSource> decoder_tensors() const;
  // The pieces are views into the headers, which this object keeps, or into what the vocabulary keeps.
  Vocabulary vocabulary(int n_vocab) const;
  // Of a vocabulary of this file. Throws Error with BAD_VOCAB.
  std::unique_ptr<Tokenizer> make_tokenizer(const Vocabulary& vocabulary) const;

  bool has_vision() const;
  VisionConfig vision_config(int text_dim) const;
  std::shared_ptr<const TensorSource> vision_tensors(const VisionConfig& config) const;

  // Of a folder empty: its template is in a file of its own.
  ChatMetadata chat_metadata() const;
  std::string architecture() const;
  // How to get a file with the model's dense layers, where config().lacks_dense.
  std::string dense_hint() const;
  uint64_t bytes() const;  // of the weights' files, all parts
  // Every tensor, of the decoder, of the vision encoder and others.
  const std::vector<Tensor>& tensors() const;

 private:
  ModelFile() = default;

  std::string path_;
  // One of them.
  std::shared_ptr<const GgufFile> gguf_;
  std::shared_ptr<const SafetensorsModel> folder_;
};

}  // namespace gemma

// A model file, whatever its format: the one door to what a file holds. GGUF is the format that there is a reader of.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "reader/gguf_reader.h"

namespace gemma {

class ModelFile {
 public:
  // Throws Error as GgufFile::open does; everything below as the function of gguf_reader.h that it calls, with the file
  // named in front.
  static ModelFile open(const std::string& path, const FileOptions& options) {
    return ModelFile(path, GgufFile::open(path, options));
  }

  ModelConfig config() const {
    return in_file(path_, [&] { return read_model_config(*gguf_); });
  }
  // Keeps the weights, not the headers.
  std::shared_ptr<const TensorSource> decoder_tensors() const { return gemma::decoder_tensors(gguf_); }
  // The pieces are views into the headers, which this object keeps.
  Vocabulary vocabulary(int n_vocab) const {
    return in_file(path_, [&] { return read_vocabulary(*gguf_, n_vocab); });
  }

  bool has_vision() const { return gemma::has_vision(*gguf_); }
  VisionConfig vision_config(int text_dim) const {
    return in_file(path_, [&] { return read_vision_config(*gguf_, text_dim); });
  }
  std::shared_ptr<const TensorSource> vision_tensors(const VisionConfig& config) const {
    return gemma::vision_tensors(gguf_, config);
  }

  ChatMetadata chat_metadata() const {
    return in_file(path_, [&] { return read_chat_metadata(*gguf_); });
  }
  std::string architecture() const { return gguf_->find_string("general.architecture").value_or(""); }
  uint64_t bytes() const { return gguf_->file_bytes(); }  // all parts
  // Every tensor, of the decoder, of the vision encoder and others.
  const std::vector<Tensor>& tensors() const { return gguf_->tensors(); }

 private:
  ModelFile(std::string path, std::shared_ptr<const GgufFile> gguf) : path_(std::move(path)), gguf_(std::move(gguf)) {}

  std::string path_;
  std::shared_ptr<const GgufFile> gguf_;
};

}  // namespace gemma

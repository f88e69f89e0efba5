#include "reader/model_file.h"

#include "base/error.h"

namespace gemma {

ModelFile ModelFile::open(const std::string& path, const FileOptions& options) {
  ModelFile file;
  file.path_ = path;
  if (path_kind(path) == PathKind::kFolder) {
    file.folder_ = SafetensorsModel::open(path, options);
  } else {
    file.gguf_ = GgufFile::open(path, options);
  }
  return file;
}

ModelConfig ModelFile::config() const {
  if (folder_) return folder_->config();
  return in_file(path_, [&] { return read_model_config(*gguf_); });
}

std::shared_ptr<const TensorSource> ModelFile::decoder_tensors() const {
  return folder_ ? folder_->decoder_tensors() : gemma::decoder_tensors(gguf_);
}

Vocabulary ModelFile::vocabulary(int n_vocab) const {
  if (folder_) return folder_->vocabulary();
  return in_file(path_, [&] { return read_vocabulary(*gguf_, n_vocab); });
}

std::unique_ptr<Tokenizer> ModelFile::make_tokenizer(const Vocabulary& vocabulary) const {
  return in_file(path_, [&] {
    try {
      return std::make_unique<Tokenizer>(vocabulary);
    } catch (const Error& error) {
      if (!folder_ || error.code() != ErrorCode::kGgufInvalid) throw;
      throw Error(ErrorCode::kSafetensorsInvalid, "BAD_VOCAB", error.what());
    }
  });
}

bool ModelFile::has_vision() const {
  return folder_ ? folder_->has_vision() : gemma::has_vision(*gguf_);
}

VisionConfig ModelFile::vision_config(int text_dim) const {
  if (!folder_) return in_file(path_, [&] { return read_vision_config(*gguf_, text_dim); });
  const VisionConfig& config = folder_->vision_config();
  if (config.text_dim != text_dim) {
    throw Error(ErrorCode::kSafetensorsInvalid, "BAD_HPARAM",
                shown_path(path_) + ": its vision encoder is for a model of width " + std::to_string(config.text_dim) +
                    ", the model has " + std::to_string(text_dim));
  }
  return config;
}

std::shared_ptr<const TensorSource> ModelFile::vision_tensors(const VisionConfig& config) const {
  return folder_ ? folder_->vision_tensors() : gemma::vision_tensors(gguf_, config);
}

ChatMetadata ModelFile::chat_metadata() const {
  if (folder_) return {};
  return in_file(path_, [&] { return read_chat_metadata(*gguf_); });
}

std::string ModelFile::dense_hint() const {
  if (folder_) return folder_->dense_hint();
  return "the file has none of the two dense layers of an embedding model: convert it again with llama.cpp's "
         "convert_hf_to_gguf.py --sentence-transformers-dense-modules";
}

std::string ModelFile::architecture() const {
  return folder_ ? folder_->model_type() : gguf_->find_string("general.architecture").value_or("");
}

uint64_t ModelFile::bytes() const {
  return folder_ ? folder_->bytes() : gguf_->file_bytes();
}

const std::vector<Tensor>& ModelFile::tensors() const {
  return folder_ ? folder_->tensors() : gguf_->tensors();
}

}  // namespace gemma

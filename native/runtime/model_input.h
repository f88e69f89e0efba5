// A model that is to be written anew, whatever its format: for each file that is written what the keys are and which
// tensors go into it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gguf/gguf.h"
#include "gguf/gguf_writer.h"
#include "model/config.h"
#include "model/tensor_source.h"
#include "model/vision_config.h"
#include "runtime/model_writer.h"
#include "runtime/quantize_types.h"

namespace gemma {

struct InputTensor {
  std::string name;        // in the file that is written
  std::string model_name;  // as the model knows it, where that is another name
  const Tensor* tensor = nullptr;
};

// What goes into one file.
struct InputFile {
  GgufMetadata metadata;
  uint64_t alignment = 32;
  std::vector<InputTensor> tensors;
  bool of_checkpoint = false;  // its types are not a GGUF file's: vectors are F32 there
};

class ModelInput {
 public:
  // A GGUF file (of a split model the first part), or a checkpoint's folder, of which chat_template is the template.
  // Throws Error as GgufFile::open and SafetensorsModel::open do; kUnsupportedModel for another architecture, or with
  // NOT_IN_GGUF.
  static ModelInput open(const std::string& path, const std::string& chat_template);

  const std::string& path() const { return path_; }
  InputFile& main() { return main_; }
  // A vision encoder that goes into a file of its own: a folder's.
  std::optional<InputFile>& vision() { return vision_; }
  int heads_per_kv_head() const { return heads_per_kv_head_; }
  uint64_t bytes() const { return bytes_; }

  // The decoder, under the names of the model, checked. Throws Error for a file without one.
  const ModelConfig& config();
  const TensorSource& decoder();
  // Of a file that is a vision encoder, or holds one; null: there is none. text_dim: of the decoder that it goes with; 0:
  // any.
  const VisionConfig* vision_config(int text_dim);
  const TensorSource* vision_tensors() const { return vision_tensors_.get(); }

  void check() const { check_(); }
  void release(std::span<const std::byte> data) const { release_(data); }
  uint64_t version() const { return version_; }

 private:
  void open_file();
  void open_folder(const std::string& chat_template);
  void name_vision_tensors();

  std::string path_;
  InputFile main_;
  std::optional<InputFile> vision_;
  int heads_per_kv_head_ = 1;
  uint64_t bytes_ = 0;
  uint64_t version_ = 0;
  std::function<void()> check_;
  std::function<void(std::span<const std::byte>)> release_;
  std::shared_ptr<const GgufFile> gguf_;  // null: a folder
  std::optional<ModelConfig> config_;
  std::shared_ptr<const TensorSource> decoder_;
  std::optional<VisionConfig> vision_config_;
  std::shared_ptr<const TensorSource> vision_tensors_;
};

// How a file is to be written.
struct FileTypes {
  const FileQuantization* quantization = nullptr;
  std::vector<TypeOverride> overrides;
  // By a tensor's name in the file: its columns' importance. Null: none.
  const std::map<std::string, std::vector<float>>* importance = nullptr;
  int heads_per_kv_head = 1;
  bool allow_requantize = false;
};

// A tensor whose rows do not fit the blocks of the type that it should have had.
struct TypeFallback {
  std::string tensor;
  std::string wanted;
  std::string type;
};

// The file with each tensor's type. Throws Error: kUnsupportedModel, TENSOR_TYPE; kUnsupportedInput, REQUANTIZE for a
// quantised tensor that would change; kInvalidArgument with NO_SUCH_TENSOR, IMPORTANCE_SHAPE.
// change(tensor): null where values stay as they are.
FileToWrite plan_file(const std::string& path, const InputFile& input, const FileTypes& types,
                      const std::function<std::shared_ptr<RowChange>(const InputTensor&)>& change,
                      std::vector<TypeFallback>* fallbacks);

}  // namespace gemma

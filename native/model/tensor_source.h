// The tensors of a model file under the names that the model knows them by, whatever the format of the file. A reader of
// a format (native/reader/) makes one. It is the reader's business that what comes out of it is what the model computes
// with:
//   - names are those of llama.cpp's GGUF files: "blk.3.attn_q.weight", "v.blk.3.ffn_up.bias";
//   - shapes are row-major, outermost first: [n_out, n_in];
//   - norms of the decoder and of the projector multiply as they are: 1 + w of what Gemma's checkpoints store.
// What the metadata of a file say stands apart: ModelConfig, VisionConfig, Vocabulary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "quant/tensor.h"

namespace gemma {

class TensorSource {
 public:
  using OnRead = std::function<void(double fraction)>;

  // name: the model's, tensor.name the file's. The first tensor of a name stays. The tensor and its data must live as
  // long as the source: what read and check hold below does.
  void add(std::string name, const Tensor& tensor);
  // The file is one of several, of which only the first holds the metadata.
  void set_split(bool is_split) { is_split_ = is_split; }
  // read: brings the data into memory, as prefetch() promises.
  void set_prefetch(std::function<void(const OnRead&)> read) { prefetch_ = std::move(read); }
  // release: gives pages back, as release() promises.
  void set_release(std::function<void(std::span<const std::byte>)> release) { release_ = std::move(release); }
  // check: whether the data are still those of the file, as check() promises.
  void set_check(std::function<void()> check) { check_ = std::move(check); }
  // version: of the files that the data are in.
  void set_version(uint64_t version) { version_ = version; }

  const Tensor* find(std::string_view name) const;  // null when absent
  const std::vector<const Tensor*>& tensors() const { return tensors_; }
  uint64_t bytes() const;  // of all tensors, as they are stored
  bool is_split() const { return is_split_; }
  // Brings the file into memory. on_read gets the fraction that is there; what it throws ends the reading.
  void prefetch(const OnRead& on_read) const;
  // Bytes of a tensor that have been read and will not be needed soon: their pages stop counting as memory of this
  // process. Reading them again is right, and slower.
  void release(std::span<const std::byte> bytes) const;
  // Throws Error{kFile, FILE_CHANGED} when the file was cut or written to while its data were mapped: what was computed
  // with them since does not count. Cheap, any thread.
  void check() const;
  // Another one after the file was written to. 0: data that were read into memory.
  uint64_t version() const { return version_; }

 private:
  std::vector<const Tensor*> tensors_;
  std::unordered_map<std::string, const Tensor*> by_name_;
  std::function<void(const OnRead&)> prefetch_;
  std::function<void(std::span<const std::byte>)> release_;
  std::function<void()> check_;
  uint64_t version_ = 0;
  bool is_split_ = false;
};

// A tensor that a model has.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool is_float = false;  // F32, F16 or BF16 only, as every vector

  bool is_vector() const { return shape.size() == 1; }
};

// Throws Error{kGgufInvalid, BAD_TENSOR}.
[[noreturn]] void bad_tensor(const std::string& name, const std::string& message);
std::string shape_text(const std::vector<int64_t>& shape);  // "[1024, 640]"

// Throws BAD_TENSOR for a tensor that is missing, of another shape, of a type that is no float where one is needed, or
// not expected, kUnsupportedModel, TENSOR_TYPE for one of a type that nothing computes with; model: "a Gemma 3 model",
// in messages. In a split model another shape is MISSING_SPLIT: later parts
// repeat no metadata, so that a part of another model first shows here.
void check_tensors(const TensorSource& source, const std::vector<ExpectedTensor>& expected, const std::string& model);

}  // namespace gemma

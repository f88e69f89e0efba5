// Sources: llama.cpp (convert_lora_to_gguf.py, llama-adapter.cpp). A scale of 1 stands where alpha is 0.
#include "reader/gguf_adapter.h"

#include <string_view>

#include "base/error.h"
#include "reader/adapter_file.h"
#include "reader/gguf_keys.h"
#include "reader/peft_adapter.h"

namespace gemma {
namespace {

constexpr std::string_view kEndA = ".lora_a";
constexpr std::string_view kEndB = ".lora_b";

}  // namespace

AdapterTensors gguf_adapter(const std::shared_ptr<const GgufFile>& file) {
  const auto expect = [&](const char* key, const std::string& expected) {
    const std::string found = file->find_string(key).value_or("");
    if (found != expected) {
      bad_adapter("BAD_KIND", std::string("metadata \"") + key + "\": expected " + shown(expected) + ", found " +
                                  shown(found) + "; an adapter of Gemma 3 is needed");
    }
  };
  expect("general.type", "adapter");
  expect("general.architecture", "gemma3");
  expect("adapter.type", "lora");
  if (file->find("adapter.alora.invocation_tokens") != nullptr)
    bad_adapter("UNSUPPORTED", "adapters that begin at certain tokens (aLoRA) are not supported");
  const double alpha = file->find_float("adapter.lora.alpha").value_or(0);
  AdapterTensors adapter;
  for (const Tensor& tensor : file->tensors()) {
    const std::string_view name = tensor.name;
    const bool is_a = name.ends_with(kEndA);
    if (!is_a && !name.ends_with(kEndB)) {
      bad_adapter("BAD_NAME", tensor.name + ": expected a name that ends in .lora_a or .lora_b");
    }
    const std::string base(name.substr(0, name.size() - kEndA.size()));
    AdapterMatrix& matrix = adapter.matrices[base];
    (is_a ? matrix.a : matrix.b) = tensor;
    if (base == "token_embd.weight") matrix.a_is_transposed = true;
  }
  if (adapter.matrices.empty()) bad_adapter("MISSING_TENSOR", "the file holds no tensors");
  for (auto& [name, matrix] : adapter.matrices) {
    if (!matrix.b || matrix.b->shape.size() != 2) continue;  // what is wrong is said where shapes are looked at
    const double rank = static_cast<double>(matrix.b->shape[1]);
    matrix.scale = alpha == 0 ? 1.0f : static_cast<float>(alpha / rank);
  }
  adapter.file = file->weights();
  return adapter;
}

AdapterTensors read_adapter(const AdapterSource& source, bool headers_only) {
  if (source.peft) return read_peft_adapter(source.path, *source.peft, headers_only);
  const std::shared_ptr<const GgufFile> file =
      GgufFile::open(source.path, {.mmap = false, .headers_only = headers_only});
  return in_file(source.path, [&] { return gguf_adapter(file); });
}

}  // namespace gemma

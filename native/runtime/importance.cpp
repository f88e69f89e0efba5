// Source of the formats: llama.cpp's tools/imatrix. GGUF: for each tensor NAME of the model "NAME.in_sum2" [n_matrices,
// n_columns] and "NAME.counts" [n_matrices, 1], F32. Older: int32 n, then for each of n tensors int32 length, name, int32
// n_calls, int32 n_columns, float32 [n_columns], which is the mean times n_calls.
#include "runtime/importance.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>

#include "base/error.h"
#include "base/file.h"
#include "base/file_map.h"
#include "gguf/gguf.h"
#include "gguf/gguf_writer.h"
#include "runtime/load.h"

namespace gemma {
namespace {

constexpr std::string_view kSums = ".in_sum2";
constexpr std::string_view kCounts = ".counts";

[[noreturn]] void damaged(const std::string& what) {
  throw Error(ErrorCode::kFile, "IMPORTANCE_DAMAGED", "the importance matrix is damaged: " + what);
}
[[noreturn]] void no_importance(const std::string& what) {
  throw Error(ErrorCode::kFile, "NOT_AN_IMPORTANCE_MATRIX", "not an importance matrix: " + what);
}

// A column without any input would count for nothing; a tensor without any says nothing.
void add_columns(Importance& importance, const std::string& name, std::span<const float> sums, double count) {
  if (!(count > 0)) return;
  std::vector<float> columns;
  columns.reserve(sums.size());
  for (const float sum : sums) {
    const double mean = static_cast<double>(sum) / count;
    if (!(mean >= 0) || !std::isfinite(mean))
      damaged("tensor " + shown_path(name) + " has a value that is no mean of squares");
    columns.push_back(static_cast<float>(mean));
  }
  importance.columns.insert_or_assign(name, std::move(columns));
}

std::vector<float> floats_of(const Tensor& tensor) {
  if (tensor.type != TensorType::kF32) damaged("tensor " + tensor.name + " is not F32");
  std::vector<float> values(tensor.bytes / sizeof(float));
  std::memcpy(values.data(), tensor.data, values.size() * sizeof(float));
  return values;
}

Importance read_gguf(const GgufFile& file) {
  if (file.find_string("general.type").value_or("") != "imatrix") no_importance("its general.type is not imatrix");
  Importance importance;
  for (const Tensor& sums : file.tensors()) {
    if (!sums.name.ends_with(kSums)) continue;
    const std::string name = sums.name.substr(0, sums.name.size() - kSums.size());
    const Tensor* counts = file.find_tensor(name + std::string(kCounts));
    if (counts == nullptr) damaged("tensor " + name + " has no counts");
    const std::vector<float> count = floats_of(*counts);
    if (count.size() != 1) continue;  // of experts, which no model here has
    add_columns(importance, name, floats_of(sums), static_cast<double>(count[0]));
  }
  return importance;
}

Importance read_older(std::span<const std::byte> bytes) {
  size_t at = 0;
  const auto take = [&](void* out, size_t n) {
    if (n > bytes.size() - at) damaged("it ends too early");
    std::memcpy(out, bytes.data() + at, n);
    at += n;
  };
  const auto take_int = [&](int32_t max, const char* what) {
    int32_t value = 0;
    take(&value, sizeof value);
    if (value < 1 || value > max) damaged(std::string(what) + " is " + std::to_string(value));
    return value;
  };
  int32_t n_tensors = 0;
  if (bytes.size() < sizeof n_tensors) no_importance("it is too short");
  take(&n_tensors, sizeof n_tensors);
  if (n_tensors < 1 || n_tensors > 100000) no_importance("it begins with other bytes");
  Importance importance;
  for (int32_t i = 0; i < n_tensors; ++i) {
    std::string name(static_cast<size_t>(take_int(256, "the length of a name")), '\0');
    take(name.data(), name.size());
    const int32_t n_calls = take_int(INT32_MAX, "a number of calls");
    const size_t n_columns = static_cast<size_t>(take_int(1 << 24, "a number of columns"));
    if (n_columns * sizeof(float) > bytes.size() - at) damaged("it ends too early");
    std::vector<float> sums(n_columns);
    take(sums.data(), n_columns * sizeof(float));
    add_columns(importance, name, sums, n_calls);
  }
  return importance;
}

// Sums of the squares of what comes into the products of a model's weights.
class InputSquares {
 public:
  void add(const Weight& weight, const float* x, int n_rows) {
    Sums& sums = of_[weight.data];
    const size_t n = static_cast<size_t>(weight.n_in);
    sums.columns.resize(n);
    row_.assign(n, 0);
    for (int r = 0; r < n_rows; ++r, x += n) {
      for (size_t j = 0; j < n; ++j) row_[j] += x[j] * x[j];
    }
    for (size_t j = 0; j < n; ++j) sums.columns[j] += static_cast<double>(row_[j]);
    sums.n_rows += static_cast<uint64_t>(n_rows);
  }

  struct Sums {
    std::vector<double> columns;
    uint64_t n_rows = 0;
  };
  const Sums* find(const std::byte* weight) const {
    const auto found = of_.find(weight);
    return found == of_.end() ? nullptr : &found->second;
  }

 private:
  std::unordered_map<const std::byte*, Sums> of_;  // by the weight's bytes
  std::vector<float> row_;                         // of a step
};

// As llama-imatrix writes it.
uint64_t write_importance(const std::string& path, const TensorSource& tensors, const InputSquares& squares,
                          int n_chunk, uint64_t n_chunks, uint64_t* n_tensors) {
  GgufMetadata metadata;
  metadata.set_string("general.type", "imatrix");
  metadata.set_strings("imatrix.datasets", std::vector<std::string>{"text"});
  metadata.set_u32("imatrix.chunk_count", static_cast<uint32_t>(n_chunks));
  metadata.set_u32("imatrix.chunk_size", static_cast<uint32_t>(n_chunk));
  std::vector<GgufTensorShape> shapes;
  std::vector<std::vector<float>> values;
  for (const Tensor* tensor : tensors.tensors()) {
    const InputSquares::Sums* sums = squares.find(tensor->data);
    if (sums == nullptr) continue;
    ++*n_tensors;
    const int64_t n = static_cast<int64_t>(sums->columns.size());
    shapes.push_back({tensor->name + std::string(kSums), TensorType::kF32, {1, n}});
    values.emplace_back(sums->columns.begin(), sums->columns.end());
    shapes.push_back({tensor->name + std::string(kCounts), TensorType::kF32, {1, 1}});
    values.push_back({static_cast<float>(sums->n_rows)});
    for (const float value : values[values.size() - 2]) {
      if (!std::isfinite(value)) {
        throw Error(ErrorCode::kNonFinite, "",
                    "the input of " + tensor->name + " is not finite: the model's weights are not sound");
      }
    }
  }
  const GgufLayout layout(metadata, shapes, 32);
  std::string file = layout.headers;
  file.resize(layout.file_bytes, '\0');
  for (size_t i = 0; i < values.size(); ++i)
    std::memcpy(file.data() + layout.offsets[i], values[i].data(), values[i].size() * sizeof(float));
  FileWriter writer(path, FileWriter::Readers::kEveryone);
  writer.write(std::as_bytes(std::span(file)));
  writer.commit();
  return file.size();
}

}  // namespace

Importance read_importance(const std::string& path) {
  char magic[4] = {};
  const std::shared_ptr<const File> file = File::open(path);
  if (file->size() >= sizeof magic) file->read(0, std::as_writable_bytes(std::span(magic)));
  if (std::string_view(magic, sizeof magic) == "GGUF") {
    const std::shared_ptr<const GgufFile> gguf = GgufFile::open(path, {.mmap = false});
    return in_file(path, [&] { return read_gguf(*gguf); });
  }
  constexpr uint64_t kMostBytes = uint64_t{1} << 30;
  if (file->size() > kMostBytes) in_file(path, [] { no_importance("it is larger than any"); });
  const FileMap bytes = FileMap::read(*file, 0);
  return in_file(path, [&] { return read_older(bytes.bytes()); });
}

ImportanceResult compute_importance(const ImportanceOptions& options) {
  LoadOptions load = options.model;
  const auto report = load.on_progress;
  const auto check_cancelled = [&] {
    if (load.cancel != nullptr && load.cancel->load())
      throw Error(ErrorCode::kDisposed, "CANCELLED", "computing the importance was cancelled");
  };
  load.device = "cpu";  // what comes into products is read where it is
  load.vision = false;
  load.draft_path.clear();
  load.prefix_cache_bytes = 0;
  load.screen_logits = false;
  load.n_ctx = options.n_chunk;
  load.n_batch = options.n_chunk;
  if (report) load.on_progress = [&](double fraction) { report(0.05 * fraction); };
  const std::unique_ptr<LoadedModel> loaded = load_model(load);
  Model& model = *loaded->model;
  const auto should_stop = [&] { return load.cancel != nullptr && load.cancel->load(); };

  std::vector<TokenId> tokens;
  loaded->tokenizer->encode(options.text, Trust::kUser, &tokens, should_stop);
  const TokenId bos = loaded->tokenizer->special().bos;
  const size_t n_chunk = static_cast<size_t>(options.n_chunk);
  const size_t n_text = n_chunk - (bos >= 0 ? 1 : 0);  // of a chunk
  if (tokens.size() < n_text) {
    throw Error(ErrorCode::kInvalidArgument, "EMPTY",
                "text: expected at least " + std::to_string(n_text) + " tokens, one chunk, found " +
                    std::to_string(tokens.size()));
  }
  InputSquares squares;
  model.watch_products([&](const Weight& weight, const float* x, int n_rows) { squares.add(weight, x, n_rows); });
  ImportanceResult result;
  result.n_chunks = tokens.size() / n_text;
  std::vector<TokenId> chunk;
  for (uint64_t i = 0; i < result.n_chunks; ++i) {
    chunk.clear();
    if (bos >= 0) chunk.push_back(bos);
    const auto first = tokens.begin() + static_cast<std::ptrdiff_t>(i * n_text);
    chunk.insert(chunk.end(), first, first + static_cast<std::ptrdiff_t>(n_text));
    KvSequence kv(model.kv_pool());
    kv.reserve(0, options.n_chunk);
    SequenceInput input;
    input.kv = &kv;
    input.tokens = chunk;
    input.is_prompt = true;
    if (!model.run_layers(std::span(&input, 1), should_stop)) check_cancelled();
    model.tensors().check();
    result.n_tokens += chunk.size();
    if (report) report(0.05 + 0.95 * static_cast<double>(i + 1) / static_cast<double>(result.n_chunks));
  }
  result.bytes =
      write_importance(options.output, model.tensors(), squares, options.n_chunk, result.n_chunks, &result.n_tensors);
  return result;
}

}  // namespace gemma

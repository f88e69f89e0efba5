// Formats: safetensors 0.6 (u64 length of a JSON header, header, data); GGUF of llama.cpp's adapters (convert_lora_to_gguf.py);
// a checkpoint is kMagic, u64 length and bytes of the caller's text, u64 length and bytes of the trainer's state, u64 hash of both.
#include "runtime/finetune.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "gguf/gguf_writer.h"
#include "reader/model_file.h"

namespace gemma {
namespace {

using train::AdapterParameter;

constexpr std::string_view kMagic = "GEMMATR1";
constexpr uint64_t kMostMetadata = uint64_t{64} << 20;
constexpr uint64_t kMostState = uint64_t{64} << 30;
// Of every adapter here, as PEFT writes it of a decoder alone.
constexpr std::string_view kPrefix = "base_model.model.model.";

constexpr std::pair<std::string_view, const char*> kTargets[] = {
    {"q_proj", "attn_q"},      {"k_proj", "attn_k"},  {"v_proj", "attn_v"},      {"o_proj", "attn_output"},
    {"gate_proj", "ffn_gate"}, {"up_proj", "ffn_up"}, {"down_proj", "ffn_down"},
};

std::string gguf_name(const AdapterParameter& parameter) {
  const auto* const found = std::find_if(std::begin(kTargets), std::end(kTargets),
                                         [&](const auto& entry) { return entry.first == parameter.target; });
  if (found == std::end(kTargets)) throw Error(ErrorCode::kInternal, "", "a matrix without a name: " + parameter.name);
  return "blk." + std::to_string(parameter.layer) + "." + found->second + ".weight" +
         (parameter.is_a ? ".lora_a" : ".lora_b");
}

void check_finite(const std::vector<AdapterParameter>& parameters) {
  for (const AdapterParameter& parameter : parameters) {
    if (std::all_of(parameter.values.begin(), parameter.values.end(), [](float value) { return std::isfinite(value); }))
      continue;
    throw Error(ErrorCode::kNonFinite, "ADAPTER",
                parameter.name + " has a value that is not finite: the learning rate is too high");
  }
}

void write_floats(FileWriter& file, std::span<const float> values) {
  file.write(std::as_bytes(values));
}

void write_text(FileWriter& file, std::string_view text) {
  file.write(std::as_bytes(std::span(text)));
}

void write_u64(FileWriter& file, uint64_t value) {
  file.write(std::as_bytes(std::span(&value, 1)));
}

std::function<bool()> stop_of(const WorkHooks& hooks) {
  return [cancel = hooks.cancel] { return cancel != nullptr && cancel->load(); };
}

}  // namespace

Finetuning::Finetuning(std::shared_ptr<const TensorSource> tensors, ModelConfig config,
                       const train::TrainerOptions& options)
    : tensors_(std::move(tensors)),
      config_(std::move(config)),
      trainer_(*tensors_, config_, options),
      plan_(train::plan_training(config_, options, options.max_rows)) {
  for (const AdapterParameter& parameter : trainer_.parameters()) {
    n_parameters_ += parameter.values.size();
    targets_.push_back(parameter.target);
  }
  std::sort(targets_.begin(), targets_.end());
  targets_.erase(std::unique(targets_.begin(), targets_.end()), targets_.end());
}

std::shared_ptr<Finetuning> Finetuning::open(const FinetuneOptions& options) {
  const auto report = [&](double fraction) {
    if (options.cancel != nullptr && options.cancel->load())
      throw Error(ErrorCode::kDisposed, "CANCELLED", "opening the model was cancelled");
    if (options.on_progress) options.on_progress(fraction);
  };
  FileOptions open_options;
  open_options.mmap = options.mmap;
  const ModelFile file = ModelFile::open(options.path, open_options);
  report(0.1);
  ModelConfig config = file.config();
  std::shared_ptr<const TensorSource> tensors = file.decoder_tensors();
  tensors->prefetch([&](double fraction) { report(0.1 + 0.8 * fraction); });
  train::TrainerOptions trainer = options.trainer;
  std::optional<AdapterTensors> adapter;
  if (options.adapter) {
    adapter = read_adapter(*options.adapter, /*headers_only=*/false);
    trainer.init = &*adapter;
  }
  std::shared_ptr<Finetuning> training(new Finetuning(std::move(tensors), std::move(config), trainer));
  report(1);
  return training;
}

train::StepStats Finetuning::step(const std::vector<train::MicroBatch>& batch, double learning_rate,
                                  const WorkHooks& hooks) {
  const std::lock_guard lock(mutex_);
  tensors_->check();
  return trainer_.step(batch, learning_rate, stop_of(hooks));
}

train::EvalStats Finetuning::evaluate(const std::vector<train::MicroBatch>& batch, bool use_adapter,
                                      const WorkHooks& hooks) {
  const std::lock_guard lock(mutex_);
  tensors_->check();
  return trainer_.evaluate(batch, stop_of(hooks), use_adapter);
}

void Finetuning::write_safetensors(const std::string& path, const std::string& model_prefix) {
  const std::lock_guard lock(mutex_);
  const std::vector<AdapterParameter> parameters = trainer_.parameters();
  check_finite(parameters);
  // Names are PEFT's modules and parts: nothing in them has to be escaped.
  std::string header = R"({"__metadata__":{"format":"pt"})";
  uint64_t at = 0;
  for (const AdapterParameter& parameter : parameters) {
    std::string name = parameter.name;
    if (name.starts_with(kPrefix))
      name = std::string("base_model.model.").append(model_prefix).append(name, kPrefix.size());
    const uint64_t end = at + parameter.values.size_bytes();
    header += ",\"" + name + R"(":{"dtype":"F32","shape":[)" + std::to_string(parameter.n_rows) + "," +
              std::to_string(parameter.n_cols) + R"(],"data_offsets":[)" + std::to_string(at) + "," +
              std::to_string(end) + "]}";
    at = end;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  FileWriter file(path, FileWriter::Readers::kEveryone);
  write_u64(file, header.size());
  write_text(file, header);
  for (const AdapterParameter& parameter : parameters) write_floats(file, parameter.values);
  file.commit();
}

void Finetuning::write_gguf(const std::string& path, const std::string& name) {
  const std::lock_guard lock(mutex_);
  const std::vector<AdapterParameter> parameters = trainer_.parameters();
  check_finite(parameters);
  GgufMetadata metadata;
  metadata.set_string("general.type", "adapter");
  metadata.set_string("general.architecture", "gemma3");
  metadata.set_string("general.name", name);
  metadata.set_string("adapter.type", "lora");
  const int rank = parameters.front().is_a ? parameters.front().n_rows : parameters.front().n_cols;
  metadata.set_f32("adapter.lora.alpha", trainer_.scale() * static_cast<float>(rank));
  std::vector<GgufTensorShape> shapes;
  shapes.reserve(parameters.size());
  for (const AdapterParameter& parameter : parameters)
    shapes.push_back({gguf_name(parameter), TensorType::kF32, {parameter.n_rows, parameter.n_cols}});
  const GgufLayout layout(metadata, shapes, 32);
  FileWriter file(path, FileWriter::Readers::kEveryone);
  write_text(file, layout.headers);
  uint64_t at = layout.headers.size();
  const auto pad_to = [&](uint64_t offset) {
    write_text(file, std::string(offset - at, '\0'));
    at = offset;
  };
  for (size_t i = 0; i < parameters.size(); ++i) {
    pad_to(layout.offsets[i]);
    write_floats(file, parameters[i].values);
    at += parameters[i].values.size_bytes();
  }
  pad_to(layout.file_bytes);
  file.commit();
}

void Finetuning::save(const std::string& path, const std::string& metadata) {
  const std::lock_guard lock(mutex_);
  const std::vector<std::byte> state = trainer_.save_state();
  uint64_t hash = hash_bytes(0, std::as_bytes(std::span(metadata)));
  hash = hash_bytes(hash, state);
  FileWriter file(path);
  write_text(file, kMagic);
  write_u64(file, metadata.size());
  write_text(file, metadata);
  write_u64(file, state.size());
  file.write(state);
  write_u64(file, hash);
  file.commit();
}

[[noreturn]] static void damaged(const std::string& what) {
  throw Error(ErrorCode::kFile, "CHECKPOINT_DAMAGED", "the checkpoint is damaged: " + what);
}

std::string Finetuning::restore(const std::string& path) {
  const std::lock_guard lock(mutex_);
  const std::shared_ptr<const File> file = File::open(path);
  return in_file(path, [&] {
    uint64_t at = 0;
    const auto read = [&](std::span<std::byte> out) {
      if (out.size() > file->size() - at) damaged("it ends too early");
      file->read(at, out);
      at += out.size();
    };
    const auto read_length = [&](uint64_t most) {
      uint64_t length = 0;
      read(std::as_writable_bytes(std::span(&length, 1)));
      if (length > most || length > file->size() - at) damaged("a length is wrong");
      return static_cast<size_t>(length);
    };
    std::string magic(kMagic.size(), '\0');
    if (file->size() >= magic.size()) read(std::as_writable_bytes(std::span(magic)));
    if (magic != kMagic) throw Error(ErrorCode::kFile, "NOT_A_CHECKPOINT", "not a checkpoint of a fine-tuning");
    std::string metadata(read_length(kMostMetadata), '\0');
    read(std::as_writable_bytes(std::span(metadata)));
    std::vector<std::byte> state(read_length(kMostState));
    read(state);
    uint64_t hash = 0;
    read(std::as_writable_bytes(std::span(&hash, 1)));
    if (at != file->size()) damaged("bytes follow its end");
    if (hash != hash_bytes(hash_bytes(0, std::as_bytes(std::span(metadata))), state)) damaged("its hash is another");
    trainer_.load_state(state);
    return metadata;
  });
}

}  // namespace gemma

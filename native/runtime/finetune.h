// Fine-tuning of a model file: the trainer over its weights, and the files that come of it. Which examples, in which order and how long is
// lib/finetune's.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/tensor_source.h"
#include "reader/adapter_file.h"
#include "train/trainer.h"

namespace gemma {

// What work on another thread reports to and looks at.
struct WorkHooks {
  std::function<void(double)> on_progress;    // fraction in 0..1, on the working thread; may be empty
  const std::atomic<bool>* cancel = nullptr;  // looked at several times a layer
};

struct FinetuneOptions : WorkHooks {
  std::string path;  // as ModelFile takes it
  bool mmap = true;
  train::TrainerOptions trainer;         // init: set by `adapter`
  std::optional<AdapterSource> adapter;  // training begins with it
};

// One training. Calls from several threads wait for each other.
class Finetuning {
 public:
  // Reads the file and makes the trainer. Throws Error: as ModelFile::open, read_adapter() and Trainer do; kDisposed, CANCELLED.
  static std::shared_ptr<Finetuning> open(const FinetuneOptions& options);

  const train::TrainingPlan& plan() const { return plan_; }
  uint64_t n_parameters() const { return n_parameters_; }
  const std::vector<std::string>& targets() const { return targets_; }  // that are trained, sorted

  // As Trainer. Throws Error{kFile, FILE_CHANGED} where the model's file did.
  train::StepStats step(const std::vector<train::MicroBatch>& batch, double learning_rate, const WorkHooks& hooks);
  train::EvalStats evaluate(const std::vector<train::MicroBatch>& batch, bool use_adapter, const WorkHooks& hooks);

  // The adapter as PEFT stores it (safetensors). model_prefix: of the decoder's modules in transformers, "model." or
  // "model.language_model.". The file takes its name when it is whole. Throws Error: kNonFinite, ADAPTER; as FileWriter.
  void write_safetensors(const std::string& path, const std::string& model_prefix);
  // As llama.cpp's convert_lora_to_gguf.py writes it, in 32-bit floats. Throws likewise.
  void write_gguf(const std::string& path, const std::string& name);

  // All that training goes on from to the same bits, and a text of the caller's. The file takes its name when it is whole.
  // Throws Error as FileWriter.
  void save(const std::string& path, const std::string& metadata);
  // Returns the text. Throws Error: kFile with NOT_A_CHECKPOINT, CHECKPOINT_DAMAGED; kInvalidArgument, BAD_STATE for one of another
  // configuration.
  std::string restore(const std::string& path);

 private:
  Finetuning(std::shared_ptr<const TensorSource> tensors, ModelConfig config, const train::TrainerOptions& options);

  std::shared_ptr<const TensorSource> tensors_;
  ModelConfig config_;
  std::mutex mutex_;
  train::Trainer trainer_;
  train::TrainingPlan plan_;
  uint64_t n_parameters_ = 0;
  std::vector<std::string> targets_;
};

}  // namespace gemma

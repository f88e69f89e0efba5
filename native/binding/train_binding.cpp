#include "binding/train_binding.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "binding/environment.h"
#include "binding/read.h"
#include "binding/work.h"
#include "runtime/finetune.h"

namespace gemma::binding {
namespace {

using HeldTraining = std::shared_ptr<Finetuning>;

// Tells a training from whatever else a caller may pass.
constexpr napi_type_tag kTrainingTag = {0x9d3c5f0a417be268, 0xe17a60c2d9584bf3};

HeldTraining& to_held(const Napi::Value& value) {
  void* data = nullptr;
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kTrainingTag) ||
      napi_unwrap(value.Env(), value, &data) != napi_ok) {
    bad_type(value.Env(), "training", "what openFinetuning() made");
  }
  return *static_cast<HeldTraining*>(data);
}

HeldTraining to_training(const Napi::Object& options) {
  HeldTraining training = to_held(options.Get("training"));
  if (!training) throw Error(ErrorCode::kDisposed, "", "the training was closed");
  return training;
}

Napi::Object held_object(Napi::Env env, HeldTraining training) {
  Napi::Object object = Napi::Object::New(env);
  object.TypeTag(&kTrainingTag);
  auto held = std::make_unique<HeldTraining>(std::move(training));
  const auto forget = [](napi_env, void* data, void*) { delete static_cast<HeldTraining*>(data); };
  if (napi_wrap(env, object, held.get(), forget, nullptr, nullptr) != napi_ok) throw Napi::Error::New(env);
  [[maybe_unused]] const auto* const owned = held.release();  // by the object
  return object;
}

template <class T>
std::vector<T> to_vector(const Napi::Object& options, const char* key) {
  const std::span<const T> elements = elements_of<T>(options.Get(key), key);
  return {elements.begin(), elements.end()};
}

FinetuneOptions to_finetune_options(const Napi::Object& options) {
  FinetuneOptions result;
  read(options, "path", &result.path);
  read(options, "mmap", &result.mmap);
  train::TrainerOptions& trainer = result.trainer;
  read(options, "isa", &trainer.isa);
  read(options, "threads", &trainer.n_threads, 0, kMaxThreads);
  read(options, "activationBytes", &trainer.activation_bytes);
  read(options, "maxRows", &trainer.max_rows, 1, 1 << 20);
  read(options, "rank", &trainer.lora.rank, 1, 4096);
  read(options, "alpha", &trainer.lora.alpha);
  read(options, "rslora", &trainer.lora.rslora);
  read(options, "dropout", &trainer.lora.dropout);
  read(options, "seed", &trainer.lora.seed);
  read(options, "targets", [&](const Napi::Value& value) {
    for_each(value, "targets",
             [&](const Napi::Value& target) { trainer.lora.targets.push_back(to_string(target, "targets")); });
  });
  read(options, "layers", [&](const Napi::Value& value) {
    for_each(value, "layers",
             [&](const Napi::Value& layer) { trainer.lora.layers.push_back(to_int(layer, "layers")); });
  });
  std::string optimizer = "adamw";
  read(options, "optimizer", &optimizer);
  if (optimizer != "adamw" && optimizer != "sgd")
    throw Error(ErrorCode::kInvalidArgument, "", "optimizer: expected adamw or sgd, found " + shown_path(optimizer));
  using Optimizer = train::OptimizerConfig::Kind;
  trainer.optimizer.kind = optimizer == "sgd" ? Optimizer::kSgd : Optimizer::kAdamW;
  read(options, "beta1", &trainer.optimizer.beta1);
  read(options, "beta2", &trainer.optimizer.beta2);
  read(options, "epsilon", &trainer.optimizer.epsilon);
  read(options, "weightDecay", &trainer.optimizer.weight_decay);
  read(options, "momentum", &trainer.optimizer.momentum);
  read(options, "clip", &trainer.optimizer.clip);
  std::string loss = "next-token";
  read(options, "loss", &loss);
  using Loss = train::LossConfig::Kind;
  if (loss == "next-token") {
    trainer.loss.kind = Loss::kNextToken;
  } else if (loss == "distillation") {
    trainer.loss.kind = Loss::kDistill;
  } else if (loss == "dpo") {
    trainer.loss.kind = Loss::kDpo;
  } else {
    throw Error(ErrorCode::kInvalidArgument, "",
                "loss: expected next-token, distillation or dpo, found " + shown_path(loss));
  }
  read(options, "temperature", &trainer.loss.temperature);
  read(options, "teacherShare", &trainer.loss.alpha);
  read(options, "beta", &trainer.loss.beta);
  read(options, "adapter",
       [&](const Napi::Value& value) { result.adapter = to_named_adapter(to_object(value, "adapter")).source; });
  return result;
}

// { tokens: Int32Array, weights: Float32Array, images?: { first, rows: Float32Array }[], teacher?: { k, ids: Int32Array, logits:
// Float32Array }, reference?: number }
train::Example to_example(const Napi::Object& object) {
  train::Example example;
  example.tokens = to_vector<int32_t>(object, "tokens");
  example.weights = to_vector<float>(object, "weights");
  if (example.tokens.size() != example.weights.size())
    throw Error(ErrorCode::kInvalidArgument, "BAD_EXAMPLE", "weights: expected one for each token");
  read(object, "images", [&](const Napi::Value& value) {
    for_each(value, "images", [&](const Napi::Value& element) {
      const Napi::Object image = to_object(element, "images");
      train::ImageRows rows;
      read(image, "first", &rows.first, 0, std::numeric_limits<int>::max());
      read(image, "n", &rows.n, 1, 1 << 20);
      rows.embeddings = to_vector<float>(image, "rows");
      example.images.push_back(std::move(rows));
    });
  });
  read(object, "teacher", [&](const Napi::Value& value) {
    const Napi::Object teacher = to_object(value, "teacher");
    int k = 0;
    read(teacher, "k", &k, 1, 1 << 20);
    const std::span<const int32_t> ids = elements_of<int32_t>(teacher.Get("ids"), "ids");
    const std::vector<int32_t> all_ids(ids.begin(), ids.end());
    const std::span<const float> logits = elements_of<float>(teacher.Get("logits"), "logits");
    const size_t n_columns = static_cast<size_t>(k);
    if (all_ids.size() != logits.size() || all_ids.size() % n_columns != 0)
      throw Error(ErrorCode::kInvalidArgument, "BAD_EXAMPLE", "teacher: expected rows of k ids and logits");
    size_t at = 0;
    for (size_t i = 0; i < example.weights.size(); ++i) {
      if (!(example.weights[i] > 0)) continue;
      if (at + n_columns > all_ids.size())
        throw Error(ErrorCode::kInvalidArgument, "BAD_EXAMPLE", "teacher: expected a row for each counted token");
      train::TeacherRow row;
      row.target = static_cast<int>(i);
      for (size_t j = 0; j < n_columns; ++j, ++at) {
        if (!std::isfinite(logits[at])) continue;  // where a row has fewer
        row.ids.push_back(all_ids[at]);
        row.logits.push_back(logits[at]);
      }
      example.teacher.push_back(std::move(row));
    }
  });
  read(object, "reference",
       [&](const Napi::Value& value) { example.reference_log_prob = to_double(value, "reference"); });
  return example;
}

std::vector<train::MicroBatch> to_batch(const Napi::Object& options) {
  std::vector<train::MicroBatch> batch;
  for_each(options.Get("batch"), "batch", [&](const Napi::Value& row) {
    train::MicroBatch micro;
    for_each(row, "batch",
             [&](const Napi::Value& example) { micro.push_back(to_example(to_object(example, "batch"))); });
    batch.push_back(std::move(micro));
  });
  return batch;
}

struct StepWork : WorkHooks {
  HeldTraining training;
  std::vector<train::MicroBatch> batch;
  double learning_rate = 0;
};
struct EvaluateWork : WorkHooks {
  HeldTraining training;
  std::vector<train::MicroBatch> batch;
  bool use_adapter = true;
};
struct FileWork : WorkHooks {
  HeldTraining training;
  std::string path;
  std::string gguf;
  std::string text;  // metadata; of write: the prefix of module names
  std::string name;
};
struct Nothing {};

Napi::Object done(Napi::Env env, const Napi::Value& result) {
  Napi::Object event = Napi::Object::New(env);
  event["kind"] = "done";
  event["result"] = result;
  return event;
}

Napi::Number number(Napi::Env env, double value) {
  return Napi::Number::New(env, value);
}

Napi::Object opened_event(Napi::Env env, HeldTraining&& training) {
  Napi::Object result = Napi::Object::New(env);
  const train::TrainingPlan& plan = training->plan();
  result["parameters"] = number(env, static_cast<double>(training->n_parameters()));
  result["parameterBytes"] = number(env, static_cast<double>(plan.parameters));
  result["activationBytes"] = number(env, static_cast<double>(plan.activations));
  result["workspaceBytes"] = number(env, static_cast<double>(plan.workspace));
  Napi::Array targets = Napi::Array::New(env, training->targets().size());
  for (uint32_t i = 0; i < training->targets().size(); ++i) targets.Set(i, training->targets()[i]);
  result["targets"] = targets;
  result["training"] = held_object(env, std::move(training));
  return done(env, result);
}

// What steps and evaluations tell alike.
template <class Stats>
Napi::Object measured(Napi::Env env, const Stats& stats) {
  Napi::Object result = Napi::Object::New(env);
  result["loss"] = number(env, stats.loss);
  result["tokens"] = number(env, static_cast<double>(stats.tokens));
  result["rewardMargin"] = number(env, stats.reward_margin);
  result["rewardAccuracy"] = number(env, stats.reward_accuracy);
  return result;
}

Napi::Object step_event(Napi::Env env, train::StepStats&& stats) {
  Napi::Object result = measured(env, stats);
  result["gradientNorm"] = number(env, stats.gradient_norm);
  return done(env, result);
}

Napi::Object evaluate_event(Napi::Env env, train::EvalStats&& stats) {
  Napi::Object result = measured(env, stats);
  result["weight"] = number(env, stats.weight);
  result["logProbs"] = to_js(env, std::span<const double>(stats.log_probs));
  return done(env, result);
}

Napi::Object written_event(Napi::Env env, Nothing&&) {
  return done(env, Napi::Object::New(env));
}

Napi::Object restored_event(Napi::Env env, std::string&& metadata) {
  Napi::Object result = Napi::Object::New(env);
  result["metadata"] = metadata;
  return done(env, result);
}

train::StepStats do_step(const StepWork& work) {
  return work.training->step(work.batch, work.learning_rate, work);
}
train::EvalStats do_evaluate(const EvaluateWork& work) {
  return work.training->evaluate(work.batch, work.use_adapter, work);
}
Nothing do_save(const FileWork& work) {
  work.training->save(work.path, work.text);
  return {};
}
std::string do_restore(const FileWork& work) {
  return work.training->restore(work.path);
}
Nothing do_write(const FileWork& work) {
  work.training->write_safetensors(work.path, work.text);
  if (!work.gguf.empty()) work.training->write_gguf(work.gguf, work.name);
  return {};
}

FileWork to_file_work(const Napi::Object& options) {
  FileWork work;
  work.training = to_training(options);
  read(options, "path", &work.path);
  read(options, "gguf", &work.gguf);
  read(options, "metadata", &work.text);
  read(options, "modelPrefix", &work.text);
  read(options, "name", &work.name);
  return work;
}

// openFinetuning(options, onEvent) -> id. Events as of start_work(), at last {kind: 'done', result}; so all others.
Napi::Value open_training(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  return environment.guarded(info.Env(), [&] {
    return start_work(environment, info, to_finetune_options(to_object(info[0], "options")), Finetuning::open,
                      opened_event);
  });
}

Napi::Value step(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  return environment.guarded(info.Env(), [&] {
    const Napi::Object options = to_object(info[0], "options");
    StepWork work;
    read(options, "learningRate", &work.learning_rate);
    work.batch = to_batch(options);
    work.training = to_training(options);
    return start_work(environment, info, std::move(work), do_step, step_event);
  });
}

Napi::Value evaluate(const Napi::CallbackInfo& info) {
  Environment& environment = Environment::of(info.Env());
  return environment.guarded(info.Env(), [&] {
    const Napi::Object options = to_object(info[0], "options");
    EvaluateWork work;
    read(options, "useAdapter", &work.use_adapter);
    work.batch = to_batch(options);
    work.training = to_training(options);
    return start_work(environment, info, std::move(work), do_evaluate, evaluate_event);
  });
}

template <typename Result>
Napi::Value on_file(const Napi::CallbackInfo& info, Result (*work)(const FileWork&),
                    Napi::Object (*make)(Napi::Env, Result&&)) {
  Environment& environment = Environment::of(info.Env());
  return environment.guarded(info.Env(), [&] {
    return start_work(environment, info, to_file_work(to_object(info[0], "options")), work, make);
  });
}

Napi::Value save(const Napi::CallbackInfo& info) {
  return on_file(info, do_save, written_event);
}
Napi::Value restore(const Napi::CallbackInfo& info) {
  return on_file(info, do_restore, restored_event);
}
Napi::Value write(const Napi::CallbackInfo& info) {
  return on_file(info, do_write, written_event);
}

// closeFinetuning(training): its memory is given back when what runs has ended.
Napi::Value close(const Napi::CallbackInfo& info) {
  return Environment::of(info.Env()).guarded(info.Env(), [&]() -> Napi::Value {
    to_held(info[0]).reset();
    return info.Env().Undefined();
  });
}

}  // namespace

void define_training(Napi::Env env, Napi::Object exports) {
  const auto add = [&](const char* name, Napi::Value (*function)(const Napi::CallbackInfo&)) {
    exports.Set(name, Napi::Function::New(env, function, name));
  };
  add("openFinetuning", open_training);
  add("finetuneStep", step);
  add("finetuneEvaluate", evaluate);
  add("finetuneSave", save);
  add("finetuneRestore", restore);
  add("finetuneWrite", write);
  add("closeFinetuning", close);
}

}  // namespace gemma::binding

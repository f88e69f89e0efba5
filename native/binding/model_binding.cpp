#include "binding/model_binding.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "binding/convert.h"
#include "binding/environment.h"
#include "runtime/sampler.h"

namespace gemma::binding {
namespace {

// A prompt as lib/ hands it over: pieces of plain text, and markers by number. Only the markers are trusted.
enum class Marker : int { kBos = 0, kStartOfTurn = 1, kEndOfTurn = 2, kStartOfImage = 3, kEndOfImage = 4, kImage = 5 };
using Part = std::variant<std::string, Marker>;

// The id that stands for a row of an image. Most files end one short of it, right where it would be.
TokenId image_token(const Tokenizer& tokenizer) {
  constexpr TokenId kPublished = 262144;
  const TokenId soft = tokenizer.special().image_soft;
  return soft >= 0 ? soft : std::min(kPublished, tokenizer.n_vocab());
}

// Text between two markers is one run for the tokenizer, however many pieces it came in: newlines of the template and
// of the user's text merge as they do in one string.
std::vector<TokenId> encode_parts(const Tokenizer& tokenizer, const std::vector<Part>& parts, Trust trust) {
  std::vector<TokenId> tokens;
  std::string text;
  const auto flush = [&] {
    tokenizer.encode(text, trust, &tokens);
    text.clear();
  };
  for (const Part& part : parts) {
    if (const auto* piece = std::get_if<std::string>(&part)) {
      text += *piece;
      continue;
    }
    flush();
    const SpecialIds& special = tokenizer.special();
    TokenId id = -1;
    const char* name = nullptr;
    switch (std::get<Marker>(part)) {
      case Marker::kBos: id = special.bos, name = "<bos>"; break;
      case Marker::kStartOfTurn: id = special.start_of_turn, name = "<start_of_turn>"; break;
      case Marker::kEndOfTurn: id = special.end_of_turn, name = "<end_of_turn>"; break;
      case Marker::kStartOfImage: id = special.start_of_image, name = "<start_of_image>"; break;
      case Marker::kEndOfImage: id = special.end_of_image, name = "<end_of_image>"; break;
      case Marker::kImage: id = image_token(tokenizer); break;
    }
    if (id < 0) {
      throw Error(
          ErrorCode::kUnsupportedModel, "NO_MARKER",
          std::string("the model's vocabulary has no ") + name + "; it cannot be used as a chat model (pass raw text)");
    }
    tokens.push_back(id);
  }
  flush();
  return tokens;
}

struct EvaluateParams {
  LogitsParams logits;
  bool rows = false;  // hand over the logits themselves
  int n_top = 0;      // and the best tokens
  bool next = false;  // and the log-probability of the token that follows in the input
};

// One event of evaluate(): position, then what was asked for.
struct Position {
  int position = 0;
  std::vector<float> row;
  std::vector<TokenLogprob> top;
  bool has_next = false;
  double next_logprob = 0;
};

Napi::Object to_js(Napi::Env env, const Position& result) {
  Napi::Object event = Napi::Object::New(env);
  event["kind"] = "position";
  event["position"] = result.position;
  if (!result.row.empty()) {
    auto row = Napi::Float32Array::New(env, result.row.size());
    std::memcpy(row.Data(), result.row.data(), result.row.size() * sizeof(float));
    event["row"] = row;
  }
  if (!result.top.empty()) event["top"] = binding::to_js(env, result.top);
  if (result.has_next) event["nextLogprob"] = result.next_logprob;
  return event;
}

// Delivers an operation's last event: the operation is gone before JavaScript hears of it.
void finish(Napi::Env env, uint64_t id, const Napi::Object& event) {
  Environment& environment = Environment::of(env);
  Operation* operation = environment.find_operation(id);
  if (operation == nullptr) return;
  const Napi::FunctionReference on_event = std::move(operation->on_event);
  environment.remove_operation(env, id);
  on_event.Call(env.Undefined(), {event});
}

}  // namespace

Napi::Function ModelBinding::define(Napi::Env env) {
  return DefineClass(env, "NativeModel",
                     {
                         InstanceMethod<&ModelBinding::info>("info"),
                         InstanceMethod<&ModelBinding::stats>("stats"),
                         InstanceMethod<&ModelBinding::encode>("encode"),
                         InstanceMethod<&ModelBinding::decode>("decode"),
                         InstanceMethod<&ModelBinding::generate>("generate"),
                         InstanceMethod<&ModelBinding::evaluate>("evaluate"),
                         InstanceMethod<&ModelBinding::encode_images>("encodeImages"),
                         InstanceMethod<&ModelBinding::acknowledge>("acknowledge"),
                         InstanceMethod<&ModelBinding::cancel>("cancel"),
                         InstanceMethod<&ModelBinding::close>("close"),
                     });
}

void ModelBinding::attach(std::shared_ptr<Engine> engine, bool instruction_tuned) {
  engine_ = std::move(engine);
  instruction_tuned_ = instruction_tuned;
}

const std::shared_ptr<Engine>& ModelBinding::engine() const {
  if (!engine_) throw Error(ErrorCode::kDisposed, "", "the model was disposed");
  return engine_;
}

Napi::Value ModelBinding::info(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&]() -> Napi::Value {
    Napi::Object object = binding::to_js(env, engine()->info()).As<Napi::Object>();
    object["config"] = binding::to_js(env, engine()->config());
    object["instructionTuned"] = instruction_tuned_;
    object["imageToken"] = image_token(engine()->tokenizer());
    return object;
  });
}

Napi::Value ModelBinding::stats(const Napi::CallbackInfo& info) {
  return Environment::of(info.Env()).guarded(info.Env(), [&] { return binding::to_js(info.Env(), engine()->stats()); });
}

// encode(parts: (string | marker number)[], special: boolean) -> Promise<Int32Array>. special: control strings in the
// text are parsed, for text that the caller trusts.
Napi::Value ModelBinding::encode(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&] {
    std::vector<Part> parts;
    const auto list = info[0].As<Napi::Array>();
    for (uint32_t i = 0; i < list.Length(); ++i) {
      const Napi::Value value = list.Get(i);
      if (value.IsString()) {
        parts.emplace_back(value.As<Napi::String>().Utf8Value());
      } else {
        parts.emplace_back(static_cast<Marker>(value.As<Napi::Number>().Int32Value()));
      }
    }
    const Trust trust = info[1].As<Napi::Boolean>().Value() ? Trust::kTemplate : Trust::kUser;
    return PoolTask<std::vector<TokenId>>::run(
        env,
        [engine = engine(), parts = std::move(parts), trust] {
          return encode_parts(engine->tokenizer(), parts, trust);
        },
        [](Napi::Env result_env, auto&& tokens) { return binding::to_js(result_env, tokens); });
  });
}

// decode(tokens: Int32Array, special: boolean) -> Promise<string>
Napi::Value ModelBinding::decode(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&] {
    return PoolTask<std::string>::run(
        env,
        [engine = engine(), tokens = to_tokens(info[0]), special = info[1].As<Napi::Boolean>().Value()] {
          return engine->tokenizer().decode(tokens, special);
        },
        [](Napi::Env result_env, std::string&& text) { return Napi::String::New(result_env, text); });
  });
}

// generate(params, onEvent) -> id. Throws at once for parameters that cannot work.
Napi::Value ModelBinding::generate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Environment& environment = Environment::of(env);
  return environment.guarded(env, [&]() -> Napi::Value {
    GenerateParams params = to_generate_params(info[0].As<Napi::Object>());
    Operation operation;
    operation.engine = engine();
    operation.on_event = Napi::Persistent(info[1].As<Napi::Function>());
    const uint64_t id = environment.add_operation(env, std::move(operation));
    const auto on_event = [mailbox = environment.mailbox(), id](GenerateEvent&& event) {
      mailbox->post([id, event = std::move(event)](Napi::Env task_env) {
        Napi::Object object = binding::to_js(task_env, event);
        Environment& self = Environment::of(task_env);
        if (event.error) object["error"] = self.make_error(task_env, describe(*event.error));
        if (event.kind == GenerateEvent::kFinish) {
          finish(task_env, id, object);
        } else {
          self.emit(task_env, id, object);
        }
      });
    };
    try {
      environment.find_operation(id)->request = engine()->generate(std::move(params), on_event);
    } catch (...) {
      environment.remove_operation(env, id);
      throw;
    }
    return Napi::Number::New(env, static_cast<double>(id));
  });
}

// evaluate({tokens, images?, all, rows, top, next}, onEvent) -> id. Events: {kind: 'position', position, row?, top?,
// nextLogprob?} for every wanted position in order, then {kind: 'finish', error?}.
Napi::Value ModelBinding::evaluate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Environment& environment = Environment::of(env);
  return environment.guarded(env, [&]() -> Napi::Value {
    const auto options = info[0].As<Napi::Object>();
    EvaluateParams params;
    params.logits.tokens = to_tokens(options.Get("tokens"));
    params.logits.images = to_prompt_images(options.Get("images"));
    params.logits.all = options.Get("all").ToBoolean();
    params.rows = options.Get("rows").ToBoolean();
    params.next = options.Get("next").ToBoolean();
    params.n_top = options.Get("top").As<Napi::Number>().Int32Value();

    Operation operation;
    operation.engine = engine();
    operation.on_event = Napi::Persistent(info[1].As<Napi::Function>());
    const uint64_t id = environment.add_operation(env, std::move(operation));
    // on_row must not throw: what goes wrong there (memory) is kept for the end. Both run on the engine thread.
    const auto failure = std::make_shared<std::exception_ptr>();
    const auto on_row = [mailbox = environment.mailbox(), id, failure, rows = params.rows, n_top = params.n_top,
                         next = params.next,
                         tokens = params.logits.tokens](int position, std::span<const float> logits) {
      try {
        Position result;
        result.position = position;
        if (rows) result.row.assign(logits.begin(), logits.end());
        if (n_top > 0) result.top = top_logprobs(logits, n_top);
        if (next && static_cast<size_t>(position) + 1 < tokens.size()) {
          const auto token = static_cast<size_t>(tokens[static_cast<size_t>(position) + 1]);
          result.has_next = true;
          result.next_logprob = static_cast<double>(logits[token]) - log_sum_exp(logits);
        }
        mailbox->post([id, result = std::move(result)](Napi::Env task_env) {
          Environment::of(task_env).emit(task_env, id, to_js(task_env, result));
        });
      } catch (...) {
        *failure = std::current_exception();
      }
    };
    const auto on_done = [mailbox = environment.mailbox(), id, failure](std::shared_ptr<const Error> error) {
      mailbox->post([id, failure, error = std::move(error)](Napi::Env task_env) {
        Napi::Object event = Napi::Object::New(task_env);
        event["kind"] = "finish";
        const Environment& self = Environment::of(task_env);
        if (error) {
          event["error"] = self.make_error(task_env, describe(*error));
        } else if (*failure) {
          event["error"] = self.make_error(task_env, describe(*failure));
        }
        finish(task_env, id, event);
      });
    };
    try {
      environment.find_operation(id)->request = engine()->logits(std::move(params.logits), on_row, on_done);
    } catch (...) {
      environment.remove_operation(env, id);
      throw;
    }
    return Napi::Number::New(env, static_cast<double>(id));
  });
}

// encodeImages({pixels, n}, onEvent) -> id. Events: {kind: 'progress', fraction}, then {kind: 'finish', embeddings?:
// Float32Array [n * tokensPerImage * modelDim], error?}.
Napi::Value ModelBinding::encode_images(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Environment& environment = Environment::of(env);
  return environment.guarded(env, [&]() -> Napi::Value {
    EncodeParams params = to_encode_params(info[0].As<Napi::Object>());
    Operation operation;
    operation.engine = engine();
    operation.on_event = Napi::Persistent(info[1].As<Napi::Function>());
    const uint64_t id = environment.add_operation(env, std::move(operation));
    const auto on_progress = [mailbox = environment.mailbox(), id](double fraction) {
      mailbox->post([id, fraction](Napi::Env task_env) {
        Napi::Object event = Napi::Object::New(task_env);
        event["kind"] = "progress";
        event["fraction"] = fraction;
        Environment::of(task_env).emit(task_env, id, event);
      });
    };
    const auto on_done = [mailbox = environment.mailbox(), id](std::vector<float>&& embeddings,
                                                               std::shared_ptr<const Error> error) {
      mailbox->post([id, embeddings = std::move(embeddings), error = std::move(error)](Napi::Env task_env) {
        Napi::Object event = Napi::Object::New(task_env);
        event["kind"] = "finish";
        if (error) {
          event["error"] = Environment::of(task_env).make_error(task_env, describe(*error));
        } else {
          auto array = Napi::Float32Array::New(task_env, embeddings.size());
          std::memcpy(array.Data(), embeddings.data(), embeddings.size() * sizeof(float));
          event["embeddings"] = array;
        }
        finish(task_env, id, event);
      });
    };
    try {
      environment.find_operation(id)->request = engine()->encode_images(std::move(params), on_progress, on_done);
    } catch (...) {
      environment.remove_operation(env, id);
      throw;
    }
    return Napi::Number::New(env, static_cast<double>(id));
  });
}

// acknowledge(id, n): the reader has taken n more events.
Napi::Value ModelBinding::acknowledge(const Napi::CallbackInfo& info) {
  const auto id = static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value());
  Operation* operation = Environment::of(info.Env()).find_operation(id);
  if (operation != nullptr && operation->request)
    operation->request->acknowledge(info[1].As<Napi::Number>().Int32Value());
  return info.Env().Undefined();
}

// cancel(id): stops what began with that id; its last event still arrives. Unknown ids are done already.
Napi::Value ModelBinding::cancel(const Napi::CallbackInfo& info) {
  return Environment::of(info.Env()).cancel(info);
}

// close() -> Promise<undefined>: cancels what runs, joins the threads, releases the weights. Off the JavaScript thread,
// because joining waits for a layer to end.
Napi::Value ModelBinding::close(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&] {
    return PoolTask<std::monostate>::run(
        env,
        [engine = std::exchange(engine_, nullptr)] {
          if (engine) engine->close();
          return std::monostate();
        },
        [](Napi::Env result_env, std::monostate&&) { return result_env.Undefined(); });
  });
}

}  // namespace gemma::binding

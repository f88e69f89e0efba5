#include "binding/model_binding.h"

#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "binding/convert.h"
#include "binding/environment.h"
#include "binding/mailbox.h"
#include "runtime/evaluate.h"
#include "runtime/inspect.h"
#include "runtime/prompt_tokens.h"

namespace gemma::binding {
namespace {

// The way of an operation's events to JavaScript, from any thread. Events are made on the JavaScript thread, where
// make(env) runs. Last is what the last event tells: its task is made with the operation, so that the operation can end
// where there is no memory.
template <typename Last>
class Reporter {
 public:
  using Make = Napi::Object (*)(Napi::Env env, const Last& last);

  Reporter(std::shared_ptr<Mailbox> mailbox, uint64_t id, Make make)
      : mailbox_(std::move(mailbox)), id_(id), finish_(std::make_unique<Finish>(id, make)) {}

  // Throws std::bad_alloc.
  template <typename MakeEvent>
  void emit(MakeEvent make) const {
    mailbox_->post(
        make_task([id = id_, make = std::move(make)](Napi::Env env) { Environment::of(env).emit(env, id, make); }));
  }
  // Delivers the last event, once: the operation is gone before JavaScript hears of it.
  void finish(Last&& last) noexcept {
    finish_->last = std::move(last);
    mailbox_->post(std::move(finish_));
  }

 private:
  struct Finish final : Task {
    Finish(uint64_t operation, Make make_event) : id(operation), make(make_event) {}
    void run(Napi::Env env) override {
      Environment::of(env).finish_operation(env, id, "finish", [&](Napi::Env) { return make(env, last); });
    }
    uint64_t id;
    Make make;
    Last last;
  };
  static_assert(std::is_nothrow_move_assignable_v<Last>);

  std::shared_ptr<Mailbox> mailbox_;
  uint64_t id_;
  std::unique_ptr<Finish> finish_;
};

// { kind, error? }
Napi::Object make_event(Napi::Env env, const char* kind, const std::shared_ptr<const Error>& error = nullptr) {
  Napi::Object event = Napi::Object::New(env);
  event["kind"] = kind;
  if (error) event["error"] = Environment::of(env).make_error(env, *error);
  return event;
}

// A typed array of what a vector or string holds. Much of it is copied on another thread, where it holds nobody up: this
// is a promise of the array then, and a promise that is settled with it waits for it.
template <class T, class Container>
Napi::Value to_typed_array(Napi::Env env, Container values) {
  constexpr size_t kMuch = size_t{1} << 20;
  std::span<T> to;
  const Napi::TypedArrayOf<T> array = make_array(env, values.size(), &to);
  if (to.size_bytes() < kMuch) {
    if (!to.empty()) std::memcpy(to.data(), values.data(), to.size_bytes());
    return array;
  }
  const auto from = std::make_shared<Container>(std::move(values));
  const auto keep = std::make_shared<Napi::ObjectReference>(Napi::Persistent(array.template As<Napi::Object>()));
  return PoolTask<std::monostate>::run(
      env,
      [from, keep, to] {
        std::memcpy(to.data(), from->data(), to.size_bytes());
        Container().swap(*from);
        return std::monostate();
      },
      [keep](Napi::Env, std::monostate&&) { return keep->Value(); });
}

struct Embeddings {
  std::vector<float> values;
  std::shared_ptr<const Error> error;
};

// So that a method that is called on something else does not take it for a model.
constexpr napi_type_tag kModelTag = {0x6a51c3f0e8d24b97u, 0x9b1f7d3c5e60a842u};

}  // namespace

Napi::Function ModelBinding::define(Napi::Env env) {
  return DefineClass(env, "NativeModel",
                     {
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::info>>("info"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::stats>>("stats"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::markers>>("markers"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::find_token>>("findToken"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::encode>>("encode"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::decode>>("decode"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::compile_grammar>>("compileGrammar"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::generate>>("generate"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::evaluate>>("evaluate"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::score>>("score"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::embed>>("embed"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::encode_images>>("encodeImages"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::hold_rows>>("holdRows"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::save_state>>("saveState"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::restore_state>>("restoreState"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::load_adapter>>("loadAdapter"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::unload_adapter>>("unloadAdapter"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::adapters>>("adapters"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::acknowledge>>("acknowledge"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::cancel>>("cancel"),
                         InstanceMethod<&ModelBinding::checked<&ModelBinding::close>>("close"),
                     });
}

ModelBinding::ModelBinding(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ModelBinding>(info) {
  info.This().As<Napi::Object>().TypeTag(&kModelTag);
}

template <Napi::Value (ModelBinding::*method)(const Napi::CallbackInfo& info)>
Napi::Value ModelBinding::checked(const Napi::CallbackInfo& info) {
  if (!info.This().As<Napi::Object>().CheckTypeTag(&kModelTag))
    throw Napi::TypeError::New(info.Env(), "expected to be called on a model");
  return (this->*method)(info);
}

void ModelBinding::attach(std::shared_ptr<Engine> engine) {
  engine_ = std::move(engine);
}

const std::shared_ptr<Engine>& ModelBinding::engine() const {
  if (!engine_) throw Error(ErrorCode::kDisposed, "", "the model was disposed");
  return engine_;
}

Napi::Value ModelBinding::info(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&]() -> Napi::Value {
    Napi::Object object = binding::to_js(env, engine()->info()).As<Napi::Object>();
    object["config"] = binding::to_js(env, describe_model(engine()->config()));
    object["endTokens"] = binding::to_js(env, engine()->tokenizer().ends());
    const SpecialIds& special = engine()->tokenizer().special();
    object["textStart"] = special.bos;
    object["textEnd"] = engine()->config().embeds_eos ? special.eos : TokenId{-1};
    object["imageToken"] = image_token(engine()->tokenizer());
    object["longestToken"] = static_cast<double>(engine()->tokenizer().longest_text());
    return object;
  });
}

Napi::Value ModelBinding::stats(const Napi::CallbackInfo& info) {
  return Environment::of(info.Env()).guarded(info.Env(), [&] { return binding::to_js(info.Env(), engine()->stats()); });
}

// What chat templates are rendered with: { texts: string[], ids: Int32Array } of the tokens that only a template may
// write, and the ids { bos, eos, unknown, pad } of those that it knows by name, -1 for none.
Napi::Value ModelBinding::markers(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&]() -> Napi::Value {
    const Tokenizer& tokenizer = engine()->tokenizer();
    const std::vector<TokenId> ids = tokenizer.markers();
    Napi::Object object = Napi::Object::New(env);
    Napi::Array texts = Napi::Array::New(env, ids.size());
    for (uint32_t i = 0; i < ids.size(); ++i) {
      texts.Set(i, Napi::String::New(env, std::string(tokenizer.token_bytes(ids[i], true))));
    }
    object["texts"] = texts;
    object["ids"] = binding::to_js(env, ids);
    const SpecialIds& special = tokenizer.special();
    object["bos"] = special.bos;
    object["eos"] = special.eos;
    object["unknown"] = special.unknown;
    object["pad"] = special.pad;
    object["startOfImage"] = special.start_of_image;
    return object;
  });
}

// findToken(spelling: string) -> id, -1 for none.
Napi::Value ModelBinding::find_token(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&]() -> Napi::Value {
    if (!info[0].IsString()) throw Napi::TypeError::New(env, "spelling: expected a string");
    return Napi::Number::New(env, engine()->tokenizer().find(info[0].As<Napi::String>().Utf8Value()));
  });
}

// encode(parts: (string | Uint8Array | marker number | -1 - id)[], special: boolean, stop: Int32Array) -> Promise<Int32Array>.
// special: control strings in the text are parsed, for text that the caller trusts. Arrays of bytes are read where they
// are, on another thread: they must not change until then.
Napi::Value ModelBinding::encode(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&] {
    const auto keep = std::make_shared<std::vector<Napi::ObjectReference>>();
    std::vector<PromptPart> parts = to_prompt_parts(info[0], keep.get());
    const Trust trust = to_bool(info[1], "special") ? Trust::kTemplate : Trust::kUser;
    return PoolTask<std::vector<TokenId>>::run(
        env,
        [engine = engine(), keep, parts = std::move(parts), trust, stop = to_stop_flag(info[2])] {
          return encode_parts(engine->tokenizer(), parts, trust, stop);
        },
        to_typed_array<int32_t, std::vector<TokenId>>);
  });
}

// decode(tokens: Int32Array, special: boolean, stop: Int32Array) -> Promise<Uint8Array> of UTF-8. The tokens are read
// where they are, as bytes of encode() are.
Napi::Value ModelBinding::decode(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&] {
    const std::span<const TokenId> tokens = token_view(info[0]);
    const auto keep = std::make_shared<Napi::ObjectReference>(Napi::Persistent(info[0].As<Napi::Object>()));
    return PoolTask<std::string>::run(
        env,
        [engine = engine(), keep, tokens, special = to_bool(info[1], "special"), stop = to_stop_flag(info[2])] {
          return engine->tokenizer().decode(tokens, special, stop);
        },
        to_typed_array<uint8_t, std::string>);
  });
}

// compileGrammar({ kind, text, root? }, quickly) -> Promise<{ bytes, compileMs } | null>, for generate(). quickly: null
// where it takes more than a quarter of a second; otherwise the thread of the pool may wait for others.
Napi::Value ModelBinding::compile_grammar(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&] {
    struct Compiled {
      std::shared_ptr<const Grammar> grammar;
      bool cached = false;
    };
    return PoolTask<Compiled>::run(
        env,
        [engine = engine(), source = to_grammar_source(to_object(info[0], "source")),
         effort = to_bool(info[1], "quickly") ? Effort::kQuick : Effort::kFull] {
          Compiled result;
          result.grammar = engine->compile_grammar(source, &result.cached, effort);
          return result;
        },
        [](Napi::Env result_env, Compiled&& result) -> Napi::Value {
          if (!result.grammar) return result_env.Null();
          return binding::to_js(result_env, std::move(result.grammar), result.cached);
        });
  });
}

// Of a request method (params, onEvent) -> id: begin(engine, params, mailbox, id) makes the request. What it throws, it
// throws to JavaScript, and nothing is under way then.
Napi::Value ModelBinding::start(const Napi::CallbackInfo& info, const auto& begin) {
  const Napi::Env env = info.Env();
  Environment& environment = Environment::of(env);
  return environment.guarded(env, [&]() -> Napi::Value {
    Operation operation;
    operation.engine = engine();
    const Napi::Object params = to_object(info[0], "params");
    operation.on_event = Napi::Persistent(to_function(info[1], "onEvent"));
    const uint64_t id = environment.add_operation(env, std::move(operation));
    try {
      std::shared_ptr<Request> request = begin(*engine(), params, environment.mailbox(), id);
      environment.find_operation(id)->request = std::move(request);
    } catch (...) {
      environment.remove_operation(env, id);
      throw;
    }
    return Napi::Number::New(env, static_cast<double>(id));
  });
}

// generate(params, onEvent) -> id. Throws at once for parameters that cannot work.
Napi::Value ModelBinding::generate(const Napi::CallbackInfo& info) {
  return start(info, [](Engine& engine, const Napi::Object& params, const auto& mailbox, uint64_t id) {
    const auto make = [](Napi::Env env, const GenerateEvent& event) {
      Napi::Object object = binding::to_js(env, event);
      if (event.error) object["error"] = Environment::of(env).make_error(env, *event.error);
      return object;
    };
    auto reporter = std::make_shared<Reporter<GenerateEvent>>(mailbox, id, make);
    return engine.generate(to_generate_params(params), [reporter, make](GenerateEvent&& event) {
      if (event.kind == GenerateEvent::kFinish) return reporter->finish(std::move(event));
      reporter->emit([make, event = std::move(event)](Napi::Env env) { return make(env, event); });
    });
  });
}

// evaluate({tokens, images?, all, rows, top, next}, onEvent) -> id. Events: {kind: 'position', position, row?, top?,
// nextLogprob?} for every wanted position in order, then {kind: 'finish', error?}.
Napi::Value ModelBinding::evaluate(const Napi::CallbackInfo& info) {
  return start(info, [](Engine& engine, const Napi::Object& params, const auto& mailbox, uint64_t id) {
    using Last = std::shared_ptr<const Error>;
    auto reporter = std::make_shared<Reporter<Last>>(
        mailbox, id, [](Napi::Env env, const Last& error) { return make_event(env, "finish", error); });
    return gemma::evaluate(
        engine, to_evaluate_params(params),
        [reporter](PositionScores&& scores) {
          reporter->emit([scores = std::move(scores)](Napi::Env env) { return binding::to_js(env, scores); });
        },
        [reporter](Last error) { reporter->finish(std::move(error)); });
  });
}

// score({tokens, images?, candidates, lengths}, onEvent) -> id. Events: {kind: 'scores', first, logprobs: Float64Array,
// likeliest: Uint8Array} for candidates in order, as they are done, then {kind: 'finish', error?}.
Napi::Value ModelBinding::score(const Napi::CallbackInfo& info) {
  return start(info, [](Engine& engine, const Napi::Object& params, const auto& mailbox, uint64_t id) {
    using Last = std::shared_ptr<const Error>;
    auto reporter = std::make_shared<Reporter<Last>>(
        mailbox, id, [](Napi::Env env, const Last& error) { return make_event(env, "finish", error); });
    return engine.score(
        to_score_params(params),
        [reporter](const CandidateScores& scores) {
          reporter->emit(
              [first = scores.first, logprobs = std::vector<double>(scores.logprobs.begin(), scores.logprobs.end()),
               likeliest = std::vector<uint8_t>(scores.likeliest.begin(), scores.likeliest.end())](Napi::Env env) {
                Napi::Object event = make_event(env, "scores");
                event["first"] = static_cast<double>(first);
                event["logprobs"] = binding::to_js(env, std::span<const double>(logprobs));
                event["likeliest"] = binding::to_js(env, std::span<const uint8_t>(likeliest));
                return event;
              });
        },
        [reporter](Last error) { reporter->finish(std::move(error)); });
  });
}

// embed({tokens, lengths, dimensions, normalize, adapters?}, onEvent) -> id. Events: {kind: 'texts', first, rows: Float32Array} for
// texts in order, as they are done, then {kind: 'finish', error?}.
Napi::Value ModelBinding::embed(const Napi::CallbackInfo& info) {
  return start(info, [](Engine& engine, const Napi::Object& params, const auto& mailbox, uint64_t id) {
    using Last = std::shared_ptr<const Error>;
    auto reporter = std::make_shared<Reporter<Last>>(
        mailbox, id, [](Napi::Env env, const Last& error) { return make_event(env, "finish", error); });
    return engine.embed(
        to_embed_params(params),
        [reporter](size_t first, std::vector<float>&& rows) {
          reporter->emit([first, rows = std::move(rows)](Napi::Env env) {
            Napi::Object event = make_event(env, "texts");
            event["first"] = static_cast<double>(first);
            event["rows"] = binding::to_js(env, std::span<const float>(rows));
            return event;
          });
        },
        [reporter](Last error) { reporter->finish(std::move(error)); });
  });
}

// encodeImages({pixels, n}, onEvent) -> id. Events: {kind: 'progress', fraction}, then {kind: 'finish', embeddings?:
// Float32Array [n * tokensPerImage * modelDim], error?}.
Napi::Value ModelBinding::encode_images(const Napi::CallbackInfo& info) {
  return start(info, [](Engine& engine, const Napi::Object& params, const auto& mailbox, uint64_t id) {
    auto reporter =
        std::make_shared<Reporter<Embeddings>>(mailbox, id, [](Napi::Env env, const Embeddings& embeddings) {
          Napi::Object event = make_event(env, "finish", embeddings.error);
          if (!embeddings.error) event["embeddings"] = binding::to_js(env, std::span<const float>(embeddings.values));
          return event;
        });
    return engine.encode_images(
        to_encode_params(params),
        [reporter](double fraction) {
          reporter->emit([fraction](Napi::Env env) {
            Napi::Object event = make_event(env, "progress");
            event["fraction"] = fraction;
            return event;
          });
        },
        [reporter](std::vector<float>&& embeddings, std::shared_ptr<const Error> error) {
          reporter->finish({std::move(embeddings), std::move(error)});
        });
  });
}

// holdRows(Float32Array) -> a copy for the images of one generate, evaluate or score of this addon.
Napi::Value ModelBinding::hold_rows(const Napi::CallbackInfo& info) {
  return Environment::of(info.Env()).guarded(info.Env(), [&] { return binding::hold_rows(info.Env(), info[0]); });
}

// saveState({path, tokens: Int32Array, images?, metadata: string}) -> Promise<{bytes, positions}>. On a pool thread, which
// waits for the engine to copy pages between its steps.
Napi::Value ModelBinding::save_state(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&] {
    const auto params = std::make_shared<SaveParams>(to_save_params(to_object(info[0], "params")));
    return PoolTask<SavedState>::run(
        env, [engine = engine(), params] { return engine->save_state(std::move(*params)); },
        [](Napi::Env result_env, SavedState&& saved) -> Napi::Value {
          Napi::Object object = Napi::Object::New(result_env);
          object["bytes"] = static_cast<double>(saved.n_bytes);
          object["positions"] = saved.n_positions;
          return object;
        });
  });
}

// restoreState(path: string, adapters?: {name, scale}[]) -> Promise<{tokens: Int32Array, images: {first, embedding: Float32Array or a promise of it}[],
// metadata: string, positions}>. Likewise.
Napi::Value ModelBinding::restore_state(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&] {
    if (!info[0].IsString()) throw Napi::TypeError::New(env, "path: expected a string");
    return PoolTask<RestoredState>::run(
        env,
        [engine = engine(), path = info[0].As<Napi::String>().Utf8Value(), adapters = to_adapter_uses(info[1])] {
          return engine->restore_state(path, adapters);
        },
        [](Napi::Env result_env, RestoredState&& restored) -> Napi::Value {
          Napi::Object object = Napi::Object::New(result_env);
          object["tokens"] = binding::to_js(result_env, std::span<const TokenId>(restored.tokens));
          Napi::Array images = Napi::Array::New(result_env, restored.images.size());
          for (uint32_t i = 0; i < restored.images.size(); ++i) {
            Napi::Object image = Napi::Object::New(result_env);
            image["first"] = restored.images[i].first;
            image["embedding"] = to_typed_array<float>(result_env, std::move(restored.images[i].embedding));
            images.Set(i, image);
          }
          object["images"] = images;
          object["metadata"] = Napi::String::New(result_env, restored.metadata);
          object["positions"] = restored.n_positions;
          return object;
        });
  });
}

// loadAdapter({name, path, peft?}, stop: Int32Array) -> Promise<{name, rank, tensors, bytes, vision}>. On a pool thread.
Napi::Value ModelBinding::load_adapter(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&] {
    return PoolTask<AdapterInfo>::run(
        env,
        [engine = engine(), source = to_named_adapter(to_object(info[0], "source")), stop = to_stop_flag(info[1])] {
          return engine->load_adapter(source, stop);
        },
        [](Napi::Env result_env, AdapterInfo&& adapter) { return binding::to_js(result_env, adapter); });
  });
}

// unloadAdapter(name)
Napi::Value ModelBinding::unload_adapter(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&]() -> Napi::Value {
    if (!info[0].IsString()) throw Napi::TypeError::New(env, "name: expected a string");
    engine()->unload_adapter(info[0].As<Napi::String>().Utf8Value());
    return env.Undefined();
  });
}

// adapters() -> {name, rank, tensors, bytes, vision}[]
Napi::Value ModelBinding::adapters(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  return Environment::of(env).guarded(env, [&]() -> Napi::Value {
    const std::vector<AdapterInfo> all = engine()->adapters();
    Napi::Array array = Napi::Array::New(env, all.size());
    for (uint32_t i = 0; i < all.size(); ++i) array.Set(i, binding::to_js(env, all[i]));
    return array;
  });
}

// acknowledge(id, n): the reader has taken n more events.
Napi::Value ModelBinding::acknowledge(const Napi::CallbackInfo& info) {
  Operation* operation = Environment::of(info.Env()).find_operation(to_id(info[0]));
  const int n = to_int(info[1], "events");
  if (operation != nullptr && operation->request) operation->request->acknowledge(n);
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
    // The engine stays with the model until it is sure that the work will be done.
    Napi::Value promise = PoolTask<std::monostate>::run(
        env,
        [engine = engine_] {
          if (engine) engine->close();
          return std::monostate();
        },
        [](Napi::Env result_env, std::monostate&&) { return result_env.Undefined(); });
    engine_.reset();
    return promise;
  });
}

}  // namespace gemma::binding

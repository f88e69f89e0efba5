#include "runtime/request_checks.h"

#include <algorithm>
#include <string>

namespace gemma {
namespace {

// An encoding's pictures are held in memory together.
constexpr int kMaxImages = 1024;

[[noreturn]] void bad_image(size_t i, const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, "BAD_IMAGE", "image " + std::to_string(i) + ": " + message);
}

void check_images(const std::vector<TokenId>& tokens, const std::vector<PromptImage>& images,
                  const LoadedModel& loaded) {
  const size_t dim = static_cast<size_t>(loaded.config.model_dim);
  size_t free = 0;  // the first token that is no image's yet
  for (size_t i = 0; i < images.size(); ++i) {
    const std::vector<float>& embedding = images[i].embedding;
    if (embedding.empty() || embedding.size() % dim != 0) {
      bad_image(i, "expected an embedding of rows of " + std::to_string(dim) + " values, found " +
                       std::to_string(embedding.size()) + " values");
    }
    const size_t n = embedding.size() / dim;
    if (images[i].first < 0 || static_cast<size_t>(images[i].first) < free ||
        static_cast<size_t>(images[i].first) + n > tokens.size()) {
      bad_image(i, "expected " + std::to_string(n) + " tokens within " + std::to_string(free) + ".." +
                       std::to_string(tokens.size()) + " of the prompt, found the first at " +
                       std::to_string(images[i].first));
    }
    if (n > static_cast<size_t>(std::max(0, loaded.max_image_rows))) {
      bad_image(i, "expected at most " + std::to_string(std::max(0, loaded.max_image_rows)) + " rows, found " +
                       std::to_string(n) +
                       ": an image goes through the layers in one step; load with a larger batchSize");
    }
    if (!is_finite_row(embedding)) bad_image(i, "its embedding holds NaN or infinity");
    free = static_cast<size_t>(images[i].first) + n;
  }
}

void check_tokens(const std::vector<TokenId>& tokens, const std::vector<PromptImage>& images,
                  const LoadedModel& loaded) {
  if (loaded.config.is_encoder) {
    throw Error(
        ErrorCode::kUnsupportedInput, "EMBEDDING_MODEL",
        "this is an embedding model: it turns texts into vectors (embed) and writes or scores none; load a chat "
        "model for that");
  }
  if (tokens.empty())
    throw Error(ErrorCode::kInvalidArgument, "EMPTY", "the prompt has no tokens: expected at least one");
  if (tokens.size() > static_cast<size_t>(loaded.info.n_ctx)) {
    throw Error(ErrorCode::kContextFull, "CONTEXT_OVERFLOW",
                "the prompt of " + std::to_string(tokens.size()) + " tokens does not fit into the context of " +
                    std::to_string(loaded.info.n_ctx) + " positions: shorten it or load with a larger contextSize");
  }
  auto image = images.begin();
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (image != images.end() && i == static_cast<size_t>(image->first)) {
      i += image++->embedding.size() / static_cast<size_t>(loaded.config.model_dim) - 1;
      continue;
    }
    if (tokens[i] < 0 || tokens[i] >= loaded.config.n_vocab) {
      throw Error(ErrorCode::kInvalidArgument, "BAD_TOKEN",
                  "token " + std::to_string(i) + ": expected an id in 0.." + std::to_string(loaded.config.n_vocab - 1) +
                      ", found " + std::to_string(tokens[i]));
    }
  }
}

struct ListNames {
  const char* one;  // "text ", before its number
  const char* all;
  const char* detail;  // of lengths and tokens that do not belong together
};

// Lists of ids, one after the other, of these lengths. check_length(name, length) throws where a list has no room.
template <class F>
void check_lists(const ListNames& names, const std::vector<TokenId>& tokens, const std::vector<int>& lengths,
                 const LoadedModel& loaded, const F& check_length) {
  const auto bad = [](const char* detail, const std::string& message) {
    throw Error(ErrorCode::kInvalidArgument, detail, message);
  };
  size_t token = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const std::string name = names.one + std::to_string(i);
    const int length = lengths[i];
    if (length < 1) bad("EMPTY", name + ": expected at least one token, found none");
    if (static_cast<size_t>(length) > tokens.size() - token)
      bad(names.detail, name + ": its tokens are more than were given");
    check_length(name, length);
    for (const size_t end = token + static_cast<size_t>(length); token < end; ++token) {
      const TokenId id = tokens[token];
      if (id >= 0 && id < loaded.config.n_vocab) continue;
      bad("BAD_TOKEN",
          name + ": expected ids in 0.." + std::to_string(loaded.config.n_vocab - 1) + ", found " + std::to_string(id));
    }
  }
  if (token != tokens.size()) {
    bad(names.detail, std::string(names.all) + ": expected " + std::to_string(token) +
                          " tokens, as many as their lengths say, found " + std::to_string(tokens.size()));
  }
}

}  // namespace

bool is_finite_row(std::span<const float> logits) {
  float sum = 0;
  for (const float logit : logits) sum += logit * 0.0f;
  return sum == 0.0f;
}

void check_prompt(const std::vector<TokenId>& tokens, const std::vector<PromptImage>& images,
                  const LoadedModel& loaded) {
  check_images(tokens, images, loaded);
  check_tokens(tokens, images, loaded);
}

void check_generate(const GenerateParams& params, const LoadedModel& loaded) {
  check_prompt(params.tokens, params.images, loaded);
  const int room = loaded.info.n_ctx - static_cast<int>(params.tokens.size());
  if (params.overflow_is_error && (room < 1 || params.max_tokens > room)) {
    const std::string wanted =
        params.max_tokens >= 0 ? " and maxOutputTokens " + std::to_string(params.max_tokens) : "";
    throw Error(ErrorCode::kContextFull, "CONTEXT_OVERFLOW",
                "the prompt of " + std::to_string(params.tokens.size()) + " tokens" + wanted +
                    " does not fit into the context of " + std::to_string(loaded.info.n_ctx) +
                    " positions: shorten it, lower maxOutputTokens or load with a larger contextSize");
  }
  for (const auto& [token, bias] : params.sampling.logit_bias) {
    if (token < 0 || token >= loaded.config.n_vocab) {
      throw Error(ErrorCode::kInvalidArgument, "BAD_TOKEN",
                  "logitBias: expected an id in 0.." + std::to_string(loaded.config.n_vocab - 1) + ", found " +
                      std::to_string(token));
    }
  }
  for (const TokenId token : params.stop_tokens) {
    if (token < 0 || token >= loaded.config.n_vocab) {
      throw Error(ErrorCode::kInvalidArgument, "BAD_TOKEN",
                  "stopTokens: expected an id in 0.." + std::to_string(loaded.config.n_vocab - 1) + ", found " +
                      std::to_string(token));
    }
  }
  if (params.grammar != nullptr && !loaded.grammars->made(*params.grammar)) {
    throw Error(ErrorCode::kInvalidArgument, "OTHER_MODEL", "grammar: expected one that this model compiled");
  }
  if (params.draft == DraftMode::kModel && !loaded.info.has_draft_model) {
    throw Error(ErrorCode::kInvalidArgument, "NO_DRAFT",
                "draft 'model': the model was loaded without one; name it when loading (option draft)");
  }
}

void check_score(const ScoreParams& params, const LoadedModel& loaded) {
  check_prompt(params.tokens, params.images, loaded);
  const auto bad = [](const char* detail, const std::string& message) {
    throw Error(ErrorCode::kInvalidArgument, detail, message);
  };
  const size_t n = params.lengths.size();
  if (n == 0) bad("EMPTY", "candidates: expected at least one, found none");
  if (n > kMaxCandidates || params.candidates.size() > kMaxCandidateTokens) {
    bad("CANDIDATE_LIMIT", "candidates: expected at most " + std::to_string(kMaxCandidates) + " with " +
                               std::to_string(kMaxCandidateTokens) + " tokens in all, found " + std::to_string(n) +
                               " with " + std::to_string(params.candidates.size()));
  }
  const int room = loaded.info.n_ctx - static_cast<int>(params.tokens.size());
  check_lists({"candidate ", "candidates", "CANDIDATE_LIMIT"}, params.candidates, params.lengths, loaded,
              [&](const std::string& name, int length) {
                if (length <= room) return;
                throw Error(ErrorCode::kContextFull, "CONTEXT_OVERFLOW",
                            "the prompt of " + std::to_string(params.tokens.size()) + " tokens and " + name + " of " +
                                std::to_string(length) + " do not fit into the context of " +
                                std::to_string(loaded.info.n_ctx) +
                                " positions: shorten them or load with a larger contextSize");
              });
}

void check_embed(const EmbedParams& params, const LoadedModel& loaded) {
  const auto bad = [](const char* detail, const std::string& message) {
    throw Error(ErrorCode::kInvalidArgument, detail, message);
  };
  const size_t n = params.lengths.size();
  if (n == 0) bad("EMPTY", "texts: expected at least one, found none");
  if (n > kMaxTexts || (n > 1 && params.tokens.size() > kMaxTextTokens)) {
    bad("TEXT_LIMIT", "texts: expected at most " + std::to_string(kMaxTexts) + " with " +
                          std::to_string(kMaxTextTokens) + " tokens in all, found " + std::to_string(n) + " with " +
                          std::to_string(params.tokens.size()));
  }
  const int dim = loaded.config.embedding_dim();
  if (params.n_dims < 0 || params.n_dims > dim) {
    bad("DIMENSIONS", "dimensions: expected 1 to " + std::to_string(dim) + ", found " + std::to_string(params.n_dims));
  }
  check_lists({"text ", "texts", "TEXT_LIMIT"}, params.tokens, params.lengths, loaded,
              [&](const std::string& name, int length) {
                if (length <= loaded.info.n_ctx) return;
                throw Error(ErrorCode::kContextFull, "CONTEXT_OVERFLOW",
                            name + " of " + std::to_string(length) + " tokens does not fit into the context of " +
                                std::to_string(loaded.info.n_ctx) + " positions: shorten or cut it");
              });
}

void check_encode(const EncodeParams& params, const LoadedModel& loaded) {
  if (!loaded.info.vision) {
    throw Error(ErrorCode::kUnsupportedInput, "NO_VISION",
                "the model was loaded without a vision encoder: name its mmproj file when loading (option mmproj)");
  }
  const size_t size = static_cast<size_t>(loaded.info.vision->image_size);
  if (params.n_images < 1 || params.n_images > kMaxImages ||
      params.pixels.size() != static_cast<size_t>(params.n_images) * size * size * 3) {
    throw Error(ErrorCode::kInvalidArgument, "BAD_IMAGE",
                "pixels: expected 1 to " + std::to_string(kMaxImages) + " images of " + std::to_string(size) + " x " +
                    std::to_string(size) + " x 3 bytes, found " + std::to_string(params.n_images) + " in " +
                    std::to_string(params.pixels.size()) + " bytes");
  }
}

}  // namespace gemma

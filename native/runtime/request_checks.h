// What a call must be before it becomes a request. All of these throw Error and change nothing.
#pragma once

#include <vector>

#include "runtime/embed_request.h"
#include "runtime/encode_request.h"
#include "runtime/generate_request.h"
#include "runtime/load.h"
#include "runtime/logits_request.h"
#include "runtime/score_request.h"

namespace gemma {

// No NaN, no infinity.
bool is_finite_row(std::span<const float> values);

// Tokens and images of a prompt. Throws Error: kUnsupportedInput, EMBEDDING_MODEL; kInvalidArgument with EMPTY, BAD_TOKEN or BAD_IMAGE (images that
// overlap, leave the prompt, are not finite or too large for a step); kContextFull, CONTEXT_OVERFLOW.
void check_prompt(const std::vector<TokenId>& tokens, const std::vector<PromptImage>& images,
                  const LoadedModel& loaded);
// The same, and besides: kContextFull, CONTEXT_OVERFLOW where the output does not fit; kInvalidArgument, BAD_TOKEN for
// a biased id; kInvalidArgument, NO_DRAFT.
void check_generate(const GenerateParams& params, const LoadedModel& loaded);
// check_prompt(), and besides: kInvalidArgument with EMPTY for no candidate or one without tokens,
// CANDIDATE_LIMIT for more than kMaxCandidates or kMaxCandidateTokens, BAD_TOKEN; kContextFull, CONTEXT_OVERFLOW where prompt and candidate do not fit.
void check_score(const ScoreParams& params, const LoadedModel& loaded);
// Texts. Throws Error: kInvalidArgument with EMPTY, TEXT_LIMIT, DIMENSIONS or BAD_TOKEN; kContextFull, CONTEXT_OVERFLOW.
void check_embed(const EmbedParams& params, const LoadedModel& loaded);
// Throws Error: kUnsupportedInput, NO_VISION; kInvalidArgument, BAD_IMAGE.
void check_encode(const EncodeParams& params, const LoadedModel& loaded);

}  // namespace gemma

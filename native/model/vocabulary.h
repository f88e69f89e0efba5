// The vocabulary of a Gemma 3 file. Source: tokenizer.ggml.* keys as llama.cpp and Ollama write them.
#pragma once

#include "gguf/gguf.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

// n_vocab ids: tokens past the embedding's rows are cut, rows past the tokens have no text. The pieces are views into
// file. Throws Error: kUnsupportedModel for another tokenizer model; kGgufInvalid with BAD_VOCAB. Accepted: more scores
// or types than tokens, special token ids of -1 (none), and what Tokenizer accepts.
Vocabulary read_vocabulary(const GgufFile& file, int n_vocab);

}  // namespace gemma

// How much each input of a model's products counts: the mean of its square over a text. Errors of weights are weighted by
// it when they are quantised. Files are those of llama.cpp's tool llama-imatrix.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/load_options.h"

namespace gemma {

struct Importance {
  // Of a tensor, by its name: the mean square of each of its columns' input, finite and >= 0.
  std::map<std::string, std::vector<float>> columns;
};

// Reads a file of either format: GGUF, or the older one (".dat"). Throws Error: kFile, kGgufInvalid as GgufFile does;
// kFile with NOT_AN_IMPORTANCE_MATRIX, IMPORTANCE_DAMAGED.
Importance read_importance(const std::string& path);

struct ImportanceOptions {
  LoadOptions model;  // device, vision and cache are set here
  std::string text;   // UTF-8
  std::string output;
  int n_chunk = 512;  // tokens that are read together, the first token of each included
};

struct ImportanceResult {
  uint64_t bytes = 0;     // of the file
  uint64_t n_tokens = 0;  // that were read
  uint64_t n_chunks = 0;
  uint64_t n_tensors = 0;
};

// Loads the model on the CPU, reads the text in chunks and writes the file, which takes its name when it is whole.
// Blocking. model.on_progress and model.cancel count for all of it. Throws Error: as load_model() and FileWriter do;
// kInvalidArgument, EMPTY for a text of less than one chunk; kNonFinite.
ImportanceResult compute_importance(const ImportanceOptions& options);

}  // namespace gemma

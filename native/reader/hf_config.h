// config.json of a Hugging Face checkpoint, and the small JSON files beside it, as the model's own structs. Messages do
// not name the file.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/vision_config.h"

namespace gemma {

// Ids of tokens, as files have them: unchecked. -1: none.
struct HfTokenIds {
  int64_t bos = -1;
  int64_t eos = -1;
  int64_t pad = -1;
  int64_t unk = -1;
  std::vector<int64_t> ends;  // every one that ends an answer
};

// What generation_config.json says of sampling.
struct HfSampling {
  std::optional<int64_t> top_k;
  std::optional<double> top_p, min_p, temperature, repetition_penalty;
};

struct HfConfig {
  std::string model_type;  // "gemma3", "gemma3_text"
  std::string name;        // may be empty
  ModelConfig model;       // name and size label are left to the reader
  bool is_tied = true;     // the embedding is the output matrix, whatever else the file holds
  std::optional<VisionConfig> vision;
  HfTokenIds tokens;
  HfSampling sampling;
};

// Fields that the file leaves out have the values that transformers gives them. Throws Error: kUnsupportedModel for
// another kind of model, or one with parts that Gemma 3 has not; kSafetensorsInvalid with BAD_HPARAM, DUPLICATE.
HfConfig read_hf_config(std::string_view json);
// preprocessor_config.json or processor_config.json: mean and deviation of pixels. Throws likewise.
void read_hf_preprocessor(std::string_view json, VisionConfig* vision);
// generation_config.json: which tokens end an answer, and how answers are sampled. Throws likewise.
void read_hf_generation_config(std::string_view json, HfTokenIds* tokens, HfSampling* sampling);

}  // namespace gemma

// Images among the tokens of a prompt.
#pragma once

#include <memory>
#include <vector>

namespace gemma {

// An image in a prompt: its rows stand in place of tokens[first], tokens[first + 1], ..., whatever these are.
struct PromptImage {
  int first = 0;
  std::vector<float> embedding;  // [rows, model_dim], as Engine::encode_images() makes them
};
using PromptImages = std::shared_ptr<const std::vector<PromptImage>>;

}  // namespace gemma

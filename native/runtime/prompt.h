// Images among the tokens of a prompt.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace gemma {

// An image in a prompt: its rows stand in place of tokens[first], tokens[first + 1], ..., whatever these are.
struct PromptImage {
  int first = 0;
  std::vector<float> embedding;  // [rows, model_dim], as Engine::encode_images() makes them
};
using PromptImages = std::shared_ptr<const std::vector<PromptImage>>;

// An adapter that a request names, and how much of it is added. Several are added in order.
struct AdapterUse {
  std::string name;
  float scale = 1;
};

}  // namespace gemma

#include "reader/family.h"

#include <algorithm>
#include <iterator>

namespace gemma {
namespace {

struct Relative {
  std::string_view prefix;  // of the architecture's name; the first that fits counts
  std::string_view family;
};

// llama.cpp's architectures and projectors, and transformers' model types.
constexpr Relative kRelatives[] = {
    {"gemma-embedding", ""},  // Gemma 3's own
    {"gemma3nv", "Gemma 3n's vision encoder"},
    {"gemma3na", "Gemma 3n's audio encoder"},
    {"gemma3n", "Gemma 3n"},
    {"gemma3", ""},
    {"gemma4v", "Gemma 4's vision encoder"},
    {"gemma4uv", "Gemma 4's vision encoder"},
    {"gemma4a", "Gemma 4's audio encoder"},
    {"gemma4ua", "Gemma 4's audio encoder"},
    {"gemma4", "Gemma 4"},
    {"gemma2", "Gemma 2"},
    {"gemma", "Gemma 1 or CodeGemma"},
    {"shieldgemma2", ""},
    {"shieldgemma", "ShieldGemma 1, which is Gemma 2"},
    {"vaultgemma", "VaultGemma"},
    {"paligemma", "PaliGemma"},
    {"t5gemma2", "T5Gemma 2"},
    {"t5gemma", "T5Gemma"},
    {"recurrent_gemma", "RecurrentGemma"},
    {"recurrentgemma", "RecurrentGemma"},
    {"diffusion_gemma", "DiffusionGemma"},
    {"embedding_gemma2", "EmbeddingGemma 2, which is Gemma 4"},
};

}  // namespace

std::string family_note(std::string_view architecture) {
  const auto* found = std::find_if(std::begin(kRelatives), std::end(kRelatives), [&](const Relative& relative) {
    if (!architecture.starts_with(relative.prefix)) return false;
    // Behind it a word ends: gemma4_text, gemma4-assistant, but not gemmaX.
    const std::string_view rest = architecture.substr(relative.prefix.size());
    return rest.empty() || rest.front() == '_' || rest.front() == '-';
  });
  if (found == std::end(kRelatives) || found->family.empty()) return "";
  return ": this is " + std::string(found->family) + ", another architecture than Gemma 3";
}

}  // namespace gemma

// Names of Gemma 3's relatives that are other architectures, for messages: a user who has one should read which it is.
#pragma once

#include <string>
#include <string_view>

namespace gemma {

// Of a name that a file has for its architecture (GGUF's general.architecture, clip.projector_type; model_type of a
// config.json): ": this is Gemma 2, another architecture than Gemma 3". Empty for names that are none of these.
std::string family_note(std::string_view architecture);

}  // namespace gemma

// The backends of this build by the names that users give devices.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"

namespace gemma {

// device: "cpu", or in test builds "emulated" and "emulated:CHIP" ("emulated:sm_80"; without one GEMMA_EMULATED_CHIP, else
// the first). isa: of the CPU, "" for the best. Throws Error{kBackendUnavailable} for what is not here.
std::unique_ptr<Backend> make_backend(const std::string& device, const std::string& isa, int n_threads);

}  // namespace gemma

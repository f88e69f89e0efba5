// The addon's entry point; everything else is per environment.
#include "binding/environment.h"

namespace gemma::binding {
NODE_API_ADDON(Environment)
}  // namespace gemma::binding

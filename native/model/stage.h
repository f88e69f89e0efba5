// A run of layers and the backend that computes it. The layers of a model lie on one backend or on several, one run
// after the other; the residual stream is carried over at the borders.
#pragma once

#include "backend/backend.h"

namespace gemma {

// Layers first_layer .. end_layer - 1, at least one of them. The first stage also embeds tokens, the last one also
// computes logits.
struct Stage {
  Backend* backend = nullptr;
  int first_layer = 0;
  int end_layer = 0;
};

// The most that a model is asked for. Its memory follows from it.
struct ModelLimits {
  int n_ctx = 0;  // positions of a sequence; 0: any number
  KvType kv_type = KvType::kF16;
  int max_batch = 0;      // rows of a step
  bool screened = false;  // keep what makes the best few logits cheap (Backend::make_output)
};

}  // namespace gemma

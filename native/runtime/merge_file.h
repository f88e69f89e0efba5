// A model of several: adapters that are put into the weights, or a mean of two checkpoints. GGUF out.
#pragma once

#include <string>
#include <vector>

#include "reader/adapter_file.h"
#include "runtime/quantize_file.h"
#include "runtime/row_change.h"

namespace gemma {

struct MergedAdapter {
  AdapterSource source;
  float scale = 1;
};

// `pattern` as of a TypeOverride.
struct WeightOverride {
  std::string pattern;
  double weight = 0;
};

struct MergeOptions : QuantizeOptions {
  std::string mmproj_path;  // the vision encoder of a GGUF file; "": the one in the model, if it holds one
  // One or the other.
  std::vector<MergedAdapter> adapters;
  std::string other_path;
  Blend blend = Blend::kLinear;
  double weight = 0.5;                  // of the other: 0 is the model, 1 the other
  std::vector<WeightOverride> weights;  // of some tensors; the first that names one counts
};

struct MergeResult : QuantizeResult {
  uint64_t n_changed = 0;  // tensors
};

// What adapters make is what a model computes that has them loaded. Where they change the embedding but not the output
// matrix, or the other way round, and the model has one matrix for both, the file gets two. Blocking. Throws Error: as
// quantize_file(), read_adapter() and Adapter do; kAdapterInvalid with CONFLICT, and UNSUPPORTED for a bias;
// kInvalidArgument with OTHER_MODEL for two that do not have the same tensors, NO_SUCH_TENSOR.
MergeResult merge_file(const MergeOptions& options);

}  // namespace gemma

// Weights that are quantised while a model is loaded, so that a file of floats takes the memory, and runs at the speed, of
// a quantised one.
#pragma once

#include <memory>
#include <string>

#include "model/config.h"
#include "model/tensor_source.h"

namespace gemma {

// The tensors of a model of this configuration, of which those of floats have the types that quantize_file() would give
// them. Tensors that are quantised already stay as they are; where nothing changes, the source itself is returned.
//
// What changes are copies (Tensor::is_copy). Their data are there after prefetch(), with the bytes that quantize_file()
// would write: it makes them a few rows at a time on n_threads threads, and gives pages of the file back as it goes, so
// that memory holds the copies and little else. Where all matrices are copies, vectors become some too, and prefetch()
// ends with letting go of the file. It throws Error: kNonFinite for a value that is not finite in its type,
// kOutOfMemory, FILE_CHANGED; and what on_read throws. path: the file, for messages; type: a FileQuantization's name,
// kInvalidArgument with UNKNOWN_TYPE for another.
std::shared_ptr<const TensorSource> quantized_tensors(std::shared_ptr<const TensorSource> source,
                                                      const ModelConfig& config, const std::string& type,
                                                      const std::string& path, int n_threads);

}  // namespace gemma

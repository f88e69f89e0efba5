// How many tensors a file has of each type, and their bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "quant/types.h"

namespace gemma {

struct TypeCount {
  std::string type;  // of tensors, "Q4_K"
  uint64_t n_tensors = 0;
  uint64_t bytes = 0;
};

class TypeCounts {
 public:
  void add(TensorType type, uint64_t bytes) {
    TypeCount& count = counts_[type];
    count.type = type_traits(type).name;
    ++count.n_tensors;
    count.bytes += bytes;
  }

  std::vector<TypeCount> most_bytes_first() const {
    std::vector<TypeCount> sorted;
    for (const auto& [type, count] : counts_) sorted.push_back(count);
    std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
    return sorted;
  }

 private:
  std::map<TensorType, TypeCount> counts_;
};

}  // namespace gemma

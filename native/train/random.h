// Random numbers by counting: number i of a stream is a function of both, so that nothing has to be kept to go on.
#pragma once

#include <cstdint>

#include "base/hash.h"

namespace gemma::train {

class RandomStream {
 public:
  explicit RandomStream(uint64_t seed) : key_(mix_bits(seed + kGoldenRatio)) {}
  // A stream of its own for each id.
  RandomStream at(uint64_t id) const { return RandomStream(key_ ^ mix_bits(id + kGoldenRatio)); }

  // 0 <= x < 1, in steps of 2^-24.
  float uniform(uint64_t i) const {
    return static_cast<float>(mix_bits(key_ + (i + 1) * kGoldenRatio) >> 40) * 0x1p-24f;
  }

 private:
  uint64_t key_;
};

}  // namespace gemma::train

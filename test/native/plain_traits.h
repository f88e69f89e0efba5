// A backend that takes what is asked for and nothing besides: memory is planned without any kernel.
#pragma once

#include "backend/backend.h"

namespace gemma::test {

class PlainTraits final : public BackendTraits {
 public:
  explicit PlainTraits(bool has_bulk = false) : has_bulk_(has_bulk) {}
  bool has_bulk() const override { return has_bulk_; }
  bool maps_weights() const override { return true; }
  uint64_t weight_bytes(TensorType type, int n_out, int n_in) const override {
    return static_cast<uint64_t>(n_out) * row_bytes(type, n_in);
  }
  uint64_t buffer_bytes(uint64_t bytes) const override { return bytes; }
  uint64_t output_bytes(int, int, int) const override { return 0; }
  std::vector<uint64_t> workspace_bytes(const WorkLimits&) const override { return {}; }

 private:
  bool has_bulk_;
};

}  // namespace gemma::test

// The rows of a micro-batch: its examples one after the other, and what each row sees.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "train/trainer.h"

namespace gemma::train {

struct RowLayout {
  struct Sequence {
    int first = 0;
    int n = 0;
  };
  struct Image {
    int first = 0;  // row
    const ImageRows* rows = nullptr;
  };
  std::vector<int32_t> tokens;
  std::vector<int> positions;
  std::vector<Sequence> sequences;
  std::vector<Image> images;
  std::vector<std::vector<RowSpan>> spans;  // [window groups][rows]: rows that a row sees

  int n() const { return static_cast<int>(tokens.size()); }
  int longest() const;
  // windows: of each group, 0: none. The examples, which have been checked, must outlive this.
  static RowLayout of(std::span<const Example> examples, std::span<const int> windows);
};

}  // namespace gemma::train

#include "train/row_layout.h"

#include <algorithm>

namespace gemma::train {

int RowLayout::longest() const {
  int most = 0;
  for (const Sequence& sequence : sequences) most = std::max(most, sequence.n);
  return most;
}

RowLayout RowLayout::of(std::span<const Example> examples, std::span<const int> windows) {
  RowLayout rows;
  rows.spans.resize(windows.size());
  for (const Example& example : examples) {
    const int first = rows.n();
    const int n = static_cast<int>(example.tokens.size());
    rows.sequences.push_back({first, n});
    auto image = example.images.begin();
    for (int i = 0; i < n; ++i) {
      while (image != example.images.end() && image->first + image->n <= i) ++image;
      const bool in_image = image != example.images.end() && i >= image->first;
      if (in_image && i == image->first) rows.images.push_back({first + i, &*image});
      rows.tokens.push_back(in_image ? 0 : example.tokens[static_cast<size_t>(i)]);
      rows.positions.push_back(i);
      const int end = in_image ? image->first + image->n : i + 1;
      for (size_t group = 0; group < windows.size(); ++group) {
        const int begin = windows[group] > 0 ? std::max(0, i - windows[group] + 1) : 0;
        rows.spans[group].push_back({first + begin, first + end});
      }
    }
  }
  return rows;
}

}  // namespace gemma::train

#include "backend/gpu/device_image.h"

#include <algorithm>
#include <charconv>

namespace gemma::gpu {
namespace {

// 86 of "sm_86"; 0 for what is no NVIDIA chip. The last digit is the member, the others are the family.
int capability(std::string_view chip) {
  int value = 0;
  if (!chip.starts_with("sm_")) return 0;
  std::from_chars(chip.data() + 3, chip.data() + chip.size(), value);
  return value;
}

}  // namespace

std::vector<const DeviceImage*> images_for(std::span<const DeviceImage> images, std::string_view chip) {
  chip = chip.substr(0, chip.find(':'));
  const int wanted = capability(chip);
  std::string_view best;
  int best_rank = -1;
  for (const DeviceImage& image : images) {
    const int has = capability(image.chip);
    int rank = -1;
    if (image.chip == chip) {
      rank = 1 << 20;
    } else if (wanted > 0 && has > 0 && has <= wanted) {
      if (has / 10 == wanted / 10) {
        rank = (1 << 19) + has;
      } else if (image.is_portable) {
        rank = has;
      }
    }
    if (rank > best_rank) {
      best_rank = rank;
      best = image.chip;
    }
  }
  std::vector<const DeviceImage*> fitting;
  for (const DeviceImage& image : images) {
    if (best_rank >= 0 && image.chip == best) fitting.push_back(&image);
  }
  return fitting;
}

std::string chip_list(std::span<const DeviceImage> images) {
  std::string list;
  std::vector<std::string_view> seen;
  for (const DeviceImage& image : images) {
    if (std::find(seen.begin(), seen.end(), image.chip) != seen.end()) continue;
    seen.emplace_back(image.chip);
    if (!list.empty()) list += ", ";
    list += image.chip;
  }
  return list;
}

}  // namespace gemma::gpu

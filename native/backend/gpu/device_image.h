// The device code that is embedded in the addon: one image for each source of kernels and chip (cmake/GpuImages.cmake).
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gemma::gpu {

struct DeviceImage {
  const char* chip = nullptr;  // "sm_86", "gfx1100"
  bool is_portable = false;    // also holds PTX, which the driver compiles for newer chips
  const unsigned char* begin = nullptr;
  const unsigned char* end = nullptr;
  size_t bytes() const { return static_cast<size_t>(end - begin); }
};

// All images of this build, those of a chip one after the other. Defined by the build.
std::span<const DeviceImage> device_images();

// The images that fit a chip best, one for each source of kernels: its own; for NVIDIA otherwise those of the latest
// earlier member of its family ("sm_80" for "sm_87"), or of the newest older family as PTX. Features of AMD chips
// ("gfx90a:sramecc+:xnack-") do not matter. Empty when none fits.
std::vector<const DeviceImage*> images_for(std::span<const DeviceImage> images, std::string_view chip);

// The chips of the images, each once: "sm_80, sm_86".
std::string chip_list(std::span<const DeviceImage> images);

}  // namespace gemma::gpu

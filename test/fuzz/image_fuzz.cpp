// libFuzzer entry: any size, layout and way of cutting. A picture is refused with an Error, or every crop lies in it
// and the squares are as many as promised.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "image/image.h"

namespace {

void require(bool condition) {
  if (!condition) __builtin_trap();
}

// Its first bytes say what is asked for; the rest are the pixels.
struct Request {
  uint16_t width;
  uint16_t height;
  uint16_t min_crop_size;
  uint16_t max_crops;
  uint16_t tile;
  uint8_t layout;
  uint8_t mode;
  uint8_t square;
  uint8_t ratio;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Request request;
  if (size < sizeof(request)) return 0;
  std::memcpy(&request, data, sizeof(request));
  gemma::CropOptions options;
  if (request.mode & 1) {
    options.pan_and_scan.emplace();
    options.pan_and_scan->min_crop_size = request.min_crop_size;
    options.pan_and_scan->max_crops = request.max_crops;
    options.pan_and_scan->min_ratio = request.ratio / 32.0;
  }
  if (request.mode & 2) options.tile = request.tile;
  try {
    // Layouts of any size need no pixels.
    for (const gemma::Box& box : gemma::crop_boxes(request.width, request.height, options)) {
      require(box.x >= 0 && box.y >= 0 && box.width > 0 && box.height > 0);
      require(box.x + box.width <= request.width && box.y + box.height <= request.height);
    }
  } catch (const gemma::Error&) {
  }
  try {
    gemma::Image image;
    image.layout = static_cast<gemma::PixelLayout>(request.layout % 5);
    image.width = request.width;
    image.height = request.height;
    const size_t n_bytes = size_t{request.width} * request.height * gemma::n_channels(image.layout);
    if (n_bytes > 65536) return 0;  // larger ones cost time and reach no other code
    // What the input lacks of the pixels is zero.
    std::vector<uint8_t> pixels(data + sizeof(request), data + size);
    if (!(request.mode & 4)) pixels.resize(n_bytes);
    image.data = pixels;
    const int side = 1 + request.square % 32;
    image.alpha = request.mode & 8 ? gemma::Alpha::kWhite : gemma::Alpha::kDrop;
    std::vector<gemma::Box> boxes = gemma::crop_boxes(image.width, image.height, options);
    boxes.push_back({0, 0, image.width, image.height});
    for (const gemma::Box& box : boxes) {
      require(gemma::prepare_square(image, box, side).size() == size_t{1} * side * side * 3);
    }
  } catch (const gemma::Error&) {
  }
  return 0;
}

// Turns a decoded picture into the squares that the vision encoder takes: resizing as in Pillow, Pan & Scan as in
// Hugging Face's processor, tiling. Input and output are bytes; the encoder normalises them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace gemma {

// Limits; beyond them Error{kImage, "IMAGE_LIMIT"} is thrown. The limit of a side is that of JPEG.
inline constexpr int kMaxImageSide = 65535;
inline constexpr int kMaxSquareSide = 8192;
inline constexpr int kMaxCrops = 256;

// The bytes of a pixel, in this order.
enum class PixelLayout { kGrey, kGreyAlpha, kRgb, kRgba, kCmyk };
int n_channels(PixelLayout layout);

// What becomes of alpha: the colours that stand below it, or the picture laid on white as Pillow's alpha_composite does.
enum class Alpha { kDrop, kWhite };

// A picture in memory that the caller owns: row-major pixels of 8-bit channels, no gaps between rows.
struct Image {
  std::span<const uint8_t> data;
  int width = 0;
  int height = 0;
  PixelLayout layout = PixelLayout::kRgb;
  Alpha alpha = Alpha::kDrop;
};
// Throws Error{kImage, "IMAGE_LIMIT"} for sides that are not 1 to kMaxImageSide, Error{kInvalidArgument, "BAD_SHAPE"}
// for data that is not width * height pixels.
void check_image(const Image& image);

// Pixels x .. x + width - 1, y .. y + height - 1.
struct Box {
  int x = 0;
  int y = 0;
  int width = 0;
  int height = 0;
  bool operator==(const Box&) const = default;
};

// out[out_height, out_width, 3] = the pixels of box as RGB, stretched. Equal to the byte to what Pillow 13 makes of
// image.convert("RGB").crop(box).resize(.., BILINEAR): a triangle as wide as the reduction, weights of 22 bits, bytes
// between the passes, rows before columns where the height shrinks by more than twice as much as the width (older
// Pillow always began with the columns, which differs by one level in some bytes of tall images). CMYK is (255 - K) *
// (255 - C) / 255 and so on. box must lie in the image; the image must have passed check_image.
void resize_bilinear(const Image& image, const Box& box, int out_width, int out_height, uint8_t* out);

// Hugging Face's pan_and_scan (transformers 5.23, Gemma3ImageProcessorPil): 2 or more crops side by side along the
// longer side, none where the image is nearly square or they would be small. Crops that its arithmetic leaves empty (9 x 1
// in 7 crops of 1) are left out: the reference with Pillow makes black squares of them, with torchvision it fails.
struct PanAndScan {
  int min_crop_size = 256;
  int max_crops = 4;
  double min_ratio = 1.2;
};
std::vector<Box> pan_and_scan_boxes(int width, int height, const PanAndScan& options);

// A grid of nearly square tiles without overlap, n along the shorter side, row by row: n x n for a square page. A side
// shorter than n pixels gets one tile per pixel. Throws Error{kImage, "IMAGE_LIMIT"} for more than kMaxCrops tiles.
std::vector<Box> tile_boxes(int width, int height, int n);

// How a picture is cut: by Pan & Scan, into tiles, or, with neither, not at all.
struct CropOptions {
  std::optional<PanAndScan> pan_and_scan;
  int tile = 0;  // 0: none
};
// Throws Error{kInvalidArgument} for both at once or values below 1, Error{kImage, "IMAGE_LIMIT"} as above.
std::vector<Box> crop_boxes(int width, int height, const CropOptions& options);

// [size, size, 3]: a part of the picture, stretched. Throws as check_image, and Error{kInvalidArgument} for a size that is
// not 1 to kMaxSquareSide or, with "BAD_SHAPE", a box that is empty or not in the image.
std::vector<uint8_t> prepare_square(const Image& image, const Box& box, int size);

}  // namespace gemma

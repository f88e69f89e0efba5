#include "image/image.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"

namespace gemma {
namespace {

// Resampling of one axis: output i is the sum of count[i] inputs, beginning at first[i], with weights of 22 bits.
struct Filter {
  int n_taps = 0;  // room of an output in weights
  std::vector<int> first;
  std::vector<int> count;
  std::vector<int32_t> weights;  // [n_out, n_taps]
};

constexpr int kWeightBits = 32 - 8 - 2;  // Pillow's: a byte times a weight, and their sum, stay within 32 bits

// Rounds toward zero, as a cast in C does. Pillow rounds this way after it has added one half.
template <class Int>
Int truncated(double value) {
  return static_cast<Int>(value);
}

// The same as Pillow's precompute_coeffs and normalize_coeffs_8bpc, with the double operations in the same order.
Filter triangle_filter(int n_in, int n_out) {
  const double scale = static_cast<double>(n_in) / n_out;
  const double support = std::max(scale, 1.0);
  const double inverse = 1.0 / support;
  Filter filter;
  filter.n_taps = static_cast<int>(std::ceil(support)) * 2 + 1;
  const auto taps = static_cast<size_t>(filter.n_taps);
  filter.first.resize(static_cast<size_t>(n_out));
  filter.count.resize(static_cast<size_t>(n_out));
  filter.weights.assign(static_cast<size_t>(n_out) * taps, 0);
  std::vector<double> weights(taps);
  for (size_t i = 0; i < static_cast<size_t>(n_out); ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    const int first = std::max(0, truncated<int>(center - support + 0.5));
    const int count = std::min(n_in, truncated<int>(center + support + 0.5)) - first;
    double sum = 0;
    for (int t = 0; t < count; ++t) {
      const double weight = std::max(0.0, 1.0 - std::fabs((t + first - center + 0.5) * inverse));
      weights[static_cast<size_t>(t)] = weight;
      sum += weight;
    }
    for (int t = 0; t < count; ++t) {
      const double weight = weights[static_cast<size_t>(t)];
      const double share = sum != 0.0 ? weight / sum : weight;
      filter.weights[i * taps + static_cast<size_t>(t)] = truncated<int32_t>(0.5 + share * (1 << kWeightBits));
    }
    filter.first[i] = first;
    filter.count[i] = count;
  }
  return filter;
}

// Weights are not negative, but when thousands of them are rounded up, their sum can exceed 1.
uint8_t to_byte(int32_t sum) {
  return static_cast<uint8_t>(std::min(sum >> kWeightBits, 255));
}

// a * b / 255, rounded, of bytes.
int multiply_bytes(int a, int b) {
  const int product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

// A channel laid on white, with the roundings of Pillow's alpha_composite: 7 bits of fraction.
uint8_t on_white(int value, int alpha) {
  const int sum = ((value * alpha + 255 * (255 - alpha)) << 7) + (128 << 7);
  return static_cast<uint8_t>((((sum >> 8) + sum) >> 8) >> 7);
}

// row[n, 3] = RGB of n pixels.
void to_rgb(const uint8_t* in, PixelLayout layout, Alpha alpha, int n, uint8_t* row) {
  const size_t step = static_cast<size_t>(n_channels(layout));
  const bool blend = alpha == Alpha::kWhite;
  for (int i = 0; i < n; ++i, in += step, row += 3) {
    switch (layout) {
      case PixelLayout::kGrey: row[0] = row[1] = row[2] = in[0]; break;
      case PixelLayout::kGreyAlpha: row[0] = row[1] = row[2] = blend ? on_white(in[0], in[1]) : in[0]; break;
      case PixelLayout::kRgb:
        for (int c = 0; c < 3; ++c) row[c] = in[c];
        break;
      case PixelLayout::kRgba:
        for (int c = 0; c < 3; ++c) row[c] = blend ? on_white(in[c], in[3]) : in[c];
        break;
      case PixelLayout::kCmyk: {
        const int white = 255 - in[3];
        for (int c = 0; c < 3; ++c) row[c] = static_cast<uint8_t>(std::max(0, white - multiply_bytes(in[c], white)));
        break;
      }
    }
  }
}

// out[n_out, 3] = row[.., 3] resampled.
void resample_row(const uint8_t* row, const Filter& filter, uint8_t* out) {
  const int32_t* weights = filter.weights.data();
  const size_t n_out = filter.first.size();
  for (size_t i = 0; i < n_out; ++i, weights += filter.n_taps, out += 3) {
    const uint8_t* in = row + static_cast<size_t>(filter.first[i]) * 3;
    int32_t red = 1 << (kWeightBits - 1);
    int32_t green = red;
    int32_t blue = red;
    for (int t = 0; t < filter.count[i]; ++t, in += 3) {
      red += in[0] * weights[t];
      green += in[1] * weights[t];
      blue += in[2] * weights[t];
    }
    out[0] = to_byte(red);
    out[1] = to_byte(green);
    out[2] = to_byte(blue);
  }
}

// out[n] = sum over t of rows[t][n] * weights[t].
void sum_rows(std::span<const uint8_t* const> rows, const int32_t* weights, size_t n, uint8_t* out) {
  constexpr size_t kBlock = 64;  // sums that stay in registers or a few cache lines
  for (size_t begin = 0; begin < n; begin += kBlock) {
    const size_t n_block = std::min(kBlock, n - begin);
    int32_t sums[kBlock];
    std::fill(sums, sums + kBlock, 1 << (kWeightBits - 1));
    for (size_t t = 0; t < rows.size(); ++t) {
      const uint8_t* in = rows[t] + begin;
      const int32_t weight = weights[t];
      for (size_t i = 0; i < n_block; ++i) sums[i] += in[i] * weight;
    }
    for (size_t i = 0; i < n_block; ++i) out[begin + i] = to_byte(sums[i]);
  }
}

std::string size_text(int width, int height) {
  return std::to_string(width) + " x " + std::to_string(height);
}

void check_sides(int width, int height) {
  if (width < 1 || height < 1 || width > kMaxImageSide || height > kMaxImageSide) {
    throw Error(ErrorCode::kImage, "IMAGE_LIMIT",
                "an image of " + size_text(width, height) + " pixels: expected sides from 1 to " +
                    std::to_string(kMaxImageSide));
  }
}

}  // namespace

int n_channels(PixelLayout layout) {
  switch (layout) {
    case PixelLayout::kGrey: return 1;
    case PixelLayout::kGreyAlpha: return 2;
    case PixelLayout::kRgb: return 3;
    case PixelLayout::kRgba:
    case PixelLayout::kCmyk: return 4;
  }
  return 0;
}

void check_image(const Image& image) {
  check_sides(image.width, image.height);
  const size_t channels = static_cast<size_t>(n_channels(image.layout));
  const size_t expected = static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * channels;
  if (image.data.size() != expected) {
    throw Error(ErrorCode::kInvalidArgument, "BAD_SHAPE",
                "pixels: expected " + std::to_string(expected) + " bytes (" + size_text(image.width, image.height) +
                    ", " + std::to_string(channels) + " channels), found " + std::to_string(image.data.size()));
  }
}

void resize_bilinear(const Image& image, const Box& box, int out_width, int out_height, uint8_t* out) {
  const Filter columns = triangle_filter(box.width, out_width);
  const Filter rows = triangle_filter(box.height, out_height);
  // Pillow resizes the height first if that leaves much less work for the width. The order affects the result, because
  // the values between the passes are bytes.
  const bool rows_first = box.height > out_height && box.height - out_height > 2 * (box.width - out_width);
  const auto in_row = static_cast<size_t>(box.width) * 3;
  const auto out_row = static_cast<size_t>(out_width) * 3;
  const auto n_taps = static_cast<size_t>(rows.n_taps);
  const bool is_rgb = image.layout == PixelLayout::kRgb;

  std::vector<uint8_t> rgb(is_rgb ? 0 : in_row);
  const auto input_row = [&](int y) -> const uint8_t* {  // of the box, as RGB
    const size_t pixel = static_cast<size_t>(box.y + y) * static_cast<size_t>(image.width) + static_cast<size_t>(box.x);
    const uint8_t* in = image.data.data() + pixel * static_cast<size_t>(n_channels(image.layout));
    if (is_rgb) return in;
    to_rgb(in, image.layout, image.alpha, box.width, rgb.data());
    return rgb.data();
  };

  // The rows that the next output rows sum, each computed once. They fit into a cache, however high the image is.
  const size_t ring_row = rows_first ? in_row : out_row;
  std::vector<uint8_t> ring(rows_first && is_rgb ? 0 : n_taps * ring_row);
  std::vector<uint8_t> summed(rows_first ? in_row : 0);
  std::vector<const uint8_t*> taps(n_taps);
  int n_ready = 0;  // rows of the box that went into the ring
  for (size_t i = 0; i < static_cast<size_t>(out_height); ++i) {
    const auto count = static_cast<size_t>(rows.count[i]);
    for (size_t t = 0; t < count; ++t) {
      const int y = rows.first[i] + static_cast<int>(t);
      if (ring.empty()) {
        taps[t] = input_row(y);
        continue;
      }
      uint8_t* row = ring.data() + static_cast<size_t>(y) % n_taps * ring_row;
      if (y >= n_ready) {
        if (rows_first) {
          std::copy_n(input_row(y), in_row, row);
        } else {
          resample_row(input_row(y), columns, row);
        }
        n_ready = y + 1;
      }
      taps[t] = row;
    }
    uint8_t* result = out + i * out_row;
    sum_rows({taps.data(), count}, rows.weights.data() + i * n_taps, ring_row, rows_first ? summed.data() : result);
    if (rows_first) resample_row(summed.data(), columns, result);
  }
}

std::vector<Box> pan_and_scan_boxes(int width, int height, const PanAndScan& options) {
  const double longer = std::max(width, height);
  const double shorter = std::min(width, height);
  if (longer / shorter < options.min_ratio) return {};
  const double fitting = std::floor(longer / options.min_crop_size);
  const double wanted = std::max(2.0, std::min(std::floor(longer / shorter + 0.5), fitting));
  const int n = static_cast<int>(std::min(wanted, static_cast<double>(options.max_crops)));
  const int length = static_cast<int>(std::ceil(longer / n));
  if (std::min(length, static_cast<int>(shorter)) < options.min_crop_size) return {};
  std::vector<Box> boxes;
  for (int i = 0; i < n; ++i) {
    const int start = i * length;  // at most n * length < longer + n
    const int rest = static_cast<int>(longer) - start;
    if (rest <= 0) break;
    if (width >= height) {
      boxes.push_back({start, 0, std::min(length, rest), height});
    } else {
      boxes.push_back({0, start, width, std::min(length, rest)});
    }
  }
  return boxes;
}

std::vector<Box> tile_boxes(int width, int height, int n) {
  const double longer = std::max(width, height);
  const double shorter = std::min(width, height);
  const double along = std::min(longer, std::floor(n * longer / shorter + 0.5));
  const double across = std::min(shorter, static_cast<double>(n));
  if (along * across > kMaxCrops) {
    throw Error(ErrorCode::kImage, "IMAGE_LIMIT",
                "tile: " + std::to_string(n) + " along the shorter side of " + size_text(width, height) +
                    " pixels is more than " + std::to_string(kMaxCrops) + " tiles");
  }
  const int n_x = static_cast<int>(width >= height ? along : across);
  const int n_y = static_cast<int>(width >= height ? across : along);
  std::vector<Box> boxes;
  for (int j = 0; j < n_y; ++j) {
    for (int i = 0; i < n_x; ++i) {
      const int x = i * width / n_x;  // no overflow: a side has 16 bits, a count 9
      const int y = j * height / n_y;
      boxes.push_back({x, y, (i + 1) * width / n_x - x, (j + 1) * height / n_y - y});
    }
  }
  return boxes;
}

std::vector<Box> crop_boxes(int width, int height, const CropOptions& options) {
  check_sides(width, height);
  const PanAndScan pan_and_scan = options.pan_and_scan.value_or(PanAndScan());
  if (options.tile < 0 || (options.tile != 0 && options.pan_and_scan) || pan_and_scan.min_crop_size < 1 ||
      pan_and_scan.max_crops < 1 || pan_and_scan.max_crops > kMaxCrops || !(pan_and_scan.min_ratio >= 0)) {
    throw Error(ErrorCode::kInvalidArgument, "",
                "crops: expected panAndScan with minCropSize >= 1, maxCrops from 1 to " + std::to_string(kMaxCrops) +
                    " and minRatio >= 0, or tile, not both");
  }
  if (options.pan_and_scan) return pan_and_scan_boxes(width, height, pan_and_scan);
  return options.tile == 0 ? std::vector<Box>() : tile_boxes(width, height, options.tile);
}

std::vector<uint8_t> prepare_square(const Image& image, const Box& box, int size) {
  check_image(image);
  if (size < 1 || size > kMaxSquareSide) {
    throw Error(ErrorCode::kInvalidArgument, "",
                "imageSize: expected 1 to " + std::to_string(kMaxSquareSide) + ", found " + std::to_string(size));
  }
  if (box.x < 0 || box.y < 0 || box.width < 1 || box.height < 1 || box.width > image.width - box.x ||
      box.height > image.height - box.y) {
    throw Error(ErrorCode::kInvalidArgument, "BAD_SHAPE",
                "box: expected a part of the image's " + size_text(image.width, image.height) + " pixels");
  }
  std::vector<uint8_t> square(static_cast<size_t>(size) * static_cast<size_t>(size) * 3);
  resize_bilinear(image, box, size, size, square.data());
  return square;
}

}  // namespace gemma

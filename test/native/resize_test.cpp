// Resizing against Pillow's bytes, crops against Hugging Face's boxes (test/reference/make_resize.py), tiles, limits.
#include <array>
#include <cstring>
#include <fstream>
#include <sstream>

#include "check.h"
#include "image/image.h"

using namespace gemma;

namespace {

const std::string kData = GEMMA_TEST_DATA;

uint32_t crc32(std::span<const uint8_t> bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      t[i] = i;
      for (int k = 0; k < 8; ++k) t[i] = (t[i] & 1) != 0 ? 0xedb88320u ^ (t[i] >> 1) : t[i] >> 1;
    }
    return t;
  }();
  uint32_t crc = ~0u;
  for (const uint8_t byte : bytes) crc = table[(crc ^ byte) & 255] ^ (crc >> 8);
  return ~crc;
}

// As in make_resize.py.
uint32_t scramble(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x45d9f3bu;
  x = (x ^ (x >> 16)) * 0x45d9f3bu;
  return x ^ (x >> 16);
}

std::vector<uint8_t> picture(PixelLayout layout, int kind, int width, int height) {
  const auto n = static_cast<uint32_t>(n_channels(layout));
  const auto w = static_cast<uint32_t>(width);
  const auto h = static_cast<uint32_t>(height);
  std::vector<uint8_t> data(size_t{w} * h * n);
  for (uint32_t i = 0; i < data.size(); ++i) {
    const uint32_t noise = scramble(i + w * 7919 + h);
    const uint32_t slope = (i / n % w) * 3 + (i / n / w) * 5 + (i % n) * 71;
    data[i] = static_cast<uint8_t>(kind == 2 ? slope : kind == 1 ? (noise & 1) * 255 : noise >> 24);
  }
  return data;
}

PixelLayout to_layout(const std::string& name) {
  if (name == "L") return PixelLayout::kGrey;
  if (name == "LA") return PixelLayout::kGreyAlpha;
  if (name == "RGBA") return PixelLayout::kRgba;
  return name == "CMYK" ? PixelLayout::kCmyk : PixelLayout::kRgb;
}

std::string to_text(const std::vector<Box>& boxes) {
  std::string text;
  for (const Box& box : boxes) {
    if (!text.empty()) text += ';';
    text += std::to_string(box.x) + ',' + std::to_string(box.y) + ',' + std::to_string(box.width) + ',' +
            std::to_string(box.height);
  }
  return text;
}

// The tiles or crops of an image share no pixel; returns how many pixels they have together.
int64_t area(const std::vector<Box>& boxes) {
  int64_t sum = 0;
  for (const Box& a : boxes) {
    sum += int64_t{a.width} * a.height;
    for (const Box& b : boxes) {
      const bool apart = a.x + a.width <= b.x || b.x + b.width <= a.x || a.y + a.height <= b.y || b.y + b.height <= a.y;
      CHECK(&a == &b || apart);
    }
  }
  return sum;
}

}  // namespace

TEST("resize: resized bytes are Pillow's, every layout, whole and cropped") {
  std::ifstream in(kData + "/resize.txt");
  std::string layout_name;
  int kind = 0, width = 0, height = 0, out_width = 0, out_height = 0, n = 0;
  Box box;
  uint32_t crc = 0;
  while (in >> layout_name >> kind >> width >> height >> box.x >> box.y >> box.width >> box.height >> out_width >>
         out_height >> std::hex >> crc >> std::dec) {
    const bool white = layout_name.ends_with("+white");
    const PixelLayout layout = to_layout(layout_name.substr(0, layout_name.find('+')));
    const std::vector<uint8_t> data = picture(layout, kind, width, height);
    const Image image{data, width, height, layout, white ? Alpha::kWhite : Alpha::kDrop};
    check_image(image);
    std::vector<uint8_t> out(static_cast<size_t>(out_width) * static_cast<size_t>(out_height) * 3);
    resize_bilinear(image, box, out_width, out_height, out.data());
    if (crc32(out) != crc) test::fail(__FILE__, __LINE__, "line " + std::to_string(n + 1) + " of resize.txt");
    ++n;
  }
  CHECK(in.eof() && n >= 600);
}

TEST("resize: crop boxes are Hugging Face's, 10,000 sizes and options") {
  constexpr std::array<double, 7> kRatios = {0.0, 1.0, 1.1, 1.2, 1.5, 2.0, 3.7};
  std::ifstream in(kData + "/boxes.txt");
  uint32_t start = 0, crc = 0, n = 0;
  while (in >> start >> std::hex >> crc >> std::dec) {
    CHECK(start == n);
    std::string text;
    for (const uint32_t end = n + 50; n < end; ++n) {
      const auto random = [&](uint32_t k) { return scramble(n * 5 + k); };
      const int width = static_cast<int>(1 + random(0) % 4096);
      const int height = static_cast<int>(1 + random(1) % 4096);
      PanAndScan options;
      if (n % 2 == 1) {
        options = {static_cast<int>(1 + random(2) % 400), static_cast<int>(1 + random(3) % 12), kRatios[random(4) % 7]};
      }
      text += to_text(pan_and_scan_boxes(width, height, options)) + '\n';
    }
    const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
    if (crc32({bytes, text.size()}) != crc) test::fail(__FILE__, __LINE__, "sizes from " + std::to_string(start));
  }
  CHECK(in.eof() && n == 10000);
}

TEST("resize: crop boxes of pan_and_scan.json") {
  std::ifstream in(kData + "/pan_and_scan.json");
  std::string line;
  int n = 0;
  while (std::getline(in, line)) {
    int width = 0, height = 0;
    PanAndScan options;
    if (std::sscanf(line.c_str(), " {\"size\": [%d, %d], \"args\": [%d, %d, %lf]", &width, &height,
                    &options.min_crop_size, &options.max_crops, &options.min_ratio) != 5) {
      continue;
    }
    std::vector<Box> expected;
    size_t at = line.find("\"boxes\": [") + 10;
    Box box;
    while ((at = line.find('[', at)) != std::string::npos) {
      CHECK(std::sscanf(line.c_str() + at, "[%d, %d, %d, %d]", &box.x, &box.y, &box.width, &box.height) == 4);
      expected.push_back(box);
      ++at;
    }
    CHECK(crop_boxes(width, height, {options, 0}) == expected);
    ++n;
  }
  CHECK(n > 200);
}

TEST("resize: a prepared square is its part of the picture, resized") {
  const std::vector<uint8_t> data = picture(PixelLayout::kRgb, 2, 331, 97);
  const Image image{data, 331, 97, PixelLayout::kRgb};
  const CropOptions options{PanAndScan{32, 4, 1.2}, 0};
  std::vector<Box> boxes = crop_boxes(331, 97, options);
  CHECK(boxes.size() == 3 && area(boxes) == 331 * 97);
  boxes.push_back({0, 0, 331, 97});
  std::vector<uint8_t> square(57 * 57 * 3);
  for (const Box& box : boxes) {
    resize_bilinear(image, box, 57, 57, square.data());
    CHECK(prepare_square(image, box, 57) == square);
  }
}

TEST("resize: tiles cover the image without overlap") {
  CHECK(to_text(tile_boxes(1000, 1000, 2)) == "0,0,500,500;500,0,500,500;0,500,500,500;500,500,500,500");
  CHECK(tile_boxes(2480, 3508, 2).size() == 6);  // A4: 2 x 3
  CHECK(tile_boxes(3, 7, 16).size() == 21);      // no tile without a pixel
  for (uint32_t i = 0; i < 300; ++i) {
    const int width = static_cast<int>(1 + scramble(i * 3) % 1999);
    const int height = static_cast<int>(1 + scramble(i * 3 + 1) % 1999);
    const int n = static_cast<int>(1 + scramble(i * 3 + 2) % 5);
    if (std::max(width, height) > 8 * std::min(width, height)) continue;
    const std::vector<Box> tiles = tile_boxes(width, height, n);
    CHECK(static_cast<int>(tiles.size()) >= std::min(n, std::min(width, height)));
    CHECK(area(tiles) == int64_t{width} * height);
    for (const Box& tile : tiles) {
      CHECK(tile.width > 0 && tile.height > 0 && tile.x + tile.width <= width && tile.y + tile.height <= height);
    }
  }
}

TEST("resize: limits and wrong arguments") {
  const std::vector<uint8_t> data(7 * 5 * 3);
  const auto prepare = [&](int width, int height, int size, const Box& box, PixelLayout layout) {
    prepare_square({data, width, height, layout}, box, size);
  };
  const Box whole = {0, 0, 7, 5};
  prepare(7, 5, 11, whole, PixelLayout::kRgb);
  for (const auto& [width, height] : {std::pair{0, 5}, {7, 0}, {-7, 5}, {1, 100000}, {INT32_MAX, INT32_MAX}}) {
    CHECK_THROWS(kImage, "IMAGE_LIMIT", prepare(width, height, 11, whole, PixelLayout::kRgb));
    CHECK_THROWS(kImage, "IMAGE_LIMIT", crop_boxes(width, height, {}));
  }
  CHECK_THROWS(kInvalidArgument, "BAD_SHAPE", prepare(7, 6, 11, whole, PixelLayout::kRgb));
  CHECK_THROWS(kInvalidArgument, "BAD_SHAPE", prepare(65535, 65535, 11, whole, PixelLayout::kRgb));
  CHECK_THROWS(kInvalidArgument, "BAD_SHAPE", prepare(7, 5, 11, whole, PixelLayout::kRgba));
  CHECK_THROWS(kInvalidArgument, "", prepare(7, 5, 0, whole, PixelLayout::kRgb));
  CHECK_THROWS(kInvalidArgument, "", prepare(7, 5, 100000, whole, PixelLayout::kRgb));
  for (const Box& box : {Box{},
                         {0, 0, 8, 5},
                         {1, 0, 7, 5},
                         {0, 1, 7, 5},
                         {-1, 0, 2, 2},
                         {0, -1, 2, 2},
                         {0, 0, -1, 5},
                         {7, 0, 1, 1},
                         {INT32_MAX, 0, INT32_MAX, 1},
                         {0, INT32_MIN, 1, INT32_MAX}}) {
    CHECK_THROWS(kInvalidArgument, "BAD_SHAPE", prepare(7, 5, 11, box, PixelLayout::kRgb));
  }
  CHECK_THROWS(kInvalidArgument, "", crop_boxes(7, 5, {PanAndScan(), 2}));
  CHECK_THROWS(kInvalidArgument, "", crop_boxes(7, 5, {std::nullopt, -1}));
  CHECK_THROWS(kInvalidArgument, "", crop_boxes(7, 5, {PanAndScan{0, 4, 1.2}, 0}));
  CHECK_THROWS(kInvalidArgument, "", crop_boxes(7, 5, {PanAndScan{256, 0, 1.2}, 0}));
  CHECK_THROWS(kInvalidArgument, "", crop_boxes(7, 5, {PanAndScan{256, 4, std::nan("")}, 0}));
  CHECK_THROWS(kImage, "IMAGE_LIMIT", crop_boxes(1000, 1000, {std::nullopt, 17}));
  CHECK_THROWS(kImage, "IMAGE_LIMIT", crop_boxes(65535, 1000, {std::nullopt, INT32_MAX}));
}

TEST_MAIN

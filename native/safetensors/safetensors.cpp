// The header is a number of 8 bytes, JSON of that length, and then the data: {"NAME": {"dtype": "BF16", "shape": [2, 3],
// "data_offsets": [0, 12]}, ..., "__metadata__": {"KEY": "VALUE"}}. Tensors lie one after the other without holes.
#include "safetensors/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/json.h"

namespace gemma {
namespace {

static_assert(std::endian::native == std::endian::little, "values are used as the file has them");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100000000;  // the reference's limit
constexpr size_t kMaxTensors = 1 << 20;          // the 27B model with its vision tower has about 1250
constexpr size_t kMaxValues = 1 << 24;           // of the header's JSON

constexpr SafetensorsType kTypes[] = {
    {"F32", 32, TensorType::kF32},
    {"F16", 16, TensorType::kF16},
    {"BF16", 16, TensorType::kBF16},
    {"BOOL", 8, {}},
    {"U8", 8, {}},
    {"I8", 8, {}},
    {"U16", 16, {}},
    {"I16", 16, {}},
    {"U32", 32, {}},
    {"I32", 32, {}},
    {"U64", 64, {}},
    {"I64", 64, {}},
    {"F64", 64, {}},
    {"C64", 64, {}},
    {"F8_E4M3", 8, {}},
    {"F8_E5M2", 8, {}},
    {"F8_E8M0", 8, {}},
    {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2FNUZ", 8, {}},
    {"F4", 4, {}},
    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},
};

[[noreturn]] void invalid(const char* detail, const std::string& message) {
  throw Error(ErrorCode::kSafetensorsInvalid, detail, message);
}

const SafetensorsType* find_type(std::string_view name) {
  for (const SafetensorsType& type : kTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

bool multiply(uint64_t a, uint64_t b, uint64_t* product) {  // false when above 2^64 - 1
  if (a != 0 && b > std::numeric_limits<uint64_t>::max() / a) return false;
  *product = a * b;
  return true;
}

std::string shape_of(const SafetensorsTensor& tensor) {
  std::string text = "[";
  for (const int64_t n : tensor.shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

// Bytes of the shape in this type.
uint64_t shape_bytes(const SafetensorsTensor& tensor) {
  const std::string what = "tensor " + quoted(tensor.name) + ": ";
  uint64_t bits = 1;
  for (const int64_t n : tensor.shape) {
    if (!multiply(bits, static_cast<uint64_t>(n), &bits))
      invalid("BAD_SHAPE", what + "the product of its shape " + shape_of(tensor) + " overflows");
  }
  if (!multiply(bits, static_cast<uint64_t>(tensor.type->bits), &bits))
    invalid("BAD_SHAPE", what + "its size in bits overflows");
  if (bits % 8 != 0)
    invalid("BAD_SHAPE", what + std::to_string(bits) + " bits of type " + tensor.type->name + " are no whole bytes");
  return bits / 8;
}

SafetensorsTensor read_tensor(JsonReader& json, std::string name) {
  SafetensorsTensor tensor;
  tensor.name = std::move(name);
  const std::string what = "tensor " + quoted(tensor.name) + ": ";
  std::vector<uint64_t> offsets;
  bool has_shape = false;
  json.read_object([&](std::string_view key) {
    if (key == "dtype") {
      const size_t at = json.offset();
      const std::string_view type = json.read_string();
      tensor.type = find_type(type);
      if (tensor.type == nullptr) json.fail("there is no type " + quoted(type), at);
    } else if (key == "shape") {
      has_shape = true;
      tensor.shape.clear();  // that a key comes twice is found at the object's end
      json.read_array([&] { tensor.shape.push_back(json.read_int(0)); });
    } else if (key == "data_offsets") {
      const size_t at = json.offset();
      offsets.clear();
      json.read_array([&] { offsets.push_back(static_cast<uint64_t>(json.read_int(0))); });
      if (offsets.size() != 2) json.fail("expected 2 offsets, found " + std::to_string(offsets.size()), at);
    } else {
      json.skip();
    }
  });
  for (const auto& [is_there, key] : {std::pair(tensor.type != nullptr, "dtype"), std::pair(has_shape, "shape"),
                                      std::pair(!offsets.empty(), "data_offsets")}) {
    if (!is_there) invalid("BAD_HEADER", what + key + " is missing");
  }
  if (offsets[1] < offsets[0]) {
    invalid("BAD_HEADER",
            what + "its data end at " + std::to_string(offsets[1]) + ", before " + std::to_string(offsets[0]));
  }
  tensor.offset_in_data = offsets[0];
  const uint64_t bytes = offsets[1] - offsets[0];
  const uint64_t expected = shape_bytes(tensor);
  if (bytes != expected) {
    invalid("BAD_SHAPE", what + "shape " + shape_of(tensor) + " in type " + tensor.type->name + " takes " +
                             std::to_string(expected) + " bytes, its data offsets have " + std::to_string(bytes));
  }
  if (bytes > std::numeric_limits<size_t>::max()) invalid("BAD_SHAPE", what + "too large for this machine");
  tensor.bytes = static_cast<size_t>(bytes);
  return tensor;
}

// One after the other from 0 to data_bytes, without holes and overlaps.
void check_offsets(const std::vector<SafetensorsTensor>& tensors, uint64_t data_bytes) {
  std::vector<const SafetensorsTensor*> by_offset;
  by_offset.reserve(tensors.size());
  for (const SafetensorsTensor& tensor : tensors) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(), [](const SafetensorsTensor* a, const SafetensorsTensor* b) {
    return a->offset_in_data != b->offset_in_data ? a->offset_in_data < b->offset_in_data : a->bytes < b->bytes;
  });
  uint64_t end = 0;
  const SafetensorsTensor* before = nullptr;
  for (const SafetensorsTensor* tensor : by_offset) {
    if (tensor->offset_in_data != end) {
      const std::string ends = before == nullptr
                                   ? "the data begin at 0"
                                   : "the tensor before, " + quoted(before->name) + ", ends at " + std::to_string(end);
      invalid("BAD_HEADER", "tensor " + quoted(tensor->name) + ": its data begin at " +
                                std::to_string(tensor->offset_in_data) + ", " + ends +
                                (tensor->offset_in_data < end ? ": they overlap" : ": there is a hole"));
    }
    end += tensor->bytes;
    before = tensor;
  }
  if (end > data_bytes) {
    invalid("TRUNCATED", "the tensors end at byte " + std::to_string(end) + " of the data, the file has " +
                             std::to_string(data_bytes) + "; it is incomplete, fetch it again");
  }
  if (end < data_bytes) {
    invalid("BAD_HEADER", "the tensors end at byte " + std::to_string(end) + " of the data, the file has " +
                              std::to_string(data_bytes) + ": bytes that belong to no tensor");
  }
}

// Length of the header of a file of file_bytes bytes, checked; first: the file's first 8 bytes, or all.
uint64_t header_bytes(std::span<const std::byte> first, uint64_t file_bytes) {
  if (file_bytes < kLengthBytes) {
    invalid("TRUNCATED", "a safetensors file begins with 8 bytes for the length of its header, the file has " +
                             std::to_string(file_bytes));
  }
  uint64_t n = 0;
  std::memcpy(&n, first.data(), sizeof n);
  if (n > kMaxHeaderBytes) {
    const std::string_view text(reinterpret_cast<const char*>(first.data()), kLengthBytes);
    const char* hint = text.starts_with("version ") ? "; it may be a Git LFS pointer instead of the file itself"
                       : text.starts_with("GGUF")   ? "; it is a GGUF file"
                                                    : "";
    invalid("BAD_HEADER", "the first 8 bytes give a header of " + std::to_string(n) + " bytes, at most " +
                              std::to_string(kMaxHeaderBytes) + " are accepted" + hint);
  }
  if (n > file_bytes - kLengthBytes) {
    invalid("TRUNCATED", "the header has " + std::to_string(n) + " bytes, the file " + std::to_string(file_bytes) +
                             "; it is incomplete, fetch it again");
  }
  return n;
}

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

void SafetensorsFile::read_header(std::string_view header, uint64_t file_bytes) {
  file_bytes_ = file_bytes;
  data_start_ = kLengthBytes + header.size();
  JsonReader json(header, {.code = ErrorCode::kSafetensorsInvalid, .detail = "BAD_HEADER", .max_values = kMaxValues});
  json.read_object([&](std::string_view key) {
    if (key != "__metadata__") {
      if (tensors_.size() == kMaxTensors)
        invalid("BAD_HEADER", "more than " + std::to_string(kMaxTensors) + " tensors are not accepted");
      tensors_.push_back(read_tensor(json, std::string(key)));
    } else if (!json.read_null()) {
      json.read_object([&](std::string_view name) {
        metadata_.emplace_back(std::string(name), "");
        metadata_.back().second = json.read_string();
      });
    }
  });
  json.end();
  check_offsets(tensors_, file_bytes - data_start_);
  index_.reserve(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) {
    tensors_[i].offset = data_start_ + tensors_[i].offset_in_data;
    index_.emplace(tensors_[i].name, i);
  }
}

void SafetensorsFile::set_data(const std::byte* data) {
  for (SafetensorsTensor& tensor : tensors_) tensor.data = data + tensor.offset_in_data;
}

std::shared_ptr<const SafetensorsFile> SafetensorsFile::open(const std::string& path, const FileOptions& options) {
  const std::shared_ptr<const File> file = File::open(path);
  const std::shared_ptr<SafetensorsFile> result(new SafetensorsFile);
  std::vector<std::byte> bytes(static_cast<size_t>(std::min(file->size(), kLengthBytes)));
  file->read(0, bytes);
  in_file(path, [&] { bytes.resize(static_cast<size_t>(header_bytes(bytes, file->size()))); });
  file->read(kLengthBytes, bytes);
  file->check_unchanged();
  in_file(path, [&] { result->read_header(as_text(bytes), file->size()); });
  if (options.headers_only) return result;
  if (options.mmap) {
    result->map_.emplace(FileMap::map(file));
    result->set_data(result->map_->bytes().data() + result->data_start_);
  } else {
    result->map_.emplace(FileMap::read(*file, result->data_start_));
    result->set_data(result->map_->bytes().data());
  }
  return result;
}

std::shared_ptr<const SafetensorsFile> SafetensorsFile::parse(std::span<const std::byte> bytes) {
  const std::shared_ptr<SafetensorsFile> result(new SafetensorsFile);
  const uint64_t n = header_bytes(bytes, bytes.size());
  result->read_header(as_text(bytes.subspan(kLengthBytes, static_cast<size_t>(n))), bytes.size());
  result->set_data(bytes.data() + result->data_start_);
  return result;
}

const SafetensorsTensor* SafetensorsFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

void SafetensorsFile::check() const {
  if (map_) map_->check();
}

uint64_t SafetensorsFile::version() const {
  return map_ ? map_->version() : 0;
}

void SafetensorsFile::prefetch(const std::function<void(size_t bytes)>& on_read) const {
  if (map_) map_->prefetch(on_read);
}

void SafetensorsFile::release(std::span<const std::byte> bytes) const {
  if (map_) map_->release(bytes);
}

}  // namespace gemma

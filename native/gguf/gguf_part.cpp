// Reads the container in one pass over the bytes: header, key/value pairs, tensor infos. Then checks the positions of
// the data. Source: the GGUF specification (ggml docs/gguf.md).
//
// Two errors need a rule. A tensor that ends past the end of the file is TRUNCATED if a file with these tensors packed
// one after the other would reach that far; otherwise its offset is wrong (BAD_OFFSET). A count above the limit is
// COUNT_LIMIT. A smaller count that the file cannot hold ends in TRUNCATED, and no more memory is reserved than the
// remaining bytes can fill.
#include "gguf/gguf_part.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "base/error.h"

namespace gemma {
namespace {

static_assert(std::endian::native == std::endian::little, "values are copied from the file as they are");

constexpr uint64_t kMaxHeaderBytes = uint64_t{256} << 20;  // published files have about 6 MB, most of it the vocabulary
constexpr uint64_t kMaxMetadata = 16384;                   // published files have below 100
constexpr uint64_t kMaxTensors = 16384;                    // the 27B model with its vision tower has about 1250
constexpr uint64_t kMaxKeyBytes = 65535;                   // the specification's limit
constexpr uint64_t kMaxTensorNameBytes = 63;
constexpr uint32_t kMaxDims = 4;
constexpr uint32_t kMinAlignment = 8;  // the specification asks for a multiple of 8
constexpr uint32_t kMaxAlignment = 65536;
constexpr uint64_t kDefaultAlignment = 32;
// ggml has given out numbers of types up to 42, forks of llama.cpp up to 158. What is larger is no type but damage.
constexpr uint32_t kMaxTypeNumber = 159;
constexpr uint32_t kFirstUnknownType = 42;
// Smallest entries: empty-most key (8 + 1), type, one byte of value; name (8 + 1), dimensions (4 + 8), type, offset.
constexpr uint64_t kMinMetadataBytes = 14;
constexpr uint64_t kMinTensorBytes = 33;

const char* type_name(GgufType type) {
  constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                    "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<uint32_t>(type)];
}

size_t type_bytes(GgufType type) {  // 0 for what has no fixed size
  constexpr uint8_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kBytes[static_cast<uint32_t>(type)];
}

std::string describe(const GgufValue& value) {
  if (value.is_array) return "an array of " + std::to_string(value.count) + " " + type_name(value.type);
  return std::string("a value of type ") + type_name(value.type);
}

}  // namespace

[[noreturn]] void gguf_invalid(const char* detail, const std::string& message) {
  throw Error(ErrorCode::kGgufInvalid, detail, message);
}

[[noreturn]] void gguf_wrong_type(std::string_view key, const char* expected, const GgufValue& value) {
  gguf_invalid("BAD_TYPE", "metadata " + quoted(key) + ": expected " + expected + ", found " + describe(value));
}

int64_t gguf_int(std::string_view key, const GgufValue& value) {
  if (value.is_array) gguf_wrong_type(key, "an integer", value);
  const std::byte* p = value.raw.data();
  switch (value.type) {
    case GgufType::kU8: return gguf_load<uint8_t>(p);
    case GgufType::kI8: return gguf_load<int8_t>(p);
    case GgufType::kU16: return gguf_load<uint16_t>(p);
    case GgufType::kI16: return gguf_load<int16_t>(p);
    case GgufType::kU32: return gguf_load<uint32_t>(p);
    case GgufType::kI32: return gguf_load<int32_t>(p);
    case GgufType::kI64: return gguf_load<int64_t>(p);
    case GgufType::kU64: {
      const uint64_t u = gguf_load<uint64_t>(p);
      if (u > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        gguf_invalid("BAD_TYPE",
                     "metadata " + quoted(key) + ": expected an integer below 2^63, found " + std::to_string(u));
      }
      return static_cast<int64_t>(u);
    }
    default: gguf_wrong_type(key, "an integer", value);
  }
}

namespace {

// The next unread byte of one file, with checked steps.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, uint64_t file_bytes) : bytes_(bytes), file_bytes_(file_bytes) {}

  uint64_t pos() const { return pos_; }
  uint64_t remaining() const { return file_bytes_ - pos_; }  // in the file

  [[noreturn]] void fail(const char* detail, const std::string& what, uint64_t offset) const {
    gguf_invalid(detail, what + " (at byte " + std::to_string(offset) + " of " + std::to_string(file_bytes_) + ")");
  }

  // The next n bytes of the file, which has them, are there.
  void need(uint64_t n) const {
    if (n > kMaxHeaderBytes - pos_) {
      fail("HEADER_LIMIT", "headers of more than " + std::to_string(kMaxHeaderBytes) + " bytes are not accepted", pos_);
    }
    if (pos_ + n > bytes_.size()) throw MoreBytesNeeded{pos_ + n};
  }

  std::span<const std::byte> take(uint64_t n, std::string_view what) {
    if (n > remaining()) {
      fail("TRUNCATED",
           std::string(what) + " needs " + std::to_string(n) + " bytes, " + std::to_string(remaining()) + " are left",
           pos_);
    }
    need(n);
    const auto part = bytes_.subspan(static_cast<size_t>(pos_), static_cast<size_t>(n));
    pos_ += n;
    return part;
  }

  template <class T>
  T read(std::string_view what) {
    return gguf_load<T>(take(sizeof(T), what).data());
  }

  std::string_view read_string(std::string_view what) {
    const uint64_t n = read<uint64_t>(what);
    const auto bytes = take(n, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  // A key or tensor name: 1 to max bytes of printable ASCII.
  std::string_view read_name(const char* what, uint64_t max) {
    const uint64_t at = pos_;
    const uint64_t n = read<uint64_t>(what);
    if (n == 0 || n > max) {
      fail("BAD_STRING",
           std::string(what) + ": expected 1 to " + std::to_string(max) + " bytes, found a length of " +
               std::to_string(n),
           at);
    }
    const auto bytes = take(n, what);
    const std::string_view name(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    for (const char c : name) {
      if (c < 0x20 || c > 0x7e)
        fail("BAD_STRING", std::string(what) + " " + quoted(name) + ": expected printable ASCII", at);
    }
    return name;
  }

 private:
  std::span<const std::byte> bytes_;  // of the file, the first
  uint64_t file_bytes_;
  uint64_t pos_ = 0;  // at most kMaxHeaderBytes
};

GgufType read_type(Cursor& in, std::string_view key, bool element) {
  const uint64_t at = in.pos();
  const uint32_t type = in.read<uint32_t>(element ? "array type" : "value type");
  if (type > static_cast<uint32_t>(GgufType::kF64) || (element && type == static_cast<uint32_t>(GgufType::kArray))) {
    const char* what = element ? ": array elements of type " : ": value of type ";
    const char* reason = type == static_cast<uint32_t>(GgufType::kArray) ? " (arrays of arrays are not supported)"
                                                                         : ", expected 0 to 12";
    in.fail("BAD_TYPE", "metadata " + quoted(key) + what + std::to_string(type) + reason, at);
  }
  return static_cast<GgufType>(type);
}

GgufValue read_value(Cursor& in, std::string_view key) {
  GgufValue value;
  value.type = read_type(in, key, false);
  if (value.type == GgufType::kArray) {
    value.is_array = true;
    value.type = read_type(in, key, true);
    const uint64_t at = in.pos();
    value.count = in.read<uint64_t>("array length");
    const uint64_t item_bytes = value.type == GgufType::kString ? sizeof(uint64_t) : type_bytes(value.type);
    if (value.count > in.remaining() / item_bytes) {
      in.fail("TRUNCATED",
              "metadata " + quoted(key) + ": an array of " + std::to_string(value.count) + " " + type_name(value.type) +
                  " does not fit into the " + std::to_string(in.remaining()) + " bytes left",
              at);
    }
    in.need(value.count * item_bytes);  // before memory is reserved for that many
  }
  if (value.type != GgufType::kString) {
    value.raw = in.take(value.count * type_bytes(value.type), "value");
  } else if (!value.is_array) {
    value.string = in.read_string(key);
  } else {
    value.strings.reserve(static_cast<size_t>(value.count));
    for (uint64_t i = 0; i < value.count; ++i) value.strings.push_back(in.read_string(key));
  }
  return value;
}

bool multiply(uint64_t a, uint64_t b, uint64_t* product) {  // false when above 2^63 - 1
  if (a != 0 && b > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / a) return false;
  *product = a * b;
  return true;
}

GgufTensorInfo read_tensor_info(Cursor& in) {
  GgufTensorInfo info;
  info.name = in.read_name("tensor name", kMaxTensorNameBytes);
  const std::string what = "tensor " + quoted(info.name);
  const uint64_t dims_at = in.pos();
  const uint32_t n_dims = in.read<uint32_t>("tensor dimensions");
  if (n_dims < 1 || n_dims > kMaxDims) {
    in.fail("BAD_SHAPE", what + ": expected 1 to 4 dimensions, found " + std::to_string(n_dims), dims_at);
  }
  uint64_t n_elems = 1;
  for (uint32_t i = 0; i < n_dims; ++i) {
    const uint64_t at = in.pos();
    const int64_t dim = in.read<int64_t>("tensor dimension");
    if (dim < 1)
      in.fail("BAD_SHAPE",
              what + ": dimension " + std::to_string(i) + " is " + std::to_string(dim) + ", expected at least 1", at);
    if (!multiply(n_elems, static_cast<uint64_t>(dim), &n_elems)) {
      in.fail("BAD_SHAPE", what + ": the product of its dimensions overflows", dims_at);
    }
    info.shape.insert(info.shape.begin(), dim);
  }
  const uint64_t type_at = in.pos();
  const uint32_t type = in.read<uint32_t>("tensor type");
  const TypeTraits* traits = find_type_traits(type);
  if (traits == nullptr) {
    const std::string number = std::to_string(static_cast<int32_t>(type));
    if (type >= kFirstUnknownType && type <= kMaxTypeNumber) {
      throw Error(ErrorCode::kUnsupportedModel, "TENSOR_TYPE",
                  what + ": type " + number + " is unknown to this version; a newer one may support it");
    }
    in.fail("BAD_TENSOR_TYPE", what + ": there is no type " + number, type_at);
  }
  info.type = traits->type;
  const uint64_t block = static_cast<uint64_t>(traits->block_elems);
  if (static_cast<uint64_t>(info.shape.back()) % block != 0) {
    in.fail("BAD_SHAPE",
            what + ": rows of " + std::to_string(info.shape.back()) + " elements, but " + traits->name +
                " comes in blocks of " + std::to_string(block),
            dims_at);
  }
  if (!multiply(n_elems / block, static_cast<uint64_t>(traits->block_bytes), &info.bytes)) {
    in.fail("BAD_SHAPE", what + ": its size in bytes overflows", dims_at);
  }
  info.offset = in.read<uint64_t>("tensor offset");
  return info;
}

uint64_t read_alignment(const GgufPart& part) {
  const GgufValue* value = part.find("general.alignment");
  if (value == nullptr) return kDefaultAlignment;
  const std::string what = "metadata \"general.alignment\": expected a u32, a power of two from 8 to 65536, found ";
  if (value->is_array || value->type != GgufType::kU32) gguf_invalid("BAD_ALIGN", what + describe(*value));
  const uint32_t alignment = gguf_load<uint32_t>(value->raw.data());
  if (alignment < kMinAlignment || alignment > kMaxAlignment || (alignment & (alignment - 1)) != 0) {
    gguf_invalid("BAD_ALIGN", what + std::to_string(alignment));
  }
  return alignment;
}

uint64_t align_up(uint64_t n, uint64_t alignment) {
  return (n + alignment - 1) & ~(alignment - 1);
}

// Offsets aligned, inside the file, no two tensors over each other.
void check_offsets(const GgufPart& part, uint64_t alignment) {
  const uint64_t data_bytes = part.file_bytes - std::min(part.data_start, part.file_bytes);
  uint64_t packed_bytes = 0;  // of all tensors one after the other; stays below 2^63 once it saturates
  constexpr uint64_t kSaturated = uint64_t{1} << 62;
  for (const GgufTensorInfo& t : part.tensors) {
    packed_bytes = std::min(packed_bytes + align_up(std::min(t.bytes, kSaturated), alignment), kSaturated);
  }
  std::vector<const GgufTensorInfo*> by_offset;
  by_offset.reserve(part.tensors.size());
  for (const GgufTensorInfo& t : part.tensors) {
    const std::string what = "tensor " + quoted(t.name) + ": ";
    if (t.offset % alignment != 0) {
      gguf_invalid("BAD_OFFSET", what + "offset " + std::to_string(t.offset) + " is not a multiple of the alignment " +
                                     std::to_string(alignment));
    }
    if (t.offset > data_bytes || t.bytes > data_bytes - t.offset) {
      if (t.offset > packed_bytes || t.bytes > packed_bytes - t.offset) {
        gguf_invalid("BAD_OFFSET", what + "offset " + std::to_string(t.offset) + " lies past the end, the data have " +
                                       std::to_string(data_bytes) + " bytes");
      }
      gguf_invalid("TRUNCATED", what + "its " + std::to_string(t.bytes) + " bytes end at byte " +
                                    std::to_string(part.data_start + t.offset + t.bytes) + ", the file has " +
                                    std::to_string(part.file_bytes) + "; it is incomplete, fetch it again");
    }
    by_offset.push_back(&t);
  }
  std::sort(by_offset.begin(), by_offset.end(),
            [](const GgufTensorInfo* a, const GgufTensorInfo* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const GgufTensorInfo& before = *by_offset[i - 1];
    if (by_offset[i]->offset - before.offset < before.bytes) {
      gguf_invalid("BAD_OFFSET", "tensor " + quoted(by_offset[i]->name) + ": offset " +
                                     std::to_string(by_offset[i]->offset) + " lies inside tensor " +
                                     quoted(before.name) + ", which ends at " +
                                     std::to_string(before.offset + before.bytes));
    }
  }
}

void read_header(Cursor& in, GgufPart* part) {
  const auto magic = in.take(4, "the magic \"GGUF\"");
  const std::string_view found(reinterpret_cast<const char*>(magic.data()), magic.size());
  if (found != "GGUF") {
    const char* hint = found == "vers" ? "; it may be a Git LFS pointer instead of the file itself" : "";
    in.fail("BAD_MAGIC", "expected a GGUF file, which starts with \"GGUF\", found " + quoted(found) + hint, 0);
  }
  part->version = in.read<uint32_t>("the version");
  if (part->version != 2 && part->version != 3) {
    const char* hint = part->version == 1               ? " (of 2023; convert the model again)"
                       : (part->version & 0xffffu) == 0 ? " (a big-endian file)"
                                                        : "";
    in.fail("BAD_VERSION", "expected GGUF version 2 or 3, found " + std::to_string(part->version) + hint, 4);
  }
}

uint64_t read_count(Cursor& in, const char* what, uint64_t max) {
  const uint64_t at = in.pos();
  const uint64_t n = in.read<uint64_t>(what);
  if (n > max)
    in.fail("COUNT_LIMIT",
            std::string(what) + ": at most " + std::to_string(max) + " are accepted, found " + std::to_string(n), at);
  return n;
}

}  // namespace

GgufPart read_gguf_part(std::span<const std::byte> bytes, uint64_t file_bytes) {
  GgufPart part;
  part.file_bytes = file_bytes;
  Cursor in(bytes, file_bytes);
  read_header(in, &part);
  const uint64_t n_tensors = read_count(in, "number of tensors", kMaxTensors);
  const uint64_t n_metadata = read_count(in, "number of metadata entries", kMaxMetadata);

  part.metadata.reserve(static_cast<size_t>(std::min(n_metadata, in.remaining() / kMinMetadataBytes)));
  for (uint64_t i = 0; i < n_metadata; ++i) {
    const uint64_t at = in.pos();
    const std::string_view key = in.read_name("metadata key", kMaxKeyBytes);
    if (!part.metadata_index.emplace(key, part.metadata.size()).second)
      in.fail("DUPLICATE", "metadata " + quoted(key) + " comes twice", at);
    part.metadata.emplace_back(key, read_value(in, key));
  }

  std::unordered_map<std::string_view, size_t> names;
  part.tensors.reserve(static_cast<size_t>(std::min(n_tensors, in.remaining() / kMinTensorBytes)));
  for (uint64_t i = 0; i < n_tensors; ++i) {
    const uint64_t at = in.pos();
    GgufTensorInfo info = read_tensor_info(in);
    if (!names.emplace(info.name, i).second) in.fail("DUPLICATE", "tensor " + quoted(info.name) + " comes twice", at);
    part.tensors.push_back(std::move(info));
  }

  const uint64_t alignment = read_alignment(part);
  part.data_start = align_up(in.pos(), alignment);
  check_offsets(part, alignment);
  return part;
}

}  // namespace gemma

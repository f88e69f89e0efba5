// Reads the container in one pass over the bytes: header, key/value pairs, tensor infos, then checks where the data
// lie. Source: the GGUF specification (ggml docs/gguf.md) and gemma3.md section 8.1 of the project's notes.
//
// Two answers need a rule. A tensor that ends behind the file is TRUNCATED when a file with these tensors packed one
// after the other would reach that far, else its offset is wrong (BAD_OFFSET). A count above the limit is COUNT_LIMIT;
// a smaller one that the file cannot hold runs into TRUNCATED, and nothing is reserved beyond what the remaining bytes
// can hold.
#include "gguf/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/file_map.h"

namespace gemma {
namespace {

static_assert(std::endian::native == std::endian::little, "values are copied from the file as they are");

constexpr uint64_t kMaxMetadata = 16384;  // published files have below 100
constexpr uint64_t kMaxTensors = 16384;   // the 27B model with its vision tower has about 1250
constexpr uint64_t kMaxKeyBytes = 65535;  // the specification's limit
constexpr uint64_t kMaxTensorNameBytes = 63;
constexpr uint32_t kMaxDims = 4;
constexpr uint32_t kMinAlignment = 8;  // the specification asks for a multiple of 8
constexpr uint32_t kMaxAlignment = 65536;
constexpr uint64_t kDefaultAlignment = 32;
// Smallest entries: empty-most key (8 + 1), type, one byte of value; name (8 + 1), dimensions (4 + 8), type, offset.
constexpr uint64_t kMinMetadataBytes = 14;
constexpr uint64_t kMinTensorBytes = 33;

[[noreturn]] void invalid(const char* detail, const std::string& message) {
  throw Error(ErrorCode::kGgufInvalid, detail, message);
}

// For messages: what comes from a file is cut and made printable.
std::string quoted(std::string_view text) {
  constexpr size_t kMaxShown = 80;
  std::string out = "\"";
  for (const char c : text.substr(0, kMaxShown)) {
    const unsigned char byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      constexpr char kHex[] = "0123456789abcdef";
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  return out + (text.size() > kMaxShown ? "...\"" : "\"");
}

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

template <class T>
T load(const std::byte* p) {  // p is unaligned in general
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

[[noreturn]] void wrong_type(std::string_view key, const char* expected, const GgufValue& value) {
  invalid("BAD_TYPE", "metadata " + quoted(key) + ": expected " + expected + ", found " + describe(value));
}

int64_t to_int(std::string_view key, const GgufValue& value) {
  if (value.is_array) wrong_type(key, "an integer", value);
  const std::byte* p = value.raw.data();
  switch (value.type) {
    case GgufType::kU8: return load<uint8_t>(p);
    case GgufType::kI8: return load<int8_t>(p);
    case GgufType::kU16: return load<uint16_t>(p);
    case GgufType::kI16: return load<int16_t>(p);
    case GgufType::kU32: return load<uint32_t>(p);
    case GgufType::kI32: return load<int32_t>(p);
    case GgufType::kI64: return load<int64_t>(p);
    case GgufType::kU64: {
      const uint64_t u = load<uint64_t>(p);
      if (u > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        invalid("BAD_TYPE", "metadata " + quoted(key) + ": expected an integer below 2^63, found " + std::to_string(u));
      }
      return static_cast<int64_t>(u);
    }
    default: wrong_type(key, "an integer", value);
  }
}

bool same_value(const GgufValue& a, const GgufValue& b) {
  return a.type == b.type && a.is_array == b.is_array && a.count == b.count && a.string == b.string &&
         a.strings == b.strings && std::equal(a.raw.begin(), a.raw.end(), b.raw.begin(), b.raw.end());
}

// The next unread byte of one file, with checked steps.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& label) : bytes_(bytes), label_(label) {}

  uint64_t pos() const { return pos_; }
  uint64_t remaining() const { return bytes_.size() - pos_; }

  [[noreturn]] void fail(const char* detail, const std::string& what, uint64_t offset) const {
    invalid(detail, label_ + ": " + what + " (at byte " + std::to_string(offset) + " of " +
                        std::to_string(bytes_.size()) + ")");
  }

  std::span<const std::byte> take(uint64_t n, std::string_view what) {
    if (n > remaining()) {
      fail("TRUNCATED",
           std::string(what) + " needs " + std::to_string(n) + " bytes, " + std::to_string(remaining()) + " are left",
           pos_);
    }
    const auto part = bytes_.subspan(pos_, static_cast<size_t>(n));
    pos_ += part.size();
    return part;
  }

  template <class T>
  T read(std::string_view what) {
    return load<T>(take(sizeof(T), what).data());
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
  std::span<const std::byte> bytes_;
  const std::string& label_;
  size_t pos_ = 0;
};

struct TensorInfo {
  std::string_view name;
  TensorType type = TensorType::kF32;
  std::vector<int64_t> shape;  // outermost first
  uint64_t offset = 0;         // from the start of the data
  uint64_t bytes = 0;
};

// One file: the whole model, or one part of a split model. Views point into bytes.
struct Part {
  std::string label;  // path, for messages
  std::span<const std::byte> bytes;
  uint32_t version = 0;
  std::vector<std::pair<std::string_view, GgufValue>> metadata;
  std::unordered_map<std::string_view, size_t> metadata_index;
  std::vector<TensorInfo> tensors;
  uint64_t data_start = 0;

  const GgufValue* find(std::string_view key) const {
    const auto it = metadata_index.find(key);
    return it == metadata_index.end() ? nullptr : &metadata[it->second].second;
  }
  std::optional<int64_t> find_int(std::string_view key) const {
    const GgufValue* value = find(key);
    return value == nullptr ? std::nullopt : std::optional<int64_t>(to_int(key, *value));
  }
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

TensorInfo read_tensor_info(Cursor& in) {
  TensorInfo info;
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
    std::string supported;
    for (const TensorType t : kTensorTypes)
      supported += std::string(supported.empty() ? "" : ", ") + type_traits(t).name;
    in.fail("BAD_TENSOR_TYPE",
            what + ": type " + std::to_string(static_cast<int32_t>(type)) + " is unknown; supported are " + supported,
            type_at);
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

uint64_t read_alignment(const Part& part) {
  const GgufValue* value = part.find("general.alignment");
  if (value == nullptr) return kDefaultAlignment;
  const std::string what =
      part.label + ": metadata \"general.alignment\": expected a u32, a power of two from 8 to 65536, found ";
  if (value->is_array || value->type != GgufType::kU32) invalid("BAD_ALIGN", what + describe(*value));
  const uint32_t alignment = load<uint32_t>(value->raw.data());
  if (alignment < kMinAlignment || alignment > kMaxAlignment || (alignment & (alignment - 1)) != 0) {
    invalid("BAD_ALIGN", what + std::to_string(alignment));
  }
  return alignment;
}

uint64_t align_up(uint64_t n, uint64_t alignment) {
  return (n + alignment - 1) & ~(alignment - 1);
}

// Offsets aligned, inside the file, no two tensors over each other.
void check_offsets(const Part& part, uint64_t alignment) {
  const uint64_t data_bytes = part.bytes.size() - std::min<uint64_t>(part.data_start, part.bytes.size());
  uint64_t packed_bytes = 0;  // of all tensors one after the other; stays below 2^63 once it saturates
  constexpr uint64_t kSaturated = uint64_t{1} << 62;
  for (const TensorInfo& t : part.tensors) {
    packed_bytes = std::min(packed_bytes + align_up(std::min(t.bytes, kSaturated), alignment), kSaturated);
  }
  std::vector<const TensorInfo*> by_offset;
  by_offset.reserve(part.tensors.size());
  for (const TensorInfo& t : part.tensors) {
    const std::string what = part.label + ": tensor " + quoted(t.name) + ": ";
    if (t.offset % alignment != 0) {
      invalid("BAD_OFFSET", what + "offset " + std::to_string(t.offset) + " is not a multiple of the alignment " +
                                std::to_string(alignment));
    }
    if (t.offset > data_bytes || t.bytes > data_bytes - t.offset) {
      if (t.offset > packed_bytes || t.bytes > packed_bytes - t.offset) {
        invalid("BAD_OFFSET", what + "offset " + std::to_string(t.offset) + " lies past the end, the data have " +
                                  std::to_string(data_bytes) + " bytes");
      }
      invalid("TRUNCATED", what + "its " + std::to_string(t.bytes) + " bytes end at byte " +
                               std::to_string(part.data_start + t.offset + t.bytes) + ", the file has " +
                               std::to_string(part.bytes.size()) + "; it is incomplete, fetch it again");
    }
    by_offset.push_back(&t);
  }
  std::sort(by_offset.begin(), by_offset.end(),
            [](const TensorInfo* a, const TensorInfo* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const TensorInfo& before = *by_offset[i - 1];
    if (by_offset[i]->offset - before.offset < before.bytes) {
      invalid("BAD_OFFSET", part.label + ": tensor " + quoted(by_offset[i]->name) + ": offset " +
                                std::to_string(by_offset[i]->offset) + " lies inside tensor " + quoted(before.name) +
                                ", which ends at " + std::to_string(before.offset + before.bytes));
    }
  }
}

void read_header(Cursor& in, Part* part) {
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

Part read_part(std::span<const std::byte> bytes, std::string label) {
  Part part;
  part.label = std::move(label);
  part.bytes = bytes;
  Cursor in(bytes, part.label);
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
    TensorInfo info = read_tensor_info(in);
    if (!names.emplace(info.name, i).second) in.fail("DUPLICATE", "tensor " + quoted(info.name) + " comes twice", at);
    part.tensors.push_back(std::move(info));
  }

  const uint64_t alignment = read_alignment(part);
  part.data_start = align_up(in.pos(), alignment);
  check_offsets(part, alignment);
  return part;
}

// "NAME-00002-of-00003.gguf"
struct SplitName {
  std::string prefix;
  int64_t number = 0;  // from 1
  int64_t count = 0;

  std::string of(int64_t i) const {
    const auto five = [](int64_t n) {
      const std::string digits = std::to_string(n);
      return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
    };
    return prefix + "-" + five(i) + "-of-" + five(count) + ".gguf";
  }
};

std::optional<SplitName> parse_split_name(const std::string& path) {
  constexpr std::string_view kPattern = "-#####-of-#####.gguf";
  if (path.size() <= kPattern.size()) return std::nullopt;
  SplitName name;
  name.prefix = path.substr(0, path.size() - kPattern.size());
  const std::string_view suffix = std::string_view(path).substr(name.prefix.size());
  for (size_t i = 0; i < kPattern.size(); ++i) {
    if (kPattern[i] != '#') {
      if (suffix[i] != kPattern[i]) return std::nullopt;
      continue;
    }
    if (suffix[i] < '0' || suffix[i] > '9') return std::nullopt;
    int64_t& number = i < 6 ? name.number : name.count;
    number = number * 10 + (suffix[i] - '0');
  }
  return name;
}

class ParsedFile final : public GgufFile {
 public:
  void open(const std::string& path, const GgufOpenOptions& options) {
    // Headers alone are a few pages of a mapping, so they are never read through.
    const bool map = options.mmap || options.headers_only;
    with_data_ = !options.headers_only;
    maps_.push_back(FileMap::open(path, map));
    Part first = read_part(maps_.back().bytes(), path);
    const int64_t n_parts = check_first_part(first);
    add_first(&first);
    if (n_parts > 1) open_siblings(path, n_parts, map);
  }

  void parse(std::span<const std::byte> bytes) {
    Part part = read_part(bytes, "GGUF data");
    if (check_first_part(part) > 1) {
      invalid("MISSING_SPLIT",
              part.label + ": one part of a split model; open it by its path, with all parts beside it");
    }
    add_first(&part);
  }

  void prefetch(const std::function<void(double fraction)>& on_read) const override {
    size_t before = 0;
    for (const FileMap& map : maps_) {
      map.prefetch(
          [&](size_t bytes) { on_read(static_cast<double>(before + bytes) / static_cast<double>(file_bytes_)); });
      before += map.bytes().size();
    }
  }

 private:
  // Number of parts; merged files carry a count of 0, whole ones none.
  static int64_t check_first_part(const Part& part) {
    const int64_t n_parts = part.find_int("split.count").value_or(1);
    if (n_parts < 0 || n_parts > 65535) {
      invalid("MISSING_SPLIT",
              part.label + ": metadata \"split.count\": expected 0 to 65535, found " + std::to_string(n_parts));
    }
    return std::max<int64_t>(n_parts, 1);
  }

  void add_first(Part* part) {  // takes the metadata
    version_ = part->version;
    metadata_.reserve(part->metadata.size());
    for (auto& [key, value] : part->metadata) metadata_.emplace_back(std::string(key), std::move(value));
    metadata_index_ = std::move(part->metadata_index);
    add_tensors(*part);
  }

  void add_tensors(const Part& part) {
    file_bytes_ += part.bytes.size();
    tensors_.reserve(tensors_.size() + part.tensors.size());
    for (const TensorInfo& info : part.tensors) {
      if (!tensor_index_.emplace(info.name, tensors_.size()).second) {
        invalid("MISSING_SPLIT", part.label + ": tensor " + quoted(info.name) +
                                     " is in another part too; the parts belong to different models");
      }
      GgufTensor tensor;
      tensor.name = std::string(info.name);
      tensor.type = info.type;
      tensor.shape = info.shape;
      tensor.bytes = static_cast<size_t>(info.bytes);
      if (with_data_) tensor.data = part.bytes.data() + part.data_start + info.offset;
      tensors_.push_back(std::move(tensor));
    }
  }

  void open_siblings(const std::string& path, int64_t n_parts, bool map) {
    const std::optional<SplitName> name = parse_split_name(path);
    if (!name || name->count != n_parts) {
      invalid("MISSING_SPLIT", path + ": one of " + std::to_string(n_parts) +
                                   " parts of a split model, expected a name that ends in " +
                                   SplitName{"", 1, n_parts}.of(1));
    }
    const int64_t number = find_int("split.no").value_or(0);
    if (number != 0 || name->number != 1) {
      invalid("MISSING_SPLIT", path + ": not the first part of a split model (its \"split.no\" is " +
                                   std::to_string(number) + "); open " + name->of(1));
    }
    for (int64_t i = 1; i < n_parts; ++i) {
      const std::string sibling = name->of(i + 1);
      try {
        maps_.push_back(FileMap::open(sibling, map));
      } catch (const Error& e) {
        if (e.code() != ErrorCode::kFile) throw;
        invalid("MISSING_SPLIT",
                "part " + std::to_string(i + 1) + " of " + std::to_string(n_parts) + " is missing: " + e.what());
      }
      const Part part = read_part(maps_.back().bytes(), sibling);
      check_sibling(part, i);
      add_tensors(part);
    }
    const auto n_tensors = find_int("split.tensors.count");
    if (n_tensors && *n_tensors != static_cast<int64_t>(tensors_.size())) {
      invalid("MISSING_SPLIT", path + ": metadata \"split.tensors.count\" is " + std::to_string(*n_tensors) +
                                   ", the parts hold " + std::to_string(tensors_.size()) + " tensors");
    }
  }

  // The split keys must continue the first part's, and whatever else a part repeats must be equal.
  void check_sibling(const Part& part, int64_t index) const {
    const auto number = part.find_int("split.no");
    if (!number || *number != index) {
      invalid("MISSING_SPLIT", part.label + ": metadata \"split.no\": expected " + std::to_string(index) + ", found " +
                                   (number ? std::to_string(*number) : "none"));
    }
    for (const auto& [key, value] : part.metadata) {
      if (key == "split.no" || key == "general.alignment") continue;
      const GgufValue* in_first = find(key);
      if (in_first != nullptr && !same_value(*in_first, value)) {
        invalid("MISSING_SPLIT", part.label + ": metadata " + quoted(key) +
                                     " differs from the first part's; the parts belong to different models");
      }
    }
    if (part.find("split.count") == nullptr)
      invalid("MISSING_SPLIT", part.label + ": metadata \"split.count\" is missing");
  }

  bool with_data_ = true;
  std::vector<FileMap> maps_;
};

}  // namespace

std::shared_ptr<const GgufFile> GgufFile::open(const std::string& path, const GgufOpenOptions& options) {
  auto file = std::make_shared<ParsedFile>();
  file->open(path, options);
  return file;
}

std::shared_ptr<const GgufFile> GgufFile::parse(std::span<const std::byte> bytes) {
  auto file = std::make_shared<ParsedFile>();
  file->parse(bytes);
  return file;
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto it = metadata_index_.find(key);
  return it == metadata_index_.end() ? nullptr : &metadata_[it->second].second;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

std::optional<int64_t> GgufFile::find_int(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  return to_int(key, *value);
}

std::optional<double> GgufFile::find_float(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array && value->type == GgufType::kF32) return static_cast<double>(load<float>(value->raw.data()));
  if (!value->is_array && value->type == GgufType::kF64) return load<double>(value->raw.data());
  if (value->is_array || value->type == GgufType::kString || value->type == GgufType::kBool)
    wrong_type(key, "a number", *value);
  return static_cast<double>(to_int(key, *value));
}

std::optional<bool> GgufFile::find_bool(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != GgufType::kBool) wrong_type(key, "a bool", *value);
  return load<uint8_t>(value->raw.data()) != 0;
}

std::optional<std::string> GgufFile::find_string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != GgufType::kString) wrong_type(key, "a string", *value);
  return std::string(value->string);
}

}  // namespace gemma

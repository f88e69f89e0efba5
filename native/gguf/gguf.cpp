// Parts to a model: the siblings of a split file, the index of metadata and tensors, typed reads.
#include "gguf/gguf.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "gguf/gguf_part.h"

namespace gemma {
namespace {

bool same_value(const GgufValue& a, const GgufValue& b) {
  return a.type == b.type && a.is_array == b.is_array && a.count == b.count && a.string == b.string &&
         a.strings == b.strings && std::equal(a.raw.begin(), a.raw.end(), b.raw.begin(), b.raw.end());
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

// Number of parts; merged files carry a count of 0, whole ones none.
int64_t check_first_part(const GgufPart& part) {
  const int64_t n_parts = part.find_int("split.count").value_or(1);
  if (n_parts < 0 || n_parts > 65535) {
    gguf_invalid("MISSING_SPLIT", "metadata \"split.count\": expected 0 to 65535, found " + std::to_string(n_parts));
  }
  return std::max<int64_t>(n_parts, 1);
}

// As much of the file's beginning as holds its headers goes into *bytes. Errors name the file.
GgufPart read_headers(const File& file, std::vector<std::byte>* bytes) {
  constexpr uint64_t kFirstRead = uint64_t{8} << 20;  // all of them in published files
  uint64_t n = std::min(file.size(), kFirstRead);
  for (;;) {
    const size_t before = bytes->size();
    in_file(file.path(), [&] { bytes->resize(static_cast<size_t>(n)); });
    file.read(before, std::span(*bytes).subspan(before));
    file.check_unchanged();
    try {
      return in_file(file.path(), [&] { return read_gguf_part(*bytes, file.size()); });
    } catch (const MoreBytesNeeded& more) {
      n = std::min(file.size(), std::max(more.n, 2 * n));
    }
  }
}

}  // namespace

void GgufWeights::check() const {
  for (const FileMap& map : maps) map.check();
}

void GgufWeights::release(std::span<const std::byte> bytes) const {
  for (const FileMap& map : maps) map.release(bytes);
}

uint64_t GgufWeights::version() const {
  uint64_t hash = 0;
  for (const FileMap& map : maps) hash = hash_value(hash, map.version());
  return hash;
}

void GgufWeights::prefetch(const std::function<void(double fraction)>& on_read) const {
  size_t before = 0;
  for (const FileMap& map : maps) {
    map.prefetch([&](size_t bytes) { on_read(static_cast<double>(before + bytes) / static_cast<double>(file_bytes)); });
    before += map.bytes().size();
  }
}

// Errors name the part.
GgufPart GgufFile::open_part(const std::string& path, const FileOptions& options, const std::byte** data) {
  const std::shared_ptr<const File> file = File::open(path);
  std::vector<std::byte>& header = headers_.emplace_back();
  GgufPart part = read_headers(*file, &header);
  *data = nullptr;
  if (options.headers_only) return part;
  const uint64_t start = std::min(part.data_start, part.file_bytes);
  if (options.mmap) {
    const FileMap& map = weights_->maps.emplace_back(FileMap::map(file));
    *data = map.bytes().data() + start;
  } else {
    *data = weights_->maps.emplace_back(FileMap::read(*file, start)).bytes().data();
  }
  return part;
}

void GgufFile::add_metadata(GgufPart* part) {
  version_ = part->version;
  metadata_.reserve(part->metadata.size());
  for (auto& [key, value] : part->metadata) metadata_.emplace_back(std::string(key), std::move(value));
  metadata_index_ = std::move(part->metadata_index);
}

void GgufFile::add_tensors(const GgufPart& part, const std::byte* data) {
  weights_->file_bytes += part.file_bytes;
  std::vector<Tensor>& tensors = weights_->tensors;
  tensors.reserve(tensors.size() + part.tensors.size());
  for (const GgufTensorInfo& info : part.tensors) {
    if (!tensor_index_.emplace(info.name, tensors.size()).second) {
      gguf_invalid("MISSING_SPLIT",
                   "tensor " + quoted(info.name) + " is in another part too; the parts belong to different models");
    }
    Tensor tensor;
    tensor.name = std::string(info.name);
    tensor.type = info.type;
    tensor.shape = info.shape;
    tensor.bytes = static_cast<size_t>(info.bytes);
    if (data != nullptr) tensor.data = data + info.offset;
    tensors.push_back(std::move(tensor));
  }
}

void GgufFile::open_siblings(const std::string& path, int64_t n_parts, const FileOptions& options) {
  const std::optional<SplitName> name = parse_split_name(path);
  in_file(path, [&] {
    if (!name || name->count != n_parts) {
      gguf_invalid("MISSING_SPLIT", "one of " + std::to_string(n_parts) +
                                        " parts of a split model, expected a name that ends in " +
                                        SplitName{"", 1, n_parts}.of(1));
    }
    const int64_t number = find_int("split.no").value_or(0);
    if (number != 0 || name->number != 1) {
      gguf_invalid("MISSING_SPLIT", "not the first part of a split model (its \"split.no\" is " +
                                        std::to_string(number) + "); open the one that ends in " +
                                        SplitName{"", 1, n_parts}.of(1));
    }
  });
  for (int64_t i = 1; i < n_parts; ++i) {
    const std::string sibling = name->of(i + 1);
    const std::byte* data = nullptr;
    GgufPart part;
    try {
      part = open_part(sibling, options, &data);
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kFile) throw;
      gguf_invalid("MISSING_SPLIT", std::string(e.what()) + "; it is part " + std::to_string(i + 1) + " of " +
                                        std::to_string(n_parts) + " of the model");
    }
    in_file(sibling, [&] {
      check_sibling(part, i);
      add_tensors(part, data);
    });
  }
  in_file(path, [&] {
    const auto n_tensors = find_int("split.tensors.count");
    if (n_tensors && *n_tensors != static_cast<int64_t>(tensors().size())) {
      gguf_invalid("MISSING_SPLIT", "metadata \"split.tensors.count\" is " + std::to_string(*n_tensors) +
                                        ", the parts hold " + std::to_string(tensors().size()) + " tensors");
    }
  });
}

// The split keys must continue the first part's, and whatever else a part repeats must be equal.
void GgufFile::check_sibling(const GgufPart& part, int64_t index) const {
  const auto number = part.find_int("split.no");
  if (!number || *number != index) {
    gguf_invalid("MISSING_SPLIT", "metadata \"split.no\": expected " + std::to_string(index) + ", found " +
                                      (number ? std::to_string(*number) : "none"));
  }
  for (const auto& [key, value] : part.metadata) {
    if (key == "split.no" || key == "general.alignment") continue;
    const GgufValue* in_first = find(key);
    if (in_first != nullptr && !same_value(*in_first, value)) {
      gguf_invalid("MISSING_SPLIT",
                   "metadata " + quoted(key) + " differs from the first part's; the parts belong to different models");
    }
  }
  if (part.find("split.count") == nullptr) gguf_invalid("MISSING_SPLIT", "metadata \"split.count\" is missing");
}

std::shared_ptr<const GgufFile> GgufFile::open(const std::string& path, const FileOptions& options) {
  std::shared_ptr<GgufFile> file(new GgufFile);
  const std::byte* data = nullptr;
  GgufPart first = file->open_part(path, options, &data);
  const int64_t n_parts = in_file(path, [&] { return check_first_part(first); });
  file->add_metadata(&first);
  in_file(path, [&] { file->add_tensors(first, data); });
  if (n_parts > 1) file->open_siblings(path, n_parts, options);
  return file;
}

std::shared_ptr<const GgufFile> GgufFile::parse(std::span<const std::byte> bytes) {
  std::shared_ptr<GgufFile> file(new GgufFile);
  GgufPart part = read_gguf_part(bytes, bytes.size());
  if (check_first_part(part) > 1)
    gguf_invalid("MISSING_SPLIT", "one part of a split model; open it by its path, with all parts beside it");
  file->add_metadata(&part);
  file->add_tensors(part, bytes.data() + std::min<uint64_t>(part.data_start, bytes.size()));
  return file;
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto it = metadata_index_.find(key);
  return it == metadata_index_.end() ? nullptr : &metadata_[it->second].second;
}

const Tensor* GgufFile::find_tensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors()[it->second];
}

std::optional<int64_t> GgufFile::find_int(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  return gguf_int(key, *value);
}

std::optional<double> GgufFile::find_float(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array && value->type == GgufType::kF32)
    return static_cast<double>(gguf_load<float>(value->raw.data()));
  if (!value->is_array && value->type == GgufType::kF64) return gguf_load<double>(value->raw.data());
  if (value->is_array || value->type == GgufType::kString || value->type == GgufType::kBool)
    gguf_wrong_type(key, "a number", *value);
  return static_cast<double>(gguf_int(key, *value));
}

std::optional<bool> GgufFile::find_bool(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != GgufType::kBool) gguf_wrong_type(key, "a bool", *value);
  return gguf_load<uint8_t>(value->raw.data()) != 0;
}

std::optional<std::string> GgufFile::find_string(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_array || value->type != GgufType::kString) gguf_wrong_type(key, "a string", *value);
  return std::string(value->string);
}

}  // namespace gemma

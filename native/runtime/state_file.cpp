#include "runtime/state_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/hash.h"

namespace gemma {
namespace {

static_assert(std::endian::native == std::endian::little);

// The first byte is no text, and line ends show whether a transfer has changed any.
constexpr char kMagic[8] = {'\x8b', 'G', 'N', 'S', '\r', '\n', '\x1a', '\n'};

struct StateHeader {
  char magic[8] = {};
  uint32_t version = 0;
  uint32_t kv_type = 0;
  uint64_t model = 0;
  uint64_t arithmetic = 0;
  uint64_t n_metadata = 0;   // bytes
  uint64_t n_embedding = 0;  // floats of all images
  uint64_t n_pages = 0;      // bytes of all pages
  uint32_t n_tokens = 0;
  uint32_t n_images = 0;
  uint32_t n_positions = 0;
  uint32_t zero = 0;
  uint64_t checksum = 0;  // of all before it
};
static_assert(sizeof(StateHeader) == 80);

struct StateImage {
  int32_t first = 0;
  int32_t n_rows = 0;
};

uint64_t checksum_of(const StateHeader& header) {
  return hash_bytes(0, std::as_bytes(std::span(&header, 1)).first(offsetof(StateHeader, checksum)));
}

// Of block i of the body. Blocks of other files and other places have other checksums.
uint64_t checksum_of(const StateHeader& header, uint64_t i, std::span<const std::byte> block) {
  return hash_bytes(mix_bits(header.checksum + i), block);
}

// Bytes of the body: the counts are checked, no sum overflows.
uint64_t body_bytes(const StateHeader& header) {
  return header.n_metadata + header.n_tokens * sizeof(int32_t) + header.n_images * sizeof(StateImage) +
         header.n_embedding * sizeof(float) + header.n_pages;
}

uint64_t file_bytes(uint64_t n_body) {
  return sizeof(StateHeader) + n_body + (n_body + kStateBlock - 1) / kStateBlock * sizeof(uint64_t);
}

[[noreturn]] void damaged(const std::string& what) {
  throw Error(ErrorCode::kFile, "STATE_DAMAGED", "the saved state is damaged: " + what);
}

void check_header(const StateHeader& header, const StateShape& shape) {
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    throw Error(ErrorCode::kFile, "NOT_A_STATE", "not a saved state: it begins with other bytes");
  if (header.version != kStateVersion) {
    throw Error(
        ErrorCode::kFile, "STATE_VERSION",
        "a saved state of version " + std::to_string(header.version) + ": expected " + std::to_string(kStateVersion));
  }
  if (header.checksum != checksum_of(header)) damaged("the header's checksum is another");
  if (header.model != shape.model) {
    throw Error(ErrorCode::kUnsupportedModel, "STATE_MODEL",
                "the state was saved from another model: expected one from the model that is loaded");
  }
  if (header.kv_type != static_cast<uint32_t>(shape.kv_type)) {
    throw Error(ErrorCode::kUnsupportedModel, "STATE_KV_TYPE",
                "the state was saved with another kvCache: load the model with the one that it had then");
  }
  if (header.n_tokens > static_cast<uint32_t>(shape.n_ctx)) {
    throw Error(ErrorCode::kContextFull, "CONTEXT_OVERFLOW",
                "the state of " + std::to_string(header.n_tokens) + " tokens does not fit into the context of " +
                    std::to_string(shape.n_ctx) + " positions: load with a larger contextSize");
  }
  const uint64_t n_dim = static_cast<uint64_t>(shape.model_dim);
  if (header.n_metadata > kMaxStateMetadata || header.n_positions > header.n_tokens ||
      header.n_images > header.n_tokens || header.n_embedding % n_dim != 0 ||
      header.n_embedding / n_dim > header.n_tokens || header.zero != 0 ||
      header.n_pages != shape.bytes_of_pages(static_cast<int>(header.n_positions))) {
    damaged("sizes in the header do not fit together");
  }
}

}  // namespace

size_t StateShape::n_pages(size_t group, int n) const {
  const int n_all = (n + kPagePositions - 1) / kPagePositions;
  const int n_window = groups[group].n_window;
  const int first = n_window == 0 ? 0 : std::max(0, n - n_window + 1) / kPagePositions;
  return static_cast<size_t>(std::max(0, n_all - first));
}

uint64_t StateShape::bytes_of_pages(int n) const {
  uint64_t bytes = 0;
  for (size_t group = 0; group < groups.size(); ++group)
    bytes += static_cast<uint64_t>(n_pages(group, n)) * groups[group].page_bytes;
  return bytes;
}

uint64_t write_state(const State& state, const StateShape& shape,
                     const std::function<void(std::span<const std::byte>)>& write) {
  if (state.metadata.size() > kMaxStateMetadata) {
    throw Error(ErrorCode::kInvalidArgument, "STATE_METADATA",
                "metadata: expected at most " + std::to_string(kMaxStateMetadata) + " bytes, found " +
                    std::to_string(state.metadata.size()));
  }
  StateHeader header;
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kStateVersion;
  header.kv_type = static_cast<uint32_t>(shape.kv_type);
  header.model = shape.model;
  header.arithmetic = shape.arithmetic;
  header.n_metadata = state.metadata.size();
  header.n_pages = state.pages.size();
  header.n_tokens = static_cast<uint32_t>(state.tokens.size());
  header.n_images = static_cast<uint32_t>(state.images.size());
  header.n_positions = static_cast<uint32_t>(state.n);
  std::vector<StateImage> images;
  for (const PromptImage& image : state.images) {
    const size_t n_rows = image.embedding.size() / static_cast<size_t>(shape.model_dim);
    images.push_back({image.first, static_cast<int32_t>(n_rows)});
    header.n_embedding += image.embedding.size();
  }
  header.checksum = checksum_of(header);
  std::vector<std::span<const std::byte>> parts = {std::as_bytes(std::span(state.metadata)),
                                                   std::as_bytes(std::span(state.tokens)),
                                                   std::as_bytes(std::span(images))};
  for (const PromptImage& image : state.images) parts.push_back(std::as_bytes(std::span(image.embedding)));
  parts.emplace_back(state.pages);

  write(std::as_bytes(std::span(&header, 1)));
  std::vector<std::byte> block;
  uint64_t n_blocks = 0;
  const auto end_block = [&] {
    const uint64_t checksum = checksum_of(header, n_blocks++, block);
    write(block);
    write(std::as_bytes(std::span(&checksum, 1)));
    block.clear();
  };
  block.reserve(kStateBlock);
  for (std::span<const std::byte> part : parts) {
    while (!part.empty()) {
      const size_t n = std::min(part.size(), kStateBlock - block.size());
      block.insert(block.end(), part.begin(), part.begin() + static_cast<std::ptrdiff_t>(n));
      part = part.subspan(n);
      if (block.size() == kStateBlock) end_block();
    }
  }
  if (!block.empty()) end_block();
  return file_bytes(body_bytes(header));
}

State read_state(uint64_t n_bytes, const StateShape& shape,
                 const std::function<void(uint64_t offset, std::span<std::byte> out)>& read) {
  StateHeader header;
  if (n_bytes < sizeof header) throw Error(ErrorCode::kFile, "NOT_A_STATE", "not a saved state: it is too short");
  read(0, std::as_writable_bytes(std::span(&header, 1)));
  check_header(header, shape);
  const uint64_t n_body = body_bytes(header);
  if (n_bytes != file_bytes(n_body)) {
    damaged("expected a file of " + std::to_string(file_bytes(n_body)) + " bytes, found " + std::to_string(n_bytes));
  }

  std::vector<std::byte> block(std::min<uint64_t>(kStateBlock, n_body));
  std::span<const std::byte> rest;  // of the block that was read last
  uint64_t n_blocks = 0;
  const auto take = [&](std::span<std::byte> out) {
    while (!out.empty()) {
      if (rest.empty()) {
        const uint64_t before = n_blocks * kStateBlock;
        const uint64_t at = sizeof header + before + n_blocks * sizeof(uint64_t);
        const std::span<std::byte> now = std::span(block).first(std::min<uint64_t>(kStateBlock, n_body - before));
        uint64_t checksum = 0;
        read(at, now);
        read(at + now.size(), std::as_writable_bytes(std::span(&checksum, 1)));
        if (checksum != checksum_of(header, n_blocks, now))
          damaged("the checksum of block " + std::to_string(n_blocks) + " is another");
        ++n_blocks;
        rest = now;
      }
      const size_t n = std::min(out.size(), rest.size());
      std::memcpy(out.data(), rest.data(), n);
      out = out.subspan(n);
      rest = rest.subspan(n);
    }
  };
  State state;
  state.n = static_cast<int>(header.n_positions);
  state.same_arithmetic = header.arithmetic == shape.arithmetic;
  state.metadata.resize(header.n_metadata);
  take(std::as_writable_bytes(std::span(state.metadata)));
  state.tokens.resize(header.n_tokens);
  take(std::as_writable_bytes(std::span(state.tokens)));
  std::vector<StateImage> images(header.n_images);
  take(std::as_writable_bytes(std::span(images)));
  uint64_t n_floats = header.n_embedding;
  for (const StateImage& image : images) {
    const uint64_t n = static_cast<uint64_t>(std::max(0, image.n_rows)) * static_cast<uint64_t>(shape.model_dim);
    if (n == 0) damaged("an image has " + std::to_string(image.n_rows) + " rows");
    if (n > n_floats) damaged("its images are larger than all of their embeddings");
    n_floats -= n;
    PromptImage& added = state.images.emplace_back();
    added.first = image.first;
    added.embedding.resize(n);
    take(std::as_writable_bytes(std::span(added.embedding)));
  }
  if (n_floats != 0) damaged("its images are smaller than all of their embeddings");
  state.pages.resize(header.n_pages);
  take(state.pages);
  return state;
}

void seal_state(std::span<std::byte> file) {
  StateHeader header;
  if (file.size() < sizeof header) return;
  std::memcpy(&header, file.data(), sizeof header);
  header.checksum = checksum_of(header);
  std::memcpy(file.data(), &header, sizeof header);
  std::span<std::byte> rest = file.subspan(sizeof header);
  for (uint64_t i = 0; rest.size() > sizeof(uint64_t); ++i) {
    const size_t n = std::min(kStateBlock, rest.size() - sizeof(uint64_t));
    const uint64_t checksum = checksum_of(header, i, rest.first(n));
    std::memcpy(rest.data() + n, &checksum, sizeof checksum);
    rest = rest.subspan(n + sizeof checksum);
  }
}

}  // namespace gemma

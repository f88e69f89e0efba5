// A beginning of a sequence as a file: its tokens and images, a text of the caller's, and the keys and values of its first
// positions. All integers are little-endian.
//
//   header      StateHeader, below
//   body        metadata; tokens int32[n_tokens]; images {int32 first, int32 n_rows}[n_images]; their embeddings
//               float32[.., model_dim]; the pages of each group of the cache in order, each with all layers of the group
//
// The body comes in blocks of kStateBlock bytes, the last one shorter, each with its checksum (uint64) behind it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "runtime/prompt.h"
#include "tokenizer/tokenizer.h"

namespace gemma {

inline constexpr uint32_t kStateVersion = 1;
inline constexpr size_t kStateBlock = size_t{1} << 20;
inline constexpr uint64_t kMaxStateMetadata = uint64_t{16} << 20;  // bytes

// What a state must fit: the model that it is saved from or restored into.
struct StateShape {
  uint64_t model = 0;       // hash of the weights and of what the model is
  uint64_t arithmetic = 0;  // hash of what computes: other devices compute other last bits
  KvType kv_type = KvType::kF16;
  int n_ctx = 0;
  int model_dim = 0;
  struct Group {
    int n_window = 0;  // 0: all positions are seen
    size_t page_bytes = 0;
  };
  std::vector<Group> groups;

  // Pages of a group that a sequence of n positions needs to go on: those that position n sees.
  size_t n_pages(size_t group, int n) const;
  uint64_t bytes_of_pages(int n) const;
};

struct State {
  std::vector<TokenId> tokens;      // anything in images
  std::vector<PromptImage> images;  // within the tokens
  std::string metadata;
  int n = 0;                     // positions whose keys and values are here
  bool same_arithmetic = false;  // read_state: keys and values are those that the model itself would compute
  std::vector<std::byte> pages;  // [bytes_of_pages(n)]
};

// Gives the file's bytes to write, in order. Returns how many. What write throws comes through; metadata of more than
// kMaxStateMetadata bytes are Error{kInvalidArgument, STATE_METADATA}.
uint64_t write_state(const State& state, const StateShape& shape,
                     const std::function<void(std::span<const std::byte>)>& write);

// The state in a file of n_bytes bytes, of which read(offset, out) fills out. Sizes are checked before memory is taken
// for them; it is not looked at what tokens and images are. Throws Error: kFile with NOT_A_STATE, STATE_VERSION,
// STATE_DAMAGED; kUnsupportedModel with STATE_MODEL, STATE_KV_TYPE; kContextFull with CONTEXT_OVERFLOW.
State read_state(uint64_t n_bytes, const StateShape& shape,
                 const std::function<void(uint64_t offset, std::span<std::byte> out)>& read);

// Writes the checksums that the bytes of a file should have into it, as far as it goes: for tests, which change the rest.
void seal_state(std::span<std::byte> file);

}  // namespace gemma

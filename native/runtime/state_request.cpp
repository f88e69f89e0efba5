#include "runtime/state_request.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>

#include "base/hash.h"
#include "model/tokens.h"
#include "runtime/load.h"

namespace gemma {
namespace {

constexpr size_t kBytesATurn = size_t{16} << 20;
// Of a tensor, at its beginning, middle and end: other weights of the same model differ everywhere.
constexpr size_t kSample = 256;

uint64_t hash_text(uint64_t hash, const std::string& text) {
  return hash_bytes(hash_value(hash, text.size()), std::as_bytes(std::span(text)));
}

uint64_t hash_model(const LoadedModel& loaded) {
  const ModelConfig& config = loaded.config;
  uint64_t hash = 0;
  for (const int value : {config.model_dim, config.n_vocab, config.n_layers()}) hash = hash_value(hash, value);
  for (const float value : {config.rms_eps, config.final_softcap}) hash = hash_value(hash, value);
  for (const LayerConfig& layer : config.layers) {
    for (const int value : {layer.n_heads, layer.n_kv_heads, layer.head_dim, layer.ffn_dim, layer.n_window})
      hash = hash_value(hash, value);
    for (const float value : {layer.query_scale, layer.rope_base, layer.rope_factor}) hash = hash_value(hash, value);
  }
  const TensorSource& source = loaded.model->tensors();
  for (const Tensor* tensor : source.tensors()) {
    hash = hash_value(hash_text(hash, tensor->name), tensor->type);
    hash = hash_bytes(hash, std::as_bytes(std::span(tensor->shape)));
    const std::span<const std::byte> data(tensor->data, tensor->bytes);
    for (const size_t at : {size_t{0}, data.size() / 2, data.size() - std::min(kSample, data.size())})
      hash = hash_bytes(hash, data.subspan(at, std::min(kSample, data.size() - at)));
  }
  source.check();  // what a file that was cut holds is no model
  return hash;
}

StateShape state_shape(const LoadedModel& loaded, const AdapterMix* adapters) {
  StateShape shape;
  shape.model = hash_model(loaded);
  for (const std::unique_ptr<Backend>& backend : loaded.backends)
    shape.arithmetic = hash_text(shape.arithmetic, backend->isa());
  const KvPool& pool = loaded.model->kv_pool();
  for (int layer = 0; layer < pool.n_layers(); ++layer)
    shape.arithmetic = hash_value(shape.arithmetic, pool.stage(layer));
  if (adapters != nullptr) shape.arithmetic = hash_value(shape.arithmetic, adapters->hash);
  shape.kv_type = loaded.info.kv_type;
  shape.n_ctx = loaded.info.n_ctx;
  shape.model_dim = loaded.config.model_dim;
  for (size_t group = 0; group < pool.n_groups(); ++group) {
    size_t bytes = 0;
    for (size_t stage = 0; stage < pool.n_stages(); ++stage) bytes += pool.page_bytes(group, stage);
    shape.groups.push_back({pool.window(group), bytes});
  }
  return shape;
}

}  // namespace

bool StateRequest::advance() {
  try {
    if (!has_begun_) begin();
    has_begun_ = true;
    if (kv_ == nullptr) return false;
    if (copy_some()) return true;
    if (way_ == Way::kRestore) {
      keep();
    } else {
      clear_rest();
    }
  } catch (...) {
    fail_with_current();
  }
  return false;
}

void StateRequest::begin() {
  if (way_ == Way::kShape) {
    *shape_ = state_shape(loaded_, adapters_.get());
    return;
  }
  KvPool& pool = loaded_.model->kv_pool();
  std::vector<TokenId> tokens = state_->tokens;
  for (const PromptImage& image : state_->images) {
    const size_t n = image.embedding.size() / static_cast<size_t>(loaded_.config.model_dim);
    std::fill_n(tokens.begin() + image.first, n, kImageToken);
  }
  text_ = std::make_shared<PrefixText>();
  text_->images = std::make_shared<const std::vector<PromptImage>>(state_->images);
  text_->adapters = key_of(adapters_.get());
  hash_blocks(tokens, *text_->images, &text_->hashes, adapters_ != nullptr ? adapters_->seed : 0);
  if (way_ == Way::kSave) {
    PrefixCache::Match match = loaded_.prefixes->find(tokens, text_->images, text_->hashes, text_->adapters);
    state_->n = match.n;
    kv_ = std::move(match.kv);
  } else if (state_->n > 0 && state_->same_arithmetic && loaded_.prefixes->on()) {
    kv_ = std::make_unique<KvSequence>(pool);
    kv_->reserve(state_->n, state_->n);
    kv_->trim(state_->n);
    tokens.resize(static_cast<size_t>(state_->n));
    text_->hashes.resize(tokens.size() / kPagePositions);
    text_->tokens = std::move(tokens);
  }
  if (kv_ == nullptr) {
    state_->n = 0;
    return;
  }
  if (way_ == Way::kSave) {
    size_t bytes = 0;
    for (size_t group = 0; group < pool.n_groups(); ++group) {
      for (size_t stage = 0; stage < pool.n_stages(); ++stage)
        bytes += kv_->n_pages(group, stage) * pool.page_bytes(group, stage);
    }
    state_->pages.resize(bytes);
  }
}

// False when all pages are copied.
bool StateRequest::copy_some() {
  KvPool& pool = loaded_.model->kv_pool();
  const size_t n_all = static_cast<size_t>((state_->n + kPagePositions - 1) / kPagePositions);
  for (size_t n_bytes = 0; group_ < pool.n_groups(); ++group_, page_ = 0) {
    for (page_ = std::max(page_, pool.first_seen_page(group_, state_->n)); page_ < n_all; ++page_) {
      if (n_bytes >= kBytesATurn) return true;
      for (size_t stage = 0; stage < pool.n_stages(); ++stage) {
        const size_t bytes = pool.page_bytes(group_, stage);
        if (bytes == 0) continue;
        std::byte* page = kv_->page_list(group_, stage)[page_];
        if (way_ == Way::kSave) {
          pool.download(group_, stage, page, &state_->pages[at_]);
        } else {
          pool.upload(group_, stage, page, &state_->pages[at_]);
        }
        at_ += bytes;
        n_bytes += bytes;
      }
    }
  }
  return false;
}

// The last page may hold more positions than are saved, of another's sequence.
void StateRequest::clear_rest() {
  const KvPool& pool = loaded_.model->kv_pool();
  const size_t n_rows = static_cast<size_t>(state_->n % kPagePositions);
  if (n_rows == 0) return;
  size_t end = state_->pages.size();  // of the last page of a group, which is the last of its pages
  for (size_t group = pool.n_groups(); group-- > 0;) {
    size_t page_bytes = 0;
    for (size_t stage = 0; stage < pool.n_stages(); ++stage) page_bytes += pool.page_bytes(group, stage);
    std::byte* part = state_->pages.data() + (end - page_bytes);
    for (size_t stage = 0; stage < pool.n_stages(); ++stage) {
      for (int layer = 0; layer < pool.n_layers(); ++layer) {
        if (pool.group(layer) != group || pool.stage(layer) != stage) continue;
        const KvLayout& layout = pool.layout(layer);
        for (int i = 0; i < 2 * layout.n_kv_heads; ++i) {  // keys of all heads, values of all heads
          std::byte* rows = part + layout.layer_offset + static_cast<size_t>(i) * kPagePositions * layout.row_bytes;
          std::memset(rows + n_rows * layout.row_bytes, 0, (kPagePositions - n_rows) * layout.row_bytes);
        }
      }
      part += pool.page_bytes(group, stage);
    }
    size_t n_pages = 0;
    for (size_t stage = 0; stage < pool.n_stages() && n_pages == 0; ++stage) n_pages = kv_->n_pages(group, stage);
    end -= n_pages * page_bytes;
  }
}

void StateRequest::keep() {
  if (!loaded_.prefixes->keep(std::move(kv_), state_->n, std::move(text_))) state_->n = 0;
}

void StateRequest::on_finish() noexcept {
  kv_.reset();
  text_.reset();
  adapters_.reset();
}

void TaskRequest::finish(FinishReason reason) noexcept {
  on_finish();
  ended_.set_value(error_of(reason));
}

bool InstallRequest::advance() {
  try {
    loaded_.install(adapter_);
  } catch (...) {
    fail_with_current();
  }
  return false;
}

}  // namespace gemma

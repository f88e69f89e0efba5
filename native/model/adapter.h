// Adapters: what is added to the products of a model's matrices for the rows of some requests, beside weights that stay
// as they are (LoRA and its kin; sources: Hugging Face PEFT, tuners/lora/layer.py and dora.py; llama.cpp,
// llama-adapter.cpp). Every adapter that a row names is added to the row's products, one after the other.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/memory_plan.h"
#include "model/stage.h"
#include "model/tensor_source.h"
#include "model/vision_config.h"
#include "model/vision_weights.h"
#include "model/weights.h"
#include "quant/tensor.h"

namespace gemma {

// What a file says of one matrix. Pointers of tensors are into what AdapterTensors keeps.
struct AdapterMatrix {
  std::optional<Tensor> a;          // [rank, n_in]
  std::optional<Tensor> b;          // [n_out, rank]
  std::optional<Tensor> bias;       // [n_out], added to what b makes
  std::optional<Tensor> magnitude;  // [n_out]: the lengths of the changed matrix's rows (DoRA)
  bool a_is_transposed = false;     // a is [n_in, rank], as GGUF has it for the embedding
  float scale = 1;
};

// An adapter as a reader of a format hands it over: names are those of the model's tensors (tensor_source.h).
struct AdapterTensors {
  std::map<std::string, AdapterMatrix> matrices;
  std::map<std::string, Tensor> replaced;  // in place of the model's own
  bool norms_without_one = false;          // norms among them are w of 1 + w
  std::optional<Tensor> token_rows;        // [., model_dim]: rows of the embedding, and of an output matrix tied to it
  std::vector<int32_t> token_ids;          // of these
  std::shared_ptr<const void> file;        // keeps the data
  std::function<void()> check;             // throws Error{kFile, FILE_CHANGED}; may be empty
};

// Throws Error{kAdapterInvalid}.
[[noreturn]] void bad_adapter(const char* detail, const std::string& message);

// One matrix's change on a backend.
struct LowRankWeights {
  Weight a;
  Weight b;
  const float* bias = nullptr;
  const float* norms = nullptr;
  float scale = 1;
  int n_out = 0;
  float* t = nullptr;

  // For rows first_row .. first_row + n_rows - 1 of a product whose rows are stride floats apart.
  LowRank of(int first_row, int n_rows, float factor, float* out, int stride) const {
    return {first_row, n_rows, a, b, bias, norms, scale * factor, t, out, n_out, stride};
  }
};

// What an adapter is made for: the model, and what its rows are at most.
struct AdapterTarget {
  std::vector<PlannedStage> stages;
  const ModelConfig& config;
  int max_rows = 0;
  const TensorSource& tensors;  // the model's
  // The vision encoder's, if there is one.
  const VisionConfig* vision = nullptr;
  const TensorSource* vision_tensors = nullptr;
  bool vision_requantizes = false;
};

struct AdapterInfo {
  std::string name;
  int rank = 0;            // the largest
  uint64_t n_tensors = 0;  // of the file, those that count
  uint64_t bytes = 0;      // on the backends, working memory included
  bool has_vision = false;
  std::string hash;  // of what it says: two that are equal compute alike
};

// An adapter in memory. Made in two steps: the first reads the file, checks everything and may take its time, on any
// thread; install() takes memory of the backends and belongs to the thread that uses them, as the destructor does.
class Adapter {
 public:
  // Throws Error: kAdapterInvalid with BAD_TENSOR (a name that the model has not, a shape), BAD_RANK, NONFINITE,
  // UNSUPPORTED; kDisposed, CANCELLED after should_stop, which is asked now and then; kFile; kOutOfMemory.
  Adapter(const AdapterTensors& tensors, const AdapterTarget& target, const std::function<bool()>& should_stop);
  // Of such an adapter, from its tensors' shapes alone. Throws likewise.
  static uint64_t planned_bytes(const AdapterTensors& tensors, const AdapterTarget& target);

  // stages: those of the target. Throws Error{kOutOfMemory}; nothing is taken then.
  void install(std::span<const Stage> stages);

  uint64_t id() const { return id_; }      // of this object: no other has had it
  uint64_t hash() const { return hash_; }  // of what it says
  const AdapterInfo& info() const { return info_; }
  void set_name(std::string name) { info_.name = std::move(name); }

  // Null where the adapter leaves the tensor as it is.
  const LowRankWeights* find(int layer, Weight LayerWeights::* matrix) const;
  const float* find(int layer, const float* LayerWeights::* norm) const;
  const LowRankWeights* find(int layer, Weight VisionLayer::* matrix) const;

  struct Embedding {
    Weight table;             // in place of the model's; none without data
    LowRankWeights low_rank;  // none without b.data; a is [n_vocab, rank]
  };
  const Embedding& embedding() const { return embedding_; }
  struct Head {
    Weight matrix;  // in place of the model's; none without data
    LowRankWeights low_rank;
    const float* norm = nullptr;  // in place of output_norm
    bool has_token_rows = false;
  };
  const Head& head() const { return head_; }
  // Whether logits of its rows are not products with the model's own output matrix.
  bool changes_output() const {
    return head_.matrix.data != nullptr || head_.low_rank.b.data != nullptr || head_.has_token_rows;
  }
  bool has_norms() const { return !norms_.empty() || head_.norm != nullptr; }
  // Rows that stand in place of those of token_ids(), ascending: for the embedding, and for the output matrix with
  // room for their products with [logit_rows] rows.
  std::span<const int32_t> token_ids() const { return token_ids_; }
  const Weight& token_rows() const { return token_rows_; }
  const Weight& output_rows() const { return output_rows_; }
  float* output_products() const { return output_products_; }

 private:
  friend class AdapterBuilder;
  Adapter() : id_(0) {}
  // A part of a stage's memory: its bytes until install(), and who is told where they are.
  struct Piece {
    size_t stage = 0;
    size_t offset = 0;
    size_t n_bytes = 0;
    std::vector<std::byte> data;  // none: working memory
    std::function<void(std::byte* at)> set;
  };
  template <class Member>
  struct LayerChange {
    int layer;
    Member member;
    std::unique_ptr<LowRankWeights> weights;
  };
  struct NormChange {
    int layer;
    const float* LayerWeights::* member;
    std::unique_ptr<const float*> weights;
  };
  template <class Member>
  static const LowRankWeights* find_in(const std::vector<LayerChange<Member>>& changes, int layer, Member member);

  uint64_t id_;
  uint64_t hash_ = 0;
  AdapterInfo info_;
  std::vector<LayerChange<Weight LayerWeights::*>> layers_;  // ascending by layer
  std::vector<LayerChange<Weight VisionLayer::*>> vision_;   // likewise
  std::vector<NormChange> norms_;                            // likewise
  Embedding embedding_;
  Head head_;
  std::vector<int32_t> token_ids_;
  Weight token_rows_;
  Weight output_rows_;
  float* output_products_ = nullptr;
  std::vector<Piece> pieces_;  // until install()
  std::vector<uint64_t> stage_bytes_;
  std::vector<std::unique_ptr<Buffer>> memory_;  // of each stage that has any
};

// Which adapter, by the object and how much of it. Adapters that are equal may differ in this.
using AdapterKey = std::vector<std::pair<uint64_t, float>>;

// The adapters of a request, in order. They live as long as someone has this.
struct AdapterMix {
  struct Use {
    std::shared_ptr<const Adapter> adapter;
    float scale = 1;
  };
  std::vector<Use> uses;
  AdapterKey key;
  uint64_t seed = 0;  // a hash of the key
  uint64_t hash = 0;  // a hash of what the adapters say, and the scales

  // The one that is found last counts.
  const float* find(int layer, const float* LayerWeights::* norm) const;
  const float* output_norm() const;
  bool changes_output() const;
  bool has_vision() const;
};
// Throws Error{kAdapterInvalid, CONFLICT} where two adapters replace the same tensor.
std::shared_ptr<const AdapterMix> make_mix(std::vector<AdapterMix::Use> uses);
// Both may be null, which is no adapter.
bool same_mix(const AdapterMix* a, const AdapterMix* b);
inline const AdapterKey& key_of(const AdapterMix* mix) {
  static const AdapterKey none;
  return mix != nullptr ? mix->key : none;
}

// Rows of a batch that have the same adapters.
struct AdaptedRows {
  int first = 0;
  int n = 0;
  const AdapterMix* mix = nullptr;
};

// Calls f(first, n, weight) for all of n rows: weight is of(mix) where it is not null, else base.
template <class Of, class F>
void for_norm_rows(std::span<const AdaptedRows> adapted, int n, const float* base, const Of& of, const F& f) {
  int done = 0;
  for (const AdaptedRows& rows : adapted) {
    const float* own = of(*rows.mix);
    if (own == nullptr) continue;
    if (rows.first > done) f(done, rows.first - done, base);
    f(rows.first, rows.n, own);
    done = rows.first + rows.n;
  }
  if (done < n) f(done, n - done, base);
}

}  // namespace gemma

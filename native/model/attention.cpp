// The attention half of a layer: x += post_attention_norm(attn_output(attention(q, k, v))).
#include "model/forward.h"

namespace gemma {

void Model::attention_block(int layer) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const ModelConfig& c = config_;
  const size_t group = static_cast<size_t>(kv_pool_.group(layer));
  const KvLayout& layout = kv_pool_.layout(layer);
  const int n = batch_.n;

  backend_.rms_norm(h_->floats(), x_->floats(), w.attn_norm, n, c.model_dim, c.rms_eps);
  const LinearJob qkv[] = {{&w.attn_q, q_->floats()}, {&w.attn_k, k_->floats()}, {&w.attn_v, v_->floats()}};
  backend_.linear(qkv, h_->floats(), n, batch_.bulk);
  // The norm of queries and keys comes before the rotation; the query scale is folded in after it.
  const float* rope = rope_[group]->floats();
  backend_.norm_rope(q_->floats(), w.attn_q_norm, rope, n, c.n_heads, c.head_dim, c.rms_eps, c.query_scale);
  backend_.norm_rope(k_->floats(), w.attn_k_norm, rope, n, c.n_kv_heads, c.head_dim, c.rms_eps, 1.0f);
  backend_.store_kv(layout, batch_.sequences[group], batch_.positions.data(), k_->floats(), v_->floats());
  backend_.attention(attn_->floats(), q_->floats(), layout, batch_.sequences[group], batch_.spans[group].data(),
                     c.n_heads);
  const LinearJob output[] = {{&w.attn_output, h_->floats()}};
  backend_.linear(output, attn_->floats(), n, batch_.bulk);
  backend_.add_rms_norm(x_->floats(), h_->floats(), w.post_attention_norm, n, c.model_dim, c.rms_eps);
}

}  // namespace gemma

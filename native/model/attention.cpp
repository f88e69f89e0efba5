// The attention half of a layer: x += post_attention_norm(attn_output(attention(q, k, v))).
#include "model/forward.h"

namespace gemma {

void Model::attention_block(size_t stage, int layer) {
  const StageState& s = stages_[stage];
  Backend& backend = *s.backend;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const LayerConfig& c = config_.layers[static_cast<size_t>(layer)];
  const size_t group = kv_pool_.group(layer);
  const KvLayout& layout = kv_pool_.layout(layer);
  const int n = batch_.n;

  backend.rms_norm(s.h->floats(), s.x->floats(), w.attn_norm, n, config_.model_dim, config_.rms_eps);
  const LinearJob qkv[] = {{&w.attn_q, s.q->floats()}, {&w.attn_k, s.k->floats()}, {&w.attn_v, s.v->floats()}};
  project(s, qkv, s.h->floats());
  // The norm of queries and keys comes before the rotation; the query scale is folded in after it.
  const float* rope = s.rope[rope_groups_.of_layer[static_cast<size_t>(layer)]]->floats();
  backend.norm_rope(s.q->floats(), w.attn_q_norm, rope, n, c.n_heads, c.head_dim, config_.rms_eps, c.query_scale);
  backend.norm_rope(s.k->floats(), w.attn_k_norm, rope, n, c.n_kv_heads, c.head_dim, config_.rms_eps, 1.0f);
  backend.store_kv(layout, batch_.sequences[stage].of[group], batch_.positions.data(), s.k->floats(), s.v->floats());
  // Where weights are floats, prompts are computed exactly.
  const Bulk bulk = is_float_type(w.attn_q.type) ? Bulk{} : batch_.bulk;
  backend.attention(s.attn->floats(), s.q->floats(), layout, batch_.sequences[stage].of[group],
                    batch_.spans[group].data(), c.n_heads, bulk);
  const LinearJob output[] = {{&w.attn_output, s.h->floats()}};
  project(s, output, s.attn->floats());
  backend.add_rms_norm(s.x->floats(), s.h->floats(), w.post_attention_norm, n, config_.model_dim, config_.rms_eps);
}

}  // namespace gemma

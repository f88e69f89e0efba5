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
  norm_rows(s, layer, &LayerWeights::attn_norm);
  const Product qkv[] = {{&LayerWeights::attn_q, s.q->floats()},
                         {&LayerWeights::attn_k, s.k->floats()},
                         {&LayerWeights::attn_v, s.v->floats()}};
  project(s, layer, qkv, s.h->floats());
  // The norm of queries and keys comes before the rotation; the query scale is folded in after it.
  const float* rope = s.rope[rope_groups_.of_layer[static_cast<size_t>(layer)]]->floats();
  const auto rotate = [&](float* x, const float* LayerWeights::* norm, int n_heads, float scale) {
    for_norms(layer, norm, [&](int first, int n_rows, const float* weight) {
      const size_t row = static_cast<size_t>(first);
      const size_t dim = static_cast<size_t>(c.head_dim);
      backend.norm_rope(x + row * static_cast<size_t>(n_heads) * dim, weight, rope + row * dim, n_rows, n_heads,
                        c.head_dim, config_.rms_eps, scale);
    });
  };
  rotate(s.q->floats(), &LayerWeights::attn_q_norm, c.n_heads, c.query_scale);
  rotate(s.k->floats(), &LayerWeights::attn_k_norm, c.n_kv_heads, 1.0f);
  backend.store_kv(layout, batch_.sequences[stage].of[group], batch_.positions.data(), s.k->floats(), s.v->floats());
  // Where weights are floats, prompts are computed exactly.
  const Bulk bulk = is_float_type(w.attn_q.type) ? Bulk{} : batch_.bulk;
  backend.attention(s.attn->floats(), s.q->floats(), layout, batch_.sequences[stage].of[group],
                    batch_.spans[group].data(), c.n_heads, bulk);
  const Product output[] = {{&LayerWeights::attn_output, s.h->floats()}};
  project(s, layer, output, s.attn->floats());
  add_norm_rows(s, layer, &LayerWeights::post_attention_norm);
}

}  // namespace gemma

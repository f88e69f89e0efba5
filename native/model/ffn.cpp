// The feed-forward half of a layer: x += post_ffw_norm(ffn_down(gelu(ffn_gate h) * ffn_up h)), h = ffn_norm(x).
#include "model/forward.h"

namespace gemma {

void Model::ffn_block(const StageState& s, int layer) {
  norm_rows(s, layer, &LayerWeights::ffn_norm);
  const Product gate_up[] = {{&LayerWeights::ffn_gate, s.gate->floats()}, {&LayerWeights::ffn_up, s.up->floats()}};
  project(s, layer, gate_up, s.h->floats());
  s.backend->geglu(s.gate->floats(), s.gate->floats(), s.up->floats(), batch_.n,
                   config_.layers[static_cast<size_t>(layer)].ffn_dim);
  const Product down[] = {{&LayerWeights::ffn_down, s.h->floats()}};
  project(s, layer, down, s.gate->floats());
  add_norm_rows(s, layer, &LayerWeights::post_ffw_norm);
}

}  // namespace gemma

// The feed-forward half of a layer: x += post_ffw_norm(ffn_down(gelu(ffn_gate h) * ffn_up h)), h = ffn_norm(x).
#include "model/forward.h"

namespace gemma {

void Model::ffn_block(const StageState& s, int layer) {
  Backend& backend = *s.backend;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const int ffn_dim = config_.layers[static_cast<size_t>(layer)].ffn_dim;
  const int n = batch_.n;

  backend.rms_norm(s.h->floats(), s.x->floats(), w.ffn_norm, n, config_.model_dim, config_.rms_eps);
  const LinearJob gate_up[] = {{&w.ffn_gate, s.gate->floats()}, {&w.ffn_up, s.up->floats()}};
  project(s, gate_up, s.h->floats());
  backend.geglu(s.gate->floats(), s.gate->floats(), s.up->floats(), n, ffn_dim);
  const LinearJob down[] = {{&w.ffn_down, s.h->floats()}};
  project(s, down, s.gate->floats());
  backend.add_rms_norm(s.x->floats(), s.h->floats(), w.post_ffw_norm, n, config_.model_dim, config_.rms_eps);
}

}  // namespace gemma

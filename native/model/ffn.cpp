// The feed-forward half of a layer: x += post_ffw_norm(ffn_down(gelu(ffn_gate h) * ffn_up h)), h = ffn_norm(x).
#include "model/forward.h"

namespace gemma {

void Model::ffn_block(int layer) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  const ModelConfig& c = config_;
  const int n = batch_.n;

  backend_.rms_norm(h_->floats(), x_->floats(), w.ffn_norm, n, c.model_dim, c.rms_eps);
  const LinearJob gate_up[] = {{&w.ffn_gate, gate_->floats()}, {&w.ffn_up, up_->floats()}};
  backend_.linear(gate_up, h_->floats(), n, batch_.bulk);
  backend_.geglu(gate_->floats(), gate_->floats(), up_->floats(), n, c.ffn_dim);
  const LinearJob down[] = {{&w.ffn_down, h_->floats()}};
  backend_.linear(down, gate_->floats(), n, batch_.bulk);
  backend_.add_rms_norm(x_->floats(), h_->floats(), w.post_ffw_norm, n, c.model_dim, c.rms_eps);
}

}  // namespace gemma

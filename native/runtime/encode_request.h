// Embeddings of pictures, in steps of the vision encoder between the steps of other requests.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "runtime/prompt.h"
#include "runtime/request.h"

namespace gemma {

struct AdapterMix;
struct LoadedModel;

// Pictures for the vision encoder.
struct EncodeParams {
  std::vector<uint8_t> pixels;  // [n_images, image_size, image_size, 3], red green blue
  int n_images = 0;
  std::vector<AdapterUse> adapters;  // what they change of the vision encoder
  bool background = false;           // Request::background()
};

// Fraction in 0..1, after each step. What it throws ends the request.
using OnProgress = std::function<void(double fraction)>;
// Once: embeddings[n_images, n_tokens, model_dim], or the error. Must not throw.
using OnEmbeddings = std::function<void(std::vector<float>&& embeddings, std::shared_ptr<const Error> error)>;

class EncodeRequest final : public Request {
 public:
  // params must have passed check_encode(); loaded must live until finish().
  EncodeRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded, std::shared_ptr<const AdapterMix> adapters,
                EncodeParams params, OnProgress on_progress, OnEmbeddings on_done);

  // One step. The first one takes the encoder from whoever had it. False when the work is over: done, or failed().
  bool advance(const std::function<bool()>& should_stop);
  // The encoder goes to another request; this one begins anew afterwards.
  void restart() { started_ = false; }
  void finish(FinishReason reason) noexcept override;

 private:
  LoadedModel& loaded_;
  std::shared_ptr<const AdapterMix> adapters_;
  EncodeParams params_;
  OnProgress on_progress_;
  OnEmbeddings on_done_;
  bool started_ = false;
};

}  // namespace gemma

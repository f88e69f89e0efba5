#include "runtime/encode_request.h"

#include <utility>

#include "runtime/load.h"

namespace gemma {

EncodeRequest::EncodeRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded,
                             std::shared_ptr<const AdapterMix> adapters, EncodeParams params, OnProgress on_progress,
                             OnEmbeddings on_done)
    : Request(std::move(signal)),
      loaded_(loaded),
      adapters_(std::move(adapters)),
      params_(std::move(params)),
      on_progress_(std::move(on_progress)),
      on_done_(std::move(on_done)) {}

bool EncodeRequest::advance(const std::function<bool()>& should_stop) {
  VisionEncoder& encoder = *loaded_.encoder;
  try {
    if (!started_) {
      started_ = true;
      encoder.start(params_.pixels, params_.n_images, adapters_.get());
    }
    const bool more = encoder.advance(should_stop);
    on_progress_(encoder.progress());
    return more;
  } catch (...) {
    fail_with_current();
  }
  return false;
}

void EncodeRequest::finish(FinishReason reason) noexcept {
  const std::shared_ptr<const Error> error = error_of(reason);
  params_ = {};  // handles may stay for long, pixels are large
  on_progress_ = nullptr;
  const OnEmbeddings on_done = std::move(on_done_);
  adapters_.reset();  // what it holds belongs to this thread
  on_done(error ? std::vector<float>() : loaded_.encoder->take(), error);
}

}  // namespace gemma

#include "runtime/logits_request.h"

#include <string>
#include <utility>

#include "runtime/request_checks.h"
#include "runtime/sequence_request.h"

namespace gemma {
namespace {

// Logits of every position are wanted: steps stay short, so that cancelling does.
constexpr int kLogitsBatch = 64;

class LogitsRequest final : public SequenceRequest {
 public:
  LogitsRequest(std::shared_ptr<Signal> signal, LoadedModel& loaded, std::shared_ptr<const AdapterMix> adapters,
                LogitsParams params, OnLogits on_row, OnDone on_done)
      : SequenceRequest(std::move(signal), loaded, std::move(adapters), std::move(params.tokens),
                        std::move(params.images)),
        all_(params.all),
        on_row_(std::move(on_row)),
        on_done_(std::move(on_done)) {}

  void finish(FinishReason reason) noexcept override {
    leave_prefix(reason);  // first, so that a caller who asks sees the pages gone
    on_done_(error_of(reason));
  }

 private:
  // Of all positions logits are wanted: nothing can be left out.
  bool shares_prefix() const override { return !all_ && SequenceRequest::shares_prefix(); }
  int max_prompt_rows() const override { return all_ ? kLogitsBatch : SequenceRequest::max_prompt_rows(); }
  void want_prompt_rows(int n) override {
    if (!all_) return SequenceRequest::want_prompt_rows(n);
    for (int i = 0; i < n; ++i) wanted_.push_back({i, {}});
  }

  void take(int index, const Logits& logits) override {
    if (!is_finite_row(logits.values)) {
      throw Error(
          ErrorCode::kNonFinite, "NONFINITE",
          "logits of position " + std::to_string(n_done_ + index) + " hold NaN or infinity: the weights are damaged");
    }
    on_row_(n_done_ + index, logits.values);  // all: none was left out
    ++n_taken_;
  }

  std::optional<FinishReason> report(bool) override {
    return decoding() ? std::optional(FinishReason::kStop) : std::nullopt;
  }

  bool all_;
  OnLogits on_row_;
  OnDone on_done_;
};

}  // namespace

std::shared_ptr<SequenceRequest> make_logits_request(std::shared_ptr<Signal> signal, LoadedModel& loaded,
                                                     std::shared_ptr<const AdapterMix> adapters, LogitsParams params,
                                                     OnLogits on_row, OnDone on_done) {
  return std::make_shared<LogitsRequest>(std::move(signal), loaded, std::move(adapters), std::move(params),
                                         std::move(on_row), std::move(on_done));
}

}  // namespace gemma

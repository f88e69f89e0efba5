// How fast a step of LoRA training is, and what memory it takes. Prints one JSON object:
//
//   {"tokens":512,"counted":511,"seconds":[2.41,2.38],"gflop":561.3,"gflops":235.1,"planned_mib":310,"peak_mib":590}
//
//   training MODEL.gguf [--tokens N] [--counted N, the last ones; all but the first] [--rank N] [--threads N] [--steps N]
//            [--isa NAME] [--activations MIB]
//
// gflop counts the multiply-adds (as two) of the frozen matrices alone: once forward, once for the gradient of their
// inputs, once more for layers that are computed again. The peak is the process's, pages of the model file included.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/resource.h>
#endif

#include "base/error.h"
#include "reader/model_file.h"
#include "train/trainer.h"

using namespace gemma;

namespace {

double peak_mib() {
#if defined(__unix__) || defined(__APPLE__)
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
  return static_cast<double>(usage.ru_maxrss) / (1 << 20);
#else
  return static_cast<double>(usage.ru_maxrss) / 1024;
#endif
#else
  return 0;
#endif
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc % 2 != 0) {
    std::fprintf(stderr,
                 "usage: training MODEL [--tokens N] [--counted N] [--rank N] [--threads N] [--steps N] [--isa NAME] "
                 "[--activations MIB]\n");
    return 2;
  }
  train::TrainerOptions options;
  int n_tokens = 512;
  int n_counted = 0;
  int n_steps = 3;
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const int value = std::atoi(argv[i + 1]);
    if (name == "--tokens") n_tokens = value;
    if (name == "--counted") n_counted = value;
    if (name == "--rank") options.lora.rank = value;
    if (name == "--threads") options.n_threads = value;
    if (name == "--steps") n_steps = value;
    if (name == "--isa") options.isa = argv[i + 1];
    if (name == "--activations") options.activation_bytes = static_cast<uint64_t>(value) << 20;
  }
  if (n_counted <= 0) n_counted = n_tokens - 1;
  try {
    const ModelFile file = ModelFile::open(argv[1], {});
    const ModelConfig config = file.config();
    const auto tensors = file.decoder_tensors();
    options.max_rows = std::max(options.max_rows, n_tokens);
    train::Trainer trainer(*tensors, config, options);
    train::Example example;
    uint32_t random = 1;
    for (int i = 0; i < n_tokens; ++i) {
      random = random * 1664525u + 1013904223u;
      example.tokens.push_back(i == 0 ? 2 : static_cast<int32_t>(random % static_cast<uint32_t>(config.n_vocab)));
      example.weights.push_back(i >= std::max(1, n_tokens - n_counted) ? 1.0f : 0.0f);
    }
    const std::vector<train::MicroBatch> batch = {{example}};
    const train::TrainingPlan plan = train::plan_training(config, options, n_tokens);
    double layers = 0;
    double again = 0;
    for (int i = 0; i < config.n_layers(); ++i) {
      const LayerConfig& c = config.layers[static_cast<size_t>(i)];
      const double size =
          static_cast<double>(config.model_dim) * (2.0 * c.q_dim() + 2.0 * c.kv_dim() + 3.0 * c.ffn_dim);
      layers += size;
      if (config.n_layers() - i > plan.kept_layers) again += size;
    }
    const double head = static_cast<double>(config.model_dim) * config.n_vocab;
    const double gflop = 2e-9 * ((2 * layers + again) * n_tokens + 2 * head * n_counted);
    double best = 1e30;
    std::string seconds;
    for (int i = 0; i < n_steps; ++i) {
      const auto start = std::chrono::steady_clock::now();
      const train::StepStats stats = trainer.step(batch, 1e-4, {});
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      std::fprintf(stderr, "step %d: loss %.4f, %.2f s\n", i, stats.loss, took);
      best = std::min(best, took);
      char text[32];
      std::snprintf(text, sizeof text, "%s%.3f", i > 0 ? "," : "", took);
      seconds += text;
    }
    std::printf(
        "{\"tokens\":%d,\"counted\":%d,\"seconds\":[%s],\"gflop\":%.1f,\"gflops\":%.1f,\"kept_layers\":%d,"
        "\"planned_mib\":%.0f,\"peak_mib\":%.0f}\n",
        n_tokens, n_counted, seconds.c_str(), gflop, gflop / best, plan.kept_layers,
        static_cast<double>(plan.total()) / (1 << 20), peak_mib());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

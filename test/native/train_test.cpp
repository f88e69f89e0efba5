// Training: kernels against the scalar ones, losses and gradients against PyTorch's (test/reference/make_training.py), the
// plain forward pass and its central differences; and what must not change a bit: threads, what is computed again,
// instruction sets of products, a state that was saved.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <random>

#include "backend/cpu/kernels.h"
#include "base/large_memory.h"
#include "check.h"
#include "engine_helpers.h"
#include "model/layer_tensors.h"
#include "quant/dequantize.h"
#include "quant/quantize.h"
#include "reader/gguf_reader.h"
#include "reference_forward.h"
#include "train/adapter_parameters.h"
#include "train/trainer.h"

namespace gemma::train {
namespace {

using namespace gemma::test;

using Ids = std::vector<int32_t>;
const std::function<bool()> kNever;

struct TinyModel {
  std::shared_ptr<const GgufFile> file;
  ModelConfig config;
  std::shared_ptr<const TensorSource> tensors;

  explicit TinyModel(const std::string& name) : file(GgufFile::open(data(name))) {
    config = read_model_config(*file);
    tensors = decoder_tensors(file);
  }
};

// The sequences of make_training.py, with the index of the first token that counts.
struct Sequence {
  Ids ids;
  int answer;
};
const std::vector<Sequence>& sequences() {
  static const std::vector<Sequence> all = {
      {{2, 291, 353, 303, 293, 295, 298, 285, 332, 380, 313, 397, 1}, 3},
      {{2,   93,  371, 402, 383, 379, 335, 288, 299, 308, 374, 329, 388, 372, 388, 385, 338,
        290, 314, 293, 311, 285, 318, 290, 371, 382, 330, 375, 301, 375, 345, 397, 1},
       17},
      {{2, 115, 378, 394, 398, 371, 94, 372, 384, 373, 383, 377, 372, 397, 1}, 5},
      {{2,   291, 354, 390, 375, 327, 371, 380, 390, 286, 377, 290,
        371, 296, 375, 306, 371, 313, 293, 285, 319, 320, 397, 1},
       19}};
  return all;
}
const Sequence kChosen = {{2, 291, 310, 373, 375, 339, 354, 390, 375, 327, 325, 377, 383, 374, 298, 290, 366, 397, 1},
                          10};
const Sequence kRejected = {{2, 291, 310, 373, 375, 339, 354, 390, 375, 327, 321, 312, 315, 285, 305, 334, 351, 400, 1},
                            10};

Example example_of(const Sequence& sequence) {
  Example example;
  example.tokens = sequence.ids;
  example.weights.assign(sequence.ids.size(), 0.0f);
  std::fill(example.weights.begin() + sequence.answer, example.weights.end(), 1.0f);
  return example;
}

MicroBatch all_examples() {
  MicroBatch all;
  for (const Sequence& sequence : sequences()) all.push_back(example_of(sequence));
  return all;
}

MicroBatch pair_of_answers() {
  return {example_of(kChosen), example_of(kRejected)};
}

// Floats that an AdapterTensors points at.
struct AdapterData {
  AdapterTensors tensors;
  std::vector<std::unique_ptr<std::vector<float>>> values;

  Tensor tensor(const std::string& name, int n_rows, int n_cols, const std::function<float(int, int)>& f) {
    auto& own = *values.emplace_back(std::make_unique<std::vector<float>>());
    for (int i = 0; i < n_rows; ++i) {
      for (int j = 0; j < n_cols; ++j) own.push_back(f(i, j));
    }
    Tensor t;
    t.name = name;
    t.shape = {n_rows, n_cols};
    t.data = reinterpret_cast<const std::byte*>(own.data());
    t.bytes = own.size() * sizeof(float);
    return t;
  }
};

// pattern() of make_training.py for every parameter of a trainer with these options.
AdapterData pattern_adapter(const TinyModel& model, const TrainerOptions& options) {
  AdapterData adapter;
  const Trainer trainer(*model.tensors, model.config, options);
  int index = 0;
  for (const AdapterParameter& p : trainer.parameters()) {
    const auto target = std::find_if(kTargetMatrices.begin(), kTargetMatrices.end(),
                                     [&](const TargetMatrix& t) { return p.target == t.name; });
    AdapterMatrix& matrix =
        adapter.tensors.matrices["blk." + std::to_string(p.layer) + "." + target->tensor + ".weight"];
    (p.is_a ? matrix.a : matrix.b) = adapter.tensor(p.name, p.n_rows, p.n_cols, [&](int i, int j) {
      return static_cast<float>((i * 37 + j * 11 + index * 5) % 29 - 14) / 128;
    });
    matrix.scale = trainer.scale();
    ++index;
  }
  return adapter;
}

TrainerOptions plain_options() {
  TrainerOptions o;
  o.lora.rank = 4;
  o.lora.alpha = 8;
  o.n_threads = 2;
  return o;
}

// Keeps the adapter that the options point at.
struct PatternTrainer {
  AdapterData adapter;
  std::unique_ptr<Trainer> trainer;

  PatternTrainer(const TinyModel& model, TrainerOptions options) : adapter(pattern_adapter(model, options)) {
    options.init = &adapter.tensors;
    trainer = std::make_unique<Trainer>(*model.tensors, model.config, options);
  }
  Trainer* operator->() const { return trainer.get(); }
};

std::vector<float> flat(const std::vector<AdapterParameter>& parameters) {
  std::vector<float> all;
  for (const AdapterParameter& p : parameters) all.insert(all.end(), p.values.begin(), p.values.end());
  return all;
}

double largest(std::span<const float> x) {
  double most = 0;
  for (const float v : x) most = std::max(most, std::fabs(static_cast<double>(v)));
  return most;
}

// The elements that make_training.py keeps.
std::vector<float> kept_elements(const std::vector<AdapterParameter>& parameters) {
  std::vector<float> kept;
  for (size_t index = 0; index < parameters.size(); ++index) {
    const size_t n = parameters[index].values.size();
    for (size_t k = 0; k < 6; ++k)
      kept.push_back(parameters[index].values[(k * n / 6 + index * 7 % std::max<size_t>(1, n / 6)) % n]);
  }
  return kept;
}

std::vector<float> as_floats(const std::vector<double>& values) {
  return {values.begin(), values.end()};
}

void check_loss(double got, double want) {
  CHECK(std::fabs(got - want) <= 3e-5 * std::fabs(want));
}

// Gradients of a case of the golden data.
void check_gradients(const Trainer& trainer, const std::string& name) {
  const std::vector<AdapterParameter> gradients = trainer.gradients();
  const double most = golden_numbers("training", name, "largest").at(0);
  CHECK_CLOSE(kept_elements(gradients), as_floats(golden_numbers("training", name, "values")), 5e-5 * most);
  const std::vector<double> norms = golden_numbers("training", name, "norms");
  CHECK(norms.size() == gradients.size());
  const double largest_norm = *std::max_element(norms.begin(), norms.end());
  for (size_t i = 0; i < norms.size(); ++i) {
    double squares = 0;
    for (const float v : gradients[i].values) squares += static_cast<double>(v) * static_cast<double>(v);
    CHECK(std::fabs(std::sqrt(squares) - norms[i]) <= 5e-5 * largest_norm);
  }
}

// teacher_logits() of make_training.py; of the words of its "top" alone.
std::vector<Example> with_teacher(std::vector<Example> examples, int n_vocab, bool top) {
  int row = 0;
  for (Example& example : examples) {
    for (size_t i = 0; i < example.tokens.size(); ++i) {
      if (example.weights[i] == 0) continue;
      TeacherRow& teacher = example.teacher.emplace_back();
      teacher.target = static_cast<int>(i);
      const auto logit = [&](int word) { return static_cast<float>((row * 53 + word * 29) % 101 - 50) / 16; };
      for (int k = 0; k < (top ? 16 : n_vocab); ++k) {
        const int word = top ? (row + 7 + 27 * k) % n_vocab : k;
        if (top) teacher.ids.push_back(word);
        teacher.logits.push_back(logit(word));
      }
      ++row;
    }
  }
  return examples;
}

LossConfig distillation(float share) {
  LossConfig loss;
  loss.kind = LossConfig::Kind::kDistill;
  loss.temperature = 2;
  loss.alpha = share;
  return loss;
}

// ---------------------------------------------------------------------------------------------------------------------
// Kernels
// ---------------------------------------------------------------------------------------------------------------------

std::vector<float> random_values(std::mt19937& rng, size_t n) {
  std::vector<float> x(n);
  std::normal_distribution<float> normal;
  for (float& v : x) v = normal(rng);
  return x;
}

TEST("products of panels are the same bits in all instruction sets") {
  std::mt19937 rng(1);
  constexpr size_t kMostRows = 29;
  constexpr size_t kMostDepth = 391;
  constexpr size_t kStride = 41;
  const std::vector<float> a = random_values(rng, 3 * kMostDepth * cpu::kPanelRows);
  const std::vector<float> b = random_values(rng, kMostDepth * kStride + 64);
  const std::vector<float> before = random_values(rng, kMostRows * kStride + 7);
  for (const cpu::KernelRow& row : cpu::kernel_table()) {
    if (!row.available()) continue;
    for (const int n_rows : {1, 5, 6, 7, 12, 13, 29}) {
      for (const int n_cols : {1, 4, 7, 8, 9, 15, 16, 17, 23, 31, 32}) {
        for (const int depth : {1, 2, 67, 391}) {
          for (const bool add : {false, true}) {
            cpu::PanelProduct p;
            p.a = a.data();
            p.a_stride = kMostDepth * cpu::kPanelRows;
            p.n_rows = n_rows;
            p.b = b.data();
            p.b_stride = kStride;
            p.b_half = 19;
            p.n_cols = n_cols;
            p.depth = depth;
            p.c_stride = kStride;
            p.add = add;
            std::vector<float> got = before;
            std::vector<float> want = before;
            p.c = got.data();
            row.kernels().multiply_panels(p);
            p.c = want.data();
            cpu::kernels_ref().multiply_panels(p);
            CHECK(got == want);
          }
        }
      }
    }
  }
}

TEST("the other kernels of training give what the scalar ones do") {
  std::mt19937 rng(2);
  for (const cpu::KernelRow& row : cpu::kernel_table()) {
    if (!row.available()) continue;
    const cpu::Kernels& kernels = row.kernels();
    const cpu::Kernels& ref = cpu::kernels_ref();
    for (const int n : {1, 3, 15, 16, 17, 61}) {
      const std::vector<float> x = random_values(rng, static_cast<size_t>(n));
      CHECK(kernels.largest(x.data(), n) == *std::max_element(x.begin(), x.end()));
      std::vector<float> e = x;
      std::vector<float> e_ref = x;
      const float sum = kernels.exp_row(e.data(), n, 0.7f, 1.5f);
      const float sum_ref = ref.exp_row(e_ref.data(), n, 0.7f, 1.5f);
      CHECK_CLOSE(e, e_ref, 2e-6);
      CHECK(std::fabs(sum - sum_ref) <= 1e-5f * sum_ref);
      e = x;
      e[static_cast<size_t>(n / 2)] = std::numeric_limits<float>::quiet_NaN();
      CHECK(std::isnan(kernels.exp_row(e.data(), n, 1, 0)));
      std::vector<float> hidden(static_cast<size_t>(n), -std::numeric_limits<float>::infinity());
      CHECK(kernels.exp_row(hidden.data(), n, 1, 0) == 0);
      CHECK(kernels.largest(hidden.data(), 0) == -std::numeric_limits<float>::infinity());

      std::vector<float> gate = random_values(rng, static_cast<size_t>(n));
      gate[0] = 30;  // far outside, where the slope is 1
      const std::vector<float> up = random_values(rng, static_cast<size_t>(n));
      const std::vector<float> d = random_values(rng, static_cast<size_t>(n));
      std::vector<float> d_gate(static_cast<size_t>(n)), d_up = d_gate, d_gate_ref = d_gate, d_up_ref = d_gate;
      kernels.geglu_backward(d_gate.data(), d_up.data(), gate.data(), up.data(), d.data(), n);
      ref.geglu_backward(d_gate_ref.data(), d_up_ref.data(), gate.data(), up.data(), d.data(), n);
      CHECK_CLOSE(d_gate, d_gate_ref, 1e-5);
      CHECK_CLOSE(d_up, d_up_ref, 2e-5);
    }
  }
}

TEST("rows of weights of every type are their reference values") {
  std::mt19937 rng(3);
  const LargeMemory memory(cpu::kScratchBytes);
  for (const TensorType type : kTensorTypes) {
    constexpr int kCols = 512;
    constexpr int kRows = 37;
    const size_t bytes = row_bytes(type, kCols);
    std::vector<std::byte> weights(kRows * bytes);
    for (size_t i = 0; i < kRows; ++i) {
      const std::vector<float> row = random_values(rng, kCols);
      if (!can_quantize(type) || !quantize_row(type, row.data(), &weights[i * bytes], kCols)) {
        for (size_t j = 0; j < bytes; ++j) weights[i * bytes + j] = static_cast<std::byte>(rng() % 60);
      }
    }
    for (const cpu::KernelRow& row : cpu::kernel_table()) {
      if (!row.available()) continue;
      for (const int first : {0, 1, 20}) {
        constexpr int kUsed = 480;  // 15 panels
        constexpr size_t kStride = kRows * cpu::kPanelColumns + 3;
        std::vector<float> got(15 * kStride, 5.0f);
        std::vector<float> want = got;
        const int n_cols = type_traits(type).block_elems > 32 ? 256 : kUsed;
        const cpu::WeightRows rows = {type, weights.data(), bytes, first, kRows};
        row.kernels().load_panels(rows, n_cols, got.data(), kStride, {memory.data(), cpu::kScratchBytes});
        for (int r = first; r < kRows; ++r) {
          std::vector<float> values(kCols);
          dequantize_row(type, &weights[static_cast<size_t>(r) * bytes], values.data(), kCols);
          for (int col = 0; col < n_cols; ++col) {
            want[static_cast<size_t>(col / cpu::kPanelColumns) * kStride +
                 static_cast<size_t>((r - first) * cpu::kPanelColumns + col % cpu::kPanelColumns)] =
                values[static_cast<size_t>(col)];
          }
        }
        CHECK_CLOSE(got, want, 2e-6);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// PyTorch
// ---------------------------------------------------------------------------------------------------------------------

TEST("losses and gradients are PyTorch's, on every instruction set") {
  const TinyModel model("adapters/text-f16.gguf");
  for (const std::string& isa : model_isas()) {
    TrainerOptions o = plain_options();
    o.isa = isa;
    const auto check = [&](const std::string& name, const TrainerOptions& options,
                           const std::vector<MicroBatch>& batch) {
      const PatternTrainer trainer(model, options);
      const StepStats stats = trainer->backward(batch, kNever);
      check_loss(stats.loss, golden_numbers("training", name, "exact").at(0));
      check_loss(trainer->evaluate(batch, kNever).loss, golden_numbers("training", name, "exact").at(0));
      check_gradients(*trainer.trainer, name);
    };
    const MicroBatch all = all_examples();
    check("batch", o, {all});
    check("batch", o, {{all[0], all[1]}, {all[2], all[3]}});
    check("batch", o, {{all[3]}, {all[1]}, {all[2], all[0]}});
    TrainerOptions rslora = o;
    rslora.lora.rslora = true;
    check("rslora", rslora, {all});
    TrainerOptions distill = o;
    distill.loss = distillation(1);
    check("distill", distill, {with_teacher(all, model.config.n_vocab, false)});
    check("top", distill, {with_teacher(all, model.config.n_vocab, true)});
    distill.loss = distillation(0.25f);
    check("mix", distill, {with_teacher(all, model.config.n_vocab, false)});
    TrainerOptions dpo = o;
    dpo.loss.kind = LossConfig::Kind::kDpo;
    check("dpo", dpo, {pair_of_answers()});
  }
}

TEST("adapters after three steps are those of torch's optimisers") {
  const TinyModel model("adapters/text-f16.gguf");
  struct {
    const char* name;
    OptimizerConfig optimizer;
    double rate;
    double bound;
  } cases[] = {
      {"adamw", {OptimizerConfig::Kind::kAdamW, 0.9f, 0.999f, 1e-8f, 0, 0, 0}, 1e-3, 0.02 * 3 * 1e-3},
      {"sgd", {OptimizerConfig::Kind::kSgd, 0, 0, 1e-8f, 0.01f, 0.5f, 0}, 0.02, 2e-5},
      {"adamw_decay_clip", {OptimizerConfig::Kind::kAdamW, 0.9f, 0.99f, 1e-6f, 0.1f, 0, 0.5f}, 3e-3, 0.02 * 3 * 3e-3},
  };
  for (const auto& c : cases) {
    TrainerOptions o = plain_options();
    o.optimizer = c.optimizer;
    const PatternTrainer trainer(model, o);
    const std::vector<MicroBatch> batch = {all_examples()};
    const std::vector<double> losses = golden_numbers("training", c.name, "loss");
    for (int step = 0; step < 3; ++step)
      CHECK(std::fabs(trainer->step(batch, c.rate, kNever).loss - losses.at(static_cast<size_t>(step))) < 1e-3);
    CHECK(trainer->steps_done() == 3);
    CHECK(std::fabs(trainer->evaluate(batch, kNever).loss - losses.at(3)) < 1e-3);
    CHECK_CLOSE(kept_elements(trainer->parameters()), as_floats(golden_numbers("training", c.name, "values")), c.bound);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The plain forward pass
// ---------------------------------------------------------------------------------------------------------------------

double reference_loss(const ModelConfig& config, const TensorSource& tensors, const MicroBatch& batch) {
  double sum = 0;
  double weight = 0;
  const size_t n_vocab = static_cast<size_t>(config.n_vocab);
  for (const Example& example : batch) {
    std::vector<ReferenceImage> images;
    for (const ImageRows& image : example.images) images.push_back({image.first, image.embeddings});
    const std::vector<float> logits = reference_logits(config, tensors, example.tokens, images);
    for (size_t i = 1; i < example.tokens.size(); ++i) {
      const std::span<const float> row = std::span(logits).subspan((i - 1) * n_vocab, n_vocab);
      const double most = static_cast<double>(*std::max_element(row.begin(), row.end()));
      double total = 0;
      for (const float logit : row) total += std::exp(static_cast<double>(logit) - most);
      const double log_p = static_cast<double>(row[static_cast<size_t>(example.tokens[i])]) - most - std::log(total);
      sum -= static_cast<double>(example.weights[i]) * log_p;
      weight += static_cast<double>(example.weights[i]);
    }
  }
  return sum / weight;
}

// The model's tensors with W + scale * B A in place of each trained W, in float32.
class Merged {
 public:
  Merged(const TinyModel& model, const std::vector<AdapterParameter>& parameters, std::span<const float> values,
         float scale) {
    size_t offset = 0;
    std::map<std::string, std::pair<std::span<const float>, std::span<const float>>> pairs;
    int rank = 0;
    for (const AdapterParameter& p : parameters) {
      const auto target = std::find_if(kTargetMatrices.begin(), kTargetMatrices.end(),
                                       [&](const TargetMatrix& t) { return p.target == t.name; });
      auto& pair = pairs["blk." + std::to_string(p.layer) + "." + target->tensor + ".weight"];
      (p.is_a ? pair.first : pair.second) = values.subspan(offset, p.values.size());
      offset += p.values.size();
      if (p.is_a) rank = p.n_rows;
    }
    for (const ExpectedTensor& expected : expected_tensors(model.config)) {
      const Tensor* tensor = model.tensors->find(expected.name);
      const auto pair = pairs.find(expected.name);
      if (pair == pairs.end()) {
        source_.add(expected.name, *tensor);
        continue;
      }
      const size_t n_out = static_cast<size_t>(tensor->shape[0]);
      const size_t n_in = static_cast<size_t>(tensor->shape[1]);
      auto& merged = *values_.emplace_back(std::make_unique<std::vector<float>>(n_out * n_in));
      for (size_t i = 0; i < n_out; ++i) {
        dequantize_row(tensor->type, tensor->data + i * row_bytes(tensor->type, tensor->shape[1]), &merged[i * n_in],
                       tensor->shape[1]);
        for (size_t j = 0; j < n_in; ++j) {
          double sum = 0;
          for (size_t k = 0; k < static_cast<size_t>(rank); ++k) {
            sum += static_cast<double>(pair->second.second[i * static_cast<size_t>(rank) + k]) *
                   static_cast<double>(pair->second.first[k * n_in + j]);
          }
          merged[i * n_in + j] += scale * static_cast<float>(sum);
        }
      }
      Tensor& own = *tensors_.emplace_back(std::make_unique<Tensor>(*tensor));
      own.type = TensorType::kF32;
      own.data = reinterpret_cast<const std::byte*>(merged.data());
      own.bytes = merged.size() * sizeof(float);
      source_.add(expected.name, own);
    }
  }
  const TensorSource& source() const { return source_; }

 private:
  TensorSource source_;
  std::vector<std::unique_ptr<std::vector<float>>> values_;
  std::vector<std::unique_ptr<Tensor>> tensors_;
};

std::vector<float> random_embeddings(int n, int dim) {
  std::mt19937 rng(static_cast<unsigned>(n));
  return random_values(rng, static_cast<size_t>(n * dim));
}

// Longer than the window of local layers; tokens that count here and there with different weights.
Example some_example(int n, int seed) {
  Example example;
  example.tokens = some_tokens(n, seed);
  for (int i = 0; i < n; ++i)
    example.weights.push_back(i > 2 && i % 3 != 0 ? 0.25f * static_cast<float>(1 + i % 4) : 0.0f);
  return example;
}

// A fresh adapter changes nothing, as B is zero. With another the loss is that of merged weights, and gradients are its
// central differences, in a random direction of each matrix of the layers.
TEST("loss and central differences of the plain forward pass, for every kind of weights and with pictures") {
  struct {
    const char* file;
    bool images;
    bool alone;
  } cases[] = {{"adapters/text-f16.gguf", false, true}, {"text-a-q4_0.gguf", false, false},
               {"text-k-mix.gguf", false, false},       {"mm-a-f16.gguf", true, false},
               {"types/floats.gguf", false, false},     {"types/q8_0.gguf", false, false},
               {"types/q6_k.gguf", false, false},       {"types/mxfp4.gguf", false, false}};
  for (const auto& c : cases) {
    const TinyModel model(c.file);
    MicroBatch batch = {some_example(29, 3), some_example(13, 4)};
    if (c.images) {
      batch[0].images = {{4, 11, random_embeddings(11, model.config.model_dim)},
                         {15, 3, random_embeddings(3, model.config.model_dim)}};
      for (int i = 4; i < 18; ++i) batch[0].weights[static_cast<size_t>(i)] = 0;
      batch[0].weights[18] = 1.5f;  // predicted by a picture's last row
    }
    const TrainerOptions o = plain_options();
    Trainer fresh(*model.tensors, model.config, o);
    const std::vector<MicroBatch> batches = {batch};
    check_loss(fresh.evaluate(batches, kNever).loss, reference_loss(model.config, *model.tensors, batch));

    const PatternTrainer trainer(model, o);
    check_loss(trainer->evaluate(batches, kNever, /*use_adapter=*/false).loss,
               reference_loss(model.config, *model.tensors, batch));
    const std::vector<AdapterParameter> parameters = trainer->parameters();
    const std::vector<float> values = flat(parameters);
    const double loss = trainer->backward(batches, kNever).loss;
    check_loss(loss, reference_loss(model.config, Merged(model, parameters, values, trainer->scale()).source(), batch));
    const std::vector<float> gradient = flat(trainer->gradients());
    std::mt19937 rng(5);
    // In the tiniest model those of each kind of matrix alone, else of all together.
    for (int kind = 0; kind < (c.alone ? 2 * kTargets : 1); ++kind) {
      const auto is_moved = [&](const AdapterParameter& p) {
        return !c.alone ||
               (p.target == kTargetMatrices[static_cast<size_t>(kind / 2)].name && p.is_a == (kind % 2 == 0));
      };
      // Along the gradient, disturbed.
      std::vector<double> direction(values.size());
      double length = 0;
      double slope = 0;
      size_t offset = 0;
      for (const AdapterParameter& p : parameters) {
        for (size_t i = offset; i < offset + p.values.size(); ++i) {
          if (!is_moved(p)) continue;
          direction[i] = static_cast<double>(gradient[i]) * (0.5 + static_cast<double>(rng() % 1000) / 1000);
          length += direction[i] * direction[i];
        }
        offset += p.values.size();
      }
      length = std::sqrt(length);
      const double step = 1e-2 / std::max(1.0, length / 4);
      const auto moved_loss = [&](double by) {
        std::vector<float> moved = values;
        for (size_t i = 0; i < moved.size(); ++i) moved[i] += static_cast<float>(by * direction[i] / length);
        return reference_loss(model.config, Merged(model, parameters, moved, trainer->scale()).source(), batch);
      };
      for (size_t i = 0; i < values.size(); ++i) slope += static_cast<double>(gradient[i]) * direction[i] / length;
      // Of the fourth order.
      const double difference =
          (8 * (moved_loss(step) - moved_loss(-step)) - (moved_loss(2 * step) - moved_loss(-2 * step))) / (12 * step);
      CHECK(std::fabs(difference - slope) <= 1e-3 * std::fabs(slope) + 2e-4);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// What must not change
// ---------------------------------------------------------------------------------------------------------------------

TEST("threads, what is computed again and memory that is there already change no bit") {
  const TinyModel model("text-k-mix.gguf");
  const std::vector<MicroBatch> batch = {{some_example(131, 1), some_example(17, 2)}, {some_example(5, 3)}};
  TrainerOptions o = plain_options();
  o.lora.dropout = 0.1f;
  const auto after = [&](int n_threads, uint64_t activation_bytes, bool used) {
    TrainerOptions own = o;
    own.n_threads = n_threads;
    own.activation_bytes = activation_bytes;
    const PatternTrainer trainer(model, own);
    const std::vector<MicroBatch> larger = {{some_example(201, 9)}};
    if (used) trainer->backward(larger, kNever);
    trainer->step(batch, 1e-3, kNever);
    trainer->backward(batch, kNever);
    std::vector<float> all = flat(trainer->parameters());
    const std::vector<float> gradients = flat(trainer->gradients());
    all.insert(all.end(), gradients.begin(), gradients.end());
    return all;
  };
  const std::vector<float> want = after(1, 1 << 30, false);
  CHECK(largest(want) > 0);
  CHECK(after(3, 1 << 30, false) == want);
  CHECK(after(2, 0, false) == want);
  CHECK(after(2, 3 << 20, true) == want);
  const TrainingPlan all = plan_training(model.config, o, 200);
  TrainerOptions less = o;
  less.activation_bytes = all.activations - 1;
  const TrainingPlan fewer = plan_training(model.config, less, 200);
  CHECK(all.kept_layers == model.config.n_layers() && fewer.kept_layers == all.kept_layers - 1);
  CHECK(fewer.total() < all.total());
}

TEST("a training goes on to the same bits from a saved state, with dropout and any optimiser") {
  const TinyModel model("adapters/text-f16.gguf");
  for (const auto kind : {OptimizerConfig::Kind::kAdamW, OptimizerConfig::Kind::kSgd}) {
    TrainerOptions o = plain_options();
    o.lora.dropout = 0.25f;
    o.lora.seed = 7;
    o.optimizer.kind = kind;
    o.optimizer.momentum = kind == OptimizerConfig::Kind::kSgd ? 0.5f : 0;
    Trainer whole(*model.tensors, model.config, o);
    const std::vector<MicroBatch> batch = {all_examples()};
    std::vector<std::vector<std::byte>> states = {whole.save_state()};
    std::vector<double> losses;
    for (int i = 0; i < 5; ++i) {
      losses.push_back(whole.step(batch, 1e-2, kNever).loss);
      states.push_back(whole.save_state());
    }
    CHECK(losses.back() < losses.front());
    for (size_t from = 0; from < 5; ++from) {
      Trainer rest(*model.tensors, model.config, o);
      rest.load_state(states[from]);
      CHECK(rest.steps_done() == static_cast<int64_t>(from));
      for (size_t i = from; i < 5; ++i) CHECK(rest.step(batch, 1e-2, kNever).loss == losses[i]);
      CHECK(rest.save_state() == states.back());
    }
    std::vector<std::byte> state = states.back();
    for (const size_t at : {size_t{0}, size_t{9}, state.size() / 2, state.size() - 1}) {
      std::vector<std::byte> damaged = state;
      damaged[at] ^= std::byte{4};
      CHECK_THROWS(kInvalidArgument, "BAD_STATE", whole.load_state(damaged));
    }
    for (size_t n : {size_t{0}, size_t{23}, size_t{100}, state.size() - 1})
      CHECK_THROWS(kInvalidArgument, "BAD_STATE", whole.load_state(std::span(state).first(n)));
    o.lora.alpha = 3;
    Trainer other(*model.tensors, model.config, o);
    CHECK_THROWS(kInvalidArgument, "BAD_STATE", other.load_state(state));
    CHECK(whole.save_state() == state);
  }
}

TEST("dropout is another in each step, the gradients of it are those of its own mask") {
  const TinyModel model("adapters/text-f16.gguf");
  TrainerOptions o = plain_options();
  o.lora.dropout = 0.5f;
  const std::vector<MicroBatch> batch = {all_examples()};
  const PatternTrainer trainer(model, o);
  const double first = trainer->backward(batch, kNever).loss;
  CHECK(trainer->backward(batch, kNever).loss == first);
  const std::vector<float> values = flat(trainer->parameters());
  const std::vector<float> gradient = flat(trainer->gradients());
  CHECK(trainer->evaluate(batch, kNever).loss == PatternTrainer(model, plain_options())->evaluate(batch, kNever).loss);
  // Small steps along the gradient: the loss under the same mask falls by as much as the gradient says. SGD moves.
  o.optimizer.kind = OptimizerConfig::Kind::kSgd;
  o.optimizer.weight_decay = 0;
  double squares = 0;
  for (const float g : gradient) squares += static_cast<double>(g) * static_cast<double>(g);
  AdapterData moved = pattern_adapter(model, o);
  const double rate = 1e-4;
  size_t offset = 0;
  for (const AdapterParameter& p : trainer->parameters()) {
    for (auto& [name, matrix] : moved.tensors.matrices) {
      const std::optional<Tensor>& t = p.is_a ? matrix.a : matrix.b;
      if (t->name != p.name) continue;
      float* own = const_cast<float*>(reinterpret_cast<const float*>(t->data));
      for (size_t i = 0; i < p.values.size(); ++i) own[i] -= static_cast<float>(rate) * gradient[offset + i];
    }
    offset += p.values.size();
  }
  o.init = &moved.tensors;
  Trainer after(*model.tensors, model.config, o);
  const double fall = first - after.backward(batch, kNever).loss;
  CHECK(std::fabs(fall - rate * squares) < 0.1 * rate * squares);
  CHECK(trainer->step(batch, 0, kNever).loss == first);
  CHECK(trainer->backward(batch, kNever).loss != first);
}

TEST("a subset of matrices and layers has the gradients that it has among all") {
  const TinyModel model("adapters/text-f16.gguf");
  const std::vector<MicroBatch> batch = {all_examples()};
  // With B zero other matrices change nothing.
  TrainerOptions o = plain_options();
  Trainer all(*model.tensors, model.config, o);
  all.backward(batch, kNever);
  const std::vector<AdapterParameter> want = all.gradients();
  const std::vector<AdapterParameter> initial = all.parameters();
  o.lora.layers = {2, 5};
  o.lora.targets = {"v_proj", "down_proj"};
  AdapterData same;
  const Trainer shapes(*model.tensors, model.config, o);
  CHECK(shapes.parameters().size() == 8);
  for (const AdapterParameter& p : shapes.parameters()) {
    const auto from = std::find_if(initial.begin(), initial.end(), [&](const auto& q) { return q.name == p.name; });
    AdapterMatrix& matrix =
        same.tensors
            .matrices["blk." + std::to_string(p.layer) + (p.target == "v_proj" ? ".attn_v" : ".ffn_down") + ".weight"];
    (p.is_a ? matrix.a : matrix.b) = same.tensor(
        p.name, p.n_rows, p.n_cols, [&](int i, int j) { return from->values[static_cast<size_t>(i * p.n_cols + j)]; });
    matrix.scale = shapes.scale();
  }
  o.init = &same.tensors;
  Trainer some(*model.tensors, model.config, o);
  some.backward(batch, kNever);
  for (const AdapterParameter& p : some.gradients()) {
    const auto among = std::find_if(want.begin(), want.end(), [&](const auto& q) { return q.name == p.name; });
    CHECK_CLOSE(p.values, among->values, 2e-5 * std::max(1.0, largest(among->values)));
    CHECK(p.is_a || largest(p.values) > 0);
  }
}

TEST("references of DPO that examples bring count as those that are computed") {
  const TinyModel model("adapters/text-f16.gguf");
  TrainerOptions o = plain_options();
  o.loss.kind = LossConfig::Kind::kDpo;
  const PatternTrainer trainer(model, o);
  std::vector<MicroBatch> batch = {pair_of_answers()};
  const StepStats computed = trainer->backward(batch, kNever);
  const EvalStats reference = trainer->evaluate(batch, kNever, /*use_adapter=*/false);
  CHECK(std::fabs(reference.loss - std::log(2)) < 1e-9 && reference.reward_accuracy == 0);
  batch[0][0].reference_log_prob = reference.log_probs.at(0);
  batch[0][1].reference_log_prob = reference.log_probs.at(1);
  CHECK(trainer->backward(batch, kNever).loss == computed.loss);
  batch[0][1].reference_log_prob = reference.log_probs.at(1) - 1;
  CHECK(std::fabs(trainer->backward(batch, kNever).reward_margin - (computed.reward_margin - 0.1)) < 1e-6);
}

// ---------------------------------------------------------------------------------------------------------------------
// Errors
// ---------------------------------------------------------------------------------------------------------------------

TEST("bad options are refused") {
  const TinyModel model("adapters/text-f16.gguf");
  const auto refused = [&](const std::function<void(TrainerOptions&)>& change) {
    TrainerOptions o = plain_options();
    change(o);
    CHECK_THROWS(kInvalidArgument, "TRAINING_OPTION", Trainer(*model.tensors, model.config, o));
    CHECK_THROWS(kInvalidArgument, "TRAINING_OPTION", plan_training(model.config, o, 7);
                 Trainer(*model.tensors, model.config, o));
  };
  refused([](TrainerOptions& o) { o.lora.rank = 0; });
  refused([](TrainerOptions& o) { o.lora.alpha = NAN; });
  refused([](TrainerOptions& o) { o.lora.dropout = 1; });
  refused([](TrainerOptions& o) { o.lora.targets = {"q_proj", "lm_head"}; });
  refused([](TrainerOptions& o) { o.lora.layers = {7}; });
  refused([](TrainerOptions& o) { o.lora.layers = {-1}; });
  refused([](TrainerOptions& o) { o.optimizer.beta2 = 1; });
  refused([](TrainerOptions& o) { o.optimizer.epsilon = 0; });
  refused([](TrainerOptions& o) { o.optimizer.clip = -1; });
  refused([](TrainerOptions& o) { o.loss.temperature = 0; });
  refused([](TrainerOptions& o) { o.loss.beta = INFINITY; });
  TrainerOptions o = plain_options();
  o.isa = "sse9";
  CHECK_THROWS(kBackendUnavailable, "ISA", Trainer(*model.tensors, model.config, o));
  const TinyModel encoder("embedding-f16.gguf");
  CHECK_THROWS(kUnsupportedModel, "ENCODER", Trainer(*encoder.tensors, encoder.config, plain_options()));
}

TEST("an adapter to start from that does not fit is refused") {
  const TinyModel model("adapters/text-f16.gguf");
  const auto refused = [&](const char* detail, const std::function<void(AdapterTensors&)>& change) {
    TrainerOptions o = plain_options();
    AdapterData adapter = pattern_adapter(model, o);
    change(adapter.tensors);
    o.init = &adapter.tensors;
    CHECK_THROWS(kAdapterInvalid, detail, Trainer(*model.tensors, model.config, o));
  };
  refused("MISSING_TENSOR", [](AdapterTensors& a) { a.matrices.erase("blk.3.attn_q.weight"); });
  refused("MISSING_TENSOR", [](AdapterTensors& a) { a.matrices["blk.3.attn_q.weight"].b.reset(); });
  refused("BAD_NAME", [](AdapterTensors& a) { a.matrices["token_embd.weight"] = a.matrices["blk.3.attn_q.weight"]; });
  refused("BAD_SCALE", [](AdapterTensors& a) { a.matrices["blk.3.attn_q.weight"].scale = 1; });
  refused("BAD_RANK", [](AdapterTensors& a) { a.matrices["blk.3.attn_q.weight"].a->shape[0] = 3; });
  refused("UNSUPPORTED",
          [](AdapterTensors& a) { a.matrices["blk.3.attn_q.weight"].magnitude = a.matrices["blk.3.attn_q.weight"].a; });
  refused("NONFINITE", [](AdapterTensors& a) {
    const_cast<float*>(reinterpret_cast<const float*>(a.matrices["blk.3.attn_q.weight"].a->data))[5] = NAN;
  });
}

TEST("bad examples are refused, and nothing is changed by a step that fails") {
  const TinyModel model("adapters/text-f16.gguf");
  TrainerOptions o = plain_options();
  o.max_rows = 60;
  const PatternTrainer trainer(model, o);
  const std::vector<std::byte> before = trainer->save_state();
  const auto refused = [&](const char* detail, const std::function<void(MicroBatch&)>& change) {
    std::vector<MicroBatch> batch = {{example_of(sequences()[0]), example_of(sequences()[2])}};
    change(batch[0]);
    CHECK_THROWS(kInvalidArgument, detail, trainer->step(batch, 1e-3, kNever));
  };
  refused("BAD_EXAMPLE", [](MicroBatch& b) { b[1] = Example(); });
  refused("BAD_EXAMPLE", [](MicroBatch& b) { b[1].tokens[3] = 448; });
  refused("BAD_EXAMPLE", [](MicroBatch& b) { b[1].tokens[3] = -1; });
  refused("BAD_EXAMPLE", [](MicroBatch& b) { b[1].weights.pop_back(); });
  refused("BAD_EXAMPLE", [](MicroBatch& b) { b[1].weights[4] = -1; });
  refused("BAD_EXAMPLE", [](MicroBatch& b) { b[1].weights[4] = NAN; });
  refused("BAD_EXAMPLE", [](MicroBatch& b) { b[0].weights[0] = 1; });
  refused("BAD_EXAMPLE", [](MicroBatch& b) { b.push_back(example_of(sequences()[1])); });  // 61 rows
  refused("BAD_EXAMPLE", [](MicroBatch& b) { b[0].images = {{11, 3, std::vector<float>(96)}}; });
  refused("BAD_EXAMPLE", [](MicroBatch& b) { b[0].images = {{1, 1, std::vector<float>(31)}}; });
  refused("BAD_EXAMPLE", [](MicroBatch& b) { b[0].images = {{4, 1, std::vector<float>(32)}}; });
  refused("NO_TARGET", [](MicroBatch& b) {
    for (Example& example : b) std::fill(example.weights.begin(), example.weights.end(), 0.0f);
  });
  refused("NO_TARGET", [](MicroBatch& b) { b.clear(); });
  TrainerOptions dpo = o;
  dpo.loss.kind = LossConfig::Kind::kDpo;
  Trainer pairs(*model.tensors, model.config, dpo);
  const std::vector<MicroBatch> odd = {{example_of(kChosen)}};
  CHECK_THROWS(kInvalidArgument, "BAD_EXAMPLE", pairs.step(odd, 1e-3, kNever));
  TrainerOptions distill = o;
  distill.loss = distillation(1);
  Trainer pupil(*model.tensors, model.config, distill);
  for (const int fault : {0, 1, 2, 3, 4}) {
    std::vector<MicroBatch> batch = {with_teacher({example_of(sequences()[0])}, 448, true)};
    TeacherRow& row = batch[0][0].teacher[2];
    if (fault == 0) batch[0][0].teacher.pop_back();
    if (fault == 1) row.ids[3] = row.ids[4];
    if (fault == 2) row.ids[3] = 448;
    if (fault == 3) row.logits[3] = NAN;
    if (fault == 4) row.ids.clear();
    CHECK_THROWS(kInvalidArgument, "BAD_EXAMPLE", pupil.step(batch, 1e-3, kNever));
  }
  CHECK(trainer->save_state() == before);
  const std::vector<MicroBatch> good = {{example_of(sequences()[0])}};
  CHECK_THROWS(kInvalidArgument, "TRAINING_OPTION", trainer->step(good, NAN, kNever));
  for (const int n_asked : {1, 4, 15, 27}) {
    int asked = 0;
    CHECK_THROWS(kDisposed, "CANCELLED", trainer->step(good, 1e-3, [&] { return ++asked == n_asked; }));
    CHECK(trainer->save_state() == before);
  }
}

TEST("a loss that is not finite is an error, and the adapter stays as it was") {
  const TinyModel model("adapters/text-f16.gguf");
  TrainerOptions o = plain_options();
  o.optimizer.kind = OptimizerConfig::Kind::kSgd;
  Trainer trainer(*model.tensors, model.config, o);
  const std::vector<MicroBatch> batch = {all_examples()};
  trainer.step(batch, 1e30, kNever);
  std::vector<std::byte> before;
  bool failed = false;
  for (int i = 0; i < 3 && !failed; ++i) {
    before = trainer.save_state();
    try {
      trainer.step(batch, 1e30, kNever);
    } catch (const Error& error) {
      failed = error.code() == ErrorCode::kNonFinite;
    }
  }
  CHECK(failed);
  CHECK(trainer.save_state() == before);
}

}  // namespace
}  // namespace gemma::train

TEST_MAIN

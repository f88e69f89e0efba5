// Quantisers against ggml's (libggml-base of llama.cpp, October 2026), which were run on the same rows: bytes where the
// arithmetic is fixed, errors where there is a search. And which tensor gets which type.
#include "quant/quantize.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/hash.h"
#include "check.h"
#include "quant/dequantize.h"
#include "runtime/merge_file.h"
#include "runtime/quantize_file.h"
#include "runtime/quantize_types.h"

using namespace gemma;

namespace {

constexpr int64_t kRow = 1024;
constexpr int64_t kRows = 64;
constexpr int64_t kValues = kRow * kRows;

// Rows of weights as they are met: many small, few large, with zeros, signs and exponents of all kinds. Exact on every
// machine.
inline std::vector<float> make_rows(int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  uint64_t state = 1;
  const auto next = [&] { return state = mix_bits(state + kGoldenRatio); };
  for (size_t i = 0; i < x.size(); ++i) {
    int sum = 0;
    for (int k = 0; k < 4; ++k) sum += static_cast<int>(next() >> 48) - 32768;
    float value = static_cast<float>(sum) * 0x1p-20f;
    if (next() % 50 == 0) value *= 4;
    const size_t block = i / 256;
    if (block % 7 == 3) value = value < 0 ? -value : value;
    if (block % 11 == 5) value *= 0x1p-9f;
    if (block % 13 == 7) value = i % 3 == 0 ? value : 0;
    if (block % 17 == 9) value = 0;
    x[i] = value;
  }
  return x;
}

std::vector<float> make_importance() {
  std::vector<float> importance(static_cast<size_t>(kRow));
  for (size_t i = 0; i < importance.size(); ++i) importance[i] = static_cast<float>(1 + (i * 2654435761u >> 20) % 97);
  return importance;
}

std::vector<std::byte> quantized(TensorType type, const std::vector<float>& x, const float* importance) {
  const size_t row = row_bytes(type, kRow);
  std::vector<std::byte> blocks(row * static_cast<size_t>(kRows));
  for (int64_t r = 0; r < kRows; ++r)
    CHECK(quantize_row(type, x.data() + r * kRow, blocks.data() + static_cast<size_t>(r) * row, kRow, importance));
  return blocks;
}

// The sum of the squares of errors, each times its column's importance.
double error_of(TensorType type, const std::vector<std::byte>& blocks, const std::vector<float>& x,
                const float* importance) {
  std::vector<float> values(x.size());
  dequantize_row(type, blocks.data(), values.data(), kValues);
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double error = static_cast<double>(values[i]) - static_cast<double>(x[i]);
    sum += error * error * (importance == nullptr ? 1.0 : static_cast<double>(importance[i % kRow]));
  }
  return sum;
}

TEST("fixed types: the bytes of ggml") {
  struct Golden {
    TensorType type;
    uint64_t hash;
  };
  const Golden goldens[] = {{TensorType::kQ8_0, 0x7d596ca265e39d88},
                            {TensorType::kQ4_0, 0x822434df41244069},
                            {TensorType::kQ4_1, 0x4ccfd8c2e0c6d85f},
                            {TensorType::kQ5_0, 0x1ff81eb41b62b0e6},
                            {TensorType::kQ5_1, 0x17115af9778da6bd}};
  const std::vector<float> x = make_rows(kValues);
  for (const Golden& golden : goldens) CHECK(hash_bytes(0, quantized(golden.type, x, nullptr)) == golden.hash);
}

TEST("searched types: errors no larger than those of ggml") {
  struct Golden {
    TensorType type;
    double plain;  // 0: fixed
    double weighted;
  };
  const Golden goldens[] = {{TensorType::kQ4_0, 0, 46.3368},        {TensorType::kQ4_1, 0, 22.9311},
                            {TensorType::kQ5_0, 0, 11.8827},        {TensorType::kQ5_1, 0, 5.32985},
                            {TensorType::kQ4_K, 0.524875, 23.9669}, {TensorType::kQ5_K, 0.135216, 6.19706},
                            {TensorType::kQ6_K, 0.040115, 1.7954},  {TensorType::kIQ4_XS, 0.727709, 33.0729},
                            {TensorType::kIQ4_NL, 0.70991, 31.8931}};
  const std::vector<float> x = make_rows(kValues);
  const std::vector<float> importance = make_importance();
  for (const Golden& golden : goldens) {
    if (golden.plain > 0) CHECK(error_of(golden.type, quantized(golden.type, x, nullptr), x, nullptr) <= golden.plain);
    const double error = error_of(golden.type, quantized(golden.type, x, importance.data()), x, importance.data());
    CHECK(error <= golden.weighted);
    CHECK(error >= 0.5 * golden.weighted);
  }
}

// The sums have one order on all machines.
TEST("searched types: the same bytes everywhere") {
  const std::vector<float> x = make_rows(kValues);
  CHECK(hash_bytes(0, quantized(TensorType::kQ4_K, x, nullptr)) == 0x1260e1064cff1500);
  CHECK(hash_bytes(0, quantized(TensorType::kQ6_K, x, nullptr)) == 0xcafe5da1da6cabbf);
  CHECK(hash_bytes(0, quantized(TensorType::kIQ4_XS, x, make_importance().data())) == 0x0bb2b4b3cab0f1ef);
}

TEST("what no block holds is refused, what is tiny or zero is stored") {
  for (const TensorType type : kTensorTypes) {
    if (!can_quantize(type)) continue;
    std::vector<float> x(256, 0.5f);
    std::vector<std::byte> blocks(1024);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
      x[77] = bad;
      CHECK(!quantize_row(type, x.data(), blocks.data(), 256));
    }
    if (type != TensorType::kF32 && type != TensorType::kBF16) {
      x[77] = 3e38f;
      CHECK(!quantize_row(type, x.data(), blocks.data(), 256));
    }
    for (const float size : {0.0f, 1e-40f, 1e-30f, 1e-12f}) {
      for (size_t i = 0; i < x.size(); ++i) x[i] = size * static_cast<float>(static_cast<int>(i % 5) - 2);
      const std::vector<float> nothing(256, 0.0f);
      for (const float* importance : {static_cast<const float*>(nullptr), nothing.data()}) {
        CHECK(quantize_row(type, x.data(), blocks.data(), 256, importance));
        std::vector<float> values(256);
        dequantize_row(type, blocks.data(), values.data(), 256);
        for (const float value : values) CHECK(std::fabs(value) <= 1e-6f);
      }
    }
  }
}

// ---- types of tensors

std::vector<TensorToPlan> gemma_tensors(int n_layers, int64_t dim) {
  std::vector<TensorToPlan> all = {{"token_embd.weight", TensorType::kF16, {512, dim}},
                                   {"output_norm.weight", TensorType::kF32, {dim}}};
  for (int i = 0; i < n_layers; ++i) {
    const std::string blk = "blk." + std::to_string(i) + ".";
    all.push_back({blk + "attn_v.weight", TensorType::kF16, {256, dim}});
    all.push_back({blk + "attn_q.weight", TensorType::kF16, {1024, dim}});
    all.push_back({blk + "ffn_down.weight", TensorType::kF16, {dim, 2048}});
    all.push_back({blk + "ffn_norm.weight", TensorType::kF32, {dim}});
  }
  return all;
}

TensorType type_of(const std::vector<TensorToPlan>& tensors, const std::vector<PlannedType>& plan,
                   const std::string& name) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].name == name) return plan[i].type;
  }
  test::fail(__FILE__, __LINE__, "no tensor " + name);
}

TEST("types of a mixed file are those of llama.cpp") {
  const std::vector<TensorToPlan> tensors = gemma_tensors(18, 512);
  const auto plan = plan_types(tensors, {}, *find_file_quantization("Q4_K_M"), {});
  const auto type = [&](const std::string& name) { return type_of(tensors, plan, name); };
  CHECK(type("token_embd.weight") == TensorType::kQ6_K);  // it is the output matrix too
  CHECK(type("output_norm.weight") == TensorType::kF32);
  CHECK(type("blk.0.attn_q.weight") == TensorType::kQ4_K);
  CHECK(type("blk.3.ffn_norm.weight") == TensorType::kF32);
  for (int i = 0; i < 18; ++i) {
    const bool more = i < 2 || i >= 15 || i % 3 == 1;  // (i - 2) % 3 == 2
    const TensorType want = more ? TensorType::kQ6_K : TensorType::kQ4_K;
    CHECK(type("blk." + std::to_string(i) + ".attn_v.weight") == want);
    CHECK(type("blk." + std::to_string(i) + ".ffn_down.weight") == want);
  }
}

TEST("rows that do not fit get smaller blocks, and the plan says so") {
  const std::vector<TensorToPlan> tensors = gemma_tensors(18, 640);
  const auto plan = plan_types(tensors, {}, *find_file_quantization("q4_k_m"), {});
  CHECK(type_of(tensors, plan, "token_embd.weight") == TensorType::kQ8_0);
  CHECK(type_of(tensors, plan, "blk.0.attn_q.weight") == TensorType::kQ5_0);
  CHECK(type_of(tensors, plan, "blk.0.attn_v.weight") == TensorType::kQ8_0);
  CHECK(type_of(tensors, plan, "blk.2.ffn_down.weight") == TensorType::kQ4_K);
  CHECK(plan[3].wanted == TensorType::kQ4_K && plan[3].type == TensorType::kQ5_0);
  const std::vector<TensorToPlan> odd = {{"blk.0.attn_q.weight", TensorType::kF32, {4, 40}}};
  CHECK(plan_types(odd, {}, *find_file_quantization("q8_0"), {})[0].type == TensorType::kF16);
}

TEST("overrides: the first that names a tensor counts, one that names none is an error") {
  const std::vector<TensorToPlan> tensors = gemma_tensors(2, 512);
  const FileQuantization& q4_0 = *find_file_quantization("q4_0");
  const std::vector<TypeOverride> overrides = {{"blk.1.*_down", TensorType::kQ8_0}, {"*ffn_down*", TensorType::kF16}};
  const auto plan = plan_types(tensors, {}, q4_0, overrides);
  CHECK(type_of(tensors, plan, "blk.0.ffn_down.weight") == TensorType::kF16);
  CHECK(type_of(tensors, plan, "blk.1.ffn_down.weight") == TensorType::kQ8_0);
  CHECK(type_of(tensors, plan, "blk.1.attn_q.weight") == TensorType::kQ4_0);
  for (const char* pattern : {"blk.2.*", "output_norm", "*_norm*", "", "blk.?"}) {
    const std::vector<TypeOverride> wrong = {{pattern, TensorType::kF16}};
    CHECK_THROWS(kInvalidArgument, "NO_SUCH_TENSOR", plan_types(tensors, {}, q4_0, wrong));
  }
  CHECK(find_file_quantization("q9") == nullptr);
  CHECK(!find_quantizable_type("q2_k") && find_quantizable_type("Q6_K") == TensorType::kQ6_K);
}

// ---- files

std::string demo() {
  return GEMMA_TEST_DATA "/../../demo/demo-f16.gguf";
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST("a run that was ended at any moment goes on, to the same bytes") {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "gemma-quantize-test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  QuantizeOptions options;
  options.path = demo();
  options.type = "iq4_xs";
  options.n_threads = 2;
  options.output = (folder / "whole.gguf").string();
  CHECK(quantize_file(options).n_resumed == 0);
  const std::string whole = bytes_of(options.output);
  for (const double end : {0.0, 0.3, 0.6, 0.9, 1.0}) {
    options.output = (folder / "ended.gguf").string();
    options.overwrite = true;
    options.on_progress = [&](double fraction) {
      if (fraction >= end) throw std::runtime_error("ended");
    };
    bool has_ended = false;
    try {
      quantize_file(options);
    } catch (const std::runtime_error&) {
      has_ended = true;
    }
    CHECK(has_ended);
    if (end == 0.6) {  // and a tensor that was written is damaged since
      std::fstream part(options.output + ".part", std::ios::in | std::ios::out | std::ios::binary);
      part.seekp(1 << 20);
      part.write("damaged", 7);
    }
    options.on_progress = nullptr;
    const QuantizeResult result = quantize_file(options);
    CHECK((result.n_resumed > 0) == (end > 0));
    CHECK(bytes_of(options.output) == whole);
    CHECK(!std::filesystem::exists(options.output + ".part"));
  }
  std::filesystem::remove_all(folder);
}

struct MergeFiles {
  std::filesystem::path folder = std::filesystem::temp_directory_path() / "gemma-merge-test";
  std::string a = (folder / "a.gguf").string();
  std::string b = (folder / "b.gguf").string();

  MergeFiles() {
    std::filesystem::remove_all(folder);
    std::filesystem::create_directory(folder);
    std::filesystem::copy_file(demo(), a);
    std::filesystem::copy_file(demo(), b);
  }
  ~MergeFiles() { std::filesystem::remove_all(folder); }

  MergeOptions options(const char* output) const {
    MergeOptions options;
    options.path = a;
    options.other_path = b;
    options.output = (folder / output).string();
    options.type = "q8_0";
    options.blend = Blend::kSlerp;
    options.weight = 0.25;
    options.n_threads = 2;
    return options;
  }
};

#ifndef _WIN32  // there nobody can write to a file that is open here
TEST("an input that changes while it is read is an error, and what was written of it does not count") {
  const MergeFiles files;
  for (const std::string& changed : {files.a, files.b}) {
    for (const bool is_cut : {false, true}) {
      MergeOptions options = files.options("changed.gguf");
      bool is_changed = false;
      options.on_progress = [&](double fraction) {
        if (is_changed || fraction < 0.4) return;
        is_changed = true;
        const uint64_t size = std::filesystem::file_size(changed);
        if (is_cut) {
          std::filesystem::resize_file(changed, size / 2);
        } else {
          std::ofstream(changed, std::ios::binary | std::ios::app) << "more";
        }
      };
      CHECK_THROWS(kFile, "FILE_CHANGED", merge_file(options));
      CHECK(is_changed);
      CHECK(!std::filesystem::exists(options.output));
      std::filesystem::copy_file(demo(), changed, std::filesystem::copy_options::overwrite_existing);
      options.on_progress = nullptr;
      CHECK(merge_file(options).n_resumed == 0);
      std::filesystem::remove(options.output);
    }
  }
}
#endif

TEST("merging that was ended at any moment goes on, to the same bytes, and not with another weight") {
  const MergeFiles files;
  MergeOptions options = files.options("whole.gguf");
  const MergeResult whole = merge_file(options);
  CHECK(whole.n_resumed == 0 && whole.n_changed > 0);
  const std::string bytes = bytes_of(options.output);
  for (const double end : {0.0, 0.3, 0.6, 0.9, 1.0}) {
    MergeOptions ended = files.options("ended.gguf");
    ended.overwrite = true;
    ended.on_progress = [&](double fraction) {
      if (fraction >= end) throw std::runtime_error("ended");
    };
    bool has_ended = false;
    try {
      merge_file(ended);
    } catch (const std::runtime_error&) {
      has_ended = true;
    }
    CHECK(has_ended);
    ended.on_progress = nullptr;
    if (end == 0.9) {
      MergeOptions other = ended;
      other.weight = 0.5;
      CHECK(merge_file(other).n_resumed == 0);
    } else {
      CHECK((merge_file(ended).n_resumed > 0) == (end > 0));
      CHECK(bytes_of(ended.output) == bytes);
    }
  }
}

TEST("bytes of a merged file do not depend on threads") {
  const MergeFiles files;
  MergeOptions options = files.options("one.gguf");
  options.n_threads = 1;
  merge_file(options);
  MergeOptions more = files.options("more.gguf");
  more.n_threads = 5;
  merge_file(more);
  CHECK(bytes_of(options.output) == bytes_of(more.output));
}

}  // namespace

TEST_MAIN

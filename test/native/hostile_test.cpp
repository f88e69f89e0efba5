// Small files of strangers with every byte changed and cut at every length: each ends in a value or an Error. What each kind of
// mistake is called is tested where the formats are (safetensors_test, gguf_test) and in test/api/malformed.test.ts.
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "gguf_builder.h"

#define LLVMFuzzerTestOneInput read_checkpoint_part
#include "../fuzz/checkpoint_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput read_adapter_file
#include "../fuzz/adapter_fuzz.cpp"
#undef LLVMFuzzerTestOneInput

using namespace gemma;

namespace {

using Input = std::vector<uint8_t>;

Input input_of(const std::string& text) {
  return {text.begin(), text.end()};
}
Input input_of(CheckpointPart part, const std::string& text) {
  return input_of(static_cast<char>(part) + text);
}

// What each byte becomes, beside each of its bits being another: what means something in one of the formats.
constexpr uint8_t kBytes[] = {0x00, 0xff, 0x7f, 0x80, '"', '\\', '{', '}', '[', ']',
                              ',',  ':',  '-',  '.',  '0', '9',  ' ', 'e', 'n'};

class Sweep {
 public:
  Sweep(int (*read)(const uint8_t*, size_t), const int& n_read) : read_(read), n_read_(n_read) {}

  // Of the bytes from .. to - 1.
  void run(const Input& sound, size_t from, size_t to) {
    const int before = n_read_;
    open(sound);
    CHECK(n_read_ == before + 1);
    for (size_t at = from; at < to; ++at) {
      Input changed = sound;
      changed.resize(at);
      open(changed);
      changed = sound;
      for (int bit = 0; bit < 8; ++bit) {
        changed[at] = static_cast<uint8_t>(sound[at] ^ 1u << bit);
        open(changed);
      }
      for (const uint8_t byte : kBytes) {
        changed[at] = byte;
        open(changed);
      }
      changed = sound;
      changed.erase(changed.begin() + static_cast<ptrdiff_t>(at));
      open(changed);
      changed.insert(changed.begin() + static_cast<ptrdiff_t>(at), 2, sound[at]);
      open(changed);
    }
  }

  void run(const Input& sound) { run(sound, 0, sound.size()); }

  // n files with several places changed at once.
  void shuffle(const Input& sound, int n, uint32_t seed) {
    std::mt19937 rng(seed);
    for (int i = 0; i < n; ++i) {
      Input changed = sound;
      for (uint32_t edits = 1 + rng() % 4; edits > 0; --edits) {
        const size_t at = rng() % changed.size();
        const size_t from = rng() % changed.size();
        const size_t length = std::min<size_t>(1 + rng() % 32, changed.size() - std::max(at, from));
        if (rng() % 2 == 0)
          std::memmove(&changed[at], &changed[from], length);
        else
          changed[at] = kBytes[rng() % std::size(kBytes)];
      }
      open(changed);
    }
  }

  int n_opened() const { return n_opened_; }

 private:
  // In an allocation of its own, so that a sanitizer sees any step outside.
  void open(const Input& input) {
    ++n_opened_;
    const std::unique_ptr<uint8_t[]> exact(new uint8_t[input.size() + 1]);
    std::copy(input.begin(), input.end(), exact.get() + 1);
    read_(exact.get() + 1, input.size());
  }

  int (*read_)(const uint8_t*, size_t);
  const int& n_read_;
  int n_opened_ = 0;
};

// The message of Protocol Buffers with one field of bytes.
std::string message(int field, const std::string& content) {
  return std::string{static_cast<char>(field << 3 | 2), static_cast<char>(content.size())} + content;
}
std::string number(int field, int value) {
  const int tag = field << 3;
  std::string bytes;
  if (tag >= 128) bytes += static_cast<char>((tag & 127) | 128);
  bytes += static_cast<char>(tag >= 128 ? tag >> 7 : tag);
  return bytes + static_cast<char>(value);
}

std::string sentence_piece() {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string model;
  for (int i = 0; i < 256; ++i) {
    const std::string name = std::string("<0x") + kHex[i / 16] + kHex[i % 16] + ">";
    model += message(1, message(1, name) + number(3, 6));
  }
  for (const char* piece : {"a", "b", "ab"})
    model += message(1, message(1, piece) + std::string("\x15\0\0\x80\xbf", 5));
  return model + message(2, number(3, 2) + number(35, 1)) + message(3, number(3, 0) + number(4, 0) + number(5, 1));
}

std::string vocabulary_json() {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string pieces = R"("<pad>":0,"a":1,"b":2,"ab":3)";
  for (int i = 0; i < 256; ++i)
    pieces += std::string(R"(,"<0x)") + kHex[i / 16] + kHex[i % 16] + ">\":" + std::to_string(4 + i);
  return R"({"added_tokens":[{"id":0,"content":"<pad>","special":true}],"normalizer":{"type":"Replace","pattern":)"
         R"({"String":" "},"content":"▁"},"decoder":{"type":"Fuse"},"pre_tokenizer":null,"model":{"type":"BPE",)"
         R"("byte_fallback":true,"merges":[["a","b"]],"vocab":{)" +
         pieces + "}}}";
}

std::string safetensors(const std::string& header, size_t n_data) {
  uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(n_data, '\0');
}

}  // namespace

TEST("files beside the weights of a checkpoint") {
  Sweep sweep(read_checkpoint_part, checkpoint_fuzz_read);
  const Input config = input_of(
      CheckpointPart::kConfig,
      R"({"model_type":"gemma3","mm_tokens_per_image":4,"text_config":{"hidden_size":32,"num_hidden_layers":2,)"
      R"("layer_types":["sliding_attention","full_attention"],"rope_scaling":{"rope_type":"linear","factor":8.0},)"
      R"("eos_token_id":[1,106]},"vision_config":{"hidden_size":48,"num_attention_heads":2,"image_size":56,)"
      R"("patch_size":14}})");
  sweep.run(config);
  sweep.shuffle(config, 20000, 1);
  sweep.run(input_of(CheckpointPart::kGeneration, R"({"bos_token_id":2,"eos_token_id":[1,106],"pad_token_id":null})"));
  sweep.run(input_of(CheckpointPart::kPreprocessor,
                     R"({"image_mean":[0.5,0.5,0.5],"image_std":[0.5,5e-1,0.5],"resample":2,"size":{"height":56}})"));
  sweep.run(input_of(CheckpointPart::kTokenizerConfig,
                     R"({"bos_token":"<bos>","eos_token":{"content":"\u003ceos>"},"added_tokens_decoder":)"
                     R"({"3":{"content":"<x>","special":true}}})"));
  sweep.run(input_of(CheckpointPart::kIndex, R"({"metadata":{},"weight_map":{"a":"model-1.safetensors"}})"));
  sweep.run(input_of(CheckpointPart::kModules,
                     R"([{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},)"
                     R"({"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"}])"));
  sweep.run(
      input_of(CheckpointPart::kPooling,
               R"({"word_embedding_dimension":64,"pooling_mode_mean_tokens":true,"pooling_mode_max_tokens":false,)"
               R"("include_prompt":true})"));
  sweep.run(input_of(CheckpointPart::kPooling, R"({"embedding_dimension":64,"pooling_mode":["lasttoken"]})"));
  sweep.run(input_of(CheckpointPart::kDense, R"({"in_features":64,"out_features":96,"bias":false,)"
                                             R"("activation_function":"torch.nn.modules.linear.Identity"})"));
  sweep.run(input_of(CheckpointPart::kTransformer, R"({"max_seq_length":2048,"do_lower_case":false})"));
  sweep.run(input_of(CheckpointPart::kNames, "model.language_model.layers.13.mlp.up_proj.weight"));
  std::printf("%d files\n", sweep.n_opened());
}

TEST("tokenizers") {
  Sweep sweep(read_checkpoint_part, checkpoint_fuzz_read);
  const Input json = input_of(CheckpointPart::kTokenizer, vocabulary_json());
  const Input model = input_of(CheckpointPart::kSentencePiece, sentence_piece());
  // At the beginning and the end is all that is not a piece; the pieces between are alike.
  for (const Input& whole : {json, model}) {
    sweep.run(whole, 0, whole.front() == json.front() ? 300 : 40);
    sweep.run(whole, whole.size() - 60, whole.size());
    sweep.shuffle(whole, 4000, 2);
  }
  std::printf("%d files\n", sweep.n_opened());
}

TEST("adapters") {
  Sweep sweep(read_adapter_file, adapter_fuzz_read);
  const std::string q = "base_model.model.model.layers.1.self_attn.q_proj.lora_";
  const Input peft =
      input_of(std::string("\1\0\2\0", 4) +
               safetensors("{\"" + q + R"(A.weight":{"dtype":"F32","shape":[2,16],"data_offsets":[0,128]},")" + q +
                               R"(B.weight":{"dtype":"BF16","shape":[16,2],"data_offsets":[128,192]}})",
                           192));
  sweep.run(peft);
  sweep.shuffle(peft, 20000, 4);
  test::GgufBuilder gguf;
  gguf.set_string("general.architecture", "gemma3").set_string("general.type", "adapter");
  gguf.set_string("adapter.type", "lora").set("adapter.lora.alpha", 4.0f);
  gguf.add_floats("blk.0.ffn_up.weight.lora_a", {2, 16}, std::vector<float>(32));
  gguf.add_floats("blk.0.ffn_up.weight.lora_b", {24, 2}, std::vector<float>(48));
  const std::vector<std::byte> bytes = gguf.build();
  Input llama{0};
  for (const std::byte byte : bytes) llama.push_back(static_cast<uint8_t>(byte));
  sweep.run(llama, 0, 500);
  sweep.shuffle(llama, 20000, 5);
  std::printf("%d files\n", sweep.n_opened());
}

TEST_MAIN

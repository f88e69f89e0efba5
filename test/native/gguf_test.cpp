// The GGUF reader on sound files, on every kind of broken one, and on mutations of a sound one.
#include "gguf/gguf.h"

#include <filesystem>
#include <fstream>
#include <memory>
#include <random>

#include "../fuzz/gguf_fuzz.cpp"
#include "base/file_map.h"
#include "check.h"
#include "gguf_builder.h"

#ifndef _WIN32
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>
#endif

using namespace gemma;
using test::ByteWriter;
using test::GgufBuilder;
using Bytes = std::vector<std::byte>;

namespace {

std::string data(const std::string& name) {
  return std::string(GEMMA_TEST_DATA) + "/" + name;
}

// Bytes at an odd address in an allocation of their own, so that a sanitizer sees any step outside.
class Exact {
 public:
  explicit Exact(std::span<const std::byte> bytes) : size_(bytes.size()), p_(new std::byte[bytes.size() + 1]) {
    std::copy(bytes.begin(), bytes.end(), p_.get() + 1);
  }
  std::span<const std::byte> bytes() const { return {p_.get() + 1, size_}; }

 private:
  size_t size_;
  std::unique_ptr<std::byte[]> p_;
};

void check_invalid(int line, const char* detail, const Bytes& bytes) {
  const Exact exact(bytes);
  test::check_throws(__FILE__, line, ErrorCode::kGgufInvalid, detail, [&] { GgufFile::parse(exact.bytes()); });
}
#define CHECK_INVALID(detail, bytes) check_invalid(__LINE__, detail, bytes)

// Two small tensors and one of everything in the metadata.
GgufBuilder sample() {
  GgufBuilder b;
  b.set<uint8_t>("u8", 200).set<int8_t>("i8", -5).set<uint16_t>("u16", 60000).set<int16_t>("i16", -300);
  b.set<uint32_t>("u32", 4000000000u).set<int32_t>("i32", -70000).set("f32", 0.5f).set("yes", true).set("no", false);
  b.set_string("text", "caf\xc3\xa9").set<uint64_t>("u64", uint64_t{1} << 63).set<int64_t>("i64", -(int64_t{1} << 40));
  b.set("f64", 0.25).set_array<int32_t>("ints", {1, -2, 3}).set_strings("words", {"a", "", "ccc"});
  b.set_array<float>("none", {});
  b.add_floats("first", {2, 3}, {1, 2, 3, 4, 5, 6});
  b.add_tensor("second", TensorType::kQ8_0, {1, 2, 32}, Bytes(68, std::byte{7}));
  return b;
}

class TempFolder {
 public:
  TempFolder() {
    std::random_device random;
    path_ = std::filesystem::temp_directory_path() / ("gemma-gguf-test-" + std::to_string(random()));
    std::filesystem::create_directory(path_);
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string write(const std::string& name, const Bytes& bytes) const {
    std::ofstream out(path_ / name, std::ios::binary);
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    return path(name);
  }
  std::string path(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

// One part of a split model with one tensor.
GgufBuilder part(int index, int count, int n_tensors) {
  GgufBuilder b;
  if (index == 0) b.set_string("general.name", "split");
  b.set<uint16_t>("split.no", static_cast<uint16_t>(index)).set<uint16_t>("split.count", static_cast<uint16_t>(count));
  b.set<int32_t>("split.tensors.count", n_tensors);
  b.add_floats("tensor" + std::to_string(index), {2}, {static_cast<float>(index), 1});
  return b;
}

}  // namespace

TEST("parse: metadata of every type, tensors, unaligned") {
  for (const uint32_t version : {2u, 3u}) {
    GgufBuilder b = sample();
    b.version = version;
    const Exact exact(b.build());
    const auto file = GgufFile::parse(exact.bytes());
    CHECK(file->version() == version);
    CHECK(file->file_bytes() == exact.bytes().size());
    CHECK(file->metadata().size() == 16 && file->metadata()[0].first == "u8");
    CHECK(file->find_int("u8") == 200 && file->find_int("i8") == -5 && file->find_int("u16") == 60000);
    CHECK(file->find_int("i16") == -300 && file->find_int("u32") == 4000000000 && file->find_int("i32") == -70000);
    CHECK(file->find_int("i64") == -(int64_t{1} << 40));
    CHECK(file->find_float("f32") == 0.5 && file->find_float("f64") == 0.25 && file->find_float("i8") == -5.0);
    CHECK(file->find_bool("yes") == true && file->find_bool("no") == false);
    CHECK(file->find_string("text") == "caf\xc3\xa9");
    const GgufValue* words = file->find("words");
    CHECK(words != nullptr && words->is_array && words->type == GgufType::kString && words->count == 3);
    CHECK(words->strings[0] == "a" && words->strings[1].empty() && words->strings[2] == "ccc");
    const GgufValue* ints = file->find("ints");
    CHECK(ints != nullptr && ints->is_array && ints->type == GgufType::kI32 && ints->count == 3 &&
          ints->raw.size() == 12);
    CHECK(file->find("none")->count == 0 && file->find("none")->raw.empty());
    CHECK(file->find("absent") == nullptr && !file->find_int("absent") && !file->find_float("absent"));
    CHECK(!file->find_bool("absent") && !file->find_string("absent"));

    CHECK(file->tensors().size() == 2);
    const Tensor* first = file->find_tensor("first");
    CHECK(first != nullptr && first->type == TensorType::kF32 && first->shape == (std::vector<int64_t>{2, 3}));
    float values[6];
    std::memcpy(values, first->data, sizeof values);
    CHECK(first->bytes == 24 && values[0] == 1 && values[5] == 6);
    const Tensor* second = file->find_tensor("second");
    CHECK(second != nullptr && second->shape == (std::vector<int64_t>{1, 2, 32}) && second->bytes == 68);
    CHECK(second->data[67] == std::byte{7});
    CHECK(file->find_tensor("absent") == nullptr);
  }
}

TEST("typed reads: another type is BAD_TYPE") {
  const Bytes bytes = sample().build();
  const auto file = GgufFile::parse(bytes);
  for (const char* key : {"f32", "text", "yes", "ints", "none", "u64"})
    CHECK_THROWS(kGgufInvalid, "BAD_TYPE", file->find_int(key));
  for (const char* key : {"text", "yes", "ints"}) CHECK_THROWS(kGgufInvalid, "BAD_TYPE", file->find_float(key));
  for (const char* key : {"u8", "text", "ints"}) CHECK_THROWS(kGgufInvalid, "BAD_TYPE", file->find_bool(key));
  for (const char* key : {"u8", "words", "f32"}) CHECK_THROWS(kGgufInvalid, "BAD_TYPE", file->find_string(key));
}

TEST("class 1: empty, 4 bytes, every truncated prefix") {
  CHECK_INVALID("TRUNCATED", {});
  const Bytes whole = sample().build();
  const size_t used = whole.size() - 28;  // the last tensor's 68 bytes are padded to 96
  for (size_t n = 0; n < used; ++n)
    CHECK_INVALID("TRUNCATED", Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n)));
  for (size_t n = used; n <= whole.size(); ++n) GgufFile::parse(Exact(std::span(whole).first(n)).bytes());
}

TEST("class 2, 3: magic and version") {
  GgufBuilder b = sample();
  b.magic = "GGUX";
  CHECK_INVALID("BAD_MAGIC", b.build());
  CHECK_INVALID("BAD_MAGIC", ByteWriter().put_text("version https://git-lfs.github.com/spec/v1\n").bytes());
  b.magic = "GGUF";
  for (const uint32_t version : {0u, 1u, 4u, 99u, 0x03000000u, 0xffffffffu}) {
    b.version = version;
    CHECK_INVALID("BAD_VERSION", b.build());
  }
}

TEST("class 4: counts above the limit; below it they run into the end") {
  for (const uint64_t n :
       {uint64_t{1} << 63, ~uint64_t{0}, uint64_t{1} << 60, uint64_t{1} << 40, uint64_t{1} << 32, uint64_t{16385}}) {
    GgufBuilder b = sample();
    b.n_metadata = n;
    CHECK_INVALID("COUNT_LIMIT", b.build());
    b = sample();
    b.n_tensors = n;
    CHECK_INVALID("COUNT_LIMIT", b.build());
  }
  GgufBuilder b;  // nothing else that could be read as an entry
  b.n_metadata = 16384;
  CHECK_INVALID("TRUNCATED", b.build());
  b.n_metadata = {};
  b.n_tensors = 16384;
  CHECK_INVALID("TRUNCATED", b.build());
}

TEST("class 5: keys and tensor names") {
  GgufBuilder b = sample();
  for (const uint64_t n : {~uint64_t{0}, uint64_t{1} << 63, uint64_t{65536}, uint64_t{0}}) {
    b.metadata[3].key_bytes = n;
    CHECK_INVALID("BAD_STRING", b.build());
  }
  b = sample();
  b.set<uint8_t>("", 1);
  CHECK_INVALID("BAD_STRING", b.build());
  for (const char* key : {"a\tb", "caf\xc3\xa9", "\xff"}) {
    b = sample();
    b.set<uint8_t>(key, 1);
    CHECK_INVALID("BAD_STRING", b.build());
  }
  b = sample();
  b.set<uint8_t>(std::string("a\0b", 3), 1);
  CHECK_INVALID("BAD_STRING", b.build());
  b = sample();
  b.set<uint8_t>(std::string(65535, 'k'), 1);
  GgufFile::parse(b.build());
  for (const size_t n : {size_t{64}, size_t{100000}, size_t{0}}) {
    b = sample();
    b.tensors[0].name = std::string(n, 't');
    CHECK_INVALID("BAD_STRING", b.build());
  }
  b = sample();
  b.tensors[0].name = std::string(63, 't');
  GgufFile::parse(b.build());
}

TEST("class 6: lengths beyond the file, before any allocation") {
  const uint32_t string_type = static_cast<uint32_t>(GgufType::kString);
  const uint32_t array_type = static_cast<uint32_t>(GgufType::kArray);
  for (const uint64_t n : {uint64_t{1} << 30, uint64_t{1} << 62, ~uint64_t{0}, uint64_t{1000000}}) {
    GgufBuilder b = sample();
    b.set_raw("bad", string_type, ByteWriter().put(n).put_text("short"));
    CHECK_INVALID("TRUNCATED", b.build());
    for (uint32_t element = 0; element <= 12; ++element) {
      if (element == array_type) continue;
      b.set_raw("bad", array_type, ByteWriter().put(element).put(n).put_text("short"));
      CHECK_INVALID("TRUNCATED", b.build());
    }
  }
  GgufBuilder b = sample();
  b.set_raw("bad", array_type, ByteWriter().put<uint32_t>(0).put<uint64_t>(1000000000));
  CHECK_INVALID("TRUNCATED", b.build());
}

TEST("class 7: value types") {
  for (const uint32_t type : {13u, 99u, 0x80000000u, 0xffffffffu}) {
    GgufBuilder b = sample();
    b.set_raw("bad", type, ByteWriter().put<uint64_t>(0));
    CHECK_INVALID("BAD_TYPE", b.build());
    b.set_raw("bad", 9, ByteWriter().put(type).put<uint64_t>(0));
    CHECK_INVALID("BAD_TYPE", b.build());
  }
  GgufBuilder b = sample();
  b.set_raw("bad", 9, ByteWriter().put<uint32_t>(9).put<uint64_t>(1).put<uint32_t>(0).put<uint64_t>(0));
  CHECK_INVALID("BAD_TYPE", b.build());
}

TEST("class 8: duplicates") {
  GgufBuilder b = sample();
  b.metadata.push_back(b.metadata[2]);
  CHECK_INVALID("DUPLICATE", b.build());
  b = sample();
  b.tensors.push_back(b.tensors[0]);
  CHECK_INVALID("DUPLICATE", b.build());
}

TEST("class 9: alignment") {
  for (const uint32_t alignment : {0u, 1u, 4u, 33u, 48u, 131072u, 1u << 31}) {
    CHECK_INVALID("BAD_ALIGN", sample().set("general.alignment", alignment).build());
  }
  CHECK_INVALID("BAD_ALIGN", sample().set<int32_t>("general.alignment", 32).build());
  CHECK_INVALID("BAD_ALIGN", sample().set<uint64_t>("general.alignment", 32).build());
  CHECK_INVALID("BAD_ALIGN", sample().set_string("general.alignment", "32").build());
  CHECK_INVALID("BAD_ALIGN", sample().set_array<uint32_t>("general.alignment", {32}).build());
  for (const uint32_t alignment : {8u, 32u, 64u, 4096u, 65536u}) {
    GgufBuilder b = sample();
    b.alignment = alignment;
    const Bytes bytes = b.set("general.alignment", alignment).build();
    const auto file = GgufFile::parse(bytes);
    CHECK(file->find_tensor("second")->data[0] == std::byte{7});
    CHECK(static_cast<size_t>(file->find_tensor("first")->data - bytes.data()) % alignment == 0);
  }
}

TEST("class 10: shapes") {
  const auto with_dims = [](std::vector<int64_t> dims, TensorType type = TensorType::kF32) {
    GgufBuilder b = sample();
    b.tensors[0].dims = std::move(dims);
    b.tensors[0].type = static_cast<uint32_t>(type);
    return b.build();
  };
  for (const uint32_t n_dims : {0u, 5u, 0xffffffffu, 0x80000000u}) {
    GgufBuilder b = sample();
    b.tensors[0].n_dims = n_dims;
    CHECK_INVALID("BAD_SHAPE", b.build());
  }
  constexpr int64_t kHuge = int64_t{1} << 32;
  CHECK_INVALID("BAD_SHAPE", with_dims({-1}));
  CHECK_INVALID("BAD_SHAPE", with_dims({3, 0}));
  CHECK_INVALID("BAD_SHAPE", with_dims({3, INT64_MIN}));
  CHECK_INVALID("BAD_SHAPE", with_dims({kHuge, kHuge}));                // 2^64 elements
  CHECK_INVALID("BAD_SHAPE", with_dims({kHuge, kHuge, kHuge, kHuge}));  // 2^128
  CHECK_INVALID("BAD_SHAPE", with_dims({INT64_MAX}));                   // elements fit, bytes do not
  CHECK_INVALID("BAD_SHAPE", with_dims({INT64_MAX, 2}));
  CHECK_INVALID("BAD_SHAPE", with_dims({31, 32}, TensorType::kQ4_0));  // half a block
  CHECK_INVALID("BAD_SHAPE", with_dims({32, 8}, TensorType::kQ4_K));
  CHECK_INVALID("TRUNCATED", with_dims({int64_t{1} << 40}));  // sound, but not in this file
  CHECK_INVALID("TRUNCATED", with_dims({int64_t{1} << 60}));
}

TEST("class 11: tensor types") {
  for (const uint32_t type : {4u, 5u, 9u, 15u, 36u, 160u, 200u, 0xffffffffu}) {
    GgufBuilder b = sample();
    b.tensors[1].type = type;
    CHECK_INVALID("BAD_TENSOR_TYPE", b.build());
  }
}

TEST("tensor types that nothing here computes with: the layout is checked all the same") {
  struct {
    uint32_t type;
    const char* name;
    int block_elems, block_bytes;
  } const types[] = {{16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74},  {18, "IQ3_XXS", 256, 98},
                     {19, "IQ1_S", 256, 50},   {21, "IQ3_S", 256, 110},  {22, "IQ2_S", 256, 82},
                     {24, "I8", 1, 1},         {25, "I16", 1, 2},        {26, "I32", 1, 4},
                     {27, "I64", 1, 8},        {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56},
                     {31, "Q4_0_4_4", 32, 18}, {32, "Q4_0_4_8", 32, 18}, {33, "Q4_0_8_8", 32, 18},
                     {34, "TQ1_0", 256, 54},   {40, "NVFP4", 64, 36},    {41, "Q1_0", 128, 18}};
  for (const auto& t : types) {
    const auto with_type = [&](int64_t columns) {
      const size_t bytes = static_cast<size_t>(3 * columns / t.block_elems * t.block_bytes);
      GgufBuilder b = sample();
      b.add_tensor("odd", static_cast<TensorType>(t.type), {3, columns}, Bytes(bytes, std::byte{1}));
      return b.build();
    };
    const Bytes bytes = with_type(512);
    const auto file = GgufFile::parse(bytes);
    const Tensor& odd = *file->find_tensor("odd");
    CHECK(odd.bytes == static_cast<size_t>(3 * 512 / t.block_elems * t.block_bytes));
    CHECK(std::string(type_traits(odd.type).name) == t.name && !is_computed_type(odd.type));
    CHECK_INVALID("TRUNCATED", Bytes(bytes.begin(), bytes.end() - 64));
    if (t.block_elems > 1) CHECK_INVALID("BAD_SHAPE", with_type(t.block_elems + t.block_elems / 2));
  }
  for (const uint32_t type : {42u, 137u, 159u}) {  // of later versions, or of forks: the layout is not known
    GgufBuilder b = sample();
    b.tensors[1].type = type;
    const Bytes bytes = b.build();
    CHECK_THROWS(kUnsupportedModel, "TENSOR_TYPE", GgufFile::parse(bytes));
  }
}

TEST("headers: longer than the first read, and longer than is accepted") {
  const TempFolder folder;
  GgufBuilder b = sample();
  const std::string text(size_t{3} << 20, 'x');  // eight of them: the file is read on three times
  for (int i = 0; i < 8; ++i) b.set_string("text" + std::to_string(i), text);
  for (const bool map : {true, false}) {
    const auto file = GgufFile::open(folder.write("long.gguf", b.build()), {map, false});
    for (int i = 0; i < 8; ++i) CHECK(file->find_string("text" + std::to_string(i)) == text);
    CHECK(file->find_string("text") == "caf\xc3\xa9");
    CHECK(file->find_tensor("second")->data[67] == std::byte{7});
  }
  // A hole of 2^40 bytes, which costs nothing: an array that says it fills it.
  ByteWriter header;
  header.put_text("GGUF").put<uint32_t>(3).put<uint64_t>(0).put<uint64_t>(1).put_string("a").put<uint32_t>(9);
  const Bytes start = header.bytes();
  for (const uint32_t type : {0u, 8u}) {
    Bytes bytes = start;
    ByteWriter rest;
    rest.put<uint32_t>(type).put<uint64_t>(uint64_t{1} << 36);
    bytes.insert(bytes.end(), rest.bytes().begin(), rest.bytes().end());
    const std::string path = folder.write("hole.gguf", bytes);
    std::filesystem::resize_file(path, uint64_t{1} << 40);
    for (const bool headers_only : {true, false})
      CHECK_THROWS(kGgufInvalid, "HEADER_LIMIT", GgufFile::open(path, {true, headers_only}));
  }
}

TEST("class 12: offsets") {
  const auto with_offset = [](size_t i, uint64_t offset) {
    GgufBuilder b = sample();
    b.tensors[i].offset = offset;
    return b.build();
  };
  for (const uint64_t past : {uint64_t{128}, uint64_t{1} << 20, uint64_t{1} << 40, uint64_t{1} << 63, ~uint64_t{31}}) {
    CHECK_INVALID("BAD_OFFSET", with_offset(1, past));
    CHECK_INVALID("BAD_OFFSET", with_offset(0, past));
  }
  for (const uint64_t unaligned : {uint64_t{33}, uint64_t{48}, ~uint64_t{0}})
    CHECK_INVALID("BAD_OFFSET", with_offset(1, unaligned));
  CHECK_INVALID("BAD_OFFSET", with_offset(1, 0));   // over the first
  CHECK_INVALID("BAD_OFFSET", with_offset(0, 64));  // inside the second
  GgufBuilder gap = sample();                       // a hole between two tensors does no harm
  gap.tensors[1].offset = 64;
  Bytes bytes = gap.build();
  bytes.resize(bytes.size() + 32);
  GgufFile::parse(bytes);
}

TEST("class 13: data cut") {
  const Bytes whole = test::tiny_gemma3().build();
  for (const size_t cut : {size_t{41}, whole.size() / 2, size_t{1}, size_t{32}}) {
    // the last tensor fills its last 32 bytes, so any cut takes something away
    CHECK_INVALID("TRUNCATED", Bytes(whole.begin(), whole.end() - static_cast<std::ptrdiff_t>(cut)));
  }
}

TEST("class 17: split files") {
  const TempFolder folder;
  folder.write("m-00001-of-00003.gguf", part(0, 3, 3).build());
  folder.write("m-00002-of-00003.gguf", part(1, 3, 3).build());
  folder.write("m-00003-of-00003.gguf", part(2, 3, 3).build());
  const std::string first = folder.path("m-00001-of-00003.gguf");
  for (const bool map : {true, false}) {
    const auto file = GgufFile::open(first, {map, false});
    CHECK(file->tensors().size() == 3 && file->find_string("general.name") == "split");
    for (int i = 0; i < 3; ++i) {
      float value;
      std::memcpy(&value, file->find_tensor("tensor" + std::to_string(i))->data, sizeof value);
      CHECK(value == static_cast<float>(i));
    }
    std::vector<double> fractions{0};
    file->weights()->prefetch([&](double fraction) { fractions.push_back(fraction); });
    CHECK(std::is_sorted(fractions.begin(), fractions.end()));
    CHECK(fractions.back() == (map ? 1.0 : 0.0));
    CHECK(file->file_bytes() == part(0, 3, 3).build().size() + 2 * part(1, 3, 3).build().size());
  }
  const auto check_missing = [&](int line, const std::string& path) {
    test::check_throws(__FILE__, line, ErrorCode::kGgufInvalid, "MISSING_SPLIT", [&] { GgufFile::open(path); });
  };
  check_missing(__LINE__, folder.path("m-00002-of-00003.gguf"));  // not the first
  check_missing(__LINE__, folder.write("renamed.gguf", part(0, 3, 3).build()));
  check_missing(__LINE__, folder.write("n-00001-of-00004.gguf", part(0, 3, 3).build()));
  check_missing(__LINE__, folder.write("o-00001-of-00003.gguf", part(0, 3, 3).build()));  // no siblings
  check_missing(__LINE__, folder.write("p-00001-of-65535.gguf", part(0, 65535, 3).build()));
  check_missing(__LINE__, folder.write("text.gguf", sample().set<uint16_t>("split.count", 65535).build()));
  check_missing(__LINE__, folder.write("huge.gguf", sample().set<uint32_t>("split.count", 65536).build()));
  check_missing(__LINE__, folder.write("negative.gguf", sample().set<int32_t>("split.count", -1).build()));
  CHECK_INVALID("MISSING_SPLIT", part(0, 3, 3).build());
  GgufFile::parse(part(0, 1, 1).build());
  GgufFile::parse(part(0, 0, 1).build());  // as llama.cpp's merge writes it

  // parts of two models
  const auto second = [&](const GgufBuilder& b) { folder.write("m-00002-of-00003.gguf", b.build()); };
  second(part(1, 3, 4));
  check_missing(__LINE__, first);
  second(part(2, 3, 3));
  check_missing(__LINE__, first);
  second(part(1, 2, 3));
  check_missing(__LINE__, first);
  second(part(1, 3, 3).remove("split.no"));
  check_missing(__LINE__, first);
  second(part(1, 3, 3).remove("split.count"));
  check_missing(__LINE__, first);
  second(part(1, 3, 3).set_string("general.name", "another"));
  check_missing(__LINE__, first);
  second(part(1, 3, 3).add_floats("tensor0", {1}, {1}));
  check_missing(__LINE__, first);
  second(part(1, 3, 3).add_floats("extra", {1}, {1}));
  check_missing(__LINE__, first);
  GgufBuilder broken = part(1, 3, 3);
  broken.tensors[0].type = 4;
  second(broken);
  CHECK_THROWS(kGgufInvalid, "BAD_TENSOR_TYPE", GgufFile::open(first));
}

TEST("open: mapped, read, headers only") {
  const TempFolder folder;
  const std::string path = folder.write("a.gguf", sample().build());
  for (const bool map : {true, false}) {
    const auto file = GgufFile::open(path, {map, false});
    CHECK(file->find_tensor("second")->data[67] == std::byte{7});
    const auto headers = GgufFile::open(path, {map, true});
    CHECK(headers->find_tensor("second")->data == nullptr && headers->find_tensor("second")->bytes == 68);
    CHECK(headers->find_string("text") == "caf\xc3\xa9");
  }
  Bytes cut = sample().build();
  cut.resize(cut.size() - 60);
  const std::string cut_path = folder.write("cut.gguf", cut);
  for (const bool headers_only : {false, true}) {
    CHECK_THROWS(kGgufInvalid, "TRUNCATED", GgufFile::open(cut_path, {true, headers_only}));
  }
}

TEST("open: what is no file is an error, not a hang") {
  const TempFolder folder;
  for (const bool map : {true, false}) {
    const FileOptions options{map, false};
    CHECK_THROWS(kGgufInvalid, "TRUNCATED", GgufFile::open(folder.write("empty", {}), options));
    CHECK_THROWS(kFile, "", GgufFile::open(folder.path("absent"), options));
    CHECK_THROWS(kFile, "", GgufFile::open(folder.path(""), options));
    CHECK_THROWS(kFile, "", GgufFile::open("", options));
    CHECK_THROWS(kFile, "", GgufFile::open(std::string("a\0b", 3), options));
#ifndef _WIN32
    const std::string pipe = folder.path("pipe");
    ::mkfifo(pipe.c_str(), 0600);
    CHECK_THROWS(kFile, "", GgufFile::open(pipe, options));
    CHECK_THROWS(kFile, "", GgufFile::open("/dev/zero", options));
#endif
  }
  try {
    GgufFile::open(folder.path("absent"));
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find(folder.path("absent")) != std::string::npos);
    CHECK(std::string(e.what()).find("No such file") != std::string::npos ||
          std::string(e.what()).find("cannot find") != std::string::npos);
  }
}

TEST("file map: bytes, moves") {
  const TempFolder folder;
  const Bytes bytes = sample().build();
  const std::string path = folder.write("a", bytes);
  for (const bool map : {true, false}) {
    const auto file = File::open(path);
    FileMap one = map ? FileMap::map(file) : FileMap::read(*file, 0);
    const FileMap two = std::move(one);
    CHECK(one.bytes().empty());
    CHECK(std::equal(two.bytes().begin(), two.bytes().end(), bytes.begin(), bytes.end()));
    CHECK(reinterpret_cast<uintptr_t>(two.bytes().data()) % 64 == 0);
    std::vector<size_t> read;
    two.prefetch([&](size_t n) { read.push_back(n); });
    CHECK(read == (map ? std::vector<size_t>{0, bytes.size()} : std::vector<size_t>{}));
  }
}

TEST("file map: reading ahead can be ended") {
  const TempFolder folder;
  const FileMap map = FileMap::map(File::open(folder.write("a", sample().build())));
  const auto enough = [](size_t /*bytes*/) { throw Error(ErrorCode::kDisposed, "CANCELLED", "enough"); };
  CHECK_THROWS(kDisposed, "CANCELLED", map.prefetch(enough));
}

#ifndef _WIN32
namespace {

int sum_of(std::span<const std::byte> bytes) {
  int sum = 0;
  for (const std::byte b : bytes) sum += static_cast<int>(b);
  return sum;
}

// Whether a child survives f. One that does not is killed by the signal, or ended by a sanitizer's handler.
bool survives(const std::function<void()>& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGALRM, SIG_DFL);
    ::alarm(60);  // a signal that comes again and again would never end
    f();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// Reads past the end of a file that nobody guards.
void fault(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY);
  ::ftruncate(::open(path.c_str(), O_RDWR), 0);
  void* p = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0);
  volatile int keeps_the_read = sum_of({static_cast<const std::byte*>(p), 4096});
  static_cast<void>(keeps_the_read);
}

void leave(int /*signal*/) {
  ::_exit(0);
}

}  // namespace

TEST("file map: a file that is cut while it is mapped reads as zeros, and check() says so") {
  const TempFolder folder;
  const Bytes bytes(size_t{1} << 20, std::byte{1});
  for (const size_t left : {size_t{0}, size_t{1}, size_t{4096}, size_t{500000}}) {
    const std::string path = folder.write("cut", bytes);
    const FileMap whole = FileMap::map(File::open(folder.write("whole", bytes)));
    const FileMap read = FileMap::read(*File::open(path), 0);
    const FileMap map = FileMap::map(File::open(path));
    map.check();
    std::filesystem::resize_file(path, left);
    CHECK_THROWS(kFile, "FILE_CHANGED", map.check());
    std::vector<std::thread> threads;  // all of them fault at the same time
    for (int i = 0; i < 4; ++i) threads.emplace_back([&] { CHECK(sum_of(map.bytes()) < (1 << 20)); });
    for (std::thread& thread : threads) thread.join();
    CHECK(map.bytes().back() == std::byte{0});
    std::ofstream(path, std::ios::binary) << std::string(bytes.size(), '\1');  // too late
    CHECK_THROWS(kFile, "FILE_CHANGED", map.check());
    map.prefetch([](size_t) {});
    for (const FileMap* other : {&whole, &read}) {
      other->check();
      CHECK(sum_of(other->bytes()) == (1 << 20));
    }
  }
  // Places of mappings that went are taken again.
  for (int i = 0; i < 1000; ++i) FileMap::map(File::open(folder.path("whole"))).check();
}

TEST("file map: writing to a mapped file is noticed, renaming another over it and removing it are not") {
  const TempFolder folder;
  const std::string path = folder.write("a", Bytes(5000, std::byte{1}));
  {
    const FileMap map = FileMap::map(File::open(path));
    folder.write("b", Bytes(10, std::byte{2}));
    std::filesystem::rename(folder.path("b"), path);
    map.check();
    std::filesystem::remove(path);
    map.check();
    CHECK(sum_of(map.bytes()) == 5000);
  }
  folder.write("a", Bytes(5000, std::byte{1}));
  std::filesystem::last_write_time(path, std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
  const FileMap map = FileMap::map(File::open(path));
  const auto file = File::open(path);
  map.check();
  std::fstream(path, std::ios::binary | std::ios::in | std::ios::out).put('\2');
  CHECK_THROWS(kFile, "FILE_CHANGED", map.check());
  CHECK_THROWS(kFile, "FILE_CHANGED", FileMap::read(*file, 0));
  std::filesystem::resize_file(path, 4999);
  std::vector<std::byte> bytes(5000);
  CHECK_THROWS(kFile, "FILE_CHANGED", file->read(0, bytes));
}

TEST("file map: signals of others go to whom they went before") {
  const TempFolder folder;
  const std::string path = folder.write("a", Bytes(5000, std::byte{1}));
  const FileMap map = FileMap::map(File::open(path));  // the handler is there
  const std::string other = folder.write("b", Bytes(5000, std::byte{1}));
  CHECK(!survives([&] { fault(other); }));
  CHECK(!survives([] { ::raise(SIGBUS); }));
  CHECK(!survives([] { ::kill(::getpid(), SIGBUS); }));
  CHECK(survives([&] {
    ::signal(SIGBUS, leave);  // one that comes later sees it first
    fault(other);
  }));
}
#endif

TEST("messages: what, where, expected, found; no raw bytes of the file") {
  GgufBuilder b = sample();
  b.tensors[0].dims = {3, -7};
  try {
    GgufFile::parse(b.build());
    CHECK(false);
  } catch (const Error& e) {
    const std::string message = e.what();
    for (const char* part : {"tensor \"first\"", "dimension 1 is -7", "at byte"})
      CHECK(message.find(part) != std::string::npos);
  }
  b.magic = "\x01\x02\n\xff";
  try {
    GgufFile::parse(b.build());
    CHECK(false);
  } catch (const Error& e) {
    for (const char* p = e.what(); *p != 0; ++p) CHECK(*p >= 0x20 && *p < 0x7f);
  }
}

TEST("mutations: 20,000 broken files end in a value or an Error") {
  test::TinyGemma size;
  size.n_layers = 1;
  test::TinyVision vision;
  vision.n_layers = 1;
  vision.model_dim = 16;
  vision.ffn_dim = 24;
  vision.image_size = 8;
  vision.patch_size = 2;
  const Bytes seeds[] = {test::tiny_gemma3(size).build(), sample().build(), test::tiny_mmproj(vision).build()};
  // The header of the first is some 6 KB, its data are of no interest to the parser.
  const uint64_t interesting[] = {0,
                                  1,
                                  4,
                                  9,
                                  31,
                                  64,
                                  0x7f,
                                  0x80,
                                  0xff,
                                  0xffff,
                                  1u << 31,
                                  0xffffffffu,
                                  uint64_t{1} << 32,
                                  uint64_t{1} << 62,
                                  uint64_t{1} << 63,
                                  ~uint64_t{0}};
  gguf_fuzz_counts = {};
  std::mt19937 rng(42);
  const auto below = [&](size_t n) { return static_cast<size_t>(rng() % n); };
  for (int round = 0; round < 20000; ++round) {
    const Bytes& seed = seeds[below(std::size(seeds))];
    Bytes bytes = seed;
    const size_t header = std::min<size_t>(bytes.size(), 8192);
    for (size_t n = 1 + below(3); n > 0; --n) {
      const size_t at = below(header - 8);
      switch (below(5)) {
        case 0: bytes[at] ^= static_cast<std::byte>(1u << below(8)); break;
        case 1: bytes[at] = static_cast<std::byte>(rng()); break;
        case 2: std::memcpy(&bytes[at], &interesting[below(std::size(interesting))], below(2) == 0 ? 4 : 8); break;
        case 3: {  // move a piece over another
          const size_t length = 1 + below(64);
          const size_t from = below(header - 8);
          std::memmove(&bytes[at], &bytes[from], std::min(length, bytes.size() - std::max(at, from)));
          break;
        }
        default: bytes.resize(std::max<size_t>(bytes.size() - below(64), header)); break;
      }
    }
    const Exact exact(bytes);
    const auto span = exact.bytes();
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(span.data()), span.size());
  }
  const auto [n_parsed, n_models, n_visions] = gguf_fuzz_counts;
  // Measured: 5,910 files, 1,215 models, 2,761 encoders. The order in which a compiler draws the random numbers moves
  // them a little; mutations that always or never break the file would leave these bounds.
  CHECK(n_parsed > 4000 && n_parsed < 10000);
  CHECK(n_models > 600 && n_models < n_parsed);
  CHECK(n_visions > 1500 && n_visions < n_parsed);
}

TEST("reference files: opened, every tensor in place") {
  int n_files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(data(""))) {
    if (entry.path().extension() != ".gguf") continue;
    const auto file = GgufFile::open(entry.path().string());
    CHECK(!file->tensors().empty() && file->version() == 3);
    for (const Tensor& tensor : file->tensors()) {
      int64_t n = 1;
      for (const int64_t dim : tensor.shape) n *= dim;
      CHECK(tensor.bytes == row_bytes(tensor.type, n) && file->find_tensor(tensor.name) == &tensor);
    }
    ++n_files;
  }
  CHECK(n_files >= 6);
}

TEST_MAIN

#include "runtime/quantize_file.h"

#include <optional>
#include <utility>

#include "base/error.h"
#include "runtime/importance.h"

namespace gemma {

QuantizeResult quantize_file(const QuantizeOptions& options) {
  if (options.cancel != nullptr && options.cancel->load())
    throw Error(ErrorCode::kDisposed, "CANCELLED", "quantising was cancelled");
  FileTypes types;
  types.quantization = &need_file_quantization(options.type, "type");
  types.overrides = options.overrides;
  types.allow_requantize = options.allow_requantize;
  const FileQuantization& mmproj = need_file_quantization(options.mmproj_type, "mmprojType");
  check_output(options.output, options.overwrite);
  ModelInput input = ModelInput::open(options.path, options.chat_template);
  types.heads_per_kv_head = input.heads_per_kv_head();
  std::optional<Importance> importance;
  if (!options.importance_path.empty()) importance = read_importance(options.importance_path);
  if (importance) types.importance = &importance->columns;

  QuantizeResult result;
  std::vector<FileToWrite> files;
  in_file(options.path, [&] {
    files.push_back(plan_file(options.output, input.main(), types, nullptr, &result.fallbacks));
    if (!input.vision() || options.mmproj_output.empty()) return no_mmproj(options);
    FileTypes vision_types;
    vision_types.quantization = &mmproj;
    files.push_back(plan_file(options.mmproj_output, *input.vision(), vision_types, nullptr, &result.fallbacks));
  });
  const WriteSource source{.name = options.path,
                           .version = input.version(),
                           .check = [&] { input.check(); },
                           .release = [&](std::span<const std::byte> data) { input.release(data); }};
  result.take(write_files(files, source, options), files);
  result.source_bytes = input.bytes();
  return result;
}

void no_mmproj(const QuantizeOptions& options) {
  if (!options.needs_mmproj) return;
  throw Error(ErrorCode::kInvalidArgument, "NO_MMPROJ",
              "mmprojOutput: the model has no vision encoder that would be written there");
}

void QuantizeResult::take(WrittenFiles written, const std::vector<FileToWrite>& files) {
  bytes = written.files[0].bytes;
  types = std::move(written.files[0].types);
  n_resumed = written.n_resumed;
  if (files.size() > 1) mmproj = {files[1].path, written.files[1].bytes, std::move(written.files[1].types)};
}

}  // namespace gemma

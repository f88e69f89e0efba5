#include "runtime/adapters.h"

#include "base/error.h"

namespace gemma {

void AdapterRegistry::unknown(const std::string& name) const {
  std::string known;
  for (const auto& [other, adapter] : by_name_) known += (known.empty() ? "" : ", ") + other;
  throw Error(ErrorCode::kInvalidArgument, "UNKNOWN_ADAPTER",
              "adapter \"" + shown_path(name) + "\": no adapter of that name is loaded; " +
                  (known.empty() ? "there is none" : "there are " + known));
}

void AdapterRegistry::add(const std::shared_ptr<const Adapter>& adapter) {
  const std::lock_guard lock(mutex_);
  if (!by_name_.emplace(adapter->info().name, adapter).second) {
    throw Error(ErrorCode::kInvalidArgument, "ADAPTER_EXISTS",
                "adapter \"" + shown_path(adapter->info().name) + "\": one of that name is loaded already");
  }
}

void AdapterRegistry::check_free(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  if (!by_name_.contains(name)) return;
  throw Error(ErrorCode::kInvalidArgument, "ADAPTER_EXISTS",
              "adapter \"" + shown_path(name) + "\": one of that name is loaded already");
}

void AdapterRegistry::remove(const std::string& name) {
  const std::lock_guard lock(mutex_);
  if (by_name_.erase(name) == 0) unknown(name);
}

std::vector<AdapterInfo> AdapterRegistry::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<AdapterInfo> all;
  for (const auto& [name, adapter] : by_name_) all.push_back(adapter->info());
  return all;
}

std::shared_ptr<const AdapterMix> AdapterRegistry::mix(const std::vector<AdapterUse>& uses) const {
  if (uses.empty()) return nullptr;
  std::vector<AdapterMix::Use> found;
  {
    const std::lock_guard lock(mutex_);
    for (const AdapterUse& use : uses) {
      const auto at = by_name_.find(use.name);
      if (at == by_name_.end()) unknown(use.name);
      found.push_back({at->second, use.scale});
    }
  }
  return make_mix(std::move(found));
}

void AdapterRegistry::clear() {
  const std::lock_guard lock(mutex_);
  by_name_.clear();
}

std::shared_ptr<Adapter> prepare_adapter(const NamedAdapter& source, const AdapterTarget& target,
                                         const std::function<bool()>& should_stop) {
  const AdapterTensors tensors = read_adapter(source.source, false);
  return in_file(source.source.path, [&] {
    auto adapter = std::make_shared<Adapter>(tensors, target, should_stop);
    adapter->set_name(source.name);
    return adapter;
  });
}

}  // namespace gemma

// The adapters of an engine by their names. A request keeps those that it was asked for with: what is unloaded meanwhile
// stays until the last one is finished.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "model/adapter.h"
#include "reader/adapter_file.h"
#include "runtime/load_options.h"
#include "runtime/prompt.h"

namespace gemma {

struct LoadedModel;

class AdapterRegistry {
 public:
  // Throws Error{kInvalidArgument, ADAPTER_EXISTS}.
  void add(const std::shared_ptr<const Adapter>& adapter);
  // Throws Error{kInvalidArgument, UNKNOWN_ADAPTER}.
  void remove(const std::string& name);
  void check_free(const std::string& name) const;  // throws as add()
  std::vector<AdapterInfo> list() const;
  // Throws Error: kInvalidArgument, UNKNOWN_ADAPTER; kAdapterInvalid, CONFLICT.
  std::shared_ptr<const AdapterMix> mix(const std::vector<AdapterUse>& uses) const;
  void clear();

 private:
  [[noreturn]] void unknown(const std::string& name) const;

  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const Adapter>> by_name_;
};

// Reads an adapter for a model, all but install(). Blocking, for seconds with DoRA; any thread. Throws Error as
// read_adapter() and Adapter do, with messages that name the file.
std::shared_ptr<Adapter> prepare_adapter(const NamedAdapter& source, const AdapterTarget& target,
                                         const std::function<bool()>& should_stop);

}  // namespace gemma

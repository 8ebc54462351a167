#include "ops/cc/embedding/table/embedding_store.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <atomic>
#include <cstdint>
#include <utility>

namespace millrace {
namespace {

void AppendChoice(const std::string& choice, std::string* list) {
  if (!list->empty()) *list += ", ";
  *list += choice;
}

}  // namespace

Status EmbeddingStore::Create(const std::string& name, const std::vector<std::string>& table_texts,
                              std::shared_ptr<EmbeddingStore>* result) {
  static std::atomic<uint64_t> last_incarnation{0};
  auto store = std::make_shared<EmbeddingStore>();
  store->name_ = name;
  store->incarnation_ = ++last_incarnation;
  store->table_texts_ = table_texts;
  for (const std::string& text : table_texts) {
    TableConfig config;
    MILLRACE_RETURN_IF_ERROR(TableConfig::Parse(text, &config));
    for (const auto& table : store->tables_) {
      if (table->config().name == config.name) return InvalidArgument("table '" + config.name + "' is given twice");
    }
    std::unique_ptr<EmbeddingTable> table;
    MILLRACE_RETURN_IF_ERROR(EmbeddingTable::Create(config, &table));
    store->tables_.push_back(std::move(table));
  }
  *result = std::move(store);
  return {};
}

EmbeddingStore::~EmbeddingStore() {
  tables_.clear();
#ifdef __GLIBC__
  malloc_trim(0);  // a server that swaps versions must not keep the old one's pages in its heap
#endif
}

Status EmbeddingStore::Find(const std::string& table, EmbeddingTable** result) const {
  for (const auto& candidate : tables_) {
    if (candidate->config().name == table) {
      *result = candidate.get();
      return {};
    }
  }
  std::string choices;
  for (const auto& candidate : tables_) AppendChoice(candidate->config().name, &choices);
  return NotFound("store '" + name_ + "' has no table '" + table + "'; it has: " + choices);
}

StoreRegistry& StoreRegistry::Global() {
  static auto* registry = new StoreRegistry();  // never destroyed: kernels may still run when the process exits
  return *registry;
}

Status StoreRegistry::Open(const std::string& name, const std::vector<std::string>& table_texts,
                           std::shared_ptr<EmbeddingStore>* result) {
  const std::lock_guard lock(mutex_);
  const auto found = stores_.find(name);
  if (found == stores_.end()) {
    Registered registered;
    MILLRACE_RETURN_IF_ERROR(EmbeddingStore::Create(name, table_texts, &registered.store));
    registered.owners = 1;
    *result = registered.store;
    stores_.emplace(name, std::move(registered));
    return {};
  }
  if (found->second.store->table_texts() != table_texts) {
    return InvalidArgument("store '" + name + "' is already open in this process with other tables");
  }
  ++found->second.owners;
  *result = found->second.store;
  return {};
}

Status StoreRegistry::Find(const std::string& name, std::shared_ptr<EmbeddingStore>* result) const {
  const std::lock_guard lock(mutex_);
  const auto found = stores_.find(name);
  if (found != stores_.end()) {
    *result = found->second.store;
    return {};
  }
  std::string open;
  for (const auto& [other, registered] : stores_) AppendChoice(other, &open);
  return NotFound("embedding store '" + name +
                  "' is not open in this process; open are: " + (open.empty() ? "none" : open));
}

void StoreRegistry::Close(const std::string& name, uint64_t incarnation, bool force) {
  std::shared_ptr<EmbeddingStore> last;  // freed after the lock is released: that may take long
  const std::lock_guard lock(mutex_);
  const auto found = stores_.find(name);
  if (found == stores_.end() || found->second.store->incarnation() != incarnation) return;
  if (--found->second.owners > 0 && !force) return;
  last = std::move(found->second.store);
  stores_.erase(found);
}

}  // namespace millrace

// Tables by name, and the process-wide registry of stores.
#ifndef MILLRACE_EMBEDDING_EMBEDDING_STORE_H_
#define MILLRACE_EMBEDDING_EMBEDDING_STORE_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ops/cc/embedding/table/embedding_table.h"

namespace millrace {

class EmbeddingStore {
 public:
  // `table_texts`: one TableConfig text per table, names all different.
  static Status Create(const std::string& name, const std::vector<std::string>& table_texts,
                       std::shared_ptr<EmbeddingStore>* result);
  ~EmbeddingStore();

  const std::string& name() const { return name_; }
  // Never 0 and never used twice in a process: tells a store from a later one of the same name.
  uint64_t incarnation() const { return incarnation_; }
  const std::vector<std::string>& table_texts() const { return table_texts_; }
  // In the order of creation.
  const std::vector<std::unique_ptr<EmbeddingTable>>& tables() const { return tables_; }
  // NotFound names the choices.
  Status Find(const std::string& table, EmbeddingTable** result) const;

  // Runs `action` unless an earlier one succeeded; callers wait for each other.
  template <typename Action>  // Status()
  Status DoOnce(Action action) {
    const std::lock_guard lock(once_mutex_);
    if (done_once_) return {};
    MILLRACE_RETURN_IF_ERROR(action());
    done_once_ = true;
    return {};
  }

  // One cut (store_snapshot.h) at a time: returns whether the caller is the one who may take it.
  bool AcquireCut() { return !cut_is_open_.exchange(true); }
  void ReleaseCut() { cut_is_open_ = false; }

 private:
  std::string name_;
  uint64_t incarnation_ = 0;
  std::vector<std::string> table_texts_;
  std::vector<std::unique_ptr<EmbeddingTable>> tables_;
  std::mutex once_mutex_;
  bool done_once_ = false;
  std::atomic<bool> cut_is_open_{false};
};

// Stores live here, not with a client, so they outlast a coordinator that reconnects. Each Open is matched by a Close;
// a store is freed with its last owner, after the calls that still use it.
class StoreRegistry {
 public:
  static StoreRegistry& Global();

  // Creates the store or joins it; a store of this name with other tables is refused.
  Status Open(const std::string& name, const std::vector<std::string>& table_texts,
              std::shared_ptr<EmbeddingStore>* result);
  // NotFound names the open stores.
  Status Find(const std::string& name, std::shared_ptr<EmbeddingStore>* result) const;
  // No-op when that incarnation is not open any more. With `force` all owners lose it.
  void Close(const std::string& name, uint64_t incarnation, bool force);

 private:
  struct Registered {
    std::shared_ptr<EmbeddingStore> store;
    int owners = 0;
  };
  mutable std::mutex mutex_;
  std::map<std::string, Registered> stores_;
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_EMBEDDING_STORE_H_

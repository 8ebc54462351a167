// One table in one file, checked by CRC-32C.
//
// Little endian. Eight bytes "MILLTBL1"; uint32 length of the header text; the text; uint32 CRC-32C of all before it.
// The text:
//   format_version=1;table=movies;dim=16;optimizer=adagrad;state_floats=16;count=00000000000000001234
// (`optimizer` is `none` and `state_floats` 0 when only weights are in the file). Then blocks until `count` entries
// have come:
//   uint32 n; int64 fid[n]; uint32 timestamp[n]; float32 value[n][dim + state_floats]; uint32 CRC-32C
// where the CRC covers the block's index as uint32, then the block. Nothing follows. Equal tables give equal files.
#ifndef MILLRACE_EMBEDDING_TABLE_SNAPSHOT_H_
#define MILLRACE_EMBEDDING_TABLE_SNAPSHOT_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ops/cc/embedding/embedding_store.h"

namespace millrace {

struct SnapshotHeader {
  std::string table;
  int dim = 0;
  std::string optimizer;
  int state_floats = 0;
  int64_t count = 0;
};

// Writes `path` beside, synced, then renamed. Fails when entries come or go meanwhile.
Status SaveTable(const EmbeddingTable& table, const std::string& path, bool with_state);

// Reads and checks the whole file; `on_block` sees each good block. DataLoss names the file and the block.
Status ReadSnapshot(const std::string& path, SnapshotHeader* header,
                    const std::function<void(const EntryBlock&)>& on_block);

// Saves every table of `store` into `folder` (created), one file each; `files` are their paths, in table order.
Status SaveStore(const EmbeddingStore& store, const std::string& folder, bool with_state,
                 std::vector<std::string>* files);

// Replaces the content of every table. All files are checked before the first entry changes: each table needs exactly
// one file of its name, dim and optimizer. Tables without an optimizer take any file of their dim and leave its state
// out.
Status RestoreStore(EmbeddingStore* store, const std::vector<std::string>& files);

// The same, but no-op after the first success.
Status RestoreStoreOnce(EmbeddingStore* store, const std::vector<std::string>& files);

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_TABLE_SNAPSHOT_H_

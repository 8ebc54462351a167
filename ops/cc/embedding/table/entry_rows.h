// Entries outside of their table.
#ifndef MILLRACE_EMBEDDING_ENTRY_ROWS_H_
#define MILLRACE_EMBEDDING_ENTRY_ROWS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ops/cc/embedding/rules/entry_layout.h"
#include "ops/cc/embedding/table/entry_arena.h"
#include "ops/cc/embedding/table/fid_map.h"

namespace millrace {

// Writes the entry of `slot` and its header at `row`, which has layout.row_bytes() bytes.
inline void WriteRow(const EntryLayout& layout, const EntryArena& arena, const FidMap::Slot& slot, char* row) {
  RowHeader::Write(slot.fid, slot.timestamp, row);
  std::memcpy(RowHeader::EntryOf(row), arena.At(slot.handle), static_cast<size_t>(layout.entry_bytes()));
}

// Entries one after the other: a RowHeader (entry_layout.h) and the entry each.
struct EntryRows {
  int64_t row_bytes = 0;
  std::vector<char> bytes;

  int64_t size() const { return row_bytes == 0 ? 0 : static_cast<int64_t>(bytes.size()) / row_bytes; }
  const char* at(int64_t i) const { return bytes.data() + i * row_bytes; }
  // Appends the entry of `slot`; `layout` is that of the rows.
  void AppendFrom(const EntryLayout& layout, const EntryArena& arena, const FidMap::Slot& slot) {
    bytes.resize(bytes.size() + static_cast<size_t>(row_bytes));
    WriteRow(layout, arena, slot, bytes.data() + bytes.size() - row_bytes);
  }
};

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_ENTRY_ROWS_H_

#include "ops/cc/embedding/table/cut_session.h"

#include <cstddef>

namespace millrace {

void CutSession::End() {
  marks_.reset();
  for (Kept& kept : kept_) kept.rows = RowLog();
}

void CutSession::BeforeClear(int shard, const FidMap& map) {
  for (uint64_t start = marks_ == nullptr ? FidMap::kEnd : 0; start != FidMap::kEnd;) {
    start = map.VisitPage(start, [&](const FidMap::Slot& slot) { Keep(shard, slot); });
  }
}

void CutSession::Keep(int shard, const FidMap::Slot& slot) {
  if (!marks_->Holds(slot.handle)) return;
  WriteRow(layout_, arena_, slot, kept_[shard].rows.Append(static_cast<size_t>(layout_.row_bytes())));
  marks_->Drop(slot.handle);
}

void CutSession::TakePage(const FidMap& map, uint64_t* start, EntryRows* rows) {
  *start = map.VisitPage(*start, [&](const FidMap::Slot& slot) {
    if (!marks_->Holds(slot.handle)) return;
    rows->AppendFrom(layout_, arena_, slot);
    marks_->Drop(slot.handle);
  });
}

}  // namespace millrace

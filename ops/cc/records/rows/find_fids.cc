#include "ops/cc/records/rows/find_fids.h"

#include <algorithm>
#include <cstdint>

#include "ops/cc/embedding/base/cpu_clones.h"
#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/arrow/arrow_reader.h"
#include "ops/cc/records/c_api.h"
#include "ops/cc/records/c_guard.h"

namespace millrace::records {
namespace {

constexpr int64_t kBlock = 16;  // fids that a few vector instructions compare without a branch

bool AnyOf(const int64_t* fids, int64_t size, const int64_t* wanted, int32_t count) {
  uint64_t any = 0;
  for (int32_t k = 0; k < count; ++k) {
    for (int64_t i = 0; i < size; ++i) any |= static_cast<uint64_t>(fids[i] == wanted[k]);
  }
  return any != 0;
}

MILLRACE_PLAIN_CLONES void FindInColumn(const ArrayReader& column, int64_t rows, const int64_t* wanted, int32_t count,
                                        uint8_t* found) {
  if (rows == 0 || column.Begin(0) == column.End(rows - 1)) return;
  const ArrayReader values = column.Values();
  const int64_t* const fids = values.Numbers<int64_t>(0);
  const int64_t end = column.End(rows - 1);
  int64_t row = 0;
  for (int64_t begin = column.Begin(0); begin < end; begin += kBlock) {
    const int64_t size = std::min(kBlock, end - begin);
    const bool any =
        size == kBlock ? AnyOf(fids + begin, kBlock, wanted, count) : AnyOf(fids + begin, size, wanted, count);
    if (!any) continue;
    for (int64_t i = begin; i < begin + size; ++i) {
      const auto k = std::find(wanted, wanted + count, fids[i]) - wanted;
      if (k == count) continue;
      while (column.End(row) <= i) ++row;
      if (!column.IsNull(row) && !values.IsNull(i)) found[row] |= static_cast<uint8_t>(1u << k);
    }
  }
}

}  // namespace

void FindFids(const ArrowArray& batch, const int64_t* wanted, int32_t count, uint8_t* found) {
  for (int64_t c = 0; c < batch.n_children; ++c) {
    FindInColumn(ArrayReader(*batch.children[c], batch.offset), batch.length, wanted, count, found);
  }
}

}  // namespace millrace::records

using namespace millrace::records;

int32_t millrace_find_fids(ArrowArray* batch, const int64_t* wanted, int32_t count, uint8_t* found) {
  return Guarded([=] {
    const ArrayOwner owner(batch);
    FindFids(*batch, wanted, count, found);
    return CallStatus::kDone;
  });
}

// The types that columns of records have, and their names in Arrow.
#ifndef MILLRACE_RECORDS_COLUMN_TYPE_H_
#define MILLRACE_RECORDS_COLUMN_TYPE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "ops/cc/records/arrow/arrow_abi.h"

namespace millrace::records {

enum class Value : uint8_t { kInt64, kInt32, kFloat, kDouble, kBool, kBytes, kText };
enum class Kind : uint8_t { kPlain, kFid, kFidV1, kRaw };

struct ColumnType {
  Value value = Value::kInt64;
  uint8_t depth = 0;  // 0: one value per row, 1: a list of values, 2: a list of lists
  Kind kind = Kind::kPlain;

  bool has_bytes() const { return value == Value::kBytes || value == Value::kText; }
};

constexpr bool operator==(ColumnType a, ColumnType b) {
  return a.value == b.value && a.depth == b.depth && a.kind == b.kind;
}
constexpr bool operator!=(ColumnType a, ColumnType b) { return !(a == b); }

// Bytes of one value; of a value of variable length, of a unit of its data.
size_t WidthOf(Value value);

// The format string of a value.
const char* FormatOf(Value value);

// As a message names it: "list<list<int64>> of fids".
std::string NameOf(ColumnType type);

// The metadata of a field: its kind, its number unless that is 0, and whether rows share its values; empty for none.
std::string MetadataOf(Kind kind, int32_t id, bool is_shared);

// False when no record has such a column. `id` is 0 where the metadata gives none.
bool ParseField(const ArrowSchema& field, ColumnType* type, int32_t* id);

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_COLUMN_TYPE_H_

// The names of a batch's features and their columns.
#ifndef MILLRACE_RECORDS_FEATURE_TABLE_H_
#define MILLRACE_RECORDS_FEATURE_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/arrow/column.h"

namespace millrace::records {

// What a name in a list of features stands for.
enum class Role : uint8_t { kFeature, kSkipped, kLineId, kLabel, kWeight, kMetadata };

enum class NameProblem : uint8_t { kNone, kNotUtf8, kHasNul, kTooMany };

struct NamedColumn {
  std::string name;
  Role role = Role::kFeature;
  int32_t id = 0;
  bool is_shared = false;          // a record had one value list for all its rows
  bool is_individual = false;      // a record had one value list per row
  int64_t record = -1;             // the last record that had it
  size_t next = 0;                 // what followed it in that record
  std::unique_ptr<Column> column;  // null until the type is known
};

class FeatureTable {
 public:
  static constexpr size_t kMaxNames = 8192;

  FeatureTable();

  // Lets only these features be decoded, in this order. A field of type null takes the type of its first value. False:
  // a field has a type that no record has; `problem` names it.
  bool Want(const ArrowSchema& wanted, std::string* problem);

  void BeginRecord();
  // Null when the name is not UTF-8 or has a NUL, which Arrow's C interface would cut, or is one more than kMaxNames.
  NamedColumn* Find(std::string_view name, NameProblem* problem);
  // Gives a column its type.
  void Create(NamedColumn* named, ColumnType type, int32_t id);
  // Removes what was added for the record; columns keep their first `rows`.
  void Rollback(int64_t rows);

  int64_t record() const { return record_; }
  // Columns that have a type.
  int64_t width() const { return width_; }
  // Whether any name may become a column, not those alone that are wanted.
  bool infers() const { return infer_; }
  const std::vector<std::unique_ptr<NamedColumn>>& columns() const { return columns_; }

 private:
  NamedColumn* FindSlowly(std::string_view name, NameProblem* problem);
  NamedColumn* Insert(std::string_view name, Role role);

  bool infer_ = true;
  std::vector<std::unique_ptr<NamedColumn>> columns_;  // in order of appearance
  std::unordered_map<std::string_view, size_t> index_;
  NamedColumn unknown_;
  NamedColumn* last_ = nullptr;
  size_t first_ = 0;  // what begins a record
  int64_t record_ = -1;
  size_t columns_before_ = 0;
  std::vector<NamedColumn*> created_;  // in this record
  int64_t width_ = 0;
};

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_FEATURE_TABLE_H_

// A record batch out of the library, and whether it is well-formed.
#ifndef MILLRACE_TESTS_CC_RECORDS_ARROW_BATCH_H_
#define MILLRACE_TESTS_CC_RECORDS_ARROW_BATCH_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/arrow/arrow_reader.h"
#include "ops/cc/records/decode/record_decoder.h"
#include "ops/cc/records/decode/record_rows.h"

namespace millrace::records {

// What is wrong with an array: offsets that fall or point past the values, nulls that are miscounted; or empty.
inline std::string FaultOf(const ArrowSchema& schema, const ArrowArray& array) {
  const ArrayReader reader(array);
  int64_t nulls = 0;
  for (int64_t i = 0; i < array.length; ++i) nulls += reader.IsNull(i) ? 1 : 0;
  if (nulls != array.null_count) return "nulls";
  const std::string_view format = schema.format;
  if (format == "+l" || format == "z" || format == "u") {
    int64_t last = reader.Begin(0);
    for (int64_t i = 0; i < array.length; ++i) {
      if (reader.Begin(i) != last || reader.End(i) < last) return "offsets";
      last = reader.End(i);
    }
    if (format == "+l" && last != array.children[0]->length) return "values";
  }
  for (int64_t i = 0; i < array.n_children; ++i) {
    if (format == "+s" && array.children[i]->length != array.length) return "column length";
    const std::string fault = FaultOf(*schema.children[i], *array.children[i]);
    if (!fault.empty()) return std::string(schema.children[i]->name) + ": " + fault;
  }
  return "";
}

class ArrowBatch {
 public:
  ArrowBatch() = default;
  ArrowBatch(const ArrowBatch&) = delete;
  ArrowBatch& operator=(const ArrowBatch&) = delete;
  ~ArrowBatch() {
    if (schema.release != nullptr) schema.release(&schema);
    if (array.release != nullptr) array.release(&array);
  }

  int64_t rows() const { return array.length; }
  std::string fault() const { return FaultOf(schema, array); }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (int64_t i = 0; i < schema.n_children; ++i) names.emplace_back(schema.children[i]->name);
    return names;
  }
  // -1 for none.
  int64_t IndexOf(std::string_view name) const {
    for (int64_t i = 0; i < schema.n_children; ++i) {
      if (name == schema.children[i]->name) return i;
    }
    return -1;
  }
  ArrayReader column(std::string_view name) const { return ArrayReader(*array.children[IndexOf(name)]); }
  // Of a column of lists.
  template <typename Number>
  std::vector<Number> List(std::string_view name, int64_t row) const {
    const ArrayReader lists = column(name);
    std::vector<Number> values(static_cast<size_t>(lists.End(row) - lists.Begin(row)));
    if (!values.empty()) {
      std::memcpy(values.data(), lists.Values().Numbers<Number>(lists.Begin(row)), values.size() * sizeof(Number));
    }
    return values;
  }

  ArrowSchema schema{};
  ArrowArray array{};
};

struct Decoded {
  Decoded(const std::vector<std::string>& records, Format format, const DecodeOptions& options = {}) {
    RecordRows decoded(options);
    const auto decoder = MakeDecoder(format, &decoded);
    int64_t bytes = 0;
    for (const std::string& record : records) bytes += static_cast<int64_t>(record.size());
    decoded.LimitCells(static_cast<int64_t>(records.size()), bytes);
    for (size_t i = 0; i < records.size(); ++i) {
      const auto* const begin = reinterpret_cast<const uint8_t*>(records[i].data());
      const Span record = {begin, begin + records[i].size()};
      decoded.BeginRecord({record, 0, static_cast<int64_t>(i), 0, 0});
      if (decoder->Decode(record)) {
        decoded.Commit();
      } else {
        decoded.Rollback(static_cast<int64_t>(i));
      }
    }
    decoded.Export(&rows.schema, &rows.array);
    decoded.ExportRefusals(&refused.schema, &refused.array);
  }

  int64_t refused_row(int64_t i) const { return *refused.column("row").Numbers<int64_t>(i); }
  std::string reason(int64_t i) const { return std::string(refused.column("reason").Bytes(i).text()); }
  std::string detail(int64_t i) const { return std::string(refused.column("detail").Bytes(i).text()); }

  ArrowBatch rows, refused;
};

}  // namespace millrace::records

#endif  // MILLRACE_TESTS_CC_RECORDS_ARROW_BATCH_H_

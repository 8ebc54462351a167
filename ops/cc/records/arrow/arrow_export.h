// Makes ArrowArray and ArrowSchema that own what they point to.
#ifndef MILLRACE_RECORDS_ARROW_EXPORT_H_
#define MILLRACE_RECORDS_ARROW_EXPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/arrow/buffer.h"
#include "ops/cc/records/arrow/column_type.h"

namespace millrace::records {

// `buffers[0]` is the validity bitmap; an empty buffer is null. Children are moved.
void ExportArray(int64_t length, int64_t null_count, std::vector<Buffer> buffers, std::vector<ArrowArray> children,
                 ArrowArray* array);

void ExportField(const std::string& name, ColumnType type, int32_t id, bool nullable, ArrowSchema* schema,
                 bool is_shared = false);

// The schema of a record batch. Children are moved.
void ExportStruct(std::vector<ArrowSchema> children, ArrowSchema* schema);

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_ARROW_EXPORT_H_

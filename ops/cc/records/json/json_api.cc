// Blocks of JSON objects to columns, as far as the objects are plain.
#include <cstdint>
#include <new>

#include "ops/cc/records/arrow/arrow_reader.h"
#include "ops/cc/records/c_api.h"
#include "ops/cc/records/json/json_reader.h"

// Reads the objects of a binary array, which is released.
//
//   schema: of the fields to read
//   max_bytes: larger values are not read
//   is_plain: gets a byte a value: 1 where it became a row
//   rows: gets a struct array, one row a plain value
//
// Returns 0, or 1 when memory ran out, or 2 when the schema has a type that is not read here.
MILLRACE_C_API int32_t millrace_read_json(const ArrowSchema* schema, ArrowArray* values, int64_t max_bytes,
                                          uint8_t* is_plain, ArrowArray* rows) {
  try {
    const millrace::ArrayOwner owner(values);
    millrace::JsonReader reader;
    if (!reader.Open(*schema)) return 2;
    const millrace::ArrayReader objects(*values);
    for (int64_t i = 0; i < values->length; ++i) {
      const millrace::Span value = objects.IsNull(i) ? millrace::Span{} : objects.Bytes(i);
      is_plain[i] = value.size() <= static_cast<size_t>(max_bytes) && reader.Add(value) ? 1 : 0;
    }
    reader.Export(rows);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

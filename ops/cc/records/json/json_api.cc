// Blocks of JSON objects to columns, as far as the objects are plain.
#include <cstddef>
#include <cstdint>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/arrow/arrow_reader.h"
#include "ops/cc/records/c_api.h"
#include "ops/cc/records/c_guard.h"
#include "ops/cc/records/json/json_reader.h"
#include "ops/cc/records/wire/wire.h"

using namespace millrace::records;

int32_t millrace_read_json(const ArrowSchema* schema, ArrowArray* values, int64_t max_bytes, uint8_t* is_plain,
                           ArrowArray* rows) {
  return Guarded([=] {
    const ArrayOwner owner(values);
    JsonReader reader;
    if (!reader.Open(*schema)) return CallStatus::kUnsupported;
    const ArrayReader objects(*values);
    for (int64_t i = 0; i < values->length; ++i) {
      const Span value = objects.IsNull(i) ? Span{} : objects.Bytes(i);
      is_plain[i] = value.size() <= static_cast<size_t>(max_bytes) && reader.Add(value) ? 1 : 0;
    }
    reader.Export(rows);
    return CallStatus::kDone;
  });
}

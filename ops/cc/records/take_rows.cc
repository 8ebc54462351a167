#include "ops/cc/records/take_rows.h"

#include <cstring>
#include <limits>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/cc/records/arrow_export.h"
#include "ops/cc/records/arrow_reader.h"
#include "ops/cc/records/buffer.h"
#include "ops/cc/records/c_api.h"

namespace millrace {
namespace {

struct Range {
  int64_t begin, end;
};

// What to take of an array, in order.
struct Selection {
  std::vector<Range> ranges;
  int64_t length = 0;

  void Add(int64_t begin, int64_t end) {
    if (begin == end) return;
    if (!ranges.empty() && ranges.back().end == begin) {
      ranges.back().end = end;
    } else {
      ranges.push_back({begin, end});
    }
    length += end - begin;
  }
};

enum class Layout { kOther, kBits, kNumbers, kBytes, kList };

struct Type {
  Layout layout;
  size_t width;  // bytes of a number
};

Type TypeOf(const ArrowSchema& schema) {
  const std::string_view format = schema.format;
  if (schema.dictionary != nullptr) return {Layout::kOther, 0};
  if (format == "+l") return {Layout::kList, 0};
  if (format == "z" || format == "u") return {Layout::kBytes, 0};
  if (format == "b") return {Layout::kBits, 0};
  if (format == "l" || format == "L" || format == "g") return {Layout::kNumbers, 8};
  if (format == "i" || format == "I" || format == "f") return {Layout::kNumbers, 4};
  if (format == "s" || format == "S") return {Layout::kNumbers, 2};
  if (format == "c" || format == "C") return {Layout::kNumbers, 1};
  return {Layout::kOther, 0};
}

Buffer TakeBits(const void* buffer, int64_t offset, const Selection& chosen, int64_t* zeros) {
  const auto* const bits = static_cast<const uint8_t*>(buffer);
  Buffer taken;
  taken.ExtendZero(static_cast<size_t>((chosen.length + 7) / 8));
  int64_t at = 0, ones = 0;
  for (const Range& range : chosen.ranges) {
    for (int64_t i = offset + range.begin; i < offset + range.end; ++i, ++at) {
      const uint8_t bit = bits[i / 8] >> i % 8 & 1;
      taken.data()[at / 8] |= static_cast<uint8_t>(bit << at % 8);
      ones += bit;
    }
  }
  *zeros = chosen.length - ones;
  return taken;
}

template <typename Number>
Buffer TakeNumbers(const void* buffer, int64_t offset, const Selection& chosen) {
  constexpr int64_t kFew = 4;  // fewer are copied before memcpy is called
  const Number* const numbers = static_cast<const Number*>(buffer) + offset;
  Buffer taken;
  auto* to = reinterpret_cast<Number*>(taken.Extend(static_cast<size_t>(chosen.length) * sizeof(Number)));
  for (const Range& range : chosen.ranges) {
    const int64_t count = range.end - range.begin;
    if (count > kFew) {
      std::memcpy(to, numbers + range.begin, static_cast<size_t>(count) * sizeof(Number));
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = numbers[range.begin + i];
    }
    to += count;
  }
  return taken;
}

Buffer TakeValues(const ArrowArray& array, Type type, const Selection& chosen) {
  switch (type.width) {
    case 1:
      return TakeNumbers<uint8_t>(array.buffers[1], array.offset, chosen);
    case 2:
      return TakeNumbers<uint16_t>(array.buffers[1], array.offset, chosen);
    case 4:
      return TakeNumbers<uint32_t>(array.buffers[1], array.offset, chosen);
    default:
      return TakeNumbers<uint64_t>(array.buffers[1], array.offset, chosen);
  }
}

// The offsets of lists; `values` becomes what they hold.
Buffer TakeOffsets(const int32_t* offsets, const Selection& chosen, Selection* values) {
  Buffer taken;
  auto* to = reinterpret_cast<int32_t*>(taken.Extend(static_cast<size_t>(chosen.length + 1) * sizeof(int32_t)));
  *to++ = 0;
  values->ranges.reserve(chosen.ranges.size());
  for (const Range& range : chosen.ranges) {
    const int32_t begin = offsets[range.begin], end = offsets[range.end];
    // Wraps where the values are too many, which the caller refuses.
    const uint32_t moved = static_cast<uint32_t>(values->length) - static_cast<uint32_t>(begin);
    for (int64_t i = range.begin; i < range.end; ++i) *to++ = static_cast<int32_t>(offsets[i + 1] + moved);
    values->Add(begin, end);
  }
  return taken;
}

// False, with nothing taken, when the array is of another type or its offsets would not fit.
bool Take(const ArrowSchema& schema, const ArrowArray& array, const Selection& rows, ArrowArray* taken) {
  const Type type = TypeOf(schema);
  if (type.layout == Layout::kOther) return false;
  std::vector<Buffer> buffers(1);
  std::vector<ArrowArray> children;
  int64_t nulls = 0, zeros = 0;
  if (array.null_count != 0 && array.buffers[0] != nullptr) {
    buffers[0] = TakeBits(array.buffers[0], array.offset, rows, &nulls);
  }
  if (type.layout == Layout::kBits) {
    buffers.push_back(TakeBits(array.buffers[1], array.offset, rows, &zeros));
  } else if (type.layout == Layout::kNumbers) {
    buffers.push_back(TakeValues(array, type, rows));
  } else {
    Selection values;
    const int32_t none = 0;
    const auto* const offsets = static_cast<const int32_t*>(array.buffers[1]);
    buffers.push_back(TakeOffsets(offsets != nullptr ? offsets + array.offset : &none, rows, &values));
    if (values.length > std::numeric_limits<int32_t>::max()) return false;
    if (type.layout == Layout::kBytes) {
      buffers.push_back(TakeNumbers<uint8_t>(array.buffers[2], 0, values));
    } else {
      children.emplace_back();
      if (!Take(*schema.children[0], *array.children[0], values, &children[0])) return false;
    }
  }
  ExportArray(rows.length, nulls, std::move(buffers), std::move(children), taken);
  return true;
}

}  // namespace

Taken TakeRows(const ArrowSchema& schema, const ArrowArray& batch, const int64_t* rows, int64_t count,
               ArrowArray* taken) {
  Selection chosen;
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i] < 0 || rows[i] >= batch.length) return Taken::kOutOfRange;
    chosen.Add(batch.offset + rows[i], batch.offset + rows[i] + 1);
  }
  std::vector<ArrowArray> columns;
  for (int64_t c = 0; c < batch.n_children; ++c) {
    columns.emplace_back();
    if (Take(*schema.children[c], *batch.children[c], chosen, &columns.back())) continue;
    columns.pop_back();
    for (ArrowArray& column : columns) column.release(&column);
    return Taken::kUnsupported;
  }
  ExportArray(count, 0, std::vector<Buffer>(1), std::move(columns), taken);
  return Taken::kDone;
}

}  // namespace millrace

// Returns a millrace::Taken. `schema` and `batch` are released.
MILLRACE_C_API int32_t millrace_take_rows(ArrowSchema* schema, ArrowArray* batch, const int64_t* rows, int64_t count,
                                          ArrowArray* taken) {
  const millrace::ArrayOwner owner(batch);
  auto status = millrace::Taken::kOutOfMemory;
  try {
    status = millrace::TakeRows(*schema, *batch, rows, count, taken);
  } catch (const std::bad_alloc&) {
  }
  schema->release(schema);
  return static_cast<int32_t>(status);
}

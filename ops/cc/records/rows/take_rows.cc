#include "ops/cc/records/rows/take_rows.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/arrow/arrow_export.h"
#include "ops/cc/records/arrow/buffer.h"
#include "ops/cc/records/c_api.h"
#include "ops/cc/records/c_guard.h"

namespace millrace::records {
namespace {

using Arrays = std::vector<const ArrowArray*>;

struct Range {
  size_t source;
  int64_t begin, end;
};

// The rows to take from several arrays, in order.
struct Selection {
  std::vector<Range> ranges;
  int64_t length = 0;

  void Add(size_t source, int64_t begin, int64_t end) {
    if (begin == end) return;
    if (!ranges.empty() && ranges.back().source == source && ranges.back().end == begin) {
      ranges.back().end = end;
    } else {
      ranges.push_back({source, begin, end});
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

// Bits of buffer `number`; all are set where an array has no such buffer.
Buffer TakeBits(const Arrays& arrays, size_t number, const Selection& chosen, int64_t* zeros) {
  Buffer taken;
  taken.ExtendZero(static_cast<size_t>((chosen.length + 7) / 8));
  int64_t at = 0, ones = 0;
  for (const Range& range : chosen.ranges) {
    const ArrowArray& array = *arrays[range.source];
    const auto* const bits = static_cast<const uint8_t*>(array.buffers[number]);
    for (int64_t i = array.offset + range.begin; i < array.offset + range.end; ++i, ++at) {
      const uint8_t bit = bits == nullptr ? 1 : bits[i / 8] >> i % 8 & 1;
      taken.data()[at / 8] |= static_cast<uint8_t>(bit << at % 8);
      ones += bit;
    }
  }
  *zeros = chosen.length - ones;
  return taken;
}

// Where the numbers of each array begin.
template <typename Number>
std::vector<const Number*> FirstsOf(const Arrays& arrays) {
  std::vector<const Number*> firsts;
  for (const ArrowArray* array : arrays) {
    firsts.push_back(static_cast<const Number*>(array->buffers[1]) + array->offset);
  }
  return firsts;
}

template <typename Number>
Buffer TakeNumbers(const std::vector<const Number*>& firsts, const Selection& chosen) {
  constexpr int64_t kFew = 4;  // numbers that are copied in less time than a call of memcpy takes
  Buffer taken;
  auto* to = reinterpret_cast<Number*>(taken.Extend(static_cast<size_t>(chosen.length) * sizeof(Number)));
  for (const Range& range : chosen.ranges) {
    const Number* const from = firsts[range.source] + range.begin;
    const int64_t count = range.end - range.begin;
    if (count > kFew) {
      std::memcpy(to, from, static_cast<size_t>(count) * sizeof(Number));
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    }
    to += count;
  }
  return taken;
}

template <typename Number>
Buffer TakeNumbers(const Arrays& arrays, const Selection& chosen) {
  return TakeNumbers(FirstsOf<Number>(arrays), chosen);
}

Buffer TakeValues(const Arrays& arrays, size_t width, const Selection& chosen) {
  switch (width) {
    case 1:
      return TakeNumbers<uint8_t>(arrays, chosen);
    case 2:
      return TakeNumbers<uint16_t>(arrays, chosen);
    case 4:
      return TakeNumbers<uint32_t>(arrays, chosen);
    default:
      return TakeNumbers<uint64_t>(arrays, chosen);
  }
}

// The offsets of lists; `values` becomes what they hold.
Buffer TakeOffsets(const Arrays& arrays, const Selection& chosen, Selection* values) {
  Buffer taken;
  auto* to = reinterpret_cast<int32_t*>(taken.Extend(static_cast<size_t>(chosen.length + 1) * sizeof(int32_t)));
  *to++ = 0;
  values->ranges.reserve(chosen.ranges.size());
  const auto firsts = FirstsOf<int32_t>(arrays);
  for (const Range& range : chosen.ranges) {
    const int32_t* const offsets = firsts[range.source];
    const int32_t begin = offsets[range.begin], end = offsets[range.end];
    // Wraps where the values are too many, which the caller refuses.
    const uint32_t moved = static_cast<uint32_t>(values->length) - static_cast<uint32_t>(begin);
    for (int64_t i = range.begin; i < range.end; ++i) *to++ = static_cast<int32_t>(offsets[i + 1] + moved);
    values->Add(range.source, begin, end);
  }
  return taken;
}

bool HasNulls(const ArrowArray* array) { return array->null_count != 0 && array->buffers[0] != nullptr; }

Arrays ChildrenOf(const Arrays& arrays, int64_t number) {
  Arrays children;
  for (const ArrowArray* array : arrays) children.push_back(array->children[number]);
  return children;
}

// False, with nothing taken, when the arrays are of another type or the offsets would not fit.
bool Take(const ArrowSchema& schema, const Arrays& arrays, const Selection& rows, ArrowArray* taken) {
  const Type type = TypeOf(schema);
  if (type.layout == Layout::kOther) return false;
  std::vector<Buffer> buffers(1);
  std::vector<ArrowArray> children;
  int64_t nulls = 0, zeros = 0;
  if (std::any_of(arrays.begin(), arrays.end(), HasNulls)) buffers[0] = TakeBits(arrays, 0, rows, &nulls);
  if (type.layout == Layout::kBits) {
    buffers.push_back(TakeBits(arrays, 1, rows, &zeros));
  } else if (type.layout == Layout::kNumbers) {
    buffers.push_back(TakeValues(arrays, type.width, rows));
  } else {
    Selection values;
    buffers.push_back(TakeOffsets(arrays, rows, &values));
    if (values.length > std::numeric_limits<int32_t>::max()) return false;
    if (type.layout == Layout::kBytes) {
      std::vector<const uint8_t*> bytes;
      for (const ArrowArray* array : arrays) bytes.push_back(static_cast<const uint8_t*>(array->buffers[2]));
      buffers.push_back(TakeNumbers(bytes, values));
    } else {
      children.emplace_back();
      if (!Take(*schema.children[0], ChildrenOf(arrays, 0), values, &children[0])) return false;
    }
  }
  ExportArray(rows.length, nulls, std::move(buffers), std::move(children), taken);
  return true;
}

// False when a row is out of range.
bool Select(const Arrays& batches, const int64_t* rows, int64_t count, Selection* chosen) {
  std::vector<int64_t> ends;
  for (const ArrowArray* batch : batches) ends.push_back((ends.empty() ? 0 : ends.back()) + batch->length);
  for (int64_t i = 0; i < count;) {
    const int64_t first = rows[i];
    if (first < 0 || first >= ends.back()) return false;
    size_t source = 0;
    while (first >= ends[source]) ++source;
    int64_t length = 1;
    while (++i < count && rows[i] == first + length && rows[i] < ends[source]) ++length;
    const int64_t begin = first - (ends[source] - batches[source]->length) + batches[source]->offset;
    chosen->Add(source, begin, begin + length);
  }
  return true;
}

// Releases what `millrace_take_rows` was given. Not a list of owners: to make one could throw before it owns anything.
struct Given {
  ~Given() {
    for (int64_t b = 0; b < batch_count; ++b) batches[b]->release(batches[b]);
    schema->release(schema);
  }

  ArrowSchema* schema;
  ArrowArray* const* batches;
  int64_t batch_count;
};

}  // namespace

CallStatus TakeRows(const ArrowSchema& schema, const std::vector<const ArrowArray*>& batches, const int64_t* rows,
                    int64_t count, ArrowArray* taken) {
  Selection chosen;
  if (!Select(batches, rows, count, &chosen)) return CallStatus::kOutOfRange;
  std::vector<ArrowArray> columns;
  for (int64_t c = 0; c < schema.n_children; ++c) {
    columns.emplace_back();
    if (Take(*schema.children[c], ChildrenOf(batches, c), chosen, &columns.back())) continue;
    columns.pop_back();
    for (ArrowArray& column : columns) column.release(&column);
    return CallStatus::kUnsupported;
  }
  ExportArray(count, 0, std::vector<Buffer>(1), std::move(columns), taken);
  return CallStatus::kDone;
}

}  // namespace millrace::records

using namespace millrace::records;

int32_t millrace_take_rows(ArrowSchema* schema, ArrowArray* const* batches, int64_t batch_count, const int64_t* rows,
                           int64_t count, ArrowArray* taken) {
  return Guarded([=] {
    const Given given{schema, batches, batch_count};
    return TakeRows(*schema, {batches, batches + batch_count}, rows, count, taken);
  });
}

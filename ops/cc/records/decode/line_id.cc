#include "ops/cc/records/decode/line_id.h"

#include <array>

#include "ops/cc/records/wire/utf8.h"

namespace millrace::records {
namespace {

constexpr ColumnType kInt64 = {Value::kInt64, 0, Kind::kPlain};
constexpr ColumnType kInt64s = {Value::kInt64, 1, Kind::kPlain};
constexpr ColumnType kInt32 = {Value::kInt32, 0, Kind::kPlain};
constexpr ColumnType kInt32s = {Value::kInt32, 1, Kind::kPlain};
constexpr ColumnType kFloat = {Value::kFloat, 0, Kind::kPlain};
constexpr ColumnType kBool = {Value::kBool, 0, Kind::kPlain};
constexpr ColumnType kText = {Value::kText, 0, Kind::kPlain};

constexpr uint32_t kLargestNumber = 1008;

std::array<int8_t, kLargestNumber + 1> IndexByNumber() {
  std::array<int8_t, kLargestNumber + 1> index;
  index.fill(-1);
  for (size_t i = 0; i < kLineIdFieldCount; ++i) index[kLineIdFields[i].number] = static_cast<int8_t>(i);
  return index;
}

}  // namespace

const LineIdField kLineIdFields[kLineIdFieldCount] = {
    {"__UID__", "uid", 2, kInt64, kFixed64},
    {"__REQ_TIME__", "req_time", 3, kInt64, kVarint},
    {"__ITEM_ID__", "item_id", 4, kInt64, kFixed64},
    {"__ACTIONS__", "actions", 6, kInt32s, kVarint},
    {"__CHNID__", "chnid", 19, kInt64, kVarint},
    {"__PRE_ACTIONS__", "pre_actions", 23, kInt32s, kVarint},
    {"__SAMPLE_RATE__", "sample_rate", 27, kFloat, kFixed32},
    {"__SPECIAL_STRATEGIES__", "special_strategies", 39, kInt32s, kVarint},
    {"__DEVICE_TYPE__", "device_type", 41, kText, kBytes},
    {"__CID__", "cid", 48, kText, kBytes},
    {"__USER_ID__", "user_id", 49, kText, kBytes},
    {"__IS_DRAW__", "is_draw", 87, kBool, kVarint},
    {"__RANK__", "rank", 145, kInt32, kVarint},
    {"__DATA_SOURCE_NAME__", "data_source_name", 235, kText, kBytes},
    {"__DID__", "did", 1001, kText, kBytes},
    {"__REQ_ID__", "req_id", 1002, kText, kBytes},
    {"__VID__", "vid", 1003, kText, kBytes},
    {"__READ_COUNT__", "read_count", 1004, kInt64, kVarint},
    {"__VIDEO_PLAY_TIME__", "video_play_time", 1005, kFloat, kFixed32},
    {"__VIDEO_FINISH_PERCENT__", "video_finish_percent", 1006, kFloat, kFixed32},
    {"__Q_PRED__", "q_pred", 1007, kFloat, kFixed32},
    {"__CHNIDS__", "chnids", 1008, kInt64s, kVarint},
};

int LineIdIndexOf(uint32_t number) {
  static const auto index = IndexByNumber();
  return number <= kLargestNumber ? index[number] : -1;
}

void LineIdRow::Clear() {
  for (size_t i = 0; touched_ >> i != 0; ++i) lists_[i].clear();
  present_ = touched_ = 0;
  bad_text_ = nullptr;
}

bool LineIdRow::Merge(Span message) {
  WireReader reader(message);
  while (!reader.done()) {
    at_ = reader.at();
    uint32_t tag;
    if (!reader.ReadTag(&tag)) return false;
    const int field = LineIdIndexOf(NumberOf(tag));
    if (!(field < 0 ? reader.Skip(tag) : ReadField(static_cast<size_t>(field), tag, &reader))) return false;
  }
  return true;
}

bool LineIdRow::ReadField(size_t field, uint32_t tag, WireReader* reader) {
  const LineIdField& wanted = kLineIdFields[field];
  if (wanted.type.depth > 0) return ReadNumbers(field, tag, reader);
  if (TypeOf(tag) != wanted.wire) return reader->Skip(tag);
  present_ |= 1u << field;
  uint32_t bits;
  switch (wanted.wire) {
    case kFixed64:
      return reader->ReadFixed(&numbers_[field]);
    case kVarint:
      return reader->ReadVarint(&numbers_[field]);
    case kFixed32:
      if (!reader->ReadFixed(&bits)) return false;
      numbers_[field] = bits;
      return true;
    default:
      if (!reader->ReadBytes(&texts_[field])) return false;
      if (!IsUtf8(texts_[field])) bad_text_ = wanted.name;
      return bad_text_ == nullptr;
  }
}

bool LineIdRow::ReadNumbers(size_t field, uint32_t tag, WireReader* reader) {
  uint64_t number;
  touched_ |= 1u << field;
  if (TypeOf(tag) == kVarint) {
    if (!reader->ReadVarint(&number)) return false;
    lists_[field].push_back(number);
  } else if (TypeOf(tag) == kBytes) {
    Span packed;
    if (!reader->ReadBytes(&packed)) return false;
    WireReader numbers(packed);
    while (!numbers.done()) {
      if (!numbers.ReadVarint(&number)) return false;
      lists_[field].push_back(number);
    }
  } else {
    return reader->Skip(tag);
  }
  if (!lists_[field].empty()) present_ |= 1u << field;
  return true;
}

bool LineIdRow::AddTo(size_t field, Column* column) const {
  const ColumnType type = kLineIdFields[field].type;
  if (type.depth > 0) {
    for (const uint64_t number : lists_[field]) {
      if (type.value == Value::kInt32) {
        column->Add(static_cast<uint32_t>(number));
      } else {
        column->Add(number);
      }
    }
  } else if (type.value == Value::kText) {
    column->AddBytes(texts_[field]);
  } else if (type.value == Value::kInt64) {
    column->Add(numbers_[field]);
  } else if (type.value == Value::kBool) {
    column->Add(static_cast<uint8_t>(numbers_[field] != 0));
  } else {
    column->Add(static_cast<uint32_t>(numbers_[field]));
  }
  return column->EndRow();
}

}  // namespace millrace::records

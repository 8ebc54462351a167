#include "ops/cc/records/json/json_reader.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <string_view>
#include <utility>

#include "ops/cc/records/arrow/arrow_export.h"
#include "ops/cc/records/arrow/column_type.h"
#include "ops/cc/records/wire/utf8.h"

namespace millrace::records {
namespace {

bool IsDigit(uint8_t byte) { return byte >= '0' && byte <= '9'; }

bool OpenFields(const ArrowSchema& schema, bool may_nest, std::vector<JsonField>* fields) {
  for (int64_t i = 0; i < schema.n_children; ++i) {
    const ArrowSchema& child = *schema.children[i];
    JsonField field;
    field.name = child.name;
    ColumnType type;
    int32_t id;
    if (std::string_view(child.format) == "+s") {
      if (!may_nest || !OpenFields(child, false, &field.fields)) return false;
    } else {
      const bool is_known = ParseField(child, &type, &id) && type.depth < 2 &&
                            (type.value == Value::kInt64 || type.value == Value::kDouble || type.value == Value::kText);
      if (!is_known) return false;
      field.column = std::make_unique<Column>(type);
    }
    fields->push_back(std::move(field));
  }
  return true;
}

void TruncateFields(int64_t rows, std::vector<JsonField>* fields) {
  for (JsonField& field : *fields) {
    if (field.column != nullptr) {
      field.column->TruncateTo(rows);
    } else {
      TruncateFields(rows, &field.fields);
    }
  }
}

void ExportFields(int64_t rows, std::vector<JsonField>* fields, ArrowArray* array) {
  std::vector<ArrowArray> children(fields->size());
  for (size_t i = 0; i < fields->size(); ++i) {
    JsonField& field = (*fields)[i];
    if (field.column != nullptr) {
      field.column->PadTo(rows);
      field.column->Export(&children[i]);
    } else {
      ExportFields(rows, &field.fields, &children[i]);
    }
  }
  std::vector<Buffer> no_validity(1);
  ExportArray(rows, 0, std::move(no_validity), std::move(children), array);
}

bool IsAscii(Span text) {
  uint64_t bits = 0;
  const uint8_t* at = text.begin;
  for (; text.end - at >= 8; at += 8) {
    uint64_t word;
    std::memcpy(&word, at, sizeof(word));
    bits |= word;
  }
  for (; at != text.end; ++at) bits |= *at;
  return (bits & 0x8080808080808080u) == 0;
}

}  // namespace

bool JsonReader::Cursor::TakeWord(const char* word) {
  const size_t size = std::strlen(word);
  if (static_cast<size_t>(end - at) < size || std::memcmp(at, word, size) != 0) return false;
  at += size;
  return true;
}

bool JsonReader::Cursor::TakeText(Span* text) {
  if (!Take('"')) return false;
  text->begin = at;
  while (at != end && *at != '"') {
    if (*at == '\\' || *at < 0x20) return false;
    ++at;
  }
  text->end = at;
  return Take('"');
}

bool JsonReader::Cursor::TakeInteger(int64_t* number) {
  constexpr std::ptrdiff_t kMaxDigits = 18;
  const bool is_negative = Take('-');
  const uint8_t* const first = at;
  int64_t value = 0;
  while (at != end && IsDigit(*at) && at - first < kMaxDigits) value = 10 * value + (*at++ - '0');
  if (at == first || at == end || (*first == '0' && (is_negative || at - first > 1))) return false;
  *number = is_negative ? -value : value;
  return !IsDigit(*at) && *at != '.' && *at != 'e' && *at != 'E';
}

bool JsonReader::Cursor::TakeNumber(Span* digits) {
  const auto take_digits = [this] {
    const uint8_t* const first = at;
    while (at != end && IsDigit(*at)) ++at;
    return at != first;
  };
  digits->begin = at;
  Take('-');
  if (at != end && *at == '0') {
    ++at;
    if (at != end && IsDigit(*at)) return false;
  } else if (!take_digits()) {
    return false;
  }
  if (at != end && *at == '.') {
    ++at;
    if (!take_digits()) return false;
  }
  if (at != end && (*at == 'e' || *at == 'E')) {
    ++at;
    if (at != end && (*at == '+' || *at == '-')) ++at;
    if (!take_digits()) return false;
  }
  digits->end = at;
  return true;
}

bool JsonReader::Cursor::SkipScalar() {
  Span ignored;
  if (at == end) return false;
  if (*at == '"') return TakeText(&ignored);
  return TakeWord("null") || TakeWord("true") || TakeWord("false") || TakeNumber(&ignored);
}

bool JsonReader::Open(const ArrowSchema& schema) { return OpenFields(schema, true, &fields_); }

bool JsonReader::Add(Span value) {
  ++attempts_;
  Cursor cursor = {value.begin, value.end};
  if ((IsAscii(value) || IsUtf8(value)) && ReadObject(&fields_, &cursor) && cursor.at == cursor.end) {
    ++rows_;
    return true;
  }
  TruncateFields(rows_, &fields_);
  return false;
}

bool JsonReader::ReadObject(std::vector<JsonField>* fields, Cursor* cursor) {
  if (!cursor->Take('{')) return false;
  cursor->SkipSpace();
  if (cursor->Take('}')) return true;
  size_t guess = 0;
  while (true) {
    Span key;
    cursor->SkipSpace();
    if (!cursor->TakeText(&key)) return false;
    cursor->SkipSpace();
    if (!cursor->Take(':')) return false;
    cursor->SkipSpace();
    // Objects mostly have their fields in the order of the one before.
    const auto has_key = [&key](const JsonField& field) { return field.name == key.text(); };
    auto found = fields->begin() + static_cast<std::ptrdiff_t>(guess);
    if (found == fields->end() || !has_key(*found)) found = std::find_if(fields->begin(), fields->end(), has_key);
    if (!(found == fields->end() ? cursor->SkipScalar() : ReadField(&*found, cursor))) return false;
    if (found != fields->end()) guess = static_cast<size_t>(found - fields->begin()) + 1;
    cursor->SkipSpace();
    if (cursor->Take('}')) return true;
    if (!cursor->Take(',')) return false;
  }
}

bool JsonReader::ReadField(JsonField* field, Cursor* cursor) {
  if (field->row == attempts_) return false;
  field->row = attempts_;
  if (cursor->TakeWord("null")) return true;
  if (field->column == nullptr) return ReadObject(&field->fields, cursor);
  field->column->PadTo(rows_);
  const bool is_list = field->column->type().depth == 1;
  return (is_list ? ReadList(field->column.get(), cursor) : ReadValue(field->column.get(), cursor)) &&
         field->column->EndRow();
}

bool JsonReader::ReadList(Column* column, Cursor* cursor) {
  if (!cursor->Take('[')) return false;
  cursor->SkipSpace();
  if (cursor->Take(']')) return true;
  while (true) {
    cursor->SkipSpace();
    if (!ReadValue(column, cursor)) return false;
    cursor->SkipSpace();
    if (cursor->Take(']')) return true;
    if (!cursor->Take(',')) return false;
  }
}

bool JsonReader::ReadValue(Column* column, Cursor* cursor) {
  Span text;
  int64_t integer;
  double number;
  switch (column->type().value) {
    case Value::kInt64:
      if (!cursor->TakeInteger(&integer)) return false;
      column->Add(integer);
      return true;
    case Value::kDouble: {
      if (!cursor->TakeNumber(&text)) return false;
      const auto* const begin = reinterpret_cast<const char*>(text.begin);
      if (std::from_chars(begin, begin + text.size(), number).ec != std::errc()) return false;
      column->Add(number);
      return true;
    }
    default:
      if (!cursor->TakeText(&text)) return false;
      column->AddBytes(text);
      return true;
  }
}

void JsonReader::Export(ArrowArray* array) { ExportFields(rows_, &fields_, array); }

}  // namespace millrace::records

// Reads JSON objects that every reader of JSON reads alike.
#ifndef MILLRACE_RECORDS_JSON_READER_H_
#define MILLRACE_RECORDS_JSON_READER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/cc/records/arrow/arrow_abi.h"
#include "ops/cc/records/arrow/column.h"
#include "ops/cc/records/wire/wire.h"

namespace millrace::records {

// A field of an object: a number, a text, a list of numbers or texts, or an object of fields that are not objects.
struct JsonField {
  std::string name;
  std::unique_ptr<Column> column;  // null for an object
  std::vector<JsonField> fields;   // of an object
  int64_t row = -1;                // the last row that had it
};

// One row per object. It takes one object per value, with no key of a wanted field twice, values of the wanted type,
// integers of up to 18 digits, no escapes, and no objects or lists in fields that nobody wants. All else is "not
// plain": the caller gives it to another reader.
class JsonReader {
 public:
  // False when the schema has a type that is not read here.
  bool Open(const ArrowSchema& schema);

  // Adds a row. False, and nothing is added, when the value is not plain.
  bool Add(Span value);

  // A struct array of the schema's fields.
  void Export(ArrowArray* array);

 private:
  // The text that is left to read; the functions return false when it is not plain.
  struct Cursor {
    const uint8_t* at;
    const uint8_t* end;

    void SkipSpace() {
      while (at != end && (*at == ' ' || *at == '\n' || *at == '\t' || *at == '\r')) ++at;
    }
    bool Take(uint8_t byte) {
      if (at == end || *at != byte) return false;
      ++at;
      return true;
    }
    bool TakeWord(const char* word);
    bool TakeText(Span* text);
    bool TakeInteger(int64_t* number);
    bool TakeNumber(Span* digits);
    bool SkipScalar();
  };

  bool ReadObject(std::vector<JsonField>* fields, Cursor* cursor);
  bool ReadField(JsonField* field, Cursor* cursor);
  bool ReadValue(Column* column, Cursor* cursor);
  bool ReadList(Column* column, Cursor* cursor);

  std::vector<JsonField> fields_;
  int64_t rows_ = 0;
  int64_t attempts_ = 0;
};

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_JSON_READER_H_

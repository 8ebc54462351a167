#include "ops/cc/records/json/json_reader.h"

#include <gtest/gtest.h>

#include <utility>

#include "ops/cc/records/arrow/arrow_export.h"
#include "tests/cc/records/arrow_batch.h"
#include "tests/cc/records/record_bytes.h"

namespace millrace::records {
namespace {

class JsonReaderTest : public testing::Test {
 protected:
  JsonReaderTest() {
    std::vector<ArrowSchema> fields(4);
    ExportField("id", {Value::kInt64, 0, Kind::kPlain}, 0, true, &fields[0]);
    ExportField("text", {Value::kText, 0, Kind::kPlain}, 0, true, &fields[1]);
    ExportField("numbers", {Value::kInt64, 1, Kind::kPlain}, 0, true, &fields[2]);
    ExportField("value", {Value::kDouble, 0, Kind::kPlain}, 0, true, &fields[3]);
    ExportStruct(std::move(fields), &batch_.schema);
    EXPECT_TRUE(reader_.Open(batch_.schema));
  }

  bool Add(const std::string& value) { return reader_.Add(SpanOf(value)); }

  JsonReader reader_;
  ArrowBatch batch_;
};

TEST_F(JsonReaderTest, ReadsPlainObjects) {
  EXPECT_TRUE(Add(R"({"id":-12,"text":"ä","numbers":[1,2],"value":-1.5e3})"));
  EXPECT_TRUE(Add(R"( {"x":true})") == false);
  EXPECT_TRUE(Add(R"({ "value" : 7 , "other": "x", "numbers" : [ ], "more": -0.5, "id":null })"));
  EXPECT_TRUE(Add("{}"));
  reader_.Export(&batch_.array);
  ASSERT_EQ(batch_.fault(), "");
  ASSERT_EQ(batch_.rows(), 3);
  EXPECT_EQ(*batch_.column("id").Numbers<int64_t>(0), -12);
  EXPECT_TRUE(batch_.column("id").IsNull(1));
  EXPECT_EQ(batch_.column("text").Bytes(0).text(), "ä");
  EXPECT_EQ(batch_.List<int64_t>("numbers", 0), (std::vector<int64_t>{1, 2}));
  EXPECT_FALSE(batch_.column("numbers").IsNull(1));
  EXPECT_EQ(*batch_.column("value").Numbers<double>(0), -1500);
  EXPECT_TRUE(batch_.column("value").IsNull(2));
}

TEST_F(JsonReaderTest, LeavesAllElseToAnotherReader) {
  const char* const odd[] = {"",
                             "{",
                             "[]",
                             "{}{}",
                             "{} ",
                             R"({"id":1,"id":2})",
                             R"({"id":1.0})",
                             R"({"id":1e3})",
                             R"({"id":01})",
                             R"({"id":-0})",
                             R"({"id":"1"})",
                             R"({"id":1234567890123456789})",
                             R"({"id":1)",
                             R"({"id":1,})",
                             R"({"id" 1})",
                             R"({"numbers":[1,null]})",
                             R"({"numbers":[1,]})",
                             R"({"numbers":1})",
                             R"({"text":"a\n"})",
                             "{\"text\":\"a\nb\"}",
                             "{\"text\":\"\xff\"}",
                             R"({"value":nan})",
                             R"({"value":1.})",
                             R"({"value":1e999})",
                             R"({"other":{}})",
                             R"({"other":[1]})",
                             R"({"other":tru})"};
  for (const char* value : odd) EXPECT_FALSE(Add(value)) << value;
  EXPECT_TRUE(Add(R"({"id":1})"));
  reader_.Export(&batch_.array);
  EXPECT_EQ(batch_.fault(), "");
  EXPECT_EQ(batch_.rows(), 1);
}

}  // namespace
}  // namespace millrace::records

#include "ops/cc/records/encode/record_encoder.h"

#include <gtest/gtest.h>

#include <string>

#include "ops/cc/records/encode/batch_reader.h"
#include "tests/cc/records/arrow_batch.h"
#include "tests/cc/records/record_bytes.h"

namespace millrace::records {
namespace {

DecodeOptions AsIs() {
  DecodeOptions options;
  options.fids_as_is = true;
  options.pruning = Pruning::kNothing;
  return options;
}

TEST(RecordEncoder, WritesAnExampleAsItWasRead) {
  const std::string line_id = FixedField(2, uint64_t{5}) + BytesField(6, "\x01\x02") + BytesField(1001, "d");
  const std::string record =
      NamedFeature("f", ListFeature<uint64_t>(kFidV1List, {7, 8}), 3) +
      NamedFeature("n", NestedFeature({{1, 300}, {2}})) + NamedFeature("b", BytesFeature({"x", ""})) +
      NamedFeature("e", BytesField(kFloatList, "")) + NamedFeature("s", VarintField(kInt64Value, 9)) +
      BytesField(2, BytesField(1, "r") + BytesField(2, BytesField(1, "raw"))) + BytesField(100, line_id) +
      BytesField(101, Packed<float>({1, 2})) + FixedField(102, 0.5f) + VarintField(103, 1280);
  const Decoded decoded({record}, Format::kExample, AsIs());
  ASSERT_EQ(decoded.refused.rows(), 0);
  BatchReader batch;
  ASSERT_TRUE(batch.Open(decoded.rows.schema, decoded.rows.array));
  ReverseWriter writer;
  WriteExample(batch, 0, &writer);
  EXPECT_EQ(Written(writer), record);
}

TEST(RecordEncoder, AnInstanceHasNoDoubles) {
  const Decoded decoded({NamedFeature("d", ListFeature<double>(kDoubleList, {1}))}, Format::kExample, AsIs());
  BatchReader batch;
  ASSERT_TRUE(batch.Open(decoded.rows.schema, decoded.rows.array));
  EXPECT_FALSE(FitsInstance(batch));
}

}  // namespace
}  // namespace millrace::records

#include "ops/cc/records/decode/record_decoder.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "tests/cc/records/arrow_batch.h"
#include "tests/cc/records/record_bytes.h"

namespace millrace::records {
namespace {

using Names = std::vector<std::string>;

constexpr size_t kMetadataColumns = 6;  // label, weight, data source key and provenance

Names FeaturesOf(const Decoded& decoded) {
  Names names = decoded.rows.names();
  names.resize(names.size() - kMetadataColumns);
  return names;
}

std::string FloatExample(const std::string& name, float value) {
  return NamedFeature(name, ListFeature<float>(kFloatList, {value}));
}

TEST(ExampleDecoder, PutsFeaturesIntoColumnsInOrderOfAppearance) {
  const std::string first = NamedFeature("b", ListFeature<uint64_t>(kFidV2List, {3, 4}), 9) +
                            NamedFeature("a", NestedFeature({{1, 300}, {}}));
  const std::string second = FloatExample("c", 1.5f) + NamedFeature("a", NestedFeature({}));
  const Decoded decoded({first, second}, Format::kExample);
  ASSERT_EQ(decoded.rows.fault(), "");
  EXPECT_EQ(decoded.refused.rows(), 0);
  EXPECT_EQ(FeaturesOf(decoded), (Names{"b", "a", "c"}));
  EXPECT_EQ(decoded.rows.List<uint64_t>("b", 0), (std::vector<uint64_t>{3, 4}));
  EXPECT_TRUE(decoded.rows.column("b").IsNull(1));
  EXPECT_FALSE(decoded.rows.column("a").IsNull(1));
  EXPECT_EQ(decoded.rows.column("a").Values().End(0), 2);
}

TEST(ExampleDecoder, ARefusedRecordLeavesNothingBehind) {
  const std::string good = FloatExample("a", 1);
  const std::string bad = FloatExample("a", 2) + FloatExample("new", 3) + FloatExample("new", 4);
  const Decoded decoded({good, bad, "\x0a", good}, Format::kExample);
  ASSERT_EQ(decoded.rows.fault(), "");
  EXPECT_EQ(FeaturesOf(decoded), (Names{"a"}));
  EXPECT_EQ(decoded.rows.rows(), 2);
  ASSERT_EQ(decoded.refused.rows(), 2);
  EXPECT_EQ(decoded.refused_row(0), 1);
  EXPECT_EQ(decoded.reason(0), reason::kDuplicateFeature);
  EXPECT_EQ(decoded.reason(1), reason::kMalformed);
  EXPECT_EQ(decoded.detail(1), "malformed at byte 0");
}

TEST(ExampleDecoder, ARefusedLineIdLeavesNothingForTheNext) {
  const std::string good = BytesField(100, BytesField(6, "\x01"));
  const Decoded decoded({BytesField(100, BytesField(6, "\x07\x80")), good}, Format::kExample);
  ASSERT_EQ(decoded.refused.rows(), 1);
  EXPECT_EQ(decoded.reason(0), reason::kMalformedLineId);
  EXPECT_EQ(decoded.rows.List<int32_t>("__ACTIONS__", 0), (std::vector<int32_t>{1}));
}

TEST(ExampleDecoder, MergesPartsOfOneFeatureAndTakesTheLastMember) {
  const std::string part = ListFeature<uint64_t>(kFidV2List, {1}), other = ListFeature<float>(kFloatList, {2});
  const std::string name = BytesField(1, "a");
  const std::string merged = BytesField(1, name + BytesField(2, part) + BytesField(2, part));
  const std::string replaced = BytesField(1, name + BytesField(2, other + part + part));
  const Decoded decoded({merged, replaced}, Format::kExample);
  EXPECT_EQ(decoded.rows.List<uint64_t>("a", 0), (std::vector<uint64_t>{1, 1}));
  EXPECT_EQ(decoded.rows.List<uint64_t>("a", 1), (std::vector<uint64_t>{1, 1}));
}

// Copied for each part, a megabyte of parts took 12 s; the fuzzer bounds the time per byte.
TEST(ExampleDecoder, MergesAHundredThousandPartsOfOneFeature) {
  const std::string part = BytesField(2, ListFeature<uint64_t>(kFidV2List, {1}));
  std::string parts = BytesField(1, "a");
  constexpr size_t kParts = 100'000;
  for (size_t i = 0; i < kParts; ++i) parts += part;
  const Decoded decoded({BytesField(1, parts), BytesField(1, BytesField(1, "a") + part)}, Format::kExample);
  EXPECT_EQ(decoded.rows.List<uint64_t>("a", 0), std::vector<uint64_t>(kParts, 1));
  EXPECT_EQ(decoded.rows.List<uint64_t>("a", 1), std::vector<uint64_t>(1, 1));
}

// Records of a few bytes, each with a name of its own, between records that share one.
Decoded OfManyNames(Format format, const std::function<std::string(const std::string& name)>& record) {
  std::vector<std::string> records;
  for (int i = 0; i < 7000; ++i) {
    records.push_back(record("n" + std::to_string(i)));
    records.push_back(record("a"));
  }
  return Decoded(records, format);
}

void ExpectFewCells(const Decoded& decoded, int64_t rows) {
  ASSERT_EQ(decoded.rows.fault(), "");
  EXPECT_LT(decoded.rows.rows() * static_cast<int64_t>(decoded.rows.names().size()), int64_t{10} << 20);
  EXPECT_GE(decoded.rows.rows(), rows);
  ASSERT_GT(decoded.refused.rows(), 6000);
  for (int64_t i = 0; i < decoded.refused.rows(); ++i) EXPECT_EQ(decoded.reason(i), reason::kTooManyFeatures);
  EXPECT_NE(decoded.detail(0).find("features in one block, at most"), std::string::npos) << decoded.detail(0);
}

TEST(ExampleDecoder, RefusesNamesThatWouldMakeATinyBlockHuge) {
  ExpectFewCells(OfManyNames(Format::kExample, [](const std::string& name) { return FloatExample(name, 1); }), 7000);
}

TEST(InstanceDecoder, RefusesNamesThatWouldMakeATinyBlockHuge) {
  const auto record = [](const std::string& name) {
    return BytesField(9, BytesField(1, name) + FixedField(2, uint64_t{3}));
  };
  ExpectFewCells(OfManyNames(Format::kInstance, record), 7000);
}

TEST(ExampleBatchDecoder, RefusesRowsAndNamesThatWouldMakeATinyBlockHuge) {
  const auto record = [](const std::string& name) {
    return FeatureList(name, {ListFeature<float>(kFloatList, {1})}, true) + VarintField(3, 16);
  };
  ExpectFewCells(OfManyNames(Format::kExampleBatch, record), 7000);
}

TEST(ExampleDecoder, TakesManyNamesInRecordsThatHaveThem) {
  std::string record;
  for (int i = 0; i < 2000; ++i) record += FloatExample("n" + std::to_string(i), 1);
  const Decoded decoded(std::vector<std::string>(3000, record), Format::kExample);
  EXPECT_EQ(decoded.refused.rows(), 0);
  EXPECT_EQ(decoded.rows.rows(), 3000);
}

TEST(ExampleDecoder, TakesUnpackedNumbersAndIgnoresWrongWireTypes) {
  const std::string list = FixedField(1, uint64_t{7}) + VarintField(1, 8) + BytesField(1, Packed<uint64_t>({9}));
  const Decoded decoded({NamedFeature("a", BytesField(kFidV2List, list))}, Format::kExample);
  EXPECT_EQ(decoded.rows.List<uint64_t>("a", 0), (std::vector<uint64_t>{7, 9}));
}

TEST(ExampleDecoder, RefusesAFidWithTheReservedBitUnlessFidsStayAsTheyAre) {
  const std::string record = NamedFeature("a", ListFeature<uint64_t>(kFidV2List, {uint64_t{1} << 63}));
  const Decoded refused({record}, Format::kExample);
  ASSERT_EQ(refused.refused.rows(), 1);
  EXPECT_EQ(refused.reason(0), reason::kOutOfRange);
  DecodeOptions as_is;
  as_is.fids_as_is = true;
  EXPECT_EQ(Decoded({record}, Format::kExample, as_is).rows.rows(), 1);
}

TEST(ExampleBatchDecoder, SharesAFeatureAmongAllRows) {
  const std::string record = FeatureList("s", {ListFeature<float>(kFloatList, {1, 2})}, true) +
                             FeatureList("i", {ListFeature<float>(kFloatList, {3}), ""}) + VarintField(3, 2);
  const Decoded decoded({record}, Format::kExampleBatch);
  ASSERT_EQ(decoded.rows.fault(), "");
  ASSERT_EQ(decoded.rows.rows(), 2);
  EXPECT_EQ(decoded.rows.List<float>("s", 1), (std::vector<float>{1, 2}));
  EXPECT_TRUE(decoded.rows.column("i").IsNull(1));
}

TEST(ExampleBatchDecoder, RefusesListsOfAnotherLength) {
  const std::string one = FeatureList("a", {""});
  const Decoded decoded({one + VarintField(3, 2), one, FeatureList("a", {}, true) + VarintField(3, 1)},
                        Format::kExampleBatch);
  ASSERT_EQ(decoded.refused.rows(), 3);
  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(decoded.reason(i), reason::kBatchSizeMismatch);
}

TEST(InstanceDecoder, GroupsFidsBySlot) {
  const auto fid = [](uint64_t slot, uint64_t signature) { return slot << 54 | signature; };
  const std::string fids = BytesField(1, Packed<uint64_t>({fid(2, 1), fid(1, 5), fid(2, 9)}));
  const std::string feature = BytesField(9, BytesField(1, "f") + FixedField(3, 0.5f) + FixedField(2, uint64_t{3}));
  const Decoded decoded({fids + feature, "\x4a\x02\x1a\x01"}, Format::kInstance);
  ASSERT_EQ(decoded.rows.fault(), "");
  EXPECT_EQ(FeaturesOf(decoded), (Names{"fc_slot_2", "fc_slot_1", "f"}));
  EXPECT_EQ(decoded.rows.List<uint64_t>("fc_slot_2", 0), (std::vector<uint64_t>{2ull << 48 | 1, 2ull << 48 | 9}));
  EXPECT_EQ(decoded.rows.List<uint64_t>("f", 0), (std::vector<uint64_t>{3}));
  ASSERT_EQ(decoded.refused.rows(), 1);
  EXPECT_EQ(decoded.reason(0), reason::kMalformed);
}

}  // namespace
}  // namespace millrace::records

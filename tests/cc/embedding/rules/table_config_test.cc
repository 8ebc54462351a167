// The text of a table: what is read from it, and what is refused by name.
#include "ops/cc/embedding/rules/table_config.h"

#include <algorithm>
#include <clocale>
#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ops/cc/embedding/snapshot/table_snapshot.h"
#include "tests/cc/test_tables.h"

namespace millrace {
namespace {

std::string Refusal(const std::string& text) {
  TableConfig config;
  const Status status = TableConfig::Parse(text, &config);
  EXPECT_EQ(status.code(), Code::kInvalidArgument) << text;
  return status.message();
}

// The text of a good table with one field changed, or without it where `value` is null.
std::string With(const std::string& key, const char* value) {
  std::string text;
  for (std::string rest = TextOf(Config(1)); !rest.empty();) {
    const size_t end = std::min(rest.find(';'), rest.size());
    const std::string part = rest.substr(0, end);
    rest.erase(0, end + 1);
    if (part.substr(0, part.find('=')) == key) continue;
    text += part + ";";
  }
  if (value != nullptr) text += key + "=" + value;
  return text;
}

TEST(TableConfig, AllFieldsAreReadFromTheText) {
  TableConfig given = Config({Segment(16, Adagrad(0.1), kUniform, OneBit(0.1, true)), Segment(1)}, "movies-1.x_");
  given.seed = UINT64_MAX;
  given.serving = true;
  given.skip_zero = true;
  given.segments[1].delay_compensation = 0.5f;
  given.segments[1].stochastic_rounding = true;
  given = Filtered(given, Sliding(1000), 4);
  given.thresholds.by_slot = {{0, 0}, {32767, 9}};
  given.expire_days = 1.5;
  given.slot_expire_days = {{3, 0}, {4, 0.25}};
  given.non_finite = NonFinite::kClip;
  given.gradient_limit = 2.5f;

  TableConfig parsed;
  const Status status = TableConfig::Parse(TextOf(given), &parsed);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(TextOf(parsed), TextOf(given));
  EXPECT_EQ(parsed.text, TextOf(given));
  EXPECT_EQ(parsed.name, "movies-1.x_");
  EXPECT_EQ(parsed.seed, UINT64_MAX);
  EXPECT_EQ(parsed.segments[0].compressor.parameters.at("packed"), 1);
  EXPECT_EQ(parsed.thresholds.by_slot.at(32767), 9u);
  EXPECT_EQ(parsed.slot_expire_days.at(4), 0.25);
}

TEST(TableConfig, TheLimitOfGradientsMayBeInfinite) {
  TableConfig parsed;
  ASSERT_TRUE(TableConfig::Parse(TextOf(Config(1)), &parsed).ok());
  EXPECT_TRUE(std::isinf(parsed.gradient_limit));
}

TEST(TableConfig, EachMissingFieldIsNamed) {
  for (const char* key : {"name", "seed", "serving", "skip_zero", "non_finite", "gradient_limit", "segments", "filter",
                          "threshold", "expire_days", "segment.0.dim", "segment.0.optimizer", "segment.0.initializer",
                          "segment.0.compressor", "segment.0.delay_compensation", "segment.0.stochastic_rounding"}) {
    EXPECT_NE(Refusal(With(key, nullptr)).find("'" + std::string(key) + "' is missing"), std::string::npos) << key;
  }
}

TEST(TableConfig, EachWrongFieldIsNamed) {
  const std::vector<std::pair<const char*, const char*>> wrong = {
      {"seed", "x"},
      {"serving", "2"},
      {"serving", "yes"},
      {"skip_zero", "-1"},
      {"non_finite", "ignore"},
      {"gradient_limit", "big"},
      {"gradient_limit", "0"},
      {"gradient_limit", "nan"},
      {"segments", "0"},
      {"segments", "1.5"},
      {"threshold", "-1"},
      {"expire_days", "-1"},
      {"expire_days", "nan"},
      {"segment.0.dim", "0"},
      {"segment.0.dim", "2000000"},
      {"segment.0.stochastic_rounding", "3"},
      {"segment.0.delay_compensation", "nan"},
      {"threshold.3", "-1"},
      {"threshold.3", "0.5"},
      {"threshold.3", ""},
      {"threshold.40000", "1"},
      {"threshold.x", "1"},
      {"expire_days.-1", "1"},
      {"filter.capacity", "many"},
      {"segment.0.optimizer.beta", "y"},
      {"segment.1.dim", "4"},
      {"colour", "red"},
  };
  for (const auto& [key, value] : wrong) {
    EXPECT_NE(Refusal(With(key, value)).find(key), std::string::npos)
        << key << "=" << value << ": " << Refusal(With(key, value));
  }
  EXPECT_NE(Refusal(With("expire_days.3", "-1")).find("expire_days of slot 3"), std::string::npos);
}

TEST(TableConfig, ATextThatIsNoListOfFieldsIsRefused) {
  EXPECT_NE(Refusal("name").find("'name' is not key=value"), std::string::npos);
  EXPECT_NE(Refusal("name=a;name=a").find("'name' is given twice"), std::string::npos);
  Refusal("");
}

TEST(TableConfig, ANameIsOneThatAFileMayHave) {
  for (const std::string& name : {std::string(""), std::string(".a"), std::string("../a"), std::string("a/b"),
                                  std::string("a b"), std::string(129, 'a'), std::string("\xC3\xA4")}) {
    EXPECT_NE(Refusal(With("name", name.c_str())).find("table name '" + name + "'"), std::string::npos);
  }
}

TEST(TableConfig, WhatDoesNotFitTogetherIsRefused) {
  TableConfig config = Config(1);
  config.skip_zero = true;
  EXPECT_NE(Refusal(TextOf(config)).find("skip_zero is for tables that serve"), std::string::npos);
  config = Config(1);
  config.non_finite = NonFinite::kClip;
  EXPECT_NE(Refusal(TextOf(config)).find("clip needs a finite gradient_limit"), std::string::npos);
}

TEST(TableConfig, ATableRefusesRulesThatItDoesNotKnowAndNamesTheChoices) {
  std::unique_ptr<EmbeddingTable> table;
  const auto problem = [&](const TableConfig& config) {
    const Status status = EmbeddingTable::Create(config, &table);
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    return status.message();
  };
  const TableConfig two = Config({Segment(1), Segment(2, {"magic", {}})});
  EXPECT_NE(problem(two).find("table 't', segment 1: optimizer 'magic' is unknown; choose from"), std::string::npos);
  const TableConfig initializer = Config({Segment(1, kSgd, {"noise", {}})});
  EXPECT_NE(problem(initializer).find("segment 0: initializer 'noise' is unknown"), std::string::npos);
  const TableConfig compressor = Config({Segment(1, kSgd, kZeros, {"zip", {}})});
  EXPECT_NE(problem(compressor).find("segment 0: compressor 'zip' is unknown"), std::string::npos);
  EXPECT_NE(problem(Filtered(Config(1), {"bloom", {}}, 1)).find("unknown filter 'bloom'"), std::string::npos);
  EXPECT_EQ(table, nullptr);
}

TEST(TableConfig, NumbersThatNoFloatOrSlotHoldsAreRefused) {
  EXPECT_NE(Refusal(With("expire_days.1e300", "1")).find("'expire_days.1e300' is no slot"), std::string::npos);
  EXPECT_NE(Refusal(With("gradient_limit", "1e300")).find("'gradient_limit' is too large"), std::string::npos);
  EXPECT_NE(Refusal(With("gradient_limit", " 1")).find("is not a number"), std::string::npos);
  EXPECT_NE(Refusal(With("segment.0.delay_compensation", "1e300")).find("must be finite"), std::string::npos);
  EXPECT_NE(Refusal(With("seed", "18446744073709551616")).find("is not a whole number"), std::string::npos);
  std::unique_ptr<EmbeddingTable> table;
  const TableConfig steep = Config({Segment(1, Adagrad(1e300))});
  EXPECT_NE(EmbeddingTable::Create(steep, &table).message().find("out of bounds"), std::string::npos);
}

TEST(TableConfig, ATableWhoseFilesCouldNotBeReadIsRefused) {
  std::unique_ptr<EmbeddingTable> table;
  const TableConfig wide = Config(std::vector<SegmentConfig>(256, Segment(1 << 20, kSgd)));
  const Status refused = EmbeddingTable::Create(wide, &table);
  EXPECT_EQ(refused.code(), Code::kInvalidArgument);
  EXPECT_NE(refused.message().find("floats per entry"), std::string::npos) << refused.message();
  const TableConfig with_state = Config(std::vector<SegmentConfig>(16, Segment(1 << 20, Adagrad(0.1))));
  EXPECT_EQ(EmbeddingTable::Create(with_state, &table).code(), Code::kInvalidArgument);
}

// Any locale whose decimal point is a comma will do; a machine may have none.
TEST(TableConfig, NumbersDoNotDependOnTheLocale) {
  const char* found = nullptr;
  for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "de_DE", "fr_FR.UTF-8", "fr_FR.utf8"}) {
    if (found == nullptr) found = std::setlocale(LC_NUMERIC, name);
  }
  if (found == nullptr) GTEST_SKIP() << "no locale with a decimal comma";
  TableConfig config;
  const Status parsed = TableConfig::Parse(With("gradient_limit", "2.5"), &config);
  SnapshotHeader::Segment segment{1, "sgd", 0, {"int8", {{"range", 0.5}}}};
  SnapshotHeader header;
  header.table = "t";
  header.serving = true;
  header.segments.push_back(segment);
  const std::string text = header.ToText();
  SnapshotHeader read;
  const Status header_parsed = SnapshotHeader::Parse("file", text, &read);
  std::setlocale(LC_NUMERIC, "C");
  EXPECT_TRUE(parsed.ok()) << parsed.message();
  EXPECT_EQ(config.gradient_limit, 2.5f);
  EXPECT_NE(text.find("range=0.5"), std::string::npos) << text;
  EXPECT_TRUE(header_parsed.ok()) << header_parsed.message();
}

}  // namespace
}  // namespace millrace

// What a table file says of its entries, and how they fit into a table.
#include "ops/cc/embedding/snapshot/table_snapshot.h"

#include <cmath>
#include <cstring>

#include "tests/cc/covers.h"
#include "tests/cc/snapshot_files.h"

namespace millrace {
namespace {

class TableSnapshot : public FilesTest {
 protected:
  // A file of these rows, or of garbage that looks like it.
  std::string WriteTable(const SnapshotHeader& header, const std::vector<std::string>& blocks, uint64_t rows) {
    std::unique_ptr<CheckedFileWriter> writer;
    EXPECT_TRUE(CreateTableFile(folder_, header, &writer).ok());
    for (const std::string& block : blocks) EXPECT_TRUE(writer->WriteBlock(block.data(), block.size()).ok());
    EXPECT_TRUE(writer->Publish(rows).ok());
    return Path(header.FileName());
  }

  static std::string Damage(const std::string& path) {
    SnapshotHeader header;
    int64_t rows = 0;
    const Status status = VerifyTableFile(path, &header, &rows);
    EXPECT_EQ(status.code(), Code::kDataLoss);
    return status.message();
  }
};

TEST_F(TableSnapshot, AHeaderDescribesItsTable) {
  TableConfig config = Config({Segment(3, Adagrad(0.1)), Segment(1, kSgd, kZeros, OneBit(0.25, true))}, "movies");
  const auto table = MakeTable(config);
  SnapshotHeader header = SnapshotHeader::Of(*table, true);
  EXPECT_EQ(header.dim(), 4);
  EXPECT_EQ(header.state_floats(), 3);
  header.shard = 2;
  header.num_shards = 12;
  header.part = 1;
  header.num_parts = 4;
  header.newest_timestamp = UINT32_MAX;
  EXPECT_EQ(header.FileName(), "movies.shard-00002-of-00012.part-00001-of-00004.table");
  SnapshotHeader parsed;
  ASSERT_TRUE(SnapshotHeader::Parse("x", header.ToText(), &parsed).ok());
  EXPECT_EQ(parsed.ToText(), header.ToText());
  EXPECT_EQ(parsed.segments[1].compressor.parameters.at("amplitude"), 0.25);
  EXPECT_EQ(SnapshotHeader::Of(*table, false).state_floats(), 0);
  EXPECT_TRUE(SnapshotHeader::Of(*MakeTable(Serving(config)), true).serving);
}

TEST_F(TableSnapshot, AHeaderThatCannotBeIsDataLossInItsFile) {
  const std::string good = SnapshotHeader::Of(*MakeTable(Config(1)), true).ToText();
  const auto problem = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    SnapshotHeader header;
    const Status status = SnapshotHeader::Parse("file", text, &header);
    EXPECT_EQ(status.code(), Code::kDataLoss) << text;
    EXPECT_EQ(status.message().rfind("file, header: ", 0), 0u) << status.message();
    return status.message();
  };
  EXPECT_NE(problem("format_version=2", "format_version=3").find("version '3'"), std::string::npos);
  problem("format_version=2;", "");
  problem("table=t", "t");
  problem("num_shards=1", "num_shards=0");
  problem("shard=0", "shard=1");
  problem("part=0", "part=-1");
  problem("num_parts=1", "num_parts=x");
  problem("segments=1", "segments=2");
  problem("segments=1", "segments=1000000000000");
  problem("dim=1", "dim=0");
  problem("state_floats=0", "state_floats=99999999999999999999");
}

TEST_F(TableSnapshot, EveryRowIsReadAndCounted) {
  const auto table = MakeTable(Config(1));
  const SnapshotHeader header = SnapshotHeader::Of(*table, true);
  const std::string row(16, 'r');
  const std::string path = WriteTable(header, {row + row, row}, 3);
  SnapshotHeader read;
  int64_t rows = 0;
  ASSERT_TRUE(VerifyTableFile(path, &read, &rows).ok());
  EXPECT_EQ(rows, 3);
  EXPECT_NE(Damage(WriteTable(header, {row, row.substr(1)}, 2)).find(path + ", block 1: not a whole number of rows"),
            std::string::npos);
  EXPECT_NE(Damage(WriteTable(header, {row}, 2)).find("2 rows are announced, 1 are there"), std::string::npos);
}

TEST_F(TableSnapshot, AServingFileWhoseCompressorIsUnknownIsRefused) {
  SnapshotHeader header = SnapshotHeader::Of(*MakeTable(Config(1)), false);
  header.segments[0].compressor.kind = "zip";
  EXPECT_NE(Damage(WriteTable(header, {}, 0)).find("'zip' is unknown"), std::string::npos);
}

class RowConverterTest : public TableSnapshot {
 protected:
  // One id from a table of `from`, as `to` has it after a restore with a map of segments.
  std::string Converted(const TableConfig& from, const TableConfig& to, const std::vector<int>& segments_from) {
    const auto source = MakeStore({from}), target = MakeStore({to});
    const std::vector<float> gradients(TableOf(source).dim(), -1);
    EXPECT_TRUE(Update(TableOf(source), {7}, gradients, {std::vector<float>(from.segments.size(), 1), 99, 0}).ok());
    RestoreOptions options;
    options.segments_from["t"] = segments_from;
    const Status restored = Restore(target, Save(source), options);
    EXPECT_TRUE(restored.ok()) << restored.message();
    EXPECT_EQ(TimestampOf(TableOf(target), 7), 99u);
    return RowOf(TableOf(target), 7);
  }

  static std::vector<float> FloatsOf(const std::string& row) {
    std::vector<float> floats((row.size() - RowHeader::kBytes) / 4);
    std::memcpy(floats.data(), RowHeader::EntryOf(row.data()), 4 * floats.size());
    return floats;
  }

  // Why files of `from` do not fit `to`.
  std::string Refusal(const TableConfig& from, const TableConfig& to, const std::vector<int>& segments_from = {},
                      bool with_state = true) {
    const auto source = MakeStore({from}), target = MakeStore({to});
    CreateAndLookUp(TableOf(source), {1});
    CreateAndLookUp(TableOf(target), {2});
    SaveOptions save;
    save.with_state = with_state;
    RestoreOptions options;
    if (!segments_from.empty()) options.segments_from["t"] = segments_from;
    const Status status = Restore(target, Save(source, save), options);
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_EQ(Contains(TableOf(target), {1, 2}), "01");
    return status.message();
  }
};

TEST_F(RowConverterTest, SegmentsGoWhereTheMapSaysAndNewOnesStartFresh) {
  const TableConfig from = Config({Segment(1, Adagrad(1)), Segment(2, Adagrad(4)), Segment(1)});
  const TableConfig to = Config({Segment(1, Adagrad(9), {"ones", {}}), Segment(2, Adagrad(0)), Segment(1, Adagrad(0))});
  const std::vector<float> floats = FloatsOf(Converted(from, to, {-1, 1, 0}));
  const double one = 1 / std::sqrt(2.0), two = 1 / std::sqrt(5.0);
  ExpectNear(floats, {1, two, two, one, 9, 5, 5, 2});
}

TEST_F(RowConverterTest, ANewRandomSegmentStartsAtItsFirstVector) {
  const TableConfig to = Config({Segment(2), Segment(3, kSgd, kUniform)});
  const std::string row = Converted(Config({Segment(2)}), to, {0, -1});
  std::vector<float> first(5);
  MakeTable(to)->layout().FirstVector(7, first.data());
  ExpectNear(FloatsOf(row), {1, 1, first[2], first[3], first[4]});
}

TEST_F(RowConverterTest, ATableWithoutOptimizerTakesTheWeightsOfAnyFile) {
  const std::string row = Converted(Config(2, Adagrad(1)), Config(2, {"none", {}}), {0});
  ExpectNear(FloatsOf(row), {std::sqrt(0.5), std::sqrt(0.5)});
}

COVERS("emb:H36")
TEST_F(RowConverterTest, H36AMismatchNamesTableSegmentWhatIsExpectedAndWhatIsFound) {
  const TableConfig two = Config({Segment(1), Segment(3, Adagrad(0.1))});
  EXPECT_NE(
      Refusal(two, Config({Segment(1), Segment(4, Adagrad(0.1))})).find("table 't' has in segment 1 dim 3, expected 4"),
      std::string::npos);
  EXPECT_NE(Refusal(two, Config({Segment(1), Segment(3)})).find("in segment 1 optimizer adagrad, expected sgd"),
            std::string::npos);
  EXPECT_NE(Refusal(two, Config(4)).find("segments 2, expected 1"), std::string::npos);
  EXPECT_NE(Refusal(two, two, {}, false).find("optimizer none (weights only), expected sgd"), std::string::npos);
}

TEST_F(RowConverterTest, AMapOfSegmentsThatCannotBeIsRefused) {
  const TableConfig two = Config({Segment(1), Segment(3)});
  EXPECT_NE(Refusal(two, two, {0}).find("segments in the map 1, expected 2"), std::string::npos);
  EXPECT_NE(Refusal(two, two, {0, 2}).find("no segment in the file, it has 2, expected 2"), std::string::npos);
  EXPECT_NE(Refusal(two, two, {1, 0}).find("in segment 0 dim 3, expected 1"), std::string::npos);
}

}  // namespace
}  // namespace millrace

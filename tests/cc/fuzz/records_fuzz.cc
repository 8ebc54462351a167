// Feeds changed records to the decoders: no crash, no hang, and the good records around a bad one survive.
//
//   records_fuzz [--runs N] [--seed S]
//
// A run is a block with eight changed records. A changed record becomes its rows or one refusal; the batch is
// well-formed either way, and its rows can be encoded and read again. A run depends on the sum of seed and its number
// alone. Now and then one record is grown to some 100 KB by repeating a piece of it, and the time per byte is bounded: a
// decoder that takes quadratic time is too slow for long records only.
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ops/cc/records/arrow/arrow_export.h"
#include "ops/cc/records/encode/batch_reader.h"
#include "ops/cc/records/json/json_reader.h"
#include "ops/cc/records/encode/record_encoder.h"
#include "tests/cc/fuzz/file_mutator.h"
#include "tests/cc/records/arrow_batch.h"
#include "tests/cc/records/record_bytes.h"
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace millrace::records {
namespace {

constexpr unsigned kSecondsPerRun = 20;
constexpr int kChangedPerRun = 8;  // good ones lie between them
constexpr Format kFormats[] = {Format::kExample, Format::kExampleBatch, Format::kInstance};

uint64_t g_run = 0;  // the seed that repeats the present run

void SayHowToRepeat() {
  std::fprintf(stderr, "records_fuzz: repeat with --runs 1 --seed %llu\n", static_cast<unsigned long long>(g_run));
}

void OnSignal(int signal) {
  SayHowToRepeat();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

void WatchForCrashesAndHangs() {
  for (const int signal : {SIGALRM, SIGABRT}) std::signal(signal, OnSignal);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_set_death_callback(SayHowToRepeat);
#else
  for (const int signal : {SIGSEGV, SIGFPE}) std::signal(signal, OnSignal);
#endif
}

void Expect(bool condition, const std::string& problem) {
  if (!condition) throw std::runtime_error(problem);
}

std::string SomeLineId(Draw* draw) {
  return FixedField(2, draw->Next()) + VarintField(3, draw->Next()) + BytesField(6, VarintBytes(draw->Below(300))) +
         VarintField(87, draw->Below(2)) + BytesField(1002, "req") + FixedField(1005, 0.5f);
}

std::string SomeFeature(const std::string& name, Draw* draw) {
  const std::vector<uint64_t> numbers(draw->Below(4), draw->Next() >> 1);
  switch (draw->Below(40) == 0 ? draw->Below(6) : static_cast<size_t>(name[0] - 'a')) {
    case 0:
      return ListFeature(kFidV2List, numbers);
    case 1:
      return ListFeature<float>(kFloatList, {1.5f, 2});
    case 2:
      return BytesFeature({"x", "", std::string(draw->Below(200), 'y')});
    case 3:
      return NestedFeature({numbers, {}, {1}});
    case 4:
      return ListFeature(kFidV1List, numbers);
    default:
      return VarintField(kInt64Value, draw->Next());
  }
}

const char* const kNames[] = {"a", "b", "c", "d", "e", "f"};

std::string SomeExample(Draw* draw) {
  std::string record;
  for (const char* name : kNames) {
    if (draw->Below(4) != 0)
      record += NamedFeature(name, SomeFeature(name, draw), static_cast<int32_t>(draw->Below(3)));
  }
  if (draw->Below(2) == 0) record += NamedFeature("__LINE_ID__", BytesFeature({SomeLineId(draw)}));
  if (draw->Below(2) == 0) record += NamedFeature("__LABEL__", ListFeature<float>(kFloatList, {1}));
  record += BytesField(2, BytesField(1, "r") + BytesField(2, BytesField(1, "raw")));
  return record + BytesField(100, SomeLineId(draw)) + BytesField(101, Packed<float>({1, 0})) + FixedField(102, 2.0f) +
         VarintField(103, 1280);
}

std::string SomeExampleBatch(Draw* draw) {
  const size_t rows = 1 + draw->Below(4);
  std::string record;
  for (const char* name : kNames) {
    const bool shared = draw->Below(3) == 0;
    std::vector<std::string> features;
    for (size_t row = 0; row < (shared ? 1 : rows); ++row) {
      features.push_back(draw->Below(5) == 0 ? "" : SomeFeature(name, draw));
    }
    record += FeatureList(name, features, shared);
  }
  record += FeatureList("__LINE_ID__", std::vector<std::string>(rows, BytesFeature({SomeLineId(draw)})));
  record += FeatureList("instance_weight", {ListFeature<float>(kFloatList, {})}, true);
  return record + VarintField(3, rows) + VarintField(100, 1280);
}

std::string SomeInstance(Draw* draw) {
  std::vector<uint64_t> fids;
  for (size_t i = draw->Below(6); i > 0; --i) fids.push_back(draw->Below(4) << 54 | draw->Below(100));
  std::string record = BytesField(1, Packed(fids)) + FixedField(2, 0.5f) + FixedField(3, 1.0f) + FixedField(4, 2.0f);
  record += BytesField(9, BytesField(1, "a") + BytesField(2, Packed(fids)));
  record += BytesField(9, BytesField(1, "d") + BytesField(8, BytesField(1, VarintBytes(draw->Next()))));
  return record + BytesField(5, SomeLineId(draw)) + BytesField(7, VarintField(1, 2)) + VarintField(100, 1280);
}

std::string SomeRecord(Format format, Draw* draw) {
  switch (format) {
    case Format::kExample:
      return SomeExample(draw);
    case Format::kExampleBatch:
      return SomeExampleBatch(draw);
    default:
      return SomeInstance(draw);
  }
}

std::string Changed(std::string bytes, const std::string& other, Draw* draw) {
  const size_t at = draw->Below(bytes.size()), length = 1 + draw->Below(16);
  switch (draw->Below(7)) {
    case 0:
      return bytes.substr(0, at);
    case 1:
      return bytes.insert(at, RandomBytes(length, draw));
    case 2:
      return bytes.erase(at, length);
    case 3:
      return bytes.replace(at, length, other, draw->Below(other.size()), length);
    case 4:
      return bytes.substr(0, at) + other.substr(draw->Below(other.size()));
    case 5:
      return bytes.replace(at, 1, VarintBytes(OddNumber(static_cast<uint8_t>(bytes[at]), draw)));
    default:
      FlipBits(&bytes, draw);
      return bytes;
  }
}

// The records of a batch.
std::vector<std::string> Encoded(const ArrowBatch& rows, Format format) {
  BatchReader batch;
  Expect(batch.Open(rows.schema, rows.array), "a decoded batch cannot be encoded");
  std::vector<std::string> records;
  ReverseWriter writer;
  for (int64_t row = 0; row < batch.rows(); ++row) {
    writer.Clear();
    if (format == Format::kExampleBatch) {
      WriteExampleBatch(batch, row, row + 1, &writer);
    } else if (format == Format::kExample || !FitsInstance(batch)) {
      WriteExample(batch, row, &writer);
    } else {
      WriteInstance(batch, row, &writer);
    }
    records.push_back(Written(writer));
  }
  return records;
}

// One field of a message, and one of the messages in it, as deep as it goes, repeated until the whole has `bytes`.
std::string Grown(const std::string& record, size_t bytes, Draw* draw) {
  std::vector<Span> fields;
  WireReader reader(SpanOf(record));
  uint32_t tag;
  while (!reader.done()) {
    const uint8_t* const start = reader.at();
    if (!reader.ReadTag(&tag) || !reader.Skip(tag)) break;
    fields.push_back({start, reader.at()});
  }
  if (fields.empty()) return record;
  const Span field = fields[draw->Below(fields.size())];
  std::string piece(field.text());
  WireReader inner(field);
  Span content;
  std::string result(record.begin(), record.begin() + (field.begin - SpanOf(record).begin));
  if (draw->Below(4) != 0 && inner.ReadTag(&tag) && TypeOf(tag) == kBytes && inner.ReadBytes(&content) &&
      !content.empty()) {
    result += BytesField(NumberOf(tag), Grown(std::string(content.text()), bytes, draw));
  } else {
    while (piece.size() < bytes / 2) piece += piece;
    result += piece;
  }
  return result + std::string(record.begin() + (field.end - SpanOf(record).begin), record.end());
}

double ThreadSeconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

class Fuzzer {
 public:
  void Run(Draw* draw) {
    if (draw->Below(64) == 0) {
      RunLong(draw);
    } else if (draw->Below(5) == 0) {
      RunJson(draw);
    } else {
      RunRecords(draw);
    }
  }

  std::string Report() const {
    return "refused " + std::to_string(refused_) + ", accepted " + std::to_string(accepted_) + ", of JSON plain " +
           std::to_string(plain_) + " and not " + std::to_string(odd_);
  }

 private:
  // Linear decoders take 5 to 50 ns for a byte, under sanitizers ten times as much; one that copies what it read at each
  // of many pieces takes microseconds at this length.
  static void RunLong(Draw* draw) {
    constexpr size_t kBytes = 400'000;
#ifdef __SANITIZE_ADDRESS__
    constexpr double kSecondsPerByte = 2e-6;
#else
    constexpr double kSecondsPerByte = 2e-7;
#endif
    const Format format = draw->Of(kFormats);
    DecodeOptions options;
    options.pruning = static_cast<Pruning>(draw->Below(3));
    const std::string record = Grown(SomeRecord(format, draw), kBytes, draw);
    const double start = ThreadSeconds();
    const Decoded decoded({record}, format, options);
    const double seconds = ThreadSeconds() - start;
    Expect(decoded.rows.fault().empty() && decoded.refused.fault().empty(), "a long record makes a malformed batch");
    Expect(seconds < kSecondsPerByte * static_cast<double>(kBytes),
           "a record of " + std::to_string(record.size()) + " bytes takes " + std::to_string(seconds) + " s");
  }

  void RunRecords(Draw* draw) {
    const Format format = draw->Of(kFormats);
    DecodeOptions options;
    options.fids_as_is = draw->Below(2) == 0;
    options.pruning = static_cast<Pruning>(draw->Below(3));
    // A record whose types are the usual ones comes first.
    Draw fixed(static_cast<uint64_t>(format));
    const std::string good = SomeRecord(format, &fixed), other = SomeRecord(format, draw);
    std::vector<std::string> records = {good};
    for (int i = 0; i < kChangedPerRun; ++i) {
      records.push_back(Changed(SomeRecord(format, draw), other, draw));
      records.push_back(good);
    }
    const Decoded decoded(records, format, options);
    Expect(decoded.rows.fault().empty(), "rows: " + decoded.rows.fault());
    Expect(decoded.refused.fault().empty(), "refused: " + decoded.refused.fault());
    const int64_t refused = decoded.refused.rows();
    for (int64_t i = 0; i < refused; ++i) {
      Expect(decoded.refused_row(i) % 2 == 1, "a good record is refused: " + decoded.detail(i));
      Expect(!decoded.detail(i).empty(), "a refusal does not say why");
    }
    Expect(RowsOfGood(decoded.rows) == (kChangedPerRun + 1) * RowsOfGood(Decoded({good}, format, options).rows),
           "a good record lost rows");
    refused_ += static_cast<uint64_t>(refused);
    accepted_ += static_cast<uint64_t>(kChangedPerRun - refused);
    if (draw->Below(8) == 0) CheckEncoding(decoded.rows, format);
  }

  // Rows of records at even places.
  static int64_t RowsOfGood(const ArrowBatch& rows) {
    const ArrayReader offsets = rows.column("__SOURCE_OFFSET__");
    int64_t count = 0;
    for (int64_t row = 0; row < rows.rows(); ++row) count += *offsets.Numbers<int64_t>(row) % 2 == 0 ? 1 : 0;
    return count;
  }

  static void CheckEncoding(const ArrowBatch& rows, Format format) {
    DecodeOptions options;
    options.fids_as_is = true;
    options.pruning = Pruning::kNothing;
    const std::vector<std::string> records = Encoded(rows, format);
    if (format == Format::kInstance) return;  // written as Examples when a column asks for it
    const Decoded again(records, format, options);
    Expect(again.refused.rows() == 0,
           "an encoded row is refused: " + (again.refused.rows() > 0 ? again.detail(0) : ""));
    // The order of features is that in which their names occur. One that occurs first without values is written where
    // its first value is, so that two rounds make it the same.
    const std::vector<std::string> twice = Encoded(again.rows, format);
    Expect(twice.size() == records.size(), "rows are lost when they are encoded again");
    for (size_t i = 0; i < twice.size(); ++i) {
      Expect(twice[i].size() == records[i].size(), "a row changes its size when it is encoded again");
    }
    Expect(Encoded(Decoded(twice, format, options).rows, format) == twice, "a row changes when it is encoded again");
  }

  void RunJson(Draw* draw) {
    std::vector<ArrowSchema> fields(3);
    ExportField("id", {Value::kInt64, 0, Kind::kPlain}, 0, true, &fields[0]);
    ExportField("items", {Value::kInt64, 1, Kind::kPlain}, 0, true, &fields[1]);
    ExportField("text", {Value::kText, 0, Kind::kPlain}, 0, true, &fields[2]);
    ArrowBatch batch;
    ExportStruct(std::move(fields), &batch.schema);
    JsonReader reader;
    Expect(reader.Open(batch.schema), "the schema does not open");
    const std::string good = R"({"id":12,"items":[1,22,333],"text":"phone","more":-1.5e3,"last":null})";
    const std::string plain = R"({"id":-7,"text":"a b","value":1.5,"items":[]})";
    Expect(reader.Add(SpanOf(plain)), "a plain object is not taken");
    int64_t taken = 0;
    for (int i = 0; i < kChangedPerRun; ++i) {
      const std::string changed = Changed(draw->Below(2) == 0 ? good : plain, plain, draw);
      taken += reader.Add(SpanOf(changed)) ? 1 : 0;
      Expect(reader.Add(SpanOf(plain)), "a plain object is not taken");
    }
    reader.Export(&batch.array);
    Expect(batch.fault().empty(), "JSON rows: " + batch.fault());
    Expect(batch.rows() == kChangedPerRun + 1 + taken, "JSON rows are lost");
    plain_ += static_cast<uint64_t>(taken);
    odd_ += static_cast<uint64_t>(kChangedPerRun - taken);
  }

  uint64_t refused_ = 0, accepted_ = 0, plain_ = 0, odd_ = 0;
};

uint64_t FlagOf(int count, char** words, const std::string& name, uint64_t fallback) {
  for (int i = 1; i + 1 < count; i += 2) {
    if (words[i] == name) return std::strtoull(words[i + 1], nullptr, 10);
  }
  return fallback;
}

int Main(int count, char** words) {
  const uint64_t runs = FlagOf(count, words, "--runs", 10000), seed = FlagOf(count, words, "--seed", 1);
  WatchForCrashesAndHangs();
  try {
    const auto start = std::chrono::steady_clock::now();
    Fuzzer fuzzer;
    for (uint64_t run = 0; run < runs; ++run) {
      g_run = seed + run;
      ::alarm(kSecondsPerRun);
      Draw draw(g_run);
      fuzzer.Run(&draw);
    }
    ::alarm(0);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s, %.0f runs a second\n", fuzzer.Report().c_str(), static_cast<double>(runs) / seconds);
    return 0;
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "records_fuzz: %s\n", failure.what());
    SayHowToRepeat();
    return 1;
  }
}

}  // namespace
}  // namespace millrace::records

int main(int count, char** words) { return millrace::records::Main(count, words); }

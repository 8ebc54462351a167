// Kernels that write and read snapshots; definitions and documentation are in snapshot_op_defs.cc.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "ops/cc/embedding/snapshot/store_snapshot.h"
#include "ops/cc/embedding/snapshot/table_snapshot.h"
#include "ops/cc/kernels/entry_output.h"
#include "ops/cc/kernels/table_resource.h"

namespace millrace {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::tstring;

using Clock = std::chrono::steady_clock;

absl::Status OutputTexts(OpKernelContext* context, const std::vector<std::string>& texts) {
  Tensor* output = nullptr;
  TF_RETURN_IF_ERROR(context->allocate_output(0, TensorShape({static_cast<int64_t>(texts.size())}), &output));
  for (size_t i = 0; i < texts.size(); ++i) output->vec<tstring>()(i) = texts[i];
  return absl::OkStatus();
}

std::vector<std::string> TextsFromInput(OpKernelContext* context, int index) {
  const auto texts = context->input(index).flat<tstring>();
  return {texts.data(), texts.data() + texts.size()};
}

// One int64 per table of the cut, as output `index`.
absl::Status OutputCounts(OpKernelContext* context, int index, const std::vector<int64_t>& counts) {
  Tensor* output = nullptr;
  TF_RETURN_IF_ERROR(context->allocate_output(index, TensorShape({static_cast<int64_t>(counts.size())}), &output));
  std::copy(counts.begin(), counts.end(), output->flat<int64_t>().data());
  return absl::OkStatus();
}

// Cuts that were begun and not yet written, by number.
class OpenCuts {
 public:
  static OpenCuts& Global() {
    static auto* cuts = new OpenCuts();  // never destroyed: kernels may still run when the process exits
    return *cuts;
  }

  int64_t Add(std::unique_ptr<StoreCut> cut) {
    const std::lock_guard lock(mutex_);
    cuts_[++last_] = {std::move(cut), Clock::now()};
    return last_;
  }

  // Null when it was taken before.
  std::unique_ptr<StoreCut> Take(int64_t number) {
    const std::lock_guard lock(mutex_);
    const auto found = cuts_.find(number);
    if (found == cuts_.end()) return nullptr;
    std::unique_ptr<StoreCut> cut = std::move(found->second.cut);
    cuts_.erase(found);
    return cut;
  }

  // Drops the cut of `store` that has waited so long to be written: to write it then fails. Returns whether there was
  // one.
  bool DropAbandoned(const EmbeddingStore& store, std::chrono::duration<double> after) {
    std::unique_ptr<StoreCut> abandoned;  // ended after the lock is released: it waits for the locks of its tables
    const std::lock_guard lock(mutex_);
    for (auto waiting = cuts_.begin(); waiting != cuts_.end(); ++waiting) {
      if (&waiting->second.cut->store() != &store || Clock::now() - waiting->second.begun < after) continue;
      abandoned = std::move(waiting->second.cut);
      cuts_.erase(waiting);
      return true;
    }
    return false;
  }

 private:
  struct Waiting {
    std::unique_ptr<StoreCut> cut;
    Clock::time_point begun;
  };
  std::mutex mutex_;
  std::map<int64_t, Waiting> cuts_;
  int64_t last_ = 0;
};

class BeginCutKernel : public StoreKernel {
 public:
  explicit BeginCutKernel(OpKernelConstruction* context) : StoreKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("abandoned_seconds", &abandoned_seconds_));
  }

 protected:
  void ComputeOn(OpKernelContext* context, std::shared_ptr<EmbeddingStore> store) override {
    int64_t watermark = 0;
    OP_REQUIRES_OK(context, ScalarFromInput(context, 1, "watermark", &watermark));
    OP_REQUIRES(context, watermark <= UINT32_MAX,
                absl::InvalidArgumentError("watermark must be seconds, below 2^32"));
    const CutTime time{watermark, static_cast<uint32_t>(NowSeconds())};
    std::unique_ptr<StoreCut> cut;
    Status begun = StoreCut::Begin(store, time, &cut);
    if (!begun.ok() && OpenCuts::Global().DropAbandoned(*store, std::chrono::duration<double>(abandoned_seconds_))) {
      LOG(WARNING) << "store '" << store->name() << "': a cut that waited for " << abandoned_seconds_
                   << " s to be written was dropped for the next one";
      begun = StoreCut::Begin(store, time, &cut);
    }
    OP_REQUIRES_OK(context, ToTensorFlow(begun));
    Tensor* number = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({}), &number));
    number->scalar<int64_t>()() = OpenCuts::Global().Add(std::move(cut));
  }

 private:
  float abandoned_seconds_ = 0;
};

class WriteCutKernel : public GuardedKernel {
 public:
  explicit WriteCutKernel(OpKernelConstruction* context) : GuardedKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("with_state", &options_.with_state));
    OP_REQUIRES_OK(context, context->GetAttr("shard", &options_.shard));
    OP_REQUIRES_OK(context, context->GetAttr("num_shards", &options_.num_shards));
    OP_REQUIRES(context, options_.shard < options_.num_shards,
                absl::InvalidArgumentError("shard must be below num_shards"));
  }

 protected:
  void Run(OpKernelContext* context) override {
    int64_t number = 0;
    tstring folder;
    OP_REQUIRES_OK(context, ScalarFromInput(context, 0, "cut", &number));
    OP_REQUIRES_OK(context, ScalarFromInput(context, 1, "folder", &folder));
    const std::unique_ptr<StoreCut> cut = OpenCuts::Global().Take(number);
    OP_REQUIRES(context, cut != nullptr,
                absl::FailedPreconditionError("this cut was written or dropped before, or waited so long that another "
                                              "cut of the store was begun instead"));
    CutReport report;
    OP_REQUIRES_OK(context, ToTensorFlow(cut->Write(folder, options_, &report)));
    OP_REQUIRES_OK(context, OutputTexts(context, report.files));
    OP_REQUIRES_OK(context, OutputCounts(context, 1, report.written));
    OP_REQUIRES_OK(context, OutputCounts(context, 2, report.expired));
  }

 private:
  SaveOptions options_;
};

class DropCutKernel : public GuardedKernel {
 public:
  using GuardedKernel::GuardedKernel;

 protected:
  void Run(OpKernelContext* context) override {
    int64_t number = 0;
    OP_REQUIRES_OK(context, ScalarFromInput(context, 0, "cut", &number));
    OpenCuts::Global().Take(number);
  }
};

// "movies=0,-1,1" as a table's name and its numbers.
absl::Status ParseSegmentsFrom(const std::string& text, RestoreOptions* options) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos) return absl::InvalidArgumentError("'" + text + "' is not table=segment,...");
  std::vector<int>& segments = options->segments_from[text.substr(0, equals)];
  const char* const end = text.data() + text.size();
  for (const char* at = text.data() + equals + 1; at != end;) {
    segments.push_back(0);
    const auto [next, error] = std::from_chars(at, end, segments.back());
    if (error != std::errc() || (next != end && *next != ',')) {
      return absl::InvalidArgumentError("'" + text + "' is not table=segment,...");
    }
    at = next == end ? end : next + 1;
  }
  return absl::OkStatus();
}

class RestoreKernel : public StoreKernel {
 public:
  explicit RestoreKernel(OpKernelConstruction* context) : StoreKernel(context) {
    std::vector<std::string> segments_from;
    OP_REQUIRES_OK(context, context->GetAttr("once", &once_));
    OP_REQUIRES_OK(context, context->GetAttr("partial", &options_.partial));
    OP_REQUIRES_OK(context, context->GetAttr("shard", &options_.shard));
    OP_REQUIRES_OK(context, context->GetAttr("num_shards", &options_.num_shards));
    OP_REQUIRES_OK(context, context->GetAttr("segments_from", &segments_from));
    OP_REQUIRES(context, options_.shard < options_.num_shards,
                absl::InvalidArgumentError("shard must be below num_shards"));
    for (const std::string& text : segments_from) OP_REQUIRES_OK(context, ParseSegmentsFrom(text, &options_));
  }

 protected:
  void ComputeOn(OpKernelContext* context, std::shared_ptr<EmbeddingStore> store) override {
    const std::vector<std::string> files = TextsFromInput(context, 1);
    std::vector<std::string> notes;
    const auto restore = [&] { return RestoreStore(store.get(), files, options_, &notes); };
    OP_REQUIRES_OK(context, ToTensorFlow(once_ ? store->DoOnce(restore) : restore()));
    OP_REQUIRES_OK(context, OutputTexts(context, notes));
  }

 private:
  bool once_ = false;
  RestoreOptions options_;
};

class VerifyTableFileKernel : public GuardedKernel {
 public:
  using GuardedKernel::GuardedKernel;

 protected:
  void Run(OpKernelContext* context) override {
    SnapshotHeader header;
    int64_t rows = 0;
    tstring path;
    OP_REQUIRES_OK(context, ScalarFromInput(context, 0, "path", &path));
    OP_REQUIRES_OK(context, ToTensorFlow(VerifyTableFile(path, &header, &rows)));
    Tensor *text = nullptr, *count = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({}), &text));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({}), &count));
    text->scalar<tstring>()() = header.ToText();
    count->scalar<int64_t>()() = rows;
  }
};

class ReadTableFileKernel : public GuardedKernel {
 public:
  using GuardedKernel::GuardedKernel;

 protected:
  void Run(OpKernelContext* context) override {
    const Tensor& cursor = context->input(1);
    int64_t limit = 0;
    tstring path;
    OP_REQUIRES_OK(context, ScalarFromInput(context, 0, "path", &path));
    OP_REQUIRES_OK(context, ScalarFromInput(context, 2, "limit", &limit));
    OP_REQUIRES(context, cursor.dims() == 1 && cursor.NumElements() == 2,
                absl::InvalidArgumentError("cursor must be [2]"));
    std::unique_ptr<TableFileReader> reader;
    OP_REQUIRES_OK(context, ToTensorFlow(TableFileReader::Open(path, &reader)));
    const CheckedFileReader::Position from{cursor.vec<int64_t>()(0), static_cast<uint32_t>(cursor.vec<int64_t>()(1))};
    if (from.offset != 0) OP_REQUIRES_OK(context, ToTensorFlow(reader->file().Seek(from)));
    EntryRows all;
    all.row_bytes = reader->row_bytes();
    // The end is checked by whoever verifies the file: a reader that starts in the middle cannot count its rows.
    while (all.size() < limit) {
      std::vector<char> block;
      OP_REQUIRES_OK(context, ToTensorFlow(reader->file().Next(&block)));
      if (block.empty()) break;
      OP_REQUIRES(context, block.size() % all.row_bytes == 0,
                  absl::DataLossError(reader->path() + ": a block is not a whole number of rows"));
      all.bytes.insert(all.bytes.end(), block.begin(), block.end());
    }
    const SnapshotHeader& header = reader->header();
    OP_REQUIRES_OK(context, OutputRows(context, all, header.dim() + header.state_floats(),
                                       [&](const char* row, float* values) { reader->ReadValues(row, values); }));
    Tensor *text = nullptr, *next = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output("header", TensorShape({}), &text));
    OP_REQUIRES_OK(context, context->allocate_output("next", TensorShape({2}), &next));
    text->scalar<tstring>()() = header.ToText();
    next->vec<int64_t>()(0) = reader->file().position().offset;
    next->vec<int64_t>()(1) = reader->file().position().block;
  }
};

class ReshardFilesKernel : public GuardedKernel {
 public:
  explicit ReshardFilesKernel(OpKernelConstruction* context) : GuardedKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("num_shards", &num_shards_));
  }

 protected:
  void Run(OpKernelContext* context) override {
    std::vector<std::string> written;
    tstring folder;
    OP_REQUIRES_OK(context, ScalarFromInput(context, 1, "folder", &folder));
    OP_REQUIRES_OK(context,
                   ToTensorFlow(ReshardFiles(TextsFromInput(context, 0), folder, num_shards_, &written)));
    OP_REQUIRES_OK(context, OutputTexts(context, written));
  }

 private:
  int num_shards_ = 1;
};

MILLRACE_REGISTER("BeginCut", BeginCutKernel);
MILLRACE_REGISTER("WriteCut", WriteCutKernel);
MILLRACE_REGISTER("DropCut", DropCutKernel);
MILLRACE_REGISTER("Restore", RestoreKernel);
MILLRACE_REGISTER("VerifyTableFile", VerifyTableFileKernel);
MILLRACE_REGISTER("ReadTableFile", ReadTableFileKernel);
MILLRACE_REGISTER("ReshardFiles", ReshardFilesKernel);

}  // namespace
}  // namespace millrace

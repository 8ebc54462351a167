// Kernels that read and change one table; definitions and documentation are in table_op_defs.cc.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "ops/cc/kernels/entry_output.h"
#include "ops/cc/kernels/table_resource.h"

namespace millrace {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

class LookupKernel : public TableKernel {
 public:
  explicit LookupKernel(OpKernelConstruction* context) : TableKernel(context) {
    std::string missing;
    OP_REQUIRES_OK(context, context->GetAttr("dim", &dim_));
    OP_REQUIRES_OK(context, context->GetAttr("missing", &missing));
    OP_REQUIRES_OK(context, ParseMissing(missing, &missing_));
  }

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const Tensor* ids = nullptr;
    LookupOptions options{missing_, 0};
    OP_REQUIRES_OK(context, IdsFromInput(context, 1, &ids));
    OP_REQUIRES_OK(context, ScalarFromInput(context, 2, "global_step", &options.global_step));
    OP_REQUIRES_OK(context, CheckDim(*table, dim_));
    const int64_t count = ids->NumElements();
    Tensor* values = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({count, dim_}), &values));
    table->Lookup(ids->flat<int64_t>().data(), count, options, values->flat<float>().data(), DeviceThreads(context));
  }

 private:
  int64_t dim_ = 0;
  Missing missing_ = Missing::kZeros;
};

class LookupEntriesKernel : public TableKernel {
 public:
  using TableKernel::TableKernel;

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const Tensor* ids = nullptr;
    OP_REQUIRES_OK(context, IdsFromInput(context, 1, &ids));
    Tensor* found = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output("found", ids->shape(), &found));
    EntryRows rows;
    rows.row_bytes = table->layout().row_bytes();
    rows.bytes.resize(ids->NumElements() * rows.row_bytes);
    table->LookupEntries(ids->flat<int64_t>().data(), ids->NumElements(), found->flat<bool>().data(),
                         rows.bytes.data());
    OP_REQUIRES_OK(context, OutputEntries(context, table->layout(), rows));
  }
};

class ContainsKernel : public TableKernel {
 public:
  using TableKernel::TableKernel;

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const Tensor* ids = nullptr;
    OP_REQUIRES_OK(context, IdsFromInput(context, 1, &ids));
    Tensor* found = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, ids->shape(), &found));
    table->Contains(ids->flat<int64_t>().data(), ids->NumElements(), found->flat<bool>().data());
  }
};

class AssignKernel : public TableKernel {
 public:
  explicit AssignKernel(OpKernelConstruction* context) : TableKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("add", &add_));
    OP_REQUIRES_OK(context, context->GetAttr("ask_filter", &ask_filter_));
  }

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const Tensor* ids = nullptr;
    OP_REQUIRES_OK(context, IdsFromInput(context, 1, &ids));
    const Tensor& values = context->input(2);
    OP_REQUIRES_OK(context, CheckRows(*table, values, ids->NumElements()));
    AssignOptions options{0, add_, ask_filter_};
    OP_REQUIRES_OK(context, TimestampFromInput(context, 3, &options.timestamp));
    OP_REQUIRES_OK(context, ToTensorFlow(table->Assign(ids->flat<int64_t>().data(), values.flat<float>().data(),
                                                       ids->NumElements(), options, DeviceThreads(context))));
  }

 private:
  bool add_ = false;
  bool ask_filter_ = false;
};

class ImportEntriesKernel : public TableKernel {
 public:
  using TableKernel::TableKernel;

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const Tensor* ids = nullptr;
    OP_REQUIRES_OK(context, IdsFromInput(context, 1, &ids));
    const int64_t count = ids->NumElements();
    const Tensor &values = context->input(2), &timestamps = context->input(3);
    const EntryLayout& layout = table->layout();
    const int64_t width = layout.dim() + layout.state_floats();
    OP_REQUIRES(context, values.shape() == TensorShape({count, width}) && timestamps.shape() == ids->shape(),
                absl::InvalidArgumentError("table '" + table->config().name + "' has entries of " +
                                           std::to_string(width) + " floats and a time stamp, got " +
                                           values.shape().DebugString() + " and " + timestamps.shape().DebugString()));
    std::vector<char> rows(count * layout.row_bytes());
    for (int64_t i = 0; i < count; ++i) {
      char* row = rows.data() + i * layout.row_bytes();
      const float* from = values.flat<float>().data() + i * width;
      const int64_t timestamp = timestamps.flat<int64_t>()(i);
      OP_REQUIRES(context, timestamp >= 0 && timestamp <= UINT32_MAX,
                  absl::InvalidArgumentError("timestamps must be seconds, not negative and below 2^32"));
      RowHeader::Write(ids->flat<int64_t>()(i), static_cast<uint32_t>(timestamp), row);
      if (layout.serving()) {
        layout.WriteWeights(from, RowHeader::EntryOf(row));
      } else {
        std::memcpy(RowHeader::EntryOf(row), from, layout.entry_bytes());
      }
    }
    table->Import(rows.data(), count, DeviceThreads(context));
  }
};

class ReinitializeKernel : public TableKernel {
 public:
  using TableKernel::TableKernel;

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const Tensor* ids = nullptr;
    uint32_t timestamp = 0;
    OP_REQUIRES_OK(context, IdsFromInput(context, 1, &ids));
    OP_REQUIRES_OK(context, TimestampFromInput(context, 2, &timestamp));
    Tensor* existed = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, ids->shape(), &existed));
    table->Reinitialize(ids->flat<int64_t>().data(), ids->NumElements(), timestamp, existed->flat<bool>().data());
  }
};

class EraseKernel : public TableKernel {
 public:
  using TableKernel::TableKernel;

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const Tensor* ids = nullptr;
    OP_REQUIRES_OK(context, IdsFromInput(context, 1, &ids));
    Tensor* erased = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({}), &erased));
    erased->scalar<int64_t>()() = table->Erase(ids->flat<int64_t>().data(), ids->NumElements());
  }
};

class ApplyGradientsKernel : public TableKernel {
 public:
  using TableKernel::TableKernel;

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const Tensor* ids = nullptr;
    OP_REQUIRES_OK(context, IdsFromInput(context, 1, &ids));
    const int64_t count = ids->NumElements();
    const Tensor& gradients = context->input(2);
    const Tensor& rates = context->input(3);
    const Tensor& read_values = context->input(6);
    OP_REQUIRES_OK(context, CheckRows(*table, gradients, count));
    OP_REQUIRES_OK(context, CheckRates(*table, rates));
    OP_REQUIRES_OK(context, CheckRatesUsed(rates, table->num_segments()));
    UpdateOptions options{rates.flat<float>().data(), 0, 0};
    OP_REQUIRES_OK(context, ScalarFromInput(context, 4, "global_step", &options.global_step));
    OP_REQUIRES_OK(context, TimestampFromInput(context, 5, &options.timestamp));
    GradientList list{
        {ids->flat<int64_t>().data(), count, nullptr}, count, gradients.flat<float>().data(), nullptr, nullptr};
    if (read_values.NumElements() != 0) {
      OP_REQUIRES_OK(context, CheckRows(*table, read_values, count));
      list.read_weights = read_values.flat<float>().data();
    }
    const Executor run = DeviceThreads(context);
    MergedGradients merged;
    OP_REQUIRES_OK(context, ToTensorFlow(table->Merge({list}, run, &merged)));
    table->Apply(merged, options, run);
  }
};

class StealTouchedKernel : public TableKernel {
 public:
  using TableKernel::TableKernel;

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    std::vector<int64_t> fids;
    const bool overflowed = table->StealTouched(&fids);
    Tensor *ids = nullptr, *overflow = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({static_cast<int64_t>(fids.size())}), &ids));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({}), &overflow));
    std::copy(fids.begin(), fids.end(), ids->flat<int64_t>().data());
    overflow->scalar<bool>()() = overflowed;
  }
};

class RestoreTouchedKernel : public TableKernel {
 public:
  using TableKernel::TableKernel;

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const Tensor* ids = nullptr;
    OP_REQUIRES_OK(context, IdsFromInput(context, 1, &ids));
    table->RestoreTouched(ids->flat<int64_t>().data(), ids->NumElements());
  }
};

class ReadEntriesKernel : public TableKernel {
 public:
  explicit ReadEntriesKernel(OpKernelConstruction* context) : TableKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("part", &part_));
    OP_REQUIRES_OK(context, context->GetAttr("num_parts", &num_parts_));
    OP_REQUIRES(context, part_ < num_parts_, absl::InvalidArgumentError("part must be below num_parts"));
  }

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const int end_shard = FirstOfPart(kLockShards, part_ + 1, num_parts_);
    const Tensor& cursor = context->input(1);
    int64_t limit = 0;
    OP_REQUIRES_OK(context, ScalarFromInput(context, 2, "limit", &limit));
    OP_REQUIRES(context, cursor.dims() == 1 && cursor.NumElements() == 2 && limit >= 1,
                absl::InvalidArgumentError("cursor must be [2] and limit at least 1"));
    WalkPosition position{FirstOfPart(kLockShards, part_, num_parts_), 0};
    const auto from = cursor.vec<int64_t>();
    const bool known =
        from(0) >= 0 && from(0) <= kLockShards && from(1) >= 0 && static_cast<uint64_t>(from(1)) < FidMap::kEnd;
    OP_REQUIRES(context, known, absl::InvalidArgumentError("cursor is none that this op returned"));
    if (from(0) != 0 || from(1) != 0) position = {static_cast<int>(from(0)), static_cast<uint64_t>(from(1))};
    EntryRows rows;
    table->Walk(end_shard, limit, &position, &rows);
    OP_REQUIRES_OK(context, OutputEntries(context, table->layout(), rows));
    Tensor *next = nullptr, *done = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output("next", TensorShape({2}), &next));
    OP_REQUIRES_OK(context, context->allocate_output("done", TensorShape({}), &done));
    next->vec<int64_t>()(0) = position.shard;
    next->vec<int64_t>()(1) = static_cast<int64_t>(position.start);
    done->scalar<bool>()() = position.shard >= end_shard;
  }

 private:
  int part_ = 0;
  int num_parts_ = 1;
};

MILLRACE_REGISTER("Lookup", LookupKernel);
MILLRACE_REGISTER("LookupEntries", LookupEntriesKernel);
MILLRACE_REGISTER("Contains", ContainsKernel);
MILLRACE_REGISTER("Assign", AssignKernel);
MILLRACE_REGISTER("ImportEntries", ImportEntriesKernel);
MILLRACE_REGISTER("Reinitialize", ReinitializeKernel);
MILLRACE_REGISTER("Erase", EraseKernel);
MILLRACE_REGISTER("ApplyGradients", ApplyGradientsKernel);
MILLRACE_REGISTER("StealTouched", StealTouchedKernel);
MILLRACE_REGISTER("RestoreTouched", RestoreTouchedKernel);
MILLRACE_REGISTER("ReadEntries", ReadEntriesKernel);

}  // namespace
}  // namespace millrace

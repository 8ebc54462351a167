// Kernels that write and read table files; definitions and documentation are in op_defs.cc.
#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/cc/embedding/table_snapshot.h"
#include "ops/cc/kernels/table_resource.h"

namespace millrace {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::tstring;

// Rows of `block` as outputs ids [n], values [n, dim] and timestamps [n], by ascending id.
absl::Status OutputEntries(OpKernelContext* context, const EntryBlock& block, int dim) {
  const int64_t count = block.fids.size();
  Tensor *ids = nullptr, *values = nullptr, *timestamps = nullptr;
  TF_RETURN_IF_ERROR(context->allocate_output("ids", TensorShape({count}), &ids));
  TF_RETURN_IF_ERROR(context->allocate_output("values", TensorShape({count, dim}), &values));
  TF_RETURN_IF_ERROR(context->allocate_output("timestamps", TensorShape({count}), &timestamps));
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return block.fids[a] < block.fids[b]; });
  for (int64_t i = 0; i < count; ++i) {
    ids->flat<int64_t>()(i) = block.fids[order[i]];
    timestamps->flat<int64_t>()(i) = block.timestamps[order[i]];
    std::copy_n(block.values.data() + order[i] * block.floats, dim, values->flat<float>().data() + i * dim);
  }
  return absl::OkStatus();
}

void Append(const EntryBlock& block, EntryBlock* all) {
  all->floats = block.floats;
  all->fids.insert(all->fids.end(), block.fids.begin(), block.fids.end());
  all->timestamps.insert(all->timestamps.end(), block.timestamps.begin(), block.timestamps.end());
  all->values.insert(all->values.end(), block.values.begin(), block.values.end());
}

class DumpKernel : public OpKernel {
 public:
  explicit DumpKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("table", &table_));
    OP_REQUIRES_OK(context, context->GetAttr("with_state", &with_state_));
  }

  void Compute(OpKernelContext* context) override {
    std::shared_ptr<EmbeddingStore> store;
    EmbeddingTable* table = nullptr;
    OP_REQUIRES_OK(context, TableFromInput(context, table_, &store, &table));
    EntryBlock all, block;
    for (int shard = 0; shard < EmbeddingTable::kLockShards; ++shard) {
      table->Export(shard, with_state_, &block);
      Append(block, &all);
    }
    OP_REQUIRES_OK(context, OutputEntries(context, all, all.floats));
  }

 private:
  std::string table_;
  bool with_state_ = false;
};

class SaveKernel : public OpKernel {
 public:
  explicit SaveKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("with_state", &with_state_));
  }

  void Compute(OpKernelContext* context) override {
    std::shared_ptr<EmbeddingStore> store;
    OP_REQUIRES_OK(context, StoreFromInput(context, &store));
    const std::string folder = context->input(1).scalar<tstring>()();
    std::vector<std::string> files;
    OP_REQUIRES_OK(context, ToTensorFlow(SaveStore(*store, folder, with_state_, &files)));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({static_cast<int64_t>(files.size())}), &output));
    for (size_t i = 0; i < files.size(); ++i) output->flat<tstring>()(i) = files[i];
  }

 private:
  bool with_state_ = true;
};

class RestoreKernel : public OpKernel {
 public:
  explicit RestoreKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("once", &once_));
  }

  void Compute(OpKernelContext* context) override {
    std::shared_ptr<EmbeddingStore> store;
    OP_REQUIRES_OK(context, StoreFromInput(context, &store));
    const auto files = context->input(1).flat<tstring>();
    const std::vector<std::string> paths(files.data(), files.data() + files.size());
    OP_REQUIRES_OK(context,
                   ToTensorFlow(once_ ? RestoreStoreOnce(store.get(), paths) : RestoreStore(store.get(), paths)));
  }

 private:
  bool once_ = false;
};

class ReadTableFileKernel : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const std::string path = context->input(0).scalar<tstring>()();
    const int64_t limit = context->input(1).scalar<int64_t>()();
    SnapshotHeader header;
    EntryBlock all;
    const Status status = ReadSnapshot(path, &header, [&](const EntryBlock& block) {
      if (limit < 0 || static_cast<int64_t>(all.fids.size()) < limit) Append(block, &all);
    });
    OP_REQUIRES_OK(context, ToTensorFlow(status));
    if (limit >= 0 && static_cast<int64_t>(all.fids.size()) > limit) {
      all.fids.resize(limit);
      all.timestamps.resize(limit);
      all.values.resize(limit * all.floats);
    }
    Tensor *table = nullptr, *optimizer = nullptr, *numbers = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output("table", TensorShape({}), &table));
    OP_REQUIRES_OK(context, context->allocate_output("optimizer", TensorShape({}), &optimizer));
    OP_REQUIRES_OK(context, context->allocate_output("numbers", TensorShape({3}), &numbers));
    table->scalar<tstring>()() = header.table;
    optimizer->scalar<tstring>()() = header.optimizer;
    numbers->flat<int64_t>()(0) = header.dim;
    numbers->flat<int64_t>()(1) = header.state_floats;
    numbers->flat<int64_t>()(2) = header.count;
    OP_REQUIRES_OK(context, OutputEntries(context, all, header.dim));
  }
};

#define MILLRACE_REGISTER(name, kernel) REGISTER_KERNEL_BUILDER(Name("Millrace>" name).Device(DEVICE_CPU), kernel)
MILLRACE_REGISTER("Dump", DumpKernel);
MILLRACE_REGISTER("Save", SaveKernel);
MILLRACE_REGISTER("Restore", RestoreKernel);
MILLRACE_REGISTER("ReadTableFile", ReadTableFileKernel);
#undef MILLRACE_REGISTER

}  // namespace
}  // namespace millrace

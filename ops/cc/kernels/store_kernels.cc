// Kernels that open, describe and maintain stores; definitions and documentation are in store_op_defs.cc.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/cc/kernels/table_resource.h"

namespace millrace {
namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::ResourceHandle;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::tstring;

class OpenKernel : public GuardedKernel {
 public:
  explicit OpenKernel(OpKernelConstruction* context) : GuardedKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("store_name", &store_name_));
  }

 protected:
  void Run(OpKernelContext* context) override {
    const auto texts = context->input(0).flat<tstring>();
    const std::vector<std::string> tables(texts.data(), texts.data() + texts.size());
    std::shared_ptr<EmbeddingStore> store;
    OP_REQUIRES_OK(context, ToTensorFlow(StoreRegistry::Global().Open(store_name_, tables, &store)));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({}), &output));
    output->scalar<ResourceHandle>()() = HandleOf(context, *store);
  }

 private:
  std::string store_name_;
};

class FindKernel : public GuardedKernel {
 public:
  using GuardedKernel::GuardedKernel;

 protected:
  void Run(OpKernelContext* context) override {
    tstring name;
    OP_REQUIRES_OK(context, ScalarFromInput(context, 0, "store_name", &name));
    std::shared_ptr<EmbeddingStore> store;
    OP_REQUIRES_OK(context, ToTensorFlow(StoreRegistry::Global().Find(name, &store)));
    Tensor *output = nullptr, *tables = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({}), &output));
    const auto& texts = store->table_texts();
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({static_cast<int64_t>(texts.size())}), &tables));
    output->scalar<ResourceHandle>()() = HandleOf(context, *store);
    for (size_t i = 0; i < texts.size(); ++i) tables->vec<tstring>()(i) = texts[i];
  }
};

class CloseKernel : public GuardedKernel {
 public:
  explicit CloseKernel(OpKernelConstruction* context) : GuardedKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("force", &force_));
  }

 protected:
  void Run(OpKernelContext* context) override {
    ResourceHandle handle;
    OP_REQUIRES_OK(context, HandleFromScalar(context, 0, &handle));
    StoreRegistry::Global().Close(handle.name(), handle.hash_code(), force_);
  }

 private:
  bool force_ = false;
};

// Outputs one int64 per table, in the order of the store.
template <typename NumberOf>
absl::Status OutputPerTable(OpKernelContext* context, const EmbeddingStore& store, const NumberOf& number_of) {
  Tensor* numbers = nullptr;
  const auto count = static_cast<int64_t>(store.tables().size());
  TF_RETURN_IF_ERROR(context->allocate_output(0, TensorShape({count}), &numbers));
  for (int64_t i = 0; i < count; ++i) numbers->vec<int64_t>()(i) = number_of(*store.tables()[i]);
  return absl::OkStatus();
}

class SizesKernel : public StoreKernel {
 public:
  using StoreKernel::StoreKernel;

 protected:
  void ComputeOn(OpKernelContext* context, std::shared_ptr<EmbeddingStore> store) override {
    OP_REQUIRES_OK(context, OutputPerTable(context, *store, [](EmbeddingTable& table) { return table.size(); }));
  }
};

class EvictKernel : public StoreKernel {
 public:
  using StoreKernel::StoreKernel;

 protected:
  void ComputeOn(OpKernelContext* context, std::shared_ptr<EmbeddingStore> store) override {
    uint32_t watermark = 0;
    OP_REQUIRES_OK(context, TimestampFromInput(context, 1, &watermark));
    OP_REQUIRES_OK(context, OutputPerTable(context, *store,
                                           [watermark](EmbeddingTable& table) { return table.Evict(watermark); }));
  }
};

class ClearKernel : public TableKernel {
 public:
  using TableKernel::TableKernel;

 protected:
  void ComputeOn(OpKernelContext*, EmbeddingTable* table) override { table->Clear(); }
};

class StatsKernel : public TableKernel {
 public:
  using TableKernel::TableKernel;

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const TableStats stats = table->Stats();
    Tensor* numbers = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({7}), &numbers));
    auto to = numbers->vec<int64_t>();
    to(0) = stats.entries;
    to(1) = stats.memory_bytes;
    to(2) = stats.not_finite;
    to(3) = static_cast<int64_t>(stats.admitted);
    to(4) = static_cast<int64_t>(stats.rejected);
    to(5) = table->newest_timestamp();
    to(6) = stats.overflows;
  }
};

MILLRACE_REGISTER("OpenStore", OpenKernel);
MILLRACE_REGISTER("FindStore", FindKernel);
MILLRACE_REGISTER("CloseStore", CloseKernel);
MILLRACE_REGISTER("Sizes", SizesKernel);
MILLRACE_REGISTER("Evict", EvictKernel);
MILLRACE_REGISTER("Clear", ClearKernel);
MILLRACE_REGISTER("Stats", StatsKernel);

}  // namespace
}  // namespace millrace

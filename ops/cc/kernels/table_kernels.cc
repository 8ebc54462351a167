// Kernels that read and update tables; definitions and documentation are in op_defs.cc.
#include <vector>

#include "ops/cc/embedding/pooling.h"
#include "ops/cc/kernels/table_resource.h"

namespace millrace {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::OpOutputList;
using tensorflow::ResourceHandle;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::tstring;

class OpenKernel : public OpKernel {
 public:
  explicit OpenKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("store_name", &store_name_));
    OP_REQUIRES_OK(context, context->GetAttr("tables", &tables_));
  }

  void Compute(OpKernelContext* context) override {
    std::shared_ptr<EmbeddingStore> store;
    OP_REQUIRES_OK(context, ToTensorFlow(StoreRegistry::Global().Open(store_name_, tables_, &store)));
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({}), &output));
    output->scalar<ResourceHandle>()() = HandleOf(context, *store);
  }

 private:
  std::string store_name_;
  std::vector<std::string> tables_;
};

class FindKernel : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const std::string name = context->input(0).scalar<tstring>()();
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

class CloseKernel : public OpKernel {
 public:
  explicit CloseKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("force", &force_));
  }

  void Compute(OpKernelContext* context) override {
    const ResourceHandle& handle = tensorflow::HandleFromInput(context, 0);
    StoreRegistry::Global().Close(handle.name(), handle.hash_code(), force_);
  }

 private:
  bool force_ = false;
};

// A kernel on one table, named by an attribute.
class TableKernel : public OpKernel {
 public:
  explicit TableKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("table", &table_));
  }

  void Compute(OpKernelContext* context) final {
    std::shared_ptr<EmbeddingStore> store;
    EmbeddingTable* table = nullptr;
    OP_REQUIRES_OK(context, TableFromInput(context, table_, &store, &table));
    ComputeOn(context, table);
  }

 protected:
  virtual void ComputeOn(OpKernelContext* context, EmbeddingTable* table) = 0;

 private:
  std::string table_;
};

absl::Status CheckDim(const EmbeddingTable& table, int64_t dim) {
  if (dim == table.dim()) return absl::OkStatus();
  return absl::InvalidArgumentError("table '" + table.config().name + "' has dim " + std::to_string(table.dim()) +
                                    ", not " + std::to_string(dim));
}

// Values or gradients of `ids`: [n, dim] float.
absl::Status CheckRows(const EmbeddingTable& table, const Tensor& rows, int64_t count) {
  if (rows.dims() != 2 || rows.dim_size(0) != count) {
    return absl::InvalidArgumentError("table '" + table.config().name + "': expected shape [" + std::to_string(count) +
                                      ", " + std::to_string(table.dim()) + "], got " + rows.shape().DebugString());
  }
  return CheckDim(table, rows.dim_size(1));
}

class LookupKernel : public TableKernel {
 public:
  explicit LookupKernel(OpKernelConstruction* context) : TableKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("dim", &dim_));
    OP_REQUIRES_OK(context, context->GetAttr("create", &create_));
  }

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const Tensor* ids = nullptr;
    OP_REQUIRES_OK(context, IdsFromInput(context, 1, &ids));
    OP_REQUIRES_OK(context, CheckDim(*table, dim_));
    const int64_t count = ids->NumElements();
    Tensor* values = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({count, dim_}), &values));
    table->Lookup(ids->flat<int64_t>().data(), count, create_, values->flat<float>().data(), DeviceThreads(context));
  }

 private:
  int64_t dim_ = 0;
  bool create_ = false;
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
  using TableKernel::TableKernel;

 protected:
  void ComputeOn(OpKernelContext* context, EmbeddingTable* table) override {
    const Tensor* ids = nullptr;
    OP_REQUIRES_OK(context, IdsFromInput(context, 1, &ids));
    const Tensor& values = context->input(2);
    OP_REQUIRES_OK(context, CheckRows(*table, values, ids->NumElements()));
    uint32_t timestamp = 0;
    OP_REQUIRES_OK(context, TimestampFromInput(context, 3, &timestamp));
    OP_REQUIRES_OK(context, ToTensorFlow(table->Assign(ids->flat<int64_t>().data(), values.flat<float>().data(),
                                                       ids->NumElements(), timestamp, DeviceThreads(context))));
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
    OP_REQUIRES_OK(context, CheckRows(*table, gradients, count));
    OP_REQUIRES(context, context->input(3).dims() == 0, absl::InvalidArgumentError("learning_rate must be a scalar"));
    uint32_t timestamp = 0;
    OP_REQUIRES_OK(context, TimestampFromInput(context, 4, &timestamp));
    std::vector<Occurrence> occurrences(count);
    for (int64_t i = 0; i < count; ++i) {
      occurrences[i] = {ids->flat<int64_t>()(i), gradients.flat<float>().data() + i * table->dim(), 1.0f};
    }
    const Executor run = DeviceThreads(context);
    MergedGradients merged;
    OP_REQUIRES_OK(context, ToTensorFlow(table->Merge(occurrences, run, &merged)));
    table->Apply(merged, context->input(3).scalar<float>()(), timestamp, run);
  }
};

// Attributes and ragged inputs that the pooled kernels share.
class PooledKernel : public OpKernel {
 public:
  explicit PooledKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("features", &features_));
    OP_REQUIRES_OK(context, context->GetAttr("tables", &tables_));
    OP_REQUIRES_OK(context, context->GetAttr("dims", &dims_));
    OP_REQUIRES_OK(context, context->GetAttr("combiners", &combiners_));
    const size_t count = features_.size();
    OP_REQUIRES(context, tables_.size() == count && dims_.size() == count && combiners_.size() == count,
                absl::InvalidArgumentError("features, tables, dims and combiners must have equal lengths"));
    for (const std::string& combiner : combiners_) {
      OP_REQUIRES(context, combiner == "sum" || combiner == "mean",
                  absl::InvalidArgumentError("unknown combiner '" + combiner + "'; choose from sum, mean"));
    }
  }

 protected:
  absl::Status FeaturesFromInput(OpKernelContext* context, const EmbeddingStore& store,
                                 std::vector<PooledFeature>* result) const {
    OpInputList values, row_splits;
    TF_RETURN_IF_ERROR(context->input_list("values", &values));
    TF_RETURN_IF_ERROR(context->input_list("row_splits", &row_splits));
    for (size_t f = 0; f < features_.size(); ++f) {
      EmbeddingTable* table = nullptr;
      TF_RETURN_IF_ERROR(ToTensorFlow(store.Find(tables_[f], &table)));
      TF_RETURN_IF_ERROR(CheckDim(*table, dims_[f]));
      if (values[f].dims() != 1 || row_splits[f].dims() != 1) {
        return absl::InvalidArgumentError("feature '" + features_[f] + "': values and row_splits must have rank 1");
      }
      const PooledFeature feature{features_[f],
                                  table,
                                  combiners_[f] == "mean",
                                  values[f].flat<int64_t>().data(),
                                  values[f].NumElements(),
                                  row_splits[f].flat<int64_t>().data(),
                                  row_splits[f].NumElements() - 1};
      if (feature.num_values >= EmbeddingTable::kMaxBatch) {
        return absl::InvalidArgumentError("a batch must have less than 2^31 ids");
      }
      TF_RETURN_IF_ERROR(ToTensorFlow(CheckRowSplits(feature)));
      result->push_back(feature);
    }
    return absl::OkStatus();
  }

 private:
  std::vector<std::string> features_, tables_, combiners_;
  std::vector<int64_t> dims_;
};

class PooledLookupKernel : public PooledKernel {
 public:
  explicit PooledLookupKernel(OpKernelConstruction* context) : PooledKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("create", &create_));
  }

  void Compute(OpKernelContext* context) override {
    std::shared_ptr<EmbeddingStore> store;
    OP_REQUIRES_OK(context, StoreFromInput(context, &store));
    std::vector<PooledFeature> features;
    OP_REQUIRES_OK(context, FeaturesFromInput(context, *store, &features));
    OpOutputList outputs;
    OP_REQUIRES_OK(context, context->output_list("pooled", &outputs));
    const Executor run = DeviceThreads(context);
    for (size_t f = 0; f < features.size(); ++f) {
      Tensor* pooled = nullptr;
      OP_REQUIRES_OK(context, outputs.allocate(f, TensorShape({features[f].rows, features[f].table->dim()}), &pooled));
      LookupPooled(features[f], create_, pooled->flat<float>().data(), run);
    }
  }

 private:
  bool create_ = false;
};

class ApplyPooledGradientsKernel : public PooledKernel {
 public:
  using PooledKernel::PooledKernel;

  void Compute(OpKernelContext* context) override {
    std::shared_ptr<EmbeddingStore> store;
    OP_REQUIRES_OK(context, StoreFromInput(context, &store));
    std::vector<PooledFeature> features;
    OP_REQUIRES_OK(context, FeaturesFromInput(context, *store, &features));
    OpInputList gradients;
    OP_REQUIRES_OK(context, context->input_list("gradients", &gradients));
    std::vector<const float*> gradient_data;
    for (size_t f = 0; f < features.size(); ++f) {
      const absl::Status fits = CheckRows(*features[f].table, gradients[f], features[f].rows);
      OP_REQUIRES(
          context, fits.ok(),
          absl::InvalidArgumentError("gradient of feature '" + features[f].name + "': " + std::string(fits.message())));
      gradient_data.push_back(gradients[f].flat<float>().data());
    }
    const int first_scalar = static_cast<int>(1 + 3 * features.size());
    const Tensor& learning_rates = context->input(first_scalar);
    OP_REQUIRES(context,
                learning_rates.dims() == 1 && learning_rates.NumElements() == static_cast<int64_t>(features.size()),
                absl::InvalidArgumentError("learning_rates must hold one number a feature"));
    uint32_t timestamp = 0;
    OP_REQUIRES_OK(context, TimestampFromInput(context, first_scalar + 1, &timestamp));
    OP_REQUIRES_OK(context,
                   ToTensorFlow(ApplyPooledGradients(features, gradient_data, learning_rates.flat<float>().data(),
                                                     timestamp, DeviceThreads(context))));
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

class SizesKernel : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    std::shared_ptr<EmbeddingStore> store;
    OP_REQUIRES_OK(context, StoreFromInput(context, &store));
    Tensor* sizes = nullptr;
    const int64_t count = store->tables().size();
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({count}), &sizes));
    for (int64_t i = 0; i < count; ++i) sizes->flat<int64_t>()(i) = store->tables()[i]->size();
  }
};

#define MILLRACE_REGISTER(name, kernel) REGISTER_KERNEL_BUILDER(Name("Millrace>" name).Device(DEVICE_CPU), kernel)
MILLRACE_REGISTER("OpenStore", OpenKernel);
MILLRACE_REGISTER("FindStore", FindKernel);
MILLRACE_REGISTER("CloseStore", CloseKernel);
MILLRACE_REGISTER("Lookup", LookupKernel);
MILLRACE_REGISTER("Contains", ContainsKernel);
MILLRACE_REGISTER("Assign", AssignKernel);
MILLRACE_REGISTER("Erase", EraseKernel);
MILLRACE_REGISTER("ApplyGradients", ApplyGradientsKernel);
MILLRACE_REGISTER("PooledLookup", PooledLookupKernel);
MILLRACE_REGISTER("ApplyPooledGradients", ApplyPooledGradientsKernel);
MILLRACE_REGISTER("StealTouched", StealTouchedKernel);
MILLRACE_REGISTER("RestoreTouched", RestoreTouchedKernel);
MILLRACE_REGISTER("Sizes", SizesKernel);
#undef MILLRACE_REGISTER

}  // namespace
}  // namespace millrace

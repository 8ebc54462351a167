// Kernels over many ragged features at once; definitions and documentation are in pooled_op_defs.cc.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/cc/embedding/table/pooling.h"
#include "ops/cc/kernels/table_resource.h"

namespace millrace {
namespace {

using tensorflow::OpInputList;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::OpOutputList;
using tensorflow::Tensor;
using tensorflow::TensorShape;

absl::Status ParseCombiner(const std::string& text, Combiner* result) {
  if (text == "sum") {
    *result = Combiner::kSum;
  } else if (text == "mean") {
    *result = Combiner::kMean;
  } else if (text == "first_n") {
    *result = Combiner::kFirstN;
  } else {
    return absl::InvalidArgumentError("unknown combiner '" + text + "'; choose from sum, mean, first_n");
  }
  return absl::OkStatus();
}

// Attributes and ragged inputs that the pooled kernels share.
class PooledKernel : public StoreKernel {
 public:
  explicit PooledKernel(OpKernelConstruction* context) : StoreKernel(context) {
    std::vector<std::string> combiners;
    OP_REQUIRES_OK(context, context->GetAttr("features", &features_));
    OP_REQUIRES_OK(context, context->GetAttr("tables", &tables_));
    OP_REQUIRES_OK(context, context->GetAttr("dims", &dims_));
    OP_REQUIRES_OK(context, context->GetAttr("combiners", &combiners));
    OP_REQUIRES_OK(context, context->GetAttr("max_lengths", &max_lengths_));
    const size_t count = features_.size();
    OP_REQUIRES(
        context,
        tables_.size() == count && dims_.size() == count && combiners.size() == count && max_lengths_.size() == count,
        absl::InvalidArgumentError("features, tables, dims, combiners and max_lengths must have equal lengths"));
    combiners_.resize(count);
    for (size_t f = 0; f < count; ++f) {
      OP_REQUIRES_OK(context, ParseCombiner(combiners[f], &combiners_[f]));
      OP_REQUIRES(context, combiners_[f] != Combiner::kFirstN || max_lengths_[f] >= 1,
                  absl::InvalidArgumentError("feature '" + features_[f] + "': max_length must be at least 1"));
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
                                  combiners_[f],
                                  max_lengths_[f],
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

  // Shape of a feature's pooled output.
  static TensorShape PooledShape(const PooledFeature& feature) {
    if (feature.combiner != Combiner::kFirstN) return TensorShape({feature.rows, feature.table->dim()});
    return TensorShape({feature.rows, feature.max_length, feature.table->dim()});
  }

 private:
  std::vector<std::string> features_, tables_;
  std::vector<Combiner> combiners_;
  std::vector<int64_t> dims_, max_lengths_;
};

class PooledLookupKernel : public PooledKernel {
 public:
  explicit PooledLookupKernel(OpKernelConstruction* context) : PooledKernel(context) {
    std::string missing;
    OP_REQUIRES_OK(context, context->GetAttr("missing", &missing));
    OP_REQUIRES_OK(context, ParseMissing(missing, &missing_));
  }

 protected:
  void ComputeOn(OpKernelContext* context, std::shared_ptr<EmbeddingStore> store) override {
    std::vector<PooledFeature> features;
    OP_REQUIRES_OK(context, FeaturesFromInput(context, *store, &features));
    LookupOptions options{missing_, 0};
    OP_REQUIRES_OK(context, ScalarFromInput(context, static_cast<int>(1 + 2 * features.size()), "global_step",
                                            &options.global_step));
    OpOutputList outputs;
    OP_REQUIRES_OK(context, context->output_list("pooled", &outputs));
    std::vector<float*> pooled;
    for (size_t f = 0; f < features.size(); ++f) {
      Tensor* output = nullptr;
      OP_REQUIRES_OK(context, outputs.allocate(f, PooledShape(features[f]), &output));
      pooled.push_back(output->flat<float>().data());
    }
    LookupPooled(features, options, pooled, DeviceThreads(context));
  }

 private:
  Missing missing_ = Missing::kZeros;
};

class ApplyPooledGradientsKernel : public PooledKernel {
 public:
  using PooledKernel::PooledKernel;

 protected:
  void ComputeOn(OpKernelContext* context, std::shared_ptr<EmbeddingStore> store) override {
    std::vector<PooledFeature> features;
    OP_REQUIRES_OK(context, FeaturesFromInput(context, *store, &features));
    OpInputList gradients;
    OP_REQUIRES_OK(context, context->input_list("gradients", &gradients));
    const int rates_index = static_cast<int>(1 + 3 * features.size());
    bool apply = true;
    OP_REQUIRES_OK(context, ScalarFromInput(context, rates_index + 3, "apply", &apply));
    if (!apply) return;
    const Tensor& rates = context->input(rates_index);
    UpdateOptions options;
    OP_REQUIRES_OK(context, ScalarFromInput(context, rates_index + 1, "global_step", &options.global_step));
    OP_REQUIRES_OK(context, TimestampFromInput(context, rates_index + 2, &options.timestamp));
    std::vector<const float*> gradient_data;
    std::vector<UpdateOptions> options_of_feature;
    int64_t first_rate = 0;
    for (size_t f = 0; f < features.size(); ++f) {
      const TensorShape expected = PooledShape(features[f]);
      OP_REQUIRES(context, gradients[f].shape() == expected,
                  absl::InvalidArgumentError("gradient of feature '" + features[f].name + "': expected shape " +
                                             expected.DebugString() + ", got " + gradients[f].shape().DebugString()));
      gradient_data.push_back(gradients[f].flat<float>().data());
      OP_REQUIRES_OK(context, CheckRates(*features[f].table, rates, first_rate));
      options.learning_rates = rates.flat<float>().data() + first_rate;
      options_of_feature.push_back(options);
      first_rate += features[f].table->num_segments();
    }
    OP_REQUIRES_OK(context, CheckRatesUsed(rates, first_rate));
    OP_REQUIRES_OK(context, ToTensorFlow(ApplyPooledGradients(features, gradient_data, options_of_feature,
                                                              DeviceThreads(context))));
  }
};

MILLRACE_REGISTER("PooledLookup", PooledLookupKernel);
MILLRACE_REGISTER("ApplyPooledGradients", ApplyPooledGradientsKernel);

}  // namespace
}  // namespace millrace

// Kernels over the ids of many tables and shards laid end to end; documented in fused_op_defs.cc.
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
using tensorflow::Tensor;
using tensorflow::TensorShape;

// The ids of table `table` in shard `shard`, and where their floats lie in the flat values.
struct Piece {
  EmbeddingTable* table;
  size_t table_index;
  const int64_t* fids;
  int64_t count;
  int64_t first_float;
};

class FusedKernel : public StoreKernel {
 public:
  explicit FusedKernel(OpKernelConstruction* context) : StoreKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("tables", &tables_));
    OP_REQUIRES_OK(context, context->GetAttr("num_shards", &num_shards_));
  }

 protected:
  // Shard-major: piece shard * tables + table.
  absl::Status PiecesFromInput(OpKernelContext* context, const EmbeddingStore& store, std::vector<Piece>* pieces,
                               int64_t* floats) const {
    const Tensor* ids = nullptr;
    TF_RETURN_IF_ERROR(IdsFromInput(context, 1, &ids));
    const Tensor& sizes = context->input(2);
    const auto expected = static_cast<int64_t>(num_shards_ * tables_.size());
    if (sizes.dims() != 1 || sizes.NumElements() != expected) {
      return absl::InvalidArgumentError("fused_slot_size must hold num_shards x tables = " + std::to_string(expected) +
                                        " numbers, got shape " + sizes.shape().DebugString());
    }
    int64_t first = 0;
    *floats = 0;
    for (int64_t i = 0; i < expected; ++i) {
      Piece piece{nullptr, i % tables_.size(), ids->flat<int64_t>().data() + first, sizes.flat<int32_t>()(i), *floats};
      TF_RETURN_IF_ERROR(ToTensorFlow(store.Find(tables_[piece.table_index], &piece.table)));
      if (piece.count < 0) return absl::InvalidArgumentError("fused_slot_size must not be negative");
      first += piece.count;
      *floats += piece.count * piece.table->dim();
      pieces->push_back(piece);
      if (first > ids->NumElements()) break;
    }
    if (first != ids->NumElements()) {
      return absl::InvalidArgumentError("fused_slot_size must add up to the number of ids, " +
                                        std::to_string(ids->NumElements()) + ", not " + std::to_string(first));
    }
    return absl::OkStatus();
  }

  std::vector<std::string> tables_;
  int64_t num_shards_ = 1;
};

class FusedLookupKernel : public FusedKernel {
 public:
  using FusedKernel::FusedKernel;

 protected:
  void ComputeOn(OpKernelContext* context, std::shared_ptr<EmbeddingStore> store) override {
    std::vector<Piece> pieces;
    int64_t floats = 0;
    LookupOptions options;
    OP_REQUIRES_OK(context, PiecesFromInput(context, *store, &pieces, &floats));
    OP_REQUIRES_OK(context, ScalarFromInput(context, 3, "global_step", &options.global_step));
    OP_REQUIRES(context, floats <= INT32_MAX, absl::InvalidArgumentError("the embeddings have more than 2^31 floats"));
    const auto offsets = static_cast<int64_t>(pieces.size()) + 1;
    Tensor *embeddings = nullptr, *splits = nullptr, *id_offsets = nullptr, *embedding_offsets = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({floats}), &embeddings));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({num_shards_}), &splits));
    OP_REQUIRES_OK(context, context->allocate_output(2, TensorShape({offsets}), &id_offsets));
    OP_REQUIRES_OK(context, context->allocate_output(3, TensorShape({offsets}), &embedding_offsets));
    auto ids_before = id_offsets->vec<int32_t>();
    auto floats_before = embedding_offsets->vec<int32_t>();
    splits->vec<int32_t>().setZero();
    ids_before(0) = floats_before(0) = 0;
    const Executor run = DeviceThreads(context);
    for (size_t i = 0; i < pieces.size(); ++i) {
      const Piece& piece = pieces[i];
      const int64_t size = piece.count * piece.table->dim();
      piece.table->Lookup(piece.fids, piece.count, options, embeddings->flat<float>().data() + piece.first_float, run);
      ids_before(i + 1) = ids_before(i) + static_cast<int32_t>(piece.count);
      floats_before(i + 1) = floats_before(i) + static_cast<int32_t>(size);
      splits->vec<int32_t>()(i / tables_.size()) += static_cast<int32_t>(size);
    }
  }
};

class FusedApplyGradientsKernel : public FusedKernel {
 public:
  using FusedKernel::FusedKernel;

 protected:
  void ComputeOn(OpKernelContext* context, std::shared_ptr<EmbeddingStore> store) override {
    std::vector<Piece> pieces;
    int64_t floats = 0;
    OP_REQUIRES_OK(context, PiecesFromInput(context, *store, &pieces, &floats));
    const Tensor& gradients = context->input(3);
    const Tensor& rates = context->input(4);
    OP_REQUIRES(context, gradients.dims() == 1 && gradients.NumElements() == floats,
                absl::InvalidArgumentError("gradients must be [" + std::to_string(floats) + "], got shape " +
                                           gradients.shape().DebugString()));
    UpdateOptions options;
    OP_REQUIRES_OK(context, ScalarFromInput(context, 5, "global_step", &options.global_step));
    OP_REQUIRES_OK(context, TimestampFromInput(context, 6, &options.timestamp));
    std::vector<int64_t> first_rates{0};
    for (const std::string& name : tables_) {
      EmbeddingTable* table = nullptr;
      OP_REQUIRES_OK(context, ToTensorFlow(store->Find(name, &table)));
      OP_REQUIRES_OK(context, CheckRates(*table, rates, first_rates.back()));
      first_rates.push_back(first_rates.back() + table->num_segments());
    }
    OP_REQUIRES_OK(context, CheckRatesUsed(rates, first_rates.back()));
    const Executor run = DeviceThreads(context);
    std::vector<MergedGradients> merged(pieces.size());
    for (size_t i = 0; i < pieces.size(); ++i) {
      const float* rows = gradients.flat<float>().data() + pieces[i].first_float;
      const GradientList list{{pieces[i].fids, pieces[i].count, nullptr}, pieces[i].count, rows, nullptr, nullptr};
      OP_REQUIRES_OK(context, ToTensorFlow(pieces[i].table->Merge({list}, run, &merged[i])));
    }
    for (size_t i = 0; i < pieces.size(); ++i) {
      options.learning_rates = rates.flat<float>().data() + first_rates[pieces[i].table_index];
      pieces[i].table->Apply(merged[i], options, run);
    }
  }
};

MILLRACE_REGISTER("FusedLookup", FusedLookupKernel);
MILLRACE_REGISTER("FusedApplyGradients", FusedApplyGradientsKernel);

}  // namespace
}  // namespace millrace

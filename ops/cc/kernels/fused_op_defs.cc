// Look-up and gradient of ids of many tables laid end to end: their shape functions and documentation, no kernel code.
#include <cstdint>
#include <string>
#include <vector>

#include "ops/cc/kernels/op_shapes.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace millrace {
namespace {

// Ids, sizes, and how many tables and shards there are.
absl::Status FusedSizes(InferenceContext* context, int64_t* num_shards, int64_t* pieces) {
  ShapeHandle ids, sizes;
  TF_RETURN_IF_ERROR(HandleAndIds(context, &ids));
  std::vector<std::string> tables;
  TF_RETURN_IF_ERROR(context->GetAttr("tables", &tables));
  TF_RETURN_IF_ERROR(context->GetAttr("num_shards", num_shards));
  *pieces = *num_shards * static_cast<int64_t>(tables.size());
  return context->Merge(context->input(2), context->Vector(*pieces), &sizes);
}

absl::Status FusedLookupShape(InferenceContext* context) {
  int64_t num_shards = 0, pieces = 0;
  TF_RETURN_IF_ERROR(FusedSizes(context, &num_shards, &pieces));
  context->set_output(0, context->Vector(InferenceContext::kUnknownDim));
  context->set_output(1, context->Vector(num_shards));
  context->set_output(2, context->Vector(pieces + 1));
  context->set_output(3, context->Vector(pieces + 1));
  return ScalarsFrom(context, 3, 4);
}

absl::Status FusedApplyGradientsShape(InferenceContext* context) {
  int64_t num_shards = 0, pieces = 0;
  ShapeHandle unused;
  TF_RETURN_IF_ERROR(FusedSizes(context, &num_shards, &pieces));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(3), 1, &unused));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(4), 1, &unused));
  return ScalarsFrom(context, 5, 7);
}

REGISTER_OP("Millrace>FusedLookup")
    .Input("store: resource")
    .Input("ids: int64")
    .Input("fused_slot_size: int32")
    .Input("global_step: int64")
    .Attr("tables: list(string) >= 1")
    .Attr("num_shards: int >= 1")
    .Output("embeddings: float")
    .Output("embedding_splits: int32")
    .Output("id_offsets: int32")
    .Output("embedding_offsets: int32")
    .SetIsStateful()
    .SetShapeFn(FusedLookupShape)
    .Doc(R"doc(
Reads ids of many tables laid end to end, shard by shard. Missing ids read as zeros.

ids: [m], of shard 0 and table 0, then of shard 0 and table 1, ...
fused_slot_size: [num_shards * tables], how many ids each of these pieces has.
embeddings: Flat, in the order of the ids.
embedding_splits: [num_shards], floats of each shard.
id_offsets, embedding_offsets: [num_shards * tables + 1], where each piece starts among the ids and among the floats.
)doc");

REGISTER_OP("Millrace>FusedApplyGradients")
    .Input("store: resource")
    .Input("ids: int64")
    .Input("fused_slot_size: int32")
    .Input("gradients: float")
    .Input("learning_rates: float")
    .Input("global_step: int64")
    .Input("timestamp: int64")
    .Attr("tables: list(string) >= 1")
    .Attr("num_shards: int >= 1")
    .SetIsStateful()
    .SetShapeFn(FusedApplyGradientsShape)
    .Doc(R"doc(
Updates the ids of a FusedLookup. Gradients of equal ids are summed within a piece; an id in two pieces takes two steps.

gradients: Flat, as the embeddings were.
learning_rates: One per segment of table 0, then of table 1, ...
)doc");

}  // namespace
}  // namespace millrace

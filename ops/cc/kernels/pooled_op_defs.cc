// Pooled look-up and its gradient: their shape functions and documentation, no kernel code.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ops/cc/kernels/op_shapes.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace millrace {
namespace {

// What the attributes say of each pooled feature.
struct PooledAttributes {
  std::vector<int64_t> dims, max_lengths;
  std::vector<std::string> combiners;

  absl::Status Get(InferenceContext* context, int features) {
    TF_RETURN_IF_ERROR(context->GetAttr("dims", &dims));
    TF_RETURN_IF_ERROR(context->GetAttr("max_lengths", &max_lengths));
    TF_RETURN_IF_ERROR(context->GetAttr("combiners", &combiners));
    const auto count = static_cast<size_t>(features);
    if (dims.size() == count && max_lengths.size() == count && combiners.size() == count) return absl::OkStatus();
    return absl::InvalidArgumentError("dims, max_lengths and combiners must have one value per feature");
  }
};

// Shape of the pooled output of feature f of `features`.
absl::Status PooledShape(InferenceContext* context, const PooledAttributes& attributes, int f, int features,
                         ShapeHandle* shape) {
  ShapeHandle values, row_splits;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1 + f), 1, &values));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1 + features + f), 1, &row_splits));
  DimensionHandle rows = context->UnknownDim();
  if (context->ValueKnown(context->Dim(row_splits, 0))) {
    TF_RETURN_IF_ERROR(context->Subtract(context->Dim(row_splits, 0), 1, &rows));
  }
  if (attributes.combiners[f] == "first_n") {
    *shape =
        context->MakeShape({rows, context->MakeDim(attributes.max_lengths[f]), context->MakeDim(attributes.dims[f])});
  } else {
    *shape = context->Matrix(rows, attributes.dims[f]);
  }
  return absl::OkStatus();
}

absl::Status PooledLookupShape(InferenceContext* context) {
  const int features = context->num_outputs();
  PooledAttributes attributes;
  TF_RETURN_IF_ERROR(attributes.Get(context, features));
  for (int f = 0; f < features; ++f) {
    ShapeHandle shape;
    TF_RETURN_IF_ERROR(PooledShape(context, attributes, f, features, &shape));
    context->set_output(f, shape);
  }
  return ScalarsFrom(context, 1 + 2 * features, 2 + 2 * features);
}

absl::Status ApplyPooledGradientsShape(InferenceContext* context) {
  const int features = (context->num_inputs() - 5) / 3;
  PooledAttributes attributes;
  TF_RETURN_IF_ERROR(attributes.Get(context, features));
  for (int f = 0; f < features; ++f) {
    ShapeHandle shape, gradient;
    TF_RETURN_IF_ERROR(PooledShape(context, attributes, f, features, &shape));
    TF_RETURN_IF_ERROR(context->Merge(context->input(1 + 2 * features + f), shape, &gradient));
  }
  ShapeHandle unused;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1 + 3 * features), 1, &unused));
  return ScalarsFrom(context, 2 + 3 * features, 5 + 3 * features);
}

REGISTER_OP("Millrace>PooledLookup")
    .Input("store: resource")
    .Input("values: N * int64")
    .Input("row_splits: N * int64")
    .Input("global_step: int64")
    .Attr("N: int >= 1")
    .Attr("features: list(string)")
    .Attr("tables: list(string)")
    .Attr("dims: list(int)")
    .Attr("combiners: list(string)")
    .Attr("max_lengths: list(int)")
    .Attr("missing: {'zeros', 'first_vector', 'create'} = 'zeros'")
    .Output("pooled: N * float")
    .SetIsStateful()
    .SetShapeFn(PooledLookupShape)
    .Doc(R"doc(
Reads and pools N ragged features in one pass.

values: Ids of feature f, [n_f].
row_splits: [rows_f + 1], from 0 to n_f.
global_step, missing: As in Lookup.
features: Names for error messages.
tables: Table of each feature.
dims: Dim of each table.
combiners: `sum`, `mean` or `first_n` for each feature.
max_lengths: For `first_n`, how many ids of a row count; else ignored.
pooled: [rows_f, dim_f], or [rows_f, max_length_f, dim_f] for `first_n`; zeros where no id is.
)doc");

REGISTER_OP("Millrace>ApplyPooledGradients")
    .Input("store: resource")
    .Input("values: N * int64")
    .Input("row_splits: N * int64")
    .Input("gradients: N * float")
    .Input("learning_rates: float")
    .Input("global_step: int64")
    .Input("timestamp: int64")
    .Input("apply: bool")
    .Attr("N: int >= 1")
    .Attr("features: list(string)")
    .Attr("tables: list(string)")
    .Attr("dims: list(int)")
    .Attr("combiners: list(string)")
    .Attr("max_lengths: list(int)")
    .SetIsStateful()
    .SetShapeFn(ApplyPooledGradientsShape)
    .Doc(R"doc(
Carries gradients back through PooledLookup and updates the tables.

Gradients of equal ids are summed, over all features of a table, in order of occurrence; then each id takes one
optimizer step. What a NaN or infinite sum does is the table's setting; where it is an error, it names table and id, and
nothing is applied to any table.

gradients: Of the shape of PooledLookup's output f.
learning_rates: One per segment of feature 0's table, then of feature 1's, ...; the first feature of a table counts.
global_step: Scalar.
timestamp: Scalar, Unix seconds stamped on the entries that have no newer stamp; below 0 means now.
apply: Scalar; false does nothing, whatever the gradients are.
)doc");

}  // namespace
}  // namespace millrace

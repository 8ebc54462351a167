// Every op with its shape function and documentation; no kernel code.
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace millrace {
namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::NoOutputs;
using tensorflow::shape_inference::ScalarShape;
using tensorflow::shape_inference::ShapeHandle;

absl::Status HandleAndIds(InferenceContext* context, ShapeHandle* ids) {
  ShapeHandle unused;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 0, &unused));
  return context->WithRank(context->input(1), 1, ids);
}

// Inputs: store, ids [n], rows [n, dim], then scalars.
absl::Status RowsOfIdsShape(InferenceContext* context) {
  ShapeHandle ids, rows, unused;
  TF_RETURN_IF_ERROR(HandleAndIds(context, &ids));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(2), 2, &rows));
  DimensionHandle count;
  TF_RETURN_IF_ERROR(context->Merge(context->Dim(ids, 0), context->Dim(rows, 0), &count));
  for (int i = 3; i < context->num_inputs(); ++i) TF_RETURN_IF_ERROR(context->WithRank(context->input(i), 0, &unused));
  return absl::OkStatus();
}

absl::Status LookupShape(InferenceContext* context) {
  ShapeHandle ids;
  TF_RETURN_IF_ERROR(HandleAndIds(context, &ids));
  int64_t dim;
  TF_RETURN_IF_ERROR(context->GetAttr("dim", &dim));
  context->set_output(0, context->Matrix(context->Dim(ids, 0), dim));
  return absl::OkStatus();
}

// Rows of feature f: one less than its row splits.
absl::Status PooledRows(InferenceContext* context, int feature, int features, DimensionHandle* rows) {
  ShapeHandle values, row_splits;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1 + feature), 1, &values));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1 + features + feature), 1, &row_splits));
  const DimensionHandle splits = context->Dim(row_splits, 0);
  if (!context->ValueKnown(splits)) {
    *rows = context->UnknownDim();
    return absl::OkStatus();
  }
  return context->Subtract(splits, 1, rows);
}

absl::Status PooledLookupShape(InferenceContext* context) {
  std::vector<int64_t> dims;
  TF_RETURN_IF_ERROR(context->GetAttr("dims", &dims));
  const int features = context->num_outputs();
  if (static_cast<int>(dims.size()) != features)
    return absl::InvalidArgumentError("dims must have one number a feature");
  for (int f = 0; f < features; ++f) {
    DimensionHandle rows;
    TF_RETURN_IF_ERROR(PooledRows(context, f, features, &rows));
    context->set_output(f, context->Matrix(rows, dims[f]));
  }
  return absl::OkStatus();
}

absl::Status ApplyPooledGradientsShape(InferenceContext* context) {
  std::vector<int64_t> dims;
  TF_RETURN_IF_ERROR(context->GetAttr("dims", &dims));
  const int features = (context->num_inputs() - 3) / 3;
  if (static_cast<int>(dims.size()) != features)
    return absl::InvalidArgumentError("dims must have one number a feature");
  for (int f = 0; f < features; ++f) {
    DimensionHandle rows;
    TF_RETURN_IF_ERROR(PooledRows(context, f, features, &rows));
    ShapeHandle gradient;
    TF_RETURN_IF_ERROR(context->Merge(context->input(1 + 2 * features + f), context->Matrix(rows, dims[f]), &gradient));
  }
  return absl::OkStatus();
}

absl::Status IdsOnlyShape(InferenceContext* context) {
  ShapeHandle ids;
  return HandleAndIds(context, &ids);
}

absl::Status SameAsIdsShape(InferenceContext* context) {
  ShapeHandle ids;
  TF_RETURN_IF_ERROR(HandleAndIds(context, &ids));
  context->set_output(0, ids);
  return absl::OkStatus();
}

// First output of unknown length, others scalar.
absl::Status ListShape(InferenceContext* context) {
  context->set_output(0, context->Vector(InferenceContext::kUnknownDim));
  for (int i = 1; i < context->num_outputs(); ++i) context->set_output(i, context->Scalar());
  return absl::OkStatus();
}

absl::Status EntriesShape(InferenceContext* context) {
  const DimensionHandle count = context->UnknownDim();
  context->set_output(0, context->Vector(count));
  context->set_output(1, context->Matrix(count, InferenceContext::kUnknownDim));
  context->set_output(2, context->Vector(count));
  for (int i = 3; i < context->num_outputs(); ++i) {
    context->set_output(i, i == 5 ? context->Vector(3) : context->Scalar());
  }
  return absl::OkStatus();
}

REGISTER_OP("Millrace>OpenStore")
    .Attr("tables: list(string) >= 1")
    .Attr("store_name: string")
    .Output("store: resource")
    .SetIsStateful()
    .SetShapeFn(ScalarShape)
    .Doc(R"doc(
Opens the embedding store of this name in the process, creating it when it is new, and becomes one of its owners.

tables: One text a table, keys and values as in
  `name=movies;dim=16;seed=7;optimizer=ftrl;optimizer.beta=1.0;...;initializer=constant;initializer.value=0.5`.
  Optimizers: sgd, adagrad, adam, ftrl, none. Initializers: zeros, constant, random_uniform. A store that is open with
  other texts is refused.
store_name: Name in the process-wide registry. (Not `shared_name`: a SavedModel's loader appends a suffix to attributes
  of that name.)
store: Scalar handle.
)doc");

REGISTER_OP("Millrace>FindStore")
    .Input("store_name: string")
    .Output("store: resource")
    .Output("tables: string")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->Scalar());
      context->set_output(1, context->Vector(InferenceContext::kUnknownDim));
      return absl::OkStatus();
    })
    .Doc(R"doc(
Finds an open embedding store without becoming an owner.

store_name: Scalar; NotFoundError names the open stores.
store: Scalar handle.
tables: The texts that it was opened with.
)doc");

REGISTER_OP("Millrace>CloseStore")
    .Input("store: resource")
    .Attr("force: bool = false")
    .SetIsStateful()
    .SetShapeFn(NoOutputs)
    .Doc(R"doc(
Gives up one ownership of a store; the last one frees it, after the calls that still use it.

store: Scalar handle; no-op when the store is not open.
force: Free it whoever owns it.
)doc");

REGISTER_OP("Millrace>Lookup")
    .Input("store: resource")
    .Input("ids: int64")
    .Attr("table: string")
    .Attr("dim: int >= 1")
    .Attr("create: bool = false")
    .Output("values: float")
    .SetIsStateful()
    .SetShapeFn(LookupShape)
    .Doc(R"doc(
Reads the weights of ids.

ids: [n], any order, duplicates allowed.
dim: Must be the table's.
create: Insert a missing id with its first vector; else it reads as zeros and the table stays as it is.
values: [n, dim].
)doc");

REGISTER_OP("Millrace>PooledLookup")
    .Input("store: resource")
    .Input("values: N * int64")
    .Input("row_splits: N * int64")
    .Attr("N: int >= 1")
    .Attr("features: list(string)")
    .Attr("tables: list(string)")
    .Attr("dims: list(int)")
    .Attr("combiners: list(string)")
    .Attr("create: bool = false")
    .Output("pooled: N * float")
    .SetIsStateful()
    .SetShapeFn(PooledLookupShape)
    .Doc(R"doc(
Reads and pools N ragged features in one pass.

values: Ids of feature f, [n_f].
row_splits: [rows_f + 1], from 0 to n_f.
features: Names for error messages.
tables: Table of each feature.
dims: Dim of each table.
combiners: `sum` or `mean` for each feature.
create: As in Lookup.
pooled: [rows_f, dim_f]; an empty row is zeros.
)doc");

REGISTER_OP("Millrace>ApplyPooledGradients")
    .Input("store: resource")
    .Input("values: N * int64")
    .Input("row_splits: N * int64")
    .Input("gradients: N * float")
    .Input("learning_rates: float")
    .Input("timestamp: int64")
    .Attr("N: int >= 1")
    .Attr("features: list(string)")
    .Attr("tables: list(string)")
    .Attr("dims: list(int)")
    .Attr("combiners: list(string)")
    .SetIsStateful()
    .SetShapeFn(ApplyPooledGradientsShape)
    .Doc(R"doc(
Carries gradients back through PooledLookup and updates the tables.

Gradients of equal ids are summed, over all features of a table, in order of occurrence; then each id takes one
optimizer step. A NaN or infinite sum is an error that names table and id, and nothing is applied to any table.

gradients: [rows_f, dim_f], with respect to the pooled output of feature f.
learning_rates: [N], that of each feature's table; the first feature of a table counts.
timestamp: Scalar, Unix seconds stamped on the entries; below 0 means now.
)doc");

REGISTER_OP("Millrace>ApplyGradients")
    .Input("store: resource")
    .Input("ids: int64")
    .Input("gradients: float")
    .Input("learning_rate: float")
    .Input("timestamp: int64")
    .Attr("table: string")
    .SetIsStateful()
    .SetShapeFn(RowsOfIdsShape)
    .Doc(R"doc(
Updates ids of one table: gradients of equal ids are summed, then each id takes one optimizer step.

ids: [n].
gradients: [n, dim].
timestamp: As in ApplyPooledGradients.
)doc");

REGISTER_OP("Millrace>Assign")
    .Input("store: resource")
    .Input("ids: int64")
    .Input("values: float")
    .Input("timestamp: int64")
    .Attr("table: string")
    .SetIsStateful()
    .SetShapeFn(RowsOfIdsShape)
    .Doc(R"doc(
Overwrites weights. New ids get fresh optimizer state; of equal ids the last wins. Ids are not marked as touched.

ids: [n].
values: [n, dim], all finite.
timestamp: As in ApplyPooledGradients.
)doc");

REGISTER_OP("Millrace>Erase")
    .Input("store: resource")
    .Input("ids: int64")
    .Attr("table: string")
    .Output("erased: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      TF_RETURN_IF_ERROR(IdsOnlyShape(context));
      context->set_output(0, context->Scalar());
      return absl::OkStatus();
    })
    .Doc(R"doc(
Removes ids and marks those that were there as touched.

ids: [n].
erased: Scalar, how many were there.
)doc");

REGISTER_OP("Millrace>Contains")
    .Input("store: resource")
    .Input("ids: int64")
    .Attr("table: string")
    .Output("found: bool")
    .SetIsStateful()
    .SetShapeFn(SameAsIdsShape)
    .Doc(R"doc(
Says for each of ids [n] whether the table holds it.
)doc");

REGISTER_OP("Millrace>Sizes")
    .Input("store: resource")
    .Output("sizes: int64")
    .SetIsStateful()
    .SetShapeFn(ListShape)
    .Doc(R"doc(
Number of entries of each table, in the order of the store.
)doc");

REGISTER_OP("Millrace>StealTouched")
    .Input("store: resource")
    .Attr("table: string")
    .Output("ids: int64")
    .Output("overflow: bool")
    .SetIsStateful()
    .SetShapeFn(ListShape)
    .Doc(R"doc(
Takes the ids that were updated or erased since the last call, ascending.

overflow: Scalar; true when ids were forgotten for lack of room, so a reader needs a whole export.
)doc");

REGISTER_OP("Millrace>RestoreTouched")
    .Input("store: resource")
    .Input("ids: int64")
    .Attr("table: string")
    .SetIsStateful()
    .SetShapeFn(IdsOnlyShape)
    .Doc(R"doc(
Puts ids back that StealTouched took.
)doc");

REGISTER_OP("Millrace>Dump")
    .Input("store: resource")
    .Attr("table: string")
    .Attr("with_state: bool = false")
    .Output("ids: int64")
    .Output("values: float")
    .Output("timestamps: int64")
    .SetIsStateful()
    .SetShapeFn(EntriesShape)
    .Doc(R"doc(
Copies all entries of a table out, by ascending id.

with_state: Append the optimizer state to each row of values.
)doc");

REGISTER_OP("Millrace>Save")
    .Input("store: resource")
    .Input("folder: string")
    .Attr("with_state: bool = true")
    .Output("files: string")
    .SetIsStateful()
    .SetShapeFn(ListShape)
    .Doc(R"doc(
Writes each table into one checksummed file of a folder.

Files are written beside, synced and renamed. Updates must pause meanwhile.

folder: Scalar; created when it is new.

with_state: Write optimizer state too; else weights only, for serving.
files: Paths, in the order of the tables.
)doc");

REGISTER_OP("Millrace>Restore")
    .Input("store: resource")
    .Input("files: string")
    .Attr("once: bool = false")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      ShapeHandle unused;
      return context->WithRank(context->input(1), 1, &unused);
    })
    .Doc(R"doc(
Replaces the content of all tables by that of files, one a table. Every file is checked before the first entry changes.

once: Do nothing when a restore with `once` has filled this store before: a second load of the same export joins the
  first.
)doc");

REGISTER_OP("Millrace>ReadTableFile")
    .Input("path: string")
    .Input("limit: int64")
    .Output("ids: int64")
    .Output("values: float")
    .Output("timestamps: int64")
    .Output("table: string")
    .Output("optimizer: string")
    .Output("numbers: int64")
    .SetIsStateful()
    .SetShapeFn(EntriesShape)
    .Doc(R"doc(
Checks a whole table file and returns its first entries, without a store.

limit: Scalar, how many entries to return; below 0 all.
numbers: dim, state floats, number of entries.
)doc");

}  // namespace
}  // namespace millrace

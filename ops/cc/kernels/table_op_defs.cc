// Ops on the entries of one table: their shape functions and documentation, no kernel code.
#include <cstdint>

#include "ops/cc/kernels/op_shapes.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace millrace {
namespace {

// Input `index` has a row for each id.
absl::Status RowsOfIds(InferenceContext* context, ShapeHandle ids, int index) {
  ShapeHandle rows;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(index), 2, &rows));
  DimensionHandle count;
  return context->Merge(context->Dim(ids, 0), context->Dim(rows, 0), &count);
}

absl::Status AssignShape(InferenceContext* context) {
  ShapeHandle ids;
  TF_RETURN_IF_ERROR(HandleAndIds(context, &ids));
  TF_RETURN_IF_ERROR(RowsOfIds(context, ids, 2));
  return ScalarsFrom(context, 3, 4);
}

absl::Status ApplyGradientsShape(InferenceContext* context) {
  ShapeHandle ids, unused;
  TF_RETURN_IF_ERROR(HandleAndIds(context, &ids));
  TF_RETURN_IF_ERROR(RowsOfIds(context, ids, 2));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(3), 1, &unused));
  TF_RETURN_IF_ERROR(context->WithRank(context->input(6), 2, &unused));
  return ScalarsFrom(context, 4, 6);
}

absl::Status LookupShape(InferenceContext* context) {
  ShapeHandle ids;
  TF_RETURN_IF_ERROR(HandleAndIds(context, &ids));
  TF_RETURN_IF_ERROR(ScalarsFrom(context, 2, 3));
  int64_t dim;
  TF_RETURN_IF_ERROR(context->GetAttr("dim", &dim));
  context->set_output(0, context->Matrix(context->Dim(ids, 0), dim));
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

REGISTER_OP("Millrace>Lookup")
    .Input("store: resource")
    .Input("ids: int64")
    .Input("global_step: int64")
    .Attr("table: string")
    .Attr("dim: int >= 1")
    .Attr("missing: {'zeros', 'first_vector', 'create'} = 'zeros'")
    .Output("values: float")
    .SetIsStateful()
    .SetShapeFn(LookupShape)
    .Doc(R"doc(
Reads the weights of ids, as a model is to see them: quantised in a table that trains so.

ids: [n], any order, duplicates allowed.
global_step: Scalar, sets the scale of quantisation-aware training.
dim: Must be the table's.
missing: What an id without an entry reads as. `zeros`; `first_vector`: what its entry would start from; `create`: the
  same, and it gets that entry, unless the table has an occurrence filter, which only updates can pass.
values: [n, dim].
)doc");

REGISTER_OP("Millrace>LookupEntries")
    .Input("store: resource")
    .Input("ids: int64")
    .Attr("table: string")
    .Output("ids_out: int64")
    .Output("values: float")
    .Output("timestamps: int64")
    .Output("found: bool")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      ShapeHandle ids;
      TF_RETURN_IF_ERROR(HandleAndIds(context, &ids));
      EntriesShape(context, context->Dim(ids, 0));
      context->set_output(3, ids);
      return absl::OkStatus();
    })
    .Doc(R"doc(
Copies whole entries out, weights as they are.

ids: [n].
values: [n, dim + state floats]; rows of absent ids mean nothing.
timestamps: [n], Unix seconds of the last write.
found: [n].
)doc");

REGISTER_OP("Millrace>ApplyGradients")
    .Input("store: resource")
    .Input("ids: int64")
    .Input("gradients: float")
    .Input("learning_rates: float")
    .Input("global_step: int64")
    .Input("timestamp: int64")
    .Input("read_values: float")
    .Attr("table: string")
    .SetIsStateful()
    .SetShapeFn(ApplyGradientsShape)
    .Doc(R"doc(
Updates ids of one table: gradients of equal ids are summed, then each id takes one optimizer step.

ids: [n].
gradients: [n, dim].
learning_rates: One per segment.
global_step, timestamp: As in ApplyPooledGradients.
read_values: [n, dim], weights that the gradients were taken at, for delay compensation; [0, 0]: not known.
)doc");

REGISTER_OP("Millrace>Assign")
    .Input("store: resource")
    .Input("ids: int64")
    .Input("values: float")
    .Input("timestamp: int64")
    .Attr("table: string")
    .Attr("add: bool = false")
    .Attr("ask_filter: bool = false")
    .SetIsStateful()
    .SetShapeFn(AssignShape)
    .Doc(R"doc(
Writes weights. New ids get fresh optimizer state; equal ids take effect in order. Ids are not marked as touched.

ids: [n].
values: [n, dim], all finite.
timestamp: As in ApplyPooledGradients.
add: Add to the weights; a new id starts from its first vector.
ask_filter: New ids have to pass the occurrence filter.
)doc");

REGISTER_OP("Millrace>ImportEntries")
    .Input("store: resource")
    .Input("ids: int64")
    .Input("values: float")
    .Input("timestamps: int64")
    .Attr("table: string")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      ShapeHandle ids, values, timestamps;
      TF_RETURN_IF_ERROR(HandleAndIds(context, &ids));
      TF_RETURN_IF_ERROR(context->WithRank(context->input(2), 2, &values));
      return context->Merge(ids, context->input(3), &timestamps);
    })
    .Doc(R"doc(
Writes whole entries over what is there. Ids do not become touched, and the occurrence filter is not asked.

ids: [n].
values: [n, dim + state floats], as LookupEntries gives them.
timestamps: [n], Unix seconds of the last write.
)doc");

REGISTER_OP("Millrace>Reinitialize")
    .Input("store: resource")
    .Input("ids: int64")
    .Input("timestamp: int64")
    .Attr("table: string")
    .Output("existed: bool")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      TF_RETURN_IF_ERROR(SameAsIdsShape(context));
      return ScalarsFrom(context, 2, 3);
    })
    .Doc(R"doc(
Gives ids [n] their first vector and fresh optimizer state, creating those that are missing, and marks them as touched.
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

REGISTER_OP("Millrace>StealTouched")
    .Input("store: resource")
    .Attr("table: string")
    .Output("ids: int64")
    .Output("overflow: bool")
    .SetIsStateful()
    .SetShapeFn(ListShape)
    .Doc(R"doc(
Takes the ids that were updated or erased since the last call, ascending.

overflow: Scalar; true when erased ids were forgotten for lack of room, so a reader needs a whole export.
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

REGISTER_OP("Millrace>ReadEntries")
    .Input("store: resource")
    .Input("cursor: int64")
    .Input("limit: int64")
    .Attr("table: string")
    .Attr("part: int >= 0 = 0")
    .Attr("num_parts: int >= 1 = 1")
    .Output("ids: int64")
    .Output("values: float")
    .Output("timestamps: int64")
    .Output("next: int64")
    .Output("done: bool")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      EntriesShape(context, context->UnknownDim());
      context->set_output(3, context->Vector(2));
      context->set_output(4, context->Scalar());
      return absl::OkStatus();
    })
    .Doc(R"doc(
Copies a page of a table's entries out, in no order.

cursor: [2]; zeros, then `next` of the page before.
limit: Scalar, at least 1: at most so many entries.
part, num_parts: Walk over one of several parts that have no entry in common.
values: [n, dim + state floats], weights as they are.
done: Scalar; true when no page follows.
)doc");

}  // namespace
}  // namespace millrace

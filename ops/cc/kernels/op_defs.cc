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

absl::Status ScalarsFrom(InferenceContext* context, int first, int last) {
  ShapeHandle unused;
  for (int i = first; i < last; ++i) TF_RETURN_IF_ERROR(context->WithRank(context->input(i), 0, &unused));
  return absl::OkStatus();
}

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
    return absl::InvalidArgumentError("dims, max_lengths and combiners must have one value a feature");
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
  const int features = (context->num_inputs() - 4) / 3;
  PooledAttributes attributes;
  TF_RETURN_IF_ERROR(attributes.Get(context, features));
  for (int f = 0; f < features; ++f) {
    ShapeHandle shape, gradient;
    TF_RETURN_IF_ERROR(PooledShape(context, attributes, f, features, &shape));
    TF_RETURN_IF_ERROR(context->Merge(context->input(1 + 2 * features + f), shape, &gradient));
  }
  ShapeHandle unused;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(1 + 3 * features), 1, &unused));
  return ScalarsFrom(context, 2 + 3 * features, 4 + 3 * features);
}

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

// Outputs ids, values and timestamps of `count` entries.
void EntriesShape(InferenceContext* context, DimensionHandle count) {
  context->set_output(0, context->Vector(count));
  context->set_output(1, context->Matrix(count, InferenceContext::kUnknownDim));
  context->set_output(2, context->Vector(count));
}

REGISTER_OP("Millrace>OpenStore")
    .Input("tables: string")
    .Attr("store_name: string")
    .Output("store: resource")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      ShapeHandle unused;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 1, &unused));
      return ScalarShape(context);
    })
    .Doc(R"doc(
Opens the embedding store of this name in the process, creating it when it is new, and becomes one of its owners.

tables: [n], one text a table; ops/cc/embedding/rules/table_config.h has its form. A store that is open with other texts is
  refused. (An input: TensorFlow tells eager kernels apart by an abbreviation of attributes that are lists of long texts.)
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
learning_rates: One a segment of feature 0's table, then of feature 1's, ...; the first feature of a table counts.
global_step: Scalar.
timestamp: Scalar, Unix seconds stamped on the entries; below 0 means now.
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
learning_rates: One a segment.
global_step, timestamp: As in ApplyPooledGradients.
read_values: [n, dim], weights that the gradients were taken at, for delay compensation; [0, 0]: not known.
)doc");

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
learning_rates: One a segment of table 0, then of table 1, ...
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

REGISTER_OP("Millrace>Evict")
    .Input("store: resource")
    .Input("watermark: int64")
    .Output("evicted: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      TF_RETURN_IF_ERROR(ListShape(context));
      return ScalarsFrom(context, 1, 2);
    })
    .Doc(R"doc(
Removes entries whose last write is as old as their slot's expiry and marks them as touched.

watermark: Scalar, Unix seconds that age is counted back from; below 0 means now.
evicted: How many of each table, in the order of the store.
)doc");

REGISTER_OP("Millrace>Clear")
    .Input("store: resource")
    .Attr("table: string")
    .SetIsStateful()
    .SetShapeFn(NoOutputs)
    .Doc(R"doc(
Removes all entries of a table and returns their memory; touched ids and the occurrence filter are forgotten too.
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

REGISTER_OP("Millrace>Stats")
    .Input("store: resource")
    .Attr("table: string")
    .Output("numbers: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->Vector(6));
      return absl::OkStatus();
    })
    .Doc(R"doc(
What a table has come to.

numbers: Entries; bytes of memory; gradients that were not finite and left out or clipped; ids that the occurrence filter
  admitted; ids that it rejected; newest time stamp.
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

REGISTER_OP("Millrace>BeginCut")
    .Input("store: resource")
    .Output("cut: int64")
    .SetIsStateful()
    .SetShapeFn(ScalarShape)
    .Doc(R"doc(
Holds the content of all tables as it is now, for WriteCut; updates go on.

An entry is copied before its first change until it is written. FailedPreconditionError while another cut is open.

cut: Scalar; each is to be given to WriteCut or DropCut.
)doc");

REGISTER_OP("Millrace>WriteCut")
    .Input("cut: int64")
    .Input("folder: string")
    .Attr("with_state: bool = true")
    .Attr("shard: int >= 0 = 0")
    .Attr("num_shards: int >= 1 = 1")
    .Output("files: string")
    .SetIsStateful()
    .SetShapeFn(ListShape)
    .Doc(R"doc(
Writes a cut into checksummed files of a folder, each beside, synced and renamed, on threads of low priority.

folder: Scalar; created when it is new.
with_state: Write optimizer state too; else weights only, compressed, for serving.
shard, num_shards: Which of the parameter servers this store is.
files: Paths.
)doc");

REGISTER_OP("Millrace>DropCut").Input("cut: int64").SetIsStateful().SetShapeFn(NoOutputs).Doc(R"doc(
Lets go of a cut that will not be written; no-op when it was written.
)doc");

REGISTER_OP("Millrace>Restore")
    .Input("store: resource")
    .Input("files: string")
    .Attr("once: bool = false")
    .Attr("partial: bool = false")
    .Attr("shard: int >= 0 = 0")
    .Attr("num_shards: int >= 1 = 1")
    .Attr("segments_from: list(string) = []")
    .Output("notes: string")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      ShapeHandle unused;
      TF_RETURN_IF_ERROR(context->WithRank(context->input(1), 1, &unused));
      return ListShape(context);
    })
    .Doc(R"doc(
Replaces the content of all tables by that of files. Every file is checked before the first entry changes.

once: Do nothing when a restore with `once` has filled this store before: a second load of the same export joins the
  first.
partial: Tables without files stay empty, and files of unknown tables are passed over.
shard, num_shards: Keep the ids with floormod(id, num_shards) == shard.
segments_from: `table=0,-1,1`: for each segment of a table the one of the files that it continues, -1 for a new one.
notes: What was passed over or starts empty.
)doc");

REGISTER_OP("Millrace>VerifyTableFile")
    .Input("path: string")
    .Output("header: string")
    .Output("rows: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      context->set_output(0, context->Scalar());
      context->set_output(1, context->Scalar());
      return absl::OkStatus();
    })
    .Doc(R"doc(
Checks every byte of a table file, without a store.

header: Its text; ops/cc/embedding/snapshot/table_snapshot.h has its form.
rows: Scalar, number of entries.
)doc");

REGISTER_OP("Millrace>ReadTableFile")
    .Input("path: string")
    .Input("cursor: int64")
    .Input("limit: int64")
    .Output("ids: int64")
    .Output("values: float")
    .Output("timestamps: int64")
    .Output("header: string")
    .Output("next: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      EntriesShape(context, context->UnknownDim());
      context->set_output(3, context->Scalar());
      context->set_output(4, context->Vector(2));
      return absl::OkStatus();
    })
    .Doc(R"doc(
Reads whole blocks of a table file, without a store, until there are `limit` entries or more; none at the end.

cursor: [2]; zeros, then `next` of the call before.
values: [n, dim + state floats].
)doc");

REGISTER_OP("Millrace>ReshardFiles")
    .Input("files: string")
    .Input("folder: string")
    .Attr("num_shards: int >= 1")
    .Output("written: string")
    .SetIsStateful()
    .SetShapeFn(ListShape)
    .Doc(R"doc(
Writes the entries of table files anew, a file a table and shard, without a store.

files: All files of a snapshot.
folder: Scalar; created when it is new.
num_shards: Shard s gets the ids with floormod(id, num_shards) == s.
written: Paths.
)doc");

}  // namespace
}  // namespace millrace

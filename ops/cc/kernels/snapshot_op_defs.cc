// Ops on cuts and snapshot files: their shape functions and documentation, no kernel code.
#include "ops/cc/kernels/op_shapes.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace millrace {
namespace {

using tensorflow::shape_inference::NoOutputs;
using tensorflow::shape_inference::ScalarShape;

REGISTER_OP("Millrace>BeginCut")
    .Input("store: resource")
    .Input("watermark: int64")
    .Attr("abandoned_seconds: float = 120.0")
    .Output("cut: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      TF_RETURN_IF_ERROR(ScalarShape(context));
      return ScalarsFrom(context, 1, 2);
    })
    .Doc(R"doc(
Holds the content of all tables as it is now, for WriteCut; updates go on.

An entry is copied before its first change until it is written. FailedPreconditionError while another cut is open.

watermark: Scalar, Unix seconds that the age of entries is counted back from; WriteCut leaves out those that expired.
  Below 0: the newest time stamp of each table, or this machine's clock where that is earlier.
abandoned_seconds: A cut that has waited so long for its WriteCut is dropped for this one, as its client is gone: clients
  write at once. A WriteCut that comes still fails.
cut: Scalar; each is to be given to WriteCut or DropCut.
)doc");

REGISTER_OP("Millrace>WriteCut")
    .Input("cut: int64")
    .Input("folder: string")
    .Attr("with_state: bool = true")
    .Attr("shard: int >= 0 = 0")
    .Attr("num_shards: int >= 1 = 1")
    .Output("files: string")
    .Output("written: int64")
    .Output("expired: int64")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* context) {
      ShapeHandle unused;
      TF_RETURN_IF_ERROR(ScalarsFrom(context, 0, 2));
      for (int i = 0; i < 3; ++i) context->set_output(i, context->Vector(InferenceContext::kUnknownDim));
      return absl::OkStatus();
    })
    .Doc(R"doc(
Writes a cut into checksummed files of a folder, each beside, synced and renamed, on threads of low priority.

folder: Scalar; created when it is new.
with_state: Write optimizer state too; else weights only, compressed, for serving.
shard, num_shards: Which of the parameter servers this store is.
files: Paths.
written, expired: How many entries of each table were written and how many left out, in the order of the store.
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
Writes the entries of table files anew, one file per table and shard, without a store.

files: All files of a snapshot.
folder: Scalar; created when it is new.
num_shards: Shard s gets the ids with floormod(id, num_shards) == s.
written: Paths.
)doc");

}  // namespace
}  // namespace millrace

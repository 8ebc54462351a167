// Ops on a whole store: their shape functions and documentation, no kernel code.
#include "ops/cc/kernels/op_shapes.h"
#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace millrace {
namespace {

using tensorflow::shape_inference::NoOutputs;
using tensorflow::shape_inference::ScalarShape;

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

tables: [n], one text per table; ops/cc/embedding/rules/table_config.h has its form. A store that is open with other
  texts is refused. (An input: TensorFlow tells eager kernels apart by an abbreviation of attributes that are lists of
  long texts.)
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
      context->set_output(0, context->Vector(7));
      return absl::OkStatus();
    })
    .Doc(R"doc(
Numbers that describe a table.

numbers: Entries; bytes of memory; gradients that were not finite and left out or clipped; ids that the occurrence
  filter admitted; ids that it rejected; newest time stamp; steps and additions that were left out because a weight or
  its state would have become NaN or infinite.
)doc");

}  // namespace
}  // namespace millrace

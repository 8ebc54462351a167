// Ops of a train step that use no store: their shape functions and documentation, no kernel code.
#include "ops/cc/kernels/op_shapes.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace millrace {
namespace {

absl::Status JudgeUpdateShape(InferenceContext* context) {
  context->set_output(0, context->Scalar());
  context->set_output(1, context->Scalar());
  return ScalarsFrom(context, 0, 1);
}

REGISTER_OP("Millrace>JudgeUpdate")
    .Input("loss: float")
    .Input("gradients: dense * float")
    .Input("pooled_gradients: pooled * float")
    .Attr("dense: int >= 0")
    .Attr("pooled: int >= 0")
    .Output("finite: bool")
    .Output("gradient_rms: float")
    .SetShapeFn(JudgeUpdateShape)
    .Doc(R"doc(
Whether an update may be made: loss and all gradients are finite.

One op in place of several per tensor, which cost a small step more than the sums that they compute.

loss: Scalar.
gradients: Of dense variables, any shapes.
pooled_gradients: [rows, ...], all with as many rows.
finite: Scalar. False when a number is NaN or infinite, or the sum of the squares of all gradients is not below 2^128.
gradient_rms: Scalar, root of the mean over rows of the squared norm of a row's pooled gradients; 0 without rows. NaN or
infinite when the sum of their squares is.
)doc");

}  // namespace
}  // namespace millrace

// Shape functions that the ops of several files share.
#ifndef MILLRACE_KERNELS_OP_SHAPES_H_
#define MILLRACE_KERNELS_OP_SHAPES_H_

#include "absl/status/status.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/platform/errors.h"

namespace millrace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Input 0 is the scalar handle of a store, input 1 a vector of ids.
inline absl::Status HandleAndIds(InferenceContext* context, ShapeHandle* ids) {
  ShapeHandle unused;
  TF_RETURN_IF_ERROR(context->WithRank(context->input(0), 0, &unused));
  return context->WithRank(context->input(1), 1, ids);
}

// Inputs [first, last) are scalars.
inline absl::Status ScalarsFrom(InferenceContext* context, int first, int last) {
  ShapeHandle unused;
  for (int i = first; i < last; ++i) TF_RETURN_IF_ERROR(context->WithRank(context->input(i), 0, &unused));
  return absl::OkStatus();
}

// Output 0 is a vector of unknown length; the others are scalars.
inline absl::Status ListShape(InferenceContext* context) {
  context->set_output(0, context->Vector(InferenceContext::kUnknownDim));
  for (int i = 1; i < context->num_outputs(); ++i) context->set_output(i, context->Scalar());
  return absl::OkStatus();
}

// Outputs 0 to 2 are ids, values and timestamps of `count` entries.
inline void EntriesShape(InferenceContext* context, DimensionHandle count) {
  context->set_output(0, context->Vector(count));
  context->set_output(1, context->Matrix(count, InferenceContext::kUnknownDim));
  context->set_output(2, context->Vector(count));
}

}  // namespace millrace

#endif  // MILLRACE_KERNELS_OP_SHAPES_H_

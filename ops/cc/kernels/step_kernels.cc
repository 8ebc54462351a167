// Kernels of a train step that use no store; definitions and documentation are in step_op_defs.cc.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "ops/cc/embedding/base/cpu_clones.h"
#include "ops/cc/kernels/table_resource.h"

namespace millrace {
namespace {

using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

constexpr int64_t kLanes = 16;  // two vectors of AVX2: the compiler may not reorder a sum of floats by itself

MILLRACE_PLAIN_CLONES void AddSquares(const float* values, int64_t count, float* lanes) {
  float sums[kLanes];
  std::copy(lanes, lanes + kLanes, sums);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += values[i + lane] * values[i + lane];
  }
  for (; i < count; ++i) sums[i % kLanes] += values[i] * values[i];
  std::copy(sums, sums + kLanes, lanes);
}

// NaN or infinite as soon as one number is.
float SumOfSquares(const OpInputList& tensors) {
  float lanes[kLanes] = {};
  for (int t = 0; t < tensors.size(); ++t) {
    AddSquares(tensors[t].flat<float>().data(), tensors[t].NumElements(), lanes);
  }
  return std::accumulate(lanes, lanes + kLanes, 0.0f);
}

class JudgeUpdateKernel : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    float loss = 0;
    OP_REQUIRES_OK(context, ScalarFromInput(context, 0, "loss", &loss));
    OpInputList gradients, pooled;
    OP_REQUIRES_OK(context, context->input_list("gradients", &gradients));
    OP_REQUIRES_OK(context, context->input_list("pooled_gradients", &pooled));
    int64_t rows = 0;
    for (int f = 0; f < pooled.size(); ++f) {
      OP_REQUIRES(context, pooled[f].dims() >= 1, absl::InvalidArgumentError("a pooled gradient must have rows"));
      if (f == 0) rows = pooled[f].dim_size(0);
      OP_REQUIRES(context, pooled[f].dim_size(0) == rows,
                  absl::InvalidArgumentError("pooled gradients must have equally many rows"));
    }
    const float pooled_squares = SumOfSquares(pooled);
    Tensor *finite = nullptr, *rms = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape(), &finite));
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape(), &rms));
    finite->scalar<bool>()() = std::isfinite(loss) && std::isfinite(pooled_squares + SumOfSquares(gradients));
    rms->scalar<float>()() = rows == 0 ? 0.0f : std::sqrt(pooled_squares / static_cast<float>(rows));
  }
};

MILLRACE_REGISTER("JudgeUpdate", JudgeUpdateKernel);

}  // namespace
}  // namespace millrace

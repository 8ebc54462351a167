// Entries as columns of tensors.
#ifndef MILLRACE_KERNELS_ENTRY_OUTPUT_H_
#define MILLRACE_KERNELS_ENTRY_OUTPUT_H_

#include <cstdint>
#include <cstring>

#include "ops/cc/embedding/table/embedding_table.h"
#include "ops/cc/embedding/snapshot/store_snapshot.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace millrace {

// First three outputs: ids [n] int64, values [n, width] float and timestamps [n] int64 of rows; read(row, values) gives
// the values of one.
template <typename Read>
absl::Status OutputRows(tensorflow::OpKernelContext* context, const EntryRows& rows, int64_t width, const Read& read) {
  using tensorflow::TensorShape;
  tensorflow::Tensor *ids = nullptr, *values = nullptr, *timestamps = nullptr;
  const int64_t count = rows.size();
  TF_RETURN_IF_ERROR(context->allocate_output(0, TensorShape({count}), &ids));
  TF_RETURN_IF_ERROR(context->allocate_output(1, TensorShape({count, width}), &values));
  TF_RETURN_IF_ERROR(context->allocate_output(2, TensorShape({count}), &timestamps));
  float* to = values->flat<float>().data();
  for (int64_t i = 0; i < count; ++i) {
    ids->flat<int64_t>()(i) = RowHeader::Fid(rows.at(i));
    timestamps->flat<int64_t>()(i) = RowHeader::Timestamp(rows.at(i));
    read(rows.at(i), to + i * width);
  }
  return absl::OkStatus();
}

// Weights, then the optimizer state of a training table.
inline absl::Status OutputEntries(tensorflow::OpKernelContext* context, const EntryLayout& layout,
                                  const EntryRows& rows) {
  return OutputRows(context, rows, layout.dim() + layout.state_floats(), [&](const char* row, float* values) {
    if (layout.serving()) {
      layout.Decode(RowHeader::EntryOf(row), values);
    } else {
      std::memcpy(values, RowHeader::EntryOf(row), layout.entry_bytes());
    }
  });
}

}  // namespace millrace

#endif  // MILLRACE_KERNELS_ENTRY_OUTPUT_H_

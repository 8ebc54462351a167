// How kernels find their store, borrow the device's threads and report errors.
#ifndef MILLRACE_KERNELS_TABLE_RESOURCE_H_
#define MILLRACE_KERNELS_TABLE_RESOURCE_H_

#include <chrono>
#include <memory>
#include <string>

#include "ops/cc/embedding/embedding_store.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_handle.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/util/work_sharder.h"

namespace millrace {

inline constexpr char kStoreTypeName[] = "millrace::EmbeddingStore";

inline absl::Status ToTensorFlow(const Status& status) {
  switch (status.code()) {
    case Code::kOk:
      return absl::OkStatus();
    case Code::kInvalidArgument:
      return absl::InvalidArgumentError(status.message());
    case Code::kNotFound:
      return absl::NotFoundError(status.message());
    case Code::kFailedPrecondition:
      return absl::FailedPreconditionError(status.message());
    case Code::kDataLoss:
      return absl::DataLossError(status.message());
    case Code::kInternal:
      break;
  }
  return absl::InternalError(status.message());
}

// The handle names a store in the process-wide registry; checked by type before it is believed.
inline absl::Status StoreFromInput(tensorflow::OpKernelContext* context, std::shared_ptr<EmbeddingStore>* store) {
  const tensorflow::ResourceHandle& handle = tensorflow::HandleFromInput(context, 0);
  if (handle.maybe_type_name() != kStoreTypeName) {
    return absl::InvalidArgumentError("the resource '" + handle.name() + "' is not an embedding store");
  }
  const Status status = StoreRegistry::Global().Find(handle.name(), store);
  if (status.ok() && (*store)->incarnation() != handle.hash_code()) {
    return absl::NotFoundError("embedding store '" + handle.name() + "' was released; another one has its name now");
  }
  return ToTensorFlow(status);
}

inline tensorflow::ResourceHandle HandleOf(tensorflow::OpKernelContext* context, const EmbeddingStore& store) {
  tensorflow::ResourceHandle handle;
  handle.set_device(context->device()->attributes().name());
  handle.set_name(store.name());
  handle.set_hash_code(store.incarnation());
  handle.set_maybe_type_name(kStoreTypeName);
  return handle;
}

inline absl::Status TableFromInput(tensorflow::OpKernelContext* context, const std::string& table,
                                   std::shared_ptr<EmbeddingStore>* store, EmbeddingTable** result) {
  const absl::Status status = StoreFromInput(context, store);
  return status.ok() ? ToTensorFlow((*store)->Find(table, result)) : status;
}

// A 1-D int64 input of a size that fits a batch.
inline absl::Status IdsFromInput(tensorflow::OpKernelContext* context, int index, const tensorflow::Tensor** ids) {
  *ids = &context->input(index);
  if ((*ids)->dims() != 1) {
    return absl::InvalidArgumentError("ids must have rank 1, got shape " + (*ids)->shape().DebugString());
  }
  if ((*ids)->NumElements() >= EmbeddingTable::kMaxBatch) {
    return absl::InvalidArgumentError("a batch must have less than 2^31 ids");
  }
  return absl::OkStatus();
}

// Unix seconds of a scalar input; below 0 means now.
inline absl::Status TimestampFromInput(tensorflow::OpKernelContext* context, int index, uint32_t* timestamp) {
  const tensorflow::Tensor& input = context->input(index);
  if (input.dims() != 0) return absl::InvalidArgumentError("timestamp must be a scalar");
  int64_t seconds = input.scalar<int64_t>()();
  if (seconds < 0) {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    seconds = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  }
  if (seconds > UINT32_MAX) return absl::InvalidArgumentError("timestamp must be seconds, below 2^32");
  *timestamp = static_cast<uint32_t>(seconds);
  return absl::OkStatus();
}

inline Executor DeviceThreads(tensorflow::OpKernelContext* context) {
  const auto* workers = context->device()->tensorflow_cpu_worker_threads();
  return [workers](int64_t units, int64_t nanoseconds_per_unit, const RangeBody& body) {
    // Shard counts in cycles; about three a nanosecond.
    tensorflow::Shard(workers->num_threads, workers->workers, units, 3 * nanoseconds_per_unit, body);
  };
}

}  // namespace millrace

#endif  // MILLRACE_KERNELS_TABLE_RESOURCE_H_

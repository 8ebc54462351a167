// How kernels find their store, borrow the device's threads and report errors.
#ifndef MILLRACE_KERNELS_TABLE_RESOURCE_H_
#define MILLRACE_KERNELS_TABLE_RESOURCE_H_

#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>

#include "ops/cc/embedding/table/embedding_store.h"
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
    case Code::kResourceExhausted:
      return absl::ResourceExhaustedError(status.message());
    case Code::kInternal:
      break;
  }
  return absl::InternalError(status.message());
}

// A scalar input. Shape functions say so too, but an eager call does not run them.
template <typename T>
absl::Status ScalarFromInput(tensorflow::OpKernelContext* context, int index, const char* name, T* result) {
  const tensorflow::Tensor& input = context->input(index);
  if (input.dims() != 0) {
    return absl::InvalidArgumentError(std::string(name) + " must be a scalar, got shape " +
                                      input.shape().DebugString());
  }
  *result = input.scalar<T>()();
  return absl::OkStatus();
}

inline absl::Status HandleFromScalar(tensorflow::OpKernelContext* context, int index,
                                     tensorflow::ResourceHandle* handle) {
  return ScalarFromInput(context, index, "the handle of a store", handle);
}

// The handle names a store in the process-wide registry; checked by type before it is believed.
inline absl::Status StoreFromInput(tensorflow::OpKernelContext* context, std::shared_ptr<EmbeddingStore>* store) {
  tensorflow::ResourceHandle handle;
  TF_RETURN_IF_ERROR(HandleFromScalar(context, 0, &handle));
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

inline absl::Status CheckDim(const EmbeddingTable& table, int64_t dim) {
  if (dim == table.dim()) return absl::OkStatus();
  return absl::InvalidArgumentError("table '" + table.config().name + "' has dim " + std::to_string(table.dim()) +
                                    ", not " + std::to_string(dim));
}

// Values or gradients of `count` ids: [count, dim] float.
inline absl::Status CheckRows(const EmbeddingTable& table, const tensorflow::Tensor& rows, int64_t count) {
  if (rows.dims() != 2 || rows.dim_size(0) != count) {
    return absl::InvalidArgumentError("table '" + table.config().name + "': expected shape [" + std::to_string(count) +
                                      ", " + std::to_string(table.dim()) + "], got " + rows.shape().DebugString());
  }
  return CheckDim(table, rows.dim_size(1));
}

// One finite learning rate per segment, from `first` on.
inline absl::Status CheckRates(const EmbeddingTable& table, const tensorflow::Tensor& rates, int64_t first = 0) {
  if (rates.dims() != 1 || rates.NumElements() < first + table.num_segments()) {
    return absl::InvalidArgumentError("table '" + table.config().name + "' has " +
                                      std::to_string(table.num_segments()) +
                                      " segments: learning_rates must hold as many numbers, got shape " +
                                      rates.shape().DebugString());
  }
  for (int s = 0; s < table.num_segments(); ++s) {
    if (std::isfinite(rates.flat<float>()(first + s))) continue;
    return absl::InvalidArgumentError("table '" + table.config().name + "': the learning rate of segment " +
                                      std::to_string(s) + " is NaN or infinite; nothing was applied");
  }
  return absl::OkStatus();
}

// No learning rate is left over once `used` of them went to segments.
inline absl::Status CheckRatesUsed(const tensorflow::Tensor& rates, int64_t used) {
  if (rates.NumElements() == used) return absl::OkStatus();
  return absl::InvalidArgumentError("learning_rates must hold " + std::to_string(used) +
                                    " numbers, one per segment, got shape " + rates.shape().DebugString());
}

inline int64_t NowSeconds() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::seconds>(now).count();
}

// Unix seconds of a scalar input; below 0 means now.
inline absl::Status TimestampFromInput(tensorflow::OpKernelContext* context, int index, uint32_t* timestamp) {
  int64_t seconds = 0;
  TF_RETURN_IF_ERROR(ScalarFromInput(context, index, "timestamp", &seconds));
  if (seconds < 0) seconds = NowSeconds();
  if (seconds > UINT32_MAX) return absl::InvalidArgumentError("timestamp must be seconds, below 2^32");
  *timestamp = static_cast<uint32_t>(seconds);
  return absl::OkStatus();
}

inline absl::Status ParseMissing(const std::string& text, Missing* result) {
  if (text == "zeros") {
    *result = Missing::kZeros;
  } else if (text == "first_vector") {
    *result = Missing::kFirstVector;
  } else if (text == "create") {
    *result = Missing::kCreate;
  } else {
    return absl::InvalidArgumentError("missing '" + text + "' is unknown; choose from zeros, first_vector, create");
  }
  return absl::OkStatus();
}

// What a body throws becomes its status: an exception that left a kernel would end the process.
template <typename Body>
absl::Status StatusOf(const Body& body) {
  try {
    body();
    return absl::OkStatus();
  } catch (const TableFull& full) {
    return absl::ResourceExhaustedError(full.what());
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory for embedding tables, or at the limit of memory mappings");
  } catch (const std::exception& problem) {
    return absl::InternalError(problem.what());
  } catch (...) {
    return absl::InternalError("an exception of unknown type");
  }
}

// A kernel that may throw.
class GuardedKernel : public tensorflow::OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(tensorflow::OpKernelContext* context) final {
    const absl::Status status = StatusOf([&] { Run(context); });
    OP_REQUIRES_OK(context, status);
  }

 protected:
  virtual void Run(tensorflow::OpKernelContext* context) = 0;
};

// A kernel on one table, named by an attribute.
class TableKernel : public GuardedKernel {
 public:
  explicit TableKernel(tensorflow::OpKernelConstruction* context) : GuardedKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("table", &table_));
  }

 protected:
  void Run(tensorflow::OpKernelContext* context) final {
    std::shared_ptr<EmbeddingStore> store;
    EmbeddingTable* table = nullptr;
    OP_REQUIRES_OK(context, TableFromInput(context, table_, &store, &table));
    ComputeOn(context, table);
  }
  virtual void ComputeOn(tensorflow::OpKernelContext* context, EmbeddingTable* table) = 0;

 private:
  std::string table_;
};

// A kernel on a store.
class StoreKernel : public GuardedKernel {
 public:
  using GuardedKernel::GuardedKernel;

 protected:
  void Run(tensorflow::OpKernelContext* context) final {
    std::shared_ptr<EmbeddingStore> store;
    OP_REQUIRES_OK(context, StoreFromInput(context, &store));
    ComputeOn(context, std::move(store));
  }
  virtual void ComputeOn(tensorflow::OpKernelContext* context, std::shared_ptr<EmbeddingStore> store) = 0;
};

// What a body throws on any thread is thrown on the caller's, once all are done: TensorFlow's threads catch nothing.
inline Executor DeviceThreads(tensorflow::OpKernelContext* context) {
  const auto* workers = context->device()->tensorflow_cpu_worker_threads();
  return [workers](int64_t units, int64_t nanoseconds_per_unit, const RangeBody& body) {
    std::mutex mutex;
    std::exception_ptr thrown;
    const auto guarded = [&](int64_t first, int64_t last) {
      try {
        body(first, last);
      } catch (...) {
        const std::lock_guard lock(mutex);
        thrown = std::current_exception();
      }
    };
    // tensorflow::Shard takes cycles: about three per nanosecond at 3 GHz.
    tensorflow::Shard(workers->num_threads, workers->workers, units, 3 * nanoseconds_per_unit, guarded);
    if (thrown != nullptr) std::rethrow_exception(thrown);
  };
}

}  // namespace millrace

#define MILLRACE_REGISTER(name, kernel) \
  REGISTER_KERNEL_BUILDER(Name("Millrace>" name).Device(tensorflow::DEVICE_CPU), kernel)

#endif  // MILLRACE_KERNELS_TABLE_RESOURCE_H_

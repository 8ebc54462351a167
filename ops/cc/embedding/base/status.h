// Outcome of an operation of the embedding library, free of TensorFlow types.
#ifndef MILLRACE_EMBEDDING_STATUS_H_
#define MILLRACE_EMBEDDING_STATUS_H_

#include <string>
#include <utility>

namespace millrace {

enum class Code { kOk, kInvalidArgument, kNotFound, kFailedPrecondition, kDataLoss, kResourceExhausted, kInternal };

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

inline Status InvalidArgument(std::string message) { return {Code::kInvalidArgument, std::move(message)}; }
inline Status NotFound(std::string message) { return {Code::kNotFound, std::move(message)}; }
inline Status FailedPrecondition(std::string message) { return {Code::kFailedPrecondition, std::move(message)}; }
inline Status DataLoss(std::string message) { return {Code::kDataLoss, std::move(message)}; }
inline Status ResourceExhausted(std::string message) { return {Code::kResourceExhausted, std::move(message)}; }
inline Status Internal(std::string message) { return {Code::kInternal, std::move(message)}; }

}  // namespace millrace

#define MILLRACE_RETURN_IF_ERROR(expression)                     \
  do {                                                           \
    ::millrace::Status status_of_expression = (expression);      \
    if (!status_of_expression.ok()) return status_of_expression; \
  } while (false)

#endif  // MILLRACE_EMBEDDING_STATUS_H_

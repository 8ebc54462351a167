#ifndef MILLRACE_RECORDS_BUFFER_H_
#define MILLRACE_RECORDS_BUFFER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace millrace::records {

// An Arrow buffer while it is built: bytes that grow.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }
  ~Buffer() { std::free(data_); }

  size_t size() const { return size_; }
  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  template <typename Number>
  Number* as() {
    return reinterpret_cast<Number*>(data_);
  }
  template <typename Number>
  const Number* as() const {
    return reinterpret_cast<const Number*>(data_);
  }

  // Appends `bytes` bytes that the caller fills; the pointer holds until the next call.
  uint8_t* Extend(size_t bytes) {
    if (capacity_ - size_ < bytes) Grow(bytes);
    uint8_t* const added = data_ + size_;
    size_ += bytes;
    return added;
  }
  void ExtendZero(size_t bytes) {
    if (bytes > 0) std::memset(Extend(bytes), 0, bytes);
  }
  void Append(const void* bytes, size_t size) {
    if (size > 0) std::memcpy(Extend(size), bytes, size);
  }
  template <typename Number>
  void Push(Number number) {
    std::memcpy(Extend(sizeof(number)), &number, sizeof(number));
  }
  // Requires size <= size().
  void Shrink(size_t size) { size_ = size; }

 private:
  static constexpr size_t kSmallest = 1024;

  void Grow(size_t bytes) {
    const size_t capacity = std::max({kSmallest, 2 * capacity_, size_ + bytes});
    void* const data = std::realloc(data_, capacity);
    if (data == nullptr) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(data);
    capacity_ = capacity;
  }

  uint8_t* data_ = nullptr;
  size_t size_ = 0, capacity_ = 0;
};

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_BUFFER_H_

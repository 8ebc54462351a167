// CRC-32C (Castagnoli), with the processor's instruction where the build has it.
#ifndef MILLRACE_EMBEDDING_CRC32C_H_
#define MILLRACE_EMBEDDING_CRC32C_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __SSE4_2__
#include <nmmintrin.h>
#endif

namespace millrace {

#ifdef __SSE4_2__

// Extends `crc` (0 for a fresh one) by `size` bytes.
inline uint32_t Crc32c(uint32_t crc, const void* data, size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  uint64_t state = ~crc;
  for (; size >= 8; size -= 8, bytes += 8) {
    uint64_t word;
    std::memcpy(&word, bytes, 8);
    state = _mm_crc32_u64(state, word);
  }
  for (; size > 0; --size) state = _mm_crc32_u8(static_cast<uint32_t>(state), *bytes++);
  return ~static_cast<uint32_t>(state);
}

#else

inline uint32_t Crc32c(uint32_t crc, const void* data, size_t size) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> result{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) ? 0x82F63B78u : 0u);
      result[i] = value;
    }
    return result;
  }();
  const auto* bytes = static_cast<const unsigned char*>(data);
  crc = ~crc;
  for (; size > 0; --size) crc = (crc >> 8) ^ table[(crc ^ *bytes++) & 0xFF];
  return ~crc;
}

#endif

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_CRC32C_H_

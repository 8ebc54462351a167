// SipHash-2-4 (Aumasson and Bernstein, 2012) of many strings.
#include <cstdint>
#include <cstring>

#include "ops/cc/records/c_api.h"
#include "ops/cc/records/c_guard.h"

namespace {

uint64_t Rotate(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

struct State {
  uint64_t v0, v1, v2, v3;

  void Round() {
    v0 += v1;
    v1 = Rotate(v1, 13) ^ v0;
    v0 = Rotate(v0, 32);
    v2 += v3;
    v3 = Rotate(v3, 16) ^ v2;
    v0 += v3;
    v3 = Rotate(v3, 21) ^ v0;
    v2 += v1;
    v1 = Rotate(v1, 17) ^ v2;
    v2 = Rotate(v2, 32);
  }

  void Add(uint64_t word) {
    v3 ^= word;
    Round();
    Round();
    v0 ^= word;
  }
};

uint64_t SipHash(const uint8_t* bytes, int64_t size, uint64_t k0, uint64_t k1) {
  State state{0x736F6D6570736575u ^ k0, 0x646F72616E646F6Du ^ k1, 0x6C7967656E657261u ^ k0, 0x7465646279746573u ^ k1};
  const int64_t whole = size & ~int64_t{7};
  for (int64_t at = 0; at < whole; at += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + at, 8);
    state.Add(word);
  }
  uint64_t last = static_cast<uint64_t>(size) << 56;
  for (int64_t at = whole; at < size; ++at) last |= static_cast<uint64_t>(bytes[at]) << 8 * (at - whole);
  state.Add(last);
  state.v2 ^= 0xFF;
  for (int round = 0; round < 4; ++round) state.Round();
  return state.v0 ^ state.v1 ^ state.v2 ^ state.v3;
}

}  // namespace

using namespace millrace::records;

int32_t millrace_siphash24(const int64_t* offsets, const uint8_t* data, int64_t count, const uint8_t* key,
                           uint64_t* hashes) {
  return Guarded([=] {
    uint64_t k0, k1;
    std::memcpy(&k0, key, 8);
    std::memcpy(&k1, key + 8, 8);
    for (int64_t i = 0; i < count; ++i) hashes[i] = SipHash(data + offsets[i], offsets[i + 1] - offsets[i], k0, k1);
    return CallStatus::kDone;
  });
}

// Feature ids: bit 63 clear, bits 48..62 the slot, bits 0..47 the signature.
#ifndef MILLRACE_EMBEDDING_FID_H_
#define MILLRACE_EMBEDDING_FID_H_

#include <cstdint>
#include <string_view>

namespace millrace {

inline constexpr int kSignatureBits = 48;
inline constexpr uint64_t kSlotMask = 0x7FFF;

// Slot of a fid, taken from its unsigned value: the slot of -1 is 32767.
inline int SlotOf(int64_t fid) { return static_cast<int>((static_cast<uint64_t>(fid) >> kSignatureBits) & kSlotMask); }

// Parameter server of a fid: floormod, so it lies in [0, shards) for negative fids too.
inline int64_t ShardOf(int64_t fid, int64_t shards) {
  const int64_t remainder = fid % shards;
  return remainder < 0 ? remainder + shards : remainder;
}

// SplitMix64's finaliser: a bijection, the same in every process.
inline uint64_t Mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// The product of two numbers has twice their bits; the compiler has a type for it, but the standard none.
__extension__ using Uint128 = unsigned __int128;

inline uint64_t HashFid(int64_t fid) { return Mix64(static_cast<uint64_t>(fid) + 0x9E3779B97F4A7C15ull); }

// FNV-1a.
inline uint64_t HashText(std::string_view text) {
  uint64_t hash = 0xCBF29CE484222325ull;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
  return hash;
}

}  // namespace millrace

#endif  // MILLRACE_EMBEDDING_FID_H_

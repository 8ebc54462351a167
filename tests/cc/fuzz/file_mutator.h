// A checked file (checked_file.h) taken apart, and two ways to change it: `Damage` leaves the checksums as they were,
// `Forge` makes them anew, so that the parsers behind them are reached.
#ifndef MILLRACE_TESTS_CC_FUZZ_FILE_MUTATOR_H_
#define MILLRACE_TESTS_CC_FUZZ_FILE_MUTATOR_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "ops/cc/embedding/base/crc32c.h"
#include "ops/cc/embedding/base/fid.h"

namespace millrace {

// Random numbers that a seed decides.
class Draw {
 public:
  explicit Draw(uint64_t seed) : state_(Mix64(seed)) {}

  uint64_t Next() { return Mix64(state_ += 0x9E3779B97F4A7C15ull); }
  // In [0, bound), or 0.
  size_t Below(size_t bound) { return bound == 0 ? 0 : Next() % bound; }
  template <typename Container>
  const auto& Of(const Container& container) {
    return *std::next(std::begin(container), static_cast<std::ptrdiff_t>(Below(std::size(container))));
  }

 private:
  uint64_t state_;
};

struct FileParts {
  std::string magic, header;
  std::vector<std::string> blocks;
  uint64_t count = 0;
};

template <typename Number>
std::string BytesOf(Number number) {
  return {reinterpret_cast<const char*>(&number), sizeof(number)};
}

template <typename Number>
Number NumberAt(const std::string& bytes, size_t offset) {
  Number number;
  std::memcpy(&number, bytes.data() + offset, sizeof(number));
  return number;
}

inline std::string WithCrc(const std::string& bytes, const std::string& before = "") {
  const std::string all = before + bytes;
  return bytes + BytesOf(Crc32c(0, all.data(), all.size()));
}

// With right checksums.
inline std::string PutTogether(const FileParts& parts) {
  std::string bytes = WithCrc(parts.magic + BytesOf(static_cast<uint32_t>(parts.header.size())) + parts.header);
  uint32_t index = 0;
  for (const std::string& block : parts.blocks) {
    bytes += WithCrc(BytesOf(static_cast<uint32_t>(block.size())) + block, BytesOf(index++));
  }
  return bytes + WithCrc(BytesOf(uint32_t{0}) + BytesOf(uint64_t{index}) + BytesOf(parts.count));
}

// Offset of each block's length, and of the end's.
inline std::vector<size_t> BlockOffsets(const FileParts& parts) {
  std::vector<size_t> offsets = {parts.magic.size() + 4 + parts.header.size() + 4};
  for (const std::string& block : parts.blocks) offsets.push_back(offsets.back() + 4 + block.size() + 4);
  return offsets;
}

// Requires a good file.
inline FileParts TakeApart(const std::string& bytes) {
  constexpr size_t kMagicBytes = 8;
  FileParts parts;
  parts.magic = bytes.substr(0, kMagicBytes);
  parts.header = bytes.substr(kMagicBytes + 4, NumberAt<uint32_t>(bytes, kMagicBytes));
  size_t at = kMagicBytes + 4 + parts.header.size() + 4;
  while (const uint32_t length = NumberAt<uint32_t>(bytes, at)) {
    parts.blocks.push_back(bytes.substr(at + 4, length));
    at += 4 + length + 4;
  }
  parts.count = NumberAt<uint64_t>(bytes, at + 12);
  return parts;
}

inline std::string RandomBytes(size_t size, Draw* draw) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(draw->Next());
  return bytes;
}

inline void FlipBits(std::string* bytes, Draw* draw) {
  for (size_t flips = 1 + draw->Below(4); flips > 0 && !bytes->empty(); --flips) {
    (*bytes)[draw->Below(bytes->size())] ^= static_cast<char>(1 << draw->Below(8));
  }
}

// A number that a parser might trip over.
inline uint64_t OddNumber(uint64_t number, Draw* draw) {
  const uint64_t choices[] = {
      0, 1, number + 1, number - 1, number * 2, uint64_t{1} << draw->Below(64), ~uint64_t{0}, draw->Next()};
  return draw->Of(choices);
}

// Changes the bytes of a good file in one way; `other` is another good file.
inline std::string Damage(const FileParts& parts, std::string bytes, const std::string& other, Draw* draw) {
  const std::vector<size_t> offsets = BlockOffsets(parts);
  const size_t block = draw->Below(parts.blocks.size());
  const size_t at = draw->Below(bytes.size());
  const size_t length = 1 + draw->Below(std::min<size_t>(bytes.size() - at, 64));
  switch (draw->Below(10)) {
    case 0:
      FlipBits(&bytes, draw);
      return bytes;
    case 1:
      return bytes.substr(0, at);
    case 2: {
      const size_t from = draw->Below(other.size());
      return bytes.replace(at, length, other, from, draw->Below(64));
    }
    case 3:
      return bytes.insert(at, RandomBytes(1 + draw->Below(32), draw));
    case 4:
      return bytes.erase(at, length);
    case 5: {
      const size_t field = draw->Below(2) == 0 ? parts.magic.size() : draw->Of(offsets);
      return bytes.replace(field, 4, BytesOf(static_cast<uint32_t>(OddNumber(NumberAt<uint32_t>(bytes, field), draw))));
    }
    case 6: {  // the end mark's numbers
      const size_t field = offsets.back() + 4 + 8 * draw->Below(2);
      return bytes.replace(field, 8, BytesOf(OddNumber(NumberAt<uint64_t>(bytes, field), draw)));
    }
    case 7:
      return bytes + other.substr(draw->Below(other.size()));
    default:
      break;
  }
  if (parts.blocks.empty()) return bytes.substr(0, at);
  const std::string moved = bytes.substr(offsets[block], offsets[block + 1] - offsets[block]);
  if (draw->Below(2) == 0) return bytes.insert(draw->Of(offsets), moved);
  bytes.erase(offsets[block], moved.size());
  return draw->Below(2) == 0 ? bytes : bytes.insert(offsets[draw->Below(block + 1)], moved);
}

// "a=1;b=2" as its parts.
inline std::vector<std::string> SplitFields(const std::string& text) {
  std::vector<std::string> fields = {""};
  for (const char c : text) {
    if (c == ';') {
      fields.emplace_back();
    } else {
      fields.back() += c;
    }
  }
  return fields;
}

inline std::string KeyOf(const std::string& field) { return field.substr(0, field.find('=')); }
inline std::string ValueOf(const std::string& field) {
  return field.substr(std::min(field.find('=') + 1, field.size()));
}

inline std::string ForgedValue(const std::string& value, const std::vector<std::string>& fields, Draw* draw) {
  static const char* const kWords[] = {"",           "0",
                                       "-1",         "1e9",
                                       "nan",        "inf",
                                       "fp32",       "fp16",
                                       "int8",       "one_bit",
                                       "none",       "adagrad",
                                       "training",   "serving",
                                       "../x",       "a/b",
                                       "x y",        " 1",
                                       "+1",         "01",
                                       "4294967296", "99999999999999999999"};
  std::string forged = value;
  switch (draw->Below(4)) {
    case 0:
      return draw->Of(kWords);
    case 1:
      return std::to_string(static_cast<int64_t>(OddNumber(std::strtoull(value.c_str(), nullptr, 10), draw)));
    case 2:
      return ValueOf(draw->Of(fields));
    default:
      FlipBits(&forged, draw);
      return forged;
  }
}

inline std::string ForgedHeader(const std::string& header, Draw* draw) {
  std::vector<std::string> fields = SplitFields(header);
  const size_t i = draw->Below(fields.size());
  const std::string field = fields[i];
  switch (draw->Below(8)) {
    case 0:
      fields.erase(fields.begin() + static_cast<std::ptrdiff_t>(i));
      break;
    case 1:
      fields.insert(fields.begin() + static_cast<std::ptrdiff_t>(i), draw->Of(fields));
      break;
    case 2:
      fields[i] = ForgedValue(KeyOf(field), fields, draw) + "=" + ValueOf(field);
      break;
    case 3:
      FlipBits(&fields[i], draw);
      break;
    default:
      fields[i] = KeyOf(field) + "=" + ForgedValue(ValueOf(field), fields, draw);
  }
  std::string text;
  for (const std::string& each : fields) text += (text.empty() ? "" : ";") + each;
  return text;
}

inline void ForgeBlocks(FileParts* parts, Draw* draw) {
  if (parts->blocks.empty()) {
    parts->blocks.push_back(RandomBytes(1 + draw->Below(64), draw));
    return;
  }
  const size_t b = draw->Below(parts->blocks.size());
  std::string& block = parts->blocks[b];
  switch (draw->Below(6)) {
    case 0:
      block += RandomBytes(1 + draw->Below(64), draw);
      break;
    case 1:
      block.resize(1 + draw->Below(block.size()));
      break;
    case 2:
      parts->blocks.erase(parts->blocks.begin() + static_cast<std::ptrdiff_t>(b));
      break;
    case 3:
      parts->blocks.push_back(std::string(block));
      break;
    case 4:
      std::swap(block, parts->blocks[draw->Below(parts->blocks.size())]);
      break;
    default:
      FlipBits(&block, draw);
  }
}

// Changes what a good file says, in one way.
inline void Forge(FileParts* parts, Draw* draw) {
  switch (draw->Below(8)) {
    case 0:
      parts->count = OddNumber(parts->count, draw);
      break;
    case 1:
    case 2:
    case 3:
      ForgeBlocks(parts, draw);
      break;
    default:
      parts->header = ForgedHeader(parts->header, draw);
  }
}

}  // namespace millrace

#endif  // MILLRACE_TESTS_CC_FUZZ_FILE_MUTATOR_H_

#ifndef MILLRACE_RECORDS_FID_CONVERT_H_
#define MILLRACE_RECORDS_FID_CONVERT_H_

#include <cstdint>

namespace millrace::records {

// Fid layouts: v1 has its slot in bits 63..54 and the signature below; v2 has bit 63 clear, the slot in bits 62..48.
constexpr uint64_t SlotOfFidV1(uint64_t fid) { return fid >> 54; }
// Drops the upper six bits of the signature.
constexpr uint64_t FidV1ToV2(uint64_t fid) { return SlotOfFidV1(fid) << 48 | (fid & ((uint64_t{1} << 48) - 1)); }
constexpr uint64_t kReservedFidBit = uint64_t{1} << 63;

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_FID_CONVERT_H_

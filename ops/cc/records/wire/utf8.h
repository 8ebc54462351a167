#ifndef MILLRACE_RECORDS_UTF8_H_
#define MILLRACE_RECORDS_UTF8_H_

#include <cstdint>

#include "ops/cc/records/wire/wire.h"

namespace millrace::records {

// Whether the bytes are UTF-8: shortest forms, no surrogates, nothing above U+10FFFF.
inline bool IsUtf8(Span text) {
  const uint8_t* at = text.begin;
  while (at != text.end) {
    const uint8_t lead = *at++;
    if (lead < 0x80) continue;
    const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
    if (lead < 0xC2 || lead > 0xF4 || text.end - at < more) return false;
    uint32_t code = lead & (0x3Fu >> more);
    for (int i = 0; i < more; ++i, ++at) {
      if ((*at & 0xC0) != 0x80) return false;
      code = code << 6 | (*at & 0x3Fu);
    }
    constexpr uint32_t kSmallest[] = {0, 0x80, 0x800, 0x10000};
    if (code < kSmallest[more] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return false;
  }
  return true;
}

}  // namespace millrace::records

#endif  // MILLRACE_RECORDS_UTF8_H_

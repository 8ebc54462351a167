// What the library offers to Python's ctypes: C functions over plain pointers.
#pragma once

#define MILLRACE_C_API extern "C" __attribute__((visibility("default")))

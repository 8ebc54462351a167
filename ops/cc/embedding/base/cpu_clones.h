// Loops that are compiled twice, for the baseline processor and for one with AVX2.
#ifndef MILLRACE_EMBEDDING_CPU_CLONES_H_
#define MILLRACE_EMBEDDING_CPU_CLONES_H_

#ifdef __linux__
#include <features.h>  // __GLIBC__
#endif

// Before a function: the dynamic linker picks the version that fits the machine, once, as it loads the library. All
// that the function calls is inlined into both versions, unless it is virtual or defined elsewhere. AVX2 alone, not
// "x86-64-v3": it has no fused multiply-add, so that both versions give the same bits, and older compilers know it. Not
// for virtual functions, which GCC cannot clone.
//
// Without clones, as one version: under sanitizers, whose runtime is not ready when the linker picks
// (MILLRACE_NO_CLONES); where the build has AVX2 anyway; without glibc or GCC.
#if defined(__GLIBC__) && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__AVX2__) && \
    !defined(MILLRACE_NO_CLONES)
#define MILLRACE_CLONES __attribute__((target_clones("default", "avx2"), flatten))
#else
#define MILLRACE_CLONES
#endif

#endif  // MILLRACE_EMBEDDING_CPU_CLONES_H_

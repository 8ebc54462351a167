// Loops that are compiled twice, for the baseline processor and for x86-64-v3 (AVX2, BMI2).
#ifndef MILLRACE_EMBEDDING_CPU_CLONES_H_
#define MILLRACE_EMBEDDING_CPU_CLONES_H_

#ifdef __linux__
#include <features.h>  // __GLIBC__
#endif

// Before a function: the dynamic linker picks the version that fits the machine, once, as it loads the library. All
// that the function calls is inlined into both versions, unless it is virtual or defined elsewhere. Both give the same
// bits: the build forbids to fuse a multiplication with an addition. Not for virtual functions, which GCC cannot clone.
// The plain form leaves it to the compiler what is inlined: for a loop that it specialises better by itself.
//
// Without clones, as one version: under sanitizers, whose runtime is not ready when the linker picks
// (MILLRACE_NO_CLONES); where the build has AVX2 anyway; without glibc or GCC.
#if defined(__GLIBC__) && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__AVX2__) && \
    !defined(MILLRACE_NO_CLONES)
#if __GNUC__ >= 12
#define MILLRACE_PLAIN_CLONES __attribute__((target_clones("default", "arch=x86-64-v3")))
#else  // which knows no levels of x86-64 here
#define MILLRACE_PLAIN_CLONES __attribute__((target_clones("default", "avx2")))
#endif
#define MILLRACE_CLONES MILLRACE_PLAIN_CLONES __attribute__((flatten))
#else
#define MILLRACE_PLAIN_CLONES
#define MILLRACE_CLONES
#endif

#endif  // MILLRACE_EMBEDDING_CPU_CLONES_H_

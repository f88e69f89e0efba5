// What compilers must be told. Unpackers and products meet in registers only where the compiler inlines them into each
// other; left to itself it stops once a file has grown by some share (GCC), after which the same code ran five times
// slower. Not under sanitizers nor without optimisation, where it would only take time to compile.
#pragma once

#if defined(_MSC_VER) && !defined(__clang__)
#define GEMMA_INLINE __forceinline
#define GEMMA_FLATTEN
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
#define GEMMA_INLINE inline
#define GEMMA_FLATTEN
#else
#define GEMMA_INLINE inline __attribute__((always_inline))  // this function into its callers
#define GEMMA_FLATTEN __attribute__((flatten))              // all it calls into this function
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define GEMMA_NOINLINE __declspec(noinline)
#else
#define GEMMA_NOINLINE __attribute__((noinline))  // registers are allocated for this function alone
#endif

// In front of a loop of one or two rounds that the compiler would make eight of.
#if defined(__clang__)
#define GEMMA_NO_UNROLL _Pragma("clang loop unroll(disable)")
#elif defined(__GNUC__)
#define GEMMA_NO_UNROLL _Pragma("GCC unroll 1")
#else
#define GEMMA_NO_UNROLL
#endif

// Asks for a line of memory before it is needed.
#pragma once

#ifdef _MSC_VER
#include <intrin.h>
#endif

namespace gemma {

// A hint: any address is allowed.
inline void prefetch_line([[maybe_unused]] const void* address) {
#if !defined(_MSC_VER)
  __builtin_prefetch(address);
#elif defined(_M_X64)
  _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0);
#endif
}

// Tables whose entries lie all over memory are filled with this many entries asked for ahead.
inline constexpr int kPrefetchAhead = 8;

}  // namespace gemma

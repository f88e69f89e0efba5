// Products of bytes with AVX-512 VNNI, internal to each file that includes it (all are compiled with the same flags).
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

// Four bytes of x in every lane.
inline __m512i broadcast4(const int8_t* x) {
  int32_t four = 0;
  std::memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

// sum += codes (unsigned) times x (signed), four products in each lane. Written out, because compilers copy the sums of the
// intrinsic from register to register, or keep them in memory: with GCC 12 up to one copy for two products.
inline void add_products(__m512i& sum, __m512i codes, __m512i x) {
#if defined(__GNUC__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
#else
  sum = _mm512_dpbusd_epi32(sum, codes, x);
#endif
}

// Four bytes of x for all lanes.
inline void add_products(__m512i& sum, __m512i codes, const int8_t* x) {
#if defined(__GNUC__)
  using Four [[gnu::may_alias, gnu::aligned(1)]] = int32_t;
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*reinterpret_cast<const Four*>(x)));
#else
  add_products(sum, codes, broadcast4(x));
#endif
}

}  // namespace

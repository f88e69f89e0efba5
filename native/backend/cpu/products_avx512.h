// Products of bytes with AVX-512 VNNI, internal to each file that includes it (all are compiled with the same flags).
//
// Written out, because the registers of a tile of sums are all there are. Compilers copy the sums of the intrinsic from
// register to register or keep them in memory (GCC 12: up to one copy for two products), or load so far ahead that sums
// must leave their registers (clang 19: 26 times in a tile's 96 products). These stay in the order they are called in.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

// Four bytes of x in every lane.
inline __m512i broadcast4(const int8_t* x) {
#if defined(__GNUC__)
  using Four [[gnu::may_alias, gnu::aligned(1)]] = int32_t;
  __m512i four;
  asm volatile("vpbroadcastd %1, %0" : "=v"(four) : "m"(*reinterpret_cast<const Four*>(x)));
  return four;
#else
  int32_t four = 0;
  std::memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
#endif
}

// 64 aligned bytes.
inline __m512i load_codes(const uint8_t* codes) {
#if defined(__GNUC__)
  __m512i loaded;
  asm volatile("vmovdqa64 %1, %0" : "=v"(loaded) : "m"(*reinterpret_cast<const __m512i*>(codes)));
  return loaded;
#else
  return _mm512_load_si512(codes);
#endif
}

// sum += codes (unsigned) times x (signed), four products in each lane.
inline void add_products(__m512i& sum, __m512i codes, __m512i x) {
#if defined(__GNUC__)
  asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
#else
  sum = _mm512_dpbusd_epi32(sum, codes, x);
#endif
}

// Four bytes of x for all lanes.
inline void add_products(__m512i& sum, __m512i codes, const int8_t* x) {
#if defined(__GNUC__)
  using Four [[gnu::may_alias, gnu::aligned(1)]] = int32_t;
  asm volatile("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*reinterpret_cast<const Four*>(x)));
#else
  add_products(sum, codes, broadcast4(x));
#endif
}

}  // namespace

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

// broadcast4: four bytes of x in every lane. load_codes: 64 aligned bytes. add_products: sum += codes (unsigned) times
// x (signed), four products in each lane; x a register, or four bytes for all lanes.
#if defined(__GNUC__)

using Four [[gnu::may_alias, gnu::aligned(1)]] = int32_t;

inline __m512i broadcast4(const int8_t* x) {
  __m512i four;
  asm volatile("vpbroadcastd %1, %0" : "=v"(four) : "m"(*reinterpret_cast<const Four*>(x)));
  return four;
}
inline __m512i load_codes(const uint8_t* codes) {
  __m512i loaded;
  asm volatile("vmovdqa64 %1, %0" : "=v"(loaded) : "m"(*reinterpret_cast<const __m512i*>(codes)));
  return loaded;
}
inline void add_products(__m512i& sum, __m512i codes, __m512i x) {
  asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(x));
}
inline void add_products(__m512i& sum, __m512i codes, const int8_t* x) {
  asm volatile("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*reinterpret_cast<const Four*>(x)));
}

#else

inline __m512i broadcast4(const int8_t* x) {
  int32_t four = 0;
  std::memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}
inline __m512i load_codes(const uint8_t* codes) {
  return _mm512_load_si512(codes);
}
inline void add_products(__m512i& sum, __m512i codes, __m512i x) {
  sum = _mm512_dpbusd_epi32(sum, codes, x);
}
inline void add_products(__m512i& sum, __m512i codes, const int8_t* x) {
  add_products(sum, codes, broadcast4(x));
}

#endif

}  // namespace

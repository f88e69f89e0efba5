// Included before llama.cpp's own code when it is built. GCC's intrinsic for AMX's configuration does not tell the
// compiler that it reads 64 bytes, so that GCC 12 leaves out the stores before it and llama-bench dies of an illegal
// instruction.
#pragma once
#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
#include <immintrin.h>
static inline void load_tile_configuration(const void* config) {
  struct Bytes {
    char bytes[64];
  };
  __asm__ volatile("ldtilecfg\t%X0" ::"m"(*static_cast<const Bytes*>(config)));
}
#define _tile_loadconfig load_tile_configuration
#endif

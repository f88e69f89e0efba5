// A hash of bytes with 64 bits: against accidents, not against those who look for collisions.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace gemma {

// splitmix64's step between states.
inline constexpr uint64_t kGoldenRatio = 0x9e3779b97f4a7c15u;

// The finalizer of splitmix64 (public domain, Sebastiano Vigna): every bit of x changes half of the result's.
inline uint64_t mix_bits(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Goes on from a hash. Each step maps hashes one to one: data of one size that differ in one word have other hashes.
inline uint64_t hash_bytes(uint64_t hash, std::span<const std::byte> data) {
  for (size_t i = 0; i < data.size(); i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, data.data() + i, std::min(sizeof word, data.size() - i));
    hash = mix_bits((hash ^ word) + kGoldenRatio);
  }
  return hash;
}

// Of a value without padding.
template <class T>
uint64_t hash_value(uint64_t hash, const T& value) {
  return hash_bytes(hash, std::as_bytes(std::span(&value, 1)));
}

}  // namespace gemma

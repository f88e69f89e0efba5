// What kernels and the code around them count with. Internal to each file that includes it: of an inline function with
// external linkage, such as std::min, the linker keeps one copy for all, and this could be one with instructions that
// the processor lacks.
#pragma once

#include <math.h>

#include <cstddef>
#include <limits>

namespace gemma::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kMaxFloat = std::numeric_limits<float>::max();
constexpr int kMaxInt = std::numeric_limits<int>::max();

// As std::min and std::max: the first one when they are equal, or one is NaN.
template <class T>
constexpr T least(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T most(T a, T b) {
  return a < b ? b : a;
}

inline float square_root(float x) {
  return sqrtf(x);
}

constexpr size_t round_up(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Row i of x, whose rows are dim values long. 64 bits, for a matrix may have more than 2^31 values.
template <class T>
inline T* row_of(T* x, ptrdiff_t i, ptrdiff_t dim) {
  return x + i * dim;
}

}  // namespace
}  // namespace gemma::cpu

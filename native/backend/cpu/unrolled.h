// Loops whose indices are constants: immediate operands, and arrays of registers that the compiler takes apart (GCC 12
// stores those that it indexes in a loop to the stack, each time round). Internal to each file that includes it.
#pragma once

#include <utility>

namespace {

// std::integral_constant with functions of this file's own (small_math.h says why).
template <int n>
struct Constant {
  static constexpr int value = n;
  constexpr operator int() const { return n; }
};

// f(Constant<0>), ... n - 1.
template <int n, class F>
[[gnu::always_inline]] inline void unrolled(const F& f) {
  [&]<int... i>(std::integer_sequence<int, i...>)
      __attribute__((always_inline)) { (f(Constant<i>{}), ...); }(std::make_integer_sequence<int, n>{});
}

}  // namespace

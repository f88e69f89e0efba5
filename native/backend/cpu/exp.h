// e^x for any vector type; internal to each file that includes it.
//
// V has Float, set1, mul, fma(a, b, c) = a * b + c, fnma(a, b, c) = c - a * b, clamp(x, low, high), which leaves NaN,
// round (to nearest, ties to even), and scale(p, n) = p * 2^n for whole n in -159..128, rounded once.
#pragma once

#include "backend/cpu/kernels.h"

namespace gemma::cpu {
namespace {

// 2^n * e^r with |r| <= ln(2) / 2 and a Taylor polynomial of degree 7, about 1 ulp. -infinity gives 0, NaN stays NaN.
template <class V>
inline typename V::Float exp_of(typename V::Float x) {
  using Float = typename V::Float;
  x = V::clamp(x, -110.0f, 89.0f);
  const Float n = V::round(V::mul(x, V::set1(kLog2E)));
  Float r = V::fnma(n, V::set1(0.693145752f), x);
  r = V::fnma(n, V::set1(1.42860677e-6f), r);
  Float p = V::set1(1.0f / 5040);
  p = V::fma(p, r, V::set1(1.0f / 720));
  p = V::fma(p, r, V::set1(1.0f / 120));
  p = V::fma(p, r, V::set1(1.0f / 24));
  p = V::fma(p, r, V::set1(1.0f / 6));
  p = V::fma(p, r, V::set1(0.5f));
  p = V::fma(p, r, V::set1(1.0f));
  p = V::fma(p, r, V::set1(1.0f));
  return V::scale(p, n);
}

}  // namespace
}  // namespace gemma::cpu

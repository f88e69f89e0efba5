// Scales are found by trying: codes are rounded with several steps, each set of codes gives the scale (and minimum) of
// least weighted square error in closed form, and the best is kept. In super-blocks the scales are codes too: for each
// part the neighbouring codes are tried with what rounding has made of the others, then the two scales of the whole
// super-block are fitted again to all codes. The weights of errors and the ranges of the first step are those of
// ggml-quants (quantize_row_q4_K_ref); what comes after it is not there and is why errors are smaller.
//
// Sums are kept in eight lanes which are added up in one order, whatever the width of vectors: bytes are the same on
// all machines.
#include "quant/quantize_k.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/half.h"

namespace gemma {
namespace {

constexpr int kSuper = 256;

// No half float scales such values: the squares of the others do not overflow.
constexpr float kLargest = 1e9f;
// Values below it are zero whatever the scale.
constexpr float kSmallest = 1e-15f;

// Four values side by side: what every processor of the two families has.
using Quad = float __attribute__((vector_size(16)));

Quad load(const float* p) {
  Quad q;
  std::memcpy(&q, p, sizeof q);
  return q;
}
Quad all(float x) {
  return Quad{x, x, x, x};
}

// The nearest integer, ties to even, for sizes below 2^22.
template <class T>
T nearest(T x) {
  constexpr float kRound = 0x1.8p23f;
  return (x + kRound) - kRound;
}
// T: float or Quad.
template <class T>
T clamp(T x, T low, T high) {
  const T at_least = x < low ? low : x;
  return at_least > high ? high : at_least;
}

// Eight sums side by side.
struct Lanes {
  Quad even = {};
  Quad odd = {};

  float sum() const {
    const Quad s = even + odd;
    return (s[0] + s[2]) + (s[1] + s[3]);
  }
};

// Calls f(j, quad of lanes of each sum) for each four of n elements, n a multiple of 8.
template <int kN, class F, class... Sums>
void each_quad(const F& f, Sums&... sums) {
  for (int j = 0; j < kN; j += 8) {
    f(j, sums.even...);
    f(j + 4, sums.odd...);
  }
}

float stored_half(float value) {
  return f16_to_f32(f32_to_f16(value));
}
bool put_half(float value, uint8_t* out) {
  const uint16_t half = f32_to_f16(value);
  std::memcpy(out, &half, sizeof half);
  return (half & 0x7c00u) != 0x7c00u;
}

float largest_size(const float* x, int n) {
  float largest = 0;
  for (int j = 0; j < n; ++j) largest = std::max(largest, std::fabs(x[j]));
  return largest;
}
// The value that is largest in size, with its sign.
float largest_signed(const float* x, int n) {
  float largest = 0;
  for (int j = 0; j < n; ++j) largest = std::fabs(x[j]) > std::fabs(largest) ? x[j] : largest;
  return largest;
}

template <int kN>
float mean_square(const float* x) {
  Lanes sum;
  each_quad<kN>([&](int j, Quad& q) { q += load(x + j) * load(x + j); }, sum);
  return sum.sum() / static_cast<float>(kN);
}

// The weight of the square of each value's error. importance, where it says anything, times the value's size, which is
// damped where it is small; else the size alone: errors of large values have been seen to count more (ggml-quants).
// Importance is scaled to at most 1, so that none overflows.
template <int kN>
void weigh(const float* x, const float* importance, float* weights) {
  const float largest = importance == nullptr ? 0 : largest_size(importance, kN);
  const float factor = 1 / largest;
  if (importance != nullptr && largest > 0 && std::isfinite(factor)) {
    const float square = 2 * mean_square<kN>(x);
    for (int j = 0; j < kN; ++j) weights[j] = importance[j] * factor * std::sqrt(square + x[j] * x[j]);
    return;
  }
  for (int first = 0; first < kN; first += 32) {
    const float mean = std::sqrt(mean_square<32>(x + first));
    for (int j = first; j < first + 32; ++j) weights[j] = mean + std::fabs(x[j]);
  }
}

// ---- scale and minimum: value = scale * code - min, code 0..max, min >= 0

struct Affine {
  float scale = 0;
  float min = 0;
};

struct AffineSums {
  float l = 0;   // of weight * code
  float ll = 0;  // of weight * code^2
  float xl = 0;  // of weight * value * code
};

// Codes are those of (x + min) * inverse.
template <int kN>
AffineSums affine_sums(const float* x, const float* w, float min, float inverse, float max_code) {
  Lanes l, ll, xl;
  each_quad<kN>(
      [&](int j, Quad& l4, Quad& ll4, Quad& xl4) {
        const Quad x4 = load(x + j);
        const Quad code = clamp(nearest((x4 + min) * inverse), all(0), all(max_code));
        const Quad wl = load(w + j) * code;
        l4 += wl;
        ll4 += wl * code;
        xl4 += wl * x4;
      },
      l, ll, xl);
  return {l.sum(), ll.sum(), xl.sum()};
}

struct AffineError {
  float l = 0;  // of weight * code
  float error = 0;
};

template <int kN>
AffineError affine_error(const float* x, const float* w, float scale, float min, float inverse, float max_code) {
  Lanes l, error;
  each_quad<kN>(
      [&](int j, Quad& l4, Quad& error4) {
        const Quad x4 = load(x + j);
        const Quad w4 = load(w + j);
        const Quad code = clamp(nearest((x4 + min) * inverse), all(0), all(max_code));
        const Quad off = scale * code - min - x4;
        l4 += w4 * code;
        error4 += w4 * off * off;
      },
      l, error);
  return {l.sum(), error.sum()};
}

struct WeightedSums {
  float w = 0;
  float x = 0;  // of weight * value
};

template <int kN>
WeightedSums weighted_sums(const float* x, const float* w) {
  Lanes sum_w, sum_x;
  each_quad<kN>(
      [&](int j, Quad& w4, Quad& x4) {
        w4 += load(w + j);
        x4 += load(w + j) * load(x + j);
      },
      sum_w, sum_x);
  return {sum_w.sum(), sum_x.sum()};
}

// needs_min: min >= 0, as super-blocks store it.
template <int kN>
Affine fit_affine(const float* x, const float* w, int max_code, bool needs_min) {
  float low = *std::min_element(x, x + kN);
  const float high = *std::max_element(x, x + kN);
  if (needs_min && low > 0) low = 0;
  const float range = high - low;
  if (!(range > kSmallest)) return {0, -low};
  const WeightedSums sums = weighted_sums<kN>(x, w);
  const float top = static_cast<float>(max_code);
  Affine best = {range / top, -low};
  float best_gain = -1;  // of the squares, what the fit explains
  const auto take = [&](const AffineSums& s) {
    Affine fit;
    float gain = -1;
    const float det = sums.w * s.ll - s.l * s.l;
    if (det > 0) {
      fit.scale = (sums.w * s.xl - sums.x * s.l) / det;
      fit.min = (s.l * s.xl - s.ll * sums.x) / det;
      gain = fit.scale * s.xl - fit.min * sums.x;
    }
    if ((det <= 0 || fit.min < 0) && needs_min && s.ll > 0) {
      fit = {s.xl / s.ll, 0};
      gain = fit.scale * s.xl;
    }
    if (fit.scale > 0 && gain > best_gain) {
      best_gain = gain;
      best = fit;
    }
  };
  constexpr int kTries = 11;
  for (int i = 0; i < kTries; ++i) {
    const float steps = top + (static_cast<float>(i) - 5) * 0.2f;
    take(affine_sums<kN>(x, w, -low, steps / range, top));
  }
  take(affine_sums<kN>(x, w, best.min, 1 / best.scale, top));
  return best;
}

// Scales and minimums of the eight parts of a super-block, as they are stored.
struct AffineScales {
  float d = 0;
  float dmin = 0;
  int scale[8] = {};
  int min[8] = {};
};

// The error of a part with these codes of scale and minimum; inverse: of the scale.
AffineError part_error(const float* x, const float* w, const AffineScales& s, int scale, int min, float max_code) {
  const float step = s.d * static_cast<float>(scale);
  return affine_error<32>(x, w, step, s.dmin * static_cast<float>(min), step > 0 ? 1 / step : 0, max_code);
}

void choose_codes(const float* x, const float* w, const Affine* fits, float max_code, AffineScales* s, float* total) {
  *total = 0;
  for (int k = 0; k < 8; ++k) {
    const auto code_of = [](float value, float unit) {
      return unit > 0 ? static_cast<int>(clamp(nearest(value / unit), 0.0f, 63.0f)) : 0;
    };
    const float* part = x + 32 * k;
    const float* weights = w + 32 * k;
    const WeightedSums sums = weighted_sums<32>(part, weights);
    const int middle = code_of(fits[k].scale, s->d);
    const int first_min = code_of(fits[k].min, s->dmin);
    float best = -1;
    for (int scale = std::max(0, middle - 1); scale <= std::min(63, middle + 1); ++scale) {
      // The minimum that goes with this scale, twice: codes change with it.
      int min = first_min;
      for (int round = 0; round < 2; ++round) {
        const AffineError now = part_error(part, weights, *s, scale, min, max_code);
        if (best < 0 || now.error < best) {
          best = now.error;
          s->scale[k] = scale;
          s->min[k] = min;
        }
        const float fitting = sums.w > 0 ? (s->d * static_cast<float>(scale) * now.l - sums.x) / sums.w : 0;
        const int next = code_of(fitting, s->dmin);
        if (next == min) break;
        min = next;
      }
    }
    *total += best;
  }
}

// d and dmin of least error for the codes that the parts have.
void fit_super(const float* x, const float* w, float max_code, AffineScales* s) {
  float aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
  for (int k = 0; k < 8; ++k) {
    const float scale = static_cast<float>(s->scale[k]);
    const float min = static_cast<float>(s->min[k]);
    const float step = s->d * scale;
    const WeightedSums sums = weighted_sums<32>(x + 32 * k, w + 32 * k);
    const AffineSums a = affine_sums<32>(x + 32 * k, w + 32 * k, s->dmin * min, step > 0 ? 1 / step : 0, max_code);
    aa += scale * scale * a.ll;
    ab += scale * min * a.l;
    bb += min * min * sums.w;
    ax += scale * a.xl;
    bx += min * sums.x;
  }
  // Least squares of x = d * a - dmin * b.
  const float det = aa * bb - ab * ab;
  float d = s->d;
  float dmin = s->dmin;
  if (det > 1e-6f * aa * bb) {
    d = (ax * bb - ab * bx) / det;
    dmin = (ax * ab - aa * bx) / det;
  }
  if (!(det > 1e-6f * aa * bb) || dmin < 0) {
    dmin = bb > 0 ? s->dmin : 0;
    d = aa > 0 ? (ax + dmin * ab) / aa : 0;
  }
  s->d = stored_half(std::max(d, 0.0f));
  s->dmin = stored_half(std::max(dmin, 0.0f));
}

// Eight 6-bit scales and minimums in 12 bytes: see k_scales() in dequantize.cpp.
void put_scales(const AffineScales& s, uint8_t* out) {
  for (int k = 0; k < 4; ++k) {
    out[k] = static_cast<uint8_t>(s.scale[k] | (s.scale[k + 4] >> 4) << 6);
    out[k + 4] = static_cast<uint8_t>(s.min[k] | (s.min[k + 4] >> 4) << 6);
    out[k + 8] = static_cast<uint8_t>((s.scale[k + 4] & 15) | (s.min[k + 4] & 15) << 4);
  }
}

// codes: of all values. Writes d, dmin and the scales.
template <int kMax>
bool quantize_affine_super(const float* x, const float* importance, uint8_t* out, uint8_t* codes) {
  const float largest = largest_size(x, kSuper);
  if (!(largest <= kLargest)) return false;
  constexpr float kTop = static_cast<float>(kMax);
  float w[kSuper];
  weigh<kSuper>(x, importance, w);
  Affine fits[8];
  float max_scale = 0;
  float max_min = 0;
  for (int k = 0; k < 8; ++k) {
    fits[k] = fit_affine<32>(x + 32 * k, w + 32 * k, kMax, true);
    max_scale = std::max(max_scale, fits[k].scale);
    max_min = std::max(max_min, fits[k].min);
  }
  AffineScales s;
  s.d = stored_half(max_scale / 63);
  s.dmin = stored_half(max_min / 63);
  float error = 0;
  choose_codes(x, w, fits, kTop, &s, &error);
  for (int round = 0; round < 2; ++round) {
    AffineScales next = s;
    fit_super(x, w, kTop, &next);
    if (next.d == s.d && next.dmin == s.dmin) break;
    float next_error = 0;
    for (int k = 0; k < 8; ++k) {
      next_error += part_error(x + 32 * k, w + 32 * k, next, next.scale[k], next.min[k], kTop).error;
    }
    if (!(next_error < error)) break;
    s = next;
    error = next_error;
  }
  for (int k = 0; k < 8; ++k) {
    const float step = s.d * static_cast<float>(s.scale[k]);
    const float min = s.dmin * static_cast<float>(s.min[k]);
    const float inverse = step > 0 ? 1 / step : 0;
    for (int j = 32 * k; j < 32 * k + 32; ++j)
      codes[j] = static_cast<uint8_t>(clamp(nearest((x[j] + min) * inverse), 0.0f, kTop));
  }
  const bool ok = put_half(s.d, out);
  put_scales(s, out + 4);
  return put_half(s.dmin, out + 2) && ok;
}

bool quantize_q4_k(const float* x, const float* importance, uint8_t* out) {
  uint8_t codes[kSuper];
  if (!quantize_affine_super<15>(x, importance, out, codes)) return false;
  for (int j = 0; j < kSuper; j += 64) {
    for (int i = 0; i < 32; ++i) out[16 + j / 2 + i] = static_cast<uint8_t>(codes[j + i] | codes[j + 32 + i] << 4);
  }
  return true;
}

bool quantize_q5_k(const float* x, const float* importance, uint8_t* out) {
  uint8_t codes[kSuper];
  if (!quantize_affine_super<31>(x, importance, out, codes)) return false;
  std::memset(out + 16, 0, 32);
  for (int j = 0; j < kSuper; j += 64) {
    for (int i = 0; i < 32; ++i) {
      const int low = codes[j + i];
      const int high = codes[j + 32 + i];
      out[48 + j / 2 + i] = static_cast<uint8_t>((low & 15) | (high & 15) << 4);
      out[16 + i] = static_cast<uint8_t>(out[16 + i] | (low >> 4) << (j / 32) | (high >> 4) << (j / 32 + 1));
    }
  }
  return true;
}

// ---- one scale: value = scale * code, or scale * the value of a code

struct ScaleSums {
  float ll = 0;  // of weight * level^2
  float xl = 0;  // of weight * value * level
};

// The level that a value, divided by the scale, is stored as: whole numbers kLow..kHigh.
template <int kLow, int kHigh>
struct WholeLevels {
  static constexpr int kEnds[] = {kLow};  // the other end is as good with the other sign
  static float level(float x) { return clamp(nearest(x), static_cast<float>(kLow), static_cast<float>(kHigh)); }
  static Quad level(Quad x) { return clamp(nearest(x), all(static_cast<float>(kLow)), all(static_cast<float>(kHigh))); }
};

constexpr int kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// The code of each half step from -128 on. Every border between two levels is a multiple of a half.
struct Iq4Codes {
  uint8_t of[512] = {};
  float levels[512] = {};
  constexpr Iq4Codes() {
    for (int i = 0; i < 512; ++i) {
      int code = 0;
      while (code < 15 && i - 256 >= kIq4Values[code] + kIq4Values[code + 1]) ++code;
      of[i] = static_cast<uint8_t>(code);
      levels[i] = static_cast<float>(kIq4Values[code]);
    }
  }
};
constexpr Iq4Codes kIq4Codes;
struct Iq4Levels {
  static constexpr int kEnds[] = {-127, 113};
  static int index(float x) { return static_cast<int>(clamp(2 * x + 256, 0.0f, 511.0f)); }
  static Quad level(Quad x) {
    return Quad{kIq4Codes.levels[index(x[0])], kIq4Codes.levels[index(x[1])], kIq4Codes.levels[index(x[2])],
                kIq4Codes.levels[index(x[3])]};
  }
};

template <class Levels, int kN>
ScaleSums scale_sums(const float* x, const float* w, float inverse) {
  Lanes ll, xl;
  each_quad<kN>(
      [&](int j, Quad& ll4, Quad& xl4) {
        const Quad x4 = load(x + j);
        const Quad level = Levels::level(x4 * inverse);
        const Quad wl = load(w + j) * level;
        ll4 += wl * level;
        xl4 += wl * x4;
      },
      ll, xl);
  return {ll.sum(), xl.sum()};
}

// Of the squares, what is explained with a given scale: the error is that of all zeros less this.
float explained(const ScaleSums& s, float scale) {
  return 2 * scale * s.xl - scale * scale * s.ll;
}

// The value that is largest in size goes to a level at an end, or up to `spread` away from it, in steps of `step`.
template <class Levels, int kN>
float fit_scale(const float* x, const float* w, float spread, float step) {
  const float largest = largest_signed(x, kN);
  if (!(std::fabs(largest) > kSmallest)) return 0;
  float best = largest / static_cast<float>(Levels::kEnds[0]);
  float best_explained = 0;
  const auto take = [&](float inverse) {
    const ScaleSums s = scale_sums<Levels, kN>(x, w, inverse);
    if (s.ll > 0 && s.xl * s.xl > best_explained * s.ll) {
      best = s.xl / s.ll;
      best_explained = best * s.xl;
    }
  };
  const int n_tries = static_cast<int>(2 * spread / step + 1.5f);
  for (const int end : Levels::kEnds) {
    for (int i = 0; i < n_tries; ++i) take((static_cast<float>(end) - spread + step * static_cast<float>(i)) / largest);
  }
  take(1 / best);
  return best;
}

// Fits d and a scale of kLow..kHigh for each part of kN values in a super-block. Levels are of x / (d * scale).
template <class Levels, int kN, int kLow, int kHigh>
float fit_scales(const float* x, const float* w, float spread, float step, int* scales) {
  constexpr int kParts = kSuper / kN;
  float fits[kParts];
  float largest = 0;
  for (int k = 0; k < kParts; ++k) {
    fits[k] = fit_scale<Levels, kN>(x + kN * k, w + kN * k, spread, step);
    if (std::fabs(fits[k]) > std::fabs(largest)) largest = fits[k];
  }
  const float d = stored_half(largest / static_cast<float>(kLow));
  if (d == 0) {
    std::fill(scales, scales + kParts, 0);
    return 0;
  }
  const auto sums_of = [&](int k, int scale, float unit) {
    return scale == 0 ? ScaleSums{}
                      : scale_sums<Levels, kN>(x + kN * k, w + kN * k, 1 / (unit * static_cast<float>(scale)));
  };
  float total = 0;
  float ll = 0;
  float xl = 0;
  for (int k = 0; k < kParts; ++k) {
    const int middle =
        static_cast<int>(clamp(nearest(fits[k] / d), static_cast<float>(kLow), static_cast<float>(kHigh)));
    float best = -1;
    ScaleSums chosen;
    for (int scale = std::max(kLow, middle - 1); scale <= std::min(kHigh, middle + 1); ++scale) {
      const ScaleSums s = sums_of(k, scale, d);
      const float now = explained(s, d * static_cast<float>(scale));
      if (now > best) {
        best = now;
        chosen = s;
        scales[k] = scale;
      }
    }
    const float scale = static_cast<float>(scales[k]);
    ll += scale * scale * chosen.ll;
    xl += scale * chosen.xl;
    total += best;
  }
  // d once more, for the levels that were chosen. The scales stay, levels follow.
  const float next = ll > 0 ? stored_half(xl / ll) : d;
  if (next == d || next == 0) return d;
  float next_total = 0;
  for (int k = 0; k < kParts; ++k)
    next_total += explained(sums_of(k, scales[k], next), next * static_cast<float>(scales[k]));
  return next_total > total ? next : d;
}

// The inverse of a step, 0 of 0: all values get the level next to zero.
float inverse_of(float step) {
  return step != 0 ? 1 / step : 0;
}

bool quantize_q6_k(const float* x, const float* importance, uint8_t* out) {
  using Levels = WholeLevels<-32, 31>;
  if (!(largest_size(x, kSuper) <= kLargest)) return false;
  float w[kSuper];
  weigh<kSuper>(x, importance, w);
  int scales[16];
  const float d = fit_scales<Levels, 16, -128, 127>(x, w, 0.8f, 0.2f, scales);
  int codes[kSuper];
  for (int k = 0; k < 16; ++k) {
    const float inverse = inverse_of(d * static_cast<float>(scales[k]));
    for (int j = 16 * k; j < 16 * k + 16; ++j) codes[j] = static_cast<int>(Levels::level(x[j] * inverse)) + 32;
    out[192 + k] = static_cast<uint8_t>(scales[k]);
  }
  // Each half of 128: 64 bytes of nibbles (low: parts 0 and 1 of 32, high: 2 and 3), 32 bytes of two bits per part.
  for (int half = 0; half < 2; ++half) {
    const int* c = codes + 128 * half;
    for (int i = 0; i < 64; ++i) out[64 * half + i] = static_cast<uint8_t>((c[i] & 15) | (c[64 + i] & 15) << 4);
    for (int i = 0; i < 32; ++i) {
      out[128 + 32 * half + i] =
          static_cast<uint8_t>(c[i] >> 4 | (c[32 + i] >> 4) << 2 | (c[64 + i] >> 4) << 4 | (c[96 + i] >> 4) << 6);
    }
  }
  return put_half(d, out + 208);
}

// The 32 codes of values / step, two in a byte: element j and j + 16.
void put_iq4_codes(const float* x, float step, uint8_t* out) {
  const float inverse = inverse_of(step);
  for (int j = 0; j < 16; ++j) {
    const int low = kIq4Codes.of[Iq4Levels::index(x[j] * inverse)];
    const int high = kIq4Codes.of[Iq4Levels::index(x[j + 16] * inverse)];
    out[j] = static_cast<uint8_t>(low | high << 4);
  }
}

bool quantize_iq4_xs(const float* x, const float* importance, uint8_t* out) {
  if (!(largest_size(x, kSuper) <= kLargest)) return false;
  float w[kSuper];
  weigh<kSuper>(x, importance, w);
  int scales[8];
  const float d = fit_scales<Iq4Levels, 32, -32, 31>(x, w, 8, 2, scales);
  uint32_t high = 0;
  std::memset(out + 4, 0, 4);
  for (int k = 0; k < 8; ++k) {
    const int code = scales[k] + 32;
    out[4 + k / 2] = static_cast<uint8_t>(out[4 + k / 2] | (code & 15) << (4 * (k % 2)));
    high |= static_cast<uint32_t>(code >> 4) << (2 * k);
    put_iq4_codes(x + 32 * k, d * static_cast<float>(scales[k]), out + 8 + 16 * k);
  }
  out[2] = static_cast<uint8_t>(high);
  out[3] = static_cast<uint8_t>(high >> 8);
  return put_half(d, out);
}

bool quantize_iq4_nl(const float* x, const float* importance, uint8_t* out) {
  if (!(largest_size(x, 32) <= kLargest)) return false;
  float w[32];
  weigh<32>(x, importance, w);
  const float d = stored_half(fit_scale<Iq4Levels, 32>(x, w, 8, 2));
  put_iq4_codes(x, d, out + 2);
  return put_half(d, out);
}

// ---- blocks of 32 whose errors have weights

void put_nibbles(const int* codes, uint8_t* out) {
  for (int j = 0; j < 16; ++j) out[j] = static_cast<uint8_t>((codes[j] & 15) | (codes[j + 16] & 15) << 4);
}
void put_fifth_bits(const int* codes, uint8_t* out) {
  uint32_t bits = 0;
  for (int j = 0; j < 32; ++j) bits |= static_cast<uint32_t>(codes[j] >> 4) << j;
  for (int i = 0; i < 4; ++i) out[i] = static_cast<uint8_t>(bits >> (8 * i));
}

template <int kBits>
bool quantize_symmetric(const float* x, const float* importance, uint8_t* out) {
  constexpr int kZero = 1 << (kBits - 1);
  using Levels = WholeLevels<-kZero, kZero - 1>;
  if (!(largest_size(x, 32) <= kLargest)) return false;
  float w[32];
  weigh<32>(x, importance, w);
  const float d = stored_half(fit_scale<Levels, 32>(x, w, 1, 0.1f));
  const float inverse = inverse_of(d);
  int codes[32];
  for (int j = 0; j < 32; ++j) codes[j] = static_cast<int>(Levels::level(x[j] * inverse)) + kZero;
  if (kBits == 5) put_fifth_bits(codes, out + 2);
  put_nibbles(codes, out + (kBits == 5 ? 6 : 2));
  return put_half(d, out);
}

template <int kBits>
bool quantize_affine(const float* x, const float* importance, uint8_t* out) {
  constexpr int kMax = (1 << kBits) - 1;
  if (!(largest_size(x, 32) <= kLargest)) return false;
  float w[32];
  weigh<32>(x, importance, w);
  const Affine fit = fit_affine<32>(x, w, kMax, false);
  const float d = stored_half(fit.scale);
  const float min = stored_half(-fit.min);
  const float inverse = inverse_of(d);
  int codes[32];
  for (int j = 0; j < 32; ++j)
    codes[j] = static_cast<int>(clamp(nearest((x[j] - min) * inverse), 0.0f, static_cast<float>(kMax)));
  if (kBits == 5) put_fifth_bits(codes, out + 4);
  put_nibbles(codes, out + (kBits == 5 ? 8 : 4));
  const bool ok = put_half(d, out);
  return put_half(min, out + 2) && ok;
}

using QuantizeBlock = bool (*)(const float* x, const float* importance, uint8_t* out);

QuantizeBlock find_search(TensorType type) {
  switch (type) {
    case TensorType::kQ4_0: return quantize_symmetric<4>;
    case TensorType::kQ4_1: return quantize_affine<4>;
    case TensorType::kQ5_0: return quantize_symmetric<5>;
    case TensorType::kQ5_1: return quantize_affine<5>;
    case TensorType::kQ4_K: return quantize_q4_k;
    case TensorType::kQ5_K: return quantize_q5_k;
    case TensorType::kQ6_K: return quantize_q6_k;
    case TensorType::kIQ4_NL: return quantize_iq4_nl;
    case TensorType::kIQ4_XS: return quantize_iq4_xs;
    default: return nullptr;
  }
}

}  // namespace

bool can_search(TensorType type) {
  return find_search(type) != nullptr;
}

bool quantize_row_by_search(TensorType type, const float* src, uint8_t* dst, int64_t n, const float* importance) {
  const QuantizeBlock quantize = find_search(type);
  if (quantize == nullptr) {
    throw Error(ErrorCode::kInternal, "", std::string("nothing quantises to ") + type_traits(type).name);
  }
  const TypeTraits& traits = type_traits(type);
  bool ok = true;
  for (int64_t i = 0; i < n; i += traits.block_elems, dst += traits.block_bytes)
    ok &= quantize(src + i, importance == nullptr ? nullptr : importance + i, dst);
  return ok;
}

}  // namespace gemma

// A tile of attention with NEON: a page of keys is widened to float once for all rows of the tile, scores are formed in
// register tiles of 2 rows by 4 positions, the running softmax goes page by page, values likewise. What a row gets does
// not depend on which rows share its tile.
#include <arm_neon.h>

#include <cstring>

#include "backend/cpu/kernels_neon.h"
#include "backend/cpu/lanes_neon.h"
#include "backend/cpu/small_math.h"
#include "backend/cpu/unrolled.h"
#include "backend/cpu/vector_neon.h"

namespace gemma::cpu {
namespace {

constexpr int kVectors = kPagePositions / 4;  // of a row of scores

inline float32x4_t load_halves(const std::byte* p) {
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(reinterpret_cast<const uint8_t*>(p))));
}

// Rows of a page, positions first..last-1, to float [position][head_stride]; what is past head_dim stays as it is.
void widen(const AttentionTile& tile, const std::byte* rows, int first, int last, float* out, size_t head_stride) {
  const size_t head_dim = static_cast<size_t>(tile.head_dim);
  for (int p = first; p < last; ++p) {
    const std::byte* row = rows + static_cast<size_t>(p) * tile.row_bytes;
    float* o = out + static_cast<size_t>(p) * head_stride;
    if (tile.type == KvType::kF32) {
      std::memcpy(o, row, head_dim * 4);
    } else if (tile.type == KvType::kF16) {
      size_t j = 0;
      for (; j + 4 <= head_dim; j += 4) vst1q_f32(o + j, load_halves(row + 2 * j));
      if (j < head_dim) {
        std::byte halves[8] = {};
        float floats[4];
        std::memcpy(halves, row + 2 * j, 2 * (head_dim - j));
        vst1q_f32(floats, load_halves(halves));
        std::memcpy(o + j, floats, (head_dim - j) * sizeof(float));
      }
    } else {
      for (size_t b = 0; b < head_dim / 32; ++b) {
        const std::byte* block = row + b * kKvBlockBytes;
        uint16_t half = 0;
        std::memcpy(&half, block, 2);
        const float d = vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half))), 0);
        for (size_t i = 0; i < 4; ++i) {
          const int16x8_t q =
              vmovl_s8(vreinterpret_s8_u8(vld1_u8(reinterpret_cast<const uint8_t*>(block + 2 + 8 * i))));
          vst1q_f32(o + b * 32 + 8 * i, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(q))), d));
          vst1q_f32(o + b * 32 + 8 * i + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(q))), d));
        }
      }
    }
  }
}

// scores[r][p] of two rows of q (copies, zero padded) and positions p..p+3.
void score_tile(const float* q, size_t stride, const float* k, float* scores) {
  float32x4_t acc[2][4][2];  // eight chains of additions per score
  unrolled<4>([&](auto p) __attribute__((always_inline)) {
    acc[0][p][0] = acc[0][p][1] = acc[1][p][0] = acc[1][p][1] = vdupq_n_f32(0);
  });
  for (size_t j = 0; j < stride; j += 8) {
    unrolled<2>([&](auto h) __attribute__((always_inline)) {
      const float32x4_t q0 = vld1q_f32(q + j + 4 * h);
      const float32x4_t q1 = vld1q_f32(q + stride + j + 4 * h);
      unrolled<4>([&](auto p) __attribute__((always_inline)) {
        const float32x4_t kv = vld1q_f32(k + p * stride + j + 4 * h);
        acc[0][p][h] = vfmaq_f32(acc[0][p][h], q0, kv);
        acc[1][p][h] = vfmaq_f32(acc[1][p][h], q1, kv);
      });
    });
  }
  unrolled<2>([&](auto r) __attribute__((always_inline)) {
    const auto four = [&](int p) __attribute__((always_inline)) { return vaddq_f32(acc[r][p][0], acc[r][p][1]); };
    vst1q_f32(scores + r * kPagePositions, vpaddq_f32(vpaddq_f32(four(0), four(1)), vpaddq_f32(four(2), four(3))));
  });
}

// out[4 rows][stride] = out * rescale + weights[4][32] x v[first..last-1][stride].
void accumulate(float* out, size_t stride, const float* weights, const float* rescale, const float* v, int first,
                int last) {
  for (size_t j = 0; j < stride; j += 16) {
    float32x4_t acc[4][4];
    for (size_t r = 0; r < 4; ++r) {
      for (size_t i = 0; i < 4; ++i) acc[r][i] = vmulq_n_f32(vld1q_f32(out + r * stride + j + 4 * i), rescale[r]);
    }
    for (size_t p = static_cast<size_t>(first); p < static_cast<size_t>(last); ++p) {
      float32x4_t values[4];
      for (size_t i = 0; i < 4; ++i) values[i] = vld1q_f32(v + p * stride + j + 4 * i);
      for (size_t r = 0; r < 4; ++r) {
        const float w = weights[r * kPagePositions + p];
        for (size_t i = 0; i < 4; ++i) acc[r][i] = vfmaq_n_f32(acc[r][i], values[i], w);
      }
    }
    for (size_t r = 0; r < 4; ++r) {
      for (size_t i = 0; i < 4; ++i) vst1q_f32(out + r * stride + j + 4 * i, acc[r][i]);
    }
  }
}

// One page of one row's softmax: scores of positions from..to-1 of the page become weights (the others 0). Returns the
// factor that what the row has gathered so far is to be multiplied with.
float weights_of(float* row, int from, int to, float* max, float* sum) {
  constexpr int32_t kFirst[4] = {0, 1, 2, 3};
  float32x4_t score[kVectors];
  uint32x4_t visible[kVectors];
  float32x4_t top = vdupq_n_f32(-kInfinity);
  for (int i = 0; i < kVectors; ++i) {
    const int32x4_t p = vaddq_s32(vld1q_s32(kFirst), vdupq_n_s32(4 * i));
    visible[i] = vandq_u32(vcgeq_s32(p, vdupq_n_s32(from)), vcltq_s32(p, vdupq_n_s32(to)));
    score[i] = vbslq_f32(visible[i], vld1q_f32(row + 4 * i), vdupq_n_f32(-kInfinity));
    // maxnm returns the other operand for NaN; a NaN score still reaches the sum through exp(NaN - max).
    top = vmaxnmq_f32(top, score[i]);
  }
  const float page_max = vmaxnmvq_f32(top);
  const float new_max = *max < page_max ? page_max : *max;
  float32x4_t total[2] = {vdupq_n_f32(0), vdupq_n_f32(0)};
  for (int i = 0; i < kVectors; ++i) {
    const uint32x4_t e = vreinterpretq_u32_f32(Vector128::exp(vsubq_f32(score[i], vdupq_n_f32(new_max))));
    const float32x4_t weight = vreinterpretq_f32_u32(vandq_u32(e, visible[i]));
    vst1q_f32(row + 4 * i, weight);
    total[i % 2] = vaddq_f32(total[i % 2], weight);
  }
  const float rescale = vgetq_lane_f32(Vector128::exp(vdupq_n_f32(*max - new_max)), 0);
  *sum = *sum * rescale + sum_lanes(vaddq_f32(total[0], total[1]));
  *max = new_max;
  return rescale;
}

}  // namespace

void attention_neon(const AttentionTile& tile, const Scratch& scratch) {
  const int head_dim = tile.head_dim;
  const size_t stride = static_cast<size_t>((head_dim + 15) / 16 * 16);
  const int n_rows4 = (tile.n_rows + 3) / 4 * 4;
  float* q = reinterpret_cast<float*>(scratch.data);
  float* k = q + kAttentionRows * stride;
  float* v = k + kPagePositions * stride;
  float* out = v + kPagePositions * stride;
  float* scores = out + kAttentionRows * stride;
  std::memset(q, 0, kAttentionRows * stride * sizeof(float));
  std::memset(out, 0, kAttentionRows * stride * sizeof(float));
  if (stride != static_cast<size_t>(head_dim)) std::memset(k, 0, 2 * kPagePositions * stride * sizeof(float));

  int begin = kMaxInt;
  int end = 0;
  for (int r = 0; r < tile.n_rows; ++r) {
    tile.max[r] = -kInfinity;
    tile.sum[r] = 0;
    std::memcpy(q + static_cast<size_t>(r) * stride, tile.q[r], static_cast<size_t>(head_dim) * sizeof(float));
    if (tile.spans[r].begin < tile.spans[r].end) {
      begin = least(begin, tile.spans[r].begin);
      end = most(end, tile.spans[r].end);
    }
  }

  for (int page = begin / kPagePositions; page * kPagePositions < end; ++page) {
    const int base = page * kPagePositions;
    int first = kPagePositions;
    int last = 0;
    for (int r = 0; r < tile.n_rows; ++r) {
      const int from = most(tile.spans[r].begin - base, 0);
      const int to = least(tile.spans[r].end - base, kPagePositions);
      if (from >= to) continue;
      first = least(first, from);
      last = most(last, to);
    }
    if (first >= last) continue;  // between the spans: there need not be a page
    // Score tiles take four positions: widen whole groups of four. Positions outside the spans are of this page too,
    // and pages are zeroed when they are handed out, so what is read there is finite; weights_of masks it.
    const int first4 = first / 4 * 4;
    const int last4 = (last + 3) / 4 * 4;
    widen(tile, tile.pages[page] + tile.k_offset, first4, last4, k, stride);
    widen(tile, tile.pages[page] + tile.v_offset, first, last, v, stride);
    for (int r4 = 0; r4 < n_rows4; r4 += 4) {
      float rescale[4];
      bool any = false;
      for (int half = 0; half < 4; half += 2) {
        for (int p = first4; p < last4; p += 4) {
          score_tile(q + static_cast<size_t>(r4 + half) * stride, stride, k + static_cast<size_t>(p) * stride,
                     scores + half * kPagePositions + p);
        }
      }
      for (int i = 0; i < 4; ++i) {
        const int r = r4 + i;
        float* row = scores + i * kPagePositions;
        const int from = r < tile.n_rows ? most(tile.spans[r].begin - base, 0) : 0;
        const int to = r < tile.n_rows ? least(tile.spans[r].end - base, kPagePositions) : 0;
        if (from < to) {
          any = true;
          rescale[i] = weights_of(row, from, to, tile.max + r, tile.sum + r);
        } else {  // nothing of this page: the row stays as it is
          rescale[i] = 1.0f;
          std::memset(row, 0, kPagePositions * sizeof(float));
        }
      }
      if (any) accumulate(out + static_cast<size_t>(r4) * stride, stride, scores, rescale, v, first, last);
    }
  }
  for (int r = 0; r < tile.n_rows; ++r) {
    std::memcpy(tile.out[r], out + static_cast<size_t>(r) * stride, static_cast<size_t>(head_dim) * sizeof(float));
  }
}

}  // namespace gemma::cpu

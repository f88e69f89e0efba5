#include <cmath>
#include <limits>

#include "backend/cpu/kernels_ref.h"
#include "backend/cpu/screen_loops.h"
#include "quant/dequantize.h"

namespace gemma::cpu {

void load_columns_ref(const WeightRows& w, int n_cols, float* columns, const Scratch& scratch) {
  float* row = reinterpret_cast<float*>(scratch.data);
  for (int lane = 0; lane < kScreenLanes; ++lane) {
    const int r = w.row_begin + lane;
    if (r < w.row_end) {
      dequantize_row(w.type, w.w + static_cast<size_t>(r) * w.w_row_bytes, row, n_cols);
    } else {
      std::fill(row, row + n_cols, 0.0f);
    }
    for (size_t c = 0; c < static_cast<size_t>(n_cols); ++c)
      columns[c * kScreenLanes + static_cast<size_t>(lane)] = row[c];
  }
}

bool screen_pack_ref(float* columns, int n_cols, int block, uint8_t* codes, float* step, float* deviation,
                     float* rounding) {
  constexpr size_t kLanes = kScreenLanes;
  float squares[kLanes];
  float inverse[kLanes];
  float product[kLanes] = {};
  float length[kLanes] = {};
  if (!rotate_columns(columns, n_cols, block, squares)) return false;
  level_widths(squares, n_cols, inverse);
  for (size_t c = 0; c < static_cast<size_t>(n_cols); ++c) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float w = columns[c * kLanes + lane];
      const float level = std::min(std::max(w * inverse[lane] + 8.0f, 0.0f), 15.0f);
      const int code = static_cast<int>(level);
      const float value = static_cast<float>(code) - 7.5f;
      product[lane] += w * value;
      length[lane] += value * value;
      uint8_t& byte = codes[c / 8 * 64 + lane * 4 + c % 4];
      byte = static_cast<uint8_t>(c % 8 < 4 ? code : byte | code << 4);
    }
  }
  finish_panel(squares, inverse, product, length, step, deviation, rounding);
  return true;
}

void screen_bound_ref(const ScreenTable& table, int panel_begin, int panel_end, const ScreenQuery* queries,
                      int n_queries) {
  const size_t n_groups = static_cast<size_t>(table.n_cols / 8);
  for (size_t panel = static_cast<size_t>(panel_begin); panel < static_cast<size_t>(panel_end); ++panel) {
    for (int i = 0; i < n_queries; ++i) {
      const ScreenQuery& query = queries[i];
      float largest = -std::numeric_limits<float>::infinity();
      for (size_t lane = 0; lane < kScreenLanes; ++lane) {
        int32_t dot = 0;
        for (size_t g = 0; g < n_groups; ++g) {
          const uint8_t* codes = table.codes + (panel * n_groups + g) * 64 + lane * 4;
          for (size_t j = 0; j < 4; ++j)
            dot += (codes[j] & 15) * query.q[8 * g + j] + (codes[j] >> 4) * query.q[8 * g + 4 + j];
        }
        const size_t row = panel * kScreenLanes + lane;
        const float product = (static_cast<float>(dot) + query.offset) * (table.step[row] * query.scale);
        const float bound =
            product + (table.deviation[row] * query.deviation_part + table.rounding[row] * query.rounding_part);
        query.bounds[row] = bound;
        largest = std::max(largest, bound);
      }
      query.maxima[panel] = largest;
    }
  }
}

}  // namespace gemma::cpu

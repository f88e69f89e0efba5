#include <cmath>
#include <limits>

#include "backend/cpu/kernels_ref.h"
#include "backend/cpu/screen_loops.h"

namespace gemma::cpu {

bool screen_pack_ref(const float* rows, int n_cols, int block, uint8_t* codes, float* step, float* residual, float* norm,
                     float* columns) {
  return screen_pack_loops(rows, n_cols, block, codes, step, residual, norm, columns);
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
            product + std::sqrt(table.residual[row] * query.residual_part + table.norm[row] * query.norm_part);
        query.bounds[row] = bound;
        largest = std::max(largest, bound);
      }
      query.maxima[panel] = largest;
    }
  }
}

}  // namespace gemma::cpu

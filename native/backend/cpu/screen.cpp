#include "backend/cpu/screen.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <new>

#include "base/error.h"
#include "quant/types.h"

namespace gemma::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Orthonormal, in place, on each block of x.
void rotate(float* x, int n, int block) {
  for (int h = 1; h < block; h *= 2) {
    for (int i = 0; i < n; i += 2 * h) {
      for (int j = i; j < i + h; ++j) {
        const float a = x[j];
        const float b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(block));
  for (int i = 0; i < n; ++i) x[i] *= scale;
}

int largest_block(int n_cols) {
  int block = 1;
  while (block < 128 && n_cols % (2 * block) == 0) block *= 2;
  return block;
}

// Fewer rows are computed sooner than screened.
constexpr int kMinScreenedRows = 4096;

bool can_screen(int n_out, int n_in) {
  return n_in % 8 == 0 && n_out >= kMinScreenedRows;
}

size_t panels(int n_out) {
  return static_cast<size_t>((n_out + kScreenLanes - 1) / kScreenLanes);
}

static_assert(kScreenLanes == kOutputLanes);  // bounds lie where products go

}  // namespace

std::array<size_t, 2> screen_parts(int n_out, int n_in, int max_rows) {
  if (!can_screen(n_out, n_in)) return {};
  const size_t n_panels = panels(n_out);
  const size_t n_cols = static_cast<size_t>(n_in);
  const size_t query_bytes = n_cols * (sizeof(float) + 1) + n_panels * sizeof(float);
  return {n_panels * n_cols / 8 * 64,
          3 * n_panels * kScreenLanes * sizeof(float) + static_cast<size_t>(max_rows) * query_bytes};
}

Screen::Screen(Backend& backend, const Weight& weight, bool enabled, int max_rows)
    : backend_(backend),
      weight_(weight),
      enabled_(enabled && can_screen(weight.n_out, weight.n_in)),
      max_rows_(max_rows),
      n_panels_(static_cast<int>(panels(weight.n_out))),
      block_(largest_block(weight.n_in)) {}

std::span<float> Screen::maxima(int query) {
  const size_t stride = static_cast<size_t>(n_panels_);
  return {maxima_ + static_cast<size_t>(query) * stride, stride};
}

void Screen::allocate() {
  const std::array<size_t, 2> sizes = screen_parts(weight_.n_out, weight_.n_in, max_rows_);
  for (size_t i = 0; i < sizes.size(); ++i) parts_[i] = backend_.allocate(sizes[i]);
  const size_t n_rows = static_cast<size_t>(n_panels_) * kScreenLanes;
  const size_t max_rows = static_cast<size_t>(max_rows_);
  codes_ = reinterpret_cast<uint8_t*>(parts_[0]->data());
  step_ = parts_[1]->floats();
  deviation_ = step_ + n_rows;
  rounding_ = deviation_ + n_rows;
  rotated_ = rounding_ + n_rows;
  maxima_ = rotated_ + max_rows * static_cast<size_t>(weight_.n_in);
  q_ = reinterpret_cast<int8_t*>(maxima_ + max_rows * static_cast<size_t>(n_panels_));
}

void Screen::disable() {
  enabled_ = false;
  for (std::unique_ptr<Buffer>& part : parts_) part.reset();
}

void Screen::build_slice(const Kernels& kernels, ThreadPool& pool, std::span<const Scratch> scratch) {
  if (!enabled_ || n_built_ == n_panels_) return;
  const size_t n_cols = static_cast<size_t>(weight_.n_in);
  const size_t panel_bytes = n_cols / 8 * 64;
  std::vector<float> memory;
  try {
    memory.resize(static_cast<size_t>(pool.n_threads()) * n_cols * kScreenLanes);
    if (parts_[1] == nullptr) allocate();
  } catch (const std::bad_alloc&) {
    return disable();
  } catch (const Error&) {
    return disable();
  }
  std::atomic<bool> finite{true};
  const int begin = n_built_;
  const int end = std::min(n_panels_, begin + (n_panels_ + kSlices - 1) / kSlices);
  pool.parallel_for(end - begin, [&](int chunk, int thread) {
    const int panel = begin + chunk;
    float* columns = memory.data() + static_cast<size_t>(thread) * n_cols * kScreenLanes;
    const int row = panel * kScreenLanes;
    kernels.load_columns({weight_.type, weight_.data, row_bytes(weight_.type, weight_.n_in), row,
                          std::min(weight_.n_out, row + kScreenLanes)},
                         weight_.n_in, columns, scratch[static_cast<size_t>(thread)]);
    const size_t p = static_cast<size_t>(panel);
    const size_t lanes = p * kScreenLanes;
    if (!kernels.screen_pack(columns, weight_.n_in, block_, codes_ + p * panel_bytes, step_ + lanes, deviation_ + lanes,
                             rounding_ + lanes)) {
      finite.store(false, std::memory_order_relaxed);
    }
  });
  n_built_ = end;
  if (!finite.load()) disable();
}

std::span<float> Screen::input(int n) {
  return {rotated_, static_cast<size_t>(n) * static_cast<size_t>(weight_.n_in)};
}

bool Screen::bound(const Kernels& kernels, ThreadPool& pool, int n, float* memory) {
  const size_t n_cols = static_cast<size_t>(weight_.n_in);
  const size_t n_rows = static_cast<size_t>(n_panels_) * kScreenLanes;
  bounds_ = memory;
  rotate(rotated_, n * weight_.n_in, block_);

  const ScreenTable table{weight_.n_in, codes_, step_, deviation_, rounding_};
  queries_.clear();
  for (size_t query = 0; query < static_cast<size_t>(n); ++query) {
    const float* y = rotated_ + query * n_cols;
    int8_t* q = q_ + query * n_cols;
    float largest = 0;
    double norm = 0;
    for (size_t j = 0; j < n_cols; ++j) {
      largest = std::max(largest, std::fabs(y[j]));
      norm += static_cast<double>(y[j]) * y[j];
    }
    if (!(norm < 1e30)) return false;
    const float scale = largest / 127;
    const float inverse = largest > 1e-30f ? 127 / largest : 0.0f;
    int32_t sum = 0;
    for (size_t j = 0; j < n_cols; ++j) {
      q[j] = static_cast<int8_t>(std::nearbyint(y[j] * inverse));
      sum += q[j];
    }
    // The margin is sqrt(a^2 + b^2) with a from the codes and b from rounding x, which is far smaller:
    // a + b^2 / (2 a) is hardly more, and needs no root for each row.
    const double deviation = kScreenSigmas * std::sqrt(norm / static_cast<double>(n_cols));
    const double rounding = kScreenSigmas * static_cast<double>(scale) / std::sqrt(12.0);
    queries_.push_back({q, scale, -7.5f * static_cast<float>(sum), static_cast<float>(deviation),
                        deviation > 0 ? static_cast<float>(rounding * rounding / deviation) : 0.0f,
                        bounds_ + query * n_rows, maxima_ + query * static_cast<size_t>(n_panels_)});
  }
  constexpr int kPanels = 64;  // of a chunk: its codes stay in cache for all queries
  pool.parallel_for((n_panels_ + kPanels - 1) / kPanels, [&](int chunk, int /*thread*/) {
    kernels.screen_bound(table, chunk * kPanels, std::min(n_panels_, (chunk + 1) * kPanels), queries_.data(), n);
  });
  for (int i = 0; i < n; ++i) {  // lanes past the last row
    float* row = row_of_bounds(i);
    std::fill(row + weight_.n_out, row + n_rows, -kInfinity);
    const int32_t last = weight_.n_out - 1;
    update_maximum(i, last / kScreenLanes);
  }
  return true;
}

void Screen::update_maximum(int query, int panel) {
  const float* lanes = row_of_bounds(query) + static_cast<size_t>(panel) * kScreenLanes;
  maxima(query)[static_cast<size_t>(panel)] = *std::max_element(lanes, lanes + kScreenLanes);
}

void Screen::exclude(int query, std::span<const int32_t> rows) {
  float* values = row_of_bounds(query);
  for (const int32_t row : rows) {
    values[row] = -kInfinity;
    update_maximum(query, row / kScreenLanes);
  }
}

void Screen::keep(int query, std::span<const uint32_t> allowed) {
  static_assert(kScreenLanes == 16);
  float* lanes = row_of_bounds(query);
  const std::span<float> largest = maxima(query);
  for (size_t panel = 0; panel < largest.size(); ++panel, lanes += kScreenLanes) {
    const uint32_t bits = panel / 2 < allowed.size() ? allowed[panel / 2] >> panel % 2 * kScreenLanes & 0xffffu : 0u;
    if (bits == 0xffffu) continue;
    float best = -kInfinity;
    for (int lane = 0; lane < kScreenLanes; ++lane) {
      lanes[lane] = (bits >> lane & 1u) != 0 ? lanes[lane] : -kInfinity;
      best = std::max(best, lanes[lane]);
    }
    largest[panel] = best;
  }
}

void Screen::best(int query, size_t k, std::vector<int32_t>* rows) {
  // The k-th largest maximum of panels, or of groups of panels, is no larger than the k-th largest bound. Groups are as
  // large as still tells the best k well apart: most of the time here goes into what is sorted.
  const std::span<const float> largest = maxima(query);
  float least = -kInfinity;
  if (k <= largest.size()) {
    const size_t n_groups = std::max(largest.size() / 16, std::min(largest.size(), 4 * k));
    std::vector<float> sorted(largest.begin(), largest.begin() + static_cast<ptrdiff_t>(n_groups));
    for (size_t begin = n_groups; begin < largest.size(); begin += n_groups) {
      const size_t n = std::min(n_groups, largest.size() - begin);
      for (size_t i = 0; i < n; ++i) sorted[i] = std::max(sorted[i], largest[begin + i]);
    }
    std::nth_element(sorted.begin(), sorted.begin() + static_cast<ptrdiff_t>(k - 1), sorted.end(), std::greater<>());
    least = sorted[k - 1];
  }
  const size_t first = rows->size();
  at_least(query, least, rows);
  if (rows->size() - first <= k) return;
  const std::span<const float> values = bounds(query);
  const auto begin = rows->begin() + static_cast<ptrdiff_t>(first);
  std::nth_element(begin, begin + static_cast<ptrdiff_t>(k), rows->end(), [&](int32_t a, int32_t b) {
    return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
  });
  rows->resize(first + k);
}

void Screen::at_least(int query, float least, std::vector<int32_t>* rows) {
  const std::span<const float> values = bounds(query);
  const std::span<const float> largest = maxima(query);
  for (size_t panel = 0; panel < largest.size(); ++panel) {
    if (largest[panel] < least) continue;
    const size_t begin = panel * kScreenLanes;
    for (size_t i = begin; i < std::min(begin + kScreenLanes, values.size()); ++i) {
      if (values[i] >= least && values[i] > -kInfinity) rows->push_back(static_cast<int32_t>(i));
    }
  }
}

}  // namespace gemma::cpu

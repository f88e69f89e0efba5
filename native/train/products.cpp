#include "train/products.h"

#include <algorithm>

namespace gemma::train {
namespace {

constexpr int kRows = cpu::kPanelRows;
constexpr int kColumns = cpu::kPanelColumns;
constexpr int kHalf = kColumns / 2;
static_assert(kHalf == cpu::kScreenLanes, "load_columns() fills half a panel");

// A thread unpacks so many columns of a right side at a time (as many as a block of a super-block type has), and so much
// of their depth: a quarter of a second-level cache.
constexpr int kWidth = 256;
constexpr int kNarrow = 64;
constexpr int kPieceFloats = 1 << 16;
constexpr size_t kThreadFloats = kPieceFloats + kReadAhead;
static_assert(kWidth <= cpu::kMostRowColumns);
constexpr size_t kThreadBytes = kThreadFloats * sizeof(float) + cpu::kScratchBytes;
// Work is shared out in parts of at least so many rows: a part unpacks what it multiplies with.
constexpr int kLeastRows = 10 * kRows;

// Whole blocks of every type.
int depth_of_piece(int n_cols) {
  return kPieceFloats / (n_cols > kNarrow ? kWidth : kNarrow);
}

}  // namespace

void pack_rows(const FloatView& x, int first, int n, int depth, float scale, float* out) {
  for (int begin = 0; begin < n; begin += kRows) {
    const int n_rows = std::min(kRows, n - begin);
    const float* rows[kRows];
    for (int r = 0; r < kRows; ++r)
      rows[r] = x.data + static_cast<size_t>(first + begin + std::min(r, n_rows - 1)) * x.row_stride;
    for (size_t k = 0; k < static_cast<size_t>(depth); ++k) {
      for (int r = 0; r < kRows; ++r) out[r] = rows[r][k * x.col_stride] * scale;
      for (int r = n_rows; r < kRows; ++r) out[r] = 0;
      out += kRows;
    }
  }
}

Products::Products(const cpu::Kernels& kernels, int n_threads)
    : kernels_(kernels), pool_(n_threads), workspace_(workspace_bytes(n_threads)) {}

size_t Products::workspace_bytes(int n_threads) {
  return static_cast<size_t>(n_threads) * ((kThreadBytes + 63) / 64 * 64);
}

Packed Products::pack(const FloatView& x, int n_rows, int depth, float scale, float* out) {
  constexpr int kChunk = 4 * kRows;
  pool_.parallel_for((n_rows + kChunk - 1) / kChunk, [&](int chunk, int) {
    const int first = chunk * kChunk;
    pack_rows(x, first, std::min(kChunk, n_rows - first), depth, scale,
              out + static_cast<size_t>(first) * static_cast<size_t>(depth));
  });
  return {out, static_cast<size_t>(depth) * kRows};
}

// Groups of kColumns columns of b, group_stride apart.
void Products::multiply_piece(const cpu::PanelProduct& shape, const float* b, size_t b_stride, size_t group_stride,
                              size_t half, int n_cols) {
  cpu::PanelProduct p = shape;
  p.b_stride = b_stride;
  p.b_half = half;
  for (int col = 0; col < n_cols; col += kColumns) {
    p.b = b + static_cast<size_t>(col / kColumns) * group_stride;
    p.n_cols = std::min(kColumns, n_cols - col);
    p.c = shape.c + col;
    kernels_.multiply_panels(p);
  }
}

void Products::multiply_part(int thread, std::span<const Term> terms, int row_begin, int row_end, int col_begin,
                             int col_end, float* c, size_t c_stride, bool add) {
  std::byte* mine = workspace_.data() + static_cast<size_t>(thread) * workspace_bytes(1);
  float* piece = reinterpret_cast<float*>(mine);
  const cpu::Scratch scratch = {mine + kThreadFloats * sizeof(float), cpu::kScratchBytes};
  const int n_cols = col_end - col_begin;
  const int most_depth = depth_of_piece(n_cols);
  cpu::PanelProduct p;
  p.n_rows = row_end - row_begin;
  p.c = c + static_cast<size_t>(row_begin) * c_stride + col_begin;
  p.c_stride = c_stride;
  p.add = add;
  for (const Term& term : terms) {
    p.a_stride = term.a.panel_stride;
    const float* a = term.a.data + static_cast<size_t>(row_begin / kRows) * term.a.panel_stride;
    for (int k = 0; k < term.depth; k += p.depth) {
      p.depth = std::min(term.depth - k, most_depth);
      p.a = a + static_cast<size_t>(k) * kRows;
      const size_t depth = static_cast<size_t>(p.depth);
      if (term.b.kind == RightSide::Kind::kFloats) {
        const FloatView& b = term.b.floats;
        const float* from =
            b.data + static_cast<size_t>(k) * b.row_stride + static_cast<size_t>(col_begin) * b.col_stride;
        if (b.col_stride == 1) {
          multiply_piece(p, from, b.row_stride, kColumns, kHalf, n_cols);
        } else {
          const size_t width = static_cast<size_t>((n_cols + kHalf - 1) / kHalf * kHalf);
          for (size_t j = 0; j < width; ++j) {
            for (size_t i = 0; i < depth; ++i) {
              piece[i * width + j] = j < static_cast<size_t>(n_cols) ? from[i * b.row_stride + j * b.col_stride] : 0.0f;
            }
          }
          multiply_piece(p, piece, width, kColumns, kHalf, n_cols);
        }
        p.add = true;
        continue;
      }
      const Weight& w = *term.b.weight;
      const TypeTraits& type = type_traits(w.type);
      const size_t bytes = row_bytes(w.type, w.n_in);
      cpu::WeightRows rows{w.type, w.data, bytes, 0, w.n_out};
      const auto skip_columns = [&](int n) {
        rows.w = w.data + static_cast<size_t>(n / type.block_elems) * static_cast<size_t>(type.block_bytes);
      };
      if (term.b.kind == RightSide::Kind::kWeight) {
        skip_columns(k);
        for (int j = 0; j < n_cols; j += kHalf) {
          rows.row_begin = term.b.first_row + col_begin + j;
          rows.row_end = std::min(rows.row_begin + kHalf, w.n_out);
          kernels_.load_columns(rows, p.depth, piece + static_cast<size_t>(j) * depth, scratch);
        }
        multiply_piece(p, piece, kHalf, kColumns * depth, kHalf * depth, n_cols);
      } else {
        skip_columns(col_begin);
        rows.row_begin = term.b.first_row + k;
        rows.row_end = rows.row_begin + p.depth;
        kernels_.load_panels(rows, n_cols, piece, kColumns * depth, scratch);
        multiply_piece(p, piece, kColumns, kColumns * depth, kHalf, n_cols);
      }
      p.add = true;
    }
  }
}

static int width_of(std::span<const Term> terms) {
  for (const Term& term : terms) {
    if (term.b.kind == RightSide::Kind::kWeightTransposed && type_traits(term.b.weight->type).block_elems > kNarrow)
      return kWidth;
  }
  return kNarrow;
}

void Products::multiply(std::span<const Term> terms, int n_rows, int n_cols, float* c, size_t c_stride, bool add) {
  const int width = width_of(terms);
  const int n_stripes = (n_cols + width - 1) / width;
  // About four parts a thread.
  const int wanted = (4 * n_threads() + n_stripes - 1) / n_stripes;
  const int n_panels = (n_rows + kRows - 1) / kRows;
  const int rows = std::max(kLeastRows, (n_panels + wanted - 1) / wanted * kRows);
  const int n_blocks = (n_rows + rows - 1) / rows;
  pool_.parallel_for(n_stripes * n_blocks, [&](int chunk, int thread) {
    const int row = chunk % n_blocks * rows;
    const int col = chunk / n_blocks * width;
    multiply_part(thread, terms, row, std::min(n_rows, row + rows), col, std::min(n_cols, col + width), c, c_stride,
                  add);
  });
}

void Products::multiply_alone(int thread, std::span<const Term> terms, int n_rows, int n_cols, float* c,
                              size_t c_stride, bool add) {
  const int width = width_of(terms);
  for (int col = 0; col < n_cols; col += width)
    multiply_part(thread, terms, 0, n_rows, col, std::min(n_cols, col + width), c, c_stride, add);
}

}  // namespace gemma::train

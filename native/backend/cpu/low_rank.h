// What adapters add to products (kernels.h, add_low_rank), for any instruction set; internal to each file that includes
// it. Some columns of a few rows at a time: a value of b is read once for all rows.
//
// Isa has a vector type Float of kLanes floats with set1, load and store (unaligned), mul, div, root, fma, and F32, F16,
// BF16, types of b that load kLanes values as floats; kRows rows of kColumns columns, and one of kSingleColumns, are as much
// as it has registers for.
#pragma once

#include "backend/cpu/kernels.h"
#include "backend/cpu/small_math.h"

namespace gemma::cpu {
namespace {

inline constexpr int kLowRankColumns = 16;  // b has whole ones of

template <class Isa, class Type, int kRows, int kColumns>
inline void add_low_rank_tile(const LowRankRows& a, int row, size_t column, float* out, size_t out_stride) {
  using Float = typename Isa::Float;
  constexpr int kVectors = kColumns / Isa::kLanes;
  Float acc[kRows][kVectors];
  for (int i = 0; i < kVectors; ++i) {
    const Float bias =
        a.bias != nullptr ? Isa::load(a.bias + column + static_cast<size_t>(i * Isa::kLanes)) : Isa::set1(0);
    for (int r = 0; r < kRows; ++r) acc[r][i] = bias;
  }
  const float* t = row_of(a.t, row, a.rank);
  const std::byte* b = a.b + column * Type::kBytes;
  for (int k = 0; k < a.rank; ++k, b += a.b_row_bytes) {
    Float values[kVectors];
    for (int i = 0; i < kVectors; ++i) values[i] = Type::load(b + static_cast<size_t>(i * Isa::kLanes) * Type::kBytes);
    for (int r = 0; r < kRows; ++r) {
      const Float factor = Isa::set1(row_of(t, r, a.rank)[k]);
      for (int i = 0; i < kVectors; ++i) acc[r][i] = Isa::fma(factor, values[i], acc[r][i]);
    }
  }
  const Float scale = Isa::set1(a.scale);
  for (int i = 0; i < kVectors; ++i) {
    const size_t lane = static_cast<size_t>(i * Isa::kLanes);
    Float factor = Isa::set1(1);
    if (a.norms != nullptr) {
      const auto norm = [&](size_t which) { return Isa::load(a.norms + which * a.norms_stride + column + lane); };
      const Float square = Isa::fma(scale, Isa::fma(scale, norm(3), norm(2)), norm(1));
      factor = Isa::div(norm(0), Isa::root(square));
    }
    for (int r = 0; r < kRows; ++r) {
      float* to = row_of(out, r, static_cast<ptrdiff_t>(out_stride)) + lane;
      const Float sum = Isa::fma(scale, acc[r][i], Isa::load(to));
      Isa::store(to, a.norms != nullptr ? Isa::mul(sum, factor) : sum);
    }
  }
}

// Columns that are fewer than a tile go through memory that is wide enough.
template <class Isa, class Type, int kRows>
inline void add_low_rank_rows(const LowRankRows& a, int row, int col_begin, int col_end) {
  // Sums of a single row in many columns, for each waits for its last product.
  constexpr int kColumns = kRows == 1 ? Isa::kSingleColumns : Isa::kColumns;
  float* out = row_of(a.out, row, static_cast<ptrdiff_t>(a.out_stride));
  int column = col_begin;
  for (; column + kColumns <= col_end; column += kColumns)
    add_low_rank_tile<Isa, Type, kRows, kColumns>(a, row, static_cast<size_t>(column), out + column, a.out_stride);
  for (; column + kLowRankColumns <= col_end; column += kLowRankColumns)
    add_low_rank_tile<Isa, Type, kRows, kLowRankColumns>(a, row, static_cast<size_t>(column), out + column,
                                                         a.out_stride);
  if (column == col_end) return;
  float part[kRows * kLowRankColumns] = {};
  for (int r = 0; r < kRows; ++r) {
    for (int j = column; j < col_end; ++j)
      part[r * kLowRankColumns + j - column] = row_of(out, r, static_cast<ptrdiff_t>(a.out_stride))[j];
  }
  add_low_rank_tile<Isa, Type, kRows, kLowRankColumns>(a, row, static_cast<size_t>(column), part, kLowRankColumns);
  for (int r = 0; r < kRows; ++r) {
    for (int j = column; j < col_end; ++j)
      row_of(out, r, static_cast<ptrdiff_t>(a.out_stride))[j] = part[r * kLowRankColumns + j - column];
  }
}

template <class Isa, class Type>
inline void add_low_rank_type(const LowRankRows& a, int col_begin, int col_end) {
  int row = 0;
  for (; row + Isa::kRows <= a.n_rows; row += Isa::kRows)
    add_low_rank_rows<Isa, Type, Isa::kRows>(a, row, col_begin, col_end);
  for (; row < a.n_rows; ++row) add_low_rank_rows<Isa, Type, 1>(a, row, col_begin, col_end);
}

template <class Isa>
inline void add_low_rank(const LowRankRows& a, int col_begin, int col_end) {
  switch (a.type) {
    case TensorType::kF32: return add_low_rank_type<Isa, typename Isa::F32>(a, col_begin, col_end);
    case TensorType::kF16: return add_low_rank_type<Isa, typename Isa::F16>(a, col_begin, col_end);
    default: return add_low_rank_type<Isa, typename Isa::BF16>(a, col_begin, col_end);
  }
}

}  // namespace
}  // namespace gemma::cpu

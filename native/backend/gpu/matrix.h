// Products of 8-bit tiles: C[16][16] += A[16][k] * B[16][k]^T for k = 16 or 32, int32 sums, A and B in shared memory,
// by the chip's matrix instruction or by dot products of four bytes. A hardware warp holds C: element r of lane l is
// C[row(l, r)][col(l, r)]. Register layouts: PTX ISA (mma for .s8), AMD's matrix instruction calculator (2ef9189).
#pragma once

#include "backend/gpu/gpu.h"

namespace gemma::gpu::GPU_CHIP_NAMESPACE {

GPU_FUNCTION int load4(const int8_t* p) {
  return *reinterpret_cast<const int*>(p);
}

#if defined(GEMMA_EMULATED)
inline int multiply_add(int8_t a, int8_t b, int sum) {
  return sum + a * b;
}
inline float multiply_add(uint16_t a, uint16_t b, float sum) {  // bfloat16: the product is exact
  return fmaf(bits_to_float(static_cast<uint32_t>(a) << 16), bits_to_float(static_cast<uint32_t>(b) << 16), sum);
}

// One instruction: D[M][N] += A[M][K] * B[N][K]^T. Layout tells which element x of a lane's registers is.
template <class Layout, int M, int N, int K, int kA, int kB, int kSums, class Element = int8_t, class Sum = int>
EMULATOR_UNCHECKED inline void emulate_matrix(Sum* c, const void* a, const void* b, GPU_HERE) {
  struct Payload {
    Element a[kA];
    Element b[kB];
    Sum c[kSums];
  };
  static_assert(sizeof(Payload) <= emulator::kMaxPayload);
  Payload* mine = reinterpret_cast<Payload*>(emulator::payload());
  __builtin_memcpy(mine->a, a, sizeof mine->a);
  __builtin_memcpy(mine->b, b, sizeof mine->b);
  __builtin_memcpy(mine->c, c, sizeof mine->c);
  const emulator::Slots slots =
      emulator::exchange({"matrix instruction", file, line}, [](emulator::Slots all, int n_lanes) EMULATOR_UNCHECKED {
        Element left[M][K];
        Element right[N][K];
        for (int l = 0; l < n_lanes; ++l) {
          const Payload& p = *reinterpret_cast<const Payload*>(all[l]);
          for (int x = 0; x < kA; ++x) left[Layout::a_row(l, x)][Layout::a_k(l, x)] = p.a[x];
          for (int x = 0; x < kB; ++x) right[Layout::b_col(l, x)][Layout::b_k(l, x)] = p.b[x];
        }
        for (int l = 0; l < n_lanes; ++l) {
          Payload& p = *reinterpret_cast<Payload*>(all[l]);
          for (int r = 0; r < kSums; ++r) {
            const Element* x = left[Layout::c_row(l, r)];
            const Element* y = right[Layout::c_col(l, r)];
            Sum sum = 0;
            for (int k = 0; k < K; ++k) sum = multiply_add(x[k], y[k], sum);
            p.c[r] += sum;
          }
        }
      });
  __builtin_memcpy(c, reinterpret_cast<Payload*>(slots[emulator::current->lane])->c, sizeof mine->c);
}

// mma.m16n8k16 and k32: registers of four bytes, rows g and g + 8, then the next 16 of k.
struct LayoutM16N8 {
  static int a_row(int l, int x) { return l / 4 + x / 4 % 2 * 8; }
  static int a_k(int l, int x) { return l % 4 * 4 + x % 4 + x / 8 * 16; }
  static int b_col(int l, int /*x*/) { return l / 4; }
  static int b_k(int l, int x) { return l % 4 * 4 + x % 4 + x / 4 * 16; }
  static int c_row(int l, int r) { return l / 4 + r / 2 * 8; }
  static int c_col(int l, int r) { return l % 4 * 2 + r % 2; }
};
// mma.m16n8k16 for .bf16: registers of two values.
struct LayoutM16N8Bf16 {
  static int a_row(int l, int x) { return l / 4 + x / 2 % 2 * 8; }
  static int a_k(int l, int x) { return l % 4 * 2 + x % 2 + x / 4 * 8; }
  static int b_col(int l, int /*x*/) { return l / 4; }
  static int b_k(int l, int x) { return l % 4 * 2 + x % 2 + x / 2 * 8; }
  static int c_row(int l, int r) { return l / 4 + r / 2 * 8; }
  static int c_col(int l, int r) { return l % 4 * 2 + r % 2; }
};
struct LayoutM8N8 {
  static int a_row(int l, int /*x*/) { return l / 4; }
  static int a_k(int l, int x) { return l % 4 * 4 + x; }
  static int b_col(int l, int x) { return a_row(l, x); }
  static int b_k(int l, int x) { return a_k(l, x); }
  static int c_row(int l, int /*r*/) { return l / 4; }
  static int c_col(int l, int r) { return l % 4 * 2 + r; }
};
// v_mfma_i32_16x16x16_i8 and 16x16x32_i8: a lane holds 4 or 8 of k.
template <int kBytes>
struct LayoutMfma {
  static int a_row(int l, int /*x*/) { return l % 16; }
  static int a_k(int l, int x) { return l / 16 * kBytes + x; }
  static int b_col(int l, int x) { return a_row(l, x); }
  static int b_k(int l, int x) { return a_k(l, x); }
  static int c_row(int l, int r) { return l / 16 * 4 + r; }
  static int c_col(int l, int /*r*/) { return l % 16; }
};
struct LayoutWmma11 {  // lanes 16..31 repeat 0..15
  static int a_row(int l, int /*x*/) { return l % 16; }
  static int a_k(int /*l*/, int x) { return x; }
  static int b_col(int l, int x) { return a_row(l, x); }
  static int b_k(int l, int x) { return a_k(l, x); }
  static int c_row(int l, int r) { return 2 * r + l / 16; }
  static int c_col(int l, int /*r*/) { return l % 16; }
};
struct LayoutWmma12 {
  static int a_row(int l, int /*x*/) { return l % 16; }
  static int a_k(int l, int x) { return l / 16 * 8 + x; }
  static int b_col(int l, int x) { return a_row(l, x); }
  static int b_k(int l, int x) { return a_k(l, x); }
  static int c_row(int l, int r) { return l / 16 * 8 + r; }
  static int c_col(int l, int /*r*/) { return l % 16; }
};
#endif

constexpr int kTileElements = 256 / GPU_WARP;

#if GPU_MATRIX == GPU_MATRIX_SM75 || GPU_MATRIX == GPU_MATRIX_SM80

GPU_FUNCTION int tile_row(int lane, int r) {
  return (lane >> 2) + 8 * ((r >> 1) & 1);
}
GPU_FUNCTION int tile_col(int lane, int r) {
  return 2 * (lane & 3) + (r & 1) + 8 * (r >> 2);
}
// Eight columns: four sums.
GPU_FUNCTION void multiply_half_tile16(int* c, const int* a, int b) {
#if defined(GEMMA_EMULATED) && GPU_MATRIX == GPU_MATRIX_SM80
  emulate_matrix<LayoutM16N8, 16, 8, 16, 8, 4, 4>(c, a, &b);
#elif defined(GEMMA_EMULATED)
  for (int half = 0; half < 2; ++half) emulate_matrix<LayoutM8N8, 8, 8, 16, 4, 4, 2>(c + 2 * half, a + half, &b);
#elif GPU_MATRIX == GPU_MATRIX_SM80
  asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b));
#else
  GPU_UNROLL
  for (int half = 0; half < 2; ++half) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(c[2 * half]), "+r"(c[2 * half + 1])
                 : "r"(a[half]), "r"(b));
  }
#endif
}
GPU_FUNCTION void multiply16(int* c, const int8_t* a, int a_stride, const int8_t* b, int b_stride, int lane) {
  const int row = lane >> 2;
  const int k = 4 * (lane & 3);
  const int left[2] = {load4(a + row * a_stride + k), load4(a + (row + 8) * a_stride + k)};
  GPU_UNROLL
  for (int half = 0; half < 2; ++half)
    multiply_half_tile16(c + 4 * half, left, load4(b + (row + 8 * half) * b_stride + k));
}
GPU_FUNCTION void multiply32(int* c, const int8_t* a, int a_stride, const int8_t* b, int b_stride, int lane) {
#if GPU_MATRIX == GPU_MATRIX_SM80
  const int row = lane >> 2;
  const int k = 4 * (lane & 3);
  const int left[4] = {load4(a + row * a_stride + k), load4(a + (row + 8) * a_stride + k),
                       load4(a + row * a_stride + 16 + k), load4(a + (row + 8) * a_stride + 16 + k)};
  GPU_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int8_t* column = b + (row + 8 * half) * b_stride + k;
    const int right[2] = {load4(column), load4(column + 16)};
    int* d = c + 4 * half;
#if defined(GEMMA_EMULATED)
    emulate_matrix<LayoutM16N8, 16, 8, 32, 16, 8, 4>(d, left, right);
#else
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
#endif
  }
#else
  multiply16(c, a, a_stride, b, b_stride, lane);
  multiply16(c, a + 16, a_stride, b + 16, b_stride, lane);
#endif
}

#elif GPU_MATRIX == GPU_MATRIX_MFMA16 || GPU_MATRIX == GPU_MATRIX_MFMA32

GPU_FUNCTION int tile_row(int lane, int r) {
  return 4 * (lane >> 4) + r;
}
GPU_FUNCTION int tile_col(int lane, int /*r*/) {
  return lane & 15;
}
#if GPU_MATRIX == GPU_MATRIX_MFMA16
GPU_FUNCTION void multiply16(int* c, const int8_t* a, int a_stride, const int8_t* b, int b_stride, int lane) {
  const int left = load4(a + (lane & 15) * a_stride + 4 * (lane >> 4));
  const int right = load4(b + (lane & 15) * b_stride + 4 * (lane >> 4));
#if defined(GEMMA_EMULATED)
  emulate_matrix<LayoutMfma<4>, 16, 16, 16, 4, 4, 4>(c, &left, &right);
#else
  typedef int Four __attribute__((ext_vector_type(4)));
  Four d = {c[0], c[1], c[2], c[3]};
  d = __builtin_amdgcn_mfma_i32_16x16x16i8(left, right, d, 0, 0, 0);
  for (int r = 0; r < 4; ++r) c[r] = d[r];
#endif
}
GPU_FUNCTION void multiply32(int* c, const int8_t* a, int a_stride, const int8_t* b, int b_stride, int lane) {
  multiply16(c, a, a_stride, b, b_stride, lane);
  multiply16(c, a + 16, a_stride, b + 16, b_stride, lane);
}
#else
GPU_FUNCTION void multiply_registers(int* c, const int* left, const int* right) {
#if defined(GEMMA_EMULATED)
  emulate_matrix<LayoutMfma<8>, 16, 16, 32, 8, 8, 4>(c, left, right);
#else
  typedef int Four __attribute__((ext_vector_type(4)));
  Four d = {c[0], c[1], c[2], c[3]};
  const long x = static_cast<long>(static_cast<unsigned>(left[0])) | static_cast<long>(left[1]) << 32;
  const long y = static_cast<long>(static_cast<unsigned>(right[0])) | static_cast<long>(right[1]) << 32;
  d = __builtin_amdgcn_mfma_i32_16x16x32_i8(x, y, d, 0, 0, 0);
  for (int r = 0; r < 4; ++r) c[r] = d[r];
#endif
}
GPU_FUNCTION void multiply32(int* c, const int8_t* a, int a_stride, const int8_t* b, int b_stride, int lane) {
  const int8_t* x = a + (lane & 15) * a_stride + 8 * (lane >> 4);
  const int8_t* y = b + (lane & 15) * b_stride + 8 * (lane >> 4);
  const int left[2] = {load4(x), load4(x + 4)};
  const int right[2] = {load4(y), load4(y + 4)};
  multiply_registers(c, left, right);
}
// There is no shorter one: the lanes of the second 16 of k hold zeros.
GPU_FUNCTION void multiply16(int* c, const int8_t* a, int a_stride, const int8_t* b, int b_stride, int lane) {
  const bool used = (lane >> 4) < 2;
  const int k = used ? 8 * (lane >> 4) : 0;
  const int8_t* x = a + (lane & 15) * a_stride + k;
  const int8_t* y = b + (lane & 15) * b_stride + k;
  const int left[2] = {used ? load4(x) : 0, used ? load4(x + 4) : 0};
  const int right[2] = {used ? load4(y) : 0, used ? load4(y + 4) : 0};
  multiply_registers(c, left, right);
}
#endif

#elif GPU_MATRIX == GPU_MATRIX_WMMA11 || GPU_MATRIX == GPU_MATRIX_WMMA12

#if GPU_MATRIX == GPU_MATRIX_WMMA11
constexpr int kOperandRegisters = 4;  // all 16 bytes of k in every lane
GPU_FUNCTION int tile_row(int lane, int r) {
  return 2 * r + (lane >> 4);
}
GPU_FUNCTION int operand_k(int /*lane*/) {
  return 0;
}
#else
constexpr int kOperandRegisters = 2;
GPU_FUNCTION int tile_row(int lane, int r) {
  return 8 * (lane >> 4) + r;
}
GPU_FUNCTION int operand_k(int lane) {
  return 8 * (lane >> 4);
}
#endif
GPU_FUNCTION int tile_col(int lane, int /*r*/) {
  return lane & 15;
}
GPU_FUNCTION void multiply16(int* c, const int8_t* a, int a_stride, const int8_t* b, int b_stride, int lane) {
  int left[kOperandRegisters];
  int right[kOperandRegisters];
  GPU_UNROLL
  for (int i = 0; i < kOperandRegisters; ++i) {
    left[i] = load4(a + (lane & 15) * a_stride + operand_k(lane) + 4 * i);
    right[i] = load4(b + (lane & 15) * b_stride + operand_k(lane) + 4 * i);
  }
#if defined(GEMMA_EMULATED) && GPU_MATRIX == GPU_MATRIX_WMMA11
  emulate_matrix<LayoutWmma11, 16, 16, 16, 16, 16, 8>(c, left, right);
#elif defined(GEMMA_EMULATED)
  emulate_matrix<LayoutWmma12, 16, 16, 16, 8, 8, 8>(c, left, right);
#else
  typedef int Operand __attribute__((ext_vector_type(kOperandRegisters)));
  typedef int Eight __attribute__((ext_vector_type(8)));
  Operand x;
  Operand y;
  Eight d;
  for (int i = 0; i < kOperandRegisters; ++i) x[i] = left[i], y[i] = right[i];
  for (int r = 0; r < 8; ++r) d[r] = c[r];
#if GPU_MATRIX == GPU_MATRIX_WMMA11
  d = __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32(true, x, true, y, d, false);
#else
  d = __builtin_amdgcn_wmma_i32_16x16x16_iu8_w32_gfx12(true, x, true, y, d, false);
#endif
  for (int r = 0; r < 8; ++r) c[r] = d[r];
#endif
}
GPU_FUNCTION void multiply32(int* c, const int8_t* a, int a_stride, const int8_t* b, int b_stride, int lane) {
  multiply16(c, a, a_stride, b, b_stride, lane);
  multiply16(c, a + 16, a_stride, b + 16, b_stride, lane);
}

#else  // dot products: a lane has one column and every (warp / 16)-th row

GPU_FUNCTION int tile_row(int lane, int r) {
  return (lane >> 4) + (GPU_WARP / 16) * r;
}
GPU_FUNCTION int tile_col(int lane, int /*r*/) {
  return lane & 15;
}
template <int kK>
GPU_FUNCTION void multiply(int* c, const int8_t* a, int a_stride, const int8_t* b, int b_stride, int lane) {
  GPU_UNROLL
  for (int k = 0; k < kK; k += 4) {
    const int right = load4(b + (lane & 15) * b_stride + k);
    GPU_UNROLL
    for (int r = 0; r < kTileElements; ++r) c[r] = dot4(load4(a + tile_row(lane, r) * a_stride + k), right, c[r]);
  }
}
GPU_FUNCTION void multiply16(int* c, const int8_t* a, int a_stride, const int8_t* b, int b_stride, int lane) {
  multiply<16>(c, a, a_stride, b, b_stride, lane);
}
GPU_FUNCTION void multiply32(int* c, const int8_t* a, int a_stride, const int8_t* b, int b_stride, int lane) {
  multiply<32>(c, a, a_stride, b, b_stride, lane);
}
#endif

}  // namespace gemma::gpu::GPU_CHIP_NAMESPACE

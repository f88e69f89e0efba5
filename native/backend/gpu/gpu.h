// One name for CUDA, HIP and the emulator; the only file of the kernels that knows a vendor. Kernels use what is
// defined here and nothing else.
//   nvcc                        CUDA
//   clang -x hip, hipcc         HIP
//   any C++20 compiler with GEMMA_EMULATED=sm_75|sm_80|gfx906|gfx90a|gfx942|gfx1030|gfx1100|gfx1201  (a namespace) and
//   GEMMA_EMULATED_CHIP=75|80|906|910|942|1030|1100|1201  (gfx90a is 910)
// Compile without contraction (nvcc -fmad=false, clang -ffp-contract=off): a fused multiply-add is where the code says
// so, and results equal the emulator's and the CPU's to the bit wherever no exponential is involved.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/gpu/kernel_list.h"

// ---- which matrix instruction, a property of the chip
#define GPU_MATRIX_NONE 0    // dot products of four bytes
#define GPU_MATRIX_SM75 1    // mma.m8n8k16
#define GPU_MATRIX_SM80 2    // mma.m16n8k16 and mma.m16n8k32
#define GPU_MATRIX_MFMA16 3  // v_mfma_i32_16x16x16_i8: gfx908, gfx90a
#define GPU_MATRIX_MFMA32 4  // v_mfma_i32_16x16x32_i8: gfx942, gfx950
#define GPU_MATRIX_WMMA11 5  // v_wmma_i32_16x16x16_iu8 of gfx11
#define GPU_MATRIX_WMMA12 6  // the same of gfx12, other registers

#if defined(GEMMA_EMULATED)
#include <atomic>
#include <cmath>
#include <cstring>

#include "backend/gpu/emulator/emulator.h"
#define GPU_CHIP_NAMESPACE GEMMA_EMULATED
#define GPU_FUNCTION inline
#define GPU_KERNEL(name) static void name
#define GPU_KERNEL_WITH_REGISTERS(name) GPU_KERNEL(name)
#define GPU_SHARED(type, name, dims) \
  static const char name##_key = 0;  \
  typedef type name##_type dims;     \
  auto& name = *static_cast<name##_type*>(emulator::shared_variable(&name##_key, sizeof(name##_type)))
#define GPU_UNROLL
#define GPU_ROLLED
#if GEMMA_EMULATED_CHIP == 75
#define GPU_MATRIX GPU_MATRIX_SM75
#elif GEMMA_EMULATED_CHIP == 80
#define GPU_MATRIX GPU_MATRIX_SM80
#elif GEMMA_EMULATED_CHIP == 910
#define GPU_MATRIX GPU_MATRIX_MFMA16
#elif GEMMA_EMULATED_CHIP == 942
#define GPU_MATRIX GPU_MATRIX_MFMA32
#elif GEMMA_EMULATED_CHIP == 1100
#define GPU_MATRIX GPU_MATRIX_WMMA11
#elif GEMMA_EMULATED_CHIP == 1201
#define GPU_MATRIX GPU_MATRIX_WMMA12
#else
#define GPU_MATRIX GPU_MATRIX_NONE
#endif
#if GEMMA_EMULATED_CHIP == 906 || GEMMA_EMULATED_CHIP == 910 || GEMMA_EMULATED_CHIP == 942
#define GPU_WARP 64
#else
#define GPU_WARP 32
#endif
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

#else
#define GPU_CHIP_NAMESPACE device_code
#define GPU_FUNCTION static __device__ __forceinline__
#define GPU_KERNEL(name) extern "C" __global__ void __launch_bounds__(::gemma::gpu::kThreads) gemma_##name
// Where nvcc, left to itself, would rather spill than have fewer blocks on a multiprocessor: three are enough.
#if defined(__CUDACC__)
#define GPU_KERNEL_WITH_REGISTERS(name) \
  extern "C" __global__ void __launch_bounds__(::gemma::gpu::kThreads, 3) gemma_##name
#else
#define GPU_KERNEL_WITH_REGISTERS(name) GPU_KERNEL(name)
#endif
#define GPU_SHARED(type, name, dims) __shared__ __align__(16) type name dims
#define GPU_UNROLL _Pragma("unroll")
#define GPU_ROLLED _Pragma("unroll 1")  // copies of a large body would only take registers
#if defined(__HIP__) || defined(__HIPCC__)
#include <hip/hip_runtime.h>
#define GPU_HIP 1
#if defined(__gfx942__) || defined(__gfx950__)
#define GPU_MATRIX GPU_MATRIX_MFMA32
#elif defined(__gfx908__) || defined(__gfx90a__)
#define GPU_MATRIX GPU_MATRIX_MFMA16
#elif defined(__GFX12__)
#define GPU_MATRIX GPU_MATRIX_WMMA12
#elif defined(__GFX11__) || defined(__gfx1100__) || defined(__gfx1101__) || defined(__gfx1102__)
#define GPU_MATRIX GPU_MATRIX_WMMA11
#else
#define GPU_MATRIX GPU_MATRIX_NONE
#endif
#if defined(__GFX9__)
#define GPU_WARP 64
#else
#define GPU_WARP 32
#endif
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define GPU_CUDA 1
#define GPU_WARP 32
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define GPU_MATRIX GPU_MATRIX_SM75
#else
#define GPU_MATRIX GPU_MATRIX_SM80
#endif
#endif
#endif

namespace gemma::gpu::GPU_CHIP_NAMESPACE {

// A logical warp has 32 lanes everywhere; a hardware warp of 64 is two of them.
constexpr int kLanes = 32;
constexpr int kWarps = kThreads / kLanes;

#if defined(GEMMA_EMULATED)

#define GPU_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline int thread_index() {
  return static_cast<int>(emulator::current->index);
}
inline int block_x() {
  return static_cast<int>(emulator::current->block.x);
}
inline int block_y() {
  return static_cast<int>(emulator::current->block.y);
}
inline int block_z() {
  return static_cast<int>(emulator::current->block.z);
}

inline void block_barrier(GPU_HERE) {
  emulator::barrier({"barrier", file, line});
}
inline void warp_barrier(GPU_HERE) {
  emulator::warp_barrier({"warp barrier", file, line});
}

// What lane source of the logical warp passes.
template <class T>
EMULATOR_UNCHECKED inline T shuffle(T v, int source, GPU_HERE) {
  __builtin_memcpy(emulator::payload(), &v, sizeof v);
  const emulator::Slots slots = emulator::exchange({"shuffle", file, line}, nullptr);
  const int lane = (emulator::current->lane & ~(kLanes - 1)) + (source & (kLanes - 1));
  T result;
  __builtin_memcpy(&result, slots[lane], sizeof result);
  return result;
}
template <class T>
EMULATOR_UNCHECKED inline T shuffle_xor(T v, int mask, GPU_HERE) {
  __builtin_memcpy(emulator::payload(), &v, sizeof v);
  const emulator::Slots slots = emulator::exchange({"shuffle_xor", file, line}, nullptr);
  T result;
  __builtin_memcpy(&result, slots[emulator::current->lane ^ mask], sizeof result);
  return result;
}

// Sixteen bytes to shared memory, asynchronous where the chip can.
inline void copy16_async(void* dst, const void* src, GPU_HERE) {
  if (emulator::traffic_counter != nullptr) emulator::traffic_counter->read(src, 16);
  emulator::copy_async(dst, src, {"copy16_async", file, line});
}
inline void commit_copies() {
  emulator::commit_copies();
}
inline void wait_copies() {
  emulator::wait_copies(0);
}

// Returns what was there before.
inline int atomic_add(int* p, int v) {
  return std::atomic_ref<int>(*p).fetch_add(v);
}

// A read of device memory that nobody writes during the kernel.
template <class T>
inline T load(const T* p) {
  if (emulator::traffic_counter != nullptr) emulator::traffic_counter->read(p, sizeof(T));
  return *p;
}

inline int dot4(int a, int b, int c) {
  for (int i = 0; i < 4; ++i)
    c += static_cast<int8_t>(static_cast<unsigned>(a) >> (8 * i)) *
         static_cast<int8_t>(static_cast<unsigned>(b) >> (8 * i));
  return c;
}
inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t exponent = (h >> 10) & 31;
  const uint32_t fraction = h & 1023;
  uint32_t bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  if (exponent == 31) bits = sign | 0x7f800000u | (fraction << 13);
  float f;
  if (exponent == 0) {
    f = static_cast<float>(fraction) * 0x1p-24f;
    std::memcpy(&bits, &f, 4);
    bits |= sign;
  }
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint16_t float_to_half(float f) {  // nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (bits >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (bits < 0x38800000) {  // subnormal: the sum's last bits are the code
    float value;
    std::memcpy(&value, &bits, 4);
    value += 0.5f;
    std::memcpy(&bits, &value, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000));
  }
  bits += 0xfff + (bits >> 13 & 1);
  return static_cast<uint16_t>(sign | ((bits - 0x38000000) >> 13));
}
inline float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t float_to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

#else

GPU_FUNCTION int thread_index() {
  return threadIdx.x;
}
GPU_FUNCTION int block_x() {
  return blockIdx.x;
}
GPU_FUNCTION int block_y() {
  return blockIdx.y;
}
GPU_FUNCTION int block_z() {
  return blockIdx.z;
}
GPU_FUNCTION void block_barrier() {
  __syncthreads();
}
GPU_FUNCTION float bits_to_float(uint32_t bits) {
  return __uint_as_float(bits);
}
GPU_FUNCTION uint32_t float_to_bits(float f) {
  return __float_as_uint(f);
}
GPU_FUNCTION int atomic_add(int* p, int v) {
  return atomicAdd(p, v);
}
template <class T>
GPU_FUNCTION T load(const T* p) {
  return *p;
}

#if defined(GPU_CUDA)
GPU_FUNCTION void warp_barrier() {
  __syncwarp();
}
template <class T>
GPU_FUNCTION T shuffle(T v, int source) {
  return __shfl_sync(0xffffffffu, v, source, kLanes);
}
template <class T>
GPU_FUNCTION T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask, kLanes);
}
GPU_FUNCTION int dot4(int a, int b, int c) {
  return __dp4a(a, b, c);
}
GPU_FUNCTION float half_to_float(uint16_t h) {
  return __half2float(__ushort_as_half(h));
}
GPU_FUNCTION uint16_t float_to_half(float f) {
  return __half_as_ushort(__float2half_rn(f));
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
GPU_FUNCTION void copy16_async(void* dst, const void* src) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(dst))),
               "l"(src)
               : "memory");
}
GPU_FUNCTION void commit_copies() {
  asm volatile("cp.async.commit_group;");
}
GPU_FUNCTION void wait_copies() {
  asm volatile("cp.async.wait_group 0;" ::: "memory");
}
#define GPU_HAS_ASYNC_COPY 1
#endif
#else
GPU_FUNCTION void warp_barrier() {
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
  __builtin_amdgcn_wave_barrier();
}
template <class T>
GPU_FUNCTION T shuffle(T v, int source) {
  return __shfl(v, source, kLanes);
}
template <class T>
GPU_FUNCTION T shuffle_xor(T v, int mask) {
  return __shfl_xor(v, mask, kLanes);
}
GPU_FUNCTION int dot4(int a, int b, int c) {
#if defined(__GFX11__) || defined(__GFX12__) || defined(__gfx1100__)
  return __builtin_amdgcn_sudot4(true, a, true, b, c, false);
#elif defined(__gfx906__) || defined(__gfx908__) || defined(__gfx90a__) || defined(__gfx942__) || \
    defined(__gfx950__) || defined(__gfx1030__) || defined(__gfx1031__) || defined(__gfx1032__)
  return __builtin_amdgcn_sdot4(a, b, c, false);
#else
  GPU_UNROLL
  for (int i = 0; i < 4; ++i) c += int(int8_t(unsigned(a) >> (8 * i))) * int(int8_t(unsigned(b) >> (8 * i)));
  return c;
#endif
}
GPU_FUNCTION float half_to_float(uint16_t h) {
  return static_cast<float>(__builtin_bit_cast(_Float16, h));
}
GPU_FUNCTION uint16_t float_to_half(float f) {
  return __builtin_bit_cast(uint16_t, static_cast<_Float16>(f));
}
#endif

#if !defined(GPU_HAS_ASYNC_COPY)
GPU_FUNCTION void copy16_async(void* dst, const void* src) {
  *static_cast<uint4*>(dst) = *static_cast<const uint4*>(src);
}
GPU_FUNCTION void commit_copies() {}
GPU_FUNCTION void wait_copies() {}
#endif
#endif

template <class T>
GPU_FUNCTION T warp_sum(T v) {
  GPU_UNROLL
  for (int mask = kLanes / 2; mask > 0; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}
// Not a number counts as the largest.
GPU_FUNCTION float larger(float a, float b) {
  return b > a || b != b ? b : a;
}
GPU_FUNCTION float warp_max(float v) {
  GPU_UNROLL
  for (int mask = kLanes / 2; mask > 0; mask /= 2) v = larger(v, shuffle_xor(v, mask));
  return v;
}

}  // namespace gemma::gpu::GPU_CHIP_NAMESPACE

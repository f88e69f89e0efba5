// The kernels of each instruction set, and the only place that chooses between sets. Compiled without their flags: what
// runs before the choice must run everywhere.
#include <span>
#include <string>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/kernels_avx2.h"
#include "backend/cpu/kernels_avx512.h"
#include "backend/cpu/kernels_neon.h"
#include "backend/cpu/kernels_ref.h"
#include "base/error.h"

namespace gemma::cpu {

const Kernels& kernels_ref() {
  static const Kernels kernels = {
      .isa = "ref",
      .gemm_quantized = gemm_quantized_ref,
      .gemm_float = gemm_float_ref,
      .add_low_rank = add_low_rank_ref,
      .quantize_row = quantize_row_ref,
      .rms_norm = rms_norm_ref,
      .add_rms_norm = add_rms_norm_ref,
      .norm_rope = norm_rope_ref,
      .geglu = geglu_ref,
      .store_kv_row = store_kv_row_ref,
      .attention = attention_ref,
      .merge_segments = merge_segments_ref,
      .load_columns = load_columns_ref,
      .screen_pack = screen_pack_ref,
      .screen_bound = screen_bound_ref,
      .layer_norm = layer_norm_ref,
      .add_bias = add_bias_ref,
      .bias_gelu = bias_gelu_ref,
      .add_residual_bias = add_residual_bias_ref,
      .exact_attention = kExactAttentionRef,
      .fast_attention = kExactAttentionRef,
      .multiply_panels = multiply_panels_ref,
      .load_panels = load_panels_ref,
      .largest = largest_ref,
      .exp_row = exp_row_ref,
      .geglu_backward = geglu_backward_ref,
  };
  return kernels;
}

namespace {

#if defined(__x86_64__) || defined(_M_X64)

const Kernels& kernels_avx2() {
  static const Kernels kernels = {
      .isa = "avx2",
      .gemm_quantized = gemm_quantized_avx2,
      .gemm_float = gemm_float_avx2,
      .add_low_rank = add_low_rank_avx2,
      .quantize_row = quantize_row_avx2,
      .rms_norm = rms_norm_avx2,
      .add_rms_norm = add_rms_norm_avx2,
      .norm_rope = norm_rope_avx2,
      .geglu = geglu_avx2,
      .store_kv_row = store_kv_row_avx2,
      .attention = attention_avx2,
      .merge_segments = merge_segments_avx2,
      .load_columns = load_columns_ref,
      .screen_pack = screen_pack_avx2,
      .screen_bound = screen_bound_avx2,
      .layer_norm = layer_norm_avx2,
      .add_bias = add_bias_avx2,
      .bias_gelu = bias_gelu_avx2,
      .add_residual_bias = add_residual_bias_avx2,
      .exact_attention = kExactAttentionAvx2,
      .fast_attention = kFastAttentionAvx2,
      .multiply_panels = multiply_panels_avx2,
      .load_panels = load_panels_ref,
      .largest = largest_avx2,
      .exp_row = exp_row_avx2,
      .geglu_backward = geglu_backward_avx2,
  };
  return kernels;
}

// The quantised products and the fast attention are its own.
const Kernels& kernels_avx_vnni() {
  static const Kernels kernels = [] {
    Kernels k = kernels_avx2();
    k.isa = "avx_vnni";
    k.gemm_quantized = gemm_quantized_avx_vnni;
    k.fast_attention = kFastAttentionAvxVnni;
    return k;
  }();
  return kernels;
}

const Kernels& kernels_avx512_vnni() {
  static const Kernels kernels = {
      .isa = "avx512_vnni",
      .gemm_quantized = gemm_quantized_avx512_vnni,
      .gemm_float = gemm_float_avx512,
      .add_low_rank = add_low_rank_avx512,
      .quantize_row = quantize_row_avx512,
      .rms_norm = rms_norm_avx512,
      .add_rms_norm = add_rms_norm_avx512,
      .norm_rope = norm_rope_avx512,
      .geglu = geglu_avx512,
      .store_kv_row = store_kv_row_avx512,
      .attention = attention_avx512,
      .merge_segments = merge_segments_avx512,
      .load_columns = load_columns_avx512,
      .screen_pack = screen_pack_avx512,
      .screen_bound = screen_bound_avx512_vnni,
      .layer_norm = layer_norm_avx512,
      .add_bias = add_bias_avx512,
      .bias_gelu = bias_gelu_avx512,
      .add_residual_bias = add_residual_bias_avx512,
      .exact_attention = kExactAttentionAvx512,
      .fast_attention = kFastAttentionAvx512Vnni,
      .multiply_panels = multiply_panels_avx512,
      .load_panels = load_panels_avx512,
      .largest = largest_avx512,
      .exp_row = exp_row_avx512,
      .geglu_backward = geglu_backward_avx512,
  };
  return kernels;
}

// Prompts and pictures are its own.
const Kernels& kernels_amx_bf16() {
  static const Kernels kernels = [] {
    Kernels k = kernels_avx512_vnni();
    k.isa = "amx_bf16";
    k.bulk = &kBulkAmxBf16;
    k.bulk_attention = bulk_attention_amx_bf16;
    k.fast_attention = kFastAttentionAmxBf16;
    return k;
  }();
  return kernels;
}

#elif defined(__aarch64__) || defined(_M_ARM64)

const Kernels& kernels_neon_dotprod() {
  static const Kernels kernels = {
      .isa = "neon_dotprod",
      .gemm_quantized = gemm_quantized_neon_dotprod,
      .gemm_float = gemm_float_neon,
      .add_low_rank = add_low_rank_neon,
      .quantize_row = quantize_row_neon,
      .rms_norm = rms_norm_neon,
      .add_rms_norm = add_rms_norm_neon,
      .norm_rope = norm_rope_neon,
      .geglu = geglu_neon,
      .store_kv_row = store_kv_row_neon,
      .attention = attention_neon,
      .merge_segments = merge_segments_neon,
      .load_columns = load_columns_ref,
      .screen_pack = screen_pack_neon,
      .screen_bound = screen_bound_neon,
      .layer_norm = layer_norm_neon,
      .add_bias = add_bias_neon,
      .bias_gelu = bias_gelu_neon,
      .add_residual_bias = add_residual_bias_neon,
      .exact_attention = kExactAttentionNeon,
      .fast_attention = kFastAttentionNeonDotprod,
      .multiply_panels = multiply_panels_neon,
      .load_panels = load_panels_ref,
      .largest = largest_neon,
      .exp_row = exp_row_neon,
      .geglu_backward = geglu_backward_neon,
  };
  return kernels;
}

// The quantised products are its own.
const Kernels& kernels_neon_i8mm() {
  static const Kernels kernels = [] {
    Kernels k = kernels_neon_dotprod();
    k.isa = "neon_i8mm";
    k.gemm_quantized = gemm_quantized_neon_i8mm;
    return k;
  }();
  return kernels;
}

#endif

const KernelRow kTable[] = {// best first
#if defined(__x86_64__) || defined(_M_X64)
                            {"amx_bf16", has_amx_bf16, kernels_amx_bf16},
                            {"avx512_vnni", has_avx512_vnni, kernels_avx512_vnni},
                            {"avx_vnni", has_avx_vnni, kernels_avx_vnni},
                            {"avx2", has_avx2, kernels_avx2},
#elif defined(__aarch64__) || defined(_M_ARM64)
                            {"neon_i8mm", has_neon_i8mm, kernels_neon_i8mm},
                            {"neon_dotprod", has_neon_dotprod, kernels_neon_dotprod},
#endif
                            {"ref", always, kernels_ref}};

}  // namespace

std::span<const KernelRow> kernel_table() {
  return kTable;
}

const Kernels& select_kernels(const std::string& isa) {
  std::string known;
  for (const KernelRow& row : kTable) {
    if (isa.empty() ? row.available() : isa == row.isa) {
      if (row.available()) return row.kernels();
      throw Error(ErrorCode::kBackendUnavailable, "ISA",
                  "instruction set " + isa + ": this processor does not have it");
    }
    known += known.empty() ? row.isa : std::string(", ") + row.isa;
  }
  throw Error(ErrorCode::kBackendUnavailable, "ISA", "instruction set " + isa + ": unknown, expected one of " + known);
}

}  // namespace gemma::cpu

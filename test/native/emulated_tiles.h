// bulk_tiles.h, attention_tiles.h and full_attention_tiles.h on arrays that behave like a processor's matrix tiles
// (tiles_amx_bf16.cpp), so that the code around the tiles is tested on processors that have none. Source: Intel's
// instruction set reference, TDPBF16PS: two sums for each element, of the even and of the odd columns, added up at the
// end; subnormal numbers are zero.
#pragma once

#include "backend/cpu/kernels.h"

namespace gemma::test {

// Null where this build or this processor lacks the vector instructions that are used beside the tiles.
const cpu::BulkGemm* emulated_bulk();
const cpu::FullAttention* emulated_full_attention();
// As Kernels::bulk_attention.
void (*emulated_bulk_attention())(const cpu::AttentionTile& tile, const cpu::Scratch& scratch);

}  // namespace gemma::test

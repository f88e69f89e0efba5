// The largest hyper-parameters that readers accept: above the published models by a wide margin, and small enough that
// every product of them stays far below 2^63.
#pragma once

namespace gemma {

// Of a decoder. The largest published: 27B, 62 layers, 5376 wide, 21504 FFN, 131072 positions.
inline constexpr int kMaxLayers = 512;
inline constexpr int kMaxModelDim = 65536;
inline constexpr int kMaxFfnDim = 1 << 20;
inline constexpr int kMaxHeads = 1024;
inline constexpr int kMaxHeadDim = 1024;
inline constexpr int kMaxPositions = 1 << 24;
inline constexpr int kMaxVocab = 1 << 24;
inline constexpr int kMaxDenseDim = 1 << 20;  // of an embedding model's dense layers

// Of a vision encoder. The published one: 27 layers, 1152 wide, 4304 FFN, 64 x 64 patches of 14 x 14. Attention's work,
// the square of the patches, stays within hours.
inline constexpr int kMaxVisionLayers = 256;
inline constexpr int kMaxVisionDim = 8192;
inline constexpr int kMaxVisionFfnDim = 65536;
inline constexpr int kMaxVisionHeads = 256;
inline constexpr int kMaxImageSize = 8192;
inline constexpr int kMaxPatchSize = 256;
inline constexpr int kMaxPatches = 32768;

}  // namespace gemma

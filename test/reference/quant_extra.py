#!/usr/bin/env python3
"""Golden values of the two block types that quants.safetensors lacks: MXFP4 and TQ2_0. Needs gguf and numpy from PyPI.

    quant_extra.py --out data/quants-extra.safetensors

As in quants.safetensors: TYPE.raw uint8 [rows, bytes of a row], TYPE.w float32 [rows, cols] by gguf-py. The first row starts
with a block of zero bytes and one of all ones, the second with zero and subnormal scales; the others are random codes.
"""

import argparse
import json
import struct
from pathlib import Path

import gguf
import numpy as np


def make(rng, kind, rows, cols):
    per, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    n = cols // per
    raw = rng.integers(0, 256, (rows, n, nbytes), dtype=np.uint8)
    raw[0, 0], raw[0, 1] = 0, 255
    if kind == "MXFP4":
        raw[:, :, 0] = rng.integers(110, 140, (rows, n))
        raw[0, 1, 0] = 250  # 2^122 * 12 is still finite
        raw[1, 0, 0], raw[1, 1, 0] = 0, 1
    else:
        # ggml writes the codes 0..2 only; 3 is decoded as +2 here and there, so it stays in the test.
        d = (rng.standard_normal((rows, n)) * 0.02).astype(np.float16)
        d[1, 0], d[1, 1] = 0.0, 3e-7
        raw[:, :, 64:66] = d[..., None].view(np.uint8)
    return raw.reshape(rows, n * nbytes)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--rows", type=int, default=6)
    ap.add_argument("--cols", type=int, default=512)
    a = ap.parse_args()
    rng = np.random.default_rng(1)
    tensors = {}
    for kind in ("MXFP4", "TQ2_0"):
        raw = make(rng, kind, a.rows, a.cols)
        w = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind]).astype(np.float32).reshape(a.rows, a.cols)
        assert np.isfinite(w).all(), kind
        tensors |= {f"{kind}.raw": raw, f"{kind}.w": w}
    header, offset = {}, 0
    for name, t in tensors.items():
        dtype = "F32" if t.dtype == np.float32 else "U8"
        header[name] = {"dtype": dtype, "shape": list(t.shape), "data_offsets": [offset, offset + t.nbytes]}
        offset += t.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    a.out.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(t.tobytes() for t in tensors.values()))


if __name__ == "__main__":
    main()

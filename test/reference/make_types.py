#!/usr/bin/env python3
"""Small files of every quantised type, with goldens and llama.cpp's distance from them: data/types/.

    make_types.py --build build/tiny --out data/types --peer-logits build/peer_logits

The files come from `make_tiny.py --spec data/types.spec.json --quant`: one layer, all matrices and the embedding of one type.
types.json holds the ids, and for each file `peer`: llama.cpp's mean KL, top-1 agreement and nRMSE against the same golden.
types.safetensors holds "<type>.logits" [positions, vocab]: Hugging Face on the dequantised weights in float32.
floats.gguf is text-a with its matrices in F32, F16 and BF16 by turns: the same values, so text-a.json is its golden.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path

import numpy as np

from common import compare_logits, forward, hf_from_gguf, save_json, save_tensors
from compare_peer import peer_run

TYPES = "q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs mxfp4 tq2_0".split()
POSITIONS = 64  # four windows


def float_mix(f32: Path, dst: Path) -> None:
    """Every third matrix stays F32, the others become F16 and BF16; all values are exact in the three."""
    import gguf

    kinds = [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16]
    r = gguf.GGUFReader(str(f32))
    w = gguf.GGUFWriter(str(dst), arch=r.fields["general.architecture"].contents())
    for k, f in r.fields.items():
        if not k.startswith("GGUF.") and k != "general.architecture":
            t = f.types[0]
            w.add_key_value(k, f.contents(), t, sub_type=f.types[-1] if t == gguf.GGUFValueType.ARRAY else None)
    n = 0
    for t in r.tensors:
        kind = kinds[0]
        if len(t.shape) == 2:
            kind, n = kinds[n % 3], n + 1
        w.add_tensor(t.name, gguf.quants.quantize(t.data, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--build", type=Path, required=True, help="where make_tiny.py put types/ and text-a/")
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--peer-logits", type=Path, required=True)
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    float_mix(a.build / "text-a" / "text-a-f32.gguf", a.out / "floats.gguf")
    rng = random.Random(23)
    ids, tensors, files = None, {}, []
    for kind in TYPES:
        src = a.build / "types" / f"types-{kind}.gguf"
        dst = a.out / f"{kind}.gguf"
        shutil.copyfile(src, dst)
        model, _, _ = hf_from_gguf(dst)
        cfg = model.config
        ids = ids or [2] + [rng.randrange(4, cfg.vocab_size) for _ in range(POSITIONS - 1)]
        ref = forward(model, ids)
        got, _ = peer_run(a.peer_logits, dst, [ids], None, cfg.vocab_size, cfg.hidden_size)
        r = compare_logits(ref, np.asarray(got))
        tensors[f"{kind}.logits"] = ref
        files.append({"type": kind.upper(), "gguf": dst.name, "logits": f"{kind}.logits",
                      "peer": {"kl_mean": r["kl_mean"], "top1": r["top1_match_pct"] / 100, "nrmse": r["nrmse"]}})  # fmt: skip
        print(f"  {kind:7s} nRMSE {r['nrmse']:.4f}  mean KL {r['kl_mean']:.3g}  top-1 {r['top1_match_pct']:.1f} %")
    save_tensors(a.out / "types.safetensors", tensors)
    save_json(a.out / "types.json", {"tensors": "types.safetensors", "vocab_size": cfg.vocab_size, "ids": ids, "files": files})


if __name__ == "__main__":
    main()

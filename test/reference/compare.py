#!/usr/bin/env python3
"""Compare an engine's logits with a golden.

    compare.py --golden data/long-text.json [--case NAME] --print-ids          the case's ids, separated by commas
    compare.py --golden data/long-text.json [--case NAME] --logits OURS.f32    KL, top-1, nRMSE, perplexity
               [--full REFERENCE.f32]

OURS.f32 is raw little-endian float32 [positions, vocab]. Against a golden of the best logits (or, with --full, against all the
reference's logits as golden_gguf.py --save-full wrote them) it prints one line for the engine and, where the golden has them,
one for llama.cpp. Only numpy and safetensors are needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from common import compare_logits, compare_topk, load_json, load_tensors, perplexity


def show(name: str, r: dict) -> None:
    print(f"{name:10s} " + "  ".join(f"{k}={v:.6g}" for k, v in r.items()))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--golden", type=Path, required=True)
    ap.add_argument("--case", help="default: the first")
    ap.add_argument("--print-ids", action="store_true")
    ap.add_argument("--logits", type=Path)
    ap.add_argument("--full", type=Path)
    a = ap.parse_args()
    golden = load_json(a.golden)
    cases = {c["name"]: c for c in golden["cases"]}
    case = cases[a.case or next(iter(cases))]
    ids, name, n_vocab = case["ids"], case["name"], golden["vocab_size"]
    if a.print_ids:
        print(",".join(map(str, ids)))
        return
    if not a.logits:
        ap.error("--logits or --print-ids is needed")
    got = np.memmap(a.logits, "<f4", "r").reshape(-1, n_vocab)
    if len(got) != len(ids):
        raise SystemExit(f"{a.logits} holds {len(got)} positions, the case has {len(ids)}")
    tensors = load_tensors(a.golden.parent / golden["tensors"])
    if a.full or f"{name}.logits" in tensors:
        ref = np.memmap(a.full, "<f4", "r").reshape(-1, n_vocab) if a.full else tensors[f"{name}.logits"]
        peer = case.get("peer")
        r = compare_logits(ref, got)
    else:
        top = [tensors[f"{name}.{k}"] for k in ("top_ids", "top_logits", "logsumexp")]
        peer = case.get("peer_topk")
        r = compare_topk(*top, got)
    r["perplexity"] = perplexity(got, ids)
    show("engine", r)
    if peer:
        show("llama.cpp", peer | {"perplexity": case["peer"]["perplexity"]})
    print(f"reference  perplexity={case['perplexity']:.6g}")


if __name__ == "__main__":
    main()

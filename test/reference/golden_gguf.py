#!/usr/bin/env python3
"""Golden outputs of any Gemma 3 GGUF: weights dequantised to float32 and run by Hugging Face transformers.

    golden_gguf.py --gguf F.gguf --cases cases.json --out OUT/NAME [--tokenizer tokenizer.json] [--topk 64]
                   [--mmproj M.gguf --image-dir DIR] [--format npz]

An oracle for quantised files: what exact arithmetic on the stored weights gives. Engines which also quantise activations
differ from it by that noise. With --topk K only the K best logits of each position and the log-sum-exp over all are kept
(<case>.top_ids, .top_logits, .logsumexp), for files of real size; 270M needs 2 GB of memory, 1B 6 GB, 4B 20 GB.
With --peer the full logits are also compared with llama.cpp's (see peer_logits.cpp), and the agreement is printed and kept in
the JSON ("peer", and "peer_topk" where only the K best logits are kept). --save-full DIR keeps the reference's and the peer's
logits of each case as DIR/<case>.f32 and DIR/<case>.peer.f32.
Cases with "text" need --tokenizer (a tokenizer.json); cases with "ids" do not.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from common import (
    compare_logits, compare_topk, hf_from_gguf, load_json, load_tokenizer, perplexity, pixel_levels, run_cases, save_json,
    save_tensors, topk_summary,
)  # fmt: skip
from compare_peer import peer_run, split_at_images


def sha256(path: Path) -> str:
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while b := f.read(1 << 20):
            h.update(b)
    return h.hexdigest()


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--gguf", type=Path, required=True)
    ap.add_argument("--mmproj", type=Path)
    ap.add_argument("--cases", type=Path, required=True)
    ap.add_argument("--image-dir", type=Path, default=Path("."))
    ap.add_argument("--tokenizer", type=Path)
    ap.add_argument("--topk", type=int, default=0)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--peer", type=Path, help="the compiled peer_logits")
    ap.add_argument("--peer-batch", type=int, help="decode text in batches of this many tokens")
    ap.add_argument("--save-full", type=Path)
    ap.add_argument("--format", choices=["safetensors", "npz"], default="safetensors")
    a = ap.parse_args()
    model, fields, mm = hf_from_gguf(a.gguf, a.mmproj)
    tok = load_tokenizer(a.tokenizer) if a.tokenizer else None
    cases = load_json(a.cases)
    cases = cases["cases"] if isinstance(cases, dict) else cases
    stop = {fields["tokenizer.ggml.eos_token_id"]} if a.topk else set()

    peers = {}

    def compare(name, ids, logits, pixels):
        if a.save_full:
            a.save_full.mkdir(parents=True, exist_ok=True)
            logits.tofile(a.save_full / f"{name}.f32")
        if not a.peer:
            return
        items = [ids] if pixels is None else split_at_images(ids, pixel_levels(pixels), mm["image_token_id"])
        n_embd = model.config.get_text_config().hidden_size
        got, _ = peer_run(
            a.peer, a.gguf, items, a.mmproj if pixels is not None else None, logits.shape[-1], n_embd, a.peer_batch
        )
        if a.save_full:
            got.tofile(a.save_full / f"{name}.peer.f32")
        r = compare_logits(logits, got)
        if pixels is None and len(ids) > 1:
            r |= {"perplexity": perplexity(got, ids)}
        peers[name] = {"peer": r}
        print(f"  {name} against llama.cpp: " + " ".join(f"{k}={v:.5g}" for k, v in r.items()), flush=True)
        if a.topk:
            r = compare_topk(**topk_summary(logits, a.topk), got=got)
            peers[name]["peer_topk"] = r
            print(f"  {name} by the {a.topk} best: " + " ".join(f"{k}={v:.5g}" for k, v in r.items()), flush=True)

    records, tensors = run_cases(
        model, tok, cases, image_dir=a.image_dir, mm=mm, topk=a.topk, stop=stop, hook=compare
    )
    for rec in records:
        rec |= peers.get(rec["name"], {})
    a.out.parent.mkdir(parents=True, exist_ok=True)
    file = a.out.with_name(a.out.name + "." + a.format)
    save_tensors(file, tensors)
    cfg = model.config.get_text_config()
    save_json(
        a.out.with_name(a.out.name + ".json"),
        {
            "gguf": a.gguf.name,
            "sha256": sha256(a.gguf),
            "tensors": file.name,
            "reference": "weights dequantised to float32, Hugging Face transformers, eager attention, no cache",
            "vocab_size": cfg.vocab_size,
            "hidden_size": cfg.hidden_size,
            "layer_types": cfg.layer_types,
            **({"mm": mm} if mm else {}),
            "cases": records,
        },
    )


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Compare goldens with llama.cpp's logits: compare_peer.py --golden G.json --gguf F.gguf --tool peer_logits [--mmproj M.gguf]

Builds on peer_logits.cpp (see its head for how to compile it). Prints one line a case and the totals.
Images go to llama.cpp already resized by the reference, because its own Gemma 3 preprocessing pads instead of stretching.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from common import compare_logits, load_json, load_tensors


def peer_run(tool: Path, gguf: Path, items: list, mmproj: Path | None, n_vocab: int, n_embd: int, batch: int | None = None):
    """items: lists of ids, or uint8 arrays [h, w, 3]. Returns (logits, image rows)."""
    with tempfile.TemporaryDirectory() as d:
        lines = []
        for i, it in enumerate(items):
            if isinstance(it, np.ndarray):
                f = Path(d) / f"{i}.rgb"
                f.write_bytes(np.ascontiguousarray(it).tobytes())
                lines.append(f"image {f} {it.shape[1]} {it.shape[0]}")
            else:
                lines.append("ids " + " ".join(map(str, it)))
        (Path(d) / "script").write_text("\n".join(lines) + "\n")
        out = Path(d) / "out.f32"
        env = dict(os.environ)  # OMP_NUM_THREADS: common.py sets 1 where there is none
        if batch:
            env["PEER_BATCH"] = str(batch)
        cmd = [tool, gguf, Path(d) / "script", out] + ([mmproj] if mmproj else [])
        subprocess.run([str(c) for c in cmd], check=True, env=env)
        logits = np.memmap(out, np.float32, "r").reshape(-1, n_vocab)  # stays valid when the folder is gone
        e = Path(str(out) + ".embd")
        return logits, (np.fromfile(e, np.float32).reshape(-1, n_embd) if e.exists() else None)


def split_at_images(ids: list[int], levels: np.ndarray, soft: int) -> list:
    """ids with runs of the soft token -> id lists and images, in order."""
    items, i, n = [], 0, 0
    while i < len(ids):
        j = i
        if ids[i] == soft:
            while j < len(ids) and ids[j] == soft:
                j += 1
            items.append(levels[n].transpose(1, 2, 0))
            n += 1
        else:
            while j < len(ids) and ids[j] != soft:
                j += 1
            items.append(ids[i:j])
        i = j
    assert n == len(levels)
    return items


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--golden", type=Path, required=True)
    ap.add_argument("--gguf", type=Path, required=True)
    ap.add_argument("--mmproj", type=Path)
    ap.add_argument("--tool", type=Path, required=True)
    ap.add_argument("--batch", type=int, help="decode text in batches of this many tokens")
    ap.add_argument("-q", "--quiet", action="store_true", help="totals only")
    a = ap.parse_args()
    g = load_json(a.golden)
    t = load_tensors(a.golden.parent / g["tensors"])
    refs, gots = [], []
    for c in g["cases"]:
        name, ids = c["name"], c["ids"]
        if c.get("images"):
            items = split_at_images(ids, t[f"{name}.pixel_levels"], g["mm"]["image_token_id"])
        else:
            items = [ids]
        got, emb = peer_run(a.tool, a.gguf, items, a.mmproj if c.get("images") else None, g["vocab_size"], g["hidden_size"], a.batch)
        ref = t[f"{name}.logits"]
        got = got[-len(ref) :]
        r = compare_logits(ref, got)
        if emb is not None:
            e = t[f"{name}.image_embeds"].reshape(emb.shape)
            r["image_embeds_max_abs"] = float(np.abs(e - emb).max())
        if not a.quiet:
            print(f"  {name:16s} " + " ".join(f"{k}={v:.3g}" for k, v in r.items()))
        refs.append(ref)
        gots.append(got)
    r = compare_logits(np.concatenate(refs), np.concatenate(gots))
    print(f"{a.gguf.name:28s} " + " ".join(f"{k}={v:.4g}" for k, v in r.items()))


if __name__ == "__main__":
    main()

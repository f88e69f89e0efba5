"""Compares the engine's logits of an exported model with transformers' in float32, on held-out pictures; keeps the latter.

    check_export.py --export build/demo/export --data test/demo

Here the vision encoder computes in 8 bits, as by default. test/api/demo.test.ts compares golden.json and .safetensors, which
this writes, with the engine's exact encoder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch

from batches import image_text
from model import IMAGE_SIZE, IMAGE_SOFT_TOKEN

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "test" / "reference"))
from common import compare_logits, make_image_processor, open_rgb, save_json, save_tensors  # noqa: E402

KEPT = 16  # positions at the prompt's end that golden.safetensors has
CLI = Path(__file__).resolve().parent.parent / "dist" / "cli" / "main.js"


def theirs(model, tokenizer, image: Path | None, question: str, pan_and_scan: bool) -> tuple[list[int], np.ndarray]:
    text, kw = "", {}
    if image:
        feats = make_image_processor(IMAGE_SIZE)([open_rgb(image)], return_tensors="np", do_pan_and_scan=pan_and_scan,
                                                 pan_and_scan_min_crop_size=256, pan_and_scan_max_num_crops=4,
                                                 pan_and_scan_min_ratio_to_activate=1.2)  # fmt: skip
        text = image_text(int(feats["num_crops"][0]))
        kw["pixel_values"] = torch.from_numpy(np.asarray(feats["pixel_values"], dtype=np.float32))
    ids = tokenizer.encode(f"<bos><start_of_turn>user\n{text}{question}<end_of_turn>\n<start_of_turn>model\n", add_special_tokens=False).ids
    x = torch.tensor([ids])
    soft = tokenizer.token_to_id(IMAGE_SOFT_TOKEN)
    with torch.no_grad():
        out = model(input_ids=x, attention_mask=torch.ones_like(x), token_type_ids=(x == soft).long(), **kw)
    return ids, out.logits[0].float().numpy()


def ours(gguf: Path, mmproj: Path, image: Path | None, question: str, pan_and_scan: bool, out: Path) -> tuple[list[int], np.ndarray]:
    command = ["node", str(CLI), "logits", "--json", "--model", str(gguf), "--mmproj", str(mmproj), "--all", "--out", str(out)]
    command += ["--image", str(image)] if image else []
    command += ["--pan-and-scan"] if pan_and_scan else []
    answer = json.loads(subprocess.run([*command, "--", question], check=True, capture_output=True, text=True).stdout)
    return answer["tokens"], np.fromfile(out, dtype="<f4").reshape(answer["shape"])


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--export", type=Path, required=True)
    ap.add_argument("--data", type=Path, required=True)
    a = ap.parse_args()
    from tokenizers import Tokenizer
    from transformers import Gemma3ForConditionalGeneration

    torch.set_num_threads(1)
    model = Gemma3ForConditionalGeneration.from_pretrained(a.export / "hf", attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(a.export / "hf" / "tokenizer.json"))
    images = a.export / "images"
    with tarfile.open(a.data / "images.tar") as archive:
        archive.extractall(images, filter="data")
    cases = [(None, "What is the capital of France?", False), (images / "shapes-003.webp", "Describe the picture.", False),
             (images / "wide-002.webp", "What does it say?", True), (images / "text-001.webp", "Read the text.", False)]  # fmt: skip
    records, tensors = [], {}
    for image, question, pan_and_scan in cases:
        ids, reference = theirs(model, tokenizer, image, question, pan_and_scan)
        for file in ("demo-f16.gguf", "demo.gguf"):
            got_ids, got = ours(a.export / file, a.export / "mmproj-demo.gguf", image, question, pan_and_scan, a.export / "logits.f32")
            assert ids == got_ids, (question, ids, got_ids)
            figures = compare_logits(reference, got)
            print(f"{file:14} {question:32} {len(ids):4} tokens", {k: float(f"{v:.3g}") for k, v in figures.items()}, flush=True)
        name = f"{image.stem if image else 'text'}"
        records.append({"name": name, "image": image.name if image else None, "question": question, "panAndScan": pan_and_scan, "ids": ids})
        tensors[name] = np.ascontiguousarray(reference[-KEPT:])
    save_json(a.data / "golden.json", records)
    save_tensors(a.data / "golden.safetensors", tensors)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Golden of ShieldGemma 2 on a tiny checkpoint: prompts, and the probability that an image violates a policy.

    make_shieldgemma.py --model build/tiny/mm-a/hf --name mm-a --data data --out data/shieldgemma.json

The probabilities are those of transformers' ShieldGemma2ForImageClassification, in float32 with eager attention, one prompt at a
time. The prompts are those of its processor with the published checkpoint's template, of which OUT has "before" and "after" the
policy's text (kept from an older OUT); <image_soft_token>*N stands for N soft tokens. The tiny vocabulary lacks the words Yes and No,
so any two ids stand for them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from common import load_json, load_tensors, load_tokenizer, save_json, torch_setup

YES, NO = 300, 333
IMAGES = ["img-square", "img-photo"]


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", type=Path, required=True)
    ap.add_argument("--name", required=True)
    ap.add_argument("--data", type=Path, required=True, help="folder with NAME.safetensors, which has the images' pixels")
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--prompts", type=Path, help="JSON with before, after, policies; default: OUT")
    a = ap.parse_args()
    import torch
    import transformers
    from transformers import AutoConfig, Gemma3ForConditionalGeneration, ShieldGemma2Config, ShieldGemma2ForImageClassification

    torch_setup()
    texts = load_json(a.prompts or a.out)
    before, after, policies = texts["before"], texts["after"], texts["policies"]
    c = AutoConfig.from_pretrained(a.model)
    inner, info = Gemma3ForConditionalGeneration.from_pretrained(a.model, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    cfg = ShieldGemma2Config(text_config=c.text_config, vision_config=c.vision_config, mm_tokens_per_image=c.mm_tokens_per_image,
                             image_token_index=c.image_token_index, boi_token_index=c.boi_token_index, eoi_token_index=c.eoi_token_index,
                             yes_token_index=YES, no_token_index=NO)  # fmt: skip
    cfg._attn_implementation = "eager"
    model = ShieldGemma2ForImageClassification(cfg).eval()
    model.model = inner.eval()
    tok = load_tokenizer(a.model)
    tensors = load_tensors(a.data / f"{a.name}.safetensors")
    cases = []
    for image in IMAGES:
        levels = tensors[f"{image}.pixel_levels"][:1]
        pixels = torch.from_numpy(levels.astype(np.float32) / np.float32(127.5) - 1)
        for name, policy in policies.items():
            text = (before + policy + after).replace("<image_soft_token>*N", "<image_soft_token>" * c.mm_tokens_per_image)
            ids = torch.tensor([tok.encode(text, add_special_tokens=False).ids])
            with torch.no_grad():
                o = model(input_ids=ids, token_type_ids=(ids == c.image_token_index).long(), attention_mask=torch.ones_like(ids), pixel_values=pixels)
            p = float(o.probabilities[0, 0])  # column 0 is Yes, though the docstring says 1
            cases.append({"image": image, "policy": name, "tokens": ids.shape[1], "logits": [round(float(x), 6) for x in o.logits[0]], "p_violates": round(p, 7)})
    save_json(a.out, {"model": a.name, "transformers": transformers.__version__, "yes": YES, "no": NO, "before": before, "after": after,
                      "policies": policies, "cases": cases})  # fmt: skip
    for case in cases:
        print(case)


if __name__ == "__main__":
    main()

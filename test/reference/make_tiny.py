#!/usr/bin/env python3
"""Make tiny random-weight Gemma 3 checkpoints, their GGUF files and quantised variants.

    make_tiny.py --spec data/public.spec.json --out build/tiny --peer LLAMA_CPP [--only NAME] [--quant]

For every model of the spec:  OUT/NAME/hf/            safetensors + config + tokenizer (+ processor)
                              OUT/NAME/NAME-f32.gguf  -f16 -bf16, and NAME-<quant>.gguf with --quant
                              OUT/NAME/mmproj-NAME-f32.gguf -f16 -bf16 (multimodal), mmproj-NAME-f16-legacy.gguf

All weights are rounded to values which bfloat16 and float16 both hold, so the F32, F16 and BF16 files of a model hold
the very same weights and one float32 golden serves the three. The exception is made by the converter itself: it keeps
norms in F32 (as 1 + w, still exact).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from common import load_json, save_json, torch_setup, write_tokenizer

QUANTS_32 = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"]
QUANTS_256 = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "TQ2_0"]
FTYPE = {"MXFP4": "MXFP4_MOE", "Q2_K": "Q2_K", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "Q6_K": "Q6_K"}


def exact(w):
    """Round to bfloat16 and drop what float16 would hold as a subnormal."""
    import torch

    w = w.to(torch.bfloat16).float()
    w[w.abs() < 2.0**-14] = 0.0
    assert torch.equal(w, w.to(torch.float16).float())
    return w


def init_weights(model, spec: dict, seed: int) -> None:
    """Random weights under which attention is neither flat nor one-hot and logits spread over a few units."""
    import torch

    gen = torch.Generator().manual_seed(seed)
    normal = lambda shape, std, mean=0.0: torch.randn(shape, generator=gen) * std + mean  # noqa: E731
    for name, p in model.named_parameters():
        s = p.shape
        if name.endswith("lm_head.weight"):
            continue  # tied
        if "vision_tower" in name:
            if name.endswith("bias"):
                w = normal(s, 0.1)
            elif "layer_norm" in name or "layernorm" in name:
                w = normal(s, 0.2, 1.0)
            elif "position_embedding" in name:
                w = normal(s, 0.5)
            elif "patch_embedding" in name:
                w = normal(s, 1.5 / (s[1] * s[2] * s[3]) ** 0.5)
            elif "q_proj" in name or "k_proj" in name:
                w = normal(s, 1.4 / s[1] ** 0.5)
            else:
                w = normal(s, 1.0 / s[1] ** 0.5)
        elif name.endswith("mm_input_projection_weight"):
            w = normal(s, 1.0 / s[0] ** 0.5)
        elif name.endswith("embed_tokens.weight"):
            # small, or the tied output layer would just repeat the input token
            w = normal(s, spec.get("embed_std", 0.5) / s[1] ** 0.5)
        elif name.endswith("q_norm.weight") or name.endswith("k_norm.weight"):
            w = normal(s, 0.3, spec.get("qk_norm_mean", 0.2))
        elif "post_attention_layernorm" in name or "post_feedforward_layernorm" in name:
            w = normal(s, spec.get("post_norm_std", 0.3), spec.get("post_norm_mean", 0.0))
        elif name.endswith("norm.weight") and name.count(".layers.") == 0:
            w = normal(s, 0.6, spec.get("final_norm_mean", 3.5))  # makes up for the small embeddings
        elif "norm" in name:
            w = normal(s, 0.25)
        else:
            w = normal(s, 1.0 / s[1] ** 0.5)
        p.data.copy_(exact(w))


def text_config(m: dict, vocab: int):
    from transformers import Gemma3TextConfig

    rope_global = {"rope_type": "default", "rope_theta": m.get("rope_theta", 1000000.0)}
    if m.get("rope_factor"):
        rope_global |= {"rope_type": "linear", "factor": m["rope_factor"]}
    local = {"rope_type": "default", "rope_theta": m.get("rope_local_theta", 10000.0)}
    pat = m.get("sliding_window_pattern", 6)  # a period, or one bool per layer: is it local?
    is_local = pat if isinstance(pat, list) else [bool((i + 1) % pat) for i in range(m["layers"])]
    types = ["sliding_attention" if x else "full_attention" for x in is_local]
    return Gemma3TextConfig(
        vocab_size=vocab,
        hidden_size=m["hidden"],
        intermediate_size=m["ffn"],
        num_hidden_layers=m["layers"],
        num_attention_heads=m["heads"],
        num_key_value_heads=m["kv_heads"],
        head_dim=m["head_dim"],
        # a gemma3 GGUF has no key for this; see README.md
        query_pre_attn_scalar=m["hidden"] // m["heads"] if m["layers"] == 62 else m["head_dim"],
        sliding_window=m["window"],
        layer_types=types,
        rope_parameters={"full_attention": rope_global, "sliding_attention": local},
        final_logit_softcapping=m.get("final_softcap"),
        max_position_embeddings=m.get("context", 4096),
        rms_norm_eps=m.get("eps", 1e-6),
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        attn_implementation="eager",
    )


def make_model(m: dict, out: Path, seed: int) -> None:
    import torch
    from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, SiglipVisionConfig

    torch_setup()
    hf = out / "hf"
    hf.mkdir(parents=True, exist_ok=True)
    special = write_tokenizer(hf, m["vocab"], seed)
    tc = text_config(m, m["vocab"])
    if m["kind"] == "text":
        model = Gemma3ForCausalLM(tc)
    else:
        v = m["vision"]
        vc = SiglipVisionConfig(
            hidden_size=v["hidden"], intermediate_size=v["ffn"], num_hidden_layers=v["layers"], num_attention_heads=v["heads"],
            image_size=v["image_size"], patch_size=14, layer_norm_eps=1e-6, vision_use_head=False,
        )  # fmt: skip
        cfg = Gemma3Config(
            text_config=tc,
            vision_config=vc,
            mm_tokens_per_image=v["tokens"],
            boi_token_index=special["<start_of_image>"],
            eoi_token_index=special["<end_of_image>"],
            image_token_index=special["<image_soft_token>"],
        )
        model = Gemma3ForConditionalGeneration(cfg)
        proc = {
            "do_convert_rgb": None, "do_normalize": True, "do_pan_and_scan": None, "do_rescale": True, "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "image_processor_type": "Gemma3ImageProcessor",
            "image_seq_length": v["tokens"], "pan_and_scan_max_num_crops": None, "pan_and_scan_min_crop_size": None,
            "pan_and_scan_min_ratio_to_activate": None, "processor_class": "Gemma3Processor", "resample": 2,
            "rescale_factor": 1 / 255, "size": {"height": v["image_size"], "width": v["image_size"]},
        }  # fmt: skip
        save_json(hf / "preprocessor_config.json", proc)
        save_json(hf / "processor_config.json", {"image_seq_length": v["tokens"], "processor_class": "Gemma3Processor"})
    with torch.no_grad():
        init_weights(model, m, seed)
    model.save_pretrained(hf)
    if m["kind"] != "text":
        hub_names(hf / "model.safetensors")
    save_json(out / "special_tokens.json", special)


def hub_names(path: Path) -> None:
    """Give the vision tensors the names published checkpoints use (vision_tower.vision_model.*)."""
    from safetensors.torch import load_file, save_file

    t = load_file(str(path))
    fix = lambda k: k if "vision_tower." not in k or ".vision_model." in k else k.replace("vision_tower.", "vision_tower.vision_model.")  # noqa: E731
    save_file({fix(k): v.contiguous() for k, v in t.items()}, str(path), metadata={"format": "pt"})


def run(cmd: list, **kw) -> None:
    env = dict(os.environ, OMP_NUM_THREADS="1")
    r = subprocess.run([str(c) for c in cmd], env=env, capture_output=True, text=True, **kw)
    if r.returncode:
        sys.stderr.write(r.stdout[-3000:] + r.stderr[-3000:])
        raise SystemExit(f"failed: {' '.join(map(str, cmd))}")


def rewrite_gguf(src: Path, dst: Path, add: dict | None = None, rename: dict[str, str] | None = None) -> None:
    """Copy a GGUF with extra metadata keys and renamed tensors."""
    import gguf

    r = gguf.GGUFReader(str(src))
    w = gguf.GGUFWriter(str(dst), arch=r.fields["general.architecture"].contents())
    for k, f in r.fields.items():
        if k.startswith("GGUF.") or k == "general.architecture":
            continue
        t = f.types[0]
        w.add_key_value(k, f.contents(), t, sub_type=f.types[-1] if t == gguf.GGUFValueType.ARRAY else None)
    for k, v in (add or {}).items():
        if isinstance(v, list):
            w.add_array(k, v)
        else:
            w.add_uint32(k, v)
    for t in r.tensors:
        name = t.name
        for a, b in (rename or {}).items():
            if a in name:
                name = name.replace(a, b)
                break
        w.add_tensor(name, t.data, raw_dtype=t.tensor_type)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def convert(m: dict, out: Path, peer: Path) -> None:
    conv = peer / "convert_hf_to_gguf.py"
    name = m["name"]
    for t in ("f32", "f16", "bf16"):
        g = out / f"{name}-{t}.gguf"
        run([sys.executable, conv, out / "hf", "--outtype", t, "--outfile", g, "--model-name", name])
        if "sliding_window_pattern" in m:
            # the converter writes no such key for gemma3, but the peer reads it: a period or one bool per layer
            v = m["sliding_window_pattern"]
            tmp = out / "tmp.gguf"
            rewrite_gguf(g, tmp, add={"gemma3.attention.sliding_window_pattern": v})
            tmp.replace(g)
        if m["kind"] != "text":
            run([sys.executable, conv, out / "hf", "--mmproj", "--outtype", t, "--outfile", out / f"mmproj-{name}-{t}.gguf", "--model-name", name])
    if m["kind"] != "text":
        # mmproj files of 2025 name fc1 ffn_down and fc2 ffn_up
        rewrite_gguf(
            out / f"mmproj-{name}-f16.gguf", out / f"mmproj-{name}-f16-legacy.gguf",
            rename={".ffn_up.": ".ffn_down.", ".ffn_down.": ".ffn_up."},
        )  # fmt: skip


def quantize(m: dict, out: Path, peer: Path) -> None:
    exe = peer / "build" / "bin" / "llama-quantize"
    if not exe.exists():
        print(f"  no {exe}: no quantised files")
        return
    name, src = m["name"], out / f"{m['name']}-f32.gguf"
    rows = [m["hidden"], m["ffn"], m["heads"] * m["head_dim"]]
    kinds = []
    if all(r % 32 == 0 for r in rows):
        kinds += QUANTS_32
    if all(r % 256 == 0 for r in rows):
        kinds += QUANTS_256
    for q in kinds:
        run([exe, "--pure", src, out / f"{name}-{q.lower()}.gguf", FTYPE.get(q, q), "1"])
    if "Q4_K" in kinds:
        run([exe, src, out / f"{name}-q4_k_m.gguf", "Q4_K_M", "1"])
        # one file with a different type in every layer, the embedding in Q6_K unless the spec says otherwise
        order = m.get("mix") or "q2_K q3_K q4_K q5_K q6_K iq4_xs iq4_nl q5_1 q4_1 q5_0 q4_0 q8_0".split()
        opts = []
        for i in range(m["layers"]):
            opts += ["--tensor-type", rf"blk\.{i}\..*={order[i % len(order)]}"]
        run([exe, "--token-embedding-type", m.get("mix_embedding", "q6_K"), *opts, src, out / f"{name}-mix.gguf", "Q8_0", "1"])
    if m["kind"] == "text" and "Q4_0" in kinds:
        # Google's QAT files: Q4_0 matrices, F16 embedding
        run([exe, "--pure", "--token-embedding-type", "f16", src, out / f"{name}-qat.gguf", "Q4_0", "1"])


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--spec", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--peer", type=Path, help="a llama.cpp checkout (convert_hf_to_gguf.py, build/bin/llama-quantize)")
    ap.add_argument("--only", help="make just this model")
    ap.add_argument("--quant", action="store_true", help="also the quantised files")
    a = ap.parse_args()
    spec = load_json(a.spec)
    for i, m in enumerate(spec["models"]):
        if a.only and m["name"] != a.only:
            continue
        out = a.out / m["name"]
        print(m["name"], flush=True)
        make_model(m, out, spec["seed"] * 1000 + i)
        if a.peer:
            convert(m, out, a.peer)
            if a.quant:
                quantize(m, out, a.peer)
        for g in sorted(out.glob("*.gguf")):
            print(f"  {g.name} {g.stat().st_size}")
        (out / "spec.json").write_text(json.dumps(m, indent=1) + "\n")


if __name__ == "__main__":
    main()

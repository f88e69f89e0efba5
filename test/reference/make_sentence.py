#!/usr/bin/env python3
"""Embeddings of folders of sentence-transformers, by sentence-transformers itself: poolings, dense layers, prompts, lengths, an adapter.

    make_sentence.py ST OUT       ST: the folder of which embedding-f16.gguf was made; OUT: the folder of sentence.json

Each variant of OUT/sentence.json changes ST as test/api/sentence-transformers.test.ts changes what it makes of embedding-f16.gguf;
OUT/sentence.safetensors gets its embeddings, [texts, dimensions] under the variant's name. Biases, the third dense layer and the
adapter follow from formulas, so that nothing of them is stored. float32, eager attention, one text at a time.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

TARGETS = [("self_attn", "q_proj"), ("self_attn", "v_proj"), ("mlp", "down_proj")]
CLASSES = {"Identity": "linear.Identity"}


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def pattern(rows: int, columns: int, a: int, b: int, c: int, m: int, scale: float) -> torch.Tensor:
    i, j = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    return (((i * a + j * b + c) % m - m // 2) / scale).float()


def make(st: Path, folder: Path, v: dict) -> None:
    shutil.copytree(st, folder, copy_function=shutil.copyfile)
    config = json.loads((st / "config.json").read_text())
    write(folder / "config.json", config | {"use_bidirectional_attention": not v.get("causal", False)})
    weights = [load_file(st / f"{i}_Dense" / "model.safetensors")["linear.weight"] for i in (2, 3)]
    weights.append(weights[0][:32].clone())
    for i in (2, 3):
        shutil.rmtree(folder / f"{i}_Dense")
    names = {"Transformer": "models.Transformer", "Pooling": "models.Pooling", "Dense": "models.Dense", "Normalize": "models.Normalize"}
    if v.get("new"):
        names = {"Transformer": "base.modules.transformer.Transformer", "Pooling": "sentence_transformer.modules.pooling.Pooling",
                 "Dense": "base.modules.dense.Dense", "Normalize": "base.modules.normalize.Normalize"}  # fmt: skip
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if v.get("new"):
        write(folder / "1_Pooling" / "config.json", {"embedding_dimension": 64, "pooling_mode": v["pooling"], "include_prompt": True})
    else:
        flag = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "weightedmean": "weightedmean_tokens"}.get(v["pooling"], v["pooling"])
        write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 64, f"pooling_mode_{flag}": True, "include_prompt": True})
    for i, dense in enumerate(v.get("dense", [])):
        w, name = weights[i], f"{len(parts)}_Dense"
        tensors = {"linear.weight": w.contiguous()}
        if dense["bias"]:
            tensors["linear.bias"] = pattern(1, w.shape[0], 0, 37, 0, 65, 64)[0].contiguous()
        activation = CLASSES.get(dense["activation"], "activation." + dense["activation"])
        write(folder / name / "config.json", {"in_features": w.shape[1], "out_features": w.shape[0], "bias": dense["bias"],
                                              "activation_function": "torch.nn.modules." + activation})  # fmt: skip
        save_file(tensors, folder / name / "model.safetensors")
        parts.append((name, "Dense"))
    if v["normalize"]:
        parts.append((f"{len(parts)}_Normalize", "Normalize"))
    write(folder / "modules.json", [{"idx": i, "name": str(i), "path": p, "type": "sentence_transformers." + names[t]} for i, (p, t) in enumerate(parts)])
    for name, key in (("config_sentence_transformers.json", "prompts"), ("sentence_bert_config.json", "length")):
        if key in v:
            write(folder / name, v[key])
    if not v.get("eos", True):
        tokenizer = json.loads((st / "tokenizer.json").read_text())
        single = tokenizer["post_processor"]["single"]
        tokenizer["post_processor"]["single"] = [part for part in single if part.get("SpecialToken", {}).get("id") != "<eos>"]
        write(folder / "tokenizer.json", tokenizer)
        config = json.loads((st / "tokenizer_config.json").read_text())
        write(folder / "tokenizer_config.json", {k: x for k, x in config.items() if not k.startswith("add_")})


def adapter(model, folder: Path):
    tensors = {}
    for layer, block in enumerate(model.layers):
        for t, (part, name) in enumerate(TARGETS):
            w = getattr(getattr(block, part), name).weight
            key = f"base_model.model.layers.{layer}.{part}.{name}.lora_"
            tensors[key + "A.weight"] = pattern(4, w.shape[1], 31, 17, 7 * layer + t, 13, 64)
            tensors[key + "B.weight"] = pattern(w.shape[0], 4, 19, 5, layer + t, 11, 32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    write(folder / "adapter_config.json", {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": [t[1] for t in TARGETS]})
    return PeftModel.from_pretrained(model, folder).eval()


def main() -> None:
    st, out = map(Path, sys.argv[1:])
    golden = json.loads((out / "sentence.json").read_text())
    texts = json.loads((out / "embedding.json").read_text())["texts"]
    tensors = {}
    for v in golden["variants"]:
        with tempfile.TemporaryDirectory() as tmp:
            folder = Path(tmp) / "st"
            make(st, folder, v)
            model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"attn_implementation": "eager", "dtype": torch.float32})
            if v.get("adapter"):
                model[0].model = adapter(model[0].model, Path(tmp) / "adapter")
            rows = [model.encode(texts[i], batch_size=1, **({"prompt_name": v["task"]} if "task" in v else {})) for i in golden["texts"]]
            tensors[v["name"]] = torch.from_numpy(np.stack(rows)).float()
            print(v["name"], tensors[v["name"]].shape, [float(np.linalg.norm(row)) for row in rows])
    save_file(tensors, out / "sentence.safetensors")


if __name__ == "__main__":
    main()

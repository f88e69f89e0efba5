#!/usr/bin/env python3
"""LoRA training by PEFT and torch: losses, gradients and adapters after some steps.

    make_training.py --gguf data/adapters/text-f16.gguf --out data/training.json

The adapter that everything starts from and the teacher's logits follow from formulas (pattern(), teacher_logits()), which the
test repeats. Of each A and B, in the order of their names, six elements are kept (places()) and the norm.
Loss of a batch: sum over the tokens that count of -log p, divided by their number. Cases:
    batch      next token, the sequences as one batch, each for itself;  rslora: with the scale alpha / sqrt(r)
    distill    KL(teacher || student) at temperature T, mean over the tokens, times T^2;  top: of a teacher that names 16 words
    mix        a * distill + (1 - a) * batch
    dpo        -log sigmoid(beta * ((log p_chosen - log r_chosen) - (log p_rejected - log r_rejected))), r: without adapter
    adamw, sgd, adamw_decay_clip: the adapter after three steps on the batch, "loss" before each and after them
float32 with eager attention; "exact" are losses in float64.
"""

import argparse
import json
import math
from pathlib import Path

from common import hf_from_gguf

SEQUENCES = [  # ids, index of the first token that counts
    ([2, 291, 353, 303, 293, 295, 298, 285, 332, 380, 313, 397, 1], 3),
    ([2, 93, 371, 402, 383, 379, 335, 288, 299, 308, 374, 329, 388, 372, 388, 385, 338, 290, 314, 293, 311, 285, 318, 290, 371, 382,
      330, 375, 301, 375, 345, 397, 1], 17),
    ([2, 115, 378, 394, 398, 371, 94, 372, 384, 373, 383, 377, 372, 397, 1], 5),
    ([2, 291, 354, 390, 375, 327, 371, 380, 390, 286, 377, 290, 371, 296, 375, 306, 371, 313, 293, 285, 319, 320, 397, 1], 19),
]  # fmt: skip
CHOSEN = ([2, 291, 310, 373, 375, 339, 354, 390, 375, 327, 325, 377, 383, 374, 298, 290, 366, 397, 1], 10)
REJECTED = ([2, 291, 310, 373, 375, 339, 354, 390, 375, 327, 321, 312, 315, 285, 305, 334, 351, 400, 1], 10)
RANK, ALPHA, T, SHARE, BETA = 4, 8.0, 2.0, 0.25, 0.1
OPTIMISERS = {
    "adamw": {"kind": "AdamW", "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "sgd": {"kind": "SGD", "lr": 0.02, "momentum": 0.5, "weight_decay": 0.01},
    "adamw_decay_clip": {"kind": "AdamW", "lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "clip": 0.5},
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--gguf", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    a = ap.parse_args()
    import torch
    import torch.nn.functional as F
    from peft import LoraConfig, get_peft_model

    def pattern(n_rows: int, n_columns: int, index: int) -> torch.Tensor:
        i, j = torch.arange(n_rows)[:, None], torch.arange(n_columns)[None, :]
        return ((i * 37 + j * 11 + index * 5) % 29 - 14).float() / 128

    def teacher_logits(n_rows: int, n_words: int) -> torch.Tensor:
        i, j = torch.arange(n_rows)[:, None], torch.arange(n_words)[None, :]
        return ((i * 53 + j * 29) % 101 - 50).float() / 16

    def make(rslora: bool):
        base, *_ = hf_from_gguf(a.gguf)
        torch.set_grad_enabled(True)
        model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, use_rslora=rslora, target_modules=LINEAR, task_type="CAUSAL_LM"))
        params = sorted((n.replace(".default", ""), p) for n, p in model.named_parameters() if p.requires_grad)
        for k, (_, p) in enumerate(params):
            p.data = pattern(*p.shape, k)
        return model, params

    def rows(model, sequence):
        ids, answer = sequence
        t = torch.tensor([ids])
        return model(input_ids=t, use_cache=False).logits[0][answer - 1 : -1], t[0, answer:]

    nll = lambda model, s: F.cross_entropy(*rows(model, s), reduction="sum")  # noqa: E731
    count = sum(len(ids) - answer for ids, answer in SEQUENCES)
    batch = lambda model: sum(nll(model, s) for s in SEQUENCES) / count  # noqa: E731

    def kl(model, top: bool):
        student = torch.cat([rows(model, s)[0] for s in SEQUENCES])
        teacher = teacher_logits(*student.shape).to(student.dtype)
        if top:  # words 7, 34, 61, ... of the first row, one further in each
            words = (torch.arange(len(teacher))[:, None] + 7 + 27 * torch.arange(16)[None, :]) % teacher.shape[1]
            p = torch.zeros_like(teacher).scatter(1, words, F.softmax(teacher.gather(1, words) / T, -1))
        else:
            p = F.softmax(teacher / T, -1)
        logs = torch.where(p > 0, p.clamp_min(1e-300 if p.dtype == torch.float64 else 1e-38).log(), 0.0)
        return (p * (logs - F.log_softmax(student / T, -1))).sum(-1).mean() * T * T

    def dpo(model):
        with torch.no_grad(), model.disable_adapter():
            rc, rr = -nll(model, CHOSEN), -nll(model, REJECTED)
        return -F.logsigmoid(BETA * ((-nll(model, CHOSEN) - rc) - (-nll(model, REJECTED) - rr)))

    losses = {
        "batch": batch,
        "distill": lambda m: kl(m, False),
        "top": lambda m: kl(m, True),
        "mix": lambda m: SHARE * kl(m, False) + (1 - SHARE) * batch(m),
        "dpo": dpo,
        "rslora": batch,
    }

    def places(n: int, index: int) -> list[int]:
        return [(k * n // 6 + index * 7 % max(1, n // 6)) % n for k in range(6)]

    def summary(tensors) -> dict:
        flat = [t.detach().double().ravel() for t in tensors]
        kept = [float(t[i]) for k, t in enumerate(flat) for i in places(len(t), k)]
        return {"values": [float(f"{x:.8g}") for x in kept], "norms": [float(f"{float(t.norm()):.8g}") for t in flat],
                "largest": [max(float(t.abs().max()) for t in flat)]}  # fmt: skip

    cases = []
    models = {False: make(False), True: make(True)}
    exact = {False: make(False), True: make(True)}
    for name, f in losses.items():
        model, params = models[name == "rslora"]
        model.zero_grad()
        loss = f(model)
        loss.backward()
        double = exact[name == "rslora"][0].double()
        with torch.no_grad():
            case = {"name": name, "loss": [float(loss)], "exact": [float(f(double))]}
        assert math.isclose(case["loss"][0], case["exact"][0], rel_tol=2e-5), case
        cases.append(case | summary([p.grad for _, p in params]))
    for name, o in OPTIMISERS.items():
        model, params = make(False)
        args = {k: v for k, v in o.items() if k not in ("kind", "clip")}
        optimiser = getattr(torch.optim, o["kind"])([p for _, p in params], **args)
        curve = []
        for _ in range(3):
            optimiser.zero_grad()
            loss = batch(model)
            loss.backward()
            if "clip" in o:
                torch.nn.utils.clip_grad_norm_([p for _, p in params], o["clip"])
            optimiser.step()
            curve.append(float(loss))
        with torch.no_grad():
            curve.append(float(batch(model)))
        cases.append({"name": name, "loss": curve} | summary([p for _, p in params]))
    import peft
    import transformers

    text = json.dumps({"versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
                       "parameters": [n for n, _ in models[False][1]], "cases": cases})  # fmt: skip
    a.out.write_text(text.replace('{"name"', '\n{"name"').replace(', "values"', ',\n"values"').replace(', "norms"', ',\n"norms"') + "\n")
    for case in cases:
        print(case["name"], case["loss"])


if __name__ == "__main__":
    main()

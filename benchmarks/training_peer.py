#!/usr/bin/env python3
"""A step of LoRA training by PyTorch and PEFT, to compare with `training` (benchmarks/native/training.cpp): the same model, its
weights dequantised, the same tokens, rank 8 on all linear layers, AdamW.

    PYTHONPATH=test/reference training_peer.py MODEL.gguf [--dtype float32|bfloat16] [--tokens N] [--steps N] [--threads N]

Prints one JSON object: {"peer":"torch 2.14.1, peft 0.21.2","dtype":"float32","tokens":512,"seconds":[4.3,4.2],"loss":15.64,"peak_mib":4200}
"""

import argparse
import json
import os
import resource
import sys
import time

ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
ap.add_argument("model")
ap.add_argument("--dtype", default="float32")
ap.add_argument("--tokens", type=int, default=512)
ap.add_argument("--steps", type=int, default=3)
ap.add_argument("--threads", type=int, default=os.cpu_count())
a = ap.parse_args()
os.environ["OMP_NUM_THREADS"] = str(a.threads)

import peft  # noqa: E402
import torch  # noqa: E402
from common import hf_from_gguf  # noqa: E402

base, *_ = hf_from_gguf(a.model)
torch.set_grad_enabled(True)
base = base.to(getattr(torch, a.dtype))
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
model = peft.get_peft_model(base, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
model.config._attn_implementation = "sdpa"
optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
random, ids = 1, []
for i in range(a.tokens):
    random = (random * 1664525 + 1013904223) % 2**32
    ids.append(2 if i == 0 else random % base.config.vocab_size)
tokens = torch.tensor([ids])
seconds, losses = [], []
for _ in range(a.steps):
    start = time.perf_counter()
    optimiser.zero_grad()
    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    optimiser.step()
    seconds.append(round(time.perf_counter() - start, 3))
    losses.append(round(float(loss.detach()), 4))
    print(f"loss {losses[-1]}, {seconds[-1]} s", file=sys.stderr)
print(json.dumps({"peer": f"torch {torch.__version__}, peft {peft.__version__}", "dtype": a.dtype, "tokens": a.tokens, "seconds": seconds,
                  "loss": losses, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))  # fmt: skip

"""Trains the demonstration model on the CPU, in four stages; each can be stopped and goes on from its last checkpoint.

    train.py vision --out build/demo --steps 3000      the encoder alone, on what stands in each cell of a picture
    torchrun --nproc-per-node 2 train.py all --out build/demo --steps 6000 --threads 1      everything, on conversations
    torchrun --nproc-per-node 2 train.py reading --out build/demo --steps 1500 --threads 1  the same, with more to read
    torchrun --nproc-per-node 2 train.py finish --out build/demo --steps 600 --decay 550 --threads 1  and with more to compare

Two processes of one thread share the steps of the later stages: on busy cores they wait for each other once a step, threads at
every operation. The learning rate is constant and falls to zero over the last --decay steps. Batches follow from the step's number, so a
run that was interrupted sees the same pictures. The forward pass is transformers' own; only the masks are made here, once
for a batch. bfloat16 where the matrix products are, on processors with AMX about ten times as fast as float32.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from batches import NONE, Conversations, letters_batch, vision_batch
from model import IMAGE_SOFT_TOKEN, WINDOW, make_config, make_tokenizer, special_ids
from scenes import COLOURS, GLYPHS, SHAPES

LONGEST_WORD = 8
# Of each process: a name in the log, length of a row, rows of each kind, pictures. How many pictures of letters beside, the weight of
# the probe's loss. In order: each stage goes on from the one before, the first from the encoder's.
STAGES = {
    "all": ([("short", 176, [("single", 8), ("talk", 2)], 8), ("long", 304, [("wide", 2), ("pair", 2)], 14)], 0, 0.1),
    "reading": (
        [
            ("short", 176, [("shapes", 4), ("difference", 3), ("talk", 2)], 10),
            ("words", 88, [("words", 8)], 8),
            ("long", 304, [("scanned", 2)], 10),
        ],
        36,
        0.5,
    ),
    "finish": (
        [
            ("short", 176, [("shapes", 5), ("talk", 2)], 5),
            ("pairs", 132, [("difference", 8)], 16),
            ("words", 88, [("words", 8)], 8),
            ("long", 304, [("scanned", 2)], 10),
        ],
        20,
        0.5,
    ),
}
VISION_BATCH = 64
EMPTY_WEIGHT = 0.08  # most cells are empty


class Probe(nn.Module):
    """Reads from a picture's tokens, as the decoder will get them, what stands in their cells and where they are."""

    def __init__(self, dim: int, n_tokens: int):
        super().__init__()
        n_glyphs = len(GLYPHS) + 1
        self.sizes = [n_glyphs, n_glyphs, LONGEST_WORD, LONGEST_WORD, len(SHAPES) + 1, len(COLOURS) + 1, n_tokens]
        self.head = nn.Linear(dim, sum(self.sizes))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The loss, and for each kind of label how many of the cells with something in them are right."""
        n = tokens.shape[0]
        parts = self.head(tokens).float().split(self.sizes, -1)
        where = torch.arange(tokens.shape[1]).expand(n, -1)
        loss, right = torch.zeros(()), []
        for i, part in enumerate(parts):
            wanted = labels[..., i] if i < 6 else where
            weight = torch.ones(part.shape[-1])
            if i in (0, 1, 4, 5):
                weight[0] = EMPTY_WEIGHT
            loss = loss + F.cross_entropy(part.flatten(0, 1), wanted.flatten(), weight=weight, ignore_index=NONE)
            if i < 6:
                something = (wanted != NONE) if i in (2, 3) else (wanted > 0)
                right.append((part.detach().argmax(-1) == wanted)[something].float().mean())
        return loss, right


def pooled(model, pixels: torch.Tensor) -> torch.Tensor:
    """What Gemma3MultiModalProjector projects: [pictures, 36, 160], after soft_emb_norm."""
    x = model.model.vision_tower(pixel_values=pixels).last_hidden_state
    p = model.model.multi_modal_projector
    n, _, dim = x.shape
    side = p.patches_per_image
    x = p.avg_pool(x.transpose(1, 2).reshape(n, dim, side, side)).flatten(2).transpose(1, 2)
    return p.mm_soft_emb_norm(x)


def masks(block: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Additive masks of the two kinds of layers: causal, a picture's tokens see each other, the window for local ones."""
    n = block.shape[1]
    q, k = torch.arange(n)[:, None], torch.arange(n)[None, :]
    same = (block[:, :, None] == block[:, None, :]) & (block[:, :, None] > 0)
    seen = (k <= q)[None] | same
    near = seen & (k > q - WINDOW)[None]
    low = torch.finfo(dtype).min
    make = lambda m: torch.zeros(m.shape, dtype=dtype).masked_fill(~m, low)[:, None]  # noqa: E731
    return {"full_attention": make(seen), "sliding_attention": make(near)}


def decode(model, ids, features, soft_id: int, mask) -> torch.Tensor:
    """Hidden states of the last layer. features: [pictures of these rows, 36, 192]."""
    text = model.model.language_model
    x = text.embed_tokens(ids)
    is_soft = ids == soft_id
    x = x.clone()
    x[is_soft] = features.reshape(-1, features.shape[-1])[: int(is_soft.sum())].to(x.dtype)
    return text(inputs_embeds=x, attention_mask=mask, use_cache=False).last_hidden_state


def answer_loss(model, hidden, ids, learn) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Cross entropy of the answers' tokens, their sum and how many are guessed right."""
    at = learn[:, 1:]
    logits = model.lm_head(hidden[:, :-1][at]).float()
    wanted = ids[:, 1:][at]
    return F.cross_entropy(logits, wanted, reduction="sum"), (logits.argmax(-1) == wanted).sum(), len(wanted)


def plain_attention(module, query, key, value, mask, scaling: float, dropout: float = 0.0, **_):
    """Matrix products and softmax in the inputs' type. torch's fused attention is slower here: its backward pass uses no AMX."""
    if key.shape[1] != query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = (query * scaling) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, -1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def optimizers(parts: list[nn.Module], rate: float):
    """Muon for the matrices inside layers, AdamW for embeddings, norms, biases and projections."""
    matrices, others = [], []
    for part in parts:
        for name, p in part.named_parameters():
            is_inner = p.ndim == 2 and "layers." in name
            (matrices if is_inner else others).append(p)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Run:
    """Steps with a schedule, a log and checkpoints."""

    def __init__(self, a, name: str, parts: dict[str, nn.Module]):
        self.a, self.name, self.parts = a, name, parts
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.optimizers = optimizers(list(parts.values()), a.rate)
        self.path = a.out / f"{name}.pt"
        self.step = 0
        self.seconds = 0.0
        if self.path.exists():
            saved = torch.load(self.path)
            for key, part in parts.items():
                part.load_state_dict(saved[key])
            for o, s in zip(self.optimizers, saved["optimizers"]):
                o.load_state_dict(s)
            self.step, self.seconds = saved["step"], saved["seconds"]
            print(f"{name}: goes on at step {self.step}", flush=True)

    def read_end(self) -> None:
        """A file "end" in the folder, "STEPS DECAY", changes the schedule of a run under way; all processes follow the first."""
        path = self.a.out / "end"
        if self.rank == 0 and path.exists():
            self.a.steps, self.a.decay = map(int, path.read_text().split())
        if dist.is_initialized():
            end = torch.tensor([self.a.steps, self.a.decay])
            dist.broadcast(end, 0)
            self.a.steps, self.a.decay = end.tolist()

    def share_gradients(self) -> None:
        """The mean over the processes."""
        if not dist.is_initialized():
            return
        grads = [p.grad for part in self.parts.values() for p in part.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for g, mean in zip(grads, flat.split([g.numel() for g in grads])):
            g.copy_(mean.view_as(g))

    def save(self) -> None:
        if self.rank != 0:
            return
        state = {key: part.state_dict() for key, part in self.parts.items()}
        state |= {"optimizers": [o.state_dict() for o in self.optimizers], "step": self.step, "seconds": self.seconds}
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def rate(self) -> float:
        left = (self.a.steps - self.step) / max(1, self.a.decay)
        return self.a.rate * min(1.0, (self.step + 1) / 40) * min(1.0, left)

    def loop(self, one_step) -> None:
        log = (self.a.out / f"{self.name}.jsonl").open("a")
        last_save = time.time()
        while self.step < self.a.steps:
            start = time.time()
            self.read_end()
            for o in self.optimizers:
                for g in o.param_groups:
                    g["lr"] = self.rate()
            figures = one_step(self.step)
            self.share_gradients()
            for part in self.parts.values():
                nn.utils.clip_grad_norm_(part.parameters(), 1.0)
            for o in self.optimizers:
                o.step()
                o.zero_grad(set_to_none=True)
            self.step += 1
            self.seconds += time.time() - start
            if self.step % 10 == 0 and self.rank == 0:
                line = {"step": self.step, "seconds": round(self.seconds, 1), **{k: round(float(v), 4) for k, v in figures.items()}}
                log.write(json.dumps(line) + "\n")
                log.flush()
                if self.step % 50 == 0:
                    print(line, flush=True)
            if time.time() - last_save > 120:
                self.save()
                last_save = time.time()
        self.save()


def normalised(pixels) -> torch.Tensor:
    return torch.from_numpy(pixels).float() / 127.5 - 1


PROBED = ["glyph", "glyph_right", "place", "place_right", "shape", "colour"]


def train_vision(a, model, probe) -> None:
    parts = {"vision": nn.ModuleDict({"tower": model.model.vision_tower, "norm": model.model.multi_modal_projector.mm_soft_emb_norm}), "probe": probe}
    run = Run(a, "vision", parts)
    forward = torch.compile(lambda x: pooled(model, x), dynamic=False) if a.compile else (lambda x: pooled(model, x))

    def one_step(step: int):
        x, y = vision_batch(1_000_000 + step, VISION_BATCH)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens = forward(normalised(x))
            loss, right = probe(tokens, torch.from_numpy(y))
        loss.backward()
        return {"loss": loss.detach(), **dict(zip(PROBED, right))}

    run.loop(one_step)


def load_parts(path: Path, parts: dict[str, nn.Module]) -> None:
    """The result of the stage before."""
    saved = torch.load(path)
    for key, part in parts.items():
        part.load_state_dict(saved[key])


def train_decoder(a, model, probe) -> None:
    processes = dist.get_world_size() if dist.is_initialized() else 1
    plans, n_letters, probe_weight = STAGES[a.stage]
    parts = {"model": model, "probe": probe}
    run = Run(a, a.stage, parts)
    number = list(STAGES).index(a.stage)
    if run.step == 0 and number == 0:
        tower, norm = model.model.vision_tower, model.model.multi_modal_projector.mm_soft_emb_norm
        load_parts(a.out / "vision.pt", {"vision": nn.ModuleDict({"tower": tower, "norm": norm}), "probe": probe})
    elif run.step == 0:
        load_parts(a.out / f"{list(STAGES)[number - 1]}.pt", parts)
    first_of_stage = 10_000_000 * (number + 1)
    conversations = Conversations(a.out / "tokenizer")
    soft_id = special_ids(a.out / "tokenizer")[IMAGE_SOFT_TOKEN]
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    encode = torch.compile(lambda x: pooled(model, x), dynamic=False) if a.compile else (lambda x: pooled(model, x))
    if a.compile:
        for layer in model.model.language_model.layers:
            layer.forward = torch.compile(layer.forward, dynamic=False)

    def one_step(step: int):
        first_seed = first_of_stage + len(plans) * (step * processes + run.rank)
        batches = [conversations.batch(first_seed + i, plan, length, n) for i, (_, length, plan, n) in enumerate(plans)]
        seen = [(b[3], b[4]) for b in batches]
        if n_letters:
            seen.append(letters_batch(first_seed, n_letters))
        pixels = torch.cat([normalised(x) for x, _ in seen])
        labels = torch.cat([torch.from_numpy(y) for _, y in seen])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens = encode(pixels)
            probe_loss, right = probe(tokens, labels)
            features = tokens @ projection.to(tokens.dtype)
            total, hits, n, first = torch.zeros(()), {}, 0, 0
            for (name, *_), (ids, learn, block, x, _) in zip(plans, batches):
                ids, learn = torch.from_numpy(ids), torch.from_numpy(learn)
                mask = masks(torch.from_numpy(block), torch.bfloat16)
                hidden = decode(model, ids, features[first : first + len(x)], soft_id, mask)
                part, hit, count = answer_loss(model, hidden, ids, learn)
                total, n, first = total + part, n + count, first + len(x)
                hits[name] = hit / count
            loss = total / n
        (loss + probe_weight * probe_loss).backward()
        return {"loss": loss.detach(), **hits, "probe": probe_loss.detach(), "glyph": right[0]}

    run.loop(one_step)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("stage", choices=["vision", *STAGES])
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--steps", type=int, required=True)
    ap.add_argument("--decay", type=int, default=500, help="steps at the end over which the learning rate falls to zero")
    ap.add_argument("--rate", type=float, default=2e-3)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--no-compile", dest="compile", action="store_false")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    torch._dynamo.config.recompile_limit = 64  # a shape for each layer and length
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    a.out.mkdir(parents=True, exist_ok=True)
    if not (a.out / "tokenizer").exists():
        make_tokenizer(a.out / "tokenizer")
    from transformers import AttentionInterface, Gemma3ForConditionalGeneration

    AttentionInterface.register("bfloat16", plain_attention)
    config = make_config(special_ids(a.out / "tokenizer"))
    config._attn_implementation = "bfloat16"
    model = Gemma3ForConditionalGeneration(config)
    init(model)
    probe = Probe(config.vision_config.hidden_size, config.mm_tokens_per_image)
    n = sum(p.numel() for p in model.parameters())
    print(f"{n / 1e6:.2f} million parameters", flush=True)
    (train_vision if a.stage == "vision" else train_decoder)(a, model, probe)


def init(model) -> None:
    """transformers' initialisation, with the parts changed that make a small model slow to start."""
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight.normal_(0, 0.05)
        tower = model.model.vision_tower
        position = next(p for n, p in tower.named_parameters() if "position_embedding" in n)
        position.normal_(0, 0.3)
        dim = model.model.multi_modal_projector.mm_input_projection_weight.shape[0]
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(0, 0.7 / dim**0.5)


if __name__ == "__main__":
    main()

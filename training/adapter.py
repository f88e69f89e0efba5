"""Trains the adapter models/demo-tools on the committed demonstration model: low-rank changes of the decoder's matrices, as PEFT keeps them.

    adapter.py train --out build/tools --minutes 30      goes on from its last checkpoint
    adapter.py export --out build/tools --to ../models/demo-tools

The weights come from test/demo/demo-f16.gguf and models/mmproj-demo.gguf. The encoder stays as it is, so each picture is encoded once.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from batches import image_text, pixels
from export import TEXT_NAMES, VISION_NAMES
from lessons import declaration, json_turn, plain_branch, tool_branch
from model import CONTROL, IMAGE_SOFT_TOKEN, NEWLINES, SPACES, TOKENS_PER_IMAGE, WINDOW, bpe_merges, make_config, tokenizer_json
from scenes import compare_pair, hard_text, pan_and_scan_boxes, read_turns, shape_questions, shapes_scene, text_scene, wide_scene
from train import normalised, plain_attention, pooled

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "test" / "demo" / "demo-f16.gguf"
VISION = ROOT / "models" / "mmproj-demo.gguf"
RANK = 8
ALPHA = 16
KEPT_BITS = 3  # of a factor's mantissa: so 425 KB of bfloat16 pack into 230, and nothing is lost that an answer shows
# Pictures that are encoded before training, by kind. Rows of a step by kind, and how long they are.
PICTURES = {"shapes": 1400, "text": 400, "wide": 60, "pair": 150}
PLAN = [(384, ["shapes", "shapes", "mixed", "talk"]), (1024, ["tools"])]


# --- the committed files ----------------------------------------------------------------------------------------------


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    reader = gguf.GGUFReader(str(path))
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)]) for t in reader.tensors}


def read_tokenizer(path: Path):
    """The tokenizer of a GGUF file of export.py, for Hugging Face's library."""
    from tokenizers import Tokenizer

    fields = gguf.GGUFReader(str(path)).fields
    texts, scores, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type"))
    pieces = [t.replace(" ", "\u2581") for t in texts]
    special = {"<pad>", "<eos>", "<bos>", "<unk>", *CONTROL}
    added = [{"id": i, "content": p, "special": p in special} for i, p in enumerate(pieces) if p in special or p in NEWLINES + SPACES]
    ranks = {p: s for p, s, t in zip(pieces, scores, types) if t == gguf.TokenType.NORMAL and len(p) > 1}
    ranks |= {p: 1000.0 + len(p) for p in NEWLINES + SPACES if len(p) > 1}
    vocab = {p: i for i, p in enumerate(pieces)}
    return Tokenizer.from_str(json.dumps(tokenizer_json(vocab, bpe_merges(vocab, ranks), added)))


def read_model(tokenizer):
    """transformers' model with the weights of the committed files: the inverse of export.py."""
    from transformers import AttentionInterface, Gemma3ForConditionalGeneration

    AttentionInterface.register("bfloat16", plain_attention)
    config = make_config({name: tokenizer.token_to_id(name) for name in CONTROL})
    config._attn_implementation = "bfloat16"
    model = Gemma3ForConditionalGeneration(config)
    text, vision = read_tensors(MODEL), read_tensors(VISION)
    norms = {name for name in TEXT_NAMES if "norm" in name}
    state = {"embed_tokens.weight": text["token_embd.weight"], "norm.weight": text["output_norm.weight"] - 1}
    for i in range(config.text_config.num_hidden_layers):
        for theirs, ours in TEXT_NAMES.items():
            state[f"layers.{i}.{theirs}.weight"] = text[f"blk.{i}.{ours}.weight"] - (theirs in norms)
    model.model.language_model.load_state_dict(tensors(state), strict=True)
    seen = {f"embeddings.patch_embedding.{part}": vision[f"v.patch_embd.{part}"] for part in ("weight", "bias")}
    seen |= {f"post_layernorm.{part}": vision[f"v.post_ln.{part}"] for part in ("weight", "bias")}
    seen["embeddings.position_embedding.weight"] = vision["v.position_embd.weight"]
    for i in range(config.vision_config.num_hidden_layers):
        for theirs, ours in VISION_NAMES.items():
            for part in ("weight", "bias"):
                seen[f"encoder.layers.{i}.{theirs}.{part}"] = vision[f"v.blk.{i}.{ours}.{part}"]
    tower = model.model.vision_tower
    prefix = "vision_model." if any(k.startswith("vision_model.") for k in tower.state_dict()) else ""
    missing = tower.load_state_dict(tensors({prefix + k: v for k, v in seen.items()}), strict=False)
    assert not missing.unexpected_keys and all("position_ids" in k for k in missing.missing_keys), missing
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        projector.mm_soft_emb_norm.weight.copy_(torch.from_numpy(vision["mm.soft_emb_norm.weight"] - 1))
        projection = torch.from_numpy(vision["mm.input_projection.weight"])
        projector.mm_input_projection_weight.copy_(projection)
    model.tie_weights()
    return model.requires_grad_(False).float()


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(np.array(v, dtype=np.float32)) for k, v in arrays.items()}


# --- the adapter ------------------------------------------------------------------------------------------------------


class Adapted(nn.Module):
    """A linear layer and its change: y = W x + (alpha / r) B A x."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + F.linear(F.linear(x, self.lora_A), self.lora_B) * (ALPHA / RANK)


def adapt(model) -> dict[str, Adapted]:
    """
    Puts an adapter round each linear layer of the decoder. By their names in the model. The output matrix is one of them: its rows of
    tokens that training had never used (quotes, braces, brackets) are nearly the same, so that none of them can be likely.
    """
    found = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and (".language_model.layers." in f".{name}" or name == "lm_head"):
            parent, _, leaf = name.rpartition(".")
            found[name] = Adapted(module, RANK)
            setattr(model.get_submodule(parent), leaf, found[name])
    return found


# --- rows -------------------------------------------------------------------------------------------------------------


class Pictures:
    """Scenes with what the encoder makes of them, in a file beside the checkpoints."""

    def __init__(self, model, path: Path):
        if not path.exists():
            torch.save(self.draw(model), path)
        self.kinds = torch.load(path, weights_only=False)

    @staticmethod
    def draw(model) -> dict[str, list]:
        rng = random.Random(20_000_003)
        projection = model.model.multi_modal_projector.mm_input_projection_weight
        kinds = {}
        for kind, n in PICTURES.items():
            rows = []
            for _ in range(n):
                if kind == "pair":
                    one, two, turns = compare_pair(rng, 0.5)
                    scene, squares = turns, [pixels(one.image), pixels(two.image)]
                elif kind == "wide":
                    scene = wide_scene(rng, make=hard_text)
                    squares = [pixels(scene.image)] + [pixels(scene.image, b) for b in pan_and_scan_boxes(*scene.image.size)]
                else:
                    scene = shapes_scene(rng) if kind == "shapes" else text_scene(rng, make=hard_text)
                    squares = [pixels(scene.image)]
                if kind != "pair":
                    scene.image = None
                rows.append((scene, squares))
            flat = [s for _, squares in rows for s in squares]
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                parts = [pooled(model, normalised(np.stack(flat[i : i + 50]))) @ projection.bfloat16() for i in range(0, len(flat), 50)]
            features, first = torch.cat(parts).bfloat16(), 0
            kinds[kind] = []
            for scene, squares in rows:
                kinds[kind].append((scene, features[first : first + len(squares)].clone()))
                first += len(squares)
            print(f"{len(flat)} pictures of {kind}", flush=True)
        return kinds


class Row:
    """A beginning and branches; each branch sees the beginning and itself."""

    def __init__(self, length: int, beginning: list[int], n_pictures: int = 0):
        self.ids, self.learn = list(beginning), [False] * len(beginning)
        self.place, self.branch = list(range(len(beginning))), [0] * len(beginning)
        self.start, self.length, self.n_pictures = len(beginning), length, n_pictures

    def add(self, ids: list[int], learn: list[bool]) -> bool:
        if len(self.ids) + len(ids) > self.length:
            return False
        n = self.branch[-1] + 1
        self.place += range(self.start, self.start + len(ids))
        self.ids, self.learn, self.branch = self.ids + ids, self.learn + learn, self.branch + [n] * len(ids)
        return True


class Lessons:
    def __init__(self, tokenizer, pictures: Pictures):
        self.tokenizer, self.pictures = tokenizer, pictures.kinds
        self.soft = tokenizer.token_to_id(IMAGE_SOFT_TOKEN)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def turns(self, turns: list[tuple[str, str]]) -> tuple[list[int], list[bool]]:
        """The first question goes on in the turn that the beginning has opened."""
        ids, learn = [], []
        for i, (question, answer) in enumerate(turns):
            prompt = self.encode(("\n<start_of_turn>user\n" if i else "") + f"{question}<end_of_turn>\n<start_of_turn>model\n")
            reply = self.encode(f"{answer}<end_of_turn>")
            ids, learn = ids + prompt + reply, learn + [False] * len(prompt) + [True] * len(reply)
        return ids, learn

    def row(self, length: int, opening: str, make, n_pictures: int = 0) -> Row:
        """make: the turns of one more branch, or None at the end. Ends with the first that has no room."""
        row = Row(length, [2, *self.encode(f"<start_of_turn>user\n{opening}")], n_pictures)
        while (turns := make()) and row.add(*self.turns(turns)):
            pass
        return row

    def picture(self, rng: random.Random, kind: str):
        scene, features = rng.choice(self.pictures[kind])
        n_crops = len(features) - 1
        return scene, features, image_text(0) * 2 if kind == "pair" else image_text(n_crops)

    def branches(self, rng: random.Random, kind: str, scene):
        """JSON first, then what the model knew before."""
        if kind == "pair":
            yield from ([turn] for turn in scene)
            return
        yield [json_turn(rng, scene)]
        for _ in range(4):
            yield shape_questions(rng, scene, 1) if kind == "shapes" else read_turns(rng, scene)[:1]

    def make(self, rng: random.Random, kind: str, length: int) -> tuple[Row, list[torch.Tensor]]:
        if kind == "talk":
            return self.row(length, "", lambda: plain_branch(rng)), []
        names = rng.choice([["add"], ["weather"], ["add", "weather"], ["weather", "add"]])
        opening = declaration(rng, names) + "\n\n" if kind == "tools" else ""
        if kind == "tools" and rng.random() < 0.85:
            return self.row(length, opening, lambda: tool_branch(rng, names)), []
        if kind != "shapes":
            kind = rng.choice(["text", "text", "text", "wide", "pair"] if kind == "mixed" else ["shapes", "shapes", "text"])
        scene, features, text = self.picture(rng, kind)
        branches = self.branches(rng, kind, scene)
        # text parts have no blanks around; a picture's begins with its own
        return self.row(length, opening.rstrip() + text, lambda: next(branches, None), len(features)), [features]

    def batch(self, rng: random.Random, length: int, kinds: list[str]):
        rows, features = [], []
        for kind in kinds:
            row, seen = self.make(rng, kind, length)
            rows.append(row)
            features += seen
        shape = (len(rows), length)
        ids, place, branch = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        learn = torch.zeros(shape, dtype=torch.bool)
        branch -= 1
        for i, r in enumerate(rows):
            n = len(r.ids)
            ids[i, :n], place[i, :n], branch[i, :n] = torch.tensor(r.ids), torch.tensor(r.place), torch.tensor(r.branch)
            learn[i, :n] = torch.tensor(r.learn)
            assert (ids[i] == self.soft).sum() == r.n_pictures * TOKENS_PER_IMAGE, "a row without room for its pictures"
        return ids, learn, place, branch, torch.cat(features) if features else None


def masks(ids, place, branch, soft: int, dtype) -> dict[str, torch.Tensor]:
    """As those of train.py, with branches; at a place of its own each."""
    is_soft = ids == soft
    block = (is_soft & ~F.pad(is_soft, (1, 0))[:, :-1]).cumsum(1) * is_soft
    same = (block[:, :, None] == block[:, None, :]) & (block[:, :, None] > 0)
    apart = place[:, :, None] - place[:, None, :]
    own = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    seen = (own & (apart >= 0)) | same
    near = seen & (apart < WINDOW)
    low = torch.finfo(dtype).min
    make = lambda m: torch.zeros(m.shape, dtype=dtype).masked_fill(~m, low)[:, None]  # noqa: E731
    return {"full_attention": make(seen), "sliding_attention": make(near)}


# --- training ---------------------------------------------------------------------------------------------------------


def loss_of(model, batch, soft: int) -> tuple[torch.Tensor, int, int]:
    """Cross entropy of the answers' tokens, their sum; how many are guessed right, and how many there are."""
    ids, learn, place, branch, features = batch
    text = model.model.language_model
    x = text.embed_tokens(ids)
    if features is not None:
        x = x.masked_scatter((ids == soft)[..., None], features.to(x.dtype))
    mask = masks(ids, place, branch, soft, torch.bfloat16)
    hidden = text(inputs_embeds=x, attention_mask=mask, position_ids=place, use_cache=False).last_hidden_state
    at = learn[:, 1:]
    logits = model.lm_head(hidden[:, :-1][at]).float()
    wanted = ids[:, 1:][at]
    return F.cross_entropy(logits, wanted, reduction="sum"), int((logits.argmax(-1) == wanted).sum()), len(wanted)


def train(a) -> None:
    torch.manual_seed(1)
    tokenizer = read_tokenizer(MODEL)
    model = read_model(tokenizer)
    lessons = Lessons(tokenizer, Pictures(model, a.out / "pictures.pt"))
    adapters = adapt(model)
    state = nn.ModuleDict({name.replace(".", "/"): layer for name, layer in adapters.items()})
    parameters = [p for p in state.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=a.rate, betas=(0.9, 0.98), weight_decay=0.0)
    path, step, seconds = a.out / "adapter.pt", 0, 0.0
    if path.exists():
        saved = torch.load(path)
        for p, value in zip(parameters, saved["parameters"]):
            p.data.copy_(value)
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds = saved["step"], saved["seconds"]

    def save() -> None:
        state = {"parameters": [p.data for p in parameters], "names": list(adapters), "optimizer": optimizer.state_dict()}
        torch.save(state | {"step": step, "seconds": seconds}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    print(f"{sum(p.numel() for p in parameters)} parameters, from step {step}", flush=True)
    log, last_save, hits = (a.out / "adapter.jsonl").open("a"), time.time(), {}
    while step < a.steps:
        start = time.time()
        if (a.out / "end").exists():  # as in train.py: "STEPS DECAY" changes the schedule under way
            a.steps, a.decay = map(int, (a.out / "end").read_text().split())
        rate = a.rate * min(1.0, (step + 1) / 20, (a.steps - step) / a.decay)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rng = random.Random(30_000_000 + step)
        total, n = 0.0, 0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for length, kinds in PLAN:
                loss, right, count = loss_of(model, lessons.batch(rng, length, kinds), lessons.soft)
                total, n = total + loss, n + count
                key = kinds[-1]
                hits[key] = [h + v for h, v in zip(hits.get(key, (0, 0, 0.0)), (right, count, float(loss.detach())))]
        (total / n).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        seconds += time.time() - start
        if step % 10 == 0:
            shares = {f"{k}": round(r / c, 4) for k, (r, c, _) in hits.items()} | {f"{k}_loss": round(x / c, 4) for k, (_, c, x) in hits.items()}
            line = {"step": step, "seconds": round(seconds, 1), "rate": round(rate, 5), **shares}
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(line, flush=True)
            hits = {}
        if time.time() - last_save > 120:
            save()
            last_save = time.time()
    save()


# --- files ------------------------------------------------------------------------------------------------------------


def rounded(w: torch.Tensor) -> torch.Tensor:
    """bfloat16 with KEPT_BITS of its 7 bits of mantissa: the others are zero and pack to nothing."""
    step = 1 << (16 + 7 - KEPT_BITS)
    bits = w.float().contiguous().view(torch.int32)
    return ((bits + step // 2) & -step).view(torch.float32).bfloat16()


def export(a) -> None:
    from safetensors.torch import save_file

    saved = torch.load(a.out / "adapter.pt")
    tensors = {}
    for i, name in enumerate(saved["names"]):
        for part, value in zip(("lora_A", "lora_B"), saved["parameters"][2 * i : 2 * i + 2]):
            tensors[f"base_model.model.{name}.{part}.weight"] = rounded(value)
    a.to.mkdir(parents=True, exist_ok=True)
    save_file(tensors, a.to / "adapter_model.safetensors", metadata={"format": "pt"})
    (a.to / "adapter_model.safetensors").chmod(0o644)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "gemma-native/demo", "inference_mode": True, "r": RANK,
        "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "use_rslora": False, "use_dora": False,
        "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
        "target_modules": r"lm_head|.*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
    }  # fmt: skip
    (a.to / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = ap.add_subparsers(dest="command", required=True)
    t = commands.add_parser("train")
    t.add_argument("--out", type=Path, required=True)
    t.add_argument("--steps", type=int, default=800)
    t.add_argument("--decay", type=int, default=400, help="steps at the end over which the learning rate falls to zero")
    t.add_argument("--rate", type=float, default=8e-3)
    e = commands.add_parser("export")
    e.add_argument("--out", type=Path, required=True)
    e.add_argument("--to", type=Path, required=True)
    a = ap.parse_args()
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    {"train": train, "export": export}[a.command](a)


if __name__ == "__main__":
    main()

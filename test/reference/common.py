"""Helpers shared by the oracle scripts: text corpus, tokenizer, images, model runners, file formats."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

# ---------------------------------------------------------------------------------------------------------------------
# Tensor files
# ---------------------------------------------------------------------------------------------------------------------


def save_tensors(path: str | Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as .safetensors or .npz, by the file's suffix."""
    path = Path(path)
    tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    if path.suffix == ".npz":
        np.savez_compressed(path, **tensors)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(tensors, str(path), metadata=metadata)
        path.chmod(0o644)
    else:
        raise ValueError(f"unknown tensor file suffix: {path}")


def load_tensors(path: str | Path) -> dict[str, np.ndarray]:
    path = Path(path)
    if path.suffix == ".npz":
        with np.load(path) as z:
            return {k: z[k] for k in z.files}
    from safetensors.numpy import load_file

    return load_file(str(path))


def save_json(path: str | Path, obj) -> None:
    Path(path).write_text(json.dumps(obj, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def load_json(path: str | Path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


# ---------------------------------------------------------------------------------------------------------------------
# Comparing logits
# ---------------------------------------------------------------------------------------------------------------------


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    m = x.max(-1, keepdims=True)
    return x - m - np.log(np.exp(x - m).sum(-1, keepdims=True))


def row_blocks(n: int, size: int = 64):
    """Slices over n rows: the logits of a long text fill gigabytes, a float64 copy of all would double that twice."""
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def log_sum_exp(x: np.ndarray) -> np.ndarray:
    """Per row, in float64."""
    out = np.empty(len(x))
    for r in row_blocks(len(x)):
        b = x[r].astype(np.float64)
        m = b.max(-1)
        out[r] = m + np.log(np.exp(b - m[:, None]).sum(-1))
    return out


def compare_logits(ref: np.ndarray, got: np.ndarray) -> dict[str, float]:
    """ref, got: [tokens, vocab]. KL is KL(ref || got) in nats, per position."""
    ref = ref.reshape(-1, ref.shape[-1])
    got = got.reshape(-1, got.shape[-1])
    assert ref.shape == got.shape, (ref.shape, got.shape)
    assert np.isfinite(got[:, 0]).all()
    kl, same, max_abs, sq, sq_ref = [], 0, 0.0, 0.0, 0.0
    for a, b in zip(ref, got):
        la, lb = log_softmax(a), log_softmax(b)
        kl.append(float((np.exp(la) * (la - lb)).sum()))
        same += int(a.argmax() == b.argmax())
        d = a.astype(np.float64) - b
        max_abs = max(max_abs, float(np.abs(d).max()))
        sq += float((d * d).sum())
        c = a.astype(np.float64) - a.mean()
        sq_ref += float((c * c).sum())
    assert np.isfinite(kl).all() and np.isfinite(sq), "logits which are not finite"
    return {
        "positions": len(kl),
        "top1_match_pct": 100.0 * same / len(kl),
        "max_abs": max_abs,
        "nrmse": (sq / max(sq_ref, 1e-300)) ** 0.5,
        "kl_mean": float(np.mean(kl)),
        "kl_max": float(np.max(kl)),
    }


def compare_topk(top_ids: np.ndarray, top_logits: np.ndarray, logsumexp: np.ndarray, got: np.ndarray) -> dict[str, float]:
    """The same from a golden which keeps the best k logits and the log-sum-exp of each position: all other tokens count as
    one outcome. Such a KL is at most the full one (merging outcomes cannot raise it), and close to it where k covers the mass."""
    rows = np.arange(len(got))[:, None]
    lp = top_logits.astype(np.float64) - logsumexp[:, None]
    lq = got[rows, top_ids].astype(np.float64) - log_sum_exp(got)[:, None]
    p, q = np.exp(lp), np.exp(lq)
    rest_p, rest_q = (np.clip(1 - x.sum(-1), 1e-12, 1) for x in (p, q))
    kl = (p * (lp - lq)).sum(-1) + rest_p * np.log(rest_p / rest_q)
    assert np.isfinite(kl).all(), "logits which are not finite"
    return {
        "positions": len(kl),
        "top1_match_pct": 100.0 * float((top_ids[:, 0] == got.argmax(-1)).mean()),
        "kl_mean": float(kl.mean()),
        "kl_max": float(kl.max()),
    }


# ---------------------------------------------------------------------------------------------------------------------
# A small tokenizer of the same construction as Gemma's
# ---------------------------------------------------------------------------------------------------------------------

_NOUNS = (
    "river stone window garden letter engine winter mirror forest bridge teacher bottle morning silver island "
    "captain market thunder valley pencil harbor lantern meadow kitchen journey"
).split()
_VERBS = "carries follows breaks paints watches remembers builds crosses opens measures repeats forgets answers hides".split()
_ADJS = "quiet bright heavy narrow ancient sudden gentle hollow distant curious broken golden patient strange".split()
_MISC = [
    "0123456789", "3.14159", "2024-11-05", "x = y + 1;", "def f(a, b): return a * b", "if (n > 0) { n--; }",
    "https://example.org/a?b=c", "cafe\u0301", "na\u00efve", "Stra\u00dfe", "\u00bfqu\u00e9?", "\u4f60\u597d", "\u65e5\u672c\u8a9e",
    "\u041f\u0440\u0438\u0432\u0435\u0442", "\u05e9\u05dc\u05d5\u05dd", "\u2014 \u201cquoted\u201d", "(a) [b] {c} <d>", "50% & more", "#tag @name $5",
]  # fmt: skip


def make_corpus(seed: int, lines: int = 1500) -> list[str]:
    """Deterministic pseudo-English with a little code, punctuation and other scripts."""
    rng = random.Random(seed)
    out = []
    for i in range(lines):
        words = []
        for _ in range(rng.randint(1, 3)):
            words += ["the", rng.choice(_ADJS), rng.choice(_NOUNS), rng.choice(_VERBS), "a", rng.choice(_NOUNS)]
            if rng.random() < 0.4:
                words += [rng.choice(["and", "but", "because", "while", "near", "under"])]
        s = " ".join(words)
        s = s[0].upper() + s[1:] + rng.choice(".!?,;:")
        if i % 7 == 0:
            s += " " + rng.choice(_MISC)
        out.append(s)
    return out


# id layout: the first ids as in Gemma (pad 0, eos 1, bos 2, unk 3), then the symbols below, 256 bytes, BPE pieces
CONTROL = ["<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]
IMAGE_SOFT_TOKEN = "<image_soft_token>"
NEWLINES = ["\n" * i for i in range(1, 5)]
SPACES = ["\u2581" * i for i in range(2, 9)]
TABS = ["\t" * i for i in range(1, 4)]
TAGS = ["<b>", "</b>", "<table>", "<code>", "</code>"]


def train_spm(out_dir: Path, vocab_size: int, seed: int) -> None:
    """Train tokenizer.model (SentencePiece BPE with the options Gemma's has)."""
    import io

    import sentencepiece as spm

    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(make_corpus(seed)),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        character_coverage=0.9995,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
        control_symbols=CONTROL,
        user_defined_symbols=NEWLINES + SPACES + TABS + TAGS,
        num_threads=1,
        minloglevel=2,
    )  # fmt: skip
    (out_dir / "tokenizer.model").write_bytes(model.getvalue())


def bpe_merges(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """All splits of every piece, best score first: what HF does to turn SentencePiece BPE into a merge list."""
    merges = []
    for piece, score in scores.items():
        local = [
            (piece[:i], piece[i:], score) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab
        ]
        local.sort(key=lambda m: (vocab[m[0]], vocab[m[1]]))
        merges += local
    merges.sort(key=lambda m: (m[2], len(m[0]), len(m[1])), reverse=True)
    return [(a, b) for a, b, _ in merges]


def tokenizer_json(vocab: dict[str, int], merges, added: list[dict], bos_id: int = 2) -> dict:
    """A tokenizer.json of the same shape as Gemma 3's."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": a["id"], "content": a["content"], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": a["special"]} for a in added
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "<bos>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [bos_id], "tokens": ["<bos>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocab, "merges": [list(m) for m in merges]},
    }  # fmt: skip


# The chat template Gemma 3 instruction-tuned checkpoints carry in tokenizer_config.json.
CHAT_TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""


def write_tokenizer(out_dir: Path, vocab_size: int, seed: int) -> dict[str, int]:
    """tokenizer.model + tokenizer.json + tokenizer_config.json. Returns the ids of the special tokens.

    <image_soft_token> gets the id one past the end of the vocabulary, as in Gemma 3 (262144).
    """
    from sentencepiece import SentencePieceProcessor

    out_dir.mkdir(parents=True, exist_ok=True)
    train_spm(out_dir, vocab_size, seed)
    sp = SentencePieceProcessor(model_file=str(out_dir / "tokenizer.model"))
    assert sp.vocab_size() == vocab_size
    pieces = [sp.IdToPiece(i) for i in range(vocab_size)]
    vocab = {p: i for i, p in enumerate(pieces)}
    special = {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"}
    added = [
        {"id": i, "content": p, "special": p in special}
        for i, p in enumerate(pieces)
        if p in special or p in CONTROL or p in NEWLINES + SPACES + TABS + TAGS
    ]
    added.append({"id": vocab_size, "content": IMAGE_SOFT_TOKEN, "special": True})
    # whitespace runs are merged by score too: longest first, ahead of every ordinary piece
    scores = {p: sp.GetScore(i) for i, p in enumerate(pieces) if len(p) > 1 and not sp.IsByte(i) and not sp.IsControl(i)}
    scores = {p: s for p, s in scores.items() if p not in TAGS and p != "<unk>"}
    for p in NEWLINES + SPACES + TABS:
        if len(p) > 1:
            scores[p] = 1000.0 + len(p)
    save_json(out_dir / "tokenizer.json", tokenizer_json(vocab, bpe_merges(vocab, scores), added))
    save_json(
        out_dir / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {
                str(a["id"]): {"content": a["content"], "lstrip": False, "normalized": False, "rstrip": False,
                               "single_word": False, "special": a["special"]} for a in added
            },
            "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
            "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": IMAGE_SOFT_TOKEN,
            "extra_special_tokens": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": IMAGE_SOFT_TOKEN},
            "clean_up_tokenization_spaces": False,
            "spaces_between_special_tokens": False,
            "model_max_length": 32768,
            "padding_side": "left",
            "processor_class": "Gemma3Processor",
            "tokenizer_class": "GemmaTokenizer",
            "chat_template": CHAT_TEMPLATE,
        },
    )  # fmt: skip
    return {p: i for p, i in vocab.items() if p.startswith("<") and not p.startswith("<0x")} | {IMAGE_SOFT_TOKEN: vocab_size}


def load_tokenizer(path: str | Path):
    """tokenizers.Tokenizer from a tokenizer.json or a folder which holds one."""
    from tokenizers import Tokenizer

    path = Path(path)
    return Tokenizer.from_file(str(path / "tokenizer.json" if path.is_dir() else path))


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


def synth_image(width: int, height: int, seed: int) -> np.ndarray:
    """A smooth picture with hard edges and some fine texture, [h, w, 3] uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    img = np.zeros((height, width, 3))
    for c in range(3):
        fx, fy, ph = rng.uniform(0.5, 3), rng.uniform(0.5, 3), rng.uniform(0, 6.28)
        img[..., c] = 127 + 90 * np.sin(2 * np.pi * (fx * x / width + fy * y / height) + ph)
    for _ in range(6):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.08, 0.3) * min(width, height)
        col = rng.integers(0, 256, 3)
        if rng.random() < 0.5:
            m = (x - cx) ** 2 + (y - cy) ** 2 < r * r
        else:
            m = (abs(x - cx) < r) & (abs(y - cy) < r * 0.6)
        img[m] = col
    stripes = (x.astype(int) // 2 + y.astype(int) // 3) % 2 == 0
    img[: height // 4][stripes[: height // 4]] *= 0.5
    return np.clip(np.round(img), 0, 255).astype(np.uint8)


def open_rgb(path: str | Path):
    """A file as Hugging Face opens one: EXIF orientation applied, then converted to RGB."""
    from transformers.image_utils import load_image

    return load_image(str(path))


def make_image_processor(image_size: int, **kw):
    """HF's Gemma 3 image processor, the Pillow one."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    return Gemma3ImageProcessorPil(size={"height": image_size, "width": image_size}, **kw)


def pixel_levels(pixels: np.ndarray) -> np.ndarray:
    """The resized image before normalisation, uint8: value = level / 127.5 - 1. Four times smaller than the values."""
    levels = np.round((pixels + 1) * 127.5)
    assert np.abs(levels / 127.5 - 1 - pixels).max() < 1e-6
    return levels.astype(np.uint8)


def pan_and_scan_args(ps: dict | None) -> dict:
    """Keyword arguments of the image processor for {"min_crop", "max_crops", "min_ratio"} or None."""
    if not ps:
        return {"do_pan_and_scan": False}
    return {
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": ps["min_crop"],
        "pan_and_scan_max_num_crops": ps["max_crops"],
        "pan_and_scan_min_ratio_to_activate": ps["min_ratio"],
    }


def pan_and_scan_boxes(width: int, height: int, min_crop: int, max_crops: int, min_ratio: float) -> list[list[int]]:
    """[x, y, w, h] of each Pan & Scan crop, read off the slices which HF's own function returns."""
    proc = make_image_processor(64)
    xs = np.broadcast_to(np.arange(width, dtype=np.int64), (1, height, width))
    ys = np.broadcast_to(np.arange(height, dtype=np.int64)[:, None], (1, height, width))
    args = dict(
        pan_and_scan_min_crop_size=min_crop,
        pan_and_scan_max_num_crops=max_crops,
        pan_and_scan_min_ratio_to_activate=min_ratio,
    )
    boxes = []
    for cx, cy in zip(proc.pan_and_scan(xs, **args), proc.pan_and_scan(ys, **args)):
        _, h, w = cx.shape
        boxes.append([int(cx[0, 0, 0]), int(cy[0, 0, 0]), int(w), int(h)] if h and w else [-1, -1, int(w), int(h)])
    return boxes


# ---------------------------------------------------------------------------------------------------------------------
# Running a Hugging Face Gemma 3 model
# ---------------------------------------------------------------------------------------------------------------------


def torch_setup() -> None:
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_grad_enabled(False)


def text_model_of(model):
    """The Gemma3TextModel inside a Gemma3ForCausalLM or a Gemma3ForConditionalGeneration."""
    inner = model.model
    return getattr(inner, "language_model", inner)


class Trace:
    """Collects activations with forward hooks."""

    def __init__(self, model, layers: list[int] | None = None):
        tm = text_model_of(model)
        self.out: dict[str, np.ndarray] = {}
        self.handles = []

        def keep(name):
            def hook(_m, _i, o):
                o = o[0] if isinstance(o, tuple) else o
                self.out[name] = o[0].float().numpy().copy()

            return hook

        add = lambda mod, name: self.handles.append(mod.register_forward_hook(keep(name)))  # noqa: E731

        def keep_input(_m, args, kwargs):
            h = args[0] if args else kwargs["hidden_states"]
            self.out["inp"] = h[0].float().numpy().copy()

        self.handles.append(tm.layers[0].register_forward_pre_hook(keep_input, with_kwargs=True))
        for i, layer in enumerate(tm.layers):
            add(layer, f"l_out.{i}")
            if layers and i in layers:
                add(layer.self_attn.q_norm, f"q_norm.{i}")
                add(layer.self_attn.k_norm, f"k_norm.{i}")
                add(layer.self_attn, f"attn_out.{i}")
                add(layer.mlp, f"ffn_out.{i}")
        add(tm.norm, "result_norm")

    def close(self):
        for h in self.handles:
            h.remove()


def forward(model, ids: list[int], pixel_values=None, image_token_id: int | None = None, keep: int = 0) -> np.ndarray:
    """Logits of every position (of the last `keep`), [tokens, vocab] float32, one pass without a cache."""
    import torch

    t = torch.tensor([ids])
    kw = {}
    if pixel_values is not None:
        kw["pixel_values"] = torch.from_numpy(np.ascontiguousarray(pixel_values))
        kw["token_type_ids"] = (t == image_token_id).long()
    out = model(input_ids=t, use_cache=False, logits_to_keep=keep, **kw)
    return out.logits[0].float().numpy()


def greedy(model, ids: list[int], n: int, stop: set[int], **kw) -> tuple[list[int], list[float]]:
    """n greedy tokens by full re-evaluation (no cache to get wrong), with the top-1/top-2 gap of each."""
    ids = list(ids)
    new, gaps = [], []
    for _ in range(n):
        last = forward(model, ids, keep=1, **kw)[-1]
        a, b = np.argpartition(last, -2)[-2:]
        if last[a] < last[b]:
            a, b = b, a
        new.append(int(a))
        gaps.append(round(float(last[a] - last[b]), 6))
        if int(a) in stop:
            break
        ids.append(int(a))
    return new, gaps


def image_features(model, pixel_values: np.ndarray) -> np.ndarray:
    """[images, tokens, hidden]: SigLIP, pooling, norm and projection."""
    import torch

    out = model.get_image_features(pixel_values=torch.from_numpy(np.ascontiguousarray(pixel_values)), return_dict=True)
    return out.pooler_output.float().numpy()


def topk_summary(logits: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """The k best ids and logits of each position, and the log-sum-exp of all of them."""
    idx = np.concatenate([np.argpartition(logits[r], -k, axis=-1)[:, -k:] for r in row_blocks(len(logits))])
    val = np.take_along_axis(logits, idx, -1)
    order = np.argsort(-val, -1, kind="stable")
    return {
        "top_ids": np.take_along_axis(idx, order, -1).astype(np.int32),
        "top_logits": np.take_along_axis(val, order, -1).astype(np.float32),
        "logsumexp": log_sum_exp(logits),
    }


def perplexity(logits: np.ndarray, ids: list[int]) -> float:
    """Of ids[1:], each predicted from what is before it."""
    n = len(ids) - 1
    lp = logits[np.arange(n), ids[1:]].astype(np.float64) - log_sum_exp(logits[:n])
    return float(np.exp(-lp.mean()))


FULL_IMAGE_TEXT = "\n\n<start_of_image>{soft}<end_of_image>\n\n"


def expand_images(text: str, num_crops: list[int], tokens_per_image: int) -> str:
    """The text Gemma3Processor puts in place of each <start_of_image> (checked against it by golden.py)."""
    seq = FULL_IMAGE_TEXT.format(soft=IMAGE_SOFT_TOKEN * tokens_per_image)
    parts = text.split("<start_of_image>")
    assert len(parts) == len(num_crops) + 1, "one <start_of_image> per image"
    out = parts[0]
    for n, rest in zip(num_crops, parts[1:]):
        if n:
            out += f"Here is the original image {seq} and here are some crops to help you see better " + " ".join([seq] * n)
        else:
            out += seq
        out += rest
    return out


def run_cases(model, tokenizer, cases: list[dict], *, image_dir: Path, mm: dict | None = None, topk: int = 0,
              stop: set[int] = frozenset(), log=print, hook=None) -> tuple[list[dict], dict[str, np.ndarray]]:  # fmt: skip
    """Evaluate cases; returns (their records for JSON, tensors).

    A case: {"name", "text" or "ids", "images": [file..], "pan_and_scan": {min_crop, max_crops, min_ratio} or null,
             "greedy": n, "trace": [layers] or absent, "logits_last": n or absent}
    mm: {"image_size", "tokens_per_image", "image_token_id"} for multimodal models.
    Instead of "text" a case may have "texts", to choose from, and "min_gap" (see below).
    hook(name, ids, logits, pixel_values) sees the full logits of each case.
    """
    records, tensors = [], {}
    for case in cases:
        name = case["name"]
        rec = {k: v for k, v in case.items() if k not in ("greedy", "trace", "texts", "min_gap")}
        kw, num_crops = {}, []
        if case.get("images"):
            images = [open_rgb(image_dir / f) for f in case["images"]]
            pas = pan_and_scan_args(case.get("pan_and_scan"))
            feats = make_image_processor(mm["image_size"])(images, return_tensors="np", **pas)
            pixels = np.asarray(feats["pixel_values"], dtype=np.float32)
            num_crops = [int(n) for n in feats["num_crops"]]
            rec["num_crops"] = num_crops
            rec["image_sizes"] = [list(im.size) for im in images]
            if ps := case.get("pan_and_scan"):
                rec["crop_boxes"] = [pan_and_scan_boxes(*im.size, ps["min_crop"], ps["max_crops"], ps["min_ratio"]) for im in images]
            kw = {"pixel_values": pixels, "image_token_id": mm["image_token_id"]}
            tensors[f"{name}.pixel_levels"] = pixel_levels(pixels)
            tensors[f"{name}.image_embeds"] = image_features(model, pixels)

        def expand(text: str) -> str:
            return expand_images(text, num_crops, mm["tokens_per_image"]) if num_crops else text  # noqa: B023

        ids, new, gaps = case.get("ids"), [], []
        if ids is None:
            # the first of the texts whose greedy continuation has no step closer than min_gap, else the best of them;
            # one which mostly repeats itself counts for little
            worth = lambda new, gaps: min(gaps) * (1 if 3 * len(set(new)) >= len(new) else 0.01)  # noqa: E731
            for text in case.get("texts") or [case["text"]]:
                t_ids = tokenizer.encode(expand(text), add_special_tokens=True).ids
                t_new, t_gaps = greedy(model, t_ids, case["greedy"], set(stop), **kw) if case.get("greedy") else ([], [])
                if ids is None or worth(t_new, t_gaps) > worth(new, gaps):
                    rec["text"], ids, new, gaps = text, t_ids, t_new, t_gaps
                if not gaps or worth(new, gaps) >= case.get("min_gap", 0):
                    break
            if num_crops:
                n = mm["tokens_per_image"]
                rec["expanded_text"] = expand(rec["text"]).replace(IMAGE_SOFT_TOKEN * n, f"[{n} soft tokens]")
        elif case.get("greedy"):
            new, gaps = greedy(model, ids, case["greedy"], set(stop))
        rec["ids"] = [int(i) for i in ids]
        trace = Trace(model, case["trace"]) if "trace" in case else None
        logits = forward(model, ids, **kw)
        if hook:
            hook(name, ids, logits, kw.get("pixel_values"))
        if trace:
            trace.close()
            tensors |= {f"{name}.{k}": v for k, v in trace.out.items()}
        if topk:
            tensors |= {f"{name}.{k}": v for k, v in topk_summary(logits, topk).items()}
        else:
            # "logits_last": keep the last n positions only
            tensors[f"{name}.logits"] = logits[-case.get("logits_last", len(logits)) :]
        if len(ids) > 1 and not case.get("images"):
            rec["perplexity"] = perplexity(logits, ids)
        if new:
            rec["greedy_ids"] = new
            rec["greedy_gap"] = gaps
            if tokenizer is not None:
                rec["greedy_text"] = tokenizer.decode(new, skip_special_tokens=False)
        log(f"  {name}: {len(ids)} tokens" + (f", greedy min gap {min(gaps):.4f}" if gaps else ""))
        records.append(rec)
    return records, tensors


# ---------------------------------------------------------------------------------------------------------------------
# GGUF -> Hugging Face
# ---------------------------------------------------------------------------------------------------------------------

_TEXT_MAP = {
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_VISION_MAP = {
    "ln1": "layer_norm1", "ln2": "layer_norm2", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_out": "self_attn.out_proj", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2",
}  # fmt: skip


def gguf_fields(reader) -> dict:
    """Metadata as plain Python values; the long tokenizer arrays are left out."""
    out = {}
    for k, f in reader.fields.items():
        if not k.startswith("GGUF.") and len(f.data) < 4096:
            out[k] = f.contents()
    return out


def dequantize(t) -> np.ndarray:
    """A GGUF tensor as float32 in torch's axis order."""
    import gguf

    shape = tuple(int(d) for d in reversed(t.shape))
    return gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32, copy=False).reshape(shape)


def layer_types_from(fields: dict, arch: str, n_layer: int) -> list[str]:
    """Key <arch>.attention.sliding_window_pattern if there (a period or one bool per layer), else period 6."""
    pat = fields.get(f"{arch}.attention.sliding_window_pattern", 6)
    if isinstance(pat, (list, np.ndarray)):
        return ["sliding_attention" if p else "full_attention" for p in pat]
    return ["sliding_attention" if pat == 0 or i % pat < pat - 1 else "full_attention" for i in range(n_layer)]


def text_config_from_gguf(fields: dict, n_vocab: int):
    from transformers import Gemma3TextConfig

    arch = fields["general.architecture"]
    assert arch == "gemma3", arch
    g = lambda k, d=None: fields.get(f"{arch}.{k}", d)  # noqa: E731
    n_layer, n_embd, n_head = g("block_count"), g("embedding_length"), g("attention.head_count")
    head_dim = g("attention.key_length", n_embd // n_head)
    rope_global = {"rope_type": "default", "rope_theta": float(g("rope.freq_base", 1e6))}
    if g("rope.scaling.type") == "linear":
        rope_global |= {"rope_type": "linear", "factor": float(g("rope.scaling.factor", 1.0))}
    return Gemma3TextConfig(
        vocab_size=n_vocab,
        hidden_size=n_embd,
        intermediate_size=g("feed_forward_length"),
        num_hidden_layers=n_layer,
        num_attention_heads=n_head,
        num_key_value_heads=g("attention.head_count_kv", n_head),
        head_dim=head_dim,
        rms_norm_eps=float(g("attention.layer_norm_rms_epsilon", 1e-6)),
        max_position_embeddings=g("context_length", 8192),
        sliding_window=g("attention.sliding_window", 0) or g("context_length", 8192),
        layer_types=layer_types_from(fields, arch, n_layer),
        # no key of a gemma3 file holds query_pre_attn_scalar: it is head_dim, but n_embd / n_head in the 62-layer 27B
        query_pre_attn_scalar=n_embd // n_head if n_layer == 62 else head_dim,
        final_logit_softcapping=g("final_logit_softcapping"),
        rope_parameters={
            "full_attention": rope_global,
            "sliding_attention": {"rope_type": "default", "rope_theta": float(g("rope.freq_base_swa", 1e4))},
        },
        tie_word_embeddings=True,
        attn_implementation="eager",
    )


def hf_from_gguf(path: str | Path, mmproj: str | Path | None = None, tokens_per_image: int | None = None, image_token_id: int | None = None):
    """A float32 HF model holding the dequantised weights. Returns (model, text fields, mm dict or None)."""
    import gguf
    import torch
    from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, SiglipVisionConfig

    torch_setup()
    reader = gguf.GGUFReader(str(path))
    fields = gguf_fields(reader)
    tensors = {t.name: t for t in reader.tensors}
    n_vocab = int(tensors["token_embd.weight"].shape[1])
    text_cfg = text_config_from_gguf(fields, n_vocab)

    mm = None
    if mmproj:
        vreader = gguf.GGUFReader(str(mmproj))
        vf = gguf_fields(vreader)
        v = lambda k: vf[f"clip.vision.{k}"]  # noqa: E731
        per_side = v("image_size") // v("patch_size") // vf.get("clip.vision.projector.scale_factor", 4)
        vis_cfg = SiglipVisionConfig(
            hidden_size=v("embedding_length"), intermediate_size=v("feed_forward_length"), num_hidden_layers=v("block_count"),
            num_attention_heads=v("attention.head_count"), image_size=v("image_size"), patch_size=v("patch_size"),
            layer_norm_eps=float(v("attention.layer_norm_epsilon")), vision_use_head=False,
        )  # fmt: skip
        mm = {
            "image_size": v("image_size"),
            "tokens_per_image": tokens_per_image or per_side * per_side,
            "image_token_id": image_token_id if image_token_id is not None else n_vocab,
        }
        cfg = Gemma3Config(text_config=text_cfg, vision_config=vis_cfg, mm_tokens_per_image=mm["tokens_per_image"],
                           image_token_index=mm["image_token_id"])  # fmt: skip
        cfg._attn_implementation = "eager"
        with torch.device("meta"):
            model = Gemma3ForConditionalGeneration(cfg)
        prefix = "model.language_model."
    else:
        with torch.device("meta"):
            model = Gemma3ForCausalLM(text_cfg)
        prefix = "model."

    state: dict[str, torch.Tensor] = {}
    for name, t in tensors.items():
        w = torch.from_numpy(np.array(dequantize(t), copy=True))
        if name.endswith("norm.weight"):
            w = w - 1.0  # the converter stores 1 + w
        if name == "token_embd.weight":
            hf = prefix + "embed_tokens.weight"
        elif name == "output_norm.weight":
            hf = prefix + "norm.weight"
        elif name == "output.weight":
            hf = "lm_head.weight"
        elif name.startswith("blk."):
            _, i, part, kind = name.split(".")
            hf = f"{prefix}layers.{i}.{_TEXT_MAP[part]}.{kind}"
        else:
            raise KeyError(name)
        state[hf] = w
    state.setdefault("lm_head.weight", state[prefix + "embed_tokens.weight"])

    if mmproj:
        vt = {t.name: t for t in vreader.tensors}
        legacy = int(vt["v.blk.0.ffn_down.weight"].shape[0]) == vis_cfg.hidden_size  # old files have up and down swapped
        vp = "model.vision_tower."
        vp += "vision_model." if any("vision_tower.vision_model." in k for k in model.state_dict()) else ""
        for name, t in vt.items():
            w = torch.from_numpy(np.array(dequantize(t), copy=True))
            if name == "mm.input_projection.weight":
                hf = "model.multi_modal_projector.mm_input_projection_weight"
            elif name == "mm.soft_emb_norm.weight":
                hf, w = "model.multi_modal_projector.mm_soft_emb_norm.weight", w - 1.0
            elif name.startswith("v.patch_embd."):
                hf = vp + "embeddings.patch_embedding." + name.rsplit(".", 1)[1]
            elif name == "v.position_embd.weight":
                hf = vp + "embeddings.position_embedding.weight"
            elif name.startswith("v.post_ln."):
                hf = vp + "post_layernorm." + name.rsplit(".", 1)[1]
            elif name.startswith("v.blk."):
                _, _, i, part, kind = name.split(".")
                if legacy:
                    part = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}.get(part, part)
                hf = f"{vp}encoder.layers.{i}.{_VISION_MAP[part]}.{kind}"
            else:
                raise KeyError(name)
            state[hf] = w

    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not missing and not unexpected, (missing, unexpected)
    # buffers were made on the meta device: make them again for real
    tm = text_model_of(model)
    tm.rotary_emb = type(tm.rotary_emb)(text_cfg)
    tm.embed_tokens.embed_scale = torch.tensor(float(text_cfg.hidden_size) ** 0.5)
    if mmproj:
        for m in model.modules():
            if hasattr(m, "position_ids") and getattr(m, "num_positions", None):
                m.position_ids = torch.arange(m.num_positions).expand((1, -1))
    left = [n for n, b in list(model.named_parameters()) + list(model.named_buffers()) if b.is_meta]
    assert not left, left
    return model.float().eval(), fields, mm

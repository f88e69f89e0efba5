"""The demonstration model: a Gemma 3 of 4 million parameters with a SigLIP encoder of 1.5 million, and its tokenizer."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "test" / "reference"))
from common import CHAT_TEMPLATE, IMAGE_SOFT_TOKEN, bpe_merges, save_json, tokenizer_json  # noqa: E402

IMAGE_SIZE = 96
PATCH_SIZE = 8
TOKENS_PER_IMAGE = 36  # 12 x 12 patches, pooled 2 x 2
VOCAB_SIZE = 1024
N_LAYERS = 6  # the sixth is global
WINDOW = 256

CONTROL = ["<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", IMAGE_SOFT_TOKEN]
NEWLINES = ["\n" * i for i in range(1, 5)]
SPACES = ["\u2581" * i for i in range(2, 5)]


def corpus(seed: int = 7, lines: int = 20000) -> list[str]:
    """Everything the model says and hears, without the words it reads: these it spells."""
    from languages import small_talk
    from scenes import READ_QUESTIONS, compare_pair, shape_questions, shapes_scene

    rng = random.Random(seed)
    out = [
        "Here is the original image", "and here are some crops to help you see better", "user", "model",
        "abcdefghijklmnopqrstuvwxyz", "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z", "0 1 2 3 4 5 6 7 8 9",
        "äöüßÄÖÜéèêëàâçîïôùûœÉÈÀÇñáíóúüÑÁÍÓÚ¿¡", ". , : ; ! ? ' \" ( ) [ ] { } < > / \\ + - * = _ # % & @ $ € ~ ^ |",
    ] * 20  # fmt: skip
    for i in range(lines):
        kind = i % 4
        if kind < 2:
            turns = shape_questions(rng, shapes_scene(rng), 2)
        elif kind == 2:
            turns = compare_pair(rng)[2] if i % 8 == 2 else [(rng.choice(READ_QUESTIONS), "")]
        else:
            turns = [small_talk(rng)]
        out += [text for turn in turns for text in turn if text]
    return out


def make_tokenizer(out: Path) -> None:
    """tokenizer.model, .json and _config.json; the construction of Gemma's, 1024 pieces."""
    import sentencepiece as spm

    out.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, model_type="bpe", vocab_size=VOCAB_SIZE, character_coverage=1.0,
        byte_fallback=True, split_digits=True, add_dummy_prefix=False, remove_extra_whitespaces=False,
        normalization_rule_name="identity", allow_whitespace_only_pieces=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>", control_symbols=CONTROL,
        user_defined_symbols=NEWLINES + SPACES, num_threads=1, minloglevel=2,
    )  # fmt: skip
    (out / "tokenizer.model").write_bytes(model.getvalue())
    sp = spm.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [sp.IdToPiece(i) for i in range(VOCAB_SIZE)]
    vocab = {p: i for i, p in enumerate(pieces)}
    special = {"<pad>", "<eos>", "<bos>", "<unk>", *CONTROL}
    added = [
        {"id": i, "content": p, "special": p in special} for i, p in enumerate(pieces) if p in special or p in NEWLINES + SPACES
    ]
    scores = {p: sp.GetScore(i) for i, p in enumerate(pieces) if len(p) > 1 and not sp.IsByte(i) and not sp.IsControl(i)}
    scores.pop("<unk>", None)
    for p in NEWLINES + SPACES:
        if len(p) > 1:
            scores[p] = 1000.0 + len(p)
    save_json(out / "tokenizer.json", tokenizer_json(vocab, bpe_merges(vocab, scores), added))
    save_json(
        out / "tokenizer_config.json",
        {
            "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
            "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": IMAGE_SOFT_TOKEN,
            "extra_special_tokens": {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": IMAGE_SOFT_TOKEN},
            "clean_up_tokenization_spaces": False, "model_max_length": 8192, "processor_class": "Gemma3Processor",
            "tokenizer_class": "GemmaTokenizer", "chat_template": CHAT_TEMPLATE,
        },
    )  # fmt: skip


def make_config(special: dict[str, int]):
    """Gemma3Config of the model; special: ids of the tokens by name."""
    from transformers import Gemma3Config, Gemma3TextConfig, SiglipVisionConfig

    text = Gemma3TextConfig(
        vocab_size=VOCAB_SIZE, hidden_size=192, intermediate_size=768, num_hidden_layers=N_LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, query_pre_attn_scalar=64, sliding_window=WINDOW, max_position_embeddings=8192,
        layer_types=["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(N_LAYERS)],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        rms_norm_eps=1e-6, bos_token_id=2, eos_token_id=1, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=160, intermediate_size=640, num_hidden_layers=4, num_attention_heads=5, image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE, layer_norm_eps=1e-6, vision_use_head=False,
    )  # fmt: skip
    return Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=TOKENS_PER_IMAGE, boi_token_index=special["<start_of_image>"],
        eoi_token_index=special["<end_of_image>"], image_token_index=special[IMAGE_SOFT_TOKEN],
    )  # fmt: skip


def special_ids(folder: Path) -> dict[str, int]:
    import json

    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    return {a["content"]: a["id"] for a in added}

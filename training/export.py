"""A checkpoint of train.py to GGUF: the model as F16 and as Q8_0, the vision encoder as F16; and transformers' own files.

    export.py --run build/demo --out build/demo/export
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch

from model import (
    CHAT_TEMPLATE, CONTROL, IMAGE_SIZE, NEWLINES, PATCH_SIZE, SPACES, TOKENS_PER_IMAGE, VOCAB_SIZE, make_config, special_ids,
)  # fmt: skip
from train import STAGES

NAME = "Gemma-native demonstration model"
TEXT_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
VISION_NAMES = {
    "layer_norm1": "ln1", "layer_norm2": "ln2", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_out", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
}  # fmt: skip


def exact(w: torch.Tensor) -> torch.Tensor:
    """Rounded to what float16 holds, so that every file and transformers have the same weights."""
    return w.to(torch.float16).float()


def load(run: Path):
    """The model of the last stage's checkpoint, its matrices rounded to float16."""
    from transformers import Gemma3ForConditionalGeneration

    config = make_config(special_ids(run / "tokenizer"))
    config._attn_implementation = "eager"
    model = Gemma3ForConditionalGeneration(config)
    checkpoint = next(p for p in (run / f"{stage}.pt" for stage in reversed(STAGES)) if p.exists())
    model.load_state_dict(torch.load(checkpoint)["model"])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(exact(p) if p.ndim > 1 else p)
    return model.float().eval()


def add_matrix(writer: gguf.GGUFWriter, name: str, w: torch.Tensor, kind: str) -> None:
    """Norms and biases stay F32, as in published files."""
    data = w.detach().numpy().astype(np.float32)
    if w.ndim == 1 or kind == "f32":
        writer.add_tensor(name, data)
    elif kind == "f16":
        writer.add_tensor(name, data.astype(np.float16))
    else:
        quantised = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tokenizer(w: gguf.GGUFWriter, folder: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    sp = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokens, scores, types = [], [], []
    for i in range(VOCAB_SIZE):
        piece = sp.IdToPiece(i)
        kind = gguf.TokenType.NORMAL
        if sp.IsUnknown(i):
            kind = gguf.TokenType.UNKNOWN
        elif sp.IsControl(i):
            kind = gguf.TokenType.CONTROL
        elif sp.IsByte(i):
            kind = gguf.TokenType.BYTE
        elif piece in NEWLINES + SPACES:
            kind = gguf.TokenType.USER_DEFINED
            piece = piece.replace("\u2581", " ")  # as stored in published files
        if piece in ("<start_of_image>", "<end_of_image>"):
            kind = gguf.TokenType.USER_DEFINED  # as in published files
        tokens.append(piece.encode())
        scores.append(-1000.0 if kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED) else sp.GetScore(i))
        types.append(kind)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_bos_token_id(2)
    w.add_eos_token_id(1)
    w.add_unk_token_id(3)
    w.add_pad_token_id(0)
    w.add_add_space_prefix(False)
    w.add_add_bos_token(True)
    w.add_add_eos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)


def write_text(model, tokenizer: Path, out: Path, kind: str) -> None:
    c = model.config.text_config
    w = gguf.GGUFWriter(str(out), "gemma3")
    w.add_type("model")
    w.add_name(NAME)
    w.add_size_label("4M")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "q8_0" else gguf.LlamaFileType.MOSTLY_F16)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_key_length(c.head_dim)
    w.add_value_length(c.head_dim)
    w.add_sliding_window(c.sliding_window)
    w.add_rope_freq_base(1e6)
    write_tokenizer(w, tokenizer)
    state = {k: v for k, v in model.model.language_model.state_dict().items()}
    add_matrix(w, "token_embd.weight", state["embed_tokens.weight"], kind)
    add_matrix(w, "output_norm.weight", state["norm.weight"] + 1, kind)
    for i in range(c.num_hidden_layers):
        for theirs, ours in TEXT_NAMES.items():
            tensor = state[f"layers.{i}.{theirs}.weight"]
            add_matrix(w, f"blk.{i}.{ours}.weight", tensor + 1 if "norm" in theirs else tensor, kind)
    finish(w)


def write_vision(model, out: Path, kind: str = "f16") -> None:
    c = model.config.vision_config
    w = gguf.GGUFWriter(str(out), "clip")
    w.add_type("mmproj")
    w.add_name(NAME)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_bool("clip.has_vision_encoder", True)
    w.add_string("clip.projector_type", "gemma3")
    w.add_bool("clip.use_gelu", True)
    for key, value in {
        "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size, "block_count": c.num_hidden_layers,
        "attention.head_count": c.num_attention_heads, "projection_dim": model.config.text_config.hidden_size,
        "projector.scale_factor": IMAGE_SIZE // PATCH_SIZE // round(TOKENS_PER_IMAGE**0.5),
    }.items():  # fmt: skip
        w.add_uint32(f"clip.vision.{key}", value)
    w.add_float32("clip.vision.attention.layer_norm_epsilon", c.layer_norm_eps)
    w.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    w.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    state = {k.removeprefix("vision_model."): v for k, v in model.model.vision_tower.state_dict().items()}
    projector = model.model.multi_modal_projector
    for part in ("weight", "bias"):
        add_matrix(w, f"v.patch_embd.{part}", state[f"embeddings.patch_embedding.{part}"], "f32")
        add_matrix(w, f"v.post_ln.{part}", state[f"post_layernorm.{part}"], "f32")
    add_matrix(w, "v.position_embd.weight", state["embeddings.position_embedding.weight"], "f32")
    add_matrix(w, "mm.soft_emb_norm.weight", projector.mm_soft_emb_norm.weight + 1, "f32")
    add_matrix(w, "mm.input_projection.weight", projector.mm_input_projection_weight, "f16")
    for i in range(c.num_hidden_layers):
        for theirs, ours in VISION_NAMES.items():
            for part in ("weight", "bias"):
                add_matrix(w, f"v.blk.{i}.{ours}.{part}", state[f"encoder.layers.{i}.{theirs}.{part}"], kind)
    finish(w)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--run", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    a = ap.parse_args()
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    model = load(a.run)
    write_text(model, a.run / "tokenizer", a.out / "demo-f16.gguf", "f16")
    write_text(model, a.run / "tokenizer", a.out / "demo.gguf", "q8_0")
    write_vision(model, a.out / "mmproj-demo.gguf")
    model.save_pretrained(a.out / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(a.run / "tokenizer" / name, a.out / "hf" / name)
    for f in sorted(a.out.glob("*.gguf")):
        print(f.name, f.stat().st_size)


if __name__ == "__main__":
    main()

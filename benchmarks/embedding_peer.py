#!/usr/bin/env python3
"""sentence-transformers as the peer of embeddings.mjs: EmbeddingGemma from a float GGUF file, in float32 on the CPU.

    embedding_peer.py MODEL.gguf IDS.txt THREADS

IDS.txt has a text in each line, as token ids: both engines read the same tokens. Prints one JSON object a line: {"rows": the first
embeddings} when it is ready, then {"seconds": S} for each line that it reads, the time encode() takes for all texts with its defaults
(batches of 32 by length).
"""

import json
import os
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from gguf import GGUFReader
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, InputModule, Normalize, Pooling
from transformers import Gemma3TextConfig, Gemma3TextModel

PARTS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip


def key(name: str) -> str:
    if name.startswith("blk."):
        _, layer, part, _ = name.split(".")
        return f"layers.{layer}.{PARTS[part]}.weight"
    return {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}[name]


class Ids(InputModule):
    """The transformer, whose texts are lists of ids."""

    def __init__(self, model: Gemma3TextModel):
        super().__init__()
        self.auto_model = model

    def tokenize(self, texts, **_):
        rows = [[int(i) for i in text.split()] for text in texts]
        n = max(map(len, rows))
        ids = torch.tensor([row + [0] * (n - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (n - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    preprocess = tokenize

    def forward(self, features, **_):
        features["token_embeddings"] = self.auto_model(
            input_ids=features["input_ids"], attention_mask=features["attention_mask"], use_cache=False
        ).last_hidden_state
        return features

    def get_word_embedding_dimension(self):
        return self.auto_model.config.hidden_size

    def save(self, *_, **__):
        raise NotImplementedError

    @classmethod
    def load(cls, *_, **__):
        raise NotImplementedError


def load(path: str) -> SentenceTransformer:
    reader = GGUFReader(path)
    field = lambda name: reader.fields[f"gemma-embedding.{name}"].contents()  # noqa: E731
    tensors = {t.name: torch.from_numpy(t.data.copy()).float() for t in reader.tensors}
    dim = field("embedding_length")
    config = Gemma3TextConfig(
        vocab_size=tensors["token_embd.weight"].shape[0], hidden_size=dim, intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"), num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"), head_dim=field("attention.key_length"),
        query_pre_attn_scalar=field("attention.key_length"), sliding_window=field("attention.sliding_window"),
        use_bidirectional_attention=True, max_position_embeddings=field("context_length"))  # fmt: skip
    model = Gemma3TextModel(config)
    norm = lambda name, w: w - 1 if name.endswith("norm.weight") else w  # GGUF has 1 + w  # noqa: E731
    model.load_state_dict({key(name): norm(name, w) for name, w in tensors.items() if not name.startswith("dense")})
    modules = [Ids(model.eval()), Pooling(dim, pooling_mode="mean")]
    for name in ("dense_2", "dense_3"):
        w = tensors[f"{name}.weight"]
        dense = Dense(w.shape[1], w.shape[0], bias=False, activation_function=torch.nn.Identity())
        dense.linear.weight.data = w
        modules.append(dense)
    return SentenceTransformer(modules=[*modules, Normalize()], device="cpu")


def main() -> None:
    path, ids, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = load(path)
    texts = [line for line in open(ids).read().split("\n") if line]
    print(json.dumps({"rows": model.encode(texts[:4]).tolist()}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        model.encode(texts)
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()

"""python3 tokenizer.py MODEL.gguf FOLDER: the vocabulary of a GGUF file as a tokenizer of Hugging Face's, as transformers makes Gemma's of
SentencePiece's model: all ways to make a piece of two, in the order of its score."""

import sys

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

UNKNOWN, NORMAL, CONTROL, USER_DEFINED = 2, 1, 3, 4

model, folder = sys.argv[1:]
reader = GGUFReader(model)
tokens, scores, types = (
    reader.get_field(f"tokenizer.ggml.{name}").contents() for name in ("tokens", "scores", "token_type")
)
spelled = [token.replace(" ", "\u2581") if kind == USER_DEFINED else token for token, kind in zip(tokens, types)]
ids = {piece: id for id, piece in enumerate(spelled)}
merges = [
    (piece[:cut], piece[cut:])
    for id, piece in sorted(enumerate(spelled), key=lambda each: -scores[each[0]])
    if types[id] == NORMAL
    for cut in range(1, len(piece))
    if piece[:cut] in ids and piece[cut:] in ids
]
tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
for kinds, add in (((CONTROL, UNKNOWN), tokenizer.add_special_tokens), ((USER_DEFINED,), tokenizer.add_tokens)):
    add([AddedToken(piece, normalized=False) for piece, kind in zip(spelled, types) if kind in kinds])
tokenizer.post_processor = processors.TemplateProcessing(
    single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
)
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
).save_pretrained(folder)

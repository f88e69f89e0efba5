"""Scenes to tensors: pixels as Gemma3ImageProcessor makes them, labels for the encoder's cells, tokens with their loss mask."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from languages import SYSTEM, small_talk
from model import IMAGE_SIZE, IMAGE_SOFT_TOKEN, TOKENS_PER_IMAGE
from scenes import (
    COLOURS, GLYPHS, SHAPES, Scene, compare_pair, glyph_field, hard_text, letter_rows, pan_and_scan_boxes, random_text, read_turns,
    shape_questions, shapes_scene, text_scene, wide_scene,
)  # fmt: skip

SIDE = 6  # cells along a side
CELL = IMAGE_SIZE / SIDE
COLOUR_NAMES = list(COLOURS)
N_LABELS = 6  # glyph of the left and of the right half, their places in their words, shape, colour
NONE = -100  # no label


def pixels(image, box=None) -> np.ndarray:
    """[3, 96, 96] uint8, stretched as the processor does."""
    from PIL import Image

    if box:
        x, y, w, h = box
        image = image.crop((x, y, x + w, y + h))
    image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def labels(scene: Scene, box=None, squeezed: bool = False) -> np.ndarray:
    """[36, 6]: what is in each cell. Letters of a squeezed wide picture are not asked for."""
    out = np.zeros((SIDE * SIDE, N_LABELS), dtype=np.int64)
    out[:, 2:4] = NONE
    bx, by, bw, bh = box or (0, 0, *scene.image.size)
    if squeezed:
        out[:, 0:4] = NONE
    else:
        for g in scene.glyphs:
            x, y = (g.x - bx) / bw * SIDE, (g.y - by) / bh * SIDE
            if 0 <= x < SIDE and 0 <= y < SIDE:
                half = int((x % 1) >= 0.5)
                cell = int(y) * SIDE + int(x)
                out[cell, half] = 1 + GLYPHS.index(g.char)
                out[cell, 2 + half] = g.index
    for s in scene.shapes:
        x, y = (s.x - bx) / bw * SIDE, (s.y - by) / bh * SIDE
        if 0 <= x < SIDE and 0 <= y < SIDE:
            cell = int(y) * SIDE + int(x)
            out[cell, 4] = 1 + SHAPES.index(s.shape)
            out[cell, 5] = 1 + COLOUR_NAMES.index(s.colour)
    return out


def vision_batch(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures for the encoder alone."""
    rng = random.Random(seed)
    xs, ys = [], []
    while len(xs) < n:
        kind = rng.random()
        if kind < 0.35:
            scene = shapes_scene(rng)
        elif kind < 0.7:
            scene = glyph_field(rng)
        elif kind < 0.85:
            scene = text_scene(rng)
        else:
            scene = wide_scene(rng)
            box = rng.choice(pan_and_scan_boxes(*scene.image.size))
            xs.append(pixels(scene.image, box))
            ys.append(labels(scene, box))
            continue
        xs.append(pixels(scene.image))
        ys.append(labels(scene))
    return np.stack(xs), np.stack(ys)


def letters_batch(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures full of letters, one in eight of shapes: for the encoder in the last stage."""
    rng = random.Random(seed)
    scenes = [shapes_scene(rng) if i % 8 == 0 else letter_rows(rng) for i in range(n)]
    return np.stack([pixels(s.image) for s in scenes]), np.stack([labels(s) for s in scenes])


SOFT = f"\n\n<start_of_image>{IMAGE_SOFT_TOKEN * TOKENS_PER_IMAGE}<end_of_image>\n\n"


def image_text(n_crops: int) -> str:
    """What Gemma3Processor writes for a picture."""
    if n_crops == 0:
        return SOFT
    return f"Here is the original image {SOFT} and here are some crops to help you see better " + " ".join([SOFT] * n_crops)


class Conversations:
    """Rows of tokens with pictures, each filled with turns up to its length."""

    def __init__(self, tokenizer_folder: Path):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def row(self, length: int, opening: str, turns: list[tuple[str, str]], image_last: bool = False) -> tuple[list[int], list[int]]:
        """Token ids and which of them are to be learnt."""
        ids, learn = [2], [0]
        for i, (question, answer) in enumerate(turns):
            asked = (f"{question}{opening}" if image_last else f"{opening}{question}") if i == 0 else question
            # strip() as the chat template does with text parts, then joined with nothing
            prompt = self.encode(("" if i == 0 else "\n") + f"<start_of_turn>user\n{asked}<end_of_turn>\n<start_of_turn>model\n")
            reply = self.encode(f"{answer}<end_of_turn>")
            if len(ids) + len(prompt) + len(reply) > length:
                break
            ids += prompt + reply
            learn += [0] * len(prompt) + [1] * len(reply)
        return ids, learn

    def single(self, rng: random.Random, length: int):
        """One picture of shapes or of words, several questions."""
        return self.shapes(rng, length) if rng.random() < 0.68 else self.words(rng, length, random_text)

    def shapes(self, rng: random.Random, length: int):
        scene = shapes_scene(rng)
        turns = shape_questions(rng, scene, 8)
        row = self.row(length, image_text(0), turns, image_last=rng.random() < 0.12)
        return *row, [pixels(scene.image)], [labels(scene)]

    def words(self, rng: random.Random, length: int, make=hard_text):
        scene = text_scene(rng, make=make)
        turns = read_turns(rng, scene)
        row = self.row(length, image_text(0), turns, image_last=rng.random() < 0.12)
        return *row, [pixels(scene.image)], [labels(scene)]

    def pair(self, rng: random.Random, length: int, difference_first: float = 0.0):
        one, two, turns = compare_pair(rng, difference_first)
        row = self.row(length, image_text(0) * 2, turns, image_last=rng.random() < 0.12)
        return *row, [pixels(one.image), pixels(two.image)], [labels(one), labels(two)]

    def difference(self, rng: random.Random, length: int):
        return self.pair(rng, length, difference_first=0.6)

    def wide(self, rng: random.Random, length: int, pan_and_scan: bool, make=random_text):
        scene = wide_scene(rng, make=make)
        boxes = pan_and_scan_boxes(*scene.image.size) if pan_and_scan else []
        row = self.row(length, image_text(len(boxes)), read_turns(rng, scene))
        xs = [pixels(scene.image)] + [pixels(scene.image, b) for b in boxes]
        ys = [labels(scene, squeezed=True)] + [labels(scene, b) for b in boxes]
        return *row, xs, ys

    def scanned(self, rng: random.Random, length: int):
        return self.wide(rng, length, rng.random() < 0.95, hard_text)

    def talk(self, rng: random.Random, length: int):
        turns = [small_talk(rng) for _ in range(12)]
        opening = rng.choice(SYSTEM) + "\n\n" if rng.random() < 0.15 else ""
        return *self.row(length, opening, turns), [], []

    def batch(self, seed: int, plan: list[tuple[str, int]], length: int, n_images: int):
        """plan: how many rows of each kind. Padded to n_images pictures, so that all batches have one shape.

        Returns ids, learn, block (0, or the number of the picture in its row), pixels, labels."""
        rng = random.Random(seed)
        rows = []
        for kind, n in plan:
            for _ in range(n):
                if kind == "wide":
                    rows.append(self.wide(rng, length, pan_and_scan=rng.random() < 0.85))
                else:
                    rows.append(getattr(self, kind)(rng, length))
        soft = self.tokenizer.token_to_id(IMAGE_SOFT_TOKEN)
        ids = np.zeros((len(rows), length), dtype=np.int64)
        learn = np.zeros((len(rows), length), dtype=bool)
        xs, ys = [], []
        for i, (row, mask, x, y) in enumerate(rows):
            ids[i, : len(row)] = row
            learn[i, : len(mask)] = mask
            assert (ids[i] == soft).sum() == len(x) * TOKENS_PER_IMAGE, "a row without room for its pictures"
            xs += x
            ys += y
        is_soft = ids == soft
        starts = is_soft & ~np.pad(is_soft, ((0, 0), (1, 0)))[:, :-1]
        block = np.cumsum(starts, 1) * is_soft
        spare = n_images - len(xs)
        assert spare >= 0, (n_images, len(xs))
        if spare:
            xs += [np.zeros((3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)] * spare
            ys += [np.full((SIDE * SIDE, N_LABELS), NONE, np.int64)] * spare
        return ids, learn, block, np.stack(xs), np.stack(ys)

"""Draws the pictures that `npm start` shows, into models/pictures. Their words are held out from training.

pictures.py --out models/pictures
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw

from heldout import save
from scenes import COLOURS, HELD_OUT_WORDS, draw_text, shapes_scene, text_width

SIGN = ["OCEAN", "PARK", "", "365"]


def sign() -> Image.Image:
    """1040 x 260, words in three of the four squares that Pan & Scan cuts."""
    assert all(t in HELD_OUT_WORDS or t.isdigit() or not t for t in SIGN)
    image = Image.new("RGB", (1040, 260), (250, 244, 232))
    draw = ImageDraw.Draw(image)
    for i, text in enumerate(SIGN):
        draw_text(draw, text, 52, 4, 260 * i + (260 - text_width(text, 52, 4)) / 2, 130, COLOURS["blue"], 0)
    return image


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, required=True)
    out = ap.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(20)
    kinds = [("circle", "red", 0), ("square", "yellow", 2), ("star", "blue", 4), ("triangle", "green", 8)]
    save(shapes_scene(rng, kinds=kinds).image, out / "shapes.png")
    save(shapes_scene(rng, kinds=[("ring", "purple", 4)]).image, out / "one.png")
    save(shapes_scene(rng, kinds=[("ring", "orange", 4)]).image, out / "other.png")
    save(sign(), out / "sign.png")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What Pillow and Hugging Face make of generated pictures: make_resize.py --out data

    data/resize.txt   a line each: layout kind width height | box x y width height | out width height | CRC-32 of the bytes
                      of Image.convert("RGB").crop(box).resize(out, BILINEAR); layouts with +white were laid on white first
    data/boxes.txt    CRC-32 of the Pan & Scan boxes of 50 sizes a line, 10,000 sizes; the default options in every other

Pictures, sizes and options come from `scramble`, so only sums are stored; test/native/resize_test.cpp makes the same ones.
"""

from __future__ import annotations

import argparse
import random
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from common import pan_and_scan_boxes

CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}


def scramble(x):
    """uint32 -> uint32, of arrays or integers."""
    x = np.asarray(x, dtype=np.uint32)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x45D9F3B)
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x45D9F3B)
    return x ^ (x >> np.uint32(16))


def picture(layout: str, kind: int, width: int, height: int) -> bytes:
    """kind 0: noise; 1: noise of 0 and 255 alone; 2: slopes."""
    n = CHANNELS[layout]
    i = np.arange(width * height * n, dtype=np.uint32)
    if kind == 2:
        x, y, c = i // n % width, i // n // width, i % n
        return (x * 3 + y * 5 + c * 71).astype(np.uint8).tobytes()
    noise = scramble(i + np.uint32(width * 7919 + height))
    return (np.where(noise & 1, 255, 0) if kind == 1 else noise >> np.uint32(24)).astype(np.uint8).tobytes()


def resize_cases(count: int, seed: int):
    rng = random.Random(seed)
    fixed = [(1, 1), (1, 3000), (5000, 3), (65535, 1), (1, 65535), (896, 896), (897, 895), (1792, 448), (56, 57), (2, 2), (3, 911)]
    sides = [56, 112, 224, 337, 448, 896]
    for i in range(count):
        if i < len(fixed):
            w, h = fixed[i]
        elif i % 4 == 0:
            w, h = rng.randint(1, 40), rng.randint(1, 40)
        else:
            w, h = rng.randint(1, 1200), rng.randint(1, 1200)
        layout = rng.choice(list(CHANNELS)) if i % 5 == 4 else "RGB"
        out = (rng.randint(1, 300), rng.randint(1, 300)) if i % 3 == 1 else (rng.choice(sides[:3] if i % 10 else sides),) * 2
        box = (0, 0, w, h)
        if i % 6 == 5:
            x, y = rng.randint(0, w - 1), rng.randint(0, h - 1)
            box = (x, y, rng.randint(1, w - x), rng.randint(1, h - y))
        yield layout, rng.choice([0, 0, 1, 2]), w, h, box, out


def on_white(image: Image.Image) -> Image.Image:
    """As transformers.image_transforms.convert_to_rgb."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255)), image)


def write_resize(path: Path, count: int) -> None:
    lines = []
    white = ((f"{layout}+white", *rest) for layout, *rest in resize_cases(count, 6) if layout in ("LA", "RGBA"))
    for layout, kind, w, h, (x, y, bw, bh), out in [*resize_cases(count, 5), *white]:
        mode = layout.removesuffix("+white")
        image = Image.frombytes(mode, (w, h), picture(mode, kind, w, h))
        image = (on_white(image) if layout != mode else image).convert("RGB")
        resized = image.crop((x, y, x + bw, y + bh)).resize(out, Image.Resampling.BILINEAR)
        lines.append(f"{layout} {kind} {w} {h} {x} {y} {bw} {bh} {out[0]} {out[1]} {zlib.crc32(resized.tobytes()):08x}")
    path.write_text("\n".join(lines) + "\n")
    print(f"{path}: {len(lines)} pictures")


def box_case(i: int) -> tuple[int, int, int, int, float]:
    a, b, c, d, e = (int(scramble(i * 5 + k)) for k in range(5))
    width, height = 1 + a % 4096, 1 + b % 4096
    if i % 2 == 0:
        return width, height, 256, 4, 1.2
    return width, height, 1 + c % 400, 1 + d % 12, [0.0, 1.0, 1.1, 1.2, 1.5, 2.0, 3.7][e % 7]


def write_boxes(path: Path, count: int, block: int = 50) -> None:
    lines = []
    for start in range(0, count, block):
        text = ""
        for i in range(start, start + block):
            boxes = [box for box in pan_and_scan_boxes(*box_case(i)) if box[0] >= 0]  # without the empty ones
            text += ";".join(",".join(map(str, box)) for box in boxes) + "\n"
        lines.append(f"{start} {zlib.crc32(text.encode()):08x}")
    path.write_text("\n".join(lines) + "\n")
    print(f"{path}: {count} sizes")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, required=True)
    a = ap.parse_args()
    write_resize(a.out / "resize.txt", 560)
    write_boxes(a.out / "boxes.txt", 10_000)


if __name__ == "__main__":
    main()

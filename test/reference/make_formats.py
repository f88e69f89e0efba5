#!/usr/bin/env python3
"""One picture in every file format and pixel type: make_formats.py --out data/formats

Writes the files and formats.json: for each the size and SHA-256 of the RGB bytes that transformers.image_utils.load_image gives
(EXIF orientation applied, converted to RGB by Pillow), and for those with transparency the SHA-256 of the bytes that
transformers.image_transforms.convert_to_rgb makes of the open picture ("white": laid on white).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from common import open_rgb, synth_image

W, H = 61, 43


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def save_png16(path: Path, pixels: np.ndarray, colour_type: int) -> None:
    """Pillow writes no 16-bit colour."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    h, w = pixels.shape[:2]
    rows = b"".join(b"\0" + pixels[y].astype(">u2").tobytes() for y in range(h))
    head = struct.pack(">IIBBBBB", w, h, 16, colour_type, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))


def save_partial_gif(path: Path, image: Image.Image, **options) -> None:
    """A GIF whose picture lies inside of a larger canvas; Pillow writes none."""
    image.save(path, **options)
    data = bytearray(path.read_bytes())
    descriptor = data.index(b"\x2c" + struct.pack("<HHHH", 0, 0, *image.size))
    struct.pack_into("<HH", data, 6, W, H)
    struct.pack_into("<HH", data, descriptor + 1, 9, 5)
    path.write_bytes(data)


def on_white(image: Image.Image) -> Image.Image:
    """As transformers.image_transforms.convert_to_rgb."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255)), image).convert("RGB")


def write(out: Path) -> None:
    rgb = synth_image(W, H, 4711)
    image = Image.fromarray(rgb)
    alpha = np.linspace(0, 255, W * H).reshape(H, W).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    exif = {}
    for n in (2, 5, 6, 8):
        exif[n] = Image.Exif()
        exif[n][0x0112] = n

    image.save(out / "444.jpg", quality=90, subsampling=0)
    image.save(out / "420.jpg", quality=80, subsampling=2)
    image.save(out / "progressive.jpg", quality=70, progressive=True)
    image.convert("L").save(out / "grey.jpg")
    image.convert("CMYK").save(out / "cmyk.jpg", quality=90)
    for n, e in exif.items():
        image.save(out / f"turned-{n}.jpg", quality=80, exif=e)
    image.save(out / "turned-6.png", exif=exif[6])
    image.save(out / "turned-6.webp", lossless=True, exif=exif[6])
    image.convert("1").save(out / "1-bit.png")
    image.quantize(40).save(out / "palette.png")
    image.quantize(40).save(out / "palette-transparent.png", transparency=3)
    image.convert("LA").save(out / "grey-alpha.png")
    rgba.save(out / "rgba.png")
    noise = np.random.default_rng(1).integers(0, 65536, (H // 2, W // 2, 4)).astype(np.uint16)
    save_png16(out / "rgb-16-bit.png", noise[:, :, :3], 2)
    save_png16(out / "rgba-16-bit.png", noise, 6)
    image.save(out / "lossy.webp", quality=80)
    rgba.save(out / "rgba.webp", lossless=True, exact=True)
    inverted = Image.fromarray(255 - rgb)
    image.quantize(40).save(out / "animated.gif", save_all=True, append_images=[inverted.quantize(40)])
    image.quantize(40).save(out / "transparent.gif", transparency=3)
    part = Image.fromarray(rgb[:30, :40]).quantize(40)
    save_partial_gif(out / "partial.gif", part)
    save_partial_gif(out / "partial-transparent.gif", part, transparency=3)
    image.save(out / "animated.webp", save_all=True, append_images=[inverted], lossless=True)
    image.save(out / "lzw.tiff", compression="tiff_lzw")
    image.save(out / "two-pages.tiff", save_all=True, append_images=[inverted], compression="tiff_lzw")
    image.convert("CMYK").save(out / "cmyk.tiff", compression="tiff_lzw")
    image.save(out / "444.avif", quality=90, subsampling="4:4:4")
    image.save(out / "420.avif", quality=80)
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(out / "grey-16-bit.png")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, required=True)
    out = ap.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    write(out)
    lines = []
    for path in sorted(out.iterdir()):
        if path.suffix == ".json":
            continue
        image = open_rgb(path)
        record = {"file": path.name, "width": image.width, "height": image.height, "sha256": sha256(image.tobytes())}
        if path.name == "grey-16-bit.png":  # Pillow clips it; the upper bytes are the grey picture
            grey = np.asarray(Image.open(path)) >> 8
            record["sha256"] = sha256(np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2).tobytes())
        if path.suffix == ".avif":  # decoders differ in the last bit, and in how they interpolate colour: compared loosely
            mean = np.asarray(image).reshape(-1, 3).mean(axis=0)
            record.update(sha256=None, mean=[round(float(m), 3) for m in mean])
        opened = Image.open(path)
        if opened.has_transparency_data and opened.mode != "I;16":
            record["white"] = sha256(on_white(opened).tobytes())
        lines.append(json.dumps(record))
    (out / "formats.json").write_text("[\n " + ",\n ".join(lines) + "\n]\n")
    print(f"{out}: {len(lines)} files")


if __name__ == "__main__":
    main()

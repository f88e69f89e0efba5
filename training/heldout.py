"""Writes the held-out data that `npm run demo:eval` and the tests ask about: pictures that training never draws.

    heldout.py --out test/demo

Seeds lie far from training's; the words are those of HELD_OUT_WORDS. Checks that Pan & Scan cuts as transformers does.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np

from languages import POSITION_WORDS, scene_question, upper_first
from scenes import compare_pair, pan_and_scan_boxes, shapes_scene, text_scene, wide_scene

SEED = 987_654_321


def add(archive: tarfile.TarFile, image, name: str) -> str:
    """Appends a picture as lossless WebP, which takes two thirds of the size of PNG. Headers hold no time, so the archive repeats."""
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True, quality=100, method=6)
    info = tarfile.TarInfo(name)
    info.size = file.tell()
    file.seek(0)
    archive.addfile(info, file)
    return name


def check_boxes(image, boxes) -> None:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    theirs = Gemma3ImageProcessorPil().pan_and_scan(np.asarray(image).transpose(2, 0, 1), 256, 4, 1.2)
    assert [c.shape[1:] for c in theirs] == [(h, w) for _, _, w, h in boxes], "Pan & Scan differs from the processor's"


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--shapes", type=int, default=150)
    ap.add_argument("--texts", type=int, default=100)
    ap.add_argument("--wide", type=int, default=150)
    ap.add_argument("--pairs", type=int, default=100)
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    images = tarfile.open(a.out / "images.tar", "w", format=tarfile.USTAR_FORMAT)
    rng = random.Random(SEED)
    items = []
    for i in range(a.shapes):
        scene = shapes_scene(rng)
        name = add(images, scene.image, f"shapes-{i:03}.webp")
        turns = {kind: scene_question(rng, scene.shapes, kind, "en") for kind in ("what", "where", "count", "describe", "is-there")}
        only = [s for s in scene.shapes if sum(t.shape == s.shape for t in scene.shapes) == 1]
        if only:
            s = rng.choice(only)
            turns["colour"] = (f"What colour is the {s.shape}?", upper_first(s.colour) + ".")
        s = rng.choice(scene.shapes)
        turns["shape"] = (f"Which shape is {POSITION_WORDS['en'][3 * s.row + s.column]}?",
                          upper_first(f"{'an' if s.colour[0] in 'aeiou' else 'a'} {s.colour} {s.shape}") + ".")  # fmt: skip
        for kind, (question, answer) in turns.items():
            items.append({"kind": kind, "images": [name], "question": question, "answer": answer})
        language = ("de", "fr", "es")[i % 3]
        question, answer = scene_question(rng, scene.shapes, "describe", language)
        items.append({"kind": f"describe-{language}", "images": [name], "question": question, "answer": answer})
    for i in range(a.texts):
        scene = text_scene(rng, held_out=True)
        name = add(images, scene.image, f"text-{i:03}.webp")
        items.append({"kind": "read", "images": [name], "question": "What does it say?", "answer": scene.text})
    for i in range(a.wide):
        scene = wide_scene(rng, held_out=True)
        boxes = pan_and_scan_boxes(*scene.image.size)
        check_boxes(scene.image, boxes)
        name = add(images, scene.image, f"wide-{i:03}.webp")
        items.append({"kind": "read-wide", "images": [name], "question": "What does it say?", "answer": scene.text})
    for i in range(a.pairs):
        one, two, _ = compare_pair(rng)
        names = [add(images, scene.image, f"pair-{i:03}-{j}.webp") for j, scene in enumerate((one, two))]
        s, t = one.shapes[0], two.shapes[0]
        differ = [n for n, x, y in (("shape", s.shape, t.shape), ("colour", s.colour, t.colour), ("position", (s.row, s.column), (t.row, t.column))) if x != y]
        answer = ["The pictures show the same.", f"The {(differ or [''])[0]} is different.",
                  f"The {(differ or [''])[0]} and the {(differ or ['', ''])[-1]} are different.",
                  "The shape, the colour and the position are different."][len(differ)]  # fmt: skip
        items.append({"kind": "compare", "images": names, "question": "What is different?", "answer": answer})
    (a.out / "heldout.json").write_text(json.dumps(items, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    n_pictures = len(images.getnames())
    images.close()
    print(f"{len(items)} questions about {n_pictures} pictures, {(a.out / 'images.tar').stat().st_size} bytes")


if __name__ == "__main__":
    main()

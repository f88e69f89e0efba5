"""Draws the logs of train.py as pictures: plot.py --run build/demo --out training/log"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

STAGES = {
    "vision": ("The vision encoder alone", {"glyph": "letters (left half of a cell)", "shape": "shapes", "colour": "colours"}),
    "all": ("Everything, end to end", {"short": "answers about one picture, small talk", "long": "wide pictures and pairs", "glyph": "letters, by the probe"}),
    "reading": ("More to read", {"short": "shapes, pairs, small talk", "words": "words", "long": "wide pictures", "glyph": "letters, by the probe"}),
    "finish": ("More to compare", {"short": "shapes, small talk", "pairs": "pairs", "words": "words", "long": "wide pictures"}),
}  # fmt: skip


def smooth(values: list[float], n: int = 9) -> np.ndarray:
    v = np.asarray(values, dtype=float)
    v = np.where(np.isnan(v), np.nanmean(v), v)
    n = min(n, len(v))
    return np.convolve(np.pad(v, (n // 2, n - 1 - n // 2), mode="edge"), np.ones(n) / n, mode="valid")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--run", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    plt.rcParams["svg.hashsalt"] = "demo"
    for name, (title, curves) in STAGES.items():
        lines = [json.loads(line) for line in (a.run / f"{name}.jsonl").read_text().splitlines()]
        (a.out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        steps = [line["step"] for line in lines]
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
        figure.suptitle(f"{title}: {steps[-1]} steps, {lines[-1]['seconds'] / 60:.0f} minutes")
        left.plot(steps, smooth([line["loss"] for line in lines]))
        left.set(xlabel="step", ylabel="loss", yscale="log")
        for key, label in curves.items():
            right.plot(steps, 100 * smooth([line[key] for line in lines]), label=label)
        right.set(xlabel="step", ylabel="right, %", ylim=(0, 101))
        right.legend(fontsize=8)
        for axes in (left, right):
            axes.grid(alpha=0.3)
        figure.savefig(a.out / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

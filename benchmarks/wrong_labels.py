"""Ten labels of 200 rendered clips are flipped: how many stand among the first 15 that are named?

    python benchmarks/wrong_labels.py [--arch motion] [--num-frames 8 --crop 48 --epochs 8]

Twenty-five cameras, folds grouped by camera, a model trained from nothing in each: seconds a fold for motion, minutes
for a network on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tillwatch.config import TrainConfig
from tillwatch.data.catalog import CLIPS_CSV
from tillwatch.data.synthetic import CLASSES, make_camera, render_clip
from tillwatch.evaluation.wrong_labels import rank_labels
from tillwatch.files import write_csv
from tillwatch.models.motion import ARCH as MOTION
from tillwatch.training.cross_validation import Folds, cross_validate

CLIPS_PER_CAMERA = 8


def render(folder: Path, count: int, flips: int, seed: int) -> set[str]:
    """Writes the clips into class folders, some into the wrong one; returns the names of those."""
    flipped = set(np.random.default_rng(seed).choice(count, flips, replace=False).tolist())
    rows, wrong = [], set()
    for number in range(count):
        camera_number, take = divmod(number, CLIPS_PER_CAMERA)
        camera = make_camera(f"camera{camera_number:02d}", 1000 * seed + camera_number)
        truth = take % 2
        label = CLASSES[1 - truth if number in flipped else truth]
        name = f"{label}/{camera.name}_{take:02d}"
        (folder / name).mkdir(parents=True)
        for index, frame in enumerate(render_clip(camera, CLASSES[truth], 100_000 * seed + number)):
            Image.fromarray(frame).save(folder / name / f"frame_{index:06d}.jpg", quality=92)
        rows.append({"path": name, "label": label, "group": camera.name, "every": 1, "fps": 12})
        if number in flipped:
            wrong.add(name)
    write_csv(folder / CLIPS_CSV, tuple(rows[0]), rows)
    return wrong


def settings(options: argparse.Namespace, cache: Path) -> TrainConfig:
    """Returns how each fold trains; the motion model takes whole frames and its own number of them."""
    sizes: dict[str, Any] = {"num_frames": options.num_frames, "resize": options.crop * 9 // 8, "crop": options.crop}
    if options.arch == MOTION:
        sizes = {}
    return TrainConfig(
        classes=CLASSES,
        arch=options.arch,
        weights="none",
        every=1,
        batch_size=options.batch_size,
        epochs=options.epochs,
        lr=options.lr,
        seed=options.seed,
        cache_folder=cache,
        baselines=False,
        **sizes,
    )


def main(options: argparse.Namespace) -> None:
    """Renders, cross-validates, ranks and counts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wrong = render(folder / "clips", options.clips, options.flips, options.seed)
        config = settings(options, folder / "cache")
        result = cross_validate(
            folder / "clips", folder / "run", config, Folds(folds=options.folds, repeats=options.repeats)
        )
        first = {suspect.path for suspect in rank_labels(folder / "run", top=15)[:15]}
        print(f"out-of-fold accuracy {result.pooled[0].accuracy:.3f} (the flipped labels count as they stand)")
        print(f"{len(first & wrong)} of {len(wrong)} flipped labels among the first 15 named")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--flips", type=int, default=10)
    parser.add_argument("--arch", default="r2plus1d_18")
    parser.add_argument("--num-frames", type=int, default=8)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())

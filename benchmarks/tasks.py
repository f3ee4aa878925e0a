"""The two tasks on which quality is compared: hard enough that a worse training shows.

``noisy_till``: the demo's rendered scene under several times its noise, on cameras never seen. ``cctv_small``: real
clips of fights and of none, at 8 x 48 x 48 pixels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tillwatch.config import TrainConfig
from tillwatch.data.catalog import CLIPS_CSV
from tillwatch.data.provenance import EXTRACTION_JSON
from tillwatch.data.synthetic import CLASSES, make_camera, render_clip
from tillwatch.files import read_csv, write_csv

#: Cameras of each side; every one films CLIPS_PER_CAMERA clips, half of each class.
CAMERAS = {"train": 12, "validation": 8, "test": 15}
FEW_CAMERAS = {"train": 1, "validation": 1, "test": 1}
CLIPS_PER_CAMERA = 8

#: Times the demo's noise, which drowns single frames: hand and banknote show in the mean of their pixels alone.
NOISE = 60.0

#: For a look at whether everything runs.
SMALL: dict[str, Any] = {"num_frames": 4, "resize": 36, "crop": 32}

_SIZE: dict[str, Any] = {"num_frames": 8, "resize": 56, "crop": 48, "batch_size": 8, "weights": "none"}


@dataclass(frozen=True)
class Task:
    """A data folder for each seed, and how to train on it."""

    name: str
    make: Callable[[Path, int], TrainConfig]


def noisy_till(noise: float = NOISE, cameras: Mapping[str, int] = CAMERAS, **settings: Any) -> Task:
    """The demo's scene under ``noise`` times its noise; cameras and films differ from seed to seed."""

    def make(folder: Path, seed: int) -> TrainConfig:
        rows = []
        sides = [side for side, count in cameras.items() for _ in range(count)]
        for number, side in enumerate(sides):
            camera = make_camera(f"camera{number:02d}", 1000 * seed + number)
            camera = replace(camera, noise=noise * camera.noise)
            for take in range(CLIPS_PER_CAMERA):
                label = CLASSES[take % 2]
                name = f"{label}/{camera.name}_{take:02d}"
                film = render_clip(camera, label, 1_000_000 * seed + 100 * number + take)
                (folder / name).mkdir(parents=True)
                for index, frame in enumerate(film):
                    Image.fromarray(frame).save(folder / name / f"frame_{index:06d}.jpg", quality=92)
                row = {"path": name, "label": label, "group": camera.name, "every": 1, "fps": 12}
                rows.append({**row, "split": side})
        columns = ("path", "label", "group", "every", "fps")
        write_csv(folder / CLIPS_CSV, columns, [{name: row[name] for name in columns} for row in rows])
        split = folder.with_suffix(".split.csv")
        write_csv(split, ("path", "split"), [{"path": row["path"], "split": row["split"]} for row in rows])
        options = {**_SIZE, "epochs": 12, "lr": 5e-4, "every": 1, **settings}
        return TrainConfig(classes=CLASSES, split_file=split, seed=seed, **options)

    return Task("noisy till", make)


def cctv_small(frames: Path, clips_per_class: int | None = None, **settings: Any) -> Task:
    """Frame folders of real clips, as ``tillwatch extract`` wrote them, all or some; another split for each seed."""

    def make(folder: Path, seed: int) -> TrainConfig:
        folder.mkdir()
        rows = []
        for label in sorted(entry.name for entry in frames.iterdir() if entry.is_dir()):
            (folder / label).mkdir()
            of_class = [row for row in read_csv(frames / CLIPS_CSV) if row["label"] == label]
            stride = max(1, len(of_class) // (clips_per_class or len(of_class)))
            for row in of_class[::stride]:
                (folder / row["path"]).symlink_to((frames / row["path"]).resolve(), target_is_directory=True)
                rows.append(row)
        write_csv(folder / CLIPS_CSV, tuple(rows[0]), rows)
        shutil.copy(frames / EXTRACTION_JSON, folder)
        return TrainConfig(**{**_SIZE, "epochs": 4, "lr": 5e-4, "seed": seed, **settings})

    return Task("CCTV, small", make)


def test_loss(run: Path) -> float:
    """Mean cross entropy of a run's test clips, from predictions.csv."""
    losses = [
        -np.log(max(1e-12, float(row[f"p_{row['label']}"])))
        for row in read_csv(run / "predictions.csv")
        if row["split"] == "test"
    ]
    return float(np.mean(losses))

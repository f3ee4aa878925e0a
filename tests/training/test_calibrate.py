"""The operating point comes from validation clips alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tillwatch.data.catalog import CLIPS_CSV
from tillwatch.errors import ConfigError
from tillwatch.files import read_csv, write_csv
from tillwatch.training.loop import train


def test_poisoned_test_clips_move_neither_temperature_nor_operating_point(
    tiny_run: tuple[Path, Path], tmp_path: Path, tiny_config: Any, quiet: Any
) -> None:
    frames, run = tiny_run
    sides = {row["path"]: row["split"] for row in read_csv(run / CLIPS_CSV)}
    poisoned = tmp_path / "frames"
    shutil.copytree(frames, poisoned)
    for name in (name for name, side in sides.items() if side == "test"):
        for path in (poisoned / name).glob("*.jpg"):
            noise = np.random.default_rng(0).integers(0, 255, (40, 48, 3)).astype(np.uint8)
            Image.fromarray(noise).save(path)
    split = run / CLIPS_CSV
    records = []
    for data, out in ((frames, tmp_path / "clean"), (poisoned, tmp_path / "poisoned")):
        train(data, out, tiny_config(epochs=1, group_pattern=r"day\d", split_file=split), quiet())
        model = json.loads((out / "model.json").read_text(encoding="utf-8"))
        figures = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
        records.append(
            (model["temperature"], model["operating_point"], model["sha256"], figures["classification_report"])
        )
    assert records[0][:3] == records[1][:3]
    assert records[0][3] != records[1][3] or records[0][3]["accuracy"] == 0.5, (
        "the poison did nothing, so nothing was shown"
    )
    assert "validation clips" in records[0][1]["source"]


def test_flipped_labels_of_test_clips_move_the_figures_alone(
    tiny_run: tuple[Path, Path], tmp_path: Path, tiny_config: Any, quiet: Any
) -> None:
    frames, run = tiny_run
    rows = [row for row in read_csv(run / CLIPS_CSV) if row["split"]]
    models, figures = [], []
    for flipped in (False, True):
        data, out = tmp_path / f"frames{flipped}", tmp_path / f"run{flipped}"
        shutil.copytree(frames, data)
        split = [{"path": row["path"], "split": row["split"]} for row in rows]
        for row, place in zip(rows, split, strict=True):
            if flipped and row["split"] == "test":
                label, name = row["path"].split("/")
                place["path"] = f"{'normal' if label == 'theft' else 'theft'}/flipped_{name}"
                (data / row["path"]).rename(data / place["path"])
        write_csv(tmp_path / f"split{flipped}.csv", ("path", "split"), split)
        options = {"group_pattern": r"day\d", "split_file": tmp_path / f"split{flipped}.csv", "event": ("theft",)}
        train(data, out, tiny_config(epochs=2, **options), quiet())
        models.append((out / "model.json").read_bytes())
        figures.append(json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["accuracy"])
    assert json.loads(models[0])["temperature"] == json.loads(models[1])["temperature"]
    assert json.loads(models[0])["operating_point"] == json.loads(models[1])["operating_point"]
    assert json.loads(models[0])["sha256"] == json.loads(models[1])["sha256"]
    assert figures[0] + figures[1] == pytest.approx(1.0), (
        "what was right under one set of labels is wrong under the other"
    )
    assert figures[0] != figures[1], "the poison did nothing, so nothing was shown"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_false_alarms_per_hour": 1.0, "min_recall": 0.5}, "exclude each other"),
        ({"max_false_alarms_per_hour": -1.0}, "at least 0"),
        ({"min_recall": 1.5}, "at most 1"),
        ({"normal_hours": 0.0}, "positive"),
        ({"prevalence": 1.0}, "between 0 and 1"),
        ({"hold_out": False, "plateau_on": "train", "keep": "last", "min_recall": 0.5}, "nothing to choose"),
    ],
)
def test_settings_that_cannot_be(tiny_config: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny_config(**options)

"""Wrong labels: flipped ones come first, each with its picture."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tillwatch.errors import ConfigError, RunError
from tillwatch.evaluation.wrong_labels import find_suspects, rank_labels
from tillwatch.training.cross_validation import Folds, cross_validate

CLASSES = ("normal", "theft")


def test_flipped_labels_come_first() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(200) % 2
    theft = 1 / (1 + np.exp(-rng.normal(4 * truth - 2, 1.2)))
    labels = truth.copy()
    flipped = rng.choice(200, 10, replace=False)
    labels[flipped] = 1 - labels[flipped]
    suspects = find_suspects([str(n) for n in range(200)], labels, np.stack([1 - theft, theft], 1), CLASSES)
    assert len(suspects) == 200
    assert len({int(suspect.path) for suspect in suspects[:15]} & set(flipped.tolist())) >= 8
    assert suspects[0].issue
    assert suspects[0].label != suspects[0].likely
    assert not suspects[-1].issue


def test_a_cross_validation_gets_a_ranking_with_pictures(
    tiny_run: tuple[Path, Path], tiny_config: Any, quiet: Any, tmp_path: Path
) -> None:
    out = tmp_path / "cv"
    cross_validate(tiny_run[0], out, tiny_config(group_pattern=r"day\d"), Folds(folds=3), quiet())
    suspects = rank_labels(out, top=3)
    with (out / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [suspect.path for suspect in suspects]
    quality = [float(row["quality"]) for row in rows]
    assert len(rows) == 24
    assert quality == sorted(quality)
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["001.jpg", "002.jpg", "003.jpg"]
    with Image.open(out / "labels" / "001.jpg") as strip:
        assert strip.size == (8 * 128, 128)
    page = (out / "labels.html").read_text()
    assert page.index(suspects[0].path) < page.index(suspects[2].path)
    assert suspects[3].path not in page


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(RunError, match="holds no finished cross-validation"):
        rank_labels(tmp_path)
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(ConfigError, match="needs cleanlab"):
        find_suspects(["a", "b"], np.array([0, 1]), np.eye(2), CLASSES)

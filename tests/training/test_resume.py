"""A training that is broken off, whatever by, goes on to the weights that it would have had."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from training.broken_off import Place, train_apart

from tillwatch.models.saved import sha256_of

SETTINGS: dict[str, Any] = {"epochs": 3, "group_pattern": r"day\d", "baselines": False, "checkpoint_minutes": 0.0}
TIMES = ("seconds", "clips_per_s", "data_wait_s")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def learnt(run: Path) -> tuple[str, list[dict[str, str]], bytes]:
    """What must be equal: weights, metrics but for times, and scores."""
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in rows_of(run / "metrics.csv")]
    return sha256_of(run / "model.pth"), rows, (run / "predictions.csv").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tiny_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train_apart(tiny_run[0], run, SETTINGS) == 0
    return run


def go_on_through(places: list[Place], data: Path, run: Path, settings: dict[str, Any]) -> int:
    """Trains, dying at one place after the other; returns how many there were before the end."""
    for number, place in enumerate(places):
        code = train_apart(data, run, settings, place)
        if code == 0:
            return number
        assert code == -9
    assert train_apart(data, run, settings) == 0
    return len(places)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_each_part_it_ends_as_if_it_had_not_been(
    workers: int, uninterrupted: Path, tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    places: list[Place] = [("step", 2), ("checkpoint", 30_000), ("validation", 2), ("metrics", 2), ("finish", 3)]
    run = tmp_path / "run"
    assert go_on_through(places, tiny_run[0], run, {**SETTINGS, "workers": workers}) == len(places)
    assert learnt(run) == learnt(uninterrupted)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.pth"}
    assert {p.name for p in run.iterdir()} == {p.name for p in uninterrupted.iterdir()}

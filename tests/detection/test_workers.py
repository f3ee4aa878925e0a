"""Scans that real signals end, and scans by several processes: the same result whatever happens."""

from __future__ import annotations

import csv
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from detection import scanning_apart
from detection.scanning_apart import load_tiny, start_scan

from tillwatch.config import ScanConfig
from tillwatch.detection.batches import SHARE_SIZE, Way, Work, shares_of
from tillwatch.detection.cameras import Source
from tillwatch.detection.journal import Journal
from tillwatch.detection.scanner import Plan, plan_scan
from tillwatch.detection.scanner import scan as run_scan
from tillwatch.detection.windows import Grid, seconds_exactly
from tillwatch.detection.workers import score_in_processes
from tillwatch.errors import ConfigError, ModelError, RunError

MakeFootage = Callable[..., Path]

RESULTS = ("scores.csv", "incidents.csv", "incidents.jsonl", "scan.json", "timeline.html")
GRID = ("--window", "1.1", "--stride", "0.1")


@pytest.fixture
def long_footage(tmp_path: Path, make_footage: MakeFootage) -> Path:
    """Four recordings, three of which hold more windows than a share."""
    for number, frames in enumerate((250, 200, 40, 225)):
        bright = range(60, 110) if number != 2 else range(0)
        make_footage(tmp_path / "footage" / f"cam_{number}.mp4", range(frames), bright=bright)
    return tmp_path / "footage"


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in RESULTS}


def same_as(out: Path, whole: Path) -> None:
    """To the last byte, which is more than the promise of windows, incidents and scores to five decimals."""
    assert results(out) == results(whole)


def kill_again_and_again(run: Path, footage: Path, out: Path, kills: int, seed: int) -> None:
    """Kills a scan so many times at chance moments, each later than a further batch or two, then lets it end."""
    rng = random.Random(seed)
    journal = out / "journal.jsonl"
    killed = 0
    while True:
        before = _lines(journal)
        process = start_scan(run, footage, "--out", out, *GRID, "--threshold", 0.5)
        if killed == kills:
            process.join(120)
            assert process.exitcode == 0
            return
        further = rng.randrange(3)
        while process.is_alive() and _lines(journal) < before + further:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.005))  # a batch takes as long
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        # Whoever was too slow to kill it has seen nothing: the scan must not have ended of itself.
        assert process.exitcode == -signal.SIGKILL
        assert not (out / "scan.json").exists()
        killed += 1


def _lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.is_file() else 0


def test_a_scan_that_was_killed_three_times_ends_the_same(
    tiny_run: tuple[Path, Path], long_footage: Path, tmp_path: Path
) -> None:
    whole = start_scan(tiny_run[1], long_footage, "--out", tmp_path / "whole", *GRID, "--threshold", 0.5)
    whole.join(120)
    kill_again_and_again(tiny_run[1], long_footage, tmp_path / "killed", kills=3, seed=0)
    same_as(tmp_path / "killed", tmp_path / "whole")
    with (tmp_path / "whole" / "incidents.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_scan_that_was_killed_ten_times_ends_the_same(
    seed: int, tiny_run: tuple[Path, Path], long_footage: Path, tmp_path: Path
) -> None:
    whole = start_scan(tiny_run[1], long_footage, "--out", tmp_path / "whole", *GRID, "--threshold", 0.5)
    whole.join(120)
    kill_again_and_again(tiny_run[1], long_footage, tmp_path / "killed", kills=10, seed=seed)
    same_as(tmp_path / "killed", tmp_path / "whole")


def planned(run: Path, footage: Path, workers: int) -> Plan:
    """A plan whose model other processes can read."""
    plan = plan_scan(run, [footage], ScanConfig(window=1.1, stride=0.1, device="cpu", workers=workers), 0.5)
    return replace(plan, load=partial(load_tiny, run))


def test_two_processes_find_what_one_does(tiny_run: tuple[Path, Path], long_footage: Path, tmp_path: Path) -> None:
    (long_footage / "cam_4.mp4").touch()
    for workers in (1, 2):
        run_scan(planned(tiny_run[1], long_footage, workers), tmp_path / f"by{workers}")
    same_as(tmp_path / "by2", tmp_path / "by1")


class Killed(BaseException):
    """Stands for a kill of the process that keeps the journal."""


@pytest.mark.slow
def test_another_number_of_processes_goes_on_where_a_scan_was(
    tiny_run: tuple[Path, Path], long_footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_scan(planned(tiny_run[1], long_footage, 1), tmp_path / "whole")
    scored = Journal.scored
    for workers in (2, 3):
        lines: list[int] = []

        def dying(self: Journal, rows: Any, lines: list[int] = lines) -> None:
            if len(lines) == 7:
                raise Killed
            lines.append(len(rows))
            scored(self, rows)

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "scored", dying)
            with pytest.raises(Killed):
                run_scan(planned(tiny_run[1], long_footage, workers), tmp_path / f"by{workers}")
        run_scan(planned(tiny_run[1], long_footage, 1 if workers == 3 else 2), tmp_path / f"by{workers}")
        same_as(tmp_path / f"by{workers}", tmp_path / "whole")


@pytest.mark.parametrize(
    ("load", "error", "message"),
    [
        pytest.param(
            scanning_apart.load_other,
            ModelError,
            "the model has changed since the scan was begun",
            marks=pytest.mark.slow,
        ),
        (scanning_apart.die, RunError, "was killed by signal 9"),
    ],
)
def test_what_goes_wrong_in_a_process_is_said(
    load: Callable[[Path], Any],
    error: type[Exception],
    message: str,
    tiny_run: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    source = Source(path=tmp_path / "a.mp4", file="a.mp4", camera="a", regions={"whole": None})
    way = Way(grid=Grid(length=seconds_exactly(1), stride=seconds_exactly(1)))
    share = [Work(file=0, source=source)]
    with pytest.raises(error, match=message):
        list(score_in_processes(partial(load, tiny_run[1]), "sha", [share], way, 1))


def test_shares_are_made_of_the_files_alone() -> None:
    grid = Grid(length=seconds_exactly(2), stride=seconds_exactly(1))

    def source(regions: int) -> Source:
        return Source(path=Path("a"), file="a", camera="a", regions={f"r{n}": None for n in range(regions)})

    sources = [source(1)] * 4 + [source(2), source(1), source(1)]
    seconds = [SHARE_SIZE - 1.0, 1.0, 10.0, 0.0, SHARE_SIZE / 2, 1.0, 1.0]
    assert shares_of(sources, seconds, grid) == [[0, 1], [2, 3], [4], [5, 6]]
    assert shares_of([], [], grid) == []


def test_no_process_at_all_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--workers is 0"):
        ScanConfig(workers=0)

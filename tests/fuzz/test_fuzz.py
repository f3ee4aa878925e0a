"""Damaged images, videos, configurations and models, by the thousand: each is read or named, and nothing crashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeVideo, moving_frames
from fuzz import tasks
from fuzz.mutations import valid_images, valid_jpegs, valid_videos
from fuzz.watched import Watched, watch
from PIL import Image

SEED = 5
#: How much a process may grow while it works on hundreds of files, none of which it keeps.
GROWN_MB = 32

slow = pytest.mark.slow


def held(watched: Watched, count: int) -> Counter[str]:
    """Asserts that nothing crashed, hung or grew; returns how often each thing came of a file."""
    told = "\n".join(f"{number}: {what}" for number, what in sorted(watched.failures.items()))
    assert not watched.failures, f"seed {SEED}, {len(watched.failures)} of {count}:\n{told}"
    assert len(watched.outcomes) == count
    assert watched.grown_mb < GROWN_MB
    return Counter(watched.outcomes.values())


def test_what_crashes_hangs_or_grows_is_noticed(tmp_path: Path) -> None:
    found = watch(tasks.faults, tmp_path, count=60, hang_s=3, asleep_s=5.0)
    assert found.failures == {
        1: "crashed (SIGSEGV)",
        2: "hung for 3 s of a processor's time",
        3: "hung for 5 s, waiting",
        4: "raised UserWarning: said to nobody",
    }
    assert found.grown_mb > GROWN_MB
    assert set(found.outcomes) == set(range(60)) - {1, 2, 3, 4}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kinds", "count"),
    [
        (valid_jpegs, 150),
        (valid_images, 55),
        pytest.param(valid_jpegs, 2000, marks=slow),
        pytest.param(valid_images, 550, marks=slow),
    ],
)
def test_damaged_images_are_read_or_named(
    kinds: Callable[[], list[tuple[str, bytes]]], count: int, tmp_path: Path
) -> None:
    came = held(watch(tasks.images, tmp_path, SEED, kinds(), count=count), count)
    # All are common, or the damage is none or too much to say anything.
    assert min(came["read"], came["named in its batch"], came["skipped by the catalog"]) > count // 20


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [68, pytest.param(510, marks=slow)])
def test_damaged_videos_are_read_or_named(count: int, tmp_path: Path) -> None:
    kinds = valid_videos(tmp_path)
    came = held(watch(tasks.videos, tmp_path, SEED, kinds, count=count), count)
    assert came["read; scanned"] > count // 10
    assert came["skipped by the catalog; left out of a scan"] > count // 10
    assert sum(times for what, times in came.items() if "part scanned" in what) > count // 50


@pytest.fixture
def small_data(tmp_path: Path) -> Path:
    root = tmp_path / "frames"
    for label, brightness in (("theft", 150), ("normal", 20)):
        for number in range(6):
            folder = root / label / f"day{number % 3}_{number}"
            folder.mkdir(parents=True)
            for t, frame in enumerate(moving_frames(4, seed=number, brightness=brightness)):
                Image.fromarray(frame).save(folder / f"{t}.jpg")
    return root


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [25, pytest.param(500, marks=slow)])
def test_damaged_configurations_are_refused_in_a_line_or_train(count: int, tmp_path: Path, small_data: Path) -> None:
    came = held(watch(tasks.configurations, tmp_path, SEED, small_data, count=count), count)
    assert 0 < came["a valid run"] < count // 2


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [100, pytest.param(500, marks=slow)])
def test_damaged_models_are_refused_in_a_line_or_predict(
    count: int, tmp_path: Path, tiny_run: tuple[Path, Path], make_video: MakeVideo
) -> None:
    clip = make_video(tmp_path / "clip.mp4")
    came = held(watch(tasks.models, tmp_path, SEED, tiny_run[1], clip, count=count), count)
    assert 0 < came["predicted; scanned"] < count // 2

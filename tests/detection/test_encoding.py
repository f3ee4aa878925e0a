"""H.264 files: the frames' own times, and colours that are told."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tillwatch.data.video import decode_video
from tillwatch.detection.encoding import BT601, BT709, Colours, H264File, colours_shown

Probe = Callable[[Path], dict[str, Any]]
MakeFootage = Callable[..., Path]

ORANGE = np.tile(np.array([230, 120, 40], np.uint8), (48, 64, 1))


def write(path: Path, ticks: list[int], time_base: Fraction, colours: Colours | None = None) -> Path:
    file = H264File(path, time_base=time_base, fps=None, colours=colours)
    for tick in ticks:
        file.add(av.VideoFrame.from_ndarray(ORANGE, format="rgb24"), tick)
    file.finish()
    assert file.frames == len(ticks)
    return path


@pytest.mark.parametrize(
    ("ticks", "time_base"),
    [
        ([1001 * n + 77 for n in range(40)], Fraction(1, 30_000)),
        (np.cumsum(np.random.default_rng(2).integers(10, 400, 40)).tolist(), Fraction(1, 1000)),
        (list(range(40)), Fraction(1, 25)),
    ],
)
def test_frames_keep_their_times(ticks: list[int], time_base: Fraction, tmp_path: Path, ffprobe: Probe) -> None:
    told = ffprobe(write(tmp_path / "a" / "clip.mp4", ticks, time_base))
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["clip.mp4"]
    assert (told["codec_name"], told["pix_fmt"], int(told["nb_read_frames"])) == ("h264", "yuv420p", 40)
    assert told["times"] == pytest.approx([float((tick - ticks[0]) * time_base) for tick in ticks], abs=1e-4)
    last = told["times"][-1] - told["times"][-2]
    assert float(told["duration"]) == pytest.approx(told["times"][-1], abs=1.1 * last + 0.04)


def test_frames_of_one_moment_follow_each_other(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [5, 10, 10, 10, 11, 20], Fraction(1, 1000))
    assert [round(1000 * float(frame.time or 0)) for frame in decode_video(path)] == [0, 5, 6, 7, 8, 15]


@pytest.mark.parametrize(
    ("colours", "told"),
    [
        (Colours(matrix=BT709, primaries=BT709, transfer=BT709), ("bt709", "tv", "bt709")),
        (Colours(matrix=BT601), ("smpte170m", "tv", None)),
        (Colours(matrix=BT601, full_range=True), ("smpte170m", "pc", None)),
    ],
)
def test_colours_are_told_and_are_what_was_drawn(
    colours: Colours, told: tuple[str, str, str | None], tmp_path: Path, ffprobe: Probe
) -> None:
    path = write(tmp_path / "a.mp4", [0, 1, 2], Fraction(1, 25), colours)
    stream = ffprobe(path)
    assert (stream["color_space"], stream["color_range"], stream.get("color_primaries")) == told
    for frame in decode_video(path):
        assert np.abs(frame.to_ndarray(format="rgb24").astype(int) - ORANGE).max() <= 3


@pytest.mark.parametrize(("height", "matrix"), [(576, BT601), (720, BT709), (1080, BT709)])
def test_what_a_file_leaves_open_goes_by_its_height(
    height: int, matrix: int, tmp_path: Path, make_flat_footage: MakeFootage
) -> None:
    untold = make_flat_footage(tmp_path / "a.mkv", "libx264", 2, False, height)
    assert colours_shown(next(decode_video(untold))).matrix == matrix
    told = make_flat_footage(tmp_path / "b.mkv", "libx264", 5, False, height)
    assert colours_shown(next(decode_video(told))).matrix == 5


def test_what_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    file = H264File(tmp_path / "a.mp4", time_base=Fraction(1, 25), fps=None)
    file.discard()
    file.add(av.VideoFrame.from_ndarray(ORANGE, format="rgb24"), 0)
    file.discard()
    file.discard()
    assert list(tmp_path.iterdir()) == []

"""Hours of footage: all videos below a folder, damaged ones named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tillwatch.data.footage import measure_footage
from tillwatch.errors import DataError

MakeVideo = Callable[..., Path]


def test_lengths_add_up_also_in_folders_below(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "a.mp4", num_frames=20, fps=10)
    make_video(tmp_path / "monday" / "b.mp4", num_frames=16, fps=10)
    (tmp_path / "monday" / "c.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no video")
    found = measure_footage(tmp_path)
    assert found.hours == pytest.approx(3.6 / 3600)
    assert found.videos == 2
    assert [(skip.name, skip.reason) for skip in found.skipped] == [("monday/c.mp4", "the file is empty")]


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch])
def test_no_footage_is_said_in_a_line(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "footage")
    with pytest.raises(DataError, match=r"^--normal-footage .*footage (does not exist|holds no video|is not a folder)"):
        measure_footage(tmp_path / "footage")

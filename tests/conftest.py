"""Tiny clips for all tests. Nothing here needs files from outside the project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tillwatch.data.synthetic import write_video

MakeFrames = Callable[..., Path]
MakeVideo = Callable[..., Path]


def moving_frames(
    num_frames: int, height: int = 40, width: int = 48, seed: int = 0, brightness: int = 60
) -> NDArray[np.uint8]:
    """A bright square that walks over a grainy background: uint8 ``(T, H, W, 3)``.

    Frame t's grey level also rises with t, so that a frame tells which one it is.
    """
    rng = np.random.default_rng(seed)
    background = rng.integers(brightness, brightness + 40, (height, width, 3))
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for t in range(num_frames):
        frame = background + 2 * t
        left = int((width - 10) * t / max(1, num_frames - 1))
        frame[10:20, left : left + 10] = 230
        frames[t] = np.clip(frame, 0, 255)
    return frames


@pytest.fixture
def make_frames() -> MakeFrames:
    """Returns a function that writes a frame folder: ``make_frames(folder, num_frames=12, suffix=".jpg", ...)``."""

    def make(folder: Path, num_frames: int = 12, suffix: str = ".jpg", **options: int) -> Path:
        folder.mkdir(parents=True)
        for t, frame in enumerate(moving_frames(num_frames, **options)):
            Image.fromarray(frame).save(folder / f"frame_{t:06d}{suffix}")
        return folder

    return make


@pytest.fixture
def make_video() -> MakeVideo:
    """Returns a function that writes an .mp4: ``make_video(path, num_frames=12, fps=10, ...)``."""

    def make(path: Path, num_frames: int = 12, fps: int = 10, **options: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(moving_frames(num_frames, **options), path, fps=fps)
        return path

    return make


@pytest.fixture
def frame_root(tmp_path: Path, make_frames: MakeFrames) -> Path:
    """Class folders ``theft`` (bright) and ``normal`` (dark) with eight frame folders each."""
    root = tmp_path / "processed_frames"
    for label, brightness in (("theft", 150), ("normal", 20)):
        for number in range(8):
            make_frames(root / label / f"clip{number}", seed=number, brightness=brightness)
    return root

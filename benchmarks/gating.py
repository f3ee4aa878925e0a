"""What ``scan --gate auto`` costs in recall: of clips that show the event, how many windows it would skip.

    python benchmarks/gating.py CLIPS

Each clip of the event is taken as one window, as a scan would show it to a model: 32 frames of 128 x 128 pixels. Then
the same clip played in a part of the picture alone, half to a sixteenth of its width and height, on a still background
of its own colour: so small does the event look in a wide view. Over all lies a sensor's noise of so many grey levels at
128 pixels, another in each frame. A window that the gate skips is lost whatever the model; so the share skipped is the
most that the gate can cost in recall by window. Of normal clips nothing is asked; how many of them are skipped, and of
pictures in which nothing moves at all, says what the gate gains.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import footage
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from table import Row, print_table

from tillwatch.data.video import read_video
from tillwatch.detection.gate import is_still

LINE = "S-gate"
SIZE, NUM_FRAMES = 128, 32
SHARES = (1, 2, 4, 8, 16)
NOISES = (0.0, 1.0, 2.0)


def windows_of(clips: Sequence[tuple[str, Path]], num_frames: int = NUM_FRAMES) -> list[NDArray[np.uint8]]:
    """Returns each clip as one window, uint8 ``(T, SIZE, SIZE, 3)``."""
    return [read_video(path, num_frames, resize=(SIZE, SIZE)) for _, path in clips]


def in_a_part(window: NDArray[np.uint8], share: int) -> NDArray[np.uint8]:
    """Returns the window played in the middle ``1 / share`` of the picture's width and height, the rest still."""
    if share == 1:
        return window
    small = SIZE // share
    at = (SIZE - small) // 2
    picture = np.broadcast_to(window.mean((0, 1, 2)).round().astype(np.uint8), window.shape).copy()
    for frame, shown in zip(picture, window, strict=True):
        scaled = Image.fromarray(shown).resize((small, small), Image.Resampling.BILINEAR)
        frame[at : at + small, at : at + small] = np.asarray(scaled)
    return picture


def with_noise(window: NDArray[np.uint8], noise: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Returns the window under independent noise of so many grey levels."""
    if not noise:
        return window
    noisy = window + rng.normal(0, noise, window.shape).astype(np.float32)
    return noisy.round().clip(0, 255).astype(np.uint8)


def skipped(windows: Sequence[NDArray[np.uint8]], share: int, noise: float, seed: int = 0) -> int:
    """Returns how many of the windows the gate skips."""
    rng = np.random.default_rng(seed)
    return sum(is_still(with_noise(in_a_part(window, share), noise, rng)) for window in windows)


def rows(clips: Path | None, quick: bool) -> list[Row]:
    """Measures and returns the table's rows; without real clips there are none."""
    if clips is None:
        return []
    found = footage.find_clips(clips)
    events, normals = windows_of(found.events[:: 4 if quick else 1]), windows_of(found.normals[:: 4 if quick else 1])
    out = []
    for share in SHARES[::4] if quick else SHARES:
        for noise in NOISES[2:] if quick else NOISES:
            lost = skipped(events, share, noise)
            size = "as they are" if share == 1 else f"in 1/{share} of the picture's width and height"
            what = f"windows of the event that --gate auto skips, {size}, noise of {noise:g} levels"
            held = lost == 0 if share == 1 else None
            bar = "none" if share == 1 else "printed"
            out.append(Row(LINE, what, f"{lost} of {len(events)}", "", "", bar, held))
    still = [np.broadcast_to(window[:1], window.shape) for window in [*events, *normals]]
    for noise in NOISES[2:] if quick else NOISES:
        for name, windows in (("normal clips", normals), ("clips whose first frame is held", still)):
            what = f"{name} that --gate auto skips, noise of {noise:g} levels"
            out.append(Row(LINE, what, f"{skipped(windows, 1, noise)} of {len(windows)}", "", "", "printed", None))
    return out


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    print_table(rows(options.clips, options.quick))


if __name__ == "__main__":
    main()

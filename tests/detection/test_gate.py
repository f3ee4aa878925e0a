"""The motion gate: noise and flicker are still, a small hand is not, wherever it is; and a scan with it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tillwatch.cli import main
from tillwatch.detection import batches as batching
from tillwatch.detection.gate import is_still
from tillwatch.detection.results import read_scan
from tillwatch.models.saved import Classifier

MakeFootage = Callable[..., Path]
Scan = Callable[..., tuple[int, str, str]]

GRID = ("--window", "1", "--stride", "0.5")


def scene(
    noise: float, num_frames: int = 32, height: int = 112, width: int = 112, seed: int = 0
) -> NDArray[np.float64]:
    """A counter with things on it, seen by a noisy camera that does not move: ``(T, H, W, 3)`` in [0, 255]."""
    rng = np.random.default_rng(seed)
    still = rng.uniform(40, 200, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    return still + rng.normal(0, noise, (num_frames, height, width, 3)) if noise else np.stack([still] * num_frames)


def seen(frames: NDArray[np.float64]) -> NDArray[np.uint8]:
    return frames.round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0, 0.3, 1, 2, 3])
@pytest.mark.parametrize("num_frames", [8, 16, 32])
def test_a_still_noisy_window_is_still(noise: float, num_frames: int, seed: int) -> None:
    assert is_still(seen(scene(noise, num_frames, seed=seed)))


def test_flicker_of_the_whole_picture_is_still_and_light_switched_on_is_not() -> None:
    frames = scene(1)
    flicker = np.random.default_rng(1).uniform(-2, 2, (32, 1, 1, 1))
    assert is_still(seen(frames + flicker))
    frames[20:] += 15
    assert not is_still(seen(frames))


def test_noise_too_strong_to_tell_from_a_hand_is_not_still() -> None:
    assert not is_still(seen(scene(12)))


@settings(deadline=None, max_examples=60)
@given(
    noise=st.floats(0, 3),
    seed=st.integers(0, 9),
    top=st.integers(0, 105),
    left=st.integers(0, 106),
    contrast=st.sampled_from([-40, -30, 30, 40]),
    first=st.integers(0, 28),
    steps=st.sampled_from([(0, 0), (3, 1), (0.15, 0), (-2, 2)]),
)
def test_a_small_hand_is_seen_wherever_and_however_it_moves(
    noise: float, seed: int, top: int, left: int, contrast: int, first: int, steps: tuple[float, float]
) -> None:
    # 5 x 5 pixels, a twentieth of the picture each way, there for the last frames or for a few.
    frames = scene(noise, height=110, width=111, seed=seed)
    for t in range(first, min(32, first + 14)):
        y = int(np.clip(top + steps[0] * (t - first), 0, 105))
        x = int(np.clip(left + steps[1] * (t - first), 0, 106))
        frames[t, y : y + 5, x : x + 5] += contrast
    assert not is_still(frames.round().clip(0, 255).astype(np.uint8))


def test_a_hand_as_bright_as_the_counter_is_seen_by_its_colour() -> None:
    frames = scene(1)
    for t in range(10, 16):
        frames[t, 50:55, 4 * t : 4 * t + 5] += (30, -15.3, 0.2)  # the same luma
    assert not is_still(seen(frames))


def test_what_a_codec_spares_in_colours_is_still_and_as_much_brightness_is_not() -> None:
    # A macroblock whose colour is two steps off from one key frame to the next: over three levels of blue.
    coded = scene(0.3)
    coded[10:22, 32:48, 48:64] += (0, -0.69, 3.54)
    assert is_still(seen(coded))
    lit = scene(0.3)
    lit[10:22, 32:48, 48:64] += 2.9
    assert not is_still(seen(lit))


def test_one_frame_tells_nothing() -> None:
    assert not is_still(seen(scene(0, num_frames=1)))


def counter(moving: range) -> Callable[[int], av.VideoFrame]:
    """A still counter with a noisy camera; a small dark hand walks over it in some frames."""

    def draw(place: int) -> av.VideoFrame:
        picture = scene(1, 1, 48, 64, seed=4)[0] + np.random.default_rng(place).normal(0, 1, (48, 64, 3))
        if place in moving:
            left = 10 + (2 * place) % 40
            picture[20:26, left : left + 6] = 10
        return av.VideoFrame.from_ndarray(seen(picture), format="rgb24")

    return draw


@pytest.fixture
def quiet_footage(tmp_path: Path, make_footage: MakeFootage) -> Path:
    """Two recordings in which little moves: 2 s to 4 s in the first of 10 s, nothing in the second."""
    for name, frames, moving in (("a.mp4", 250, range(50, 100)), ("b.mp4", 100, range(0)), ("c.mp4", 60, range(60))):
        make_footage(tmp_path / "f" / name, range(frames), picture=counter(moving), crf="18", g="250")
    return tmp_path / "f"


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_still_windows_are_skipped_and_counted_and_the_others_score_the_same(
    quiet_footage: Path, tmp_path: Path, scan: Scan
) -> None:
    assert scan(quiet_footage, "--out", tmp_path / "off", *GRID)[0] == 0
    code, out, err = scan(quiet_footage, "--out", tmp_path / "auto", *GRID, "--gate", "auto")
    assert (code, err) == (0, "")
    off, auto = rows(tmp_path / "off"), rows(tmp_path / "auto")
    assert [(row["file"], row["window"], row["frames"]) for row in off] == [
        (row["file"], row["window"], row["frames"]) for row in auto
    ]
    gated = [row for row in auto if row["gated"] == "1"]
    for all_scored, row in zip(off, auto, strict=True):
        moves = row["file"] == "c.mp4" or (row["file"] == "a.mp4" and 1 < float(row["start_s"]) < 4)
        assert (row["gated"] == "1") == (not moves)
        if moves:
            # Batches hold other windows, which may change the last digits.
            assert float(row["event_score"]) == pytest.approx(float(all_scored["event_score"]), abs=1e-6)
            assert row["p_normal"] != ""
        else:
            assert (float(row["event_score"]), row["p_theft"], row["p_normal"]) == (0, "", "")
    assert {row["gated"] for row in off} == {"0"}
    record = json.loads((tmp_path / "auto" / "scan.json").read_text())
    assert (record["gate"], record["gated"], record["windows"]) == ("auto", len(gated), len(auto) - len(gated))
    assert sum(entry["gated"] for entry in record["files"]) == len(gated) > 15
    assert f"{len(auto) - len(gated)} windows scored, {len(gated)} skipped because nothing moves in them" in out
    assert "b.mp4: 4.0 s, 7 windows; 7 of them skipped" in out
    assert f"{len(gated)} skipped because nothing moves" in (tmp_path / "auto" / "timeline.html").read_text()
    back = read_scan(tmp_path / "auto")
    assert back is not None
    assert (back.gate, back.gated, back.windows) == ("auto", len(gated), len(auto) - len(gated))
    assert "another gate" in scan(quiet_footage, "--out", tmp_path / "auto", *GRID)[2]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("after", range(4))
def test_a_gated_scan_that_was_killed_goes_on_to_the_same_result(
    after: int, quiet_footage: Path, tmp_path: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "BATCH_SIZE", 3)
    monkeypatch.setattr(batching, "_GATED_AT_ONCE", 2)
    regions = ("--roi", "left=0,0,0.5,1", "--roi", "right=0.5,0,0.5,1", "--gate", "auto")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert scan(quiet_footage, "--out", whole, *GRID, *regions)[0] == 0
    model = str(json.loads((whole / "scan.json").read_text())["model"]["path"])
    probabilities = Classifier.probabilities
    batches: list[int] = []

    def dying(self: Classifier, clips: torch.Tensor) -> Any:
        if len(batches) == after:
            raise Killed
        batches.append(len(clips))
        return probabilities(self, clips)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "probabilities", dying)
        with pytest.raises(Killed):
            main(["scan", model, str(quiet_footage), "--out", str(killed), *GRID, *regions])

    def counting(self: Classifier, clips: torch.Tensor) -> Any:
        batches.append(len(clips))
        return probabilities(self, clips)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "probabilities", counting)
        assert scan(quiet_footage, "--out", killed, *GRID, *regions)[0] == 0
    for path in whole.iterdir():
        assert (killed / path.name).read_bytes() == path.read_bytes()
    scored = sum(row["gated"] == "0" for row in rows(whole))
    assert sum(batches) == scored  # nothing twice
    assert set(batches[:-1]) == {3}


def test_a_kill_in_a_long_still_stretch_loses_little(
    quiet_footage: Path, tmp_path: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "_GATED_AT_ONCE", 2)
    out = tmp_path / "scan"
    assert scan(quiet_footage / "b.mp4", "--out", out, *GRID, "--gate", "auto")[0] == 0
    lines = (out / "journal.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["scored"]) for line in lines[1:-1]] == [2, 2, 2, 1]

"""The audit of a folder: every kind of damage, planted confounds, modes of groups, and what a run keeps of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tillwatch.cli import main
from tillwatch.config import TrainConfig
from tillwatch.data.synthetic import write_video
from tillwatch.errors import ConfigError, DataError
from tillwatch.evaluation.audit_report import AuditReport
from tillwatch.training.auditing import audit_folder
from tillwatch.training.cross_validation import Folds, cross_validate
from tillwatch.training.loop import train


def film(seed: int, num_frames: int = 12, brightness: int = 80) -> Any:
    """Boxes that jitter before a background of their own: no two seeds look or move alike."""
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 60, (6, 8, 3)).repeat(8, 0).repeat(8, 1) + brightness
    frames = np.repeat(background[None], num_frames, 0)
    for frame in frames:
        for _ in range(3):
            y, x = rng.integers(0, 38), rng.integers(0, 54)
            frame[y : y + 10, x : x + 10] = rng.integers(0, 255)
    return np.clip(frames, 0, 255).astype(np.uint8)


def kinds_of(report: AuditReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in report.findings:
        found.setdefault(finding.kind, []).extend(finding.clips or (finding.text.split()[0],))
    return found


def test_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    for place, label in enumerate(("normal", "theft")):
        (tmp_path / label).mkdir()
        for number in range(5):
            write_video(film(10 * place + number, 24), tmp_path / label / f"{number}.mp4", fps=10)
    write_video(np.full((24, 48, 64, 3), 4, np.uint8), tmp_path / "theft" / "black.mp4", fps=10)
    write_video(
        np.concatenate([film(90, 4), film(90, 5)[-1:].repeat(20, 0)]), tmp_path / "theft" / "frozen.mp4", fps=10
    )
    write_video(film(91, 4), tmp_path / "theft" / "short.mp4", fps=10)
    (tmp_path / "theft" / "unreadable.mp4").write_bytes(b"no video at all")
    write_video(film(92, 60), tmp_path / "long.mp4", fps=10, g="5")
    whole = (tmp_path / "long.mp4").read_bytes()
    (tmp_path / "normal" / "truncated.mp4").write_bytes(broken(whole))
    (tmp_path / "long.mp4").unlink()
    shutil.copy(tmp_path / "normal" / "0.mp4", tmp_path / "theft" / "again.mp4")
    found = kinds_of(audit_folder(tmp_path, TrainConfig(), num_frames=8).report)
    assert found["black"] == ["theft/black.mp4"]
    assert found["frozen"] == ["theft/frozen.mp4"]
    assert found["damaged"] == ["theft/unreadable.mp4", "normal/truncated.mp4"]
    assert set(found["short"]) == {"theft/short.mp4"}
    assert found["exact copy"] == ["normal/0.mp4", "theft/again.mp4"]
    assert "near-duplicate" not in found


def broken(video: bytes) -> bytes:
    """Zeroes the second half of an .mp4's pictures: its index is whole, but the decoder stops."""
    start = video.index(b"mdat") + 4
    middle = start + (len(video) - start) // 3
    end = video.index(b"moov") - 4
    return video[:middle] + b"\0" * (end - middle) + video[end:]

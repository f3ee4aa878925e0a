"""Tiny clips for all tests. Nothing here needs files from outside the project."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import nn

from tillwatch.config import TrainConfig
from tillwatch.data.synthetic import write_video
from tillwatch.models.backbones import BACKBONES, Backbone
from tillwatch.training.loop import train
from tillwatch.training.runlog import RunLog

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


class TinyNet(nn.Module):
    """A video network of a thousand weights with everything that matters: convolutions in time, batch norm, fc."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, 8, (1, 5, 5), stride=(1, 2, 2)), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, (3, 1, 1))
        )
        self.fc = nn.Linear(8, 400)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        pooled = self.stem(clips).relu().mean((2, 3, 4))
        out: torch.Tensor = self.fc(pooled)
        return out


class TinyWeights:
    """Stands where torchvision's weights enum does; nothing is ever served from this address."""

    url = "http://127.0.0.1:9/tinynet-00000000.pth"

    @staticmethod
    def transforms() -> SimpleNamespace:
        return SimpleNamespace(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])


TINY_BACKBONE = Backbone(
    builder=lambda weights: TinyNet(),
    weights=TinyWeights,
    num_frames=4,
    resize=28,
    crop=24,
    head="fc",
    min_frames=3,
)


@pytest.fixture(scope="session", autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps decoded clips out of the user's cache folder, on a disk however full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tillwatch.data.store.KEEP_FREE", 0)
        patch.setenv("TILLWATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """Undoes what a shell does for whatever a script starts in the background."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _tiny_backbone() -> Iterator[None]:
    """Makes ``--arch tinynet`` a network like the others, for tests that need any network, not a good one."""
    BACKBONES["tinynet"] = TINY_BACKBONE
    yield
    del BACKBONES["tinynet"]


#: Without baselines, which take most of so small a training's time.
TINY = {"arch": "tinynet", "weights": "none", "batch_size": 4, "workers": 0, "lr": 1e-2, "baselines": False}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., TrainConfig]:
    """Returns a function that makes a training configuration of the smallest size: ``tiny_config(epochs=1)``."""

    def make(**options: Any) -> TrainConfig:
        return TrainConfig(**{**TINY, "epochs": 1, **options})

    return make


@pytest.fixture(scope="session")
def quiet() -> Callable[[], RunLog]:
    """Returns a function that makes a log which keeps what it is told: ``log.console.export_text()``."""
    return lambda: RunLog(Console(record=True, file=io.StringIO(), width=10_000))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Any, quiet: Any) -> tuple[Path, Path]:
    """(data, run): a network trained for two epochs on 2 x 12 tiny frame folders of four groups a class."""
    root = tmp_path_factory.mktemp("tiny")
    for label, brightness in (("theft", 150), ("normal", 20)):
        for number in range(12):
            folder = root / "frames" / label / f"day{number % 4}_{number}"
            folder.mkdir(parents=True)
            for t, frame in enumerate(moving_frames(6, seed=number, brightness=brightness)):
                Image.fromarray(frame).save(folder / f"frame_{t:06d}.jpg")
    train(root / "frames", root / "run", tiny_config(epochs=2, group_pattern=r"day\d", baselines=True), quiet())
    return root / "frames", root / "run"


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """A list that gets ("synced", inode) and ("renamed", inode) as files and folders are, in that order."""
    events: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("synced", os.fstat(descriptor).st_ino))

    def renamed(source: Any, target: Any) -> None:
        replace(source, target)
        events.append(("renamed", Path(target).stat().st_ino))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    return events


@pytest.fixture
def labelled_apart(tiny_run: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Callable[..., None]]:
    """(data, label): the tiny run's clips outside class folders; ``label(name="class")`` writes their clips.csv."""
    data = tmp_path / "labelled"
    (data / "clips").mkdir(parents=True)
    labels = {}
    for folder in sorted(tiny_run[0].glob("*/*")):
        name = f"{folder.parent.name}_{folder.name}"
        (data / "clips" / name).symlink_to(folder, target_is_directory=True)
        labels[name] = folder.parent.name

    def label(**others: str) -> None:
        rows = [f"clips/{name},{label},{name.split('_')[1]}" for name, label in {**labels, **others}.items()]
        (data / "clips.csv").write_text("\n".join(["path,label,group", *rows]) + "\n")

    label()
    return data, label


@pytest.fixture
def make_grey_video() -> MakeVideo:
    """Returns a function that writes an .mp4 whose frame t is plain grey, 20 + 8 t: `frame_numbers` reads t back.

    ``make_grey_video(path, num_frames=20, fps=10, height=32, width=48, **options of x264)``
    """

    def make(
        path: Path, num_frames: int = 20, fps: int = 10, height: int = 32, width: int = 48, **options: str
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        levels = 20 + 8 * np.arange(num_frames).reshape(-1, 1, 1, 1)
        frames = np.broadcast_to(levels, (num_frames, height, width, 3)).astype(np.uint8)
        write_video(frames, path, fps=fps, **options)
        return path

    return make


@pytest.fixture
def frame_numbers() -> Callable[[Any], list[int]]:
    """Returns a function that tells which frames of a `make_grey_video` these are: coding is 3 levels off at most."""

    def numbers(frames: Any) -> list[int]:
        return [round((float(np.asarray(frame).mean()) - 20) / 8) for frame in frames]

    return numbers

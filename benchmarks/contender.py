"""Our training, one step at a time, so that it can be timed turn by turn beside the plain loop."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional as F

from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.loader import training_loader
from tillwatch.data.store import ClipStore
from tillwatch.data.transforms import train_transform
from tillwatch.models.backbones import build_model
from tillwatch.models.folded import fold
from tillwatch.models.precision import PrecisionName, choose_precision, lay_out
from tillwatch.training import devices
from tillwatch.training.guard import StepGuard

#: Multiply-adds of a 32 x 112 x 112 clip through r2plus1d_18, forward and backward, counted as two operations each.
GFLOP_PER_CLIP_OF_32 = 486


class OurTraining:
    """The state of ``tillwatch train`` on r2plus1d_18 at 128 pixels cropped to 112, made of the same parts.

    Args:
        root: class folders of frame folders.
        num_frames, batch_size: of each step.
        precision: None for what ``auto`` takes.
        device: "cpu" or "cuda".
        workers: processes that read clips.
        store: folder that keeps decoded clips; None keeps none.
        compiled: as ``--compile``.
        folded: None for what ``tillwatch train`` does on the device.
    """

    def __init__(
        self,
        root: Path,
        num_frames: int,
        batch_size: int,
        precision: PrecisionName | None = None,
        *,
        device: str = "cpu",
        workers: int = 1,
        store: Path | None = None,
        compiled: bool = False,
        folded: bool | None = None,
    ) -> None:
        self.precision = precision or choose_precision("auto", device, "r2plus1d_18").name
        self.transform = train_transform()
        dataset = VideoFrameDataset(
            root, classes_in(root), num_frames, self.transform, store=None if store is None else ClipStore(store)
        )
        loader, self.sampler = training_loader(
            dataset, batch_size, seed=0, workers=workers, pin_memory=device == "cuda"
        )
        self.loader = loader
        self.epoch = -1
        self.batches: Any = iter(())
        network = build_model("r2plus1d_18", 2, weights=None)
        arrange = lay_out
        if folded is not None:

            def arrange(network: Any, device: str) -> Any:
                return (fold(network) if folded else network).to(memory_format=torch.channels_last_3d)

        with patch.object(devices, "lay_out", arrange):
            self.fabric, self.model, self.optimizer = devices.set_up(
                network, device, self.precision, lr=1e-4, compiled=compiled
            )
        self.guard = StepGuard(network, self.model, scaled=self.precision == "fp16")
        self.model.train()
        self.waited = 0.0

    def step(self) -> int:
        """Loads a batch and trains on it; returns how many clips it had."""
        started = time.perf_counter()
        batch = next(self.batches, None)
        if batch is None:
            self.epoch += 1
            self.sampler.start_epoch(self.epoch)
            self.batches = iter(self.loader)
            batch = next(self.batches)
        self.waited += time.perf_counter() - started
        self.train_on(batch.clips(self.transform, self.fabric.device), batch.labels.to(self.fabric.device))
        return len(batch.labels)

    def train_on(self, clips: torch.Tensor, labels: torch.Tensor) -> None:
        """One step on clips that are on the device already."""
        loss = F.cross_entropy(self.model(clips), labels)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.guard.check([loss], lambda part: clips, "the benchmark")
        self.optimizer.step()


def classes_in(root: Path) -> list[str]:
    """Returns the class folders in order."""
    return sorted(path.name for path in root.iterdir() if path.is_dir())


@cache
def matrix_peak(dtype: torch.dtype, device: str = "cpu", size: int = 4096) -> float:
    """Returns the best of many square matrix products of several sizes, in GFLOP/s.

    Half a second of each size, so that one disturbance is not taken for the machine; none that takes a second or more.
    """
    best, edge = 0.0, size // 8
    while not best or (edge <= size and 2 * edge**3 < best * 1e9):
        a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
        product = torch.empty_like(a)
        until, products = time.perf_counter() + 0.5, 0
        while products < 3 or time.perf_counter() < until:
            synchronize(device)
            started = time.perf_counter()
            torch.mm(a, b, out=product)
            synchronize(device)
            best = max(best, 2 * edge**3 / (time.perf_counter() - started) / 1e9)
            products += 1
        edge *= 2
    return best


def synchronize(device: str) -> None:
    """Waits for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()

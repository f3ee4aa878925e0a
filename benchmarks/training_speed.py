"""Clips a second of a training step, loading included: ours against the plain loop, turn by turn in one run.

    python benchmarks/training_speed.py FRAMES --num-frames 32
    python benchmarks/training_speed.py FRAMES --num-frames 16

Both train r2plus1d_18 on 112 x 112 pixels in batches of 4. Ours is what ``tillwatch train --precision P`` does, for
each P on this machine. Ratios of medians; the machine's own peak of matrix products stands beside.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from reference import PlainTraining
from torch.nn import functional as F

from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.loader import training_loader
from tillwatch.data.transforms import train_transform
from tillwatch.models.backbones import build_model
from tillwatch.training.loop import set_up

#: Multiply-adds of a 32 x 112 x 112 clip, forward and backward, counted as two operations each.
GFLOP_PER_CLIP_OF_32 = 486


class OurTraining:
    """Our loop's state, made of the same parts as ``tillwatch train``."""

    def __init__(self, root: Path, num_frames: int, batch_size: int, precision: str) -> None:
        dataset = VideoFrameDataset(root, classes_in(root), num_frames, train_transform())
        loader, sampler = training_loader(dataset, batch_size, seed=0, workers=1)
        sampler.start_epoch(0)
        self.batches = iter(loader)
        network = build_model("r2plus1d_18", 2, weights=None)
        self.fabric, self.model, self.optimizer = set_up(network, "cpu", precision, lr=1e-4)
        self.model.train()

    def step(self) -> int:
        """Loads a batch and trains on it; returns how many clips it had."""
        batch: Any = next(self.batches)
        loss = F.cross_entropy(self.model(batch.clips), batch.labels)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        return len(batch.labels)


def classes_in(root: Path) -> list[str]:
    """Returns the class folders in order."""
    return sorted(path.name for path in root.iterdir() if path.is_dir())


def matrix_peak(dtype: torch.dtype, size: int = 4096) -> float:
    """Returns the best of a few square matrix products, in GFLOP/s."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = 0.0
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - started) / 1e9)
    return best


def timed(step: Callable[[], int]) -> float:
    """Returns the seconds a clip of one step."""
    started = time.perf_counter()
    clips = step()
    return (time.perf_counter() - started) / clips


def main() -> None:
    """Runs the contenders turn by turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--num-frames", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    contenders: dict[str, Any] = {"plain loop": PlainTraining(options.frames, options.num_frames, options.batch_size)}
    for precision in ("fp32", "bf16"):
        contenders[f"ours, {precision}"] = OurTraining(
            options.frames, options.num_frames, options.batch_size, precision
        )
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(options.rounds + 1):
        for name, contender in contenders.items():
            spent = timed(contender.step)
            if turn:  # the first warms up
                seconds[name].append(spent)
    peaks = {"fp32": matrix_peak(torch.float32), "bf16": matrix_peak(torch.bfloat16)}
    print(f"matrix products: fp32 {peaks['fp32']:.0f} GFLOP/s, bf16 {peaks['bf16']:.0f} GFLOP/s")
    plain = statistics.median(seconds["plain loop"])
    gflop = GFLOP_PER_CLIP_OF_32 * options.num_frames / 32
    print(f"{'':<12} {'s a clip':>9} {'clips/s':>8} {'ratio':>6} {'of the peak':>12}")
    for name, values in seconds.items():
        median = statistics.median(values)
        share = gflop / median / peaks["bf16" if "bf16" in name else "fp32"]
        print(f"{name:<12} {median:>9.2f} {1 / median:>8.3f} {plain / median:>6.2f} {share:>11.0%}")


if __name__ == "__main__":
    main()

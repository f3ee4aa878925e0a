"""Clips a second of a training step, loading included: ours against the plain loop, turn by turn in one run.

    python benchmarks/training_speed.py FRAMES --num-frames 32
    python benchmarks/training_speed.py FRAMES --num-frames 16

Both train r2plus1d_18 on 112 x 112 pixels in batches of 4. Ours is what ``tillwatch train --precision P`` does, for
each P; a CPU that only imitates bf16 is at it for hours: --precision fp32 leaves it out there. Each has a process to
itself, since ours changes how its process keeps memory, and those that read clips for it stand still out of its turn.
Ratios of medians; the machine's own peak of matrix products stands beside.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from contender import GFLOP_PER_CLIP_OF_32, OurTraining, matrix_peak
from reference import PlainTraining
from table import Row

from tillwatch.models.precision import PrecisionName, choose_precision

Training = PlainTraining | OurTraining


@dataclass(frozen=True)
class Speed:
    """Seconds a clip, and the share of the machine's matrix peak that they mean."""

    seconds: float
    share_of_peak: float
    peak: float


class Contender:
    """A training in a process of its own that takes a step when told.

    Args:
        make: builds it there.
    """

    def __init__(self, make: Callable[[], Training]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, theirs))
        self._process.start()

    def step(self) -> float:
        """Returns the seconds a clip of one step."""
        self._pipe.send("step")
        seconds: float = self._pipe.recv()
        return seconds

    def stop(self) -> None:
        """Tells the process to end."""
        self._pipe.send("stop")

    def join(self) -> None:
        """Waits until it has ended."""
        self._process.join()


def _serve(make: Callable[[], Training], pipe: Connection) -> None:
    training = make()
    while pipe.recv() == "step":
        _tell_workers(signal.SIGCONT)
        started = time.perf_counter()
        clips = training.step()
        spent = time.perf_counter() - started
        _tell_workers(signal.SIGSTOP)
        pipe.send(spent / clips)
    _tell_workers(signal.SIGCONT)


def _tell_workers(what: signal.Signals) -> None:
    """Reaches the processes that read clips for this one: out of its turn they must not read ahead."""
    for worker in multiprocessing.active_children():
        if worker.pid is not None:
            os.kill(worker.pid, what)


def measure(
    frames: Path,
    num_frames: int,
    batch_size: int,
    rounds: int,
    precisions: tuple[PrecisionName | None, ...],
) -> dict[str, Speed]:
    """Runs the plain loop and ours in each precision turn by turn.

    Args:
        frames: frame folders.
        num_frames, batch_size: of each step.
        rounds: steps of each that are timed, after one that warms up.
        precisions: of ours; None is what ``auto`` takes.
    """
    makers: dict[str, Callable[[], Training]] = {"plain loop": partial(PlainTraining, frames, num_frames, batch_size)}
    for asked in precisions:
        precision = asked or choose_precision("auto", "cpu", "r2plus1d_18").name
        makers[f"ours, {precision}"] = partial(OurTraining, frames, num_frames, batch_size, precision)
    contenders = {name: Contender(make) for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            spent = contender.step()
            if turn:  # the first warms up
                seconds[name].append(spent)
    for contender in contenders.values():
        contender.stop()
    for contender in contenders.values():
        contender.join()
    gflop = GFLOP_PER_CLIP_OF_32 * num_frames / 32
    speeds = {}
    for name, values in seconds.items():
        median, dtype = statistics.median(values), torch.bfloat16 if "bf16" in name else torch.float32
        peak = matrix_peak(dtype)
        speeds[name] = Speed(seconds=median, share_of_peak=gflop / median / peak, peak=peak)
    return speeds


def rows(frames: Path, quick: bool) -> list[Row]:
    """Returns the table's rows for 32 and 16 frames; quick takes one step of one clip."""
    out = []
    batch_size, rounds = (1, 1) if quick else (4, 5)
    for num_frames in (32, 16):
        plain, ours = measure(frames, num_frames, batch_size, rounds, (None,)).items()
        ratio = plain[1].seconds / ours[1].seconds
        out.append(
            Row(
                "1",
                f"training, {num_frames} x 112 x 112, batch {batch_size}, loading included, clips/s ({ours[0]}: "
                f"{ours[1].share_of_peak:.0%} of the matrix peak of {ours[1].peak:.0f} GFLOP/s)",
                f"{1 / ours[1].seconds:.3f}",
                f"{1 / plain[1].seconds:.3f}",
                f"{ratio:.2f}",
                "printed" if quick else "at least 3.0",
                None if quick else ratio >= 3.0,  # one step of one clip judges nothing
            )
        )
    return out


def main() -> None:
    """Runs the contenders turn by turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--num-frames", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    options = parser.parse_args()
    speeds = measure(options.frames, options.num_frames, options.batch_size, options.rounds, options.precision)
    plain = speeds["plain loop"].seconds
    print(f"{'':<12} {'s a clip':>9} {'clips/s':>8} {'ratio':>6} {'of the matrix peak (GFLOP/s)':>30}")
    for name, speed in speeds.items():
        print(
            f"{name:<12} {speed.seconds:>9.2f} {1 / speed.seconds:>8.3f} {plain / speed.seconds:>6.2f} "
            f"{speed.share_of_peak:>18.0%} of {speed.peak:>8.0f}"
        )


if __name__ == "__main__":
    main()

"""Anonymous memory: the peak of training, ours against the plain loop, and whether the loader's grows.

    python benchmarks/memory.py FRAMES

Anonymous is what is not backed by a file: clips mapped from the store cost none. Memory of all processes together is
read from Linux's smaps_rollup (a page shared by n processes counts 1/n in each) every 50 ms.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from table import Row, print_table


def anonymous_bytes(pid: int) -> int:
    """Returns the anonymous memory of a process and all below it."""
    total = 0
    for process in _tree(pid):
        try:
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon:"):
                    total += 1024 * int(line.split()[1])
        except OSError:
            continue  # ended meanwhile
    return total


def peak_of(arguments: list[str]) -> int:
    """Runs this file with other arguments and returns the peak of its anonymous memory, in bytes."""
    with subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{arguments} ended with {process.returncode}")
    return peak


def train_some(who: str, frames: Path, num_frames: int, steps: int) -> None:
    """Trains for some steps at 112 x 112 pixels in batches of 4."""
    if who == "plain":
        from reference import PlainTraining

        plain = PlainTraining(frames, num_frames)
        for _ in range(steps):
            plain.step()
    else:
        from contender import OurTraining

        with tempfile.TemporaryDirectory() as store:
            ours = OurTraining(frames, num_frames, 4, store=Path(store))
            for _ in range(steps):
                ours.step()


def loader_growth(frames: Path, epochs: int) -> tuple[int, int]:
    """Returns the loader's anonymous memory, one worker and the store, in the epochs after the first.

    The most of their earlier half, and the most of the later one: of single epochs, one may end with a batch more on
    its way than another. What the allocator keeps of freed memory is given back first: it goes up and down by half.
    """
    from contender import classes_in

    from tillwatch.data.dataset import VideoFrameDataset
    from tillwatch.data.loader import training_loader
    from tillwatch.data.store import ClipStore
    from tillwatch.data.transforms import train_transform
    from tillwatch.models.memory import give_back_freed_memory

    measured = []
    with tempfile.TemporaryDirectory() as store:
        transform = train_transform()
        dataset = VideoFrameDataset(frames, classes_in(frames), 32, transform, store=ClipStore(Path(store)))
        loader, sampler = training_loader(dataset, 4, seed=0, workers=1)
        for epoch in range(epochs):
            sampler.start_epoch(epoch)
            for batch in loader:
                batch.clips(transform)
            give_back_freed_memory()
            measured.append(anonymous_bytes(os.getpid()))
    half = (len(measured) + 1) // 2
    return max(measured[1:half]), max(measured[half:])


def rows(frames: Path, quick: bool) -> list[Row]:
    """Measures and returns the table's rows; of three epochs, as quick takes, no growth is judged."""
    num_frames, steps, epochs = (8, 1, 3) if quick else (32, 6, 10)
    sizes = ["--num-frames", str(num_frames), "--steps", str(steps)]
    plain, ours = (peak_of([str(frames), "--only", who, *sizes]) for who in ("plain", "ours"))
    done = subprocess.run(
        [sys.executable, __file__, str(frames), "--only", "loader", "--epochs", str(epochs)],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(int, done.stdout.split())
    return [
        Row("6", f"peak anonymous memory of training, {num_frames} x 112 x 112, batch 4, all processes, GB",
            f"{ours / 1e9:.2f}", f"{plain / 1e9:.2f}", f"{ours / plain:.2f}", "at most 1", ours <= plain),
        Row("6", f"the loader's anonymous memory in the later half of {epochs} epochs against the earlier, MB",
            f"{after / 1e6:.0f}", f"{before / 1e6:.0f}", f"{after / before:.3f}", "does not grow (2 %)",
            None if quick else after <= 1.02 * before),
    ]  # fmt: skip


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from _tree(int(child))


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["plain", "ours", "loader"], help="what the measurement starts")
    parser.add_argument("--num-frames", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    if options.only == "loader":
        print(*loader_growth(options.frames, options.epochs))
    elif options.only:
        train_some(options.only, options.frames, options.num_frames, options.steps)
    else:
        print_table(rows(options.frames, options.quick))


if __name__ == "__main__":
    main()

"""How long until validation accuracy first reaches 0.90: recipe ``fast`` against ``default``, three seeds.

    python benchmarks/time_to_accuracy.py --seeds 0 1 2

Each training's time is written to results/until.csv when it is known; a broken-off run goes on where it was, on the
same machine: what was measured elsewhere, with another PyTorch or of other code, stays in the file, uncompared.

On the noisy till scene at 16 x 80 x 80, both with the same learning rate and precision; only what the recipe is
differs. Only epochs at full size count as reaching it, and all that went before them counts as time, validation
included. A run ends when it is there, or after the task's 12 epochs.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from machine import here
from table import Row, print_table
from tasks import FEW_CAMERAS, SMALL, Task, noisy_till

from tillwatch.config import RECIPES
from tillwatch.files import read_csv, write_csv
from tillwatch.training.loop import train
from tillwatch.training.runlog import EpochMetrics, RunLog

REACHED = 0.90
COMPARED = ("fast", "default")

_COLUMNS = ("where", "recipe", "seed", "seconds", "reached")


class _EndedError(Exception):
    """Ends a training, with nothing made of it."""


class StopWatch(RunLog):
    """Adds up the seconds of the epochs, and ends the training at the first of full size that is good enough.

    Args:
        early_epochs: how many are not of full size.

    Attributes:
        reached: whether one was; the last epoch ends the training all the same.
    """

    def __init__(self, early_epochs: int) -> None:
        super().__init__()
        self.early_epochs = early_epochs
        self.seconds, self.reached = 0.0, False

    def epoch(self, folder: Path, so_far: Sequence[EpochMetrics], epochs: int, best: bool) -> None:
        """Notes an epoch as every log does."""
        super().epoch(folder, so_far, epochs, best)
        metrics = so_far[-1]
        self.seconds += metrics.seconds
        self.reached = metrics.epoch > self.early_epochs and (metrics.val_balanced_accuracy or 0) >= REACHED
        if self.reached or metrics.epoch == epochs:
            raise _EndedError


@dataclass(frozen=True)
class Until:
    """How long a training took until ``REACHED``, or how long it went on without.

    Attributes:
        seconds: of its epochs.
        reached: whether it got there.
    """

    seconds: float
    reached: bool

    def __str__(self) -> str:
        return f"{self.seconds:.0f}" if self.reached else f"over {self.seconds:.0f}"


def until_reached(recipe: str, task: Task, seed: int) -> Until:
    """Trains until ``REACHED``, or to the end of the task's epochs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = task.make(folder / "data", seed)
        config = replace(config, cache_folder=folder / "cache", baselines=False, **RECIPES[recipe])
        watch = StopWatch(config.early_epochs)
        with suppress(_EndedError):
            train(folder / "data", folder / "run", config, watch)
        return Until(watch.seconds, watch.reached)


def measure_all(results: Path, task: Task, seeds: Sequence[int]) -> dict[str, list[Until]]:
    """Measures what the file of results lacks, recipe after recipe of each seed; each row is written when it is known.

    Returns:
        The times of each recipe in the order of the seeds.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    known, where = {}, here()
    if results.is_file():
        known = {(row.get("where", ""), row["recipe"], int(row["seed"])): row for row in read_csv(results)}
    for seed in seeds:
        for recipe in COMPARED:
            if (where, recipe, seed) not in known:
                until = until_reached(recipe, task, seed)
                row = {"where": where, "recipe": recipe, "seed": str(seed), "seconds": f"{until.seconds:.1f}"}
                known[where, recipe, seed] = {**row, "reached": "yes" if until.reached else "no"}
                write_csv(results, _COLUMNS, known.values())
    return {
        recipe: [
            Until(float(row["seconds"]), row["reached"] == "yes")
            for row in (known[where, recipe, seed] for seed in seeds)
        ]
        for recipe in COMPARED
    }


def rows(results: Path, seeds: Sequence[int], quick: bool = False) -> list[Row]:
    """Measures and returns the table's row; quick is too short to reach it, to see that it runs."""
    if quick:
        results.unlink(missing_ok=True)
        task = noisy_till(cameras=FEW_CAMERAS, epochs=3, **SMALL)
    else:
        task = noisy_till(num_frames=16, resize=92, crop=80)
    measured = measure_all(results, task, seeds)
    # A training that never got there counts as endless; the default's, which is divided by, as what it took at least.
    fast = _median([until if until.reached else Until(math.inf, False) for until in measured["fast"]])
    default = _median(measured["default"])
    each = ", ".join(f"{ours} against {theirs}" for ours, theirs in zip(*measured.values(), strict=True))
    what = f"recipe fast: s until validation accuracy {REACHED:.2f}, median of {len(seeds)} seeds ({each})"
    ratio = default.seconds / fast.seconds
    told = f"{ratio:.2f}" if default.reached else f"over {ratio:.2f}"
    return [Row("4", what, str(fast), str(default), told, "at least 2", None if quick else ratio >= 2)]


def _median(times: list[Until]) -> Until:
    """Returns the middle one; of an even number, the earlier of the two in the middle."""
    return sorted(times, key=lambda until: until.seconds)[(len(times) - 1) // 2]


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("results/until.csv"))
    options = parser.parse_args()
    print_table(rows(options.out, options.seeds))


if __name__ == "__main__":
    main()

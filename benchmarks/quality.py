"""Whether the fast path learns as well as the plain one: five seeds, paired, on two hard tasks.

    python benchmarks/quality.py --frames FRAMES --out results/seeds.csv
    python benchmarks/quality.py --report results/seeds.csv

FRAMES are frame folders of the CCTV clips, as ``tillwatch extract`` wrote them; without them the rendered task runs
alone. *Plain* is PyTorch's own three-dimensional convolutions in fp32 and default memory layout; *fast* is what
``--precision auto`` takes on this machine. Both get the same clips, split, order, augmentation and first weights. Each
row is written when it is measured; a broken-off run goes on where it was, on the same machine: what was measured
elsewhere, with another PyTorch or of other code, stays in the file and is not mixed with it. Where ``auto`` takes fp32,
as on a CPU without bf16, the rows show what folding and layout cost and are not held to the bars.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from machine import here
from scipy import stats
from table import Row, print_table
from tasks import FEW_CAMERAS, SMALL, Task, cctv_small, noisy_till, test_loss

from tillwatch.data.catalog import find_clips
from tillwatch.evaluation.evaluate import score_clips
from tillwatch.files import read_csv, write_csv
from tillwatch.models.saved import load_model
from tillwatch.training import devices, loop
from tillwatch.training.runlog import RunLog

COLUMNS = ("where", "task", "seed", "path", "precision", "accuracy", "loss", "seconds", "bf16_gap")


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Leaves a network as torchvision built it: nothing folded, default memory layout."""
    with patch.object(devices, "lay_out", lambda network, device: network):
        yield


def bf16_gap(run: Path, data: Path) -> float:
    """Returns the mean difference of the test clips' event probabilities, the same weights in bf16 and in fp32."""
    model = load_model(run)
    names = {row["path"] for row in read_csv(run / "predictions.csv") if row["split"] == "test"}
    found = find_clips(data, model.spec.classes, num_frames=model.spec.num_frames, step=model.spec.step)
    clips = [clip for clip in found.clips if clip.name in names]
    exact = score_clips(model, clips).probabilities
    with torch.autocast("cpu", torch.bfloat16):
        rough = score_clips(model, clips).probabilities
    return float(np.abs(model.event_probability(rough) - model.event_probability(exact)).mean())


def measure(task: Task, seed: int, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Trains each path on the same data and yields its row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = task.make(folder / "data", seed)
        for path in paths:
            run = folder / path
            config = replace(made, cache_folder=folder / "cache", baselines=False)
            config = replace(config, precision="fp32" if path == "plain" else "auto")
            started = time.perf_counter()
            with plain_convolutions() if path == "plain" else nullcontext():
                evaluation = loop.train(folder / "data", run, config, RunLog(), pictures=False)
            seconds = time.perf_counter() - started
            lines = (run / "config.yaml").read_text().splitlines()
            yield {
                "where": here(),
                "task": task.name,
                "seed": str(seed),
                "path": path,
                "precision": next(line.split()[1] for line in lines if "precision" in line),
                "accuracy": f"{evaluation.metrics.accuracy:.4f}",
                "loss": f"{test_loss(run):.5f}",
                "seconds": f"{seconds:.0f}",
                "bf16_gap": f"{bf16_gap(run, folder / 'data'):.5f}" if path == "fast" else "",
            }


def both_tasks(frames: Path | None) -> list[Task]:
    """Returns the rendered task, and the CCTV clips where there are frame folders of them."""
    return [noisy_till(), *([cctv_small(frames)] if frames else [])]


def measure_all(results: Path, tasks: Sequence[Task], seeds: Sequence[int]) -> None:
    """Measures what the file of results lacks; each row is written when it is known.

    Args:
        results: the CSV file.
        tasks: what to train on.
        seeds: of data, split, weights, order and augmentation.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    known: list[dict[str, Any]] = [dict(row) for row in read_csv(results)] if results.is_file() else []
    for seed in seeds:
        for task in tasks:
            wanted = here(), task.name, str(seed)
            done = {row["path"] for row in known if (row.get("where"), row["task"], row["seed"]) == wanted}
            lacking = [path for path in ("plain", "fast") if path not in done]
            for row in measure(task, seed, lacking) if lacking else ():
                known.append(row)
                write_csv(results, COLUMNS, known)


def measured_rows(results: Path, frames: Path | None, quick: bool) -> list[Row]:
    """Measures what is lacking and returns the table's rows; quick is one task and two seeds of one epoch."""
    if quick:
        results.unlink(missing_ok=True)
        if frames:
            few = cctv_small(frames, clips_per_class=12, epochs=1, **SMALL)
        else:
            few = noisy_till(cameras=FEW_CAMERAS, epochs=1, **SMALL)
        measure_all(results, [few], [0, 1])
        return [replace(row, holds=None) for row in rows(results, here())]  # one epoch of a few clips judges nothing
    measure_all(results, both_tasks(frames), range(5))
    return rows(results, here())


def rows(results: Path, where: str | None = None) -> list[Row]:
    """Returns the table's rows from results that were measured at one place; None for all places, one by one."""
    measured = read_csv(results)
    places = list(dict.fromkeys(row.get("where", "") for row in measured))
    if where is None:
        return [row for place in places for row in rows(results, place)]
    measured = [row for row in measured if row.get("where", "") == where]
    out = []
    for task in dict.fromkeys(row["task"] for row in measured):
        by = {(int(row["seed"]), row["path"]): row for row in measured if row["task"] == task}
        precisions = sorted({row["precision"] for (_, path), row in by.items() if path == "fast"})
        judged = precisions != ["fp32"]
        told = f"{task}, {' and '.join(precisions)} against fp32" + ("" if judged else ": auto takes no bf16 here")
        if len(places) > 1:
            told = f"{told} ({where or 'machine not told'})"
        seeds = [seed for seed, path in by if path == "plain" and (seed, "fast") in by]
        accuracy, loss = (
            {path: np.array([float(by[seed, path][name]) for seed in seeds]) for path in ("plain", "fast")}
            for name in ("accuracy", "loss")
        )
        lower = accuracy["plain"].mean() - accuracy["fast"].mean()
        difference = loss["fast"] - loss["plain"]
        half = stats.t.ppf(0.975, len(seeds) - 1) * difference.std(ddof=1) / len(seeds) ** 0.5
        low, high = difference.mean() - half, difference.mean() + half
        gaps = [float(by[seed, "fast"]["bf16_gap"]) for seed in seeds]
        each = {path: " ".join(f"{value:.3f}" for value in values) for path, values in accuracy.items()}
        out += [
            Row(
                "3",
                f"{told}: held-out accuracy, {len(seeds)} seeds ({each['fast']} / {each['plain']})",
                f"{accuracy['fast'].mean():.3f}",
                f"{accuracy['plain'].mean():.3f}",
                f"{-lower:+.3f}",
                "at most 0.02 lower",
                bool(lower <= 0.02) if judged else None,
            ),
            Row(
                "3",
                f"{told}: held-out loss, 95 % interval of the mean difference {low:+.3f} to {high:+.3f}",
                f"{loss['fast'].mean():.3f}",
                f"{loss['plain'].mean():.3f}",
                f"{difference.mean():+.3f}",
                "holds 0 or lies below",
                bool(low <= 0) if judged else None,
            ),
            Row(
                "3",
                f"{task}: trained weights, event probabilities in bf16 and fp32, mean difference",
                f"{max(gaps):.4f}",
                "",
                "",
                "at most 0.02",
                max(gaps) <= 0.02,
            ),
        ]
    return out


def main() -> None:
    """Measures what is not yet measured, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/seeds.csv"))
    parser.add_argument("--report", type=Path, help="print the table of earlier results and measure nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    if options.report:
        print_table(rows(options.report))
        return
    measure_all(options.out, both_tasks(options.frames), options.seeds)
    print_table(rows(options.out, here()))


if __name__ == "__main__":
    main()

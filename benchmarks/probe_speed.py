"""``--freeze backbone``: one pass of features, then the head's 30 epochs; and its scores against the live network's.

    python benchmarks/probe_speed.py FRAMES

FRAMES are frame folders of at least 240 clips. The network is small in size, not in kind: r2plus1d_18 at 8 x 48 x 48,
random weights; the head's time does not depend on how its features came about.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console
from table import Row, print_table

from tillwatch.config import TrainConfig
from tillwatch.data.loader import evaluation_loader
from tillwatch.files import read_csv
from tillwatch.models.saved import dataset_of, load_model
from tillwatch.training.loop import train
from tillwatch.training.prepare import prepare
from tillwatch.training.probe import Backbone, FeatureDataset, head_on_features
from tillwatch.training.runlog import EpochMetrics, RunLog


class TimedLog(RunLog):
    """Notes when each epoch has ended."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.ended: list[float] = []

    def epoch(self, folder: Path, so_far: Sequence[EpochMetrics], epochs: int, best: bool) -> None:
        """Writes and says it, as ever."""
        super().epoch(folder, so_far, epochs, best)
        self.ended.append(time.perf_counter())


def rows(frames: Path, quick: bool = False) -> list[Row]:
    """Measures and returns the table's rows; quick takes smaller clips, which the head does not see."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = TrainConfig(
            weights="none",
            freeze="backbone",
            num_frames=4 if quick else 8,
            resize=56,
            crop=48,
            lr=1e-3,
            baselines=False,
            hold_out=False,  # so that the head learns from every clip
            plateau_on="train",
            keep="last",
            epochs=30,
            cache_folder=folder / "cache",
        )
        log = TimedLog(Console(record=True, soft_wrap=True, highlight=False))
        started = time.perf_counter()
        train(frames, folder / "run", config, log)
        first = time.perf_counter() - started
        told = re.search(r"features of (\d+) clips in (\d+) s", log.console.export_text())
        assert told is not None
        epochs = read_csv(folder / "run" / "metrics.csv")
        head_seconds = float(epochs[0]["seconds"]) + log.ended[-1] - log.ended[0]  # checkpoints between them included
        started = time.perf_counter()
        train(frames, folder / "again", config, RunLog(Console(quiet=True)))
        again = time.perf_counter() - started
        largest = largest_difference(folder / "run", frames, config)
    return [
        Row("5", f"--freeze backbone: {len(epochs)} epochs of the head on {told[1]} clips' features, s",
            f"{head_seconds:.1f}", "", "", "under 5", head_seconds < 5),
        Row("5", "--freeze backbone: the whole command, first and once features are kept, s", f"{again:.0f}",
            f"{first:.0f}", f"{first / again:.1f}", "printed", None),
        Row("5", "--freeze backbone: head on kept features against the live network, largest difference of scores",
            f"{largest:.1e}", "", "", "at most 1e-4", largest <= 1e-4),
    ]  # fmt: skip


def largest_difference(run: Path, data: Path, config: TrainConfig) -> float:
    """Returns how far apart the head's scores of features read from the store and the network's of clips are at most.

    Raises:
        AssertionError: if the features of a clip are not in the store.
    """
    model, log = load_model(run), RunLog(Console(quiet=True))
    job = prepare(data, config, log)
    with patch.object(Backbone, "__call__", side_effect=AssertionError("the store lacks features")):
        head, feed, _ = head_on_features(model.network, job, config, log)
    kept = feed.training.dataset
    assert isinstance(kept, FeatureDataset)
    with torch.inference_mode():
        by_head = head.eval()(kept.features).double().softmax(1).numpy()
    dataset = dataset_of(model.spec, job.side("train"), model.transform)  # decodes anew
    largest = 0.0
    for batch in evaluation_loader(dataset, 8):
        live = model.probabilities(batch.clips(model.transform))
        largest = max(largest, float(abs(by_head[batch.indices] - live).max()))
    return largest


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path)
    print_table(rows(parser.parse_args().frames))


if __name__ == "__main__":
    main()

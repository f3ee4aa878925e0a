"""How well the demo's network does on cameras it never saw, and how little a single frame tells.

    python benchmarks/demo_quality.py --seeds 0 1 2
    python benchmarks/demo_quality.py --seeds 0 1 2 --middle-frame

With --middle-frame the same network is trained and tested on the middle frame of each clip alone, repeated.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from tillwatch.config import TrainConfig
from tillwatch.data.catalog import CLIPS_CSV
from tillwatch.data.provenance import EXTRACTION_JSON
from tillwatch.data.synthetic import CLASSES, NUM_FRAMES
from tillwatch.demo import DEMO_SETTINGS, extract_frames, render_videos, run_demo
from tillwatch.training.loop import train
from tillwatch.training.runlog import RunLog


def middle_frame_accuracy(out: Path, seed: int, log: RunLog) -> float:
    """Trains the demo's network on clips of one frame, which are repeated to the number it takes."""
    videos = render_videos(out, seed)
    extract_frames(videos, out / "frames", log)
    for folder in (out / "frames").glob("*/*"):
        if folder.is_dir():
            middle = sorted(folder.iterdir())[NUM_FRAMES // 2]
            alone = out / "middle" / folder.parent.name / folder.name
            alone.mkdir(parents=True)
            shutil.copy(middle, alone)
    for name in (CLIPS_CSV, EXTRACTION_JSON):
        shutil.copy(out / "frames" / name, out / "middle")
    own: dict[str, Any] = {"weights": "none", "split_file": videos.split_file, "seed": seed, "cache": False}
    config = TrainConfig(classes=CLASSES, **own, **DEMO_SETTINGS)
    return train(out / "middle", out / "run", config, log).metrics.accuracy


def main() -> None:
    """Runs the seeds one after another and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--middle-frame", action="store_true")
    options = parser.parse_args()
    log, results = RunLog(), []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            if options.middle_frame:
                accuracy = middle_frame_accuracy(Path(folder), seed, log)
            else:
                accuracy = run_demo(Path(folder) / "demo", seed, log=log).metrics.accuracy
            results.append((seed, accuracy, time.perf_counter() - started))
    print(f"\n{'seed':>4}  {'held-out accuracy':>17}  {'seconds':>7}")
    for seed, accuracy, seconds in results:
        print(f"{seed:>4}  {accuracy:>17.3f}  {seconds:>7.0f}")
    accuracies = [accuracy for _, accuracy, _ in results]
    print(f"lowest {min(accuracies):.3f}, highest {max(accuracies):.3f}")


if __name__ == "__main__":
    main()

"""On a GPU: a training that is killed and goes on ends where one without interruption does, as near as two of them do.

    python benchmarks/gpu_resume.py
    python benchmarks/gpu_resume.py --epochs 6 --kills 4
    python benchmarks/gpu_resume.py --device cpu --data my_frames    # tries the script itself

Trains r2plus1d_18 on rendered clips three times with one seed: twice without interruption, and once killed (SIGKILL) at
random places and resumed. PyTorch's sums on a GPU are in no fixed order, so the first two differ already; the bound is
three times as much as they do, in the largest weight (relative to the largest there is) and in the last epoch's loss.
Then `--batch-size auto` trains an epoch with the largest batch that fits in the GPU's memory, and a batch that does not
fit must say in one line what does.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from table import Row, print_table

from tillwatch.demo import render_videos
from tillwatch.files import read_csv

_BOUND = 3.0  # times what two runs without interruption differ
_FLOOR = 1e-6  # where those two are equal bit for bit


def command(*words: object) -> list[str]:
    """Returns a command line of Tillwatch's."""
    return [sys.executable, "-m", "tillwatch", "train", *map(str, words)]


def settings(epochs: int) -> list[str]:
    """Returns the flags of every run here."""
    sizes = ["--num-frames", "8", "--resize", "64", "--crop", "56", "--batch-size", "8"]
    return ["--weights", "none", "--no-baselines", "--checkpoint-minutes", "0.02", *sizes, "--epochs", str(epochs)]


def run_killed(data: Path, out: Path, flags: list[str], kills: int, seed: int, took_s: float) -> int:
    """Trains, killing and resuming; returns how many kills met a training that was under way."""
    rng, met = random.Random(seed), 0
    words = command(data, "--out", out, *flags)
    for _ in range(kills):
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as training:
            try:
                training.wait(rng.uniform(0.4, 0.9) * took_s)
            except subprocess.TimeoutExpired:
                training.send_signal(signal.SIGKILL)
                met += (out / "checkpoints").is_dir()
        if (out / "config.yaml").is_file():
            words = command("--resume", out)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return met


def difference(a: Path, b: Path) -> tuple[float, float]:
    """Returns how far two runs' weights are apart, relative to the largest, and their last training losses."""
    one, another = (torch.load(run / "model.pth", weights_only=True) for run in (a, b))
    learnt = [name for name, value in one.items() if value.is_floating_point()]
    largest = max(one[name].abs().max().item() for name in learnt)
    apart = max((one[name] - another[name]).abs().max().item() for name in learnt) / largest
    losses = [float(read_csv(run / "metrics.csv")[-1]["train_loss"]) for run in (a, b)]
    return apart, abs(losses[0] - losses[1])


def rows(epochs: int = 4, kills: int = 3, seed: int = 0, device: str = "cuda", data: Path | None = None) -> list[Row]:
    """Measures and returns the table's rows; one that says that they are owed where there is no GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        why = "GPU: no GPU on this machine; resuming and --batch-size auto are owed (python benchmarks/gpu_resume.py)"
        return [Row("6", why, "", "", "", "within the bound", None)]
    with tempfile.TemporaryDirectory() as name:
        folder, flags = Path(name), ["--device", device, *settings(epochs)]
        data = data or render_videos(folder, seed).folder
        took = 0.0
        for run in ("first", "second"):
            started = time.perf_counter()
            subprocess.run(command(data, "--out", folder / run, *flags), check=True, stdout=subprocess.DEVNULL)
            took = time.perf_counter() - started
        met = run_killed(data, folder / "killed", flags, kills, seed, took)
        usual, resumed = (difference(folder / "first", folder / run) for run in ("second", "killed"))
        out = [
            Row("6", f"{device}: {met} kills, resumed: {what} against an uninterrupted run's, beside two such",
                f"{ours:.2g}", f"{two:.2g}", "", f"at most {_BOUND:g} times", ours <= max(_BOUND * two, _FLOOR))
            for what, ours, two in zip(("largest weight", "last loss"), resumed, usual, strict=True)
        ]  # fmt: skip
        return [*out, *_batch_rows(data, folder)] if device == "cuda" else out


def _batch_rows(data: Path, folder: Path) -> list[Row]:
    large = ["--weights", "none", "--no-baselines", "--epochs", "1", "--num-frames", "32", "--device", "cuda"]
    auto = subprocess.run(
        command(data, "--out", folder / "auto", *large, "--accumulate", "auto", "--batch-size", "48"), check=False
    )
    found = yaml.safe_load((folder / "auto/config.yaml").read_text()) if auto.returncode == 0 else {}
    largest = subprocess.run(command(data, "--out", folder / "most", *large, "--batch-size", "auto"), check=False)
    most = yaml.safe_load((folder / "most/config.yaml").read_text()) if largest.returncode == 0 else {}
    # So many pixels that no GPU holds them at once.
    huge = ["--resize", "448", "--crop", "448", "--num-frames", "128", "--batch-size", "48"]
    words = command(data, "--out", folder / "refused", *large, *huge)
    refused = subprocess.run(words, check=False, stderr=subprocess.PIPE, text=True)
    last = (refused.stderr.splitlines() or [""])[-1]
    plain = refused.returncode == 2 and "at once do not fit" in last and "Traceback" not in refused.stderr
    return [
        Row("6", "GPU: --batch-size auto", str(most.get("batch_size")), "", "", "trains", largest.returncode == 0),
        Row("6", "GPU: --batch-size 48 --accumulate auto, parts", str(found.get("accumulate")), "", "", "trains",
            auto.returncode == 0),
        Row("6", f"GPU: a batch that does not fit says: {last[-160:]}", "", "", "", "one line", plain),
    ]  # fmt: skip


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--data", type=Path, help="class folders of clips; rendered ones unless given")
    options = parser.parse_args()
    print_table(rows(options.epochs, options.kills, options.seed, options.device, options.data))


if __name__ == "__main__":
    main()

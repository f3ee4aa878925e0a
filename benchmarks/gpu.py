"""On a GPU: clips a second of our training and of the plain loop, from 1080p frames, and what bounds them.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --batch-size 32 --steps 40

Rows: ours against the plain loop at 16 and 32 frames, frames read from disk by both; ours as a share of the bf16 matrix
peak, and of its own speed on random tensors that lie on the device already; folded against plain convolutions; compiled
against not. Ours reads from the store, as every epoch but the first does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from contender import GFLOP_PER_CLIP_OF_32, OurTraining, matrix_peak, synchronize
from loading import write_clips
from reference import PlainTraining
from table import Row, print_table


def clips_per_s(training: OurTraining | PlainTraining, steps: int, warm_up: int) -> float:
    """Returns the clips a second of some steps, after some that warm up."""
    for _ in range(warm_up):
        training.step()
    synchronize("cuda")
    started, clips = time.perf_counter(), 0
    for _ in range(steps):
        clips += training.step()
    synchronize("cuda")
    return clips / (time.perf_counter() - started)


def resident_clips_per_s(training: OurTraining, batch_size: int, num_frames: int, steps: int) -> float:
    """Returns the clips a second of the same steps on random tensors that never leave the device."""
    clips = torch.randn(batch_size, 3, num_frames, 112, 112, device="cuda").to(memory_format=torch.channels_last_3d)
    labels = torch.arange(batch_size, device="cuda") % 2
    for _ in range(3):
        training.train_on(clips, labels)
    synchronize("cuda")
    started = time.perf_counter()
    for _ in range(steps):
        training.train_on(clips, labels)
    synchronize("cuda")
    return steps * batch_size / (time.perf_counter() - started)


def rows(batch_size: int = 32, steps: int = 30, clips: int = 64) -> list[Row]:
    """Measures and returns the table's rows; one that says that they are owed where there is no GPU."""
    if not torch.cuda.is_available():
        why = "GPU: no GPU on this machine, the measurement is owed (python benchmarks/gpu.py)"
        return [Row("8", why, "", "", "", "20 times, 95 % of resident", None)]
    out = []
    peak = matrix_peak(torch.bfloat16, "cuda", 8192)
    workers = max(1, (os.cpu_count() or 2) - 2)
    with tempfile.TemporaryDirectory() as name:
        root, store = Path(name) / "frames", Path(name) / "store"
        write_clips(root, clips)
        for num_frames in (16, 32):
            plain = clips_per_s(PlainTraining(root, num_frames, 4, "cuda"), 4, 1)
            options = {"device": "cuda", "workers": workers, "store": store}
            training = OurTraining(root, num_frames, batch_size, **options)  # type: ignore[arg-type]
            warm_up = 4 * clips // batch_size + 3  # until the store has what the sampler draws
            ours = clips_per_s(training, steps, warm_up)
            resident = resident_clips_per_s(training, batch_size, num_frames, steps)
            gflop = GFLOP_PER_CLIP_OF_32 * num_frames / 32
            share = ours * gflop / peak
            size = f"{num_frames} x 112 x 112"
            out += [
                Row("8", f"GPU: {size} from 1080p frames, ours in batches of {batch_size} ({training.precision}), "
                    f"plain of 4, clips/s", f"{ours:.1f}", f"{plain:.2f}", f"{ours / plain:.1f}", "goal 20",
                    ours / plain >= 20),
                Row("8", f"GPU: {size}, share of the bf16 matrix peak ({peak / 1e3:.0f} TFLOP/s)", f"{share:.1%}", "",
                    "", "printed", None),
                Row("8", f"GPU: {size}, against random tensors on the device, clips/s", f"{ours:.1f}",
                    f"{resident:.1f}", f"{ours / resident:.2f}", "goal 0.95", ours / resident >= 0.95),
            ]  # fmt: skip
            del training
            speeds = {}
            for label, folded, compiled in (
                ("plain", False, False),
                ("folded", True, False),
                ("compiled", False, True),
                ("folded, compiled", True, True),
            ):
                variant = OurTraining(
                    root, num_frames, batch_size, device="cuda", workers=0, folded=folded, compiled=compiled
                )
                speeds[label] = resident_clips_per_s(variant, batch_size, num_frames, steps)
                del variant
                torch.cuda.empty_cache()
            for label in ("folded", "compiled", "folded, compiled"):
                ratio = speeds[label] / speeds["plain"]
                out.append(
                    Row("8", f"GPU: {size}, {label} against plain convolutions, on the device, clips/s",
                        f"{speeds[label]:.1f}", f"{speeds['plain']:.1f}", f"{ratio:.2f}", "printed", None)
                )  # fmt: skip
    return out


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--clips", type=int, default=64)
    options = parser.parse_args()
    print_table(rows(options.batch_size, options.steps, options.clips))


if __name__ == "__main__":
    main()

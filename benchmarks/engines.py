"""int8 in OpenVINO against plain torchvision: seconds a window, and what it costs on clips that no fold trained on.

    OMP_NUM_THREADS=2 python benchmarks/engines.py --crossval CV

Speed: r2plus1d_18 on 32 x 112 x 112, plain torch in fp32 (default layout, a window at a time) and int8 in batches of
eight as scan makes them, turn by turn, each in a process of its own with two threads; the ratio of medians. make bench
times the export that its scans take. Quality: CV is what ``tillwatch crossval`` wrote of a network; each fold is
exported to int8, calibrated on its own training clips, and scores its test clips beside torch. make bench trains a
small one of its own where none is given (``FOLDS``: the command of docs/results.md).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import Row, print_table
from torchvision.models.video import r2plus1d_18

from tillwatch.clip_spec import ClipSpec, Preprocessing
from tillwatch.config import RECIPES, TrainConfig
from tillwatch.data.transforms import KINETICS_MEAN, KINETICS_STD, ClipTransform
from tillwatch.evaluation.evaluate import Scores, clips_of_run, score_clips
from tillwatch.evaluation.exporting import export_run
from tillwatch.evaluation.metrics import compute_metrics
from tillwatch.files import sha256_of
from tillwatch.models.backbones import build_model
from tillwatch.models.engines import Held, read_export
from tillwatch.models.export import INT8_AUROC_LOSS, INT8_MEAN_DIFFERENCE, export_network
from tillwatch.models.saved import Classifier, load_model, read_record
from tillwatch.training.cross_validation import Folds, cross_validate

TIMES_AS_FAST, LEAST_CLIPS = 9.0, 200
_LINE, _THREADS, _BATCH = "engines", 2, 8

#: A network that trains in minutes, on all clips and on the few of a quick look.
FOLDS: dict[str, Any] = {"num_frames": 8, "resize": 72, "crop": 64, "batch_size": 8, "lr": 5e-4, "epochs": 10}
QUICK_FOLDS: dict[str, Any] = {"num_frames": 4, "resize": 36, "crop": 32, "batch_size": 8, "lr": 5e-4, "epochs": 1}


def _plain(size: tuple[int, int]) -> Callable[[], int]:
    network = r2plus1d_18(weights=None).eval()
    window = torch.rand(1, 3, size[0], size[1], size[1])

    def step() -> int:
        with torch.inference_mode():
            network(window)
        return 1

    return step


def _int8(size: tuple[int, int], exported: Path | None) -> Callable[[], int]:
    windows = torch.rand(_BATCH, 3, size[0], size[1], size[1])
    model = load_model(exported, device="cpu", precision="int8") if exported else _made_int8(size, windows)

    def step() -> int:
        model.probabilities(windows)
        return _BATCH

    return step


def _made_int8(size: tuple[int, int], windows: torch.Tensor) -> Classifier:
    preprocessing = Preprocessing(resize=(size[1], size[1]), crop=(size[1], size[1]), mean=None, std=None)
    spec = ClipSpec(
        arch="r2plus1d_18", classes=("a", "b"), event=("a",), num_frames=size[0], preprocessing=preprocessing
    )
    network = build_model("r2plus1d_18", 2, weights=None)
    with tempfile.TemporaryDirectory() as name:
        made = export_network(network, spec, Path(name), "openvino", "int8", [windows[:1].numpy()])
        held = Held(engine="openvino", precision="int8", files={path.name: sha256_of(path) for path in made})
        return Classifier(read_export(Path(name), held), spec, held=held)


def _serve(make: Callable[[], Callable[[], int]], pipe: Connection) -> None:
    torch.set_num_threads(_THREADS)
    step = make()
    step()
    pipe.send(0.0)
    while pipe.recv() == "step":
        started = time.perf_counter()
        windows = step()
        pipe.send((time.perf_counter() - started) / windows)


def seconds_a_window(size: tuple[int, int], rounds: int, exported: Path | None = None) -> tuple[float, float]:
    """Returns the median seconds a window of int8 and of plain torch, measured turn by turn.

    Args:
        size: frames, and pixels each way.
        rounds: turns of each, after one that warms up.
        exported: a model folder with int8 of a network for windows of that size; one is made where there is none.
    """
    context = multiprocessing.get_context("spawn")
    served = []
    for make in (partial(_int8, size, exported), partial(_plain, size)):
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(make, theirs))
        process.start()
        pipe.recv()  # ready, and nothing of its start runs into the other's time
        served.append((pipe, process))
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for (pipe, _process), own in zip(served, times, strict=True):
            pipe.send("step")
            own.append(pipe.recv())
    for pipe, process in served:
        pipe.send("stop")
        process.join()
    return statistics.median(times[0]), statistics.median(times[1])


def prepared_row(size: tuple[int, int], rounds: int = 9) -> Row:
    """Returns how long a batch of bytes takes to become what an engine is given: looked up, and computed for torch."""
    num_frames, side = size
    resize = side * 8 // 7
    shape = (_BATCH, num_frames, resize, resize, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ways = [
        ClipTransform((resize, resize), (side, side), KINETICS_MEAN, KINETICS_STD, augment=False, planar=planar)
        for planar in (True, False)
    ]
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for transform, own in zip(ways, times, strict=True):
            started = time.perf_counter()
            batch = transform.batch(frames, [transform.place()] * _BATCH)
            for clip in batch:
                clip.contiguous()
            own.append(time.perf_counter() - started)
    ours, theirs = (1000 * statistics.median(own) for own in times)
    what = f"{_BATCH} windows of bytes made ready for an engine, looked up against computed"
    return Row(_LINE, what, f"{ours:.0f} ms", f"{theirs:.0f} ms", f"{theirs / ours:.1f}", "printed", None)


def cross_validated(frames: Path, results: Path, quick: bool) -> Path:
    """Returns a small network's cross-validation on frame folders; what an earlier one left whole is not done again."""
    out, settings, parts = results / f"folds_of_{frames.name}", QUICK_FOLDS if quick else FOLDS, 2 if quick else 5
    config = TrainConfig(
        weights="none", baselines=False, cache_folder=results / "folds_cache", **{**RECIPES["fast"], **settings}
    )
    cross_validate(frames, out, config, Folds(folds=parts))
    return out


def out_of_fold(crossval: Path, most_folds: int | None) -> tuple[Classifier, list[Scores], list[Scores]]:
    """Returns one fold's model, and torch's and int8's scores of each fold's test clips.

    Args:
        crossval: what ``tillwatch crossval`` wrote; left as it is.
        most_folds: how many of its folds are taken; None for all.
    """
    ours, theirs = [], []
    folds = sorted(path for path in (crossval / "folds").iterdir() if (path / "model.pth").is_file())[:most_folds]
    for fold in folds:
        with tempfile.TemporaryDirectory() as name:
            # By force: what a fold's own check would refuse counts here as well.
            export_run(fold, "openvino", int8=True, out=Path(name) / "model", force=True)
            model = load_model(fold, device="cpu", engine="torch")
            quantised = load_model(Path(name) / "model", precision="int8")
            clips = clips_of_run(fold, model.spec)["test"]
            ours.append(score_clips(model, clips))
            theirs.append(score_clips(quantised, clips))
    return model, ours, theirs


def rows(crossval: Path | None, quick: bool, exported: Path | None = None) -> list[Row]:
    """Measures the speed, and with a cross-validation the cost.

    Args:
        crossval: of a network; None leaves the cost out.
        quick: a small window, few turns and one fold.
        exported: an int8 export of r2plus1d_18 to time, on windows of its size; None makes one.
    """
    size = (8, 48) if quick else (32, 112)
    if exported:
        spec = ClipSpec.from_json(read_record(exported))
        size = spec.num_frames, spec.preprocessing.crop[0]
    fast, plain = seconds_a_window(size, 3 if quick else 15, exported)
    what = f"a window of {size[0]} x {size[1]} x {size[1]} through r2plus1d_18, int8 in OpenVINO, {_THREADS} threads"
    table = [
        Row(
            _LINE,
            what,
            f"{1000 * fast:.0f} ms",
            f"{1000 * plain:.0f} ms",
            f"{plain / fast:.1f}",
            f">= {TIMES_AS_FAST:g}",
            None if quick else plain / fast >= TIMES_AS_FAST,
        )
    ]
    table.append(prepared_row(size))
    if crossval is None:
        return table
    model, ours, theirs = out_of_fold(crossval, 1 if quick else None)
    labels = np.concatenate([scores.labels for scores in ours])
    both = [np.concatenate([scores.probabilities for scores in each]) for each in (ours, theirs)]
    events = [model.event_probability(probabilities) for probabilities in both]
    away = float(np.abs(events[1] - events[0]).mean())
    aurocs = [compute_metrics(labels, p, model.spec.classes, model.spec.event_indices).event_auroc for p in both]
    enough = None if quick else len(labels) >= LEAST_CLIPS
    table.append(
        Row(
            _LINE,
            f"int8's event probability beside torch's, {len(labels)} out-of-fold clips",
            f"{away:.4f} away in the mean",
            "",
            "",
            f"<= {INT8_MEAN_DIFFERENCE:g}, >= {LEAST_CLIPS} clips",
            enough and away <= INT8_MEAN_DIFFERENCE,
        )
    )
    if aurocs[0] is not None and aurocs[1] is not None:
        lost = aurocs[0] - aurocs[1]
        table.append(
            Row(
                _LINE,
                f"int8's event AUROC, {len(labels)} out-of-fold clips",
                f"{aurocs[1]:.4f}",
                f"{aurocs[0]:.4f}",
                f"{-lost:+.4f}",
                f">= -{INT8_AUROC_LOSS:g}",
                enough and lost <= INT8_AUROC_LOSS,
            )
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crossval", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    if os.environ.get("OMP_NUM_THREADS") not in (None, str(_THREADS)):
        parser.error(f"OMP_NUM_THREADS must be {_THREADS}, or unset")
    print_table(rows(options.crossval, options.quick))


if __name__ == "__main__":
    main()

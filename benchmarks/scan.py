"""Scanning against the plain scan on the same footage, its limits beside, and its memory over two hours.

    python benchmarks/scan.py CLIPS                       # footage is made of CLIPS first, minutes
    python benchmarks/scan.py CLIPS --model EXPORT ...    # with these models, by their numbers of frames
    python benchmarks/scan.py CLIPS --seconds 60 --memory-seconds 0

Two settings: 32 frames over 6.4 s, and 16 frames over 2 s, each window half its length after the last; r2plus1d_18 on
112 x 112 pixels. Where this version exports, the models are int8 exports for OpenVINO of networks trained for a moment
(their weights cost what good ones do), else torch's in fp32. Ours is ``tillwatch scan`` in a process of its own: from
its start until it is ready is start-up, the rest counts. The plain scan (reference_scan.py) is timed on a stretch, its
network ready, before and after each of ours, and the mean of the two is taken: neither takes the other's cores, and the
machine's moods reach both. Beside stand what decoding alone would reach, reading (decoding, converting, resizing)
alone, and the model alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import footage
import memory
import numpy as np
import torch
from numpy.typing import NDArray
from reference_scan import plain_network, plain_scan
from table import Row, print_table

from tillwatch import cli
from tillwatch.clip_spec import ClipSpec, Lengths, Preprocessing
from tillwatch.config import ScanConfig, TrainConfig
from tillwatch.data.playback import Damage, play_converted, timing_of_packets
from tillwatch.data.synthetic import CLASSES, make_camera, render_clip, write_video
from tillwatch.detection.batches import BATCH_SIZE
from tillwatch.detection.sampling import Sampler
from tillwatch.detection.scanner import Listener, Plan, plan_scan, scan
from tillwatch.models.backbones import backbone, build_model
from tillwatch.models.engines import exports_of
from tillwatch.models.saved import load_model, read_record, save_model

SPEED, MEMORY = "S1", "S3"

#: Times real time that scanning still footage with the gate must reach, by the picture's height.
STILL_BARS = {1080: 12.0, 360: 40.0}
MOST_GB = 1.5
MOST_GROWTH = 1.05  # of memory from the first minute to the end: measuring again differs by a few hundredths


@dataclass(frozen=True)
class Setting:
    """How windows lie, what the network is shown of them, and how far ahead of the plain scan that must be.

    Attributes:
        num_frames, crop: of the network's input; frames are resized to 8/7 of ``crop``.
        window, stride: in seconds.
        bars: times the plain scan's speed, by the picture's height; none in a quick look.
    """

    num_frames: int
    crop: int
    window: float
    stride: float
    bars: tuple[tuple[int, float], ...]

    @property
    def resize(self) -> int:
        """Pixels each way."""
        return self.crop * 8 // 7

    def __str__(self) -> str:
        return f"{self.num_frames} frames over {self.window:g} s every {self.stride:g} s"


SETTINGS = (
    Setting(32, 112, 6.4, 3.2, ((1080, 16.0), (360, 20.0))),
    Setting(16, 112, 2.0, 1.0, ((1080, 12.0), (360, 12.0))),
)
QUICK_SETTINGS = (Setting(8, 56, 3.2, 1.6, ()),)


@dataclass(frozen=True)
class Speeds:
    """What a scan in a process of its own came to.

    Attributes:
        start_s: from the process's start until it is ready to scan.
        scan_s: of the scan itself.
        footage_s: that was scanned.
        windows, gated: scored and skipped.
        engine: what scored.
        limits: times real time of decoding alone, reading alone and the model alone; none unless asked for.
        memory: (seconds of footage scanned, anonymous bytes) after each batch.
        peak_bytes: of resident memory.
    """

    start_s: float
    scan_s: float
    footage_s: float
    windows: int
    gated: int
    engine: str
    limits: dict[str, float]
    memory: list[tuple[float, int]]
    peak_bytes: int

    @property
    def times_real_time(self) -> float:
        """Footage scanned in a second."""
        return self.footage_s / self.scan_s


# Models


def can_export() -> bool:
    """Whether this version exports models, and what exports need is installed."""
    return "export" in list(cli.app) and find_spec("openvino") is not None


def make_model(setting: Setting, clips: Path | None, folder: Path) -> Path:
    """Returns a model folder for a setting: an int8 export of a network trained for a moment, or one of chance."""
    if clips is None or not can_export():
        return untrained_model(setting, folder / f"untrained{setting.num_frames}x{setting.crop}")
    run, exported = folder / f"run{setting.num_frames}", folder / f"int8_{setting.num_frames}"
    if not run.is_dir():
        from tillwatch.training.loop import train

        config = TrainConfig(
            weights="none",
            freeze="backbone",
            epochs=1,
            num_frames=setting.num_frames,
            resize=setting.resize,
            crop=setting.crop,
            baselines=False,
            cache_folder=folder / "cache",
        )
        train(clips, run, config)
    if not exported.is_dir():
        # What int8 costs in quality is measured elsewhere, on networks that have learnt something.
        flags = ["--to", "openvino", "--int8", "--force", "--out", str(exported)]
        subprocess.run([sys.executable, "-m", "tillwatch", "export", str(run), *flags], check=True)
    return exported


def int8_export(clips: Path | None, results: Path, quick: bool) -> Path | None:
    """Returns the int8 export of the first setting's network, made if need be; None where none can be made."""
    made = make_model((QUICK_SETTINGS if quick else SETTINGS)[0], clips, results / "scan")
    return made if is_int8(made) else None


def is_int8(model: Path) -> bool:
    """Whether a model folder holds an int8 export."""
    return any(held.precision == "int8" for held in exports_of(read_record(model), model / "model.json"))


def untrained_model(setting: Setting, folder: Path) -> Path:
    """Writes a model whose weights are random, which costs the same as any other."""
    if not (folder / "model.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        known = backbone("r2plus1d_18")
        spec = ClipSpec(
            arch="r2plus1d_18",
            classes=("fight", "noFight"),
            event=("fight",),
            num_frames=setting.num_frames,
            preprocessing=Preprocessing(
                resize=(setting.resize, setting.resize),
                crop=(setting.crop, setting.crop),
                mean=known.mean,
                std=known.std,
            ),
            clip_seconds=Lengths(median=setting.window, min=setting.window, max=setting.window),
        )
        save_model(folder, build_model("r2plus1d_18", 2, weights=None), spec)
    return folder


# Ours


def scan_apart(model: Path, video: Path, setting: Setting, *, gate: bool = False, limits: bool = False) -> Speeds:
    """Scans a file in a process of its own."""
    with tempfile.TemporaryDirectory() as out:
        arguments = [sys.executable, __file__, str(video), "--only", "scan", "--model", str(model)]
        arguments += ["--window", str(setting.window), "--stride", str(setting.stride), "--out", f"{out}/scan"]
        arguments += ["--gate"] * gate + ["--limits"] * limits + ["--begun", repr(time.time())]
        told = json.loads(subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return Speeds(**{**told, "memory": [tuple(pair) for pair in told["memory"]]})


def scan_here(options: argparse.Namespace) -> dict[str, Any]:
    """Scans a file and measures itself; what :func:`scan_apart` starts."""
    (model,) = options.model
    config = ScanConfig(
        window=options.window,
        stride=options.stride,
        gate="auto" if options.gate else "off",
        precision="int8" if is_int8(model) else None,  # by name: one that was trained for a moment may fail its check
    )
    plan = plan_scan(model, [options.clips], config, threshold=0.5)
    ready = time.time()
    held: list[tuple[float, int]] = []
    listener = Listener(progress=lambda done, total: held.append((done, memory.anonymous_bytes(os.getpid()))))
    started = time.perf_counter()
    done, _ = scan(plan, options.out, listener=listener)
    spent = time.perf_counter() - started
    peak = _peak_bytes()
    return {
        "start_s": ready - options.begun,
        "scan_s": spent,
        "footage_s": done.hours * 3600,
        "windows": done.windows,
        "gated": done.gated,
        "engine": plan.classifier.held.name,
        "limits": limits_of(plan) if options.limits else {},
        "memory": held,
        "peak_bytes": peak,
    }


def limits_of(plan: Plan, batches: int = 3) -> dict[str, float]:
    """Returns how many times real time each part of a scan would reach by itself, on the plan's first file."""
    (source, *_), classifier = plan.sources, plan.classifier
    threads = torch.get_num_threads()
    started = time.perf_counter()
    timing = timing_of_packets(source.path)
    for _ in play_converted(source.path, timing, Damage(), lambda place: False, lambda frame: None, threads):
        pass
    decoding = time.perf_counter() - started
    sampler = Sampler(
        path=source.path, regions=source.regions, grid=plan.grid, reading=classifier.spec.reading, threads=threads
    )
    shown: list[NDArray[np.uint8]] = []
    started = time.perf_counter()
    for window in sampler.read():
        shown = [*shown, window.frames][-BATCH_SIZE:]
    reading = time.perf_counter() - started
    frames = torch.from_numpy(np.stack([shown[number % len(shown)] for number in range(BATCH_SIZE)]))
    places = [classifier.transform.place()] * BATCH_SIZE
    classifier.probabilities(classifier.transform.batch(frames, places))  # warms up
    started = time.perf_counter()
    for _ in range(batches):
        classifier.probabilities(classifier.transform.batch(frames, places))
    a_window = (time.perf_counter() - started) / (batches * BATCH_SIZE)
    return {
        "decoding": sampler.seconds / decoding,
        "reading": sampler.seconds / reading,
        "model": float(plan.grid.stride) / a_window,
    }


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("this measurement needs Linux")


# The plain scan


def plain_speed(video: Path, seconds: float) -> float:
    """Returns how many times real time the plain scan reaches on a stretch of a file, its network ready."""
    network = plain_network()
    with contextlib.redirect_stdout(io.StringIO()):  # as fast as any pipe
        plain_scan(video, network, 0.7)
        started = time.perf_counter()
        scanned = plain_scan(video, network, seconds)
        return scanned / (time.perf_counter() - started)


# Rows


def rows(
    clips: Path | None,
    results: Path,
    quick: bool,
    *,
    models: Sequence[Path] = (),
    seconds: float | None = None,
    memory_seconds: float | None = None,
) -> list[Row]:
    """Makes footage and models, measures, and returns the table's rows.

    Args:
        clips: class folders of videos; None renders some.
        results: footage and models are kept below it.
        quick: little footage, small pictures for a small network.
        models: taken in place of those that would be made, by their numbers of frames.
        seconds: of each file of footage.
        memory_seconds: of the file that memory is measured on; 0 leaves that out.
    """
    seconds = seconds or (8.0 if quick else 600.0)
    memory_seconds = (90.0 if quick else 7200.0) if memory_seconds is None else memory_seconds
    folder = results / "scan"
    found = footage.find_clips(clips or _rendered(folder / "rendered"))
    given = {load_model(path, device="cpu").spec.num_frames: path for path in models}
    settings = QUICK_SETTINGS if quick else SETTINGS
    sizes = (footage.SMALL,) if quick else (footage.LARGE, footage.SMALL)
    made = {
        size.height: footage.make_footage(found, folder / f"moving_{size.name}_{seconds:g}s.mp4", size, seconds)
        for size in sizes
    }
    ready = {one: given.get(one.num_frames) or make_model(one, clips, folder) for one in settings}
    out = []
    for height, video in made.items():
        before = plain_speed(video, 1.0 if quick else 20.0)
        for setting, model in ready.items():
            speeds = scan_apart(model, video, setting, limits=True)
            after = plain_speed(video, 1.0 if quick else 20.0)
            out += speed_rows(setting, height, speeds, (before + after) / 2)
            before = after
    setting = settings[0]
    for size in sizes:
        still = folder / f"still_{size.name}_{seconds:g}s.mp4"
        footage.make_footage(found, still, size, seconds, still=True)
        speeds = scan_apart(ready[setting], still, setting, gate=True)
        out.append(still_row(setting, size.height, speeds, quick))
    if memory_seconds:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            video = made[360 if quick else 1080]
            looped = footage.loop_footage(video, Path(name) / "looped.mp4", memory_seconds)
            out += memory_rows(scan_apart(ready[setting], looped, setting), memory_seconds, quick)
    return out


def speed_rows(setting: Setting, height: int, ours: Speeds, plain: float) -> list[Row]:
    """Returns the rows of one scan beside the plain one."""
    ratio, bar = ours.times_real_time / plain, dict(setting.bars).get(height)
    what = f"scan of {ours.footage_s:.0f} s at {height}p, {setting} ({ours.windows} windows, {ours.engine})"
    alone = ", ".join(f"{name} {limit:.1f}" for name, limit in ours.limits.items())
    return [
        Row(
            SPEED,
            f"{what}, times real time",
            f"{ours.times_real_time:.2f}",
            f"{plain:.3f}",
            f"{ratio:.1f}",
            "printed" if bar is None else f"at least {bar:g}",
            None if bar is None else ratio >= bar,
        ),
        Row(SPEED, f"its limits, each part alone, times real time; start-up {ours.start_s:.1f} s, not counted",
            alone, "", "", "printed", None),
    ]  # fmt: skip


def still_row(setting: Setting, height: int, speeds: Speeds, quick: bool) -> Row:
    """Returns the row of still footage, whose windows the gate may skip."""
    times, bar = speeds.times_real_time, STILL_BARS[height]
    what = f"still footage, {height}p, --gate auto, {setting}: {speeds.gated} windows skipped, {speeds.windows} scored"
    held = None if quick else times >= bar
    return Row(
        SPEED,
        f"{what}, times real time; start-up {speeds.start_s:.1f} s, not counted",
        f"{times:.1f}",
        "",
        "",
        "printed" if quick else f"at least {bar:g}",
        held,
    )


def memory_rows(speeds: Speeds, seconds: float, quick: bool) -> list[Row]:
    """Returns memory at the end against memory at the first minute, and the peak; of minutes nothing is judged."""
    of_minute = [held for done, held in speeds.memory if done >= 60]
    first, last, most = of_minute[0], of_minute[-1], max(of_minute)
    what = f"scan of one file of {seconds / 3600:.2g} h"
    return [
        Row(MEMORY, f"{what}: anonymous memory at the end against minute 1 (at most {most / 1e6:.0f} between), MB",
            f"{last / 1e6:.0f}", f"{first / 1e6:.0f}", f"{last / first:.3f}",
            "printed" if quick else f"at most {MOST_GROWTH:g}", None if quick else last <= MOST_GROWTH * first),
        Row(MEMORY, f"{what}: peak of resident memory, GB", f"{speeds.peak_bytes / 1e9:.2f}", "", "",
            f"under {MOST_GB:g}", speeds.peak_bytes < MOST_GB * 1e9),
    ]  # fmt: skip


def _rendered(folder: Path) -> Path:
    """Writes class folders of rendered clips, where there are no real ones."""
    for number in range(8):
        label = CLASSES[number % 2]
        path = folder / label / f"clip{number}.mp4"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(render_clip(make_camera(f"camera{number}", number), label, number), path)
    return folder


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", type=Path, nargs="+", default=[])
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--memory-seconds", type=float)
    apart = parser.add_argument_group("what the measurement starts")
    apart.add_argument("--only", choices=["scan"])
    apart.add_argument("--window", type=float)
    apart.add_argument("--stride", type=float)
    apart.add_argument("--gate", action="store_true")
    apart.add_argument("--limits", action="store_true")
    apart.add_argument("--begun", type=float)
    apart.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(scan_here(options)))
        return
    print_table(
        rows(
            options.clips,
            options.results,
            options.quick,
            models=options.model,
            seconds=options.seconds,
            memory_seconds=options.memory_seconds,
        )
    )


if __name__ == "__main__":
    main()

"""What works on this machine: devices, decoders, engines, and how fast each engine scores a window."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import av
import numpy as np
import torch

from tillwatch.clip_spec import ClipSpec, Preprocessing
from tillwatch.errors import TillwatchError, one_line
from tillwatch.files import sha256_of
from tillwatch.models.backbones import backbone, build_model
from tillwatch.models.engines import PACKAGES, TORCH, EngineName, EnginePrecision, Held, read_export
from tillwatch.models.export import check_exportable, export_network
from tillwatch.models.precision import bf16_speedup
from tillwatch.models.saved import Classifier

#: What recorders write, by FFmpeg's names.
DECODERS = ("h264", "hevc", "mpeg4", "mjpeg", "mpeg2video", "vp9", "av1")

_WAYS: tuple[tuple[EngineName, EnginePrecision], ...] = (
    ("torch", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "int8"),
    ("onnx", "fp32"),
    ("onnx", "int8"),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was tried.

    Attributes:
        kind: "device", "decoder" or "engine".
        name: of it.
        works: whether it does here.
        says: version and speed, or why it does not work.
    """

    kind: str
    name: str
    works: bool
    says: str


def examine(arch: str = "r2plus1d_18", num_frames: int = 16, crop: int = 112) -> Iterator[Finding]:
    """Tries everything; speeds are of an untrained network, which is as fast as a trained one.

    Args:
        arch: the network.
        num_frames, crop: of a window, in frames and pixels each way.

    Raises:
        ConfigError: if there is no such network.
    """
    spec = ClipSpec(
        arch=arch,
        classes=("event", "normal"),
        event=("event",),
        num_frames=num_frames,
        preprocessing=Preprocessing(resize=(crop, crop), crop=(crop, crop), mean=None, std=None),
    )
    backbone(arch)
    yield from _devices()
    yield from map(_decoder, DECODERS)
    yield from (_engine(spec, engine, precision) for engine, precision in _WAYS)
    if torch.cuda.is_available():
        yield _engine(spec, "torch", "fp32", "cuda")


def _devices() -> Iterator[Finding]:
    bf16 = bf16_speedup()
    cpu = f"{platform.machine()}, {torch.get_num_threads()} threads, bf16 products {bf16:.1f} times as fast as fp32"
    yield Finding(kind="device", name="cpu", works=True, says=cpu)
    found = torch.cuda.is_available()
    names = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())] if found else []
    yield Finding(kind="device", name="cuda", works=found, says=", ".join(names) or "PyTorch finds no GPU")


def _decoder(name: str) -> Finding:
    try:
        codec = av.codec.Codec(name, "r")
    except ValueError:
        return Finding(kind="decoder", name=name, works=False, says=f"not in PyAV {av.__version__}")
    return Finding(kind="decoder", name=name, works=True, says=f"PyAV {av.__version__}, {codec.long_name}")


def _engine(spec: ClipSpec, engine: EngineName, precision: EnginePrecision, device: str = "cpu") -> Finding:
    name = f"{engine} {precision}" + (f" on {device}" if device != "cpu" else "")
    try:
        seconds = _seconds_a_window(spec, engine, precision, device)
        what = f"{version(PACKAGES[engine])}, a window of {spec.num_frames} frames in {1000 * seconds:.0f} ms"
        return Finding(kind="engine", name=name, works=True, says=what)
    except (TillwatchError, PackageNotFoundError) as error:
        return Finding(kind="engine", name=name, works=False, says=one_line(error))


def _seconds_a_window(spec: ClipSpec, engine: EngineName, precision: EnginePrecision, device: str) -> float:
    """Returns the time of a window in batches of four, the best of three after one that warms up."""
    network = build_model(spec.arch, len(spec.classes), weights=None)
    held = TORCH
    clips = torch.rand(4, 3, spec.num_frames, *spec.preprocessing.crop, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as name:
        if engine != "torch":
            check_exportable(spec, engine, precision)
            calibration = [np.ascontiguousarray(clips[:1].numpy())]
            made = export_network(network, spec, Path(name), engine, precision, calibration)
            held = Held(engine=engine, precision=precision, files={path.name: sha256_of(path) for path in made})
            network = read_export(Path(name), held)
        model = Classifier(network, spec, held=held, device=device)
        model.probabilities(clips)
        times = []
        for _ in range(3):
            started = time.perf_counter()
            model.probabilities(clips)
            times.append((time.perf_counter() - started) / len(clips))
    return min(times)

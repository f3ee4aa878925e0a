"""A run's model to another engine: calibrated on its training clips, held against torch on its validation clips."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tillwatch.data.catalog import CLIPS_CSV, Clip, count_and_names
from tillwatch.data.dataset import read_clip
from tillwatch.errors import ClipError, ModelError, RunError, reason_of
from tillwatch.evaluation.evaluate import Scores, clips_of_run, score_clips
from tillwatch.evaluation.metrics import compute_metrics
from tillwatch.files import replacing, sha256_of
from tillwatch.models.engines import EXPORTS, EngineName, EnginePrecision, Held, read_export
from tillwatch.models.export import (
    CALIBRATION_CLIPS,
    FP32_TOLERANCE,
    INT8_AUROC_LOSS,
    INT8_MEAN_DIFFERENCE,
    check_exportable,
    export_network,
)
from tillwatch.models.saved import Classifier, load_model, read_record, write_export

_VERSIONS = {"onnx": ("torch", "onnx", "onnxruntime"), "openvino": ("torch", "onnx", "openvino")}
_EVALUATE_NEEDS = ("config.yaml", CLIPS_CSV)


@dataclass(frozen=True, kw_only=True)
class Differences:
    """How an export's scores differ from torch's on the same clips.

    Attributes:
        clips, side: how many, and of which side of the run's split.
        max_difference: the largest of any class's probability.
        mean_event_difference, max_event_difference: of the event probability.
        event_auroc_torch, event_auroc: None unless both events and others are among the clips.
        alarms_changed: clips that the operating point divides otherwise.
        passed: whether all of it is within the tolerance.
    """

    clips: int
    side: str
    max_difference: float
    mean_event_difference: float
    max_event_difference: float
    event_auroc_torch: float | None
    event_auroc: float | None
    alarms_changed: int
    passed: bool

    def lines(self) -> list[str]:
        """Says them."""
        of_event = f"{self.mean_event_difference:.2g} in the mean, {self.max_event_difference:.2g} at most"
        of_any = f"probabilities differ by {self.max_difference:.2g} at most, the event's by {of_event}"
        said = [f"against torch on {self.clips} {self.side} clips: {of_any}"]
        if self.event_auroc is not None and self.event_auroc_torch is not None:
            said.append(f"event AUROC {self.event_auroc:.4f}, torch's {self.event_auroc_torch:.4f}")
        said.append(f"{self.alarms_changed} clips lie on the other side of the operating point")
        return said


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was exported and where to; notes are sentences a user should read."""

    folder: Path
    held: Held
    megabytes: float
    differences: Differences
    notes: tuple[str, ...]


def export_run(
    run: Path,
    to: EngineName,
    *,
    int8: bool = False,
    out: Path | None = None,
    force: bool = False,
    workers: int = 0,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Exports a run's model, and writes it and how it differs from torch into a model folder.

    Args:
        run: folder with model.pth and the clips that it was trained on.
        to: "onnx" or "openvino".
        int8: quantise, calibrated on at most 100 training clips, evenly out of all.
        out: the folder; the run's own unless given. Made if missing; may hold other exports of the same model.
        force: write an export that differs by more than the tolerance; the engine ``auto`` never takes it.
        workers: processes that read clips.
        on_clip: called with (clips done, clips in all) while they are compared.

    Raises:
        ConfigError: if the model or this installation cannot be exported with.
        ModelError: if the export differs by more than the tolerance, or fails.
        RunError: if clips or files are missing, or ``out`` holds something else.
    """
    ours = load_model(run, device="cpu", engine="torch")
    precision: EnginePrecision = "int8" if int8 else "fp32"
    check_exportable(ours.spec, to, precision)
    record = read_record(run)
    out = out or run
    _check_folder(out, ours.sha256)
    clips = clips_of_run(run, ours.spec)
    notes = []
    if "validation" in clips:
        side, compared = "validation", _there(clips, "validation")
    else:
        side, compared = "training", _there(clips, "train")
        notes.append("The run held no clips out, so the export was compared on clips that it was trained on.")
    calibration, unread = _frames_of(ours, _there(clips, "train")) if int8 else ([], [])
    with tempfile.TemporaryDirectory() as name:
        made = export_network(
            ours.network, ours.spec, Path(name), to, precision, calibration, lambda frames: _prepared(ours, frames)
        )
        there = Held(engine=to, precision=precision, files={path.name: sha256_of(path) for path in made})
        theirs = Classifier(
            read_export(Path(name), there), ours.spec, temperature=ours.temperature, sha256=ours.sha256, held=there
        )
        scored: list[Scores] = []
        for model in (ours, theirs):
            before = len(compared) * len(scored)
            told = partial(_tell, on_clip, before, 2 * len(compared))
            scored.append(score_clips(model, compared, workers=workers, on_batch=told))
        unread += [skip.name for skip in scored[0].skipped]
        if unread:
            notes.append(f"{count_and_names(unread)} of the clips could not be read and were left out.")
        differences = compare_scores(ours, scored[0], scored[1], side, precision)
        if not differences.passed and not force:
            raise ModelError(
                f"{to} {precision} differs from torch by more than it may ({_tolerance(precision)}): "
                f"{'; '.join(differences.lines())}. Nothing was written; --force writes it all the same."
            )
        held = Held(
            engine=to,
            precision=precision,
            files={f"{EXPORTS}/{path.name}": sha256_of(path) for path in made},
            passed=differences.passed,
        )
        export = {
            "engine": to,
            "precision": precision,
            "files": dict(held.files),
            "of": ours.sha256,
            "calibration_clips": len(calibration),
            "check": {**asdict(differences), "tolerance": _tolerances(precision)},
            "versions": {package: version(package) for package in (*_VERSIONS[to], *(["nncf"] if int8 else []))},
        }
        _put(run, out, made, export, record)
    return Exported(
        folder=out,
        held=held,
        megabytes=sum((out / name).stat().st_size for name in held.files) / 1e6,
        differences=differences,
        notes=tuple(notes),
    )


def compare_scores(
    classifier: Classifier, ours: Scores, theirs: Scores, side: str, precision: EnginePrecision
) -> Differences:
    """Says how an export's scores differ from torch's.

    fp32 passes if no probability differs by more than 1e-4; int8 if the event probability differs by 0.02 at most in
    the mean, and AUROC is at most 0.01 lower.

    Args:
        classifier: with classes, event and operating point.
        ours, theirs: of the same clips, torch's first.
        side: of the split that they are of.
        precision: of the export.

    Raises:
        RunError: if no clip could be read.
        DataError: if a score is not finite.
    """
    if not ours.clips:
        raise RunError(f"none of the {side} clips could be read: {ours.skipped[0].reason if ours.skipped else 'none'}.")
    spec, threshold = classifier.spec, classifier.operating_point.threshold
    aurocs = [
        compute_metrics(scores.labels, scores.probabilities, spec.classes, spec.event_indices).event_auroc
        for scores in (ours, theirs)
    ]
    of_event = [classifier.event_probability(scores.probabilities) for scores in (ours, theirs)]
    away = np.abs(of_event[1] - of_event[0])
    largest = float(np.abs(theirs.probabilities - ours.probabilities).max())
    lost = 0.0 if aurocs[0] is None or aurocs[1] is None else aurocs[0] - aurocs[1]
    if precision == "fp32":
        passed = largest <= FP32_TOLERANCE
    else:
        passed = float(away.mean()) <= INT8_MEAN_DIFFERENCE and lost <= INT8_AUROC_LOSS
    return Differences(
        clips=len(ours.clips),
        side=side,
        max_difference=largest,
        mean_event_difference=float(away.mean()),
        max_event_difference=float(away.max()),
        event_auroc_torch=aurocs[0],
        event_auroc=aurocs[1],
        alarms_changed=int(((of_event[0] >= threshold) != (of_event[1] >= threshold)).sum()),
        passed=passed,
    )


def _there(clips: Mapping[str, Sequence[Clip]], side: str) -> Sequence[Clip]:
    if not clips.get(side):
        raise RunError(f"none of the run's {side} clips is where the run found them any more.")
    return clips[side]


def _tell(on_clip: Callable[[int, int], None], before: int, total: int, done: int, _of: int) -> None:
    on_clip(before + done, total)


def _tolerances(precision: EnginePrecision) -> Mapping[str, float]:
    if precision == "fp32":
        return {"max_difference": FP32_TOLERANCE}
    return {"mean_event_difference": INT8_MEAN_DIFFERENCE, "event_auroc_loss": INT8_AUROC_LOSS}


def _tolerance(precision: EnginePrecision) -> str:
    if precision == "fp32":
        return f"{FP32_TOLERANCE:g} in any probability"
    return f"{INT8_MEAN_DIFFERENCE:g} in the event probability's mean, {INT8_AUROC_LOSS:g} of AUROC"


def _frames_of(classifier: Classifier, clips: Sequence[Clip]) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Reads clips for the calibration, evenly out of all, as bytes: as floats they would take four times the memory.

    Returns:
        uint8 ``(T, H, W, 3)`` of each, and the names of those that could not be read.
    """
    chosen = np.linspace(0, len(clips) - 1, min(len(clips), CALIBRATION_CLIPS), dtype=int)
    frames, unread = [], []
    for place in chosen:
        try:
            frames.append(read_clip(clips[place], classifier.spec.reading))
        except ClipError:
            unread.append(clips[place].name)
    if not frames:
        raise RunError("none of the run's training clips could be read to calibrate int8 on.")
    return frames, unread


def _prepared(classifier: Classifier, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    transform = classifier.transform
    clip = transform.batch(torch.from_numpy(np.array(frames))[None], [transform.place()])
    prepared: NDArray[np.float32] = clip.contiguous().numpy()
    return prepared


def _check_folder(out: Path, sha256: str) -> None:
    """Refuses a folder that holds anything but this model.

    Raises:
        RunError: if it does.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise RunError(f"{out} is a file; give another --out.")
    if not any(out.iterdir()):
        return
    if not (out / "model.json").is_file():
        raise RunError(f"{out} is not empty and holds no model; give another --out.")
    if read_record(out).get("sha256") != sha256:
        raise RunError(f"{out} holds another model; give another --out.")


def _put(run: Path, out: Path, made: Sequence[Path], export: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Writes an export's files, what evaluate needs of a run, and last the model.json that names them."""
    try:
        (out / EXPORTS).mkdir(parents=True, exist_ok=True)
        for path in made:
            with path.open("rb") as source, replacing(out / EXPORTS / path.name, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        for name in _EVALUATE_NEEDS:
            if out.resolve() != run.resolve():
                with (run / name).open("rb") as source, replacing(out / name, "wb") as target:
                    shutil.copyfileobj(source, target)
        write_export(out, export, record)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({reason_of(error)}).") from None

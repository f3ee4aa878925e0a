"""Out-of-fold scores: what each fold chose for itself, and what they say for a final model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.special import log_softmax

from tillwatch.clip_spec import event_scores
from tillwatch.config import TrainConfig
from tillwatch.errors import DataError, RunError, one_line
from tillwatch.evaluation.calibration import Temperature, apply_temperature, fit_temperature, logs
from tillwatch.evaluation.evaluated import BASELINES_CSV, OWN_THRESHOLDS_NOTE, PREDICTIONS_CSV
from tillwatch.evaluation.exposure import CROSS_VALIDATION
from tillwatch.evaluation.operating_point import choose_threshold
from tillwatch.files import write_json, write_text
from tillwatch.models.saved import OperatingPoint

_LEAST = 5e-9  # a table of eight digits holds what is smaller as 0, whose logarithm would outweigh everything


@dataclass(frozen=True, kw_only=True)
class FoldPoint:
    """What a fold chose on its own validation clips: its temperature, and its threshold with how it came about."""

    temperature: float
    threshold: float
    source: str

    @property
    def chosen(self) -> bool:
        """Whether it could be chosen at all."""
        return self.source != OperatingPoint().source


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What out-of-fold scores say of a model trained on all clips, and the cross-validation's folder with them."""

    temperature: float
    point: OperatingPoint
    crossval: Path


def write_figures(out: Path, judged: Judged, sha256: str) -> None:
    """Writes a cross-validation's scores and figures as those of the model trained on all clips: it has no others.

    Args:
        out: the model's run folder; gets predictions.csv, baselines.csv if there is one, and evaluation.json.
        judged: where they come from.
        sha256: of the model's weights.
    """
    record = json.loads((judged.crossval / "evaluation.json").read_text(encoding="utf-8"))
    drawn = yaml.safe_load((judged.crossval / "crossval.yaml").read_text(encoding="utf-8"))
    folds = drawn["folds"] * drawn["repeats"]
    note = (
        "This model learnt from all clips and was measured on none. All figures are out-of-fold figures of the "
        f"cross-validation in {judged.crossval.resolve().name}: each clip was scored by one of {folds} other models, "
        "trained the same way without it and its group."
    )
    if record["exposure"]["groups_divided"]:
        note = note.replace("without it and its group", "without it, but with clips of its group")
    record["notes"] = [note, *record["notes"]]
    record[CROSS_VALIDATION] = {
        "folder": str(judged.crossval.resolve()),
        **{name: drawn[name] for name in ("folds", "repeats", "grouping")},
    }
    record |= {"model_sha256": sha256, "temperature": judged.temperature}
    for name in (PREDICTIONS_CSV, BASELINES_CSV):
        if (judged.crossval / name).is_file():
            write_text(out / name, (judged.crossval / name).read_text(encoding="utf-8"))
    write_json(out / "evaluation.json", record)


def read_fold_point(run: Path) -> FoldPoint:
    """Reads a fold's temperature and threshold.

    Raises:
        RunError: if its model.json cannot be read.
    """
    path = run / "model.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        point = record["operating_point"]
        return FoldPoint(
            temperature=float(record["temperature"]), threshold=float(point["threshold"]), source=str(point["source"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({one_line(error)}); remove the fold and start again.") from None


def own_points_note(points: Sequence[FoldPoint]) -> str:
    """Says at which thresholds a cross-validation's recall, precision and false alarms stand."""
    note = OWN_THRESHOLDS_NOTE
    default = sum(not point.chosen for point in points)
    if default:
        note += f" In {default} of {len(points)} folds none could be chosen: it is {OperatingPoint().threshold:g}."
    return note


def uncalibrated(probabilities: NDArray[np.float64], temperatures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns probabilities as they were before their folds' temperatures, as a final model's are.

    Args:
        probabilities: float64 ``(N, classes)``, of eight digits.
        temperatures: float64 ``(N,)``, that of the fold that scored each clip.
    """
    raw: NDArray[np.float64] = np.exp(
        log_softmax(np.log(np.maximum(probabilities, _LEAST)) * temperatures[:, None], axis=1)
    )
    return raw


def choose_point(
    scores: NDArray[np.float64], is_event: NDArray[np.bool_], hours: float | None, config: TrainConfig
) -> OperatingPoint:
    """Chooses an operating point on out-of-fold scores; the default, which says so, where none can be chosen.

    Args:
        scores: float64 ``(N,)``, event probabilities of one repeat: further ones are no new clips.
        is_event: bool ``(N,)``.
        hours: of normal footage that the clips stand for.
        config: what it is chosen by.
    """
    try:
        choice = choose_threshold(
            scores,
            is_event,
            on="out-of-fold",
            max_false_alarms_per_hour=config.max_false_alarms_per_hour,
            min_recall=config.min_recall,
            hours=hours,
        )
    except DataError:
        return OperatingPoint()
    return OperatingPoint(threshold=choice.threshold, unit="clip", source=choice.source)


def calibrate_final(
    probabilities: NDArray[np.float64],
    temperatures: NDArray[np.float64],
    labels: NDArray[np.int64],
    event_indices: Sequence[int],
    hours: float | None,
    config: TrainConfig,
) -> tuple[Temperature, OperatingPoint]:
    """Fits the temperature and chooses the operating point of a model trained on all clips.

    Args:
        probabilities: float64 ``(N, classes)``, out-of-fold, of one repeat, each calibrated by its fold.
        temperatures: float64 ``(N,)``, the folds'.
        labels: int64 ``(N,)``.
        event_indices: columns whose sum is the event probability.
        hours, config: as :func:`choose_point` takes them.
    """
    raw = uncalibrated(probabilities, temperatures)
    temperature = fit_temperature(logs(raw), labels, on="out-of-fold")
    scores = event_scores(apply_temperature(raw, temperature.value), event_indices)
    return temperature, choose_point(scores, np.isin(labels, list(event_indices)), hours, config)


def leaking(point: OperatingPoint) -> OperatingPoint:
    """Says of an operating point that folds which divide groups chose it."""
    return replace(point, source=f"{point.source}; groups divided, so on new ones it does worse")

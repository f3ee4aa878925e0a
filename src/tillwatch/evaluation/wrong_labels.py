"""Out-of-fold scores to the clips most likely mislabelled, ranked, with pictures."""

from __future__ import annotations

import html
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from tillwatch.clip_spec import FrameStep, Reading
from tillwatch.data.catalog import find_clips
from tillwatch.data.dataset import read_clip
from tillwatch.errors import ConfigError, RunError, TillwatchError, one_line
from tillwatch.files import read_csv, replacing, write_csv, write_text

LABELS_CSV, LABELS_HTML, PICTURES = "labels.csv", "labels.html", "labels"

_FRAMES, _SIDE = 8, 128


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A clip and how well its label fits its scores.

    Attributes:
        path: the clip's name.
        label: what it is called.
        likely: the most probable class.
        quality: probability of its label, 0 to 1; low is suspect.
        issue: cleanlab's own verdict that the label is wrong.
    """

    path: str
    label: str
    likely: str
    quality: float
    issue: bool


def find_suspects(
    paths: Sequence[str], labels: NDArray[np.int64], probabilities: NDArray[np.float64], classes: Sequence[str]
) -> list[Suspect]:
    """Ranks clips by how little their label fits scores of models that have not seen them.

    Cleanlab's self-confidence ranks (Kuan and Mueller, 2022); its confident learning (Northcutt et al., 2021) decides.

    Args:
        paths: names of the clips.
        labels: int64 ``(N,)``, places in ``classes``.
        probabilities: float64 ``(N, classes)``, out of fold, rows sum to 1.
        classes: names in label order.

    Returns:
        All clips, the most suspect first.

    Raises:
        ConfigError: if cleanlab is not installed.
    """
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        raise ConfigError("finding wrong labels needs cleanlab: pip install 'tillwatch[labels]'.") from None
    quality = get_label_quality_scores(labels, probabilities, method="self_confidence")
    issues = find_label_issues(labels, probabilities, n_jobs=1)
    return [
        Suspect(
            path=paths[index],
            label=classes[labels[index]],
            likely=classes[int(probabilities[index].argmax())],
            quality=float(quality[index]),
            issue=bool(issues[index]),
        )
        for index in np.argsort(quality, kind="stable")
    ]


def rank_labels(run: Path, top: int = 20) -> list[Suspect]:
    """Ranks the clips of a cross-validation and writes labels.csv, labels.html and a filmstrip of each suspect.

    Args:
        run: the folder that ``tillwatch crossval`` wrote.
        top: how many get a filmstrip.

    Returns:
        All clips, the most suspect first.

    Raises:
        RunError: if the folder holds no cross-validation, or cannot be written.
        ConfigError: if cleanlab is not installed.
    """
    try:
        record = yaml.safe_load((run / "crossval.yaml").read_text(encoding="utf-8"))
        rows = read_csv(run / "predictions.csv")
        classes = tuple(record["classes"])
        by_clip: dict[str, list[Mapping[str, str]]] = {}
        for row in rows:
            by_clip.setdefault(row["path"], []).append(row)
        labels = np.array([classes.index(of_clip[0]["label"]) for of_clip in by_clip.values()], dtype=np.int64)
        # With repeats, the mean of a clip's scores.
        scores = [
            np.mean([[float(row[f"p_{name}"]) for name in classes] for row in of_clip], axis=0)
            for of_clip in by_clip.values()
        ]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise RunError(
            f"{run} holds no finished cross-validation ({one_line(error)}); make one with tillwatch crossval."
        ) from None
    probabilities = np.stack(scores)
    suspects = find_suspects(list(by_clip), labels, probabilities / probabilities.sum(1, keepdims=True), classes)
    try:
        _write(run, suspects, top, record)
    except OSError as error:
        raise RunError(f"{run} cannot be written ({error.strerror or one_line(error)}).") from None
    return suspects


def _write(run: Path, suspects: Sequence[Suspect], top: int, record: Mapping[str, Any]) -> None:
    rows = [
        {
            "rank": rank,
            "path": suspect.path,
            "label": suspect.label,
            "likely": suspect.likely,
            "quality": f"{suspect.quality:.6f}",
            "issue": "yes" if suspect.issue else "no",
        }
        for rank, suspect in enumerate(suspects, start=1)
    ]
    write_csv(run / LABELS_CSV, ("rank", "path", "label", "likely", "quality", "issue"), rows)
    shutil.rmtree(run / PICTURES, ignore_errors=True)
    (run / PICTURES).mkdir()
    pictures = _filmstrips(run / PICTURES, suspects[:top], record)
    entries = "\n".join(
        f"<h2>{rank}. {html.escape(s.path)}</h2><p>labelled {html.escape(s.label)}, looks like "
        f"{html.escape(s.likely)}; probability of its label {s.quality:.3f}</p>{pictures[s.path]}"
        for rank, s in enumerate(suspects[:top], start=1)
    )
    write_text(
        run / LABELS_HTML,
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Labels to look at</title>'
        "<style>body{font-family:sans-serif;margin:2em}img{max-width:100%}</style>"
        f"<h1>Labels to look at</h1>\n{entries}\n",
    )


def _filmstrips(folder: Path, suspects: Sequence[Suspect], record: Mapping[str, Any]) -> dict[str, str]:
    """Writes the filmstrips and returns the HTML of each; a clip that cannot be read any more says so."""
    step = FrameStep(every=record.get("every") or 1, fps=record.get("fps"))
    try:
        found = find_clips(Path(record["data"]), record["classes"], num_frames=_FRAMES, step=step).clips
    except TillwatchError as error:
        return {suspect.path: f"<p>no picture: {html.escape(one_line(error))}</p>" for suspect in suspects}
    clips = {clip.name: clip for clip in found}
    shown = {}
    for rank, suspect in enumerate(suspects, start=1):
        try:
            if suspect.path not in clips:
                raise RunError("the clip is not there any more")
            frames = read_clip(clips[suspect.path], Reading(num_frames=_FRAMES, step=step, resize=(_SIDE, _SIDE)))
        except TillwatchError as error:
            shown[suspect.path] = f"<p>no picture: {html.escape(one_line(error))}</p>"
            continue
        name = f"{rank:03d}.jpg"
        with replacing(folder / name, "wb") as file:
            Image.fromarray(np.concatenate(list(frames), axis=1)).save(file, "JPEG", quality=88)
        shown[suspect.path] = f'<img src="{PICTURES}/{name}" alt="{html.escape(suspect.path)}">'
    return shown

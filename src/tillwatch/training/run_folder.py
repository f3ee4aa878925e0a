"""The run folder: refusing, making and replacing it, and clips.csv."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tillwatch.config import read_yaml
from tillwatch.data.catalog import CLIPS_CSV, Skip
from tillwatch.errors import RunError, TillwatchError, one_line
from tillwatch.files import read_csv, write_csv
from tillwatch.training.prepare import Job

RUN_FILES = (
    "audit.json",
    "baselines.csv",
    "baselines.json",
    "classification_report.txt",
    "clips.csv",
    "config.yaml",
    "evaluation.json",
    "metrics.csv",
    "model.json",
    "model.pth",
    "model_card.md",
    "model.skops",
    "predictions.csv",
    "report.html",
)
RUN_FOLDERS = ("checkpoints", "evaluations")
CLIPS_COLUMNS = ("path", "label", "group", "split", "frames", "fps", "seconds", "status")


def check_run_folder(out: Path, overwrite: bool, reads: Sequence[Path] = ()) -> None:
    """Refuses a run folder that holds something already, or that lies where its own training reads.

    Args:
        out: the run folder.
        overwrite: whether an older run in it may be replaced.
        reads: files and folders that training reads, the data folder first.

    Raises:
        RunError: unless it is absent or empty, or ``overwrite`` and it holds a run.
    """
    place = out.resolve()
    if reads and reads[0].resolve() in place.parents:
        raise RunError(f"{out} lies inside the data folder {reads[0]}; give another --out.")
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise RunError(f"{out} is not a folder; give another --out.")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise RunError(f"{out} exists already; give another --out, or --overwrite to replace the run in it.")
    for path in reads:
        if place in (path.resolve(), *path.resolve().parents):
            raise RunError(f"{out} holds {path}, which this training reads; give another --out.")
    if not _holds_run(out):
        raise RunError(f"{out} holds files but no run, so --overwrite does not touch it; give another --out.")


def claim_run_folder(out: Path) -> None:
    """Makes the run folder, and removes the files of an older run; other files in it are left alone.

    Raises:
        RunError: if it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
        for name in RUN_FILES:
            (out / name).unlink(missing_ok=True)
        for name in RUN_FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror or one_line(error)}); give another --out.") from None


def _holds_run(out: Path) -> bool:
    """Whether a folder has what every run has from its first epoch on."""
    try:
        config = read_yaml(out / "config.yaml")
        return {"data", "out", "arch"} <= set(config) and "split" in read_csv(out / CLIPS_CSV)[0]
    except (TillwatchError, OSError, ValueError, IndexError):
        return False


def write_clips(path: Path, job: Job, skipped: Mapping[str, Skip] | None = None) -> None:
    """Writes what became of every clip: its side, or why it was left out.

    Args:
        path: the file.
        job: clips and split.
        skipped: clips that turned out unreadable in training, by name.
    """
    rows: list[dict[str, Any]] = []
    for clip in job.catalog.clips:
        short = clip.stepped_frames < job.spec.num_frames
        status = f"short: {clip.stepped_frames} frames, repeated" if short else "ok"
        if skipped and clip.name in skipped:
            status = f"skipped: {skipped[clip.name].reason}"
        rows.append(
            {
                "path": clip.name,
                "label": clip.label,
                "group": clip.group,
                "split": job.sides[clip.name],
                "frames": clip.num_frames,
                "fps": None if clip.fps is None else f"{clip.fps:g}",
                "seconds": None if clip.seconds is None else f"{clip.seconds:.3f}",
                "status": status,
            }
        )
    left_out: Sequence[Skip] = (*job.catalog.skipped, *job.catalog.too_short)
    rows += [
        {"path": skip.name, "label": skip.name.split("/")[0], "status": f"skipped: {skip.reason}"} for skip in left_out
    ]
    write_csv(path, CLIPS_COLUMNS, sorted(rows, key=lambda row: str(row["path"])))

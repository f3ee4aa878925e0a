"""The run folder: refusing, making, replacing and locking it, and clips.csv."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tillwatch.config import read_yaml
from tillwatch.data.catalog import CLIPS_CSV, Skip
from tillwatch.errors import RunError, TillwatchError, one_line, reason_of
from tillwatch.evaluation.runs import UNFINISHED
from tillwatch.files import read_csv, remove_parts, shell_word, write_csv
from tillwatch.locks import open_held, release, take
from tillwatch.training.prepare import Job
from tillwatch.training.state import CHECKPOINTS, Beginning, find_checkpoints

RUN_FILES = (
    "audit.json",
    "baselines.csv",
    "baselines.json",
    "classification_report.txt",
    "evaluation.json",
    "metrics.csv",
    "model.json",
    "model.pth",
    "model_card.md",
    "model.skops",
    "predictions.csv",
    "report.html",
    "tracking.json",
    "clips.csv",
    "config.yaml",  # these two last: they tell that a folder is a run's
)
RUN_FOLDERS = (CHECKPOINTS, "evaluations", "exports", "tensorboard", "wandb")
_NOT_FINISHED = "This run is not finished"
CLIPS_COLUMNS = ("path", "label", "group", "camera", "split", "frames", "fps", "seconds", "bytes", "status")


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
    if all(path.name == UNFINISHED or path.match(".*.part") for path in out.iterdir()):
        return  # nothing, or a run that was killed before its first file
    if not overwrite and (out / UNFINISHED).exists():
        if not (out / "config.yaml").is_file():
            raise RunError(f"{out} holds a run that was broken off before it began; --overwrite to replace it.")
        raise RunError(f"{out} holds a run that is not finished; {go_on(out)}, or --overwrite to replace it.")
    if not overwrite:
        raise RunError(f"{out} exists already; give another --out, or --overwrite to replace the run in it.")
    for path in reads:
        if place in (path.resolve(), *path.resolve().parents):
            raise RunError(f"{out} holds {path}, which this training reads; give another --out.")
    if not _holds_run(out):
        raise RunError(f"{out} holds files but no run, so --overwrite does not touch it; give another --out.")


@contextmanager
def hold_run_folder(out: Path, *, begin: bool) -> Iterator[None]:
    """Keeps other trainings out of a run folder, and marks it as unfinished until the block ends well.

    The lock is the kernel's, so it goes with the process, however that ends.

    Args:
        out: the run folder.
        begin: whether to make it, and to remove the files of an older run; other files in it are left alone.

    Raises:
        RunError: if it cannot be written, another process holds it, or there is nothing to go on with.
    """
    with _locked(out, begin):
        try:
            yield
            (out / UNFINISHED).unlink(missing_ok=True)
        except OSError as error:
            then = go_on(out) if (out / "config.yaml").is_file() else "train again with the same command."
            raise RunError(f"the file system refused: {one_line(error)}. Make room or mend it, then {then}") from None
    remove_checkpoints(out)


def remove_checkpoints(run: Path) -> None:
    """Removes the checkpoints of a finished run, where the file system lets it: they are in nobody's way."""
    for checkpoint in find_checkpoints(run / CHECKPOINTS):
        with suppress(OSError):
            checkpoint.unlink()


def is_finished(run: Path) -> bool:
    """Tells a finished run from one that can go on.

    Raises:
        RunError: if there is neither.
    """
    if not (run / "config.yaml").is_file():
        raise RunError(f"{run} holds no run to go on with: it has no config.yaml. Train anew.")
    if (run / UNFINISHED).exists():
        return False
    if (run / "evaluation.json").is_file():
        return True
    raise RunError(f"{run} is of a version that could not go on; train again with --config {run / 'config.yaml'}.")


def go_on(out: Path) -> str:
    """Says how to go on with a run."""
    return f"go on with: tillwatch train --resume {shell_word(out)}"


def mark_begun(out: Path, begun: Beginning) -> None:
    """Writes into the mark of a run that is not finished what it was begun with, for as long as it has no checkpoint.

    In place: a new file would not be the locked one.
    """
    text = f"{_NOT_FINISHED}; {go_on(out)}\n"
    if begun.clips:
        text += json.dumps(asdict(begun)) + "\n"
    with (out / UNFINISHED).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_mark(run: Path) -> Beginning:
    """Returns what the mark of a run that is not finished says that it was begun with; nothing if it is not whole."""
    try:
        lines = (run / UNFINISHED).read_text(encoding="utf-8").splitlines()
        record = json.loads(lines[1])
        clips = {name: (label, group, side) for name, (label, group, side) in record["clips"].items()}
        return Beginning(settings=dict(record["settings"]), clips=clips)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return Beginning()


@contextmanager
def _locked(out: Path, begin: bool) -> Iterator[None]:
    """Holds the lock on the file that marks a run as unfinished, which is made where a run begins."""
    path = out / UNFINISHED
    with ExitStack() as held:
        try:
            if begin:
                out.mkdir(parents=True, exist_ok=True)
            if sys.platform != "win32":  # Windows has no such locks, and removes no open file
                # For reading, so that the disk can be remounted under it.
                descriptor = open_held(path, os.O_RDONLY | (os.O_CREAT if begin else 0))
                held.callback(release, descriptor)
                _lock(descriptor, out)
            if begin:
                mark_begun(out, Beginning())
                _remove_run(out)
            for folder in (out, out / CHECKPOINTS):
                remove_parts(folder)
        except OSError as error:
            what_else = "give another --out." if begin else f"make it writable, then {go_on(out)}"
            raise RunError(f"{out} cannot be written ({reason_of(error)}); {what_else}") from None
        yield


def _lock(descriptor: int, out: Path) -> None:
    try:
        take(descriptor, out / UNFINISHED)
    except BlockingIOError:
        raise RunError(f"{out} is being trained by another process; wait for it, or give another --out.") from None
    except FileNotFoundError:
        raise RunError(f"{out} was finished by another process just now.") from None


def _remove_run(out: Path) -> None:
    for name in RUN_FOLDERS:
        if (out / name).exists():
            shutil.rmtree(out / name)
    for name in RUN_FILES:
        (out / name).unlink(missing_ok=True)


def _holds_run(out: Path) -> bool:
    """Whether a folder has what every run has from its first epoch on, or the mark of one that was broken off."""
    try:
        if (out / UNFINISHED).is_file() and (out / UNFINISHED).read_text(encoding="utf-8").startswith(_NOT_FINISHED):
            return True
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
                "camera": job.catalog.cameras.get(clip.name, ""),
                "split": job.sides[clip.name],
                "frames": clip.num_frames,
                "fps": None if clip.fps is None else f"{clip.fps:g}",
                "seconds": None if clip.seconds is None else f"{clip.seconds:.3f}",
                "bytes": job.sizes[clip.name],
                "status": status,
            }
        )
    left_out: Sequence[Skip] = (*job.catalog.skipped, *job.catalog.too_short)
    rows += [
        {"path": skip.name, "label": skip.name.split("/")[0], "status": f"skipped: {skip.reason}"} for skip in left_out
    ]
    write_csv(path, CLIPS_COLUMNS, sorted(rows, key=lambda row: str(row["path"])))

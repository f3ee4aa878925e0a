"""The runs below a folder, beside each other: what each reached, on which clips, and where their settings differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from tillwatch.config import early_epochs
from tillwatch.errors import DataError, one_line
from tillwatch.evaluation.audit_report import read_claim
from tillwatch.evaluation.exposure import read_exposure
from tillwatch.evaluation.intervals import Interval
from tillwatch.evaluation.plots import forest_plot
from tillwatch.evaluation.summary import Figure
from tillwatch.files import read_csv, shell_word

#: Lies in a run folder until the run is finished; locked by the process that trains it.
UNFINISHED = "unfinished"

#: Settings that change nothing of what is learnt, or tell only where it lies.
_ASIDE = ("out", "cache", "cache_folder", "checkpoint_minutes", "log", "save_as", "workers")
_FIGURES = ("accuracy", "balanced_accuracy", "event_auroc")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder.

    Attributes:
        name: its path below the folder that was searched.
        finished: whether it is.
        trouble: why it cannot be compared, a sentence; empty if it can.
        split: what its figures are of: "test", or "train" where nothing was held out.
        clips: how many clips they are of.
        figures: accuracy, balanced accuracy and event AUROC, with their intervals where there are any.
        notes: what must stand beside them, in sentences, such as that they leak.
        tested_on: names of those clips.
        epochs, best_epoch: done, and that of the lowest validation loss at full size; None where nothing was validated.
        val_loss: of that epoch.
        seconds: of training, all epochs together.
        settings: its config.yaml.
    """

    name: str
    finished: bool = False
    trouble: str = ""
    split: str = ""
    clips: int = 0
    figures: Mapping[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tested_on: frozenset[str] = frozenset()
    epochs: int = 0
    best_epoch: int | None = None
    val_loss: float | None = None
    seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """All runs below a folder.

    Attributes:
        folder: the folder.
        compared: those with figures, the most accurate first.
        others: those without, each with its trouble.
        differ: settings that are not the same in all of those compared.
        notes: what must be said of the comparison, in sentences.
    """

    folder: Path
    compared: tuple[Run, ...]
    others: tuple[Run, ...]
    differ: tuple[str, ...]
    notes: tuple[str, ...]

    def told(self, run: Run) -> dict[str, str]:
        """Returns a run's settings that are not the same in all, as text."""
        return {name: _as_text(run.settings.get(name)) for name in self.differ}

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the table, its head first."""
        head = ("run", "accuracy", "balanced", "AUROC", "clips", "best epoch", "val. loss", "seconds", "settings")
        return [head, *(self._row(run) for run in self.compared)]

    def _row(self, run: Run) -> tuple[str, ...]:
        return (
            run.name,
            *(str(run.figures[name]) for name in _FIGURES),
            f"{run.clips} {run.split}",
            "-" if run.best_epoch is None else f"{run.best_epoch} of {run.epochs}",
            "-" if run.val_loss is None else f"{run.val_loss:.4f}",
            f"{run.seconds:.0f}",
            ", ".join(f"{name} {text}" for name, text in self.told(run).items()) or "-",
        )

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            "folder": str(self.folder),
            "runs": [
                {
                    "run": run.name,
                    "finished": run.finished,
                    "split": run.split,
                    "clips": run.clips,
                    **{name: _figure_json(run.figures[name]) for name in _FIGURES},
                    "epochs": run.epochs,
                    "best_epoch": run.best_epoch,
                    "val_loss": run.val_loss,
                    "seconds": run.seconds,
                    "settings": {name: _plain(run.settings.get(name)) for name in self.differ},
                }
                for run in self.compared
            ],
            "others": [{"run": run.name, "finished": run.finished, "trouble": run.trouble} for run in self.others],
            "notes": list(self.notes),
        }

    def page(self) -> str:
        """Returns the table and a plot of the accuracies as one page that asks for nothing else."""
        environment = Environment(
            loader=PackageLoader("tillwatch.evaluation"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        head, *rows = self.rows()
        plot = forest_plot([(run.name, run.figures["accuracy"]) for run in self.compared], "accuracy of each run")
        return environment.get_template("runs.html.j2").render(
            title=f"Runs in {self.folder.resolve().name or self.folder}",
            plot=plot if self.compared else "",
            head=head,
            rows=rows,
            notes=[*self.notes, *(f"{run.name}: {run.trouble}" for run in self.others)],
        )


def compare_runs(folder: Path) -> Runs:
    """Reads every run at or below a folder, however it ended.

    Raises:
        DataError: if the folder does not exist, or holds no run.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give one that holds run folders.")
    places = {path.parent for name in ("config.yaml", UNFINISHED) for path in folder.rglob(name) if path.is_file()}
    runs = [_read_run(place, folder) for place in sorted(places)]
    if not runs:
        raise DataError(f"{folder} holds no run: there is no config.yaml in it or in any folder below.")
    compared = sorted((run for run in runs if not run.trouble), key=lambda run: -(run.figures["accuracy"].value or 0))
    names = dict.fromkeys(name for run in compared for name in run.settings if name not in _ASIDE)
    differ = [name for name in names if len({_as_text(run.settings.get(name)) for run in compared}) > 1]
    return Runs(
        folder=folder,
        compared=tuple(compared),
        others=tuple(run for run in runs if run.trouble),
        differ=tuple(differ),
        notes=tuple(_notes(compared)),
    )


def _notes(compared: Sequence[Run]) -> list[str]:
    notes = []
    sets = {run.tested_on for run in compared}
    if len(sets) > 1:
        first = [run.name for run in compared if run.tested_on == compared[0].tested_on]
        notes.append(
            f"the figures are of {len(sets)} different sets of clips (one of them: that of {', '.join(first)}), so "
            "they do not compare; --split-file of one run trains the others on its split."
        )
    elif len(compared) > 1:
        notes.append(
            "choose by validation loss, not by these figures: the best of several by its test flatters itself; "
            "tillwatch compare tells whether two differ by more than chance."
        )
    if trained := [run.name for run in compared if run.split == "train"]:
        notes.append(f"figures of {', '.join(trained)} are of the clips trained on, which says nothing of others.")
    for run in compared:
        notes += [f"{run.name}: {note}" for note in run.notes if run.split != "train"]
    return notes


def _read_run(place: Path, folder: Path) -> Run:
    name = place.relative_to(folder).as_posix()
    name = place.resolve().name if name == "." else name
    if (place / UNFINISHED).exists():
        epochs = _epochs(place / "metrics.csv")
        done = f"{epochs[0]} epochs are done" if epochs is not None else "no epoch is done"
        return Run(name=name, trouble=f"not finished, {done}; go on with: tillwatch train --resume {shell_word(place)}")
    try:
        settings = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or not {"data", "arch"} <= set(settings) or not _all_text(settings):
            raise ValueError("config.yaml is not a run's")
        record = json.loads((place / "evaluation.json").read_text(encoding="utf-8"))
        figures = {key: _figure(record["summary"]["figures"][key]) for key in _FIGURES}
        split = str(record["split"])
        rows = read_csv(place / "predictions.csv")
        epochs = _epochs(place / "metrics.csv", early_epochs(settings.get("early_share", 0), settings.get("epochs", 1)))
        if figures["accuracy"].value is None or epochs is None:
            raise ValueError("it has no accuracy, or no metrics.csv that can be read")
        return Run(
            name=name,
            finished=True,
            split=split,
            clips=int(record["clips"]),
            figures=figures,
            notes=_doubts(record, place),
            tested_on=frozenset(row["path"] for row in rows if row.get("split") in (split, None)),
            epochs=epochs[0],
            best_epoch=epochs[1],
            val_loss=epochs[2],
            seconds=epochs[3],
            settings=settings,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        yaml.YAMLError,
    ) as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)[:200]
        return Run(name=name, finished=True, trouble=f"cannot be read ({told})")


def _doubts(record: Mapping[str, Any], place: Path) -> tuple[str, ...]:
    """Returns what must stand beside a run's figures."""
    exposure = read_exposure(record)
    claim = read_claim(place) or record.get("claim")
    unknown = isinstance(claim, Mapping) and claim.get("kind") == "unknown"
    doubts = ("Nothing says which clips share a source: these figures may flatter.",) if unknown else ()
    return (*(() if exposure is None else exposure.notes), *doubts)


def _epochs(path: Path, early: int = 0) -> tuple[int, int | None, float | None, float] | None:
    """Returns epochs done, the best with its validation loss, and the seconds of all; None if none can be read.

    The first ``early`` are not compared, unless there is no other: losses of small clips are not those of full size.
    """
    try:
        rows = read_csv(path)
        full = rows[min(early, len(rows) - 1) :]
        losses = {int(row["epoch"]): float(row["val_loss"]) for row in full if row["val_loss"]}
        best = min(losses, key=lambda epoch: losses[epoch], default=None)
        seconds = sum(float(row["seconds"]) for row in rows)
        if not all(map(math.isfinite, [seconds, *losses.values()])):
            return None
        return (len(rows), best, None if best is None else losses[best], seconds) if rows else None
    except (OSError, ValueError, KeyError):
        return None


def _figure(told: Mapping[str, Any]) -> Figure:
    value, interval = told["value"], told["interval"]
    if interval is not None and not all(math.isfinite(interval[end]) for end in ("low", "high")):
        raise ValueError("an interval is not finite")
    return Figure(
        value=None if value is None or not math.isfinite(value) else float(value),
        interval=None if interval is None else Interval(low=float(interval["low"]), high=float(interval["high"])),
    )


def _figure_json(figure: Figure) -> dict[str, float | None]:
    around = figure.interval
    return {
        "value": figure.value,
        "low": None if around is None else around.low,
        "high": None if around is None else around.high,
    }


def _all_text(settings: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) for name in settings)


def _plain(value: Any) -> Any:
    """Returns a setting as JSON has it, or else as text."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
    return value


def _as_text(value: Any) -> str:
    if value is None:
        return "not given"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)

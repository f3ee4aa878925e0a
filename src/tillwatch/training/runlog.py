"""What a run says while it goes: metrics.csv, lines of text, a progress bar on terminals."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tillwatch.errors import one_line, reason_of
from tillwatch.files import to_nobody, write_csv


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """One line of metrics.csv.

    Attributes:
        epoch: from 1.
        train_loss: mean cross entropy of the clips drawn, with augmentation and dropout.
        val_loss: mean cross entropy of the validation clips; None if nothing was held out.
        val_balanced_accuracy: mean recall of the classes; None likewise.
        lr: learning rate of the epoch; None for what has none.
        seconds: of the whole epoch, validation included.
        clips_per_s: of training alone, loading included.
        data_wait_s: seconds that training waited for clips.
    """

    epoch: int
    train_loss: float
    val_loss: float | None
    val_balanced_accuracy: float | None
    lr: float | None
    seconds: float
    clips_per_s: float
    data_wait_s: float


class Tracker(Protocol):
    """Another program that is told of a run's epochs."""

    name: str

    def write(self, so_far: Sequence[EpochMetrics]) -> None:
        """Adds those of the epochs that it has not."""

    def end(self, figures: Mapping[str, float]) -> None:
        """Adds what the test gave."""

    def close(self, status: str) -> None:
        """Says how the run ended: "finished", "killed" or "failed"."""


COLUMNS = tuple(field.name for field in fields(EpochMetrics))


class _Lasting(Console):
    """Goes on where whoever read it has left: a run is not to end in the middle of a step for want of a reader."""

    def on_broken_pipe(self) -> None:
        """Writes to nobody from now on."""
        self.quiet = True
        to_nobody(sys.stdout)


class RunLog:
    """Says and writes what happens in a run.

    Args:
        console: where to; a terminal gets progress bars, anything else plain lines.

    Attributes:
        trackers: are told of each epoch too.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _Lasting(highlight=False, soft_wrap=True)
        self.trackers: list[Tracker] = []
        self._noted: set[str] = set()

    def say(self, line: str) -> None:
        """Prints a line as it stands."""
        with suppress(OSError):  # a full disk is no reason to lose what was learnt
            self.console.print(line, markup=False)

    def note(self, line: str) -> None:
        """Prints something the user should know of, marked as such."""
        self.say(f"note: {line}")

    def note_once(self, line: str | None) -> None:
        """Prints a note unless there is none, or it was printed before."""
        if line is not None and line not in self._noted:
            self._noted.add(line)
            self.note(line)

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Callable[[int, int], None]]:
        """Shows how far something is; yields a function to call with (done, in all)."""
        if not self.console.is_terminal:
            yield lambda done, total: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    def write_metrics(self, folder: Path, so_far: Sequence[EpochMetrics]) -> None:
        """Writes metrics.csv in ``folder``, whole, and tells the trackers; what fails is a note, and tried again."""
        try:
            write_csv(folder / "metrics.csv", COLUMNS, [_rounded(epoch) for epoch in so_far])
        except OSError as error:
            self.note(f"metrics.csv was not written ({reason_of(error)}); it is written whole after the next epoch.")
        for tracker in self.trackers:
            self.tell(tracker, partial(tracker.write, so_far))

    def tell(self, tracker: Tracker, action: Callable[[], None]) -> None:
        """Tells a tracker something; where that fails, says so once: training goes on."""
        try:
            action()
        except Exception as error:  # a server that is gone, a disk that is full: whatever a client runs into
            self.note_once(f"{tracker.name} could not be told ({one_line(error)[:200]}); metrics.csv has it all.")

    def epoch(self, folder: Path, so_far: Sequence[EpochMetrics], epochs: int, best: bool) -> None:
        """Writes metrics.csv in ``folder`` and prints the last epoch."""
        self.write_metrics(folder, so_far)
        metrics = so_far[-1]
        validation = (
            ""
            if metrics.val_loss is None
            else f"  validation loss {metrics.val_loss:.4f}, balanced accuracy {metrics.val_balanced_accuracy:.3f}"
        )
        rate = "" if metrics.lr is None else f"lr {metrics.lr:.0e}  "
        self.say(
            f"epoch {metrics.epoch:>2}/{epochs}  train loss {metrics.train_loss:.4f}{validation}  "
            f"{rate}{metrics.seconds:.0f} s, {metrics.clips_per_s:.2f} clips/s"
            f"{'  best so far' if best else ''}"
        )


class NoLog(RunLog):
    """Says and writes nothing: of several processes that train together, one does."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True, force_terminal=False))

    def write_metrics(self, folder: Path, so_far: Sequence[EpochMetrics]) -> None:
        """Leaves it to the first."""


def _rounded(metrics: EpochMetrics) -> dict[str, object]:
    """Losses keep what a float32 holds; times need no microseconds."""
    row: dict[str, object] = asdict(metrics)
    for name in ("train_loss", "val_loss", "val_balanced_accuracy"):
        value = row[name]
        row[name] = None if value is None else f"{value:.8g}"
    for name in ("seconds", "clips_per_s", "data_wait_s"):
        row[name] = f"{row[name]:.3f}"
    return row

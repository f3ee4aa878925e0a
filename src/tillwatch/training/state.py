"""The checkpoint: all that training needs to go on as if it had never stopped, and the files that hold it.

A file is what torch.save makes of :meth:`TrainingState.record`, and after it the SHA-256 of those bytes. It is read
only if that still fits, and then with weights_only=True: nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tillwatch import __version__
from tillwatch.data.catalog import Skip
from tillwatch.data.sampler import ALONE
from tillwatch.errors import RunError, one_line, reason_of
from tillwatch.files import replacing, sync_folder
from tillwatch.models.architectures import save_state_dict, write_tensors
from tillwatch.training.interrupts import Interrupts
from tillwatch.training.runlog import EpochMetrics

CHECKPOINTS = "checkpoints"
BEST = f"{CHECKPOINTS}/best.pth"

FORMAT = 2
_NAME = re.compile(r"epoch-(\d+)-step-(\d+)\.ckpt")
_DIGEST_BYTES = 32
_AT_ONCE = 1 << 20  # bytes

#: What unpickling, and loading what came of it, raise where somebody else wrote the bytes.
_FORGED = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
)


@dataclass
class Progress:
    """Where training stands, beside weights and optimizer.

    Attributes:
        epoch: the one that goes on, from 0.
        step: batches of it that are done.
        loss_sum, clips: of those batches; sum of each clip's loss, and how many clips.
        seconds, data_wait_s: that they took, and of it waited for clips.
        best_loss, best_epoch: lowest loss watched so far, and its epoch.
        stopped: no further epoch is wanted.
        metrics: of the epochs that are over.
        skipped: clips that turned out unreadable, by name.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    clips: int = 0
    seconds: float = 0.0
    data_wait_s: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = 0
    stopped: bool = False
    metrics: list[EpochMetrics] = field(default_factory=list)
    skipped: dict[str, Skip] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where that is, in words."""
        if self.step:
            return f"epoch {self.epoch + 1}, step {self.step}"
        return f"the end of epoch {self.epoch}" if self.epoch else "the beginning"

    def next_epoch(self) -> None:
        """Goes to the start of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum, self.clips, self.seconds, self.data_wait_s = 0.0, 0, 0.0, 0.0


@dataclass(frozen=True, kw_only=True)
class MadeOf:
    """What a learner learns from, beside its settings.

    Attributes:
        clips: names of all clips, in the order that indices count them.
        draws: clips that an epoch shows.
        frozen: digest of the weights around what learns; empty if all of them learn.
    """

    clips: list[str]
    draws: int
    frozen: str = ""


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What a run was begun with, as its config.yaml and clips.csv have it: they are held against this when it goes on.

    Attributes:
        settings: plain values, by the name of the setting; those that may change are not among them.
        clips: label, group and side of each clip, by name.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    clips: dict[str, tuple[str, str, str]] = field(default_factory=dict)


class TrainingState:
    """Everything that changes while a learner learns. Randomness is not part of it: it follows from seed and place.

    Args:
        learner: what learns: a network, or its head.
        optimizer: its optimizer.
        scheduler: of the learning rate; may be replaced.
        precision: Fabric's plugin, which holds the loss scale of fp16.
        made_of: what else the weights depend on; it must be the same again.
        cut: how a step is cut, in words: batch norm takes its statistics of each part.

    Attributes:
        progress: where training stands.
        best: weights of the best epoch so far, on the CPU; None before there is one.
    """

    def __init__(
        self,
        learner: nn.Module,
        optimizer: Any,
        scheduler: ReduceLROnPlateau,
        precision: Any,
        made_of: MadeOf,
        cut: str = ALONE.in_words,
    ) -> None:
        self.learner = learner
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.precision = precision
        self.made_of = made_of
        self.cut = cut
        self.progress = Progress()
        self.best: dict[str, torch.Tensor] | None = None

    def take_best(self) -> None:
        """Makes the present weights the best so far."""
        self.best = {name: value.detach().cpu().clone() for name, value in self.learner.state_dict().items()}

    def load_best(self) -> None:
        """Gives the learner the weights of the best epoch so far; there must be one."""
        assert self.best is not None
        self.learner.load_state_dict(self.best)

    def record(self) -> dict[str, Any]:
        """Returns it as plain values and tensors."""
        progress = asdict(self.progress)
        progress["skipped"] = {name: skip["reason"] for name, skip in progress["skipped"].items()}
        return {
            "format": FORMAT,
            "versions": _versions(next(self.learner.parameters()).device),
            "made_of": asdict(self.made_of),
            "cut": self.cut,
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "precision": self.precision.state_dict(),
            "best": self.best,
            "progress": progress,
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Becomes what :meth:`record` returned.

        Raises:
            RunError: if it is of another learner.
        """
        learner = self.learner.state_dict()
        try:
            groups = self.optimizer.state_dict()["param_groups"]
            if not all(map(_fits, record["optimizer"]["param_groups"], groups)):
                raise ValueError("another optimizer")
            if not _fits(record["scheduler"], self.scheduler.state_dict()):
                raise ValueError("another learning rate")
            if not _fits(record["progress"], self.record()["progress"]):
                raise ValueError("another progress")
            if record["best"] is not None and not _fits(record["best"], learner):
                raise ValueError("other best weights")
            self._check_place(record["progress"], record["best"] is not None)
            self.learner.load_state_dict(record["learner"])
            self.optimizer.load_state_dict(record["optimizer"])
            self.scheduler.load_state_dict(record["scheduler"])
            self.precision.load_state_dict(record["precision"])
            self.best = record["best"]
            progress = dict(record["progress"])
            progress["metrics"] = [EpochMetrics(**row) for row in progress["metrics"]]
            progress["skipped"] = {name: Skip(name, reason) for name, reason in progress["skipped"].items()}
            self.progress = Progress(**progress)
            self._check_moments()
        except _FORGED as error:
            raise RunError(f"the checkpoint is of another network ({one_line(error)[:200]}).") from None

    def _check_place(self, progress: Mapping[str, Any], has_best: bool) -> None:
        """Whether that is a place that training comes to: as many lines of metrics as epochs, the best of them kept."""
        epoch, step, rows = progress["epoch"], progress["step"], progress["metrics"]
        optional = ("val_loss", "val_balanced_accuracy", "lr")
        numbers = [value for row in rows for name, value in row.items() if value is not None or name not in optional]
        if not (0 <= epoch == len(rows) and 0 <= step <= self.made_of.draws and has_best == (epoch > 0)):
            raise ValueError("no place in training")
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("metrics that are no numbers")

    def _check_moments(self) -> None:
        for parameter, moments in self.optimizer.state.items():
            shapes = {name: tuple(moment.shape) for name, moment in moments.items()}
            if shapes != {"step": (), "exp_avg": tuple(parameter.shape), "exp_avg_sq": tuple(parameter.shape)}:
                raise ValueError("other moments than Adam's of these weights")


def _fits(value: Any, like: Any) -> bool:
    """Whether a value has the form of another: names, types, and the shapes of tensors; numbers are of one type."""
    if isinstance(like, torch.Tensor):
        return isinstance(value, torch.Tensor) and (value.shape, value.dtype) == (like.shape, like.dtype)
    if isinstance(like, tuple):
        return isinstance(value, tuple) and len(value) == len(like) and all(map(_fits, value, like))
    if isinstance(like, dict):
        if not isinstance(value, dict):
            return False
        return not like or (value.keys() == like.keys() and all(_fits(value[name], like[name]) for name in like))
    numbers = int | float
    if isinstance(like, numbers) and not isinstance(like, bool):
        return isinstance(value, numbers) and not isinstance(value, bool)
    return type(value) is type(like)


def _versions(device: torch.device) -> dict[str, str]:
    """Returns what the last bits of a result depend on beside data and settings."""
    return {
        "tillwatch": __version__,
        "torch": str(torch.__version__),
        "threads": str(torch.get_num_threads()),
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
    }


class Checkpoints:
    """A run's checkpoints: written aside, synced, renamed; the last two stay; what is damaged is never used.

    Where one cannot be written, the older ones stay, the note says so, and training goes on.

    Args:
        run: the run folder.
        minutes: between two inside an epoch; 0 for one after each step.
        note: where to say what a user should know.
        interrupts: signals that wait to be obeyed.
        writes: whether this process writes; of several that train together, one does.
        asked: returns the signal that one of them was sent, given this one's.

    Attributes:
        begun: what the run was begun with, which each checkpoint tells.
    """

    def __init__(
        self,
        run: Path,
        minutes: float,
        note: Callable[[str], None],
        interrupts: Interrupts,
        *,
        writes: bool = True,
        asked: Callable[[int | None], int | None] = lambda signum: signum,
    ) -> None:
        self.folder = run / CHECKPOINTS
        self.minutes = minutes
        self.note = note
        self.interrupts = interrupts
        self.writes = writes
        self.asked = asked
        self.begun = Beginning()
        self._newest: tuple[Path, Path] | None = None  # the last that was written or read, and the one before it
        self._record: dict[str, Any] | None = None
        self._saved_at = time.monotonic()

    def save(self, state: TrainingState) -> None:
        """Writes a checkpoint and removes all but it and the last before it."""
        if not self.writes:
            return
        self._saved_at = time.monotonic()  # a failed attempt counts: the next comes no sooner
        path = self.folder / f"epoch-{state.progress.epoch + 1:04}-step-{state.progress.step:06}.ckpt"
        if self._newest is not None and path == self._newest[0]:
            return
        try:
            self.folder.mkdir(exist_ok=True)
            with replacing(path, "wb") as file:
                file.write(write_tensors(file, {**state.record(), "begun": asdict(self.begun)}))
            sync_folder(self.folder)
        except OSError as error:
            self.note(f"no checkpoint of {state.progress.place} was written ({reason_of(error)}); {self._stays()}.")
            return
        self._newest = path, self._newest[0] if self._newest is not None else path
        for other in find_checkpoints(self.folder):
            if other not in self._newest:
                with suppress(OSError):  # it is in nobody's way
                    other.unlink()

    def between_batches(self, state: TrainingState) -> None:
        """Writes a checkpoint if it is time, or if a signal asks to stop. The state must be whole.

        Raises:
            Interrupted: if one does.
        """
        asked = self.asked(self.interrupts.asked)
        if asked is not None:
            self.save(state)
            # None leaves before all are here: where one ends, the others are ended, and the first would be in its save.
            self.asked(asked)
            raise self.interrupts.stop(asked, f"at {state.progress.place}; {self._stays()}")
        if time.monotonic() - self._saved_at >= 60 * self.minutes:
            self.save(state)

    def save_best(self, network: nn.Module) -> None:
        """Writes the best epoch's weights for whoever wants them early; training itself keeps them in its state."""
        if not self.writes:
            return
        try:
            self.folder.mkdir(exist_ok=True)
            save_state_dict(self.folder.parent / BEST, network)
        except OSError as error:
            self.note(f"{BEST} was not written ({reason_of(error)}).")

    def read_last(self) -> dict[str, Any] | None:
        """Returns the record of the last checkpoint that is whole; None if there is no checkpoint at all.

        Raises:
            RunError: if there are some and none is whole.
        """
        damaged = []
        for path in reversed(find_checkpoints(self.folder)):
            try:
                record = read_checkpoint(path)
            except RunError as error:
                damaged.append(one_line(error))
                continue
            for reason in damaged:
                self.note(f"{reason} Going on from the one before it, {path.name}.")
            self._newest, self._record = (path, path), record
            return record
        if damaged:
            raise RunError(
                f"{' '.join(damaged)} No checkpoint is left to go on from; remove {self.folder} to let "
                "--resume start at the first epoch."
            )
        return None

    def restore(self, state: TrainingState) -> None:
        """Puts a state where the last checkpoint that was read stands, if one was, and says where that is.

        Raises:
            RunError: if it is of another learner.
        """
        record, self._record = self._record, None
        if record is None:
            return
        if record["made_of"] != asdict(state.made_of):
            self.note("other clips can be read, or other weights are frozen, than before: starting at the first epoch.")
            self._newest = None
            return
        state.restore(record)
        self.note(f"going on from {state.progress.place}.")
        versions = _versions(next(state.learner.parameters()).device)
        if changed := [name for name in versions if record["versions"].get(name) != versions[name]]:
            told = ", ".join(f"{name} was {record['versions'].get(name)} and is {versions[name]}" for name in changed)
            self.note(f"{told}: the weights may differ in their last digits from those of a run without interruption.")
        if (cut := record["cut"]) != state.cut:
            self.note(
                f"a step was {cut} and is {state.cut}: batch norm takes its statistics of other clips together, so the "
                "weights will not be those of a run without interruption."
            )

    def _stays(self) -> str:
        if not self.writes:
            return "the first process says which checkpoint is the last"
        if self._newest is None:
            return "there is none yet, so a run that is broken off starts again"
        return f"the last good checkpoint is {CHECKPOINTS}/{self._newest[0].name}"


def find_checkpoints(folder: Path) -> list[Path]:
    """Returns a folder's checkpoints by the place in training that their names say, the last at the end."""
    found = ((match, path) for path in folder.glob("*.ckpt") if (match := _NAME.fullmatch(path.name)))
    return [path for _, path in sorted(((int(match[1]), int(match[2])), path) for match, path in found)]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, if its bytes are those that were written.

    Raises:
        RunError: if they are not, or it is no checkpoint of this format.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
            while left > 0 and (part := file.read(min(left, _AT_ONCE))):
                digest.update(part)
                left -= len(part)
            if left != 0 or file.read() != digest.digest():
                raise RunError(f"{path} is damaged: its SHA-256 is not that of what was written.")
            file.seek(0)
            record = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({reason_of(error)}).") from None
    except _FORGED as error:
        raise RunError(f"{path} is no checkpoint ({one_line(error)[:200]}).") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise RunError(f"{path} is no checkpoint of this version of Tillwatch.")
    if not _is_whole(record):
        raise RunError(f"{path} is no checkpoint (parts of it are missing).")
    return record


def beginning_of(record: Mapping[str, Any]) -> Beginning:
    """Returns what the run was begun with, as a checkpoint that was read tells it."""
    return Beginning(**record["begun"])


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Whether all is there that is looked at before the state takes what it needs."""
    try:
        begun = beginning_of(record)
        return (
            isinstance(begun.settings, dict)
            and all(len(row) == 3 and all(isinstance(part, str) for part in row) for row in begun.clips.values())
            and isinstance(record["made_of"], dict)
            and isinstance(record["versions"], dict)
            and isinstance(record["cut"], str)
        )
    except _FORGED:
        return False

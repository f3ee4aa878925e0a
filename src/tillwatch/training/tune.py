"""A search of settings on the validation clips, which can be killed and shared; the test clips take no part in it."""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from tillwatch.config import TrainConfig, to_yaml
from tillwatch.data.sampler import derive_seed
from tillwatch.errors import ConfigError, RunError, one_line, reason_of
from tillwatch.files import shell_word, write_csv, write_text
from tillwatch.locks import lock, open_held, release
from tillwatch.models.motion import ARCH as MOTION
from tillwatch.training.guard import NonFiniteError
from tillwatch.training.interrupts import SAME_WITHIN_S, Interrupts
from tillwatch.training.loop import learn_apart
from tillwatch.training.prepare import Job, on_split, paths_read, prepare, resolved
from tillwatch.training.resume import refuse_other_clips, refuse_other_settings, settings_record, write_sides
from tillwatch.training.run_folder import check_run_folder
from tillwatch.training.runlog import EpochMetrics, RunLog
from tillwatch.training.search_space import Space, as_given, parse_space, suggest
from tillwatch.training.state import Checkpoints, TrainingState

STUDY_DB = "study.db"
TUNE_YAML = "tune.yaml"
SPLIT_CSV = "split.csv"
TRIALS_CSV = "trials.csv"
BEST_YAML = "best.yaml"
LOCK = ".lock"

#: Of these it does not matter that they are the same in every process, or the next time.
_FREE = ("out", "cache", "cache_folder", "checkpoint_minutes", "device", "log", "overwrite", "workers")
_TRIAL_STREAM = 7  # of random numbers
_LOCK_S = 60.0  # that SQLite waits for another process


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a search found.

    Attributes:
        trials, pruned: how many were done, and how many of them were broken off early.
        best: number of the best trial; None if none was finished.
        params: its settings.
        val_loss, epoch: its lowest validation loss, and when that was.
        command: trains with them.
    """

    trials: int
    pruned: int
    best: int | None = None
    params: dict[str, Any] | None = None
    val_loss: float | None = None
    epoch: int | None = None
    command: str = ""


def tune(
    data: Path, out: Path, config: TrainConfig, trials: int, search: Sequence[str] = (), log: RunLog | None = None
) -> Tuned:
    """Trains with other settings again and again, and keeps those with the lowest validation loss.

    A trial that does worse than the median of the others at the same epoch is broken off. The same call goes on with a
    search that was interrupted; several processes may work on one, each calling it with the same settings.

    Args:
        data: class folders of clips.
        out: where the search is kept.
        config: the settings that are not searched, and for the first trial all of them.
        trials: how many in all, whoever does them.
        search: what is searched, as :func:`parse_space` takes it.
        log: where to say what happens.

    Raises:
        ConfigError, DataError, ModelError: if settings or data cannot be used.
        RunError: if ``out`` holds something else, or a search of other settings or clips, or cannot be written.
        Interrupted: on SIGTERM or Ctrl-C.
    """
    log = log or RunLog()
    _check(config, trials)
    space = parse_space(search, config)
    if not (out / LOCK).is_file():
        check_run_folder(out, False, reads=paths_read(data, config))
    job = prepare(data, config, log)
    try:
        with _locked(out / LOCK, make=out):
            _claim(data, out, config, space, job)
            study = _open_study(out, config, space)
        log.say(
            f"searching {'; '.join(f'{name} {values}' for name, values in space.items())}: the lowest validation loss "
            f"of {trials} trials; the {sum(side == 'test' for side in job.sides.values())} test clips take no part"
        )
        with Interrupts("the same tillwatch tune goes on", SAME_WITHIN_S) as interrupts:
            while (trial := _next_trial(study, out, config, trials)) is not None:
                _try(trial, study, out, config, space, job, interrupts, log)
        return _write_best(study, data, out, config, job)
    except OSError as error:
        raise RunError(
            f"{out} cannot be written ({reason_of(error)}). Make room or mend it; the same tillwatch tune goes on."
        ) from None
    except _storage_errors() as error:
        cause = error.__cause__ or error  # Optuna's own words guess at what SQLite knows
        reason = one_line(getattr(cause, "orig", None) or cause)[:200]
        raise RunError(
            f"{out / STUDY_DB} cannot be read or written ({reason}). Make room or mend it; "
            "the same tillwatch tune goes on."
        ) from None


def _storage_errors() -> tuple[type[Exception], ...]:
    """Returns what Optuna raises where its database is damaged or its disk full; imported when it is."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return StorageInternalError, SQLAlchemyError


def _check(config: TrainConfig, trials: int) -> None:
    if trials < 1:
        raise ConfigError(f"--trials is {trials}; it must be at least 1.")
    if config.arch == MOTION:
        raise ConfigError(f"--arch {MOTION} has no setting that a search could vary; train it as it is.")
    if not config.hold_out:
        raise ConfigError("--no-hold-out leaves no validation clips to search on; drop it.")
    if config.overwrite:
        raise ConfigError("tillwatch tune replaces nothing; drop --overwrite and give another --out.")
    if find_spec("optuna") is None:
        raise ConfigError("tillwatch tune needs optuna: pip install 'tillwatch[tune]'.")


def _claim(data: Path, out: Path, config: TrainConfig, space: Space, job: Job) -> None:
    """Writes what is searched and the split, or sees that they are the same as before."""
    record = settings_record(resolved(config, job), data, out)
    record["search"] = {name: str(values) for name, values in space.items()}
    if not (out / TUNE_YAML).is_file():
        write_sides(out / SPLIT_CSV, job.sides, job.catalog.clips, job.sizes)
        write_text(out / TUNE_YAML, yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
        return
    try:
        older = yaml.safe_load((out / TUNE_YAML).read_text(encoding="utf-8"))
        refuse_other_settings(out, older, record, _FREE, "")
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise RunError(f"{out / TUNE_YAML} is damaged ({one_line(error)[:200]}); give another --out.") from None
    refuse_other_clips(out, out / SPLIT_CSV, job.sides, job.catalog.clips, job.sizes, "")


def _open_study(out: Path, config: TrainConfig, space: Space) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Opened by us: in an address, a "?" in the folder's name would begin the options.
    opened = partial(sqlite3.connect, out.resolve() / STUDY_DB, timeout=_LOCK_S, check_same_thread=False)
    storage = optuna.storages.RDBStorage(f"sqlite:///{STUDY_DB}", engine_kwargs={"creator": opened})
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=max(2, config.early_epochs + 1))
    study = optuna.create_study(
        storage=storage, study_name="tillwatch", direction="minimize", pruner=pruner, load_if_exists=True
    )
    if not study.get_trials(deepcopy=False) and (given := as_given(config, space)) is not None:
        study.enqueue_trial(given)  # what the search must beat
    return study


def _next_trial(study: Any, out: Path, config: TrainConfig, trials: int) -> Any | None:
    """Returns the next trial; None when all are done or being done.

    A trial whose process is gone is done again with the same settings.
    """
    import optuna

    State = optuna.trial.TrialState  # noqa: N806
    with _locked(out / LOCK):
        for dead in study.get_trials(deepcopy=False, states=(State.RUNNING,)):
            if not _is_held(_mark(out, dead.number)):
                # One that was killed before it chose all has what it was given.
                _do_again(study, {**dead.system_attrs.get("fixed_params", {}), **dead.params})
                study.tell(dead.number, state=State.FAIL)
        known = study.get_trials(deepcopy=False)
        if sum(trial.state in (State.COMPLETE, State.PRUNED, State.RUNNING) for trial in known) >= trials:
            return None
        # A function of seed and number of trials: a search that is run again tries the same.
        seed = derive_seed(config.seed, _TRIAL_STREAM, len(known)) % 2**32
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, constant_liar=True)
        trial = study.ask()
        _hold(_mark(out, trial.number))
        return trial


def _do_again(study: Any, settings: dict[str, Any]) -> None:
    """Lets the next trial be one of these settings; called again, as after a kill, it does no more."""
    import optuna

    waiting = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
    if settings and settings not in [trial.system_attrs.get("fixed_params") for trial in waiting]:
        study.enqueue_trial(settings)


def _try(
    trial: Any,
    study: Any,
    out: Path,
    config: TrainConfig,
    space: Space,
    job: Job,
    interrupts: Interrupts,
    log: RunLog,
) -> None:
    """Trains once, and tells the study what came of it."""
    import optuna

    State = optuna.trial.TrialState  # noqa: N806
    chosen = suggest(trial, space)
    told = ", ".join(f"{name} {value:.3g}" for name, value in chosen.items())
    folder = out / "trials" / f"{trial.number:04}"
    heard = _TrialLog(trial, log)
    started = time.monotonic()
    end, again = partial(study.tell, trial, state=State.FAIL), True
    try:
        settings = replace(config, **chosen)
        apart = _without_test(on_split(job, settings, heard))
        learn_apart(apart, settings, folder, _Unkept(folder, interrupts), heard)
        full = [epoch for epoch in heard.epochs if epoch.epoch > settings.early_epochs]
        best = min(full or heard.epochs, key=_loss)  # losses of another size do not compare
        end, again = partial(study.tell, trial, _loss(best)), False
        what = f"validation loss {_loss(best):.4f} in epoch {best.epoch} of {len(heard.epochs)}"
    except optuna.TrialPruned:
        end, again = partial(study.tell, trial, state=State.PRUNED), False
        what = f"broken off after epoch {len(heard.epochs)}, worse than the median"
    except NonFiniteError as error:
        end, again = partial(study.tell, trial, state=State.PRUNED), False
        what = f"broken off: {one_line(error)[:100]}"
    finally:
        # Under the lock: to others, a trial that runs and is held by nobody is one whose process died.
        with _locked(out / LOCK):
            if again:
                _do_again(study, chosen)
            end()
            _let_go(_mark(out, trial.number))
            _write_trials(study, out, space)
    log.say(f"trial {trial.number}: {told}: {what}, {time.monotonic() - started:.0f} s")


class _TrialLog(RunLog):
    """Tells Optuna of each epoch, which may end the trial; says nothing but what a user must know."""

    def __init__(self, trial: Any, log: RunLog) -> None:
        super().__init__(Console(quiet=True, force_terminal=False))
        self.trial = trial
        self.log = log
        self.epochs: list[EpochMetrics] = []

    def note(self, line: str) -> None:
        self.log.note_once(line)

    def epoch(self, folder: Path, so_far: Sequence[EpochMetrics], epochs: int, best: bool) -> None:
        super().epoch(folder, so_far, epochs, best)
        self.epochs = list(so_far)
        if not math.isfinite(_loss(so_far[-1])):
            return  # the loop ends it, and says where
        self.trial.report(_loss(so_far[-1]), so_far[-1].epoch)
        if len(so_far) < epochs and self.trial.should_prune():
            import optuna

            raise optuna.TrialPruned


class _Unkept(Checkpoints):
    """Writes none: a trial that was broken off is done again. Signals are obeyed all the same."""

    def __init__(self, folder: Path, interrupts: Interrupts) -> None:
        super().__init__(folder, math.inf, lambda note: None, interrupts)

    def save(self, state: TrainingState) -> None:
        """Does nothing."""

    def save_best(self, network: Any) -> None:
        """Does nothing."""

    def _stays(self) -> str:
        return "this trial is done again"


def _without_test(job: Job) -> Job:
    """Returns a job that knows nothing of the test clips."""
    kept = tuple(clip for clip in job.catalog.clips if job.sides[clip.name] != "test")
    sides = {clip.name: job.sides[clip.name] for clip in kept}
    return replace(job, catalog=replace(job.catalog, clips=kept), sides=sides)


def _loss(epoch: EpochMetrics) -> float:
    assert epoch.val_loss is not None, "a search holds clips out"
    return epoch.val_loss


def _write_trials(study: Any, out: Path, space: Space) -> None:
    """Writes trials.csv: number, state, val_loss, epochs, and each setting."""
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "val_loss": None if trial.value is None else f"{trial.value:.8g}",
            "epochs": len(trial.intermediate_values),
            **{name: trial.params.get(name) for name in space},
        }
        for trial in study.get_trials(deepcopy=False)
    ]
    write_csv(out / TRIALS_CSV, ("trial", "state", "val_loss", "epochs", *space), rows)


def _write_best(study: Any, data: Path, out: Path, config: TrainConfig, job: Job) -> Tuned:
    """Writes best.yaml, which trains with the best settings on the same split, and returns what was found."""
    import optuna

    State = optuna.trial.TrialState  # noqa: N806
    pruned = study.get_trials(deepcopy=False, states=(State.PRUNED,))
    complete = study.get_trials(deepcopy=False, states=(State.COMPLETE,))
    done = len(pruned) + len(complete)
    if not complete:
        return Tuned(trials=done, pruned=len(pruned))
    best = min(complete, key=lambda trial: (trial.value, trial.number))
    settings = replace(config, **best.params, split_file=out / SPLIT_CSV)
    write_text(out / BEST_YAML, to_yaml(resolved(settings, job), data.resolve(), out / "best"))
    losses = best.intermediate_values
    command = f"tillwatch train --config {shell_word(out / BEST_YAML)} --out {shell_word(out / 'best')}"
    return Tuned(
        trials=done,
        pruned=len(pruned),
        best=best.number,
        params=dict(best.params),
        val_loss=best.value,
        epoch=min(losses, key=lambda epoch: losses[epoch]),
        command=command,
    )


# Which process does what: locks of the kernel, which go with the process, however that ends

_held: dict[Path, int] = {}


def _mark(out: Path, number: int) -> Path:
    """Returns the file that the process which does a trial holds."""
    return out / "trials" / f"{number:04}" / "running"


@contextmanager
def _locked(path: Path, make: Path | None = None) -> Iterator[None]:
    """Waits until no other process is in such a block on the file."""
    if make is not None:
        make.mkdir(parents=True, exist_ok=True)
    descriptor = open_held(path, os.O_RDWR | os.O_CREAT)
    try:
        lock(descriptor, wait=True)  # on Windows, one process at a time must do
        yield
    finally:
        release(descriptor)


def _hold(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _held[path] = open_held(path, os.O_RDWR | os.O_CREAT)
    lock(_held[path], wait=True)


def _is_held(path: Path) -> bool:
    """Whether a process that lives does the trial."""
    if path in _held:
        return True
    try:
        descriptor = open_held(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        lock(descriptor, wait=False)
    except BlockingIOError:
        return True
    finally:
        release(descriptor)
    return False


def _let_go(path: Path) -> None:
    if (descriptor := _held.pop(path, None)) is not None:
        release(descriptor)
    path.unlink(missing_ok=True)

"""Trainings in processes of their own, to be broken off."""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from apart import start_apart
from conftest import TINY, TINY_BACKBONE
from rich.console import Console

from tillwatch import cli
from tillwatch.config import TrainConfig
from tillwatch.files import DigestWriter
from tillwatch.models.backbones import BACKBONES
from tillwatch.training import finish, loop, runlog
from tillwatch.training.guard import StepGuard
from tillwatch.training.runlog import RunLog
from tillwatch.training.tune import tune

#: In which kind of place something happens, and when it is come to for the how-manieth time in the process.
#: step: before its weights are taken. validation: after a batch. checkpoint: after so many bytes of tensors written.
#: metrics: before metrics.csv is. finish: before each part of what follows the last epoch.
Place = tuple[str, int]
Act = Callable[[], None]


def run_apart(action: Callable[..., None], *arguments: Any, timeout_s: float = 900) -> int:
    """Runs a function of this module in a process of its own; returns its exit code, -9 if it was killed."""
    process = start_apart(action, *arguments)
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        raise TimeoutError("the training did not end")
    assert process.exitcode is not None
    return process.exitcode


# What happens


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_ever() -> None:
    time.sleep(1000)


def signal_group(signum: int, when: Path) -> None:
    """Signals the process and its workers, as a terminal or a service manager does, and writes down when."""
    when.write_text(str(time.monotonic()))
    os.killpg(os.getpgid(0), signum)


# Where it happens


def train(data: Path, run: Path, settings: dict[str, Any], place: Place | None = None, act: Act = die) -> None:
    """Trains, or goes on where there is a run."""
    _make_ready(run.parent / "cache")
    if place is not None:
        at(*place, act)
    log = RunLog(Console(file=sys.stdout, width=10_000))
    if (run / "config.yaml").exists():
        loop.resume(run, log=log)
    else:
        loop.train(data, run, TrainConfig(**{**TINY, **settings}), log)


def search(data: Path, out: Path, trials: int, place: Place | None = None, act: Act = die) -> None:
    """Searches, or goes on where there is a search."""
    _make_ready(out.parent / "cache")
    if place is not None:
        at(*place, act)
    options: dict[str, Any] = {**TINY, "epochs": 3, "group_pattern": r"day\d", "precision": "fp32"}
    tune(data, out, TrainConfig(**options), trials, ["lr=1e-4..1e-1"], RunLog(Console(file=sys.stdout, width=10_000)))


def command(words: list[str], said: Path, place: Place | None = None, act: Act = die) -> None:
    """Runs the command line, the leader of a group; what it says goes to a file."""
    _make_ready(said.parent / "cache")
    os.setsid()
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if place is not None:
        at(*place, act)
    cli.main(words)


def _make_ready(cache: Path) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of workers, as it is outside of tests
    torch.set_num_threads(1)
    BACKBONES["tinynet"] = TINY_BACKBONE
    os.environ["TILLWATCH_CACHE"] = str(cache)


def at(kind: str, count: int, act: Act) -> None:
    """Lets something happen once, at a place."""
    left = [count]

    def counted(function: Callable[..., Any], size: Callable[..., int] = lambda *args: 1) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            before, left[0] = left[0], left[0] - size(*args)
            if before > 0 >= left[0]:
                act()
            return function(*args, **options)

        return call

    def replace(owner: Any, name: str, *size: Callable[..., int]) -> None:
        setattr(owner, name, counted(getattr(owner, name), *size))

    if kind == "step":
        replace(StepGuard, "check")
    elif kind == "validation":
        validate: Any = loop.validate

        def pausing(given: Any) -> Any:
            counting = copy.copy(given)
            counting.pause = counted(given.pause)
            return counting

        loop.validate = lambda *args: validate(*args[:-1], pausing(args[-1]))
    elif kind == "checkpoint":
        replace(DigestWriter, "write", lambda self, data: memoryview(data).nbytes)
    elif kind == "metrics":
        replace(runlog, "write_csv")
    elif kind == "finish":
        for name in ("calibrate", "save_model", "evaluate_split", "publish_or_say_why"):
            replace(finish, name)
    else:
        raise ValueError(kind)


# Disks of their own: seen by one process and its children alone, gone with them


def on_small_disk(data: Path, disk: Path, settings: dict[str, Any], freed_at: int | None, results: Path) -> None:
    """Trains on a disk of 2 MB that is full from step 4 on, and has room again at a later step, or after the end.

    Results: the run; the first exit code and what was said.
    """
    _mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", disk)
    filler = disk / "filler"

    def fill() -> None:
        try:
            with filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            return

    at("step", 4, fill)
    if freed_at is not None:
        at("step", freed_at, filler.unlink)
    code = _said_by(partial(train_as_command, data, disk / "run", settings), results)
    (results / "code").write_text(str(code))
    filler.unlink(missing_ok=True)
    left = sorted(path.name for path in (disk / "run").rglob("*.part"))
    assert not left, left
    if code:
        train(data, disk / "run", settings)
    shutil.copytree(disk / "run", results / "run")


def on_disk_made_read_only(data: Path, disk: Path, settings: dict[str, Any], results: Path) -> None:
    """Trains on a disk that is read-only from step 4 on; it can be written again after the end. Results as above."""
    _mount("-t", "tmpfs", "tmpfs", disk)
    at("step", 4, partial(_mount, "-o", "remount,ro", disk))
    code = _said_by(partial(train_as_command, data, disk / "run", settings), results)
    (results / "code").write_text(str(code))
    _mount("-o", "remount,rw", disk)
    train(data, disk / "run", settings)
    shutil.copytree(disk / "run", results / "run")


def train_as_command(data: Path, run: Path, settings: dict[str, Any]) -> None:
    """Trains, with errors as the command line tells them; the cache is elsewhere than the run."""
    _make_ready(data.parent / "cache")
    flags: list[str] = []
    for name, value in {**TINY, **settings}.items():
        flag = name.replace("_", "-")
        flags += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    cli.main(["train", str(data), "--out", str(run), *flags])


def _said_by(action: Callable[[], None], results: Path) -> int:
    """Runs something that exits, with its output in results/said; returns the code."""
    results.mkdir()
    descriptors = os.dup(1), os.dup(2)
    with (results / "said").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        action()
    except SystemExit as exited:
        return int(exited.code or 0)
    finally:
        sys.stdout.flush()
        os.dup2(descriptors[0], 1)
        os.dup2(descriptors[1], 2)
    return 0


def mounts_of_its_own() -> None:
    """Exits with 0 where a process may have mounts that only it sees."""
    _mount("-t", "tmpfs", "tmpfs", "/mnt")


def _mount(*words: object) -> None:
    if not hasattr(_mount, "apart"):
        assert ctypes.CDLL(None, use_errno=True).unshare(0x00020000) == 0, "CLONE_NEWNS is not permitted"
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        _mount.apart = True  # type: ignore[attr-defined]
    subprocess.run(["mount", *map(str, words)], check=True)

"""Trainings in processes of their own, to be killed: they start from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import TINY, TINY_BACKBONE
from rich.console import Console

from tillwatch import cli
from tillwatch.config import TrainConfig
from tillwatch.files import DigestWriter
from tillwatch.models.backbones import BACKBONES
from tillwatch.training import finish, loop, runlog
from tillwatch.training.guard import StepGuard
from tillwatch.training.runlog import RunLog

#: Where to die: in which kind of place, and when it is come to for the how-manieth time in the process.
#: step: before its weights are taken. validation: after a batch. checkpoint: after so many bytes of tensors written.
#: metrics: before metrics.csv is. finish: before each part of what follows the last epoch.
Place = tuple[str, int]


def run_apart(action: Callable[..., None], *arguments: Any, timeout_s: float = 120) -> int:
    """Runs a function of this module in a process of its own; returns its exit code, -9 if it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=action, args=arguments)
    process.start()
    process.join(timeout_s)
    if process.is_alive():
        process.kill()
        raise TimeoutError("the training did not end")
    assert process.exitcode is not None
    return process.exitcode


def train_apart(
    data: Path, run: Path, settings: dict[str, Any], place: Place | None = None, said: Path | None = None
) -> int:
    """Trains, or goes on where there is a run; returns the exit code."""
    return run_apart(_train, data, run, settings, place, said)


def command_apart(*words: object, said: Path, set_up: Callable[[], None] | None = None) -> int:
    """Runs the command line; what it says goes to a file."""
    return run_apart(_command, [str(word) for word in words], said, set_up)


def _train(data: Path, run: Path, settings: dict[str, Any], place: Place | None, said: Path | None) -> None:
    _make_ready(run.parent / "cache")
    if place is not None:
        _die_at(*place)
    config = TrainConfig(**{**TINY, **settings})
    with Path(os.devnull if said is None else said).open("a") as file:
        log = RunLog(Console(file=file, width=10_000))
        if (run / "config.yaml").exists():
            loop.resume(run, log=log)
        else:
            loop.train(data, run, config, log)


def _command(words: list[str], said: Path, set_up: Callable[[], None] | None) -> None:
    _make_ready(said.parent / "cache")
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if set_up is not None:
        set_up()
    cli.main(words)


def _make_ready(cache: Path) -> None:
    torch.set_num_threads(1)
    BACKBONES["tinynet"] = TINY_BACKBONE
    os.environ["TILLWATCH_CACHE"] = str(cache)


def _die_at(kind: str, count: int) -> None:
    left = [count]

    def counted(function: Callable[..., Any], size: Callable[..., int] = lambda *args: 1) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            left[0] -= size(*args)
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return call

    def replace(owner: Any, name: str, *size: Callable[..., int]) -> None:
        setattr(owner, name, counted(getattr(owner, name), *size))

    if kind == "step":
        replace(StepGuard, "check")
    elif kind == "validation":
        validate: Any = loop.validate
        loop.validate = lambda *args: validate(*args[:-1], counted(args[-1]))
    elif kind == "checkpoint":
        replace(DigestWriter, "write", lambda self, data: memoryview(data).nbytes)
    elif kind == "metrics":
        replace(runlog, "write_csv")
    elif kind == "finish":
        for name in ("calibrate", "save_model", "evaluate_split", "publish_or_say_why"):
            replace(finish, name)
    else:
        raise ValueError(kind)

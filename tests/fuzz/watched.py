"""Things done one by one in a process that is watched: a crash or a hang is noticed, named, and the rest goes on."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from apart import CONTEXT, start_apart
from conftest import TINY_BACKBONE

from tillwatch.data import store
from tillwatch.models.backbones import BACKBONES

HANG_S = 5  # of a processor's time: how long a thing takes by the clock depends on what else the machine does
ASLEEP_S = 120.0  # by the clock, for one that waits and computes nothing

#: Does one thing, given its number: returns what came of it, "read" or why not; anything raised is a failure.
Task = Callable[[int], str]
#: Makes the task in the process that is watched, from what pickles.
MakeTask = Callable[..., Task]


@dataclass(frozen=True)
class Watched:
    """What came of all.

    Attributes:
        outcomes: by number, what each task returned.
        failures: by number, "crashed (SIGSEGV)", "hung" or what it raised.
        grown_mb: how much larger the process became after a quarter of all, as :func:`steady_growth` counts.
        slowest_s: of a processor's time, that one took.
    """

    outcomes: dict[int, str]
    failures: dict[int, str]
    grown_mb: float
    slowest_s: float


def watch(
    make_task: MakeTask, *arguments: Any, count: int, hang_s: int = HANG_S, asleep_s: float = ASLEEP_S
) -> Watched:
    """Does ``count`` things in a process that is started anew where it crashes or hangs."""
    outcomes: dict[int, str] = {}
    failures: dict[int, str] = {}
    sizes: list[int] = []
    slowest, begin = 0.0, 0
    while begin < count:
        ours, theirs = CONTEXT.Pipe(duplex=False)
        process = start_apart(_work, theirs, make_task, arguments, begin, count, hang_s)
        theirs.close()
        try:
            ours.recv()  # it is there, however long that took
            while begin < count:
                used = _processor_s(process.pid)
                while not ours.poll(asleep_s):
                    before, used = used, _processor_s(process.pid)
                    if used - before < asleep_s / 20:  # whoever works on a busy machine is not asleep
                        raise TimeoutError
                number, what, told, seconds, size = ours.recv()
                (outcomes if what == "done" else failures)[number] = told
                sizes.append(size)
                slowest = max(slowest, seconds)
                begin = number + 1
        except EOFError:
            process.join()
            code = process.exitcode or 0
            hung = code == -signal.SIGXCPU
            named = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            failures[begin] = f"hung for {hang_s} s of a processor's time" if hung else f"crashed ({named})"
            begin += 1
        except TimeoutError:
            failures[begin] = f"hung for {asleep_s:g} s, waiting"
            begin += 1
        finally:
            process.kill()
            process.join()
            ours.close()
    return Watched(outcomes, failures, steady_growth(sizes[count // 4 :]) / 1e6, slowest)


def steady_growth(sizes: Sequence[int], stretches: int = 9) -> float:
    """Returns how much is added from stretch to stretch, in the median, times the steps.

    What is added once (a library that only some settings need, or a first large batch) is no growth.
    """
    parts = [part for part in np.array_split(np.array(sizes), stretches) if len(part)]
    steps = np.diff([np.median(part) for part in parts])
    return float(np.median(steps) * len(steps)) if len(steps) else 0.0


def _work(
    results: Connection, make_task: MakeTask, arguments: tuple[Any, ...], begin: int, count: int, hang_s: int
) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of workers, as it is outside of tests
    torch.set_num_threads(1)
    BACKBONES["tinynet"] = TINY_BACKBONE
    store.KEEP_FREE = 0
    warnings.simplefilter("error")  # a user would see each as a line of noise
    with Path(os.devnull).open("w") as nowhere:  # FFmpeg and libjpeg talk of damage past Python
        os.dup2(nowhere.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    task = make_task(*arguments)
    results.send("ready")
    for number in range(begin, count):
        before = time.process_time()
        _allow(before + hang_s)
        try:
            what, told = "done", task(number)
        except Exception as error:
            what, told = "failed", f"raised {type(error).__name__}: {str(error)[:300]}"
        results.send((number, what, told, time.process_time() - before, _resident_bytes()))


def _processor_s(pid: int | None) -> float:
    """Returns the seconds of a processor's time that a process has used; proc_pid_stat(5)."""
    told = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


def _allow(until_s: float) -> None:
    """Lets the kernel end the process when it has used so much of the processor, however stuck it is."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(until_s) + 1, resource.RLIM_INFINITY))


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    if not statm.exists():  # macOS: the most so far, which is as good where it must not grow
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(statm.read_text().split()[1]) * resource.getpagesize()

"""Shares of files scored by several processes at once, each with the model to itself."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from tillwatch.detection.batches import Event, Way, Work, score_shares
from tillwatch.errors import ModelError, RunError, TillwatchError
from tillwatch.models.saved import Classifier

_PATIENCE_S = 5.0  # that a process which is told to stop is given


def score_in_processes(
    load: Callable[[], Classifier], sha256: str, shares: Sequence[Sequence[Work]], way: Way, workers: int
) -> Generator[Event, None, None]:
    """Scores shares as :func:`tillwatch.detection.batches.score_shares` does, several at once.

    Events of one share come in their order, those of several mixed. A share is scored by one process from beginning to
    end; which one changes nothing. The processes share the threads that this one has, and end when it does.

    Args:
        load: reads the model; must be importable by another process.
        sha256: of the model that it should read.
        shares: what is left to do.
        way: how.
        workers: processes, no more than shares.

    Raises:
        RunError: if a process dies.
        TillwatchError: what goes wrong in one.
    """
    workers = min(workers, len(shares))
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")
    waiting = deque(shares)
    processes: dict[Connection[Any, Any], SpawnProcess] = {}
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, load, sha256, way, threads), daemon=True)
            process.start()
            theirs.close()
            processes[ours] = process
            _tell(ours, process, waiting.popleft())
        while processes:
            for pipe in wait(list(processes)):
                assert isinstance(pipe, Connection)
                try:
                    told = pipe.recv()
                except (EOFError, OSError):
                    raise _died(processes[pipe]) from None
                if isinstance(told, TillwatchError):
                    raise told
                if told is not None:
                    yield told
                elif waiting:
                    _tell(pipe, processes[pipe], waiting.popleft())
                else:
                    _tell(pipe, processes[pipe], None)
                    processes.pop(pipe).join()
                    pipe.close()
    finally:
        for pipe, process in processes.items():
            pipe.close()
            process.terminate()
        for process in processes.values():
            process.join(_PATIENCE_S)
            if process.is_alive():
                process.kill()


def _work(pipe: Connection[Any, Any], load: Callable[[], Classifier], sha256: str, way: Way, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the first ends this
    torch.set_num_threads(threads)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # whoever asked is gone
        try:
            classifier = load()
            if classifier.sha256 != sha256:
                raise ModelError("the model has changed since the scan was begun; begin again with --overwrite.")
            while (share := pipe.recv()) is not None:
                with closing(score_shares(classifier, [share], way)) as events:
                    for event in events:
                        pipe.send(event)
                pipe.send(None)
        except TillwatchError as error:
            pipe.send(error)


def _tell(pipe: Connection[Any, Any], process: SpawnProcess, what: Sequence[Work] | None) -> None:
    try:
        pipe.send(what)
    except OSError:
        raise _died(process) from None


def _died(process: SpawnProcess) -> RunError:
    process.join(_PATIENCE_S)
    code = process.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return RunError(
        f"one of the scan's processes {how} (pid {process.pid}); start the same command again to go on, with fewer "
        "--workers if memory ran out."
    )

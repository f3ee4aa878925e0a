"""Ctrl-C and SIGTERM: where nothing may be raised they wait, or are not heard again; elsewhere they put work away."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

#: Those that ask a program to stop.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_later() -> Iterator[None]:
    """Lets both signals wait for the end of the block; in another thread than the main one, nothing.

    Processes that are forked in it do not hear of them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    for number in handlers:
        signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for sent in came:
        signal.raise_signal(sent)


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Lets SIGTERM end the block as Ctrl-C would, so that what it began is put away; exit code 143.

    For work in one process: those that are forked in it would hear of it too. In another thread than the main one,
    nothing.
    """
    if threading.current_thread() is not threading.main_thread() or signal.SIGTERM not in heard_signals():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ignore_signals(seconds: float, before: Mapping[int, Any] | None = None) -> None:
    """Ignores for a while what is heard of both signals, as one is being obeyed; the next goes to whoever had it.

    Args:
        seconds: for how long.
        before: whom they go to then, by signal; unless given, whoever has them now.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    late = _Late(time.monotonic() + seconds, before or {number: handler_of(number) for number in heard_signals()})
    for number in late.then:
        signal.signal(number, late)


def heard_signals() -> tuple[signal.Signals, ...]:
    """Returns those of both that are heard: a shell ignores Ctrl-C for what a script starts in the background."""
    return tuple(number for number in SIGNALS if handler_of(number) != signal.SIG_IGN)


def handler_of(number: int) -> Any:
    """Returns whom a signal goes to, once it is no longer ignored."""
    handler = signal.getsignal(number)
    while isinstance(handler, _Late):
        handler = handler.then[number]
    return handler


@dataclass(frozen=True)
class _Late:
    """Ignores signals until a time of the monotonic clock; then they go to whom ``then`` says."""

    until: float
    then: Mapping[int, Any]

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if time.monotonic() < self.until:
            return
        for one, handler in self.then.items():
            signal.signal(one, handler)
        signal.raise_signal(number)

"""Ctrl-C and SIGTERM where nothing may be raised: they wait, or are not heard again."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Those that ask a program to stop.
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_THEN = "_tillwatch_then"  # of what ignores signals: whom they go to after that


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


def ignore_signals(seconds: float, before: Mapping[int, Any] | None = None) -> None:
    """Ignores both signals for a while, as one is being obeyed; the next one after that goes to whoever had them.

    Args:
        seconds: for how long.
        before: whom they go to then, by signal; unless given, whoever has them now.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    until = time.monotonic() + seconds
    then = before or {number: handler_of(number) for number in SIGNALS}

    def late(number: int, _frame: FrameType | None) -> None:
        if time.monotonic() < until:
            return
        for one, handler in then.items():
            signal.signal(one, handler)
        signal.raise_signal(number)

    setattr(late, _THEN, then)
    for number in then:
        signal.signal(number, late)


def handler_of(number: int) -> Any:
    """Returns whom a signal goes to, once it is no longer ignored."""
    handler = signal.getsignal(number)
    while hasattr(handler, _THEN):
        handler = getattr(handler, _THEN)[number]
    return handler

"""Ctrl-C and SIGTERM in a training: the step is ended, the state is saved, and the message says how to go on."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from tillwatch.errors import Interrupted, TillwatchError
from tillwatch.signals import handler_of, heard_signals, ignore_signals

#: Signals so soon after one another are one, which came twice.
SAME_WITHIN_S = 1.0

_LONG_S = 2.0  # whoever sends a signal often kills after ten; what is saved must be written in the rest


class Left(BaseException):
    """Ends what may be left after a signal, so that the state can be saved."""


class Interrupts:
    """Takes what is heard of the two signals while its block lasts; in another thread than the main one, nothing.

    Within :meth:`deferred` the first signal waits in :attr:`asked` until whoever trains is ready; elsewhere, and
    the second time, it raises at once.

    Args:
        go_on: what to do to go on, for the message.
        same_within_s: signals so soon after one are that one again: a whole group is sent it, and whoever started this
            process hands it on. After the block too, where it is left for a signal.

    Attributes:
        asked: the signal that waits; None if there is none.
    """

    def __init__(self, go_on: str, same_within_s: float = 0.0) -> None:
        self.go_on = go_on
        self.same_within_s = same_within_s
        self._heard_at = -math.inf
        self.asked: int | None = None
        self._deferring = False
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: handler_of(signum) for signum in heard_signals()}
            for signum in self._before:
                signal.signal(signum, self._take)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if self.same_within_s and self._before and kind is not None and issubclass(kind, Interrupted):
            ignore_signals(self.same_within_s, self._before)
            return
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @property
    def overdue(self) -> bool:
        """Whether a signal has waited for so long that what is being done should be left."""
        return self.asked is not None and time.monotonic() - self._heard_at >= _LONG_S

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within :meth:`deferred`, a block that the first signal ends.

        Raises:
            Left: on that signal.
        """
        self._waiting = self._deferring
        try:
            yield
        finally:
            self._waiting = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Lets a first signal wait.

        Raises:
            Interrupted: after the block, if one still waits; or where something fails while one does.
        """
        self._deferring = True
        try:
            yield
        except Exception as error:
            if self.asked is None or isinstance(error, TillwatchError):
                raise
            raise self.stop(self.asked) from error  # of a compiler, say, that the signal has ended
        finally:
            self._deferring = False
        if self.asked is not None:
            raise self.stop(self.asked)

    def stop(self, signum: int, where: str = "") -> Interrupted:
        """Returns what to raise.

        Args:
            signum: the signal.
            where: what is saved, in words.
        """
        return Interrupted(f"interrupted{where and f' {where}'}; {self.go_on}", signum)

    def _take(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._heard_at < self.same_within_s:
            return
        self._heard_at = now
        if not self._deferring or self.asked is not None:
            raise self.stop(signum)
        self.asked = signum
        # Straight to the descriptor: whatever was interrupted may be in the middle of a print.
        with suppress(OSError):  # a pipe whose reader was sent the signal too, a full disk
            os.write(2, b"\ntillwatch: saving, after the step if it is a short one; once more stops at once\n")
        if self._waiting:
            raise Left

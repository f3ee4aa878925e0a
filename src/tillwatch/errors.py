"""Everything that Tillwatch raises on purpose.

    TillwatchError
    ├── ConfigError    a flag, a configuration file, or two settings that exclude each other
    ├── DataError      a data set as a whole: missing folders, one class only, too much damaged
    │   └── ClipError  one clip that cannot be read; a run of many leaves it out and goes on
    ├── ModelError     weights or a model folder: missing, damaged, for another network
    └── RunError       the run folder: exists already, cannot be written

Each message is one line that says what is wrong, where, and what to do about it. The command line prints
it without a traceback and exits with code 2.

`Interrupted` is no error: somebody asked the program to stop, and it says how to go on.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TillwatchError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(TillwatchError):
    """A setting is unknown, malformed or contradicts another."""


class DataError(TillwatchError):
    """A data set cannot be used as it is."""


class ClipError(DataError):
    """One clip cannot be read."""


class ModelError(TillwatchError):
    """Weights or a model folder cannot be used."""


class RunError(TillwatchError):
    """A run folder cannot be read or written."""


class Interrupted(KeyboardInterrupt):
    """A signal ended a training; the message says what is saved and how to go on.

    Attributes:
        signum: of the signal; the command line exits with 128 + signum.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the nearest known name, or an empty string."""
    nearest = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def reason_of(error: OSError) -> str:
    """Returns why the system refused, in its own words: "No space left on device"."""
    return error.strerror or one_line(error)


def one_line(error: BaseException) -> str:
    """Returns an exception's message in one line, for quoting inside another message."""
    return " ".join(str(error).split()) or type(error).__name__

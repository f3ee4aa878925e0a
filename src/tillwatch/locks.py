"""Locks of the kernel on files, which go with the process that holds them, however that ends."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_held: set[int] = set()


def open_held(path: Path, flags: int) -> int:
    """Opens a file that is to be locked; :func:`release` closes it, and every forked process, as workers are, its copy.

    Raises:
        OSError: if that fails.
    """
    descriptor = os.open(path, flags, 0o666)
    _held.add(descriptor)
    return descriptor


def lock(descriptor: int, *, wait: bool) -> None:
    """Locks an opened file; on Windows, which has no such locks, nothing happens.

    Raises:
        BlockingIOError: if another process holds it and there is no waiting.
        OSError: if the file system has no such locks.
    """
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def take(descriptor: int, path: Path) -> None:
    """Locks an opened file without waiting, if it is still the one at its path.

    A file system without such locks keeps nobody out.

    Raises:
        BlockingIOError: if another process holds it.
        FileNotFoundError: if another process has removed it meanwhile.
    """
    try:
        lock(descriptor, wait=False)
    except BlockingIOError:
        raise
    except OSError:
        return
    if not os.path.samestat(os.fstat(descriptor), path.stat()):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def release(descriptor: int) -> None:
    """Closes a file, which unlocks it."""
    _held.discard(descriptor)
    os.close(descriptor)


def _let_go() -> None:
    """Closes what a forked process inherits: a lock must not outlive the process that took it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)

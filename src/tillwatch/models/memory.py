"""Freed memory: kept for the next step of a training, given back to the system by what runs for hours."""

from __future__ import annotations

import ctypes
from functools import cache

# Parameters of glibc's mallopt (malloc.h); see its manual page.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER, _NONE = -1, 0
_GROW_BY_BYTES = 64 << 20


@cache
def keep_freed_memory() -> bool:
    """Makes this process keep the memory that it frees, for as long as it lives.

    By default glibc fetches every large block from the system and gives it back at once. A training step frees and
    fetches the same gigabytes of activations each time, and the system clears each of their pages again: a fifth of a
    step on a CPU.

    Returns:
        Whether it took effect: on Linux with glibc alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, another C library
        return False
    settings = ((_MMAP_MAX, _NONE), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _GROW_BY_BYTES))
    return all(mallopt(parameter, value) for parameter, value in settings)


def give_back_freed_memory() -> bool:
    """Gives the system back what this process has freed.

    glibc keeps small blocks for later, and where frames of megabytes come and go between them the heap is left in
    pieces that no frame fits in: over hours a process grows by a tenth.

    Returns:
        Whether there was anything to give back: on Linux with glibc alone.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError, TypeError):  # another system, another C library
        return False

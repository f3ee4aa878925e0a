"""Freed memory: kept where it can be, and no error elsewhere."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tillwatch.models.memory import give_back_freed_memory, keep_freed_memory

_GLIBC = platform.libc_ver()[0] == "glibc"

# Page faults of 40 blocks of 32 MB, each written and freed: 8,192 pages a block if each is fetched anew.
_FAULTS = """
import resource, torch
from tillwatch.models.memory import keep_freed_memory
{call}
torch.ones(8 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    torch.ones(8 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# A heap in pieces: 100 MB are free between blocks that are not.
_PIECES = """
import resource
from pathlib import Path
from tillwatch.models.memory import give_back_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
blocks = [b"x" * 100_000 for _ in range(2000)]
del blocks[::2]
before = resident()
assert give_back_freed_memory()
print((before - resident()) >> 20)
"""


def _faults(call: str) -> int:
    code = _FAULTS.format(call=call)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(not _GLIBC, reason="the C library is not glibc")
def test_large_blocks_are_fetched_once() -> None:
    # The first blocks make the heap grow; all others find their place in it.
    assert _faults("assert keep_freed_memory()") < _faults("") / 3


@pytest.mark.skipif(not _GLIBC, reason="the C library is not glibc")
def test_a_heap_in_pieces_is_given_back() -> None:
    given = subprocess.run([sys.executable, "-c", _PIECES], capture_output=True, check=True, text=True).stdout
    assert int(given) > 70


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory.__wrapped__() is False
    assert give_back_freed_memory() is False

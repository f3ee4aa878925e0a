"""Freed memory: kept where it can be, and no error elsewhere."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tillwatch.models.memory import keep_freed_memory

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


def _faults(call: str) -> int:
    code = _FAULTS.format(call=call)
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(not _GLIBC, reason="the C library is not glibc")
def test_large_blocks_are_fetched_once() -> None:
    # The first blocks make the heap grow; all others find their place in it.
    assert _faults("assert keep_freed_memory()") < _faults("") / 3


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory.__wrapped__() is False

"""Where and of what a figure was measured: none of another machine, PyTorch or Tillwatch is taken for one of this."""

from __future__ import annotations

import hashlib
import platform
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

import tillwatch


@cache
def here() -> str:
    """Returns the CPU's name, what PyTorch takes of it, PyTorch's version, the threads, and our code's digest."""
    capability = torch.backends.cpu.get_cpu_capability()
    threads = f"{torch.get_num_threads()} threads"
    return f"{_cpu()}, {capability}, torch {torch.__version__}, {threads}, code {_code()}"


def _code() -> str:
    package = Path(tillwatch.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

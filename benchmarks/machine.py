"""Where a figure was measured, so that none of another machine or another PyTorch is taken for one of this."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

import torch


def here() -> str:
    """Returns the CPU's name, the instructions that PyTorch takes of it, PyTorch's version and the threads."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{_cpu()}, {capability}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

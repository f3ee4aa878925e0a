"""What is done in processes that may not have much memory."""

from __future__ import annotations

import resource
from pathlib import Path

from conftest import TINY_BACKBONE

from tillwatch.models.backbones import BACKBONES
from tillwatch.training.memory import StepSize, fits, free_bytes


def refused_memory() -> None:
    """Tries steps in a process that may have one gigabyte more than it has."""
    size = StepSize(shape=(3, 16, 256, 256), device="cpu", precision="fp32")
    BACKBONES["tinynet"] = TINY_BACKBONE
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + 10**9, has + 10**9))
    assert free_bytes() <= 10**9  # type: ignore[operator]
    assert not fits("tinynet", size, 128)  # their frames alone are 1.6 GB
    assert fits("tinynet", size, 1)

"""Scans in processes of their own, to be killed, with the tests' tiny network: they start with everything imported."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from apart import start_apart
from conftest import TINY_BACKBONE

from tillwatch.cli import main
from tillwatch.detection import scanner  # noqa: F401  so that the forkserver has it
from tillwatch.models.backbones import BACKBONES
from tillwatch.models.saved import Classifier, load_model


def load_tiny(run: Path) -> Classifier:
    """Reads a run of the tiny network, in a process that does not know it yet."""
    BACKBONES["tinynet"] = TINY_BACKBONE
    return load_model(run, device="cpu")


def scan(arguments: Sequence[str]) -> None:
    """The command line, without its output."""
    BACKBONES["tinynet"] = TINY_BACKBONE
    sys.stdout = sys.stderr = io.StringIO()
    main(["scan", *arguments])


def start_scan(*arguments: object) -> BaseProcess:
    """Starts ``tillwatch scan`` in a process of its own."""
    return start_apart(scan, list(map(str, arguments)))


def load_other(run: Path) -> Any:
    """Loads a model that says to be another."""
    model = load_tiny(run)
    model.sha256 = "another"
    return model


def die(run: Path) -> Any:
    """Ends the process in place of loading."""
    os.kill(os.getpid(), signal.SIGKILL)

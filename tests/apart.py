"""Processes of their own, started from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")

#: What is done in them; all of it, for there is one server, and the first to need it starts it.
_ACTIONS = [
    "training.broken_off",
    "training.together",
    "training.memory_tasks",
    "fuzz.tasks",
    "detection.scanning_apart",
]


def start_apart(action: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Starts a function of one of these modules in a process of its own."""
    CONTEXT.set_forkserver_preload(_ACTIONS)
    process = CONTEXT.Process(target=action, args=arguments)
    # The server looks for modules where Python does by itself, and says nothing of those that it does not find.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        process.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return process

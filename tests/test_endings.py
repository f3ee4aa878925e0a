"""How the program ends when it is told to stop, or when nobody is left to read what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from tillwatch.signals import handler_of, ignore_signals, signals_later
from tillwatch.threads import thread_pool
from tillwatch.training.interrupts import Interrupts
from tillwatch.training.runlog import RunLog

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such signals and pipes there")

STOPPED = """
import gc, signal, sys
from tillwatch import cli
from tillwatch.errors import Interrupted

def app(*_words, **_options):
    raise RAISED

def collect():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)

cli.app, gc.collect, sys.argv = app, collect, ["tillwatch"]
cli.main()
"""


def python(
    script: str, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], stdout=stdout, stderr=stderr, text=True, timeout=120, check=False
    )


@pytest.fixture
def nobody() -> int:
    """The end of a pipe that nobody reads."""
    theirs, ours = os.pipe()
    os.close(theirs)
    return ours


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        ('Interrupted("interrupted; go on", 15)', 143, "tillwatch: interrupted; go on\n"),
        ("KeyboardInterrupt", 130, "tillwatch: interrupted\n"),
    ],
)
def test_a_further_signal_breaks_into_no_ending(raised: str, code: int, says: str) -> None:
    ended = python(STOPPED.replace("RAISED", raised))
    assert (ended.returncode, ended.stderr) == (code, says)


def test_the_last_line_that_nobody_reads_changes_no_exit_code(nobody: int) -> None:
    script = STOPPED.replace("RAISED", 'Interrupted("interrupted; go on", 15)')
    assert python(script, stderr=nobody).returncode == 143
    assert python("from tillwatch.cli import main; main(['report', 'nowhere'])", stderr=nobody).returncode == 2


def test_a_run_goes_on_where_its_reader_has_left(nobody: int) -> None:
    script = """
import sys
from tillwatch.training.runlog import RunLog
log = RunLog()
for _ in range(3):
    log.say("a line")
print("still here", file=sys.stderr)
"""
    ended = python(script, stdout=nobody)
    assert (ended.returncode, ended.stderr) == (0, "still here\n")


def test_a_run_goes_on_where_its_log_is_on_a_full_disk() -> None:
    with Path("/dev/full").open("w") as full:
        log = RunLog(Console(file=full))
        log.say("a line")
        log.note("another")
        with pytest.raises(OSError, match="No space"):
            log.console.print("or else")
        with pytest.raises(OSError, match="No space"):
            full.close()


def test_a_signal_is_taken_where_nobody_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_descriptor: int, _data: bytes) -> int:
        raise BrokenPipeError

    with Interrupts("go on") as interrupts:
        monkeypatch.setattr(os, "write", write)
        interrupts._deferring = True
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.undo()
        assert interrupts.asked == signal.SIGTERM


def test_signals_wait_for_the_end_of_a_block() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: came.append(number))
    try:
        with signals_later():
            signal.raise_signal(signal.SIGTERM)
            assert came == []
        assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ignoring_twice_leaves_whoever_had_the_signals() -> None:
    before = {number: handler_of(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ignore_signals(60)
        ignore_signals(60)
        signal.raise_signal(signal.SIGTERM)
        assert {number: handler_of(number) for number in before} == before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_pool_that_is_left_begins_nothing_more() -> None:
    begun: list[int] = []
    release = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        release.wait(30)

    def leave() -> None:
        with thread_pool(1) as pool:
            for number in range(20):
                pool.submit(work, number)
            threading.Timer(0.2, release.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert begun == [0]

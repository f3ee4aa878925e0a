"""One process for each device: where this one stands among them, and the command that starts those of a machine.

Nothing here imports torch: the process that starts the others does no more than watch them.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from tillwatch.errors import ConfigError, RunError
from tillwatch.files import shell_word
from tillwatch.signals import heard_signals

#: The process that started this one; it must not be outlived.
LAUNCHER = "TILLWATCH_LAUNCHER"

_GRACE_S = 15.0  # that the others have to end by themselves when one has failed, before they are told to
_ASKED_GRACE_S = 2.0  # the same where the first was asked to end, and has
_LAST_S = 8.0  # and then, before they are killed
_TAIL_LINES = 100


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a process stands among those that train together, as torchrun and :func:`launch` say in the environment.

    Attributes:
        rank, world: among all of them, and how many they are.
        local_rank, local_world: among those of this machine, and how many those are.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int

    @property
    def nodes(self) -> int:
        """How many machines there are."""
        return self.world // self.local_world


def standing(environment: Mapping[str, str] = os.environ) -> Standing | None:
    """Returns where this process stands; None if it was started by itself.

    Raises:
        ConfigError: if machines have different numbers of processes.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= environment.keys():
        return None
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    found = Standing(*(int(environment[name]) for name in names))
    if found.world % found.local_world:
        raise ConfigError(
            f"{found.world} processes are not the same number on each machine ({found.local_world} on this one); start "
            "as many on each."
        )
    return found if found.world > 1 else None


def launch(devices: int, nodes: int, run: Path, command: Sequence[str] | None = None) -> int:
    """Runs this very command once for each device of this machine, until all have ended.

    Where one fails, the others are ended too, and the last line on standard error is why it did.

    Args:
        devices: of this machine.
        nodes: machines that train together; if there are several, MASTER_ADDR, MASTER_PORT and NODE_RANK say which
            this one is, and where the first is.
        run: the run folder, to say how to go on.
        command: what to run; this process's own command unless given.

    Returns:
        The exit code: 0, or that of the first that failed.

    Raises:
        ConfigError: if those are wanted and not there.
    """
    environment = {**os.environ, **_meeting_point(nodes), LAUNCHER: str(os.getpid())}
    node = int(environment["NODE_RANK"])
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    members: list[_Member] = []
    hand_on = _HandOn()
    before = {number: signal.signal(number, hand_on) for number in heard_signals()}
    try:
        for local in range(devices):
            rank = node * devices + local
            numbers = {
                "RANK": rank,
                "WORLD_SIZE": devices * nodes,
                "LOCAL_RANK": local,
                "LOCAL_WORLD_SIZE": devices,
                "GROUP_RANK": node,
            }
            own = {**environment, **{name: str(number) for name, number in numbers.items()}}
            members.append(_Member(rank, command or [sys.executable, *sys.orig_argv[1:]], own))
        hand_on.to(members[0])
        failed = _wait(members, hand_on)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for member in members:
            member.end()
    if failed is None:
        return 0
    reason = failed.reason(devices * nodes, run)
    if failed.rank > 0 and failed.process.returncode > 0 and any(line.startswith("Traceback") for line in failed.tail):
        print(*failed.tail, sep="\n", file=sys.stderr)
    elif failed.rank > 0 or not failed.tail or failed.tail[-1] != reason:
        print(reason, file=sys.stderr, flush=True)
    return failed.exit_code


def _meeting_point(nodes: int) -> dict[str, str]:
    if nodes > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
        if missing:
            raise ConfigError(
                f"--num-nodes {nodes} needs {' and '.join(missing)} in the environment of each machine: address and a "
                f"free port of the first, and which this is, from 0 to {nodes - 1}. torchrun sets them too."
            )
        node = os.environ["NODE_RANK"]
        if not (node.isdecimal() and int(node) < nodes):
            raise ConfigError(f"NODE_RANK is {node!r}; with --num-nodes {nodes} it must be from 0 to {nodes - 1}.")
        return {}
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}


def free_port() -> int:
    """Returns a port of this machine where nobody listens, to meet at.

    It is below those that systems hand out to whoever connects (RFC 6335 calls them dynamic; Linux begins at 32768):
    one of those may be taken between here and the first process's call for it.

    Raises:
        RunError: if none of a hundred is free.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise RunError("no free port between 20000 and 32000 for the processes to meet at; end what holds them.")


class _Member:
    """One of the processes; the first's standard error is passed on as it comes, the end of each's is kept."""

    def __init__(self, rank: int, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.rank = rank
        # A session of its own: the terminal's Ctrl-C then reaches the launcher alone, which hands it on once.
        self.process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, start_new_session=True, text=True, errors="replace"
        )
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self.tail.append(line.rstrip())
            if self.rank == 0:
                print(line.rstrip(), file=sys.stderr, flush=True)

    @property
    def exit_code(self) -> int:
        code = self.process.returncode
        return 128 - code if code < 0 else code

    def reason(self, world: int, run: Path) -> str:
        code = self.process.returncode
        if code < 0:
            name = signal.Signals(-code).name
            how = " (by the system, if it ran out of memory)" if name == "SIGKILL" else ""
            can_go_on = (run / "config.yaml").is_file()
            then = f"; go on with: tillwatch train --resume {shell_word(run)}" if can_go_on else ""
            return f"tillwatch: error: process {self.rank} of {world} was ended by {name}{how}{then}"
        said = [line for line in self.tail if line]
        return said[-1] if said else f"tillwatch: error: process {self.rank} of {world} ended with exit code {code}"

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def end(self) -> None:
        """Kills the process if it runs, and hears its last words."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)  # a worker of it that lives a little longer holds the pipe
        if not self._reader.is_alive() and self.process.stderr is not None:
            self.process.stderr.close()


class _HandOn:
    """Hands signals to the first process: those that train together agree on when to stop.

    What comes before all are started waits until they are: processes that nobody had noted would live on.
    """

    def __init__(self) -> None:
        self._first: _Member | None = None
        self._came: list[int] = []
        self._asked = False

    @property
    def grace_s(self) -> float:
        """How long the others may take to end, in seconds, once one has.

        Asked before it has begun to train, the first ends alone, and the others would wait for it. As long as it has
        not ended, it may be saving, and is not to be hurried.
        """
        ended = self._first is not None and self._first.process.poll() is not None
        return _ASKED_GRACE_S if self._asked and ended else _GRACE_S

    def to(self, first: _Member) -> None:
        """Says who is the first, and hands it what came before."""
        self._first = first
        for number in self._came:
            first.signal(number)

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self._asked = True
        if self._first is None:
            self._came.append(number)
        else:
            self._first.signal(number)


def _wait(members: Sequence[_Member], hand_on: _HandOn) -> _Member | None:
    """Waits until all have ended; once one has failed, ends the others. Returns the first that failed."""
    failed: _Member | None = None
    failed_at, told = 0.0, False
    while running := [member for member in members if member.process.poll() is None]:
        if failed is None:
            failed = next((member for member in members if member.process.poll()), None)
            failed_at = time.monotonic()
        waited = 0.0 if failed is None else time.monotonic() - failed_at
        if waited > hand_on.grace_s and not told:
            told = True
            for member in running:
                member.signal(signal.SIGTERM)
        if waited > hand_on.grace_s + _LAST_S:
            for member in running:
                member.end()
        time.sleep(0.1)
    return failed or next((member for member in members if member.process.returncode), None)


def refuse_launch(devices: int, nodes: int) -> RunError:
    """Returns what to raise where several devices are wanted and nobody started their processes."""
    return RunError(
        f"{devices * nodes} devices need a process each, which the command tillwatch train starts, or torchrun; "
        "elsewhere training takes one device."
    )

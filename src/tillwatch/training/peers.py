"""The other processes of a training: meeting them, and noticing within a minute that one is gone.

A process that ends closes its connections, which those that wait for it see at once; but one that hangs, a machine that
loses its power or a GPU's library that waits for ever are seen by nobody. So each process counts up a number in the
store that they met at, every second, and ends itself when another's has stood still for too long, or the store itself,
which the first process holds, has not answered for as long.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from tillwatch.errors import RunError
from tillwatch.training.launch import LAUNCHER, Standing

#: How long the processes may take to find each other.
MEET_WITHIN = timedelta(minutes=10)

_BEAT_S = 1.0
_STILL_S = 25.0  # without a beat: gone
_TO_SAY_WHY_S = 5.0  # from a lost connection to the last word of who is gone
_TO_NOTICE_S = 12.0  # from one's failure to the end of those that its failure has not reached in another way
_FAILED, _LEFT = "failed", b"left"


class Peers:
    """The processes that train together.

    Args:
        standing: this one's place among them.

    Raises:
        RunError: if the others do not come.
    """

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self.others = [rank for rank in range(standing.world) if rank != standing.rank]
        try:
            self.store, _, _ = next(rendezvous("env://", standing.rank, standing.world, timeout=MEET_WITHIN))
            self._own = self.store.clone()  # a connection of its own, for another thread
            self._beat(b"0")
            self.store.wait([self._key(rank) for rank in range(standing.world)], MEET_WITHIN)
        except (dist.DistError, RuntimeError, OSError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise RunError(
                f"not all {standing.world} processes came to {where} within {MEET_WITHIN.seconds // 60} minutes; start "
                f"the same command on each machine ({str(error).splitlines()[0][:120]})."
            ) from None
        self._ended = threading.Event()
        self._reached = time.monotonic()  # the store, for the last time
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch_the_store, daemon=True).start()

    def fail(self, reason: str) -> None:
        """Leaves word of why this process ends; the first one's word stays."""
        with suppress(Exception):  # nobody may be left to read it
            self._own.compare_set(_FAILED, "", f"{self.standing.rank} {reason}")

    def leave(self, *, last: bool = False) -> None:
        """Stops watching and being watched.

        Args:
            last: stay a little where others have not left: they may want to read why this one ends, and the first
                process holds the store.
        """
        self._ended.set()
        self._thread.join(5)
        until = time.monotonic() + _TO_SAY_WHY_S
        with suppress(Exception):  # the store may be gone already
            self._beat(_LEFT)
            while last and set(self._beats().values()) != {_LEFT} and time.monotonic() < until:
                time.sleep(0.1)

    def why_lost(self, error: BaseException) -> str | None:
        """Returns who is gone and why, if an error is that of a lost connection; else None."""
        if not isinstance(error, dist.DistError) and not any(
            word in str(error) for word in ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
        ):
            return None
        until = time.monotonic() + _TO_SAY_WHY_S
        try:
            before = self._beats()
            while time.monotonic() < until:
                if said := self._said():
                    return said
                time.sleep(0.2)
            gone = [rank for rank, beat in self._beats().items() if beat == before[rank] and beat != _LEFT]
        except Exception:  # the store is gone, and with it who holds it
            return self._gone([0])
        return self._gone(gone or self.others)

    def _gone(self, ranks: list[int]) -> str:
        names = ", ".join(map(str, ranks))
        return f"process {names} of {self.standing.world} is gone without a word: killed, or its machine is."

    def _key(self, rank: int) -> str:
        return f"beat/{rank}"

    def _beat(self, value: bytes) -> None:
        self._own.set(self._key(self.standing.rank), value)

    def _beats(self) -> dict[int, bytes]:
        return dict(zip(self.others, self._own.multi_get([self._key(rank) for rank in self.others]), strict=True))

    def _said(self) -> str | None:
        if not self._own.check([_FAILED]):
            return None
        rank, _, reason = self._own.get(_FAILED).decode().partition(" ")
        return f"process {rank} of {self.standing.world} ended: {reason}"

    def _watch(self) -> None:
        """Counts up, looks at the others, and ends the process where one of them is no more."""
        count = 0
        seen: dict[int, tuple[Any, float]] = {}
        failed_at: float | None = None
        launcher = os.environ.get(LAUNCHER)
        while not self._ended.wait(_BEAT_S):
            if launcher is not None and os.getppid() != int(launcher):
                self._end("the command that started it is gone.")
            now = time.monotonic()
            try:
                count += 1
                self._beat(str(count).encode())
                beats, said = self._beats(), self._said()
                self._reached = time.monotonic()
            except Exception:
                if now - self._reached > _TO_NOTICE_S and not self._ended.is_set():
                    self._end(self._gone([0]))
                continue
            for rank, beat in beats.items():
                if beat == _LEFT or rank not in seen or seen[rank][0] != beat:
                    seen[rank] = beat, now
            if still := [rank for rank, (_, since) in seen.items() if now - since > _STILL_S]:
                self._end(self._gone(still))
            failed_at = failed_at or (now if said else None)
            if said and failed_at is not None and now - failed_at > _TO_NOTICE_S:
                self._end(said)

    def _watch_the_store(self) -> None:
        """Ends the process where the store does not answer: asked by the other thread, it may keep that for minutes."""
        while not self._ended.wait(_BEAT_S):
            if time.monotonic() - self._reached > _STILL_S:
                self._end(self._gone([0]))

    def _end(self, reason: str) -> None:
        """Ends the process from this thread: the main one may wait for ever for who is gone."""
        os.write(2, f"tillwatch: error: {' '.join(reason.split())}\n".encode())
        os._exit(2)

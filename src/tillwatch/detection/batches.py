"""Recordings to batches of windows to scores: decoding and the network at the same time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from tillwatch.detection.cameras import Source
from tillwatch.detection.gate import is_still
from tillwatch.detection.results import WindowScore
from tillwatch.detection.sampling import Sampler, WindowFrames
from tillwatch.detection.windows import Grid
from tillwatch.errors import DataError, ModelError, one_line
from tillwatch.models.memory import give_back_freed_memory
from tillwatch.models.saved import Classifier

#: Windows in one forward pass. Part of what a scan is: scores differ in their last digits with the batch.
BATCH_SIZE = 8

#: Files share batches until they hold so many windows; then new batches begin, in whatever process.
SHARE_SIZE = 8 * BATCH_SIZE

_DECIMALS = 8  # of probabilities, in every file
_GATED_AT_ONCE = 64  # windows gated in a row that are noted together
_AHEAD = 2 * BATCH_SIZE  # windows that wait for the network: some 30 MB
_MOST_DECODERS = 8  # each holds the pictures that others refer to: of 1080p some 20 MB
_BATCHES_BETWEEN = 4  # from one giving back of memory to the next

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Work:
    """A file of which something is left to do.

    Attributes:
        file: its place among all files.
        source: what to scan of it.
        done: its windows that were scored or gated before.
    """

    file: int
    source: Source
    done: int = 0


@dataclass(frozen=True, kw_only=True)
class Way:
    """How files are scanned.

    Attributes:
        grid: where windows lie.
        gate: "auto" skips windows in which nothing moves, "off" scores all.
    """

    grid: Grid
    gate: Literal["auto", "off"] = "off"


@dataclass(frozen=True)
class Scored:
    """The windows of a batch and those gated among them, each with the place of its file."""

    rows: tuple[tuple[int, WindowScore], ...]


@dataclass(frozen=True)
class Ended:
    """A file was read to its end, and all its windows are scored."""

    file: int
    seconds: float
    gaps: int
    pauses_s: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LeftOut:
    """A file cannot be scanned."""

    file: int
    reason: str


Event = Scored | Ended | LeftOut


@dataclass(frozen=True)
class _Gated:
    """A window in which nothing moves; its frames are let go."""

    file: int
    score: WindowScore


@dataclass(frozen=True)
class _ShareEnd:
    """What follows begins a new batch."""


_Read = tuple[int, WindowFrames] | _Gated | Ended | LeftOut | _ShareEnd


def shares_of(sources: Sequence[Source], seconds: Sequence[float], grid: Grid) -> list[list[int]]:
    """Divides files into shares that have no batch in common, so that any process may take any of them.

    Args:
        sources: all files, in order.
        seconds: that each says it lasts, 0 for one that does not say.
        grid: where windows lie.

    Returns:
        The places of each share's files: neighbours until they come to :data:`SHARE_SIZE` windows, so that short files
        fill batches together; a file that does not say how long it is ends its share.
    """
    shares: list[list[int]] = [[]]
    windows = 0.0
    for file, (source, lasts) in enumerate(zip(sources, seconds, strict=True)):
        shares[-1].append(file)
        windows += lasts / float(grid.stride) * len(source.regions)
        if windows >= SHARE_SIZE or not lasts:
            shares.append([])
            windows = 0.0
    return [share for share in shares if share]


def score_shares(classifier: Classifier, shares: Sequence[Sequence[Work]], way: Way) -> Generator[Event, None, None]:
    """Scores what is left of shares, one after the other, and yields what is done as it is.

    Batches are of windows in the order of files, times and regions. A :class:`Scored` ends where no window waits for
    the network, so whoever goes on behind any of them makes the same batches.

    Args:
        classifier: the model.
        shares: as :func:`shares_of` divides files, less what is done.
        way: how they are scanned.

    Raises:
        ModelError: if the scores are not finite.
    """
    batches = 0
    batch: list[tuple[int, WindowFrames]] = []
    seen: list[_Gated | None] = []  # the windows of the batch, None for each, with those gated among them
    waiting: list[Ended | LeftOut] = []  # a file has ended only once all its windows are scored

    def work_off() -> Iterator[Event]:
        nonlocal batches
        if seen:
            scores = iter(_scores(classifier, batch) if batch else [])
            yield Scored(tuple(next(scores) if one is None else (one.file, one.score) for one in seen))
            batch.clear()
            seen.clear()
            batches += 1
            if batches % _BATCHES_BETWEEN == 0:
                give_back_freed_memory()
        yield from waiting
        waiting.clear()

    with closing(_read_ahead(_read_all(classifier, shares, way), _AHEAD)) as reading:
        for read in reading:
            if isinstance(read, tuple):
                batch.append(read)
                seen.append(None)
                full = len(batch) == BATCH_SIZE
            elif isinstance(read, _Gated):
                seen.append(read)
                full = not batch and len(seen) >= _GATED_AT_ONCE
            elif isinstance(read, _ShareEnd):
                full = True
            else:
                waiting.append(read)
                full = not batch
            if full:
                yield from work_off()


def _read_all(classifier: Classifier, shares: Sequence[Sequence[Work]], way: Way) -> Iterator[_Read]:
    for share in shares:
        for work in share:
            yield from _read_file(classifier, work, way)
        yield _ShareEnd()


def _read_file(classifier: Classifier, work: Work, way: Way) -> Iterator[_Read]:
    path = work.source.path
    sampler = Sampler(
        path=path,
        regions=work.source.regions,
        grid=way.grid,
        reading=classifier.spec.reading,
        threads=min(torch.get_num_threads(), _MOST_DECODERS),
    )
    try:
        for shown in sampler.read(work.done):
            # Of one frame nothing can be told.
            if way.gate == "auto" and shown.window.available > 1 and is_still(shown.frames):
                yield _Gated(work.file, _window_score(shown, ()))
            else:
                yield work.file, shown
    except DataError as error:
        yield LeftOut(work.file, one_line(error).removeprefix(f"{path}: ").rstrip("."))
    else:
        yield Ended(work.file, sampler.seconds, sampler.gaps, sampler.pauses_s, tuple(sampler.notes))


def _scores(classifier: Classifier, batch: Sequence[tuple[int, WindowFrames]]) -> list[tuple[int, WindowScore]]:
    frames = torch.from_numpy(np.stack([shown.frames for _, shown in batch]))
    place = classifier.transform.place()
    probabilities = classifier.probabilities(classifier.transform.batch(frames, [place] * len(batch)))
    if not np.isfinite(probabilities).all():
        raise ModelError("the scores are not finite; the weights are broken.")
    return [
        (file, _window_score(shown, tuple(round(p, _DECIMALS) for p in row.tolist())))
        for (file, shown), row in zip(batch, probabilities, strict=True)
    ]


def _window_score(shown: WindowFrames, probabilities: tuple[float, ...]) -> WindowScore:
    return WindowScore(
        region=shown.region,
        number=shown.window.number,
        start_s=round(float(shown.window.start), 6),
        end_s=round(float(shown.window.end), 6),
        frames=shown.window.available,
        probabilities=probabilities,
    )


def _read_ahead(items: Iterator[Item], most: int) -> Generator[Item, None, None]:
    """Runs an iterator in a thread of its own, at most so many items ahead; what it raises is raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(most)
    stopped = threading.Event()

    def put(kind: bool, what: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put((kind, what), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            for item in items:
                if not put(True, item):
                    return
            put(False, None)
        except BaseException as error:  # handed to the reader, whatever it is
            put(False, error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            is_item, what = ready.get()
            if is_item:
                yield what
            elif what is None:
                return
            else:
                raise what
    finally:
        stopped.set()
        thread.join()

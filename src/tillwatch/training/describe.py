"""Clips to rows of numbers for what is no network: in parallel, and kept in the store like the frames."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tillwatch.data.catalog import Skip
from tillwatch.data.dataset import VideoFrameDataset, read_clip
from tillwatch.errors import ClipError, one_line
from tillwatch.threads import thread_pool

#: From uint8 frames ``(T, H, W, 3)`` to float32 ``(F,)``.
Describer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

Row = NDArray[np.float32] | Skip


def describe_clips(
    dataset: VideoFrameDataset,
    describer: Describer,
    workers: int,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Returns a row for each clip of a data set, or why it could not be read.

    Args:
        dataset: reads the clips; where it has a store, rows are kept there.
        describer: of a clip's frames as they are read.
        workers: clips at a time; decoding and OpenCV leave the interpreter free, so threads do.
        on_clip: called with (clips done, clips in all).
    """
    derived = f"{describer.__name__.replace('_', ' ')} {_state_of(describer)}"
    rows: list[Row] = []
    with thread_pool(max(1, workers)) as pool:
        for row in pool.map(lambda index: _describe(dataset, index, describer, derived), range(len(dataset))):
            rows.append(row)
            on_clip(len(rows), len(dataset))
    return rows


def _describe(dataset: VideoFrameDataset, index: int, describer: Describer, derived: str) -> Row:
    clip, store = dataset.clips[index], dataset.store
    try:
        if store is None:
            return describer(dataset.read(index))
        row = store.find(clip, dataset.reading, derived)
        if row is None:
            frames = store.find(clip, dataset.reading)
            # Frames that are not kept already will not be wanted again: the row is.
            row = describer(read_clip(clip, dataset.reading) if frames is None else frames)
            store.keep(clip, dataset.reading, row, derived)
    except ClipError as error:
        return Skip(clip.name, one_line(error).rstrip("."))
    return row


def _state_of(describer: Describer) -> str:
    """Tells one version of a describer from another: by its whole module, and OpenCV's version."""
    function: Any = describer
    return hashlib.blake2b(
        Path(function.__code__.co_filename).read_bytes() + cv2.__version__.encode(), digest_size=8
    ).hexdigest()

"""What the audit knows of a clip after one pass over its frames at 64 pixels: enough to know its footage again."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tillwatch.clip_spec import Reading
from tillwatch.data.catalog import Clip, Found
from tillwatch.data.frames import list_frames, read_frames
from tillwatch.data.store import ClipStore
from tillwatch.data.video import decode_video, open_container, video_stream
from tillwatch.errors import ClipError, one_line
from tillwatch.threads import thread_pool

SIDE = 32  # pixels each way of the frames kept
SCENE_SIDE = 64  # and of the background

_FPS = 30.0  # frames kept a second, at most
_MOST_FRAMES = 240  # a clip
_ASSUMED_FPS = 10.0  # of a frame folder whose rate nobody knows
_KEPT_AS = "fingerprint 2"  # another number wherever what is kept changes
_READING = Reading(num_frames=1, resize=(SCENE_SIDE, SCENE_SIDE))


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """A clip at a small size.

    Attributes:
        frames: grey, squeezed, uint8 ``(T, 32, 32)``, at most 30 a second and 240 in all.
        times: of these frames, seconds from the first, float64 ``(T,)``.
        background: median of its frames over time, float32 ``(64, 64)``.
        width, height: of the source's pictures.
        bytes: of the file, or of the frames' files.
        codec: of a video, such as h264; the images' file type of a frame folder.
        created: the container's creation_time, empty if it has none.
        damage: what stopped the decoder before the end; empty if nothing did.
    """

    frames: NDArray[np.uint8]
    times: NDArray[np.float64]
    background: NDArray[np.float32]
    width: int
    height: int
    bytes: int
    codec: str
    created: str
    damage: str


def take_fingerprints(
    clips: Sequence[Clip],
    *,
    workers: int = 0,
    store: ClipStore | None = None,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Fingerprint]:
    """Reads each clip once, several at a time; those that give no frame at all are missing from what is returned.

    Args:
        clips: what to read.
        workers: threads; 0 for one a core. Decoding lets go of the interpreter.
        store: keeps fingerprints, so that the next look costs nothing.
        on_clip: called with (clips done, clips in all).
    """
    found: dict[str, Fingerprint] = {}
    with thread_pool(max(1, workers or os.cpu_count() or 1)) as pool:
        futures = {pool.submit(fingerprint_of, clip, store): clip for clip in clips}
        for done, future in enumerate(as_completed(futures), start=1):
            on_clip(done, len(clips))
            if (taken := future.result()) is not None:
                found[futures[future].name] = taken
    return {clip.name: found[clip.name] for clip in clips if clip.name in found}


def fingerprint_of(clip: Clip, store: ClipStore | None = None) -> Fingerprint | None:
    """Returns a clip's fingerprint, from the store if it is there; None if no frame can be read."""
    try:
        kept = None if store is None else store.find(clip, _READING, _KEPT_AS)
        if kept is not None and (known := _unpacked(kept)) is not None:
            return known
        taken = _take(clip)
        if store is not None and taken is not None:
            store.keep(clip, _READING, _packed(taken), _KEPT_AS)
    except (ClipError, OSError, av.error.FFmpegError):
        return None
    return taken


def content_digest(clip: Clip | Found) -> str:
    """Returns what two clips have in common exactly if their files hold the same bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for path in [clip.path] if clip.is_video else list_frames(clip.path):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def content_size(clip: Clip | Found) -> int:
    """Returns the bytes of a clip's files."""
    return sum(path.stat().st_size for path in ([clip.path] if clip.is_video else list_frames(clip.path)))


def bytes_of(clips: Sequence[Clip]) -> dict[str, str]:
    """Returns how many bytes each clip's files have, by name; nothing for those that are gone."""
    return {clip.name: _bytes_of(clip) for clip in clips}


def _bytes_of(clip: Clip) -> str:
    try:
        return str(content_size(clip))
    except (OSError, ClipError):
        return ""


def _take(clip: Clip) -> Fingerprint | None:
    rate = clip.fps or _ASSUMED_FPS
    step = max(1, math.ceil(rate / _FPS - 0.01), -(-clip.num_frames // _MOST_FRAMES))
    pictures: list[NDArray[np.uint8]] = []
    damage = ""
    source = _video_pictures(clip.path, step) if clip.is_video else _folder_pictures(clip.path, step)
    try:
        pictures.extend(source)
    except ClipError as error:
        damage = one_line(error).removeprefix(f"{clip.path}: ").rstrip(".")
    if not pictures:
        return None
    large = np.stack(pictures)
    last = (len(large) - 1) * step + 1
    if not damage and clip.is_video and last + step <= 0.9 * clip.num_frames:
        damage = f"about {last} of {clip.num_frames} frames can be decoded"
    sampled = large[np.linspace(0, len(large) - 1, min(len(large), 25), dtype=int)]
    width, height, codec, created = _header(clip)
    return Fingerprint(
        frames=np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in large]).astype(
            np.uint8
        ),
        times=np.arange(len(large)) * step / rate,
        background=np.median(sampled, axis=0).astype(np.float32),
        width=width,
        height=height,
        bytes=content_size(clip),
        codec=codec,
        created=created,
        damage=damage,
    )


def _video_pictures(path: Path, step: int) -> Iterator[NDArray[np.uint8]]:
    # Clips are decoded side by side, so each with one thread.
    for index, frame in enumerate(decode_video(path, threads=1)):
        if index % step == 0:
            small = frame.reformat(width=SCENE_SIDE, height=SCENE_SIDE, format="gray", interpolation="AREA")
            yield np.ascontiguousarray(np.rot90(small.to_ndarray(), round((frame.rotation or 0) / 90)))


def _folder_pictures(folder: Path, step: int) -> Iterator[NDArray[np.uint8]]:
    size = SCENE_SIDE, SCENE_SIDE
    for path in list_frames(folder)[::step]:
        yield cv2.cvtColor(read_frames([path], resize=size, draft=(2 * size[0], 2 * size[1]))[0], cv2.COLOR_RGB2GRAY)


def _header(clip: Clip) -> tuple[int, int, str, str]:
    """Returns width, height, codec and creation time."""
    if not clip.is_video:
        first = list_frames(clip.path)[0]
        with Image.open(first) as image:
            return image.width, image.height, first.suffix.lower().lstrip("."), ""
    with open_container(clip.path) as container:
        stream = video_stream(container, clip.path)
        created = container.metadata.get("creation_time", "")
        return stream.width, stream.height, stream.codec_context.name, created


def _packed(taken: Fingerprint) -> NDArray[np.uint8]:
    """Returns a fingerprint as the bytes of an .npz, which the store can keep."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in vars(taken).items()}
    np.savez(buffer, **arrays)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def _unpacked(kept: NDArray[np.uint8]) -> Fingerprint | None:
    """Returns what was kept; None if it is damaged."""
    try:
        with np.load(io.BytesIO(kept.tobytes()), allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        return Fingerprint(**{name: value if value.ndim else value.item() for name, value in values.items()})
    except Exception:  # zipfile, zlib and numpy have a dozen words for it
        return None

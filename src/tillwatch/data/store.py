"""The clip store: clips decoded once and kept as bytes, to be mapped into memory ever after.

An entry is one file below a cache folder: a head of whole pages that says what it holds and of which state of its
source, then the frames. It is written aside and renamed, so whoever builds at the same time, or is killed, leaves
whole entries. Its name comes from the source's path and the :class:`Reading`: a changed source replaces its entry.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from tillwatch.clip_spec import Reading
from tillwatch.data.catalog import Clip
from tillwatch.data.frames import list_frames
from tillwatch.data.video import READING
from tillwatch.errors import ClipError, ConfigError, one_line
from tillwatch.files import replacing

#: Names another folder for the store than the user's cache folder.
ENVIRONMENT_VARIABLE = "TILLWATCH_CACHE"

#: Bytes to leave free on the store's disk unless told; a tenth of a disk smaller than ten times that.
KEEP_FREE = 10**10

_MAGIC = b"tillwatch clip 2\n"
_PAGE = 4096
_CHECKSUM = 16  # hexadecimal digits, of what the head says: it is believed without reading the frames
_SUFFIX = ".clip"
_READERS = {package: version(package) for package in ("Pillow", "av", "torch")}  # another version, other pixels
_ABANDONED_S = 3600.0  # a file still being written is touched more often than that
_SMALL = 2**16  # a map holds a file descriptor as long as it lives, and a process may have a thousand or fewer


def default_store_folder() -> Path:
    """Returns where clips are kept unless told: ``$TILLWATCH_CACHE``, or the user's cache folder."""
    return Path(os.environ.get(ENVIRONMENT_VARIABLE) or platformdirs.user_cache_dir("tillwatch", False)) / "clips"


def store_folder(folder: Path | None, data: Path) -> Path:
    """Returns where the clips of a data folder are kept.

    Args:
        folder: as asked for; None for :func:`default_store_folder`.
        data: the data folder; among its clips, the next look would take the store's folders for clips.

    Raises:
        ConfigError: if it is a file, or lies in ``data``.
    """
    told = f"--cache-folder {folder}" if folder is not None else f"the store's folder {default_store_folder()}"
    folder = folder or default_store_folder()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{told} is a file; give a folder with --cache-folder or ${ENVIRONMENT_VARIABLE}.")
    if data.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ConfigError(
            f"{told} lies inside the data folder {data}; name another with --cache-folder or ${ENVIRONMENT_VARIABLE}."
        )
    return folder


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of the store.

    Attributes:
        path: the file.
        source: the clip that it was decoded from.
        reading: what was read of the clip, as JSON.
        derived: what was computed of the frames; empty for the frames themselves.
        bytes: the file's size.
        used: when it was last wanted, seconds since 1970.
        damage: what is wrong with it, in words; empty if nothing is.
    """

    path: Path
    source: str
    reading: str
    derived: str
    bytes: int
    used: float
    damage: str = ""

    @property
    def what(self) -> str:
        """What is kept of the clip, in words."""
        try:
            reading = json.loads(self.reading)
            size = "as they are" if reading["resize"] is None else f"of {reading['resize'][1]}x{reading['resize'][0]}"
            frames = f"{reading['num_frames']} frames {size}"
        except (ValueError, KeyError, TypeError):
            return "unknown"
        return f"{' '.join(self.derived.split()[:2])} of {frames}" if self.derived else frames


class ClipStore:
    """Reads clips, each decoded only the first time; safe with any number of processes on one folder.

    Whether a source has changed is looked at once a process, and whenever nothing of its present state is kept. Where
    an entry cannot be written, clips go on being decoded and :attr:`trouble` says why.

    Args:
        folder: where entries lie; made when the first is written.
        keep_free: bytes to leave free on its disk; None for 10 GB, or a tenth of a smaller disk.

    Attributes:
        trouble: why entries are not written, a sentence; None while they are.
    """

    def __init__(self, folder: Path, keep_free: int | None = None) -> None:
        self.folder = folder
        self.keep_free = keep_free
        self.trouble: str | None = None
        self._fingerprints: dict[str, str] = {}  # by source: what is computed of frames is as old as the frames
        self._wanted: set[str] = set()
        self._swept = False

    def find(self, clip: Clip, reading: Reading, derived: str = "") -> NDArray[Any] | None:
        """Returns what is kept of a clip if its source is what it was, else None.

        Args:
            clip: the source.
            reading: how it is read.
            derived: what was computed of its frames, in full; empty for the frames themselves.

        Returns:
            Frames as uint8 ``(T, H, W, 3)``, RGB, or what was kept under ``derived``: read-only, and a memory map
            unless small.

        Raises:
            ClipError: if the source is gone.
        """
        name, source = _entry_name(clip, reading, derived), _source(clip)
        path = self._path(name)
        head, frames = _map(path)
        if frames is None or head["fingerprint"] != self._fingerprints.get(source):
            self._fingerprints[source] = fingerprint(clip)
            if frames is None or head["fingerprint"] != self._fingerprints[source]:
                return None
        if name not in self._wanted:
            self._wanted.add(name)
            _touch(path)
        return frames

    def keep(self, clip: Clip, reading: Reading, frames: NDArray[Any], derived: str = "") -> None:
        """Writes a clip's frames; on failure, says so in :attr:`trouble` and writes no more.

        Args:
            clip: where they come from.
            reading: how they were read.
            frames: uint8 ``(T, H, W, 3)``, RGB, or any array of numbers computed from them.
            derived: as in :meth:`find`.
        """
        if self.trouble is not None:
            return
        path = self._path(_entry_name(clip, reading, derived))
        fields = {
            "source": _source(clip),
            "reading": _reading_json(clip, reading),
            "derived": derived,
            # Of before the clip was decoded: one that changed meanwhile is found out the next time.
            "fingerprint": self._fingerprints.get(_source(clip)) or fingerprint(clip),
            "dtype": frames.dtype.str,
            "shape": list(frames.shape),
        }
        head = _head({**fields, "digest": _digest(fields, frames)})
        if not self._swept:
            self._swept = True
            self._remove_abandoned()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            usage = shutil.disk_usage(self.folder)
            keep_free = min(KEEP_FREE, usage.total // 10) if self.keep_free is None else self.keep_free
            if usage.free < keep_free + len(head) + frames.nbytes:
                self._give_up(f"only {usage.free / 1e9:.1f} GB are free on its disk")
                return
            with replacing(path, "wb") as file:
                file.write(head)
                file.write(np.ascontiguousarray(frames).data.cast("B"))
        except OSError as error:
            self._give_up(error.strerror or one_line(error))

    def _give_up(self, reason: str) -> None:
        self.trouble = (
            f"no more decoded clips are kept in {self.folder} ({reason}), so they are decoded each time, which is "
            "slower; free some space or name another --cache-folder."
        )

    def entries(self) -> Iterator[Entry]:
        """Yields all entries in the order of their names; the frames are not read."""
        for path in sorted(self.folder.glob(f"??/*{_SUFFIX}")):
            try:
                status = path.stat()
            except OSError:  # pruned meanwhile
                continue
            if not stat.S_ISREG(status.st_mode):  # somebody else's
                continue
            head, frames = _map(path)
            if frames is None and not path.exists():
                continue
            yield Entry(
                path=path,
                source=str(head.get("source", "")),
                reading=str(head.get("reading", "")),
                derived=str(head.get("derived", "")),
                bytes=status.st_size,
                used=status.st_mtime,
                damage="" if frames is not None else "its head or its length is wrong",
            )

    def verify(self) -> tuple[int, list[Entry]]:
        """Reads every entry whole and removes those that are not what was written; they are built anew when wanted.

        Returns:
            How many entries there were, and the damaged ones.

        Raises:
            OSError: if one cannot be removed.
        """
        count, damaged = 0, []
        for entry in self.entries():
            head, frames = _map(entry.path)
            if frames is None and not entry.path.exists():
                continue
            count += 1
            if frames is not None and _digest(head, frames) == head["digest"]:
                continue
            damage = entry.damage or "its frames are not the ones that were written"
            damaged.append(Entry(**{**asdict(entry), "damage": damage}))
            entry.path.unlink(missing_ok=True)
        self._remove_abandoned()
        return count, damaged

    def prune(self, max_bytes: int) -> list[Entry]:
        """Removes entries, those not wanted for longest first, until the rest fit.

        Args:
            max_bytes: what may stay.

        Returns:
            The removed entries.

        Raises:
            OSError: if one cannot be removed.
        """
        entries = sorted(self.entries(), key=lambda entry: entry.used)
        total, removed = sum(entry.bytes for entry in entries), []
        for entry in entries:
            if total <= max_bytes:
                break
            entry.path.unlink(missing_ok=True)
            total -= entry.bytes
            removed.append(entry)
        self._remove_abandoned()
        return removed

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}{_SUFFIX}"

    def _remove_abandoned(self) -> None:
        """Removes what killed builders left half-written."""
        for path in self.folder.glob("??/.*.part"):
            try:
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()
            except OSError:
                continue


def fingerprint(clip: Clip) -> str:
    """Returns what tells one state of a clip's files from another: their names, sizes, times of change and inodes.

    By their inodes two folders are told apart that were given each other's name: files in them do not change by that.

    Raises:
        ClipError: if they are gone.
    """
    paths = [clip.path] if clip.is_video else list_frames(clip.path)
    digest = hashlib.blake2b(digest_size=16)
    try:
        for path in paths:
            status = path.stat()
            state = f"\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0{status.st_ino}\n"
            digest.update(os.fsencode(path.name) + state.encode())
    except OSError as error:
        raise ClipError(f"{clip.path}: cannot be read ({error.strerror}).") from None
    return digest.hexdigest()


def _entry_name(clip: Clip, reading: Reading, derived: str) -> str:
    text = f"{_source(clip)}\0{_reading_json(clip, reading)}\0{derived}"
    return hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest()


def _source(clip: Clip) -> str:
    return str(clip.path.absolute())


def _reading_json(clip: Clip, reading: Reading) -> str:
    """Everything that decides which pixels are read."""
    ours = {"tillwatch": READING} if clip.is_video else {}
    decided = {**asdict(reading), "frame_step": clip.frame_step, **_READERS, **ours}
    return json.dumps(decided, sort_keys=True)


def _digest(head: dict[str, Any], frames: NDArray[Any]) -> str:
    """Returns the checksum of an entry: of its frames, and of all else that its head says."""
    said = json.dumps({name: value for name, value in head.items() if name != "digest"}, sort_keys=True)
    digest = hashlib.blake2b(said.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()


def _checksum(said: bytes) -> bytes:
    return hashlib.blake2b(said, digest_size=_CHECKSUM // 2).hexdigest().encode()


def _head(fields: dict[str, Any]) -> bytes:
    said = json.dumps(fields).encode()
    text = _MAGIC + _checksum(said) + said + b"\n"
    return text.ljust(-(-len(text) // _PAGE) * _PAGE, b"\0")


def _map(path: Path) -> tuple[dict[str, Any], NDArray[Any] | None]:
    """Returns an entry's head and frames; None for the frames if it is absent or not whole."""
    head: dict[str, Any] = {}
    try:
        with path.open("rb") as file:
            small = os.fstat(file.fileno()).st_size <= _SMALL
            mapped = file.read() if small else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if mapped[: len(_MAGIC)] != _MAGIC:
            return head, None
        end = mapped.find(b"\n", len(_MAGIC))
        said = mapped[len(_MAGIC) + _CHECKSUM : end]
        if mapped[len(_MAGIC) : len(_MAGIC) + _CHECKSUM] != _checksum(said):
            return head, None
        head = json.loads(said)
        start = -(-(end + 1) // _PAGE) * _PAGE
        shape, dtype = tuple(head["shape"]), np.dtype(head["dtype"])
        if not {"source", "fingerprint", "digest"} <= set(head):
            return head, None
        frames: NDArray[Any] = np.frombuffer(mapped, dtype, offset=start).reshape(shape)  # fails unless all is there
    except (OSError, ValueError, KeyError, TypeError, SyntaxError):  # the last from a dtype's name
        return head if isinstance(head, dict) else {}, None
    return head, frames


def _touch(path: Path) -> None:
    """Marks an entry as wanted now; where that is not allowed, pruning only has the older time to go by."""
    try:
        os.utime(path)
    except OSError:
        return

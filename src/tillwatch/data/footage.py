"""How many hours a folder of footage holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tillwatch.data.catalog import Skip
from tillwatch.data.frames import natural_key
from tillwatch.data.video import is_video_file, probe_video
from tillwatch.errors import ClipError, DataError, one_line


@dataclass(frozen=True, kw_only=True)
class Footage:
    """What a folder of footage holds.

    Attributes:
        hours: the summed length of its videos.
        videos: how many were counted.
        skipped: those that cannot be read, or do not tell their length.
    """

    hours: float
    videos: int
    skipped: tuple[Skip, ...]


def measure_footage(folder: Path) -> Footage:
    """Adds up the lengths of all videos in a folder and the folders in it; their frames are counted, not decoded.

    Raises:
        DataError: if the folder is missing, or holds no video whose length can be told.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"--normal-footage {folder} {what}; give the folder that your normal clips were cut from.")
    seconds, skipped = [], []
    for path in sorted(filter(is_video_file, folder.rglob("*")), key=lambda path: natural_key(str(path))):
        name = path.relative_to(folder).as_posix()
        try:
            length = probe_video(path).seconds
        except ClipError as error:
            skipped.append(Skip(name, one_line(error).removeprefix(f"{path}: ").rstrip(".")))
            continue
        if length:
            seconds.append(length)
        else:
            skipped.append(Skip(name, "it does not tell its frame rate"))
    if not seconds:
        reasons = "".join(f" {skip.name}: {skip.reason}." for skip in skipped[:3])
        raise DataError(f"--normal-footage {folder} holds no video whose length can be told.{reasons}")
    return Footage(hours=sum(seconds) / 3600, videos=len(seconds), skipped=tuple(skipped))

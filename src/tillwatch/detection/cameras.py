"""What to scan: files below folders, the camera each comes from, and the regions to look at."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from tillwatch.clip_spec import Roi
from tillwatch.data.frames import natural_key
from tillwatch.data.recordings import without_times
from tillwatch.data.video import is_video_file
from tillwatch.errors import ConfigError, DataError, one_line

#: Names of the region where none was given: the whole picture, or what the model itself cuts out of every video.
WHOLE, TRAINED = "whole", "trained"

_LONGEST_NAME = 150  # bytes; file systems take 255 for all of a name, while it is written too
_REGION_NAME = re.compile(r"[\w.-]+")

Regions = Mapping[str, Roi | None]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file to scan.

    Attributes:
        path: where it lies.
        file: its name in all tables: the path below the folder that was given, or the file's own name.
        camera: that it comes from.
        regions: what to look at, by name.
    """

    path: Path
    file: str
    camera: str
    regions: Regions


def flat_name(file: str) -> str:
    """Returns a recording's name as part of the names of files made of it: no folders, no ending, and not too long."""
    flat = file.rsplit(".", 1)[0].strip("/").replace("/", "_")
    return flat.encode()[:_LONGEST_NAME].decode(errors="ignore")


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera of cameras.yaml: its name, the patterns that its files' names match, and its regions."""

    name: str
    files: tuple[str, ...]
    regions: Regions

    def takes(self, file: str) -> bool:
        """Whether a file is this camera's: a pattern matches its whole name, or the last part of it."""
        return any(fnmatchcase(file, one) or fnmatchcase(file.rsplit("/", 1)[-1], one) for one in self.files)


def find_sources(paths: Sequence[Path], regions: Regions, cameras: Sequence[Camera] = ()) -> list[Source]:
    """Finds all videos in files and folders, and in the folders in those; a file given twice counts once.

    Args:
        paths: in the order to scan; a folder's videos come in natural order.
        regions: of files that no camera takes.
        cameras: the first that takes a file says its regions.

    Raises:
        DataError: if a path does not exist, or a folder holds no video.
    """
    found: dict[Path, str] = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist.")
        inside = [path] if not path.is_dir() else [entry for entry in path.rglob("*") if is_video_file(entry)]
        if not inside:
            raise DataError(f"{path} holds no video.")
        for entry in sorted(inside, key=lambda entry: natural_key(str(entry))):
            name = entry.name if entry == path else entry.relative_to(path).as_posix()
            found.setdefault(entry.resolve(), name)
    names = list(found.values())
    sources = []
    for path, name in found.items():
        file = name if names.count(name) == 1 else path.as_posix()
        camera = next((camera for camera in cameras if camera.takes(file)), None)
        sources.append(
            Source(
                path=path,
                file=file,
                camera=camera_of(name, path.parent.name) if camera is None else camera.name,
                regions=regions if camera is None else camera.regions or regions,
            )
        )
    return sources


def idle_cameras(cameras: Sequence[Camera], sources: Sequence[Source]) -> list[str]:
    """Returns the names of cameras that take no file, or none that an earlier one does not take."""
    taking = {next((one.name for one in cameras if one.takes(source.file)), None) for source in sources}
    return [camera.name for camera in cameras if camera.name not in taking]


def camera_of(file: str, folder: str) -> str:
    """Returns the camera that a file's name tells: the name without times, ``till2`` of ``till2_20260301_0815.mp4``.

    Args:
        file: name below the folder given; folders in it are part of the camera's name.
        folder: that the file lies in, which names the camera where nothing else does.
    """
    *above, name = file.split("/")
    parts = [*(without_times(f"{part}.") for part in above), without_times(name)]
    return "/".join(part for part in parts if part) or folder or "camera"


def parse_regions(texts: Sequence[str]) -> dict[str, Roi | None]:
    """Reads ``NAME=x,y,width,height``, each a region in fractions of the frame.

    Raises:
        ConfigError: quoting what cannot be read.
    """
    regions: dict[str, Roi | None] = {}
    for text in texts:
        name, equals, box = text.partition("=")
        if not equals:
            raise ConfigError(f"--roi is {text!r}; it must be NAME=x,y,width,height, such as till1=0.25,0.5,0.5,0.5.")
        if name in regions:
            raise ConfigError(f"--roi names the region {name!r} twice.")
        regions[_region_name(name, "--roi")] = Roi.parse(box)
    return regions


def read_cameras(path: Path) -> list[Camera]:
    """Reads cameras.yaml: a mapping of each camera's name to ``files`` (patterns) and ``regions`` (name: x,y,w,h).

    Raises:
        ConfigError: saying what is wrong with it.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ConfigError(f"--cameras {path} cannot be read ({reason}).") from None
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"--cameras {path} must hold a line NAME: for each camera, and its files and regions below.")
    return [_camera(str(name), told, path) for name, told in data.items()]


def _camera(name: str, told: object, path: Path) -> Camera:
    where = f"--cameras {path}, {name}"
    if not isinstance(told, dict) or not set(told) <= {"files", "regions"} or "files" not in told:
        raise ConfigError(f"{where}: must hold files (patterns of file names) and may hold regions, and nothing else.")
    patterns = [told["files"]] if isinstance(told["files"], str) else told["files"]
    regions = told.get("regions") or {}
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns) or not patterns:
        raise ConfigError(f"{where}: files must be a pattern such as 'till1_*', or a list of them.")
    if not isinstance(regions, dict):
        raise ConfigError(f"{where}: regions must be lines of the form name: x,y,width,height.")
    names = [_region_name(str(region), where) for region in regions]
    try:
        boxes: dict[str, Roi | None] = {
            name: Roi.parse(str(box)) for name, box in zip(names, regions.values(), strict=True)
        }
    except ConfigError as error:
        raise ConfigError(f"{where}: {str(error).replace('--roi is', 'a region is')}") from None
    return Camera(name=name, files=tuple(patterns), regions=boxes)


def _region_name(name: str, where: str) -> str:
    if not _REGION_NAME.fullmatch(name):
        raise ConfigError(f"{where}: a region is named {name!r}; use letters, digits, dots, - and _ alone.")
    return name

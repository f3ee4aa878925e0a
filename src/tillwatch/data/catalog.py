"""Class folders and clips.csv to a list of clips; every skip is counted and named."""

from __future__ import annotations

import gc
import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from tillwatch.clip_spec import FrameStep, Roi, frame_indices, seconds_of
from tillwatch.data.frames import check_frames, is_frame_file, list_frames, natural_key
from tillwatch.data.provenance import EXTRACTION_JSON, check_region
from tillwatch.data.video import is_video_file, probe_video
from tillwatch.errors import ClipError, ConfigError, DataError, did_you_mean, one_line
from tillwatch.files import misspelt_column, read_csv, readable
from tillwatch.threads import thread_pool

CLIPS_CSV = "clips.csv"

#: Said where nobody named any group.
OWN_GROUPS = (
    "nothing says which clips share a source, so each is its own group: if several were cut from one "
    "video, camera or day, the figures will flatter. Name groups in clips.csv or with --group-pattern."
)

_NAMED_AT_MOST = 10
_LONGEST_NAME = 1000  # file systems allow less
_OPENED_AT_ONCE = 64  # clips, at most, that a thread takes at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One labelled example: a folder of frames or a video file.

    Attributes:
        name: path below the data folder, with forward slashes: ``cashlifting/till2_0815``.
        path: where it lies.
        label: its class.
        group: what it shares with clips of the same source; a split never divides a group.
        is_video: a video file, otherwise a frame folder.
        num_frames: frames that it holds, before any frame step.
        every: frames of the source per frame held; 1 for a video, None if unknown.
        fps: frames held a second, None if unknown.
        frame_step: every how-manieth of the frames held is to be used.
    """

    name: str
    path: Path
    label: str
    group: str
    is_video: bool
    num_frames: int
    every: int | None
    fps: float | None
    frame_step: int = 1

    @property
    def seconds(self) -> float | None:
        """How long it lasts; None if the frame rate is unknown."""
        return seconds_of(self.num_frames, self.fps)

    @property
    def stepped_frames(self) -> int:
        """How many frames are left after the frame step."""
        return -(-self.num_frames // self.frame_step)


@dataclass(frozen=True)
class Skip:
    """A clip that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """What a data folder holds.

    Attributes:
        clips: the usable clips, in natural order of their names.
        classes: class names in order.
        skipped: damaged clips, left out.
        too_short: clips with fewer frames than asked for, left out on request.
        notes: sentences a user should read: other things left out, assumptions made.
        ungrouped: names of the clips whose group nothing names: each is a group of its own.
        cameras: by clip name, of those whose camera clips.csv names.
    """

    clips: tuple[Clip, ...]
    classes: tuple[str, ...]
    skipped: tuple[Skip, ...] = ()
    too_short: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    ungrouped: frozenset[str] = frozenset()
    cameras: Mapping[str, str] = field(default_factory=dict)

    @property
    def own_groups(self) -> bool:
        """Whether nothing names any group."""
        return all(clip.name in self.ungrouped for clip in self.clips)

    @property
    def class_counts(self) -> dict[str, int]:
        """Clips of each class, in class order."""
        counts = Counter(clip.label for clip in self.clips)
        return {name: counts[name] for name in self.classes}


@dataclass(frozen=True, slots=True)
class Found:
    """A clip that exists but has not been looked into."""

    name: str
    path: Path
    label: str
    is_video: bool


#: Looks into a clip that was found, given its row of clips.csv, the frames to take of it and which of them count.
OpenClip = Callable[[Found, Mapping[str, str], int, FrameStep], Clip]


@dataclass
class Search:
    """What lies below a data folder, by its names alone.

    Attributes:
        root: the data folder.
        rows: the rows of clips.csv by path.
        classes: the classes asked for, or all that are there, in order.
        found: the clips.
        skipped: folders among the clips that hold no image.
        other_files: what is neither a video nor a frame.
        notes: sentences a user should read.
        covered: videos left out because their frames are there.
    """

    root: Path
    rows: dict[str, dict[str, str]]
    classes: tuple[str, ...] = ()
    found: list[Found] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    covered: set[str] = field(default_factory=set)


@contextmanager
def _nothing_old_collected() -> Iterator[None]:
    """Keeps the garbage collector from a million records that are there; what comes and goes it still clears."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keeps the garbage collector from going through a million records again and again, none of which is garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def find_clips(
    root: Path,
    classes: Sequence[str] | None = None,
    *,
    num_frames: int = 32,
    step: FrameStep | None = None,
    short: Literal["repeat", "skip", "error"] = "repeat",
    group_pattern: str | None = None,
) -> Catalog:
    """Finds the clips below a data folder and looks into each for damage.

    A clip is ``root/<class>/<folder of images>`` or ``root/<class>/<video file>``. ``root/clips.csv``
    (columns path, label, group; also every and fps, as ``extract`` writes them) adds to what is found
    the groups, and clips that lie elsewhere below ``root``.

    Args:
        root: the data folder.
        classes: the classes to use, in order; None for all class folders in natural order.
        num_frames: frames that will be taken of each clip; these are the ones checked.
        step: which frames of a source count.
        short: what becomes of clips with fewer frames than ``num_frames``.
        group_pattern: regular expression searched in the clip's own name; its first group, or all it
            matched, is the clip's group.

    Raises:
        DataError: if there is nothing to use, or ``short`` is "error" and a clip is short.
        ConfigError: if ``classes`` or ``group_pattern`` does not fit what is there.
    """
    return look_into(
        search_folder(root, classes),
        num_frames=num_frames,
        step=step,
        short=short,
        group_pattern=group_pattern,
    )


@_nothing_old_collected()
def look_into(
    search: Search,
    *,
    num_frames: int,
    step: FrameStep | None = None,
    short: Literal["repeat", "skip", "error"] = "repeat",
    group_pattern: str | None = None,
    open_clip: OpenClip | None = None,
) -> Catalog:
    """Looks into each clip that a search found; other arguments and errors as :func:`find_clips`.

    Args:
        open_clip: looks into one, in a thread; raises DataError for a damaged one. None reads what is on the disk.
    """
    rows, notes = search.rows, list(search.notes)
    clips, damaged = _open_all(search, num_frames, step or FrameStep(), open_clip or _open_clip)
    skipped = (*search.skipped, *damaged)
    if not clips:
        reasons = "; ".join(f"{skip.name}: {skip.reason}" for skip in skipped[:_NAMED_AT_MOST])
        raise DataError(f"{search.root} holds no clip that can be read: {reasons}.")
    clips, ungrouped = _assign_groups(clips, rows, group_pattern, notes)
    clips, too_short = _treat_short(clips, num_frames, short, notes)
    return Catalog(
        clips=tuple(clips),
        classes=search.classes,
        skipped=skipped,
        too_short=too_short,
        notes=tuple(notes),
        ungrouped=ungrouped,
        cameras={name: row["camera"] for name, row in rows.items() if row.get("camera")},
    )


@_nothing_collected()
def search_folder(root: Path, classes: Sequence[str] | None = None, *, absent_ok: bool = False) -> Search:
    """Finds the clips below a data folder without opening any.

    Args:
        root: the data folder, laid out as :func:`find_clips` says.
        classes: the classes to look for; None for all.
        absent_ok: whether some of ``classes`` may be missing.

    Raises:
        DataError: if the folder is missing, or it or one of its classes holds no clip.
        ConfigError: if ``classes`` names one that is not there.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}; give the folder that holds one folder of clips for each class.")
    search = Search(root, _read_clips_csv(root))
    folders = _class_folders(root, search)
    present = dict.fromkeys([*folders, *(row["label"] for row in search.rows.values() if row["label"])])
    if classes is not None and absent_ok:
        search.notes.extend(f"no clip of {label!r} is in {root}." for label in classes if label not in present)
        classes = [label for label in classes if label in present]
    if classes is not None:
        _check_classes(classes, present, root)
    if classes is None:
        folders = _without_storage(folders, search.rows)
    for label, folder in folders.items():
        if classes is None or label in classes:
            _search_class_folder(label, folder, search)
        else:
            search.notes.append(f"folder {label!r} left out: it is none of the classes {', '.join(classes)}.")
    _add_rows(root, classes, search)
    labels = {found.label for found in search.found}
    if not present:
        raise DataError(f"{root} holds no class folder; put the clips of each class into a folder of its name.")
    if classes is not None and not classes:
        raise DataError(f"{root} holds none of the classes asked for; it has {', '.join(present)}.")
    for label in folders if classes is None else classes:
        if label not in labels:
            raise DataError(
                f"{root / label} holds no clip; put videos or folders of frames there, "
                "or name the other classes with --classes."
            )
    search.classes = tuple(sorted(labels, key=natural_key) if classes is None else classes)
    if search.other_files:
        search.notes.append(f"{count_and_names(search.other_files)} left out: neither a video nor a frame folder.")
    search.found.sort(key=lambda found: natural_key(found.name))
    return search


def describe_clip(path: Path, num_frames: int, step: FrameStep, roi: Roi | None = None) -> Clip:
    """Looks into one clip that need not be part of a data set.

    What ``extract`` wrote of a frame folder is read from the clips.csv two folders up, if it is there.

    Args:
        path: a video file or a folder of images.
        num_frames: frames that will be taken; these are the ones checked.
        step: which frames of a source count.
        roi: the region that its frames must show.

    Raises:
        ClipError: if it cannot be used.
    """
    if not path.exists():
        raise ClipError(f"{path} does not exist.")
    found = Found(path.name, path, "", path.is_file())
    if path.is_file() and not is_video_file(path):
        raise ClipError(f"{path} is neither a video nor a folder of frames.")
    root = path.resolve().parent.parent
    row: Mapping[str, str] = {}
    try:
        if path.is_dir():
            check_region(root, roi)
        if path.is_dir() and (root / CLIPS_CSV).is_file():
            row = _rows_as_they_stand(root).get(f"{path.resolve().parent.name}/{path.resolve().name}", {})
        return _open_clip(found, row, num_frames, step)
    except DataError as error:
        # Whatever is wrong concerns this clip alone: a run of many goes on.
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise ClipError(message) from None


def expand_paths(paths: Sequence[Path]) -> list[Path]:
    """Replaces each folder that holds clips, rather than frames, by those clips in natural order.

    Raises:
        DataError: if a folder holds neither.
    """
    expanded: list[Path] = []
    for path in paths:
        if not path.is_dir() or _holds_frames(path):
            expanded.append(path)
            continue
        inside = [
            entry
            for entry in path.iterdir()
            if is_video_file(entry) or (entry.is_dir() and not entry.name.startswith(".") and _holds_frames(entry))
        ]
        if not inside:
            raise DataError(f"{path} holds no frames, no video and no folder of frames.")
        expanded.extend(sorted(inside, key=lambda entry: natural_key(entry.name)))
    return expanded


def too_many_skipped(catalog: Catalog, max_skipped: float) -> str | None:
    """Returns a sentence if more than three clips and more than a share of all are damaged.

    Args:
        catalog: what was found.
        max_skipped: the share of clips, 0 to 1, that may be damaged.
    """
    damaged, total = len(catalog.skipped), len(catalog.clips) + len(catalog.skipped)
    if damaged <= 3 or damaged <= max_skipped * total:
        return None
    listed = "; ".join(f"{skip.name}: {skip.reason}" for skip in catalog.skipped[:_NAMED_AT_MOST])
    more = "" if damaged <= _NAMED_AT_MOST else f"; and {damaged - _NAMED_AT_MOST} more"
    return (
        f"{damaged} of {total} clips are damaged, over the {max_skipped:.0%} that --max-skipped allows: {listed}{more}."
    )


def _class_folders(root: Path, search: Search) -> dict[str, Path]:
    folders = {}
    for entry in sorted(root.iterdir(), key=lambda entry: natural_key(entry.name)):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            if entry.name not in (CLIPS_CSV, EXTRACTION_JSON):
                search.other_files.append(readable(entry.name))
        elif (told := readable(entry.name)) != entry.name:
            raise DataError(f"{root / told}: a class name must be Unicode (UTF-8); rename it.")
        elif "," in entry.name or entry.name != entry.name.strip():
            raise DataError(f"{entry}: a class name must not hold a comma or begin or end with a space; rename it.")
        elif _leads_back(entry):
            search.notes.append(f"folder {entry.name!r} left out: it is a link that leads back to {root}.")
        else:
            folders[entry.name] = entry
    return folders


def _without_storage(folders: Mapping[str, Path], rows: Mapping[str, Mapping[str, str]]) -> dict[str, Path]:
    """Leaves out folders that are no class: clips.csv gives all clips in them labels other than their name."""
    labels = {row["label"] for row in rows.values()}
    suspects = {name.split("/")[0] for name, row in rows.items() if row["label"]} - labels

    def is_storage(name: str, folder: Path) -> bool:
        inside = (e for e in folder.iterdir() if is_video_file(e) or (e.is_dir() and _holds_frames(e)))
        return name in suspects and all(f"{name}/{entry.name}" in rows for entry in inside)

    return {name: folder for name, folder in folders.items() if not is_storage(name, folder)}


def _search_class_folder(label: str, folder: Path, search: Search) -> None:
    try:
        folders = {entry.name for entry in os.scandir(folder) if _is_folder(entry)}
        # By text first, which is cheap: it leaves the natural order, whose keys are slow to compare, little to do.
        by_text = sorted(folder.iterdir(), key=lambda entry: entry.name)
        entries = sorted(by_text, key=lambda entry: natural_key(entry.name))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}).") from None
    frame_folders = {name for name in folders if _holds_frames(folder / name)}
    for entry in entries:
        name = f"{label}/{entry.name}"
        if entry.name.startswith("."):
            continue
        if (told := readable(entry.name)) != entry.name:
            search.skipped.append(Skip(f"{label}/{told}", "its name is not Unicode (UTF-8); rename it"))
            continue
        if entry.name in folders:
            if _leads_back(entry):
                search.notes.append(f"{name} left out: it is a link that leads back to {folder}.")
            else:
                _consider_folder(name, entry, label, search)
        elif not is_video_file(entry):
            search.other_files.append(name)
        elif entry.stem in frame_folders:
            search.notes.append(f"{name} left out: its frames are there too, as {label}/{entry.stem}.")
            search.covered.add(name)
        else:
            search.found.append(Found(name, entry, label, is_video=True))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one: only links cost a question to the disk."""
    return Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()


def _consider_folder(name: str, folder: Path, label: str, search: Search) -> None:
    """Takes a folder that holds images as a clip; says what else lies among them."""
    images = False
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: natural_key(entry.name))
    except OSError as error:
        search.skipped.append(Skip(name, f"the folder cannot be listed ({error.strerror})"))
        return
    for entry in entries:
        if is_frame_file(Path(entry.name)):
            images = True
        elif not entry.name.startswith("."):
            search.other_files.append(f"{name}/{readable(entry.name)}")
    if images:
        search.found.append(Found(name, folder, label, is_video=False))
    else:
        search.skipped.append(Skip(name, "the folder holds no image"))


def _add_rows(root: Path, classes: Sequence[str] | None, search: Search) -> None:
    """Adds clips that only clips.csv knows, and holds its labels against the folders'."""
    found_labels = {found.name: found.label for found in search.found}
    known = set(found_labels) | {skip.name for skip in search.skipped} | search.covered
    absent, added_videos = [], set()
    for name, row in search.rows.items():
        label = row.get("label", "")
        if name in found_labels and label and label != found_labels[name]:
            raise DataError(
                f"{root / CLIPS_CSV} gives {name} the label {label!r}, but it lies in {found_labels[name]!r}."
            )
        if name in known or (classes is not None and label and label not in classes):
            continue
        path = root / name
        if not path.exists() or not label:
            absent.append(name)
        elif path.is_dir():
            _consider_folder(name, path, label, search)
        elif is_video_file(path):
            search.found.append(Found(name, path, label, is_video=True))
            added_videos.add(name)
        else:
            absent.append(name)
    search.other_files = [name for name in search.other_files if name not in added_videos]
    if absent:
        search.notes.append(f"{count_and_names(absent)} left out: listed in {CLIPS_CSV} but not there.")


def _open_all(search: Search, num_frames: int, step: FrameStep, open_clip: OpenClip) -> tuple[list[Clip], list[Skip]]:
    def attempt(found: Found) -> Clip | Skip:
        try:
            return open_clip(found, search.rows.get(found.name, {}), num_frames, step)
        except DataError as error:
            return Skip(found.name, one_line(error).removeprefix(f"{found.path}: ").rstrip("."))

    # Threads suffice: opening files and FFmpeg both let go of the interpreter. A task for each clip would take more
    # time and memory than its row; sixteen and more for each thread keep all of them at work to the end.
    threads = min(8, (os.cpu_count() or 1) * 2)
    size = max(1, min(_OPENED_AT_ONCE, len(search.found) // (16 * threads)))
    parts = [search.found[start : start + size] for start in range(0, len(search.found), size)]
    with thread_pool(threads) as pool:
        results = [result for part in pool.map(lambda part: [*map(attempt, part)], parts) for result in part]
    damaged = [result for result in results if isinstance(result, Skip)]
    return [result for result in results if isinstance(result, Clip)], damaged


def _open_clip(found: Found, row: Mapping[str, str], num_frames: int, step: FrameStep) -> Clip:
    every: int | None = 1
    if found.is_video:
        info = probe_video(found.path)
        fps = None if info.fps is None else float(info.fps)
        frame_step = step.of_source(fps)
        count = info.num_frames
    else:
        frames = list_frames(found.path)
        if not frames:
            raise ClipError(f"{found.path}: the folder holds no image.")
        stored_every = _number(row, "every")
        if stored_every is not None and not stored_every.is_integer():
            raise DataError(f"{CLIPS_CSV}: every of {row['path']} is {row['every']!r}, not a whole number.")
        every = None if stored_every is None else int(stored_every)
        count, fps = len(frames), _number(row, "fps")
        frame_step = step.of_stored(every, fps)
        used = frames[::frame_step]
        check_frames([used[index] for index in dict.fromkeys(frame_indices(len(used), num_frames).tolist())])
    return Clip(
        name=found.name,
        path=found.path,
        label=found.label,
        group=found.name,
        is_video=found.is_video,
        num_frames=count,
        every=every,
        fps=fps,
        frame_step=frame_step,
    )


def _assign_groups(
    clips: Sequence[Clip],
    rows: Mapping[str, Mapping[str, str]],
    group_pattern: str | None,
    notes: list[str],
) -> tuple[list[Clip], frozenset[str]]:
    if group_pattern is not None:
        groups = _groups_by_pattern(clips, group_pattern)
    else:
        groups = {name: row["group"] for name, row in rows.items() if row.get("group")}
    alone = [clip.name for clip in clips if clip.name not in groups]
    if clips and len(alone) == len(clips):
        notes.append(OWN_GROUPS)
    elif alone:
        where = CLIPS_CSV if group_pattern is None else "--group-pattern"
        notes.append(f"{count_and_names(alone)} named no group by {where}: each is its own group.")
    grouped = [replace(clip, group=groups.get(clip.name, clip.name)) for clip in clips]
    return grouped, frozenset(alone)


def _groups_by_pattern(clips: Sequence[Clip], group_pattern: str) -> dict[str, str]:
    try:
        pattern = re.compile(group_pattern)
    except re.error as error:
        raise ConfigError(f"--group-pattern {group_pattern!r} is no regular expression: {error}.") from None
    groups = {}
    for clip in clips:
        match = pattern.search(clip.path.name)
        group = None if match is None else match.group(min(1, pattern.groups))
        if group:
            groups[clip.name] = group
    if clips and not groups:
        raise ConfigError(
            f"--group-pattern {group_pattern!r} matches none of the clips' names, such as {clips[0].path.name!r}."
        )
    return groups


def _treat_short(
    clips: Sequence[Clip], num_frames: int, short: Literal["repeat", "skip", "error"], notes: list[str]
) -> tuple[list[Clip], tuple[Skip, ...]]:
    short_clips = [clip for clip in clips if clip.stepped_frames < num_frames]
    if not short_clips:
        return list(clips), ()
    named = count_and_names([f"{clip.name} ({clip.stepped_frames})" for clip in short_clips])
    if short == "error":
        raise DataError(f"fewer than {num_frames} frames in {named}; use fewer --num-frames or --short repeat.")
    if short == "repeat":
        notes.append(f"fewer than {num_frames} frames in {named}: kept, frames repeat.")
        return list(clips), ()
    notes.append(f"fewer than {num_frames} frames in {named}: left out.")
    skips = tuple(Skip(clip.name, f"short: {clip.stepped_frames} of {num_frames} frames") for clip in short_clips)
    return [clip for clip in clips if clip.stepped_frames >= num_frames], skips


def _read_clips_csv(root: Path) -> dict[str, dict[str, str]]:
    """Returns the rows of ``root/clips.csv`` by path; none if there is no such file."""
    path = root / CLIPS_CSV
    if not path.is_file():
        return {}
    try:
        rows = read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}).") from None
    if (told := misspelt_column(rows[0] if rows else (), ("path", "label", "group", "camera", "split"))) is not None:
        raise DataError(f"{path}: {told}")
    if rows and not {"path", "label"} <= set(rows[0]):
        raise DataError(f"{path}: its first line must name the columns path and label; it has {list(rows[0])}.")
    by_path: dict[str, dict[str, str]] = {}
    for row in rows:
        if not row["path"].strip():
            raise DataError(f"{path}: a row has no path.")
        name = posixpath.normpath(row["path"].replace("\\", "/"))  # theft/a/ is theft/a
        if name.startswith(("/", "../")) or name in (".", "..") or len(name) > _LONGEST_NAME:
            raise DataError(f"{path}: {name[:80]} must be a path below {root}.")
        if name in by_path:
            raise DataError(f"{path}: {name} stands there twice.")
        by_path[name] = row
    return by_path


def _rows_as_they_stand(root: Path) -> dict[str, dict[str, str]]:
    """Returns what ``_read_clips_csv`` does, kept until the file changes: thousands of clips may ask one by one."""
    status = (root / CLIPS_CSV).stat()
    return _rows_of_version(root, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _rows_of_version(root: Path, _mtime_ns: int, _size: int) -> dict[str, dict[str, str]]:
    return _read_clips_csv(root)


def _check_classes(classes: Sequence[str], present: Collection[str], root: Path) -> None:
    if len(set(classes)) != len(classes):
        raise ConfigError(f"--classes {','.join(classes)} names a class twice.")
    for name in classes:
        if name not in present:
            raise ConfigError(
                f"--classes names {name!r}, but {root} has no folder of that name; "
                f"it has {', '.join(present) or 'none'}.{did_you_mean(name, present)}"
            )


def _holds_frames(folder: Path) -> bool:
    """Whether there is an image in a folder; not in one that cannot be listed."""
    try:
        return any(map(is_frame_file, folder.iterdir()))
    except OSError:
        return False


def _leads_back(folder: Path) -> bool:
    """Whether a folder is a link to one that it lies in."""
    parent = folder.parent.resolve()
    return folder.is_symlink() and folder.resolve() in (parent, *parent.parents)


def _number(row: Mapping[str, str], column: str) -> float | None:
    """Returns a positive number from clips.csv, None where the field is empty or absent."""
    text = row.get(column, "")
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1e-3 <= number <= 1e6:
        raise DataError(
            f"{CLIPS_CSV}: {column} of {row.get('path')} is {text!r}, not a number between 0.001 and 1000000."
        )
    return number


def count_and_names(names: Sequence[str]) -> str:
    """Returns "3 (a, b, c)", the count always whole, the names cut after a few."""
    more = ", ..." if len(names) > _NAMED_AT_MOST else ""
    return f"{len(names)} ({', '.join(names[:_NAMED_AT_MOST])}{more})"

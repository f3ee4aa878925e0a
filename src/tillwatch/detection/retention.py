"""Evidence that is old enough, deleted: what its manifest names, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tillwatch.detection.evidence import MANIFEST, SEAL, UNFINISHED, says_unfinished, seal_of
from tillwatch.errors import ConfigError, DataError, one_line

_LONGEST_DAYS = 36_500


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What became of evidence.

    Attributes:
        deleted: files that are gone.
        old, kept: folders that were old enough, and those that were not.
        staying: what ought to have gone, or lies beside it, with the reason.
    """

    deleted: Sequence[Path]
    old: int
    kept: int
    staying: Sequence[tuple[Path, str]]


def prune(folders: Sequence[Path], days: int, *, now: datetime, dry_run: bool = False) -> Pruned:
    """Deletes evidence that was collected ``days`` ago or more.

    Of a folder goes what its manifest names, then manifest and seal, then the folder if nothing else lies in it. A
    manifest that is not the one that was sealed is not believed: nothing goes.

    Args:
        folders: of evidence, or folders that are searched for such.
        days: how long evidence is kept.
        now: the time that age is counted to.
        dry_run: say what would go, and delete nothing.

    Raises:
        ConfigError: if no folder is given, or the days make no sense.
        DataError: if a folder does not exist or holds no evidence.
    """
    if not folders:
        raise ConfigError("give at least one folder of evidence.")
    if not 1 <= days <= _LONGEST_DAYS:
        raise ConfigError(f"--retention-days is {days}; it must be at least 1, at most {_LONGEST_DAYS}.")
    deleted: list[Path] = []
    staying: list[tuple[Path, str]] = []
    old = kept = 0
    manifests = _manifests(folders)
    for folder in _unfinished(folders):
        staying.append((folder, "it is not finished, so nothing tells when it was collected"))
    for manifest in manifests:
        try:
            names, collected = _read(manifest)
        except DataError as error:
            staying.append((manifest.parent, one_line(error)))
            continue
        if now - collected < timedelta(days=days):
            kept += 1
            continue
        old += 1
        gone, refused = _delete(manifest.parent, names, dry_run)
        deleted += gone
        staying += refused
    return Pruned(deleted=deleted, old=old, kept=kept, staying=staying)


def _unfinished(folders: Sequence[Path]) -> list[Path]:
    """Returns folders of evidence, in folders and below, whose collecting was broken off or goes on."""
    marks = {mark.resolve(): mark for folder in folders for mark in sorted(folder.rglob(UNFINISHED))}
    return [mark.parent for mark in marks.values() if says_unfinished(mark)]


def _manifests(folders: Sequence[Path]) -> list[Path]:
    """Returns the manifests of evidence in folders and below; files of that name that others wrote are none."""
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder.")
        here = [path for path in sorted(folder.rglob(MANIFEST)) if path.is_file() and path.with_name(SEAL).is_file()]
        if not here and not _unfinished([folder]):
            raise DataError(f"{folder} holds no {MANIFEST} with its {SEAL}; give what tillwatch evidence wrote.")
        found |= {path.resolve(): path for path in here}
    return list(found.values())


def _read(manifest: Path) -> tuple[list[str], datetime]:
    """Returns what a manifest names, and when it was collected."""
    try:
        if manifest.with_name(SEAL).read_bytes() != seal_of(manifest).encode():
            raise DataError(f"{MANIFEST} is not the one that {SEAL} is of, so what it names is not believed")
        record: Mapping[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        collected = datetime.fromisoformat(record["collected"])
        if collected.tzinfo is None:
            raise ValueError("its time has no zone")
        names = [str(name) for name in record["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{MANIFEST} does not tell when it was collected ({one_line(error)})") from None
    outside = [name for name in names if name in ("", "..") or Path(name).name != name]
    if outside:
        raise DataError(f"{MANIFEST} names {outside[0]!r}, which is no file beside it")
    return names, collected


def _delete(folder: Path, names: Sequence[str], dry_run: bool) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Deletes files, the manifest last but one: what is broken off can be begun again."""
    gone: list[Path] = []
    staying: list[tuple[Path, str]] = []
    for path in (folder / name for name in (*names, MANIFEST, SEAL)):
        if path.name in (MANIFEST, SEAL) and staying:
            break  # it tells what is left to do
        try:
            if dry_run:
                path.lstat()
            else:
                path.unlink()
            gone.append(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            staying.append((path, error.strerror or one_line(error)))
    known = {*names, MANIFEST, SEAL}
    others = [entry for entry in sorted(folder.iterdir()) if entry.name not in known]
    staying += [(entry, "the manifest does not name it") for entry in others]
    if not dry_run and not any(folder.iterdir()):
        folder.rmdir()
    return gone, staying

"""The audit, run: fingerprints, copies, groups and cues of a catalogue of clips."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tillwatch.clip_spec import FrameStep, choose_event
from tillwatch.config import TrainConfig
from tillwatch.data.audit import Finding, count_groups, find_problems, tables
from tillwatch.data.catalog import OWN_GROUPS, Catalog, Clip, Search, look_into, search_folder
from tillwatch.data.duplicates import find_copies
from tillwatch.data.fingerprints import take_fingerprints
from tillwatch.data.grouping import settle_groups
from tillwatch.data.provenance import read_extraction
from tillwatch.data.store import ClipStore
from tillwatch.errors import ConfigError, DataError
from tillwatch.evaluation.audit_report import AuditReport
from tillwatch.evaluation.confounds import cue_values, measure_cues


@dataclass(frozen=True, kw_only=True)
class Audited:
    """Clips in the groups that training goes by, and what the audit says of them.

    Attributes:
        catalog: with its groups settled.
        report: the audit.
        notes: sentences about groups that a user should read.
        seconds: that it took.
    """

    catalog: Catalog
    report: AuditReport
    notes: tuple[str, ...]
    seconds: float


def check_groups(search: Search, config: TrainConfig) -> None:
    """Holds ``--groups`` against what is there; with none, forgets the groups of clips.csv.

    Raises:
        ConfigError, DataError: if the groups asked for are nowhere to be found.
    """
    if config.groups == "pattern" and config.group_pattern is None:
        raise ConfigError("--groups pattern needs --group-pattern, a regular expression on the clips' names.")
    if config.groups in ("file", "none") and config.group_pattern is not None:
        raise ConfigError(f"--groups {config.groups} and --group-pattern exclude each other; give one.")
    if config.groups == "file" and not any(row.get("group") for row in search.rows.values()):
        raise DataError(f"--groups file: {search.root / 'clips.csv'} names no group; write its column group.")
    if config.groups == "none":
        for row in search.rows.values():
            row["group"] = ""


def audit_catalog(
    catalog: Catalog,
    event: Sequence[str],
    config: TrainConfig,
    *,
    num_frames: int,
    workers: int = 0,
    store: ClipStore | None = None,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> Audited:
    """Looks at every clip once and settles the groups.

    Args:
        catalog: the clips.
        event: the classes worth an alarm.
        config: how groups are to be found.
        num_frames: that a clip should have.
        workers: threads; 0 for one a core.
        store: keeps fingerprints for the next time.
        on_clip: called with (clips done, clips in all).
    """
    started = time.perf_counter()
    prints = take_fingerprints(catalog.clips, workers=workers, store=store, on_clip=on_clip)
    copies = find_copies(catalog.clips, prints)
    grouping, notes = settle_groups(catalog, prints, copies, config.groups, config.group_pattern)
    clips = tuple(replace(clip, group=grouping.groups[clip.name]) for clip in catalog.clips)
    kept = [note for note in catalog.notes if note != OWN_GROUPS]
    catalog = replace(catalog, clips=clips, notes=tuple(kept))
    known = [clip for clip in clips if clip.name in prints]
    is_event = np.array([clip.label in event for clip in known], dtype=bool)
    cues = measure_cues(cue_values(known, prints), is_event, [clip.group for clip in known]) if known else []
    flagged = [Finding(kind="confound", severity="problem", text=cue.sentence) for cue in cues if cue.flagged]
    if not cues and len(set(is_event.tolist())) == 2:
        flagged.append(Finding(kind="confound", severity="note", text=_unmeasured(known, event)))
    report = AuditReport(
        clips=len(clips),
        classes=catalog.class_counts,
        groups=count_groups(grouping),
        claim=grouping.claim,
        findings=(*flagged, *find_problems(catalog, prints, copies, grouping.scenes, num_frames)),
        cues=tuple(cues),
        tables=tables(clips, prints),
    )
    return Audited(catalog=catalog, report=report, notes=tuple(notes), seconds=time.perf_counter() - started)


def _unmeasured(clips: Sequence[Clip], event: Sequence[str]) -> str:
    """Says that no cue was measured, and why."""
    kinds = {" or ".join(event): True, "everything else": False}
    groups = {name: {clip.group for clip in clips if (clip.label in event) == kind} for name, kind in kinds.items()}
    single = [name for name, found in groups.items() if len(found) < 2]
    why = f"all clips of {' and of '.join(single)} are of one group" if single else "the clips do not differ in any"
    return f"Whether a cue that has nothing to do with motion tells the classes apart was not measured: {why}."


def audit_folder(
    data: Path,
    config: TrainConfig,
    *,
    num_frames: int = 16,
    workers: int = 0,
    store: ClipStore | None = None,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> Audited:
    """Audits class folders of clips; one class alone has no event and no cues.

    Args:
        data: class folders of frame folders or videos.
        config: classes, event, frames, groups.
        num_frames: that a clip should have.
        workers, store, on_clip: as :func:`audit_catalog`.

    Raises:
        ConfigError, DataError: if the data cannot be used.
    """
    search = search_folder(data, config.classes)
    event = choose_event(search.classes, config.event) if len(search.classes) > 1 else search.classes
    check_groups(search, config)
    extraction = read_extraction(data)
    step = FrameStep() if extraction is None else extraction.step
    if config.every is not None or config.fps is not None:
        step = FrameStep(every=config.every or 1, fps=config.fps)
    catalog = look_into(
        search, num_frames=num_frames, step=step, short=config.short, group_pattern=config.group_pattern
    )
    return audit_catalog(catalog, event, config, num_frames=num_frames, workers=workers, store=store, on_clip=on_clip)

"""What a data set holds and what is wrong with it: counts, damage, copies, scenes that clips share."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tillwatch.data.catalog import Catalog, Clip, count_and_names
from tillwatch.data.duplicates import Copy
from tillwatch.data.fingerprints import Fingerprint
from tillwatch.data.grouping import Grouping

Severity = Literal["problem", "warning", "note"]

_BLACK = 24  # grey levels: 99 of 100 pixels of a black clip are darker
_SAME = 2  # grey levels that two coded pictures of one frame may differ by
_FROZEN_S = 1.0  # of the same frame, at least
_FROZEN_SHARE = 0.5  # and of the clip
_NAMED = 5  # clips of a scene
_SHORT_SHARE = 0.25  # of the usual length
_BOUNDS_S = (0.5, 1, 2, 3, 5, 10, 30, 60)
_LENGTHS = (*(f"under {bound:g}" for bound in _BOUNDS_S), f"{_BOUNDS_S[-1]} or more", "unknown")
_PLACE_CLIPS, _PLACE_SHARE = 10, 0.8  # of a class, in one scene without others: from there on a place is its label


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something about the data that a user should know.

    Attributes:
        kind: such as "damaged", "black", "frozen", "short", "exact copy", "near-duplicate", "shared scene", "confound".
        severity: a problem spoils training or figures, a warning may, a note is good to know.
        text: one sentence.
        clips: names of the clips that it concerns.
    """

    kind: str
    severity: Severity
    text: str
    clips: tuple[str, ...] = ()


def find_problems(
    catalog: Catalog,
    prints: Mapping[str, Fingerprint],
    copies: Sequence[Copy],
    scenes: Sequence[Sequence[str]],
    num_frames: int,
) -> list[Finding]:
    """Returns what is wrong with clips, problems first.

    Args:
        catalog: the clips, and those left out.
        prints: by clip name; a clip without one gave no frame.
        copies: pairs of one footage.
        scenes: names of the clips of each scene that several share.
        num_frames: that a clip should have.
    """
    found = [
        *_damaged(catalog, prints),
        *_dead(catalog.clips, prints),
        *_short(catalog, num_frames),
        *_copies(catalog.clips, copies),
        *_scenes(catalog.clips, scenes),
    ]
    order = {"problem": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda finding: order[finding.severity])


def count_groups(grouping: Grouping) -> dict[str, Any]:
    """Returns the groups as audit.json has them."""
    sizes = Counter(grouping.groups.values())
    return {
        "count": len(sizes),
        "source": grouping.source,
        "how": grouping.how,
        "sizes": dict(sizes.most_common()),
    }


def tables(clips: Sequence[Clip], prints: Mapping[str, Fingerprint]) -> dict[str, list[dict[str, Any]]]:
    """Returns how many clips of each class have which size and frame rate, the commonest first, and which length."""
    known = [clip for clip in clips if clip.name in prints]

    def size(clip: Clip) -> str:
        return f"{prints[clip.name].width}x{prints[clip.name].height}"

    return {
        "seconds": sorted(_table(clips, _length), key=lambda row: _LENGTHS.index(row["value"])),
        "size": _table(known, size),
        "fps": _table(clips, lambda clip: "unknown" if clip.fps is None else f"{clip.fps:.4g}"),
        "codec": _table(known, lambda clip: prints[clip.name].codec),
    }


def still_share(frames: NDArray[np.uint8]) -> float:
    """Returns the share of a clip, uint8 ``(T, H, W)``, that its longest row of equal frames makes up."""
    if len(frames) < 2:
        return 0.0
    same = np.abs(np.diff(frames.astype(np.int16), axis=0)).max((1, 2)) <= _SAME
    longest = run = 0
    for equal in same.tolist():
        run = run + 1 if equal else 0
        longest = max(longest, run)
    return longest / len(same)


def _damaged(catalog: Catalog, prints: Mapping[str, Fingerprint]) -> Iterator[Finding]:
    for skip in catalog.skipped:
        text = f"{skip.name} cannot be used: {skip.reason}."
        yield Finding(kind="damaged", severity="problem", text=text, clips=(skip.name,))
    for clip in catalog.clips:
        if clip.name not in prints:
            text = f"{clip.name} gives no frame."
            yield Finding(kind="damaged", severity="problem", text=text, clips=(clip.name,))
        elif damage := prints[clip.name].damage:
            text = f"{clip.name} breaks off: {damage}."
            yield Finding(kind="damaged", severity="problem", text=text, clips=(clip.name,))


def _dead(clips: Sequence[Clip], prints: Mapping[str, Fingerprint]) -> Iterator[Finding]:
    """Black and frozen clips."""
    for clip in clips:
        taken = prints.get(clip.name)
        if taken is None:
            continue
        if np.percentile(taken.frames, 99) < _BLACK:
            text = f"{clip.name} is black from beginning to end."
            yield Finding(kind="black", severity="problem", text=text, clips=(clip.name,))
            continue
        share = still_share(taken.frames)
        if share >= _FROZEN_SHARE and share * float(taken.times[-1]) >= _FROZEN_S:
            text = f"{clip.name} shows the same frame for {share:.0%} of its length: frozen, or nothing moves in it."
            yield Finding(kind="frozen", severity="warning", text=text, clips=(clip.name,))


def _short(catalog: Catalog, num_frames: int) -> Iterator[Finding]:
    for skip in catalog.too_short:
        text = f"{skip.name} is left out: {skip.reason}."
        yield Finding(kind="short", severity="warning", text=text, clips=(skip.name,))
    seconds = [clip.seconds for clip in catalog.clips if clip.seconds is not None]
    usual = float(np.median(seconds)) if seconds else 0.0
    for clip in catalog.clips:
        if clip.seconds is not None and clip.seconds < _SHORT_SHARE * usual:
            text = f"{clip.name} lasts {clip.seconds:.2f} s, far less than the usual {usual:.1f} s."
            yield Finding(kind="short", severity="warning", text=text, clips=(clip.name,))
    few = [clip.name for clip in catalog.clips if clip.stepped_frames < num_frames]
    if few:
        text = f"Fewer than {num_frames} frames in {count_and_names(few)}: frames will repeat."
        yield Finding(kind="short", severity="note", text=text, clips=tuple(few))


def _copies(clips: Sequence[Clip], copies: Sequence[Copy]) -> Iterator[Finding]:
    labels = {clip.name: clip.label for clip in clips}
    for copy in copies:
        names = (copy.original, copy.copy)
        other = labels[copy.original] != labels[copy.copy]
        but = f", but bears another label ({labels[copy.copy]}, {labels[copy.original]})" if other else ""
        if copy.exact:
            kind, text = "exact copy", f"{copy.copy} is {copy.original} byte for byte{but}."
        else:
            kind = "near-duplicate"
            text = (
                f"{copy.copy} is {copy.original} again, {', '.join(copy.transforms)}: {copy.overlap_s:.1f} s of the "
                f"same footage, from {copy.copy_from_s:.1f} s and {copy.original_from_s:.1f} s on{but}."
            )
        yield Finding(kind=kind, severity="problem" if other else "warning", text=text, clips=names)


def _scenes(clips: Sequence[Clip], scenes: Sequence[Sequence[str]]) -> Iterator[Finding]:
    """Finds places that several clips show, and classes that have one to themselves, as good as a label."""
    labels = {clip.name: clip.label for clip in clips}
    counts = Counter(labels.values())
    for names in scenes:
        classes = Counter(labels[name] for name in names)
        counted = ", ".join(f"{label} {count}" for label, count in classes.most_common())
        rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        few = ", ".join(names[:_NAMED]) + rest
        text = f"{len(names)} clips show one scene ({counted}): {few}."
        yield Finding(kind="shared scene", severity="note", text=text, clips=tuple(names))
        everything = sum(counts[label] for label in classes)
        if len(classes) < len(counts) and len(names) >= max(_PLACE_CLIPS, _PLACE_SHARE * everything):
            alone = " or ".join(label for label in counts if label in classes)
            text = (
                f"{len(names)} of the {everything} clips of {alone} show one scene, which no clip of another class "
                f"shows: the place alone tells {'the class' if len(classes) == 1 else 'these classes from the rest'}."
            )
            yield Finding(kind="confound", severity="problem", text=text, clips=tuple(names))


def _length(clip: Clip) -> str:
    return _LENGTHS[-1 if clip.seconds is None else bisect_right(_BOUNDS_S, clip.seconds)]


def _table(clips: Sequence[Clip], value_of: Callable[[Clip], str]) -> list[dict[str, Any]]:
    counts: dict[str, Counter[str]] = {}
    for clip in clips:
        counts.setdefault(value_of(clip), Counter())[clip.label] += 1
    ordered = sorted(counts, key=lambda value: (-counts[value].total(), value))
    return [{"value": value, "clips": counts[value].total(), "classes": dict(counts[value])} for value in ordered]

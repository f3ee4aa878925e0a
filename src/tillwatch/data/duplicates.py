"""Copies of one footage: the same bytes, or the same motion before the same scene.

What changes from frame to frame tells footage apart even where one camera sees everything: a few probes of each clip,
compared with all frames of all clips by products of matrices, name candidates; each is then compared frame by frame.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tillwatch.data.catalog import Clip, Found
from tillwatch.data.fingerprints import SIDE, Fingerprint, content_digest, content_size
from tillwatch.data.scenes import local_contrast, unit_rows
from tillwatch.errors import ClipError

_LAG_S = 0.2  # over which change is looked at
_CELLS = 16  # each way, of a picture of change
_PROBES = 6  # a clip
_CANDIDATE = 0.6  # likeness of two pictures of change
_SAME_CHANGE = 0.85  # likeness of all change in the time that two clips share
_SAME_PICTURE = 0.98  # likeness of the pictures in that time; films of one till in which the same is done reach 0.977
_SAME_MOMENT = 0.985  # in a moment more must be alike
_MOMENT_S = 1.2
_SAME_STILL = 0.999  # where little moves, coding changes much of it and the picture hardly
_SAME_STILL_CHANGE = 0.5
_LITTLE_MOVES = 1.0  # grey levels: median of change below which the whole of a clip is looked at instead
_SAME_MEAN = 0.99  # likeness of mean pictures; other clips of one till reach 0.981
_SAME_DEPARTURE = 0.4  # and of what departs from them; other moments of one film reach 0.34, copies come down to 0.44
_SAME_BOTH = 0.45  # mean of that and the likeness of change; others reach 0.38, copies come down to 0.48
_LEAST_OVERLAP_S = 0.5
_WHITE, _BLACK = 245, 8  # grey levels beyond which light may have been cut off
_MUCH_WHITE = 0.05  # share of the pixels
_STILL = 0.3  # grey levels: root mean square of change below which it is noise
_BLOCK = 2048  # rows of a product of matrices
_PARTNERS = 20  # candidates of a clip that are compared, at most

Matrix = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Two clips of the same footage.

    Attributes:
        original, copy: their names. Which is which is a guess: the copy is smaller, shorter or has fewer bytes.
        exact: whether their files hold the same bytes.
        transforms: what was done to the copy, as far as it can be told, such as "mirrored" or "trimmed".
        overlap_s: seconds of footage that they share.
        original_from_s, copy_from_s: where these begin in each.
    """

    original: str
    copy: str
    exact: bool
    transforms: tuple[str, ...]
    overlap_s: float
    original_from_s: float = 0.0
    copy_from_s: float = 0.0


@dataclass(frozen=True)
class _Motion:
    """What changes in a clip over time, and how much."""

    times: NDArray[np.float64]
    change: Matrix  # (T, 256), grey levels over the clip's contrast
    strength: NDArray[np.float64]  # (T,), root mean square of change, grey levels
    frames: NDArray[np.uint8]  # (T, 32, 32)


def find_copies(clips: Sequence[Clip], prints: Mapping[str, Fingerprint]) -> list[Copy]:
    """Returns the pairs of clips that show the same footage for half a second or more.

    Args:
        clips: those that have fingerprints are compared.
        prints: by clip name.
    """
    known = [clip for clip in clips if clip.name in prints]
    exact = list(_exact(known, prints))
    found = {frozenset((pair.original, pair.copy)) for pair in exact}
    taken = [prints[clip.name] for clip in known]
    motions = [_motion(one.frames, one.times) for one in taken]
    near = []
    for (a, b, mirrored), offsets in _candidates(motions).items():
        if frozenset((known[a].name, known[b].name)) in found:
            continue
        first = _motion(taken[a].frames[:, :, ::-1], taken[a].times) if mirrored else motions[a]
        shared = max((_compare(first, motions[b], offset) for offset in offsets), key=lambda one: one.likeness)
        if _is_same(shared):
            found.add(frozenset((known[a].name, known[b].name)))
            near.append(_describe((known[a], known[b]), (taken[a], taken[b]), shared, mirrored))
    for a, b, mirrored, shared in _still_copies(taken, motions):
        if (pair := frozenset((known[a].name, known[b].name))) not in found:
            found.add(pair)
            near.append(_describe((known[a], known[b]), (taken[a], taken[b]), shared, mirrored))
    return [*exact, *near]


def _still_copies(
    prints: Sequence[Fingerprint], motions: Sequence[_Motion]
) -> Iterator[tuple[int, int, bool, _Shared]]:
    """Yields pairs of whole clips in which little moves, and whether the first is mirrored in the other.

    Coding smooths change away, but not what it adds up to: a person standing there departs from the mean picture by
    more than from the last frame. Noise of two films of one empty scene does too, but not in the same places; so such
    clips must be of one length and begin together.
    """
    still = [index for index, one in enumerate(motions) if float(np.median(one.strength)) < _LITTLE_MOVES]
    departures = {index: _departure(prints[index].frames) for index in still}
    for place, a in enumerate(still):
        turned = _departure(prints[a].frames[:, :, ::-1])
        for b in still[place + 1 :]:
            if not _same_times(prints[a].times, prints[b].times):
                continue
            length = min(len(prints[a].times), len(prints[b].times))
            for mirrored, departure in ((False, departures[a]), (True, turned)):
                departs = _likeness(departure[:length], departures[b][:length])
                if departs < _SAME_DEPARTURE:
                    continue
                frames = prints[a].frames[:, :, :: -1 if mirrored else 1]
                first = _motion(frames, prints[a].times) if mirrored else motions[a]
                change = _compare(first, motions[b], 0.0).likeness
                lit = _in_same_light(frames[:length], prints[b].frames[:length])
                ours, theirs = (_pictures(pictures.mean(0)[None])[0] for pictures in lit)
                likeness, alike = (departs + change) / 2, float(ours @ theirs)
                if likeness >= _SAME_BOTH and alike >= _SAME_MEAN:
                    seconds = float(prints[a].times[length - 1])
                    yield a, b, mirrored, _Shared(likeness, alike, seconds, (0.0, 0.0))


def _same_times(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Whether two clips have as many frames, but for one, and last as long, but for that one."""
    if min(len(a), len(b)) < 2 or abs(len(a) - len(b)) > 1:
        return False
    return min(float(a[-1]), float(b[-1])) >= _LEAST_OVERLAP_S and abs(float(a[-1] - b[-1])) <= 1.5 * float(a[1])


def _departure(frames: NDArray[np.uint8]) -> Matrix:
    """Returns what sets each frame apart from the mean one, less light that changes as a whole: ``(T, 1024)``."""
    rows = frames.reshape(len(frames), -1).astype(np.float32)
    rows -= rows.mean(0)
    rows -= rows.mean(1, keepdims=True)
    return rows


def _exact(clips: Sequence[Clip], prints: Mapping[str, Fingerprint]) -> Iterator[Copy]:
    for name, first in find_exact(clips, lambda clip: prints[clip.name].bytes).items():
        seconds = float(prints[name].times[-1])
        yield Copy(original=first, copy=name, exact=True, transforms=(), overlap_s=seconds)


def find_same_files(clips: Sequence[Clip | Found], known: Sequence[Clip | Found]) -> dict[str, str]:
    """Returns which clips hold the bytes of one that is known, whatever their names: its name by theirs.

    Sizes are compared first, so that only what may be the same is read. What cannot be read is no copy.
    """
    by_size: dict[int, list[Clip | Found]] = defaultdict(list)
    for one in known:
        with suppress(OSError, ClipError):
            by_size[content_size(one)].append(one)
    digests: dict[int, dict[str, str]] = {}  # of the known ones, by size: many clips may be of one
    found = {}
    for clip in clips:
        with suppress(OSError, ClipError):
            size = content_size(clip)
            if size not in by_size:
                continue
            if size not in digests:
                digests[size] = dict(_digests(by_size[size]))
            if (name := digests[size].get(content_digest(clip))) is not None:
                found[clip.name] = name
    return found


def find_exact(clips: Sequence[Clip], size_of: Callable[[Clip], int] = content_size) -> dict[str, str]:
    """Returns which clips hold the bytes of one before them: its name by theirs.

    Sizes are compared first, so that only what may be the same is read. What cannot be read is no copy.

    Args:
        clips: to compare.
        size_of: tells a clip's bytes, where they are known already.
    """
    by_size: dict[int, list[Clip]] = defaultdict(list)
    for clip in clips:
        with suppress(OSError, ClipError):
            by_size[size_of(clip)].append(clip)
    found = {}
    for several in by_size.values():
        firsts: dict[str, str] = {}
        for digest, name in _digests(several) if len(several) > 1 else ():
            if (first := firsts.setdefault(digest, name)) != name:
                found[name] = first
    return found


def _digests(clips: Sequence[Clip | Found]) -> Iterator[tuple[str, str]]:
    for clip in clips:
        with suppress(OSError, ClipError):
            yield content_digest(clip), clip.name


def _motion(frames: NDArray[np.uint8], times: NDArray[np.float64]) -> _Motion:
    grey = frames.astype(np.float32)
    lag = max(1, int(np.searchsorted(times, _LAG_S - 1e-6)))
    change = np.zeros((max(1, len(grey) - lag), _CELLS * _CELLS), np.float32)
    contrast = grey.std() + 1.0
    for row in range(len(grey) - lag):
        small = cv2.resize(grey[row + lag] - grey[row], (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)
        change[row] = (small - small.mean()).ravel()  # light that changes as a whole is no motion
    strength = np.sqrt((change.astype(np.float64) ** 2).mean(1))
    return _Motion(times[: len(change)], (change / contrast).astype(np.float32), strength, frames[: len(change)])


def _candidates(motions: Sequence[_Motion]) -> dict[tuple[int, int, bool], set[float]]:
    """Returns pairs of clips, the first mirrored or not, with the offsets in time at which a probe was found again."""
    owners = np.concatenate([np.full(len(one.times), index) for index, one in enumerate(motions)])
    times = np.concatenate([one.times for one in motions])
    everything = unit_rows(np.concatenate([one.change for one in motions]))
    starts = np.concatenate([[0], np.cumsum([len(one.times) for one in motions])])
    probes = np.concatenate([starts[index] + _probes(one) for index, one in enumerate(motions)]).astype(int)
    found: dict[tuple[int, int, bool], dict[float, float]] = defaultdict(dict)
    for mirrored in (False, True):
        rows = everything[probes]
        if mirrored:
            rows = rows.reshape(-1, _CELLS, _CELLS)[:, :, ::-1].reshape(len(rows), -1)
        for start in range(0, len(rows), _BLOCK):
            likeness = rows[start : start + _BLOCK] @ everything.T
            for row, column in np.argwhere(likeness > _CANDIDATE).tolist():
                probe = probes[start + row]
                a, b = int(owners[probe]), int(owners[column])
                if a == b:
                    continue
                offset = round(float(times[column] - times[probe]), 3)
                pair = (a, b, mirrored) if a < b else (b, a, mirrored)
                signed = offset if a < b else -offset
                known = found[pair]
                known[signed] = max(known.get(signed, 0.0), float(likeness[row, column]))
    return _likeliest(found)


def _likeliest(
    found: Mapping[tuple[int, int, bool], Mapping[float, float]],
) -> dict[tuple[int, int, bool], set[float]]:
    """Keeps of each clip the partners most like it, and of each pair the offsets most like, so that work is bounded."""
    ranked = sorted(found, key=lambda pair: -max(found[pair].values()))
    taken: dict[int, int] = defaultdict(int)
    kept = {}
    for pair in ranked:
        if min(taken[pair[0]], taken[pair[1]]) < _PARTNERS:
            taken[pair[0]] += 1
            taken[pair[1]] += 1
            kept[pair] = set(sorted(found[pair], key=lambda offset: -found[pair][offset])[:5])
    return kept


def _probes(one: _Motion) -> NDArray[np.int64]:
    """Returns the rows with most change of each of a few equal parts of a clip; none of a part where nothing moves."""
    parts = np.array_split(np.arange(len(one.times)), min(_PROBES, len(one.times)))
    rows = np.array([part[np.argmax(one.strength[part])] for part in parts], dtype=np.int64)
    return rows[one.strength[rows] > _STILL]


@dataclass(frozen=True)
class _Shared:
    likeness: float  # of change
    alike: float  # pictures
    seconds: float
    starts: tuple[float, float]


def _compare(a: _Motion, b: _Motion, offset: float) -> _Shared:
    """Compares two clips where they overlap when time t of the first is time t + offset of the second."""
    wanted = a.times + offset
    places = np.clip(np.searchsorted(b.times, wanted), 1, max(1, len(b.times) - 1))
    places = np.minimum(places, len(b.times) - 1)
    before = np.maximum(places - 1, 0)
    nearest = np.where(np.abs(b.times[before] - wanted) <= np.abs(b.times[places] - wanted), before, places)
    step = float(max(np.diff(a.times, prepend=a.times[0]).max(), np.diff(b.times, prepend=b.times[0]).max()))
    rows = np.flatnonzero(np.abs(b.times[nearest] - wanted) <= step / 2 + 1e-6)
    if not len(rows):
        return _Shared(0.0, 0.0, 0.0, (0.0, 0.0))
    others = nearest[rows]
    seconds = float(a.times[rows[-1]] - a.times[rows[0]]) + step + _LAG_S
    moving = (a.strength[rows] > _STILL) | (b.strength[others] > _STILL)
    if seconds < _LEAST_OVERLAP_S or moving.sum() < 3:
        return _Shared(0.0, 0.0, seconds, (0.0, 0.0))
    ours, theirs = a.change[rows][moving].astype(np.float64), b.change[others][moving].astype(np.float64)
    likeness = _likeness(ours, theirs)
    pictures = map(_pictures, _in_same_light(a.frames[rows], b.frames[others]))
    alike = float(np.prod(list(pictures), axis=0).sum(1).mean())
    return _Shared(likeness, alike, seconds, (float(a.times[rows[0]]), float(b.times[others[0]])))


def _likeness(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Returns the cosine of two arrays, all of each taken as one vector; nothing is like what is zero throughout."""
    ours, theirs = a.ravel(), b.ravel()
    return float(ours @ theirs / (np.sqrt(float(ours @ ours) * float(theirs @ theirs)) + 1e-9))


def _in_same_light(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[Matrix, Matrix]:
    """Returns the frames of two clips, moment by moment, as if they had the same light: float32, grey levels.

    Gain and offset are no matter to local contrast, but white is: what brightening made white has none. So where much
    is white, the darker clip is brightened as a straight line through the other pixels says, and cut off likewise.
    """
    grey = [frames.astype(np.float32) for frames in (a, b)]
    if max(float((frames > _WHITE).mean()) for frames in grey) >= _MUCH_WHITE:
        dark, bright = sorted((0, 1), key=lambda index: float(grey[index].mean()))
        inside = np.logical_and.reduce([(frames > _BLACK) & (frames < _WHITE) for frames in grey])
        x, y = grey[dark][inside], grey[bright][inside]
        if len(x) > 1 and (spread := float(x.var())) > 1:
            gain = max(0.0, float(((x - x.mean()) * (y - y.mean())).mean()) / spread)
            grey[dark] = np.clip(gain * (grey[dark] - x.mean()) + y.mean(), 0, 255)
    return grey[0], grey[1]


def _pictures(frames: NDArray[Any]) -> Matrix:
    """Returns frames as unit rows of local contrast, float32 ``(T, 1024)``."""
    grey = np.ascontiguousarray(frames, dtype=np.float32)
    return unit_rows(np.stack([local_contrast(frame).ravel() for frame in grey]))


def _is_same(shared: _Shared) -> bool:
    alike = _SAME_PICTURE if shared.seconds >= _MOMENT_S else _SAME_MOMENT
    still = shared.alike >= _SAME_STILL and shared.likeness >= _SAME_STILL_CHANGE
    return still or (shared.likeness >= _SAME_CHANGE and shared.alike >= alike)


def _describe(
    clips: tuple[Clip, Clip], prints: tuple[Fingerprint, Fingerprint], shared: _Shared, mirrored: bool
) -> Copy:
    lengths = [float(one.times[-1]) for one in prints]
    overlap = min(shared.seconds, *lengths)
    areas = [one.width * one.height for one in prints]

    def worth(index: int) -> tuple[float, int, float, str]:
        longer = lengths[index] if abs(lengths[0] - lengths[1]) > 0.15 else 0.0
        return -longer, -areas[index], -prints[index].bytes, clips[index].name

    first, second = sorted((0, 1), key=worth)
    transforms = ["mirrored"] if mirrored else []
    if (prints[first].width, prints[first].height) != (prints[second].width, prints[second].height):
        transforms.append("resized")
    if lengths[first] - overlap > 0.15:
        transforms.append("trimmed" if lengths[second] - overlap <= 0.15 else "overlapping in part")
    if difference := _light(prints[first], prints[second]):
        transforms.append(difference)
    return Copy(
        original=clips[first].name,
        copy=clips[second].name,
        exact=False,
        transforms=tuple(transforms) or ("re-encoded",),
        overlap_s=overlap,
        original_from_s=shared.starts[first],
        copy_from_s=shared.starts[second],
    )


def _light(original: Fingerprint, copy: Fingerprint) -> str:
    """Says whether the copy is brighter or darker by more than coding makes it."""
    levels = [float(np.median(one.background)) for one in (original, copy)]
    means = [float(one.background.mean()) for one in (original, copy)]
    shift = min(levels[1] - levels[0], means[1] - means[0], key=abs)
    if abs(shift) < 6:
        return ""
    return "brightened" if shift > 0 else "darkened"


assert SIDE % _CELLS == 0

"""Groups where nobody named any: clips of one scene; where all share a scene, of one day or recording.

Copies of one footage always share a group, and so do clips of one camera that overlap in time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tillwatch.data.catalog import CLIPS_CSV, Catalog, Clip, count_and_names
from tillwatch.data.duplicates import Copy
from tillwatch.data.fingerprints import Fingerprint
from tillwatch.data.recordings import Recorded, recorded, series
from tillwatch.data.scenes import find_scenes, scene_likeness

Mode = Literal["auto", "file", "pattern", "none"]
ClaimKind = Literal[
    "other groups", "other scenes", "this camera, other days", "this camera, other recordings", "unknown"
]

_ONE_CAMERA = 0.5  # of all clips in one scene: there is one camera, or one that matters
_NEARLY_ALL = 0.9  # of all clips in one scene: what is said of a score is said of that camera
_ENOUGH = 3  # groups of each class that a split needs
_NEIGHBOURS = 0.1  # likeness of backgrounds that have nothing in common is below this in nine of ten cases
_RARE = 0.05  # of all clips: a size and frame rate that fewer have tells their source
_PAUSE_S = 300  # clips with less than that between them are of one recording
_TOLD = 0.8  # of all clips must have a time, or a series of names that they share with others, to go by it
_FEW = 0.05  # of all clips that have no time do not matter to what a score can claim
_NAMED = 0.5  # of all clips must be in a group that somebody named, to speak of groups as they were named


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a score on held-out groups can say, and what it cannot."""

    kind: ClaimKind
    can: str
    cannot: str


CLAIMS: dict[ClaimKind, Claim] = {
    claim.kind: claim
    for claim in (
        Claim(
            kind="other groups",
            can="How the model does on groups like these that it has not seen, as you named them.",
            cannot="How it does on anything that all these groups share, be it the camera, the shop or the season.",
        ),
        Claim(
            kind="other scenes",
            can="How the model does in scenes like these that it has not seen.",
            cannot="That no source is on both sides: scenes were told apart by their pictures, and one source may show "
            "several. Name groups in clips.csv to be sure.",
        ),
        Claim(
            kind="this camera, other days",
            can="How the model does with this camera on other days.",
            cannot="How it does with any other camera or in any other place: all clips, or nearly all, show one scene.",
        ),
        Claim(
            kind="this camera, other recordings",
            can="How the model does with this camera on other recordings, which may be of the same day.",
            cannot="How it does with any other camera or place, nor on days with other light and other people.",
        ),
        Claim(
            kind="unknown",
            can="How the model does on other clips of the same recordings.",
            cannot="How it does on recordings, days or cameras that it has not seen: nothing tells which clips share a "
            "source, so the figures may flatter.",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Groups of clips, where they come from, and what they allow to claim.

    Attributes:
        groups: by clip name.
        source: "clips.csv", "--group-pattern", "inferred from scenes", "inferred from recordings" or "none".
        how: one sentence.
        claim: of a score on held-out groups.
        scenes: names of the clips of each scene that several share.
    """

    groups: dict[str, str]
    source: str
    how: str
    claim: Claim
    scenes: tuple[tuple[str, ...], ...] = ()


def settle_groups(
    catalog: Catalog, prints: Mapping[str, Fingerprint], copies: Sequence[Copy], mode: Mode, group_pattern: str | None
) -> tuple[Grouping, list[str]]:
    """Returns the groups that training goes by, and sentences a user should read.

    Args:
        catalog: the clips, with the groups that clips.csv or the pattern gives.
        prints: fingerprints by clip name.
        copies: pairs of one footage.
        mode: as ``--groups``.
        group_pattern: what the catalogue's groups were taken by, if by a pattern.
    """
    if mode == "auto" and catalog.own_groups:
        inferred = infer_groups(catalog.clips, prints, copies)
        return inferred, [f"groups are {inferred.source}, nobody named them: {inferred.how}"]
    scenes = scenes_of(catalog.clips, prints)
    groups = {clip.name: clip.group for clip in catalog.clips}
    if mode == "none" or catalog.own_groups:
        how = "Each clip is a group of its own, as --groups none asks."
        notes = [f"{how} If several were cut from one video, camera or day, the figures will flatter."]
        if copies:
            notes.append(f"--groups none divides copies of one footage: {_pairs(copies)}.")
        return Grouping(groups=groups, source="none", how=how, claim=CLAIMS["unknown"], scenes=scenes), notes
    source = CLIPS_CSV if group_pattern is None else "--group-pattern"
    divided = [copy for copy in copies if groups[copy.original] != groups[copy.copy]]
    joined = join_groups(groups, ((copy.original, copy.copy) for copy in copies))
    notes = [f"copies of one footage stood in different groups, now joined: {_pairs(divided)}."] if divided else []
    claim = CLAIMS["other groups"]
    if scenes and len(scenes[0]) > _NEARLY_ALL * len(catalog.clips):
        claim = replace(claim, cannot="How it does with another camera: nearly all clips show one scene.")
    how = f"Groups are those of {source}" + ("; copies of one footage were joined." if divided else ".")
    named = [clip.name not in catalog.ungrouped for clip in catalog.clips]
    if alone := named.count(False):
        how += f" {alone} of {len(catalog.clips)} clips are in none of them: each is a group of its own."
        if not mostly_named([clip.label for clip in catalog.clips], named):
            claim = CLAIMS["unknown"]
        else:
            claim = replace(claim, cannot=f"{claim.cannot} Nor that the {alone} clips without a group share no source.")
    return Grouping(groups=joined, source=source, how=how, claim=claim, scenes=scenes), notes


def mostly_named(labels: Sequence[str], named: Sequence[bool]) -> bool:
    """Whether at least half the clips of each class are in a group that somebody named."""
    counts = Counter(labels)
    in_groups = Counter(label for label, is_named in zip(labels, named, strict=True) if is_named)
    return all(in_groups[label] >= _NAMED * count for label, count in counts.items())


def infer_groups(clips: Sequence[Clip], prints: Mapping[str, Fingerprint], copies: Sequence[Copy]) -> Grouping:
    """Infers which clips share a source from what they show, how they were coded, their names and times.

    Clips share a group if they show one scene; if they stand side by side in their folder, have the same size and
    frame rate, and backgrounds not wholly unlike; or if few other clips have their size and frame rate. Where one scene
    holds most of the clips, or scenes leave a class fewer than three groups, days or recordings divide it.

    Args:
        clips: their own groups do not count.
        prints: by clip name; a clip without one is a group of its own.
        copies: pairs that always share a group.
    """
    known = [clip for clip in clips if clip.name in prints]
    likeness = scene_likeness([prints[clip.name] for clip in known]) if known else np.zeros((0, 0), np.float32)
    numbers = find_scenes(likeness)
    scenes = _several(known, numbers)
    if not _one_camera(clips, numbers):
        links = [*_same(known, numbers), *_neighbours(known, prints, likeness), *_rare(known, prints), *_of(copies)]
        groups = _named(_united([clip.name for clip in clips], links), "scene")
        if not _lacking(clips, groups):
            how = (
                f"{len(clips)} clips fall into {len(set(groups.values()))} groups by background, and by the size, "
                "frame rate and order of their files."
            )
            return Grouping(
                groups=groups, source="inferred from scenes", how=how, claim=CLAIMS["other scenes"], scenes=scenes
            )
    return _by_recording(clips, known, numbers, prints, copies, scenes)


def scenes_of(clips: Sequence[Clip], prints: Mapping[str, Fingerprint]) -> tuple[tuple[str, ...], ...]:
    """Returns the names of the clips of each scene that several share, the largest first."""
    known = [clip for clip in clips if clip.name in prints]
    return _several(known, find_scenes(scene_likeness([prints[clip.name] for clip in known]))) if known else ()


def join_groups(groups: Mapping[str, str], links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns the groups by clip name, those of linked clips joined under the name of the first."""
    pairs = [(groups[a], groups[b]) for a, b in links]
    united = _united(list(dict.fromkeys(groups.values())), pairs)
    return {name: united[group] for name, group in groups.items()}


def recorded_of(clip: Clip, prints: Mapping[str, Fingerprint]) -> Recorded | None:
    """Returns when a clip was recorded, if its name or its container tells."""
    taken = prints.get(clip.name)
    return recorded(clip.path.name, clip.seconds, taken.created if taken is not None else None)


def _by_recording(
    clips: Sequence[Clip],
    known: Sequence[Clip],
    numbers: Sequence[int],
    prints: Mapping[str, Fingerprint],
    copies: Sequence[Copy],
    scenes: tuple[tuple[str, ...], ...],
) -> Grouping:
    """Divides what one camera saw by day, else by recording, else by the series that file names form."""
    names = [clip.name for clip in clips]
    times = {clip.name: at for clip in clips if (at := recorded_of(clip, prints)) is not None}
    scene_of = {clip.name: number for clip, number in zip(known, numbers, strict=True)}
    always = [*_of(copies), *_overlapping(times, scene_of)]
    started = sum(at.start is not None and at.end is not None for at in times.values())
    days = {name: times[name].day.isoformat() for name in times}
    stems = {clip.name: series(clip.path.name) for clip in clips}
    lengths = Counter(stems.values())
    one_for_most = max(lengths.values()) > _ONE_CAMERA * len(clips)  # the camera's name, and no recording's
    in_series = sum(lengths[stem] > 1 for stem in stems.values()) >= _TOLD * len(clips) and not one_for_most
    one_place = "scenes do not divide the clips"
    if scenes:
        most = 2 * len(scenes[0]) > len(clips)
        one_place = "one camera sees most of the clips" if most else "a few cameras see the clips of a class"
    ways: list[tuple[bool, Callable[[], list[tuple[str, str]]], ClaimKind, str, str]] = [
        (
            len(times) >= _TOLD * len(clips),
            lambda: _alike(days),
            "this camera, other days",
            "day",
            "the days in their names or containers",
        ),
        (
            started >= _TOLD * len(clips),
            lambda: _sessions(times),
            "this camera, other recordings",
            "recording",
            "times with pauses of 5 minutes",
        ),
        (
            in_series,
            lambda: _alike(stems),
            "this camera, other recordings",
            "series",
            "what their file names have in common",
        ),
    ]
    for usable, links, kind, word, by in ways:
        united = _united(names, [*links(), *always]) if usable else {}
        if usable and not _lacking(clips, united):
            groups = _named(united, word, days if word == "day" else stems if word == "series" else None)
            count = len(set(groups.values()))
            how = f"{one_place[0].upper()}{one_place[1:]}, so {len(clips)} clips fall into {count} groups by {by}."
            claim = _of_these_cameras(CLAIMS[kind], scenes, len(clips))
            untimed = len(clips) - {"day": len(times), "recording": started, "series": len(clips)}[word]
            if untimed:
                how += f" {untimed} of them tell no time: each is a group of its own."
                claim = claim if untimed <= _FEW * len(clips) else CLAIMS["unknown"]
            return Grouping(groups=groups, source="inferred from recordings", how=how, claim=claim, scenes=scenes)
    by_name = _united(names, [*_alike(stems), *always])
    groups = _named(_united(names, always) if one_for_most or _lacking(clips, by_name) else by_name, "footage")
    how = (
        f"{one_place[0].upper()}{one_place[1:]}, and neither names nor times tell recordings apart: each clip is its "
        "own group, copies, clips that overlap in time and series of names aside. Name groups in clips.csv or with "
        "--group-pattern."
    )
    source = "inferred from recordings" if len(set(groups.values())) < len(clips) else "none"
    return Grouping(groups=groups, source=source, how=how, claim=CLAIMS["unknown"], scenes=scenes)


def _of_these_cameras(claim: Claim, scenes: Sequence[Sequence[str]], clips: int) -> Claim:
    """Returns a claim about one camera, in the plural where one scene does not hold nearly all clips."""
    share = len(scenes[0]) / clips if scenes else 0.0
    if share > _NEARLY_ALL:
        return claim
    if claim.kind == "this camera, other days":
        can, neither = "How the model does with these cameras on other days.", ""
    else:
        can = "How the model does with these cameras on other recordings, which may be of the same day."
        neither = ", nor on days with other light and other people"
    return replace(
        claim,
        can=can,
        cannot=f"How it does with any other camera or place{neither}: "
        f"groups go by time, so what a camera sees is on both sides; {share:.0%} of the clips show one scene.",
    )


def _one_camera(clips: Sequence[Clip], numbers: Sequence[int]) -> bool:
    """Whether one scene holds most of the clips."""
    sizes = Counter(numbers)
    if not sizes or len(clips) < 2:
        return False
    most = max(sizes.values())
    return most > max(1, _ONE_CAMERA * len(clips))


def _lacking(clips: Sequence[Clip], groups: Mapping[str, str]) -> bool:
    """Whether a class falls into fewer groups than a split needs, though it has clips enough."""
    of_class: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        of_class[clip.label].add(groups[clip.name])
    return min(map(len, of_class.values())) < _ENOUGH


def _same(clips: Sequence[Clip], numbers: Sequence[int]) -> list[tuple[str, str]]:
    return _alike({clip.name: number for clip, number in zip(clips, numbers, strict=True)})


def _alike(values: Mapping[str, Hashable]) -> list[tuple[str, str]]:
    """Links each name to the first with the same value."""
    firsts: dict[Hashable, str] = {}
    return [(name, first) for name, value in values.items() if (first := firsts.setdefault(value, name)) != name]


def _neighbours(
    clips: Sequence[Clip], prints: Mapping[str, Fingerprint], likeness: NDArray[np.float32]
) -> list[tuple[str, str]]:
    """Links clips side by side in their folder, cut alike, whose backgrounds are not wholly unlike.

    Who cuts several clips from one video numbers them in a row. A coding that most clips have tells nothing.
    """
    coded = [_coding(clip, prints) for clip in clips]
    common = {coding for coding, count in Counter(coded).items() if count > _ONE_CAMERA * len(clips)}
    return [
        (clips[row].name, clips[row + 1].name)
        for row in range(len(clips) - 1)
        if coded[row] == coded[row + 1]
        and coded[row] not in common
        and clips[row].label == clips[row + 1].label
        and likeness[row, row + 1] > _NEIGHBOURS
    ]


def _rare(clips: Sequence[Clip], prints: Mapping[str, Fingerprint]) -> list[tuple[str, str]]:
    """Links clips of a size and frame rate that few others have."""
    coded = {clip.name: _coding(clip, prints) for clip in clips}
    counts = Counter(coded.values())
    return _alike({name: coding for name, coding in coded.items() if counts[coding] < _RARE * len(clips)})


def _coding(clip: Clip, prints: Mapping[str, Fingerprint]) -> tuple[int, int, float | None]:
    taken = prints[clip.name]
    return taken.width, taken.height, None if clip.fps is None else round(clip.fps, 1)


def _of(copies: Iterable[Copy]) -> list[tuple[str, str]]:
    return [(copy.original, copy.copy) for copy in copies]


def _overlapping(times: Mapping[str, Recorded], scene_of: Mapping[str, int]) -> list[tuple[str, str]]:
    """Links clips of one scene that overlap in time."""
    return _in_a_row(times, scene_of, 0)


def _sessions(times: Mapping[str, Recorded]) -> list[tuple[str, str]]:
    return _in_a_row(times, {}, _PAUSE_S)


def _in_a_row(times: Mapping[str, Recorded], scene_of: Mapping[str, int], pause_s: float) -> list[tuple[str, str]]:
    """Links each clip to the one before it, of its scene, that ended last, if the pause between is short."""
    links = []
    last: dict[int | None, tuple[str, float]] = {}
    started = [(name, at.start, at.end) for name, at in times.items() if at.start is not None and at.end is not None]
    for name, start, end in sorted(started, key=lambda one: (one[1], one[0])):
        scene = scene_of.get(name)
        before = last.get(scene)
        if before is not None and start.timestamp() < before[1] + pause_s:
            links.append((before[0], name))
        if before is None or end.timestamp() > before[1]:
            last[scene] = (name, end.timestamp())
    return links


def _several(clips: Sequence[Clip], numbers: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    scenes: dict[int, list[str]] = defaultdict(list)
    for clip, number in zip(clips, numbers, strict=True):
        scenes[number].append(clip.name)
    return tuple(sorted((tuple(names) for names in scenes.values() if len(names) > 1), key=len, reverse=True))


def _united(names: Sequence[str], links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns for each name the first of those that it is linked to, directly or by way of others."""
    order = {name: place for place, name in enumerate(names)}
    parent = dict(zip(names, names, strict=True))

    def first(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for a, b in links:
        low, high = sorted((first(a), first(b)), key=order.__getitem__)
        parent[high] = low
    return {name: first(name) for name in names}


def _named(united: Mapping[str, str], word: str, told: Mapping[str, str] | None = None) -> dict[str, str]:
    """Gives groups names that say how they were found: "scene 03", or "day 2026-03-01"; a clip alone keeps its own."""
    sizes = Counter(united.values())
    numbers = {first: place for place, first in enumerate((f for f in sizes if sizes[f] > 1), start=1)}

    def name_of(first: str) -> str:
        if told is not None and first in told:
            return f"{word} {told[first]}"
        return f"{word} {numbers[first]:02d}" if first in numbers else first

    named = {first: name_of(first) for first in sizes}
    if len(set(named.values())) < len(named):  # one day in two scenes
        named = {first: f"{word} of {first}" for first in sizes}
    return {name: named[first] for name, first in united.items()}


def _pairs(copies: Sequence[Copy]) -> str:
    return count_and_names([f"{copy.copy} and {copy.original}" for copy in copies])

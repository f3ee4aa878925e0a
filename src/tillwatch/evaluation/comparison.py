"""Two evaluations of the same clips, of any two programs: figures of both, differences by group, and who was right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tillwatch.data.grouping import join_groups
from tillwatch.errors import DataError
from tillwatch.evaluation.evaluated import Evaluated, Told, read_evaluated
from tillwatch.evaluation.findings import summary_of
from tillwatch.evaluation.paired import DECIDES, Difference, Scored, differences
from tillwatch.evaluation.summary import Summary

#: Figures whose differences are given: those of any threshold, and recall, each model's at its own.
NAMES = ("accuracy", "balanced_accuracy", "event_auroc", "event_average_precision", "recall")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two models make of the same clips.

    Attributes:
        names: of the two, as they are told apart.
        clips, groups: how many.
        unsaid: what must hold for the intervals to be those of other clips, and nothing says.
        summaries: of each.
        differences: the first's figures less the second's.
        both, only_first, only_second, neither: clips whose most probable class is theirs; of repeats, clips expected of
            one drawn for each model. No test of them is made: clips of a group are no independent trials.
        notes: sentences that must stand beside it.
    """

    names: tuple[str, str]
    clips: int
    groups: int
    unsaid: tuple[str, ...]
    summaries: tuple[Summary, Summary]
    differences: dict[str, Difference]
    both: float
    only_first: float
    only_second: float
    neither: float
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Which is better, in a sentence."""
        first, second = self.names
        difference = self.differences[DECIDES]
        told = f"balanced accuracy, A less B, {difference}"
        if difference.interval is None:
            return f"nothing says which of {first} and {second} is better ({told}): {difference.reason}"
        if difference.ahead:
            return f"{first} is better than {second}: {told}, {self._by}."
        if difference.behind:
            return f"{second} is better than {first}: {told}, {self._by}."
        return f"these clips do not tell {first} from {second}: {told}, {self._by}."

    @property
    def _by(self) -> str:
        """Says of what the interval is."""
        if self.unsaid:
            return f"95 % interval by group, provided that {' and '.join(self.unsaid)}, which nothing here says"
        return "95 % interval by group"

    def lines(self) -> list[str]:
        """Returns it to read."""
        first, second = self.names
        lines = [f"A: {first}", f"B: {second}", f"{self.clips} clips in {self.groups} groups", ""]
        lines.append(f"{'':>24}  {'A':<26}{'B':<26}A less B")
        for name in NAMES:
            a, b = (str(summary.figures[name]) for summary in self.summaries)
            lines.append(f"{name.replace('_', ' '):>24}  {a:<26}{b:<26}{self.differences[name]}")
        lines.append("")
        lines.append(
            f"right: both {self.both:g}, only A {self.only_first:g}, only B {self.only_second:g}, "
            f"neither {self.neither:g}"
        )
        return [*lines, *(f"note: {note}" for note in self.notes), self.verdict]

    def to_json(self) -> dict[str, Any]:
        """Returns it as ``--json`` prints it."""
        record = asdict(self)
        record["summaries"] = [summary.to_json() for summary in self.summaries]
        return {**record, "verdict": self.verdict}


def compare(first: Path, second: Path, event: Sequence[str] | None = None) -> Comparison:
    """Compares two run folders, cross-validations or tables of predictions.

    Args:
        first, second: as :func:`tillwatch.evaluation.evaluated.read_evaluated` takes them.
        event: the classes worth an alarm, where a table does not settle it.

    Raises:
        TillwatchError: if one cannot be read, or they are not of the same clips, labels, classes and event.
    """
    told = Told(event=event)
    a, b = read_evaluated(first, told), read_evaluated(second, told)
    _same_clips(a, b)
    # Both are judged by what either knows of groups: which clips count as one, and whether groups were divided.
    told = replace(told, groups=_united(a.known_groups, b.known_groups))
    a, b = read_evaluated(first, told), read_evaluated(second, told)
    order = _same_clips(a, b)
    columns = [b.classes.index(name) for name in a.classes]
    ours = Scored(probabilities=a.probabilities, thresholds=a.thresholds)
    theirs = Scored(probabilities=b.probabilities[:, order][..., columns], thresholds=b.thresholds[:, order])
    compared = differences(a.labels, ours, theirs, a.groups, a.event_indices, NAMES)
    if (why := _why_none(a) or _why_none(b)) is not None:
        compared = {name: replace(one, interval=None, reason=why) for name, one in compared.items()}
    right_a, right_b = ((one.probabilities.argmax(-1) == a.labels).mean(0) for one in (ours, theirs))
    return Comparison(
        names=(str(first), str(second)),
        clips=len(a.names),
        groups=len(set(a.groups)),
        unsaid=_unsaid(a, b),
        summaries=(summary_of(a), summary_of(b)),
        differences=compared,
        both=float((right_a * right_b).sum()),
        only_first=float((right_a * (1 - right_b)).sum()),
        only_second=float(((1 - right_a) * right_b).sum()),
        neither=float(((1 - right_a) * (1 - right_b)).sum()),
        notes=tuple(f"{name}: {note}" for name, one in (("A", a), ("B", b)) for note in one.notes),
    )


def _same_clips(a: Evaluated, b: Evaluated) -> list[int]:
    """Returns where each clip of the first stands in the second.

    Raises:
        DataError: if that cannot be said of each, or they mean other things by it.
    """
    if sorted(a.classes) != sorted(b.classes):
        raise DataError(
            f"{a.source} has the classes {', '.join(a.classes)}, {b.source} {', '.join(b.classes)}; "
            "only the same classes can be compared."
        )
    if set(a.event) != set(b.event):
        raise DataError(
            f"the event is {', '.join(a.event)} in {a.source} and {', '.join(b.event)} in {b.source}; "
            "say which with --event."
        )
    only_a, only_b = set(a.names) - set(b.names), set(b.names) - set(a.names)
    if only_a or only_b:
        raise DataError(
            f"{a.source} and {b.source} are not of the same clips: {len(only_a)} stand only in the first, "
            f"{len(only_b)} only in the second, such as {min(only_a | only_b)!r}; compare scores of the same clips."
        )
    places = {name: place for place, name in enumerate(b.names)}
    order = [places[name] for name in a.names]
    other = [
        name
        for name, label, place in zip(a.names, a.labels, order, strict=True)
        if a.classes[label] != b.classes[b.labels[place]]
    ]
    if other:
        raise DataError(
            f"{len(other)} clips bear other labels in {a.source} than in {b.source}, such as {other[0]!r}; "
            "compare scores under the same labels."
        )
    return order


def _united(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    """Returns the groups of all clips that either names one of: clips share one if they do by either."""
    groups = {name: ours.get(name, name) for name in (*ours, *theirs)}
    firsts: dict[str, str] = {}
    joined = join_groups(groups, [(name, firsts.setdefault(group, name)) for name, group in theirs.items()])
    return {name: f"that of {group}" for name, group in joined.items()}  # no clip's own name: these are named


def _why_none(one: Evaluated) -> str | None:
    """Says why no interval may stand beside a difference from these figures, and so no verdict; None if one may."""
    if one.exposure.groups_divided:
        return f"no interval: the figures of {one.source} leak, as clips of one group were learnt from and measured."
    if one.exposure.chosen_on or one.exposure.doubt:
        why = (one.exposure.chosen_note or one.exposure.doubt).rstrip(".")
        return f"no interval for the figures of {one.source}: {why[:1].lower()}{why[1:]}."
    return one.exposure.why_no_claim


def _unsaid(a: Evaluated, b: Evaluated) -> tuple[str, ...]:
    told = {
        "each clip is of a source of its own": a.groups_told or b.groups_told,
        "neither model learnt from these clips": a.split_told and b.split_told,
    }
    return tuple(words for words, holds in told.items() if not holds)

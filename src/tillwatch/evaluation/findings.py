"""What may be said of evaluated clips: figures, the network against its baselines, groups, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tillwatch.evaluation.evaluated import Evaluated
from tillwatch.evaluation.intervals import Interval, Statistic, group_interval, paired_interval
from tillwatch.evaluation.summary import Figure, Footage, Summary, statistics, summarize

#: Figures that a baseline can be compared by; recall and precision depend on a threshold that baselines lack.
COMPARED = ("accuracy", "balanced_accuracy", "event_auroc")

_GUESSING = 0.5


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A baseline beside the network: its figures, and the network's less its own, paired by group."""

    name: str
    figures: dict[str, Figure]
    ahead: dict[str, Figure]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Counts of some of the clips: those of a group or a camera.

    Attributes:
        name: of the group.
        clips, right: how many, and how many whose most probable class is theirs.
        events, found, others, false_alarms: at the operating point.
    """

    name: str
    clips: int
    right: int
    events: int
    found: int
    others: int
    false_alarms: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The report in a sentence.

    Attributes:
        tone: "good", "unsure" or "bad".
        headline: the sentence.
        rest: what it rests on, in sentences.
    """

    tone: str
    headline: str
    rest: tuple[str, ...]


def pooled(found: Evaluated) -> tuple[NDArray[np.bool_], NDArray[np.float64], tuple[str, ...], float | None]:
    """Returns every score of every repeat on one heap: events, scores, groups, and the hours of normal footage."""
    times = found.repeats
    hours = None if found.normal_hours is None else found.normal_hours * times
    return np.tile(found.is_event, times), found.event_scores.ravel(), found.groups * times, hours


def summary_of(found: Evaluated) -> Summary:
    """Summarises what was evaluated; a figure of several repeats is the mean of theirs, counts are of them all."""
    footage = Footage(normal_hours=found.normal_hours, clip_seconds=found.clip_seconds, prevalence=found.prevalence)
    if found.repeats == 1:
        return summarize(
            found.labels, found.probabilities[0], found.groups, found.event_indices, found.threshold, footage
        )
    times = found.repeats
    all_hours = None if found.normal_hours is None else found.normal_hours * times
    heap = summarize(
        np.tile(found.labels, times),
        found.probabilities.reshape(-1, len(found.classes)),
        found.groups * times,
        found.event_indices,
        found.threshold,
        Footage(normal_hours=all_hours, clip_seconds=found.clip_seconds, prevalence=found.prevalence),
    )
    names = heap.figures
    return Summary(
        figures={name: _figure(*_mean_statistic(found, found.probabilities, name), found.groups) for name in names},
        calibration=heap.calibration,
        at_point=heap.at_point,
        alarms_a_day=heap.alarms_a_day,
        true_share=heap.true_share,
        sentences=heap.sentences,
    )


def rivals(found: Evaluated) -> list[Rival]:
    """Compares the network with each baseline on the same clips."""
    compared = []
    for baseline in found.baselines:
        figures, ahead = {}, {}
        for name in COMPARED:
            ours, kinds = _mean_statistic(found, found.probabilities, name)
            theirs, _ = _mean_statistic(found, baseline.probabilities, name)
            figures[name] = _figure(theirs, kinds, found.groups)
            ones = np.ones(len(found.names))
            value = ours(ones) - theirs(ones)
            ahead[name] = Figure(
                value=None if math.isnan(value) else value,
                interval=paired_interval(ours, theirs, found.groups, kinds=kinds),
            )
        compared.append(Rival(name=baseline.name, figures=figures, ahead=ahead))
    return compared


def parts(found: Evaluated, names: Sequence[str]) -> list[Part]:
    """Counts by group, or by whatever ``names`` says of each clip; those with most mistakes first."""
    alarm = found.event_scores >= found.threshold
    right = found.probabilities.argmax(-1) == found.labels
    told, counted = np.array(names, dtype=object), []
    for name in dict.fromkeys(names):
        own = told == name
        events, others = own & found.is_event, own & ~found.is_event
        counted.append(
            Part(
                name=name,
                clips=int(own.sum()) * found.repeats,
                right=int(right[:, own].sum()),
                events=int(events.sum()) * found.repeats,
                found=int(alarm[:, events].sum()),
                others=int(others.sum()) * found.repeats,
                false_alarms=int(alarm[:, others].sum()),
            )
        )
    return sorted(counted, key=lambda part: (part.events - part.found + part.false_alarms, part.clips), reverse=True)


def verdict(found: Evaluated, summary: Summary, compared: Sequence[Rival]) -> Verdict:
    """Says in plain words what the figures come to; the worst thing that is true of them comes first."""
    event, point = " or ".join(found.event), summary.at_point
    auroc = summary.figures["event_auroc"]
    strongest = _strongest(compared)
    rest = _rest(found, summary, strongest)
    if not point.events or not point.others:
        missing = event if not point.events else f"anything but {event}"
        return _verdict("bad", f"These clips cannot show how good the model is: none of them is {missing}.", rest)
    if found.split == "train" or any("trained on" in note for note in found.notes):
        return _verdict("bad", "These are the clips that the model learnt from: they say nothing of new ones.", rest)
    if any("leak" in note for note in found.notes):
        return _verdict(
            "bad", "These figures flatter: clips of one source were learnt from and tested. Do not go by them.", rest
        )
    if min(point.events, point.others) < 10:
        fewer, kind = min((point.events, event), (point.others, "other"))
        return _verdict("unsure", f"Too few clips to tell: {fewer} {kind} clips in all. Collect more.", rest)
    if auroc.value is not None and (auroc.value if auroc.interval is None else auroc.interval.low) <= _GUESSING:
        return _verdict("bad", f"As far as these clips show, the model finds {event} no better than guessing.", rest)
    if strongest is not None and _not_ahead(strongest):
        return _verdict(
            "unsure",
            f"The model tells {event} from the rest, but these clips do not show that it does so any better than "
            f"{_PLAIN.get(strongest.name, strongest.name)}.",
            rest,
        )
    headline = f"The model found {point.found} of {point.events} {event} clips"
    alarms = point.found + point.false_alarms
    headline += f"; {point.false_alarms} of its {alarms} alarms were false." if alarms else "."
    tone = "good" if auroc.interval is not None else "unsure"
    return _verdict(tone, headline, rest)


_PLAIN = {
    "majority": "always naming the commonest class",
    "single frame": "a look at a single frame, which sees no motion",
    "motion": "simple motion statistics",
}


def _verdict(tone: str, headline: str, rest: Sequence[str]) -> Verdict:
    return Verdict(tone=tone, headline=headline, rest=tuple(rest))


def _rest(found: Evaluated, summary: Summary, strongest: Rival | None) -> list[str]:
    """Returns the sentences under the headline: what it would do on other groups, and against what needs no network."""
    sentences, point, recall = [], summary.at_point, summary.figures["recall"]
    event = " or ".join(found.event)
    if recall.interval is not None and recall.value is not None:
        sentences.append(
            f"On other groups of the same sort it would find between {_percent(recall.interval.low)} and "
            f"{_percent(recall.interval.high)} of {event} (95 % interval, by group)."
        )
    else:
        sentences.append(
            "How far that would hold on other clips cannot be said: the clips fall into too few groups for an interval."
        )
    if (alarms := point.alarms) is not None:
        most = f"; with 95 % confidence at most {alarms.high:.3g}" if not alarms.count else ""
        seen = f"{alarms.count} false alarms in {alarms.hours:.3g} h of normal footage"
        sentences.append(f"{seen}: {alarms.per_hour:.3g} an hour{most}.")
    if strongest is not None:
        ahead = strongest.ahead["balanced_accuracy"]
        if ahead.value is not None:
            how = "better" if ahead.value > 0 else "worse" if ahead.value < 0 else "different"
            by = f"{100 * abs(ahead.value):.0f} points {how}" if ahead.value else "no different"
            around = (
                ""
                if ahead.interval is None
                else f" (95 % interval {100 * ahead.interval.low:+.0f} to {100 * ahead.interval.high:+.0f})"
            )
            plain = _PLAIN.get(strongest.name, strongest.name)
            sentences.append(f"Against the best simple method, {plain}, it is {by} in balanced accuracy{around}.")
    elif not found.baselines:
        sentences.append(
            "No simple method was measured on the same clips, so nothing says whether the model earns its cost."
        )
    return sentences


def _strongest(compared: Sequence[Rival]) -> Rival | None:
    known = [rival for rival in compared if rival.figures["balanced_accuracy"].value is not None]
    return max(known, key=lambda rival: rival.figures["balanced_accuracy"].value or 0.0, default=None)


def _not_ahead(rival: Rival) -> bool:
    ahead = rival.ahead["balanced_accuracy"]
    return ahead.value is None or (ahead.value if ahead.interval is None else ahead.interval.low) <= 0


def _mean_statistic(
    found: Evaluated, probabilities: NDArray[np.float64], name: str
) -> tuple[Statistic, NDArray[np.int64] | None]:
    """Returns a figure as a function of the clips' weights, the mean of the repeats', and the kinds that it needs."""
    several = [statistics(found.labels, one, found.event_indices, found.threshold)[name] for one in probabilities]
    return (lambda weights: float(np.mean([statistic(weights) for statistic, _ in several]))), several[0][1]


def _figure(statistic: Statistic, kinds: NDArray[np.int64] | None, groups: Sequence[str]) -> Figure:
    value = statistic(np.ones(len(groups)))
    interval: Interval | None = group_interval(statistic, groups, kinds=kinds)
    return Figure(value=None if math.isnan(value) else value, interval=interval)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

"""What may be said of evaluated clips: figures, the network against its baselines, groups, and a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tillwatch.data.splits import SIDES
from tillwatch.evaluation.confounds import scene_note
from tillwatch.evaluation.evaluated import Evaluated
from tillwatch.evaluation.intervals import MIN_CLIPS
from tillwatch.evaluation.numbers import counted, readable, readable_hours
from tillwatch.evaluation.paired import Rival, rivals_of, strongest
from tillwatch.evaluation.summary import Footage, Summary, summarize

_GUESSING = 0.5


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


def pooled(found: Evaluated) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Returns every score of every repeat on one heap: events, and scores."""
    return np.tile(found.is_event, found.repeats), found.event_scores.ravel()


def summary_of(found: Evaluated) -> Summary:
    """Summarises what was evaluated; of repeats as :func:`tillwatch.evaluation.summary.summarize` says."""
    footage = Footage(
        normal_hours=found.normal_hours,
        hours_told=found.hours_told,
        clip_hours=found.clip_hours,
        prevalence=found.prevalence,
    )
    summary = summarize(found.labels, found.probabilities, found.groups, found.event_indices, found.thresholds, footage)
    why = found.exposure.why_no_claim
    return summary if why is None else summary.without_claims(why)


def rivals(found: Evaluated) -> list[Rival]:
    """Compares the network with each baseline on the same clips."""
    baselines = {baseline.name: baseline.probabilities for baseline in found.baselines}
    return rivals_of(found.labels, found.probabilities, baselines, found.groups, found.event_indices)


def parts(found: Evaluated, names: Sequence[str]) -> list[Part]:
    """Counts by group, or by whatever ``names`` says of each clip; those with most mistakes first."""
    alarm = found.alarms
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
    best = strongest(compared)
    rest = _rest(found, summary, best)
    if not point.events or not point.others:
        missing = event if not point.events else f"anything but {event}"
        return _verdict("bad", f"These clips cannot show how good the model is: none of them is {missing}.", rest)
    if found.exposure.learnt_from:
        which = "" if found.exposure.learnt_from == found.exposure.clips else "Some of "
        headline = f"{which}these are the clips that the model learnt from: they say nothing of new ones."
        return _verdict("bad", headline[:1].upper() + headline[1:], rest)
    if found.exposure.groups_divided:
        return _verdict(
            "bad", "These figures flatter: clips of one source were learnt from and tested. Do not go by them.", rest
        )
    events, others = point.events // found.repeats, point.others // found.repeats  # repeats are no new clips
    if min(events, others) < MIN_CLIPS:
        fewer, kind = min((events, event), (others, "other"))
        return _verdict("unsure", f"Too few clips to tell: {fewer} {kind} clips in all. Collect more.", rest)
    if auroc.value is not None and (auroc.value if auroc.interval is None else auroc.interval.low) <= _GUESSING:
        return _verdict("bad", f"As far as these clips show, the model finds {event} no better than guessing.", rest)
    if (confound := _confound(found)) is not None:
        headline = f"These figures may be of how the clips were made, not of {event}."
        return _verdict("unsure", headline, (confound[:1].upper() + confound[1:], *rest))
    if best is not None and not best.ahead["balanced_accuracy"].ahead:
        return _verdict(
            "unsure",
            f"The model tells {event} from the rest, but these clips do not show that it does so any better than "
            f"{_PLAIN.get(best.name, best.name)}.",
            rest,
        )
    again, whose = (f", each scored {found.repeats} times", "all") if found.repeats > 1 else ("", "its")
    headline = f"The model found {round(point.found / found.repeats, 1):g} of {events} {event} clips{again}"
    alarms = point.found + point.false_alarms
    headline += (
        f"; {point.false_alarms} of {whose} {alarms} alarms {'was' if point.false_alarms == 1 else 'were'} false."
        if alarms
        else "."
    )
    in_doubt = found.exposure.chosen_on or found.exposure.doubt or found.unsaid
    tone = "good" if auroc.interval is not None and not in_doubt and point.found else "unsure"
    return _verdict(tone, headline, rest)


def _confound(found: Evaluated) -> str | None:
    """Returns what the audit says tells the classes apart besides the event; None if nothing, or of other clips."""
    if not (found.exposure.own_clips or found.split in SIDES):
        return None
    findings = found.audit.get("findings")
    for one in findings if isinstance(findings, list) else ():
        if isinstance(one, Mapping) and one.get("kind") == "confound" and one.get("severity") == "problem":
            return str(one.get("text"))
    return None


def _scene(found: Evaluated) -> str | None:
    """Returns the note on what a single frame tells, of the first repeat; None if it tells nothing."""
    frame = next((one.probabilities[0] for one in found.baselines if one.name == "single frame"), None)
    return scene_note(frame, found.labels, found.event_indices)


_PLAIN = {
    "majority": "always naming the commonest class",
    "single frame": "a look at a single frame, which sees no motion",
    "motion": "simple motion statistics",
}


def _verdict(tone: str, headline: str, rest: Sequence[str]) -> Verdict:
    return Verdict(tone=tone, headline=headline, rest=tuple(rest))


def _rest(found: Evaluated, summary: Summary, best: Rival | None) -> list[str]:
    """Returns the sentences under the headline: what it would do on other groups, and against what needs no network."""
    sentences, point, recall = [], summary.at_point, summary.figures["recall"]
    event = " or ".join(found.event)
    if found.exposure.learnt_from:
        known = found.exposure.learnt_from
        return [f"The model was trained on {known} of these {found.exposure.clips} clips; of others they say nothing."]
    if found.exposure.groups_divided:
        sentences.append("How it does on other groups cannot be said: clips of these were learnt from and tested.")
    elif found.exposure.chosen_on:
        sentences.append(
            "How it does on other groups cannot be said: choices were made on clips that are measured here."
        )
    elif found.exposure.doubt:
        sentences.append(f"How it does on other groups cannot be said. {found.exposure.doubt}")
    elif recall.interval is not None and recall.value is not None:
        between = f"between {_percent(recall.interval.low)} and {_percent(recall.interval.high)} of {event}"
        others, by = ("groups", ", by group") if found.groups_told else ("clips", "")
        sentences.append(
            f"On other {others} of the same sort it would find {between} (95 % interval{by})"
            + (f", provided that {' and '.join(found.unsaid)}, which nothing here says." if found.unsaid else ".")
        )
    else:
        sentences.append(
            f"How far that would hold on other clips cannot be said: the clips of {event} fall into too few groups for "
            "an interval."
        )
    if (alarms := point.alarms) is not None:
        told = ", as declared" if found.hours_told else ""
        seen = f"{counted(alarms.count, 'false alarm')} in {readable_hours(alarms.hours)} of normal footage{told}"
        sentences.append(f"{seen}: {readable(alarms.per_hour)} an hour ({alarms.bounds}, 95 %).")
    if best is not None:
        ahead = best.ahead["balanced_accuracy"]
        if ahead.value is not None:
            how = "better" if ahead.value > 0 else "worse" if ahead.value < 0 else "different"
            by = f"{100 * abs(ahead.value):.0f} points {how}" if ahead.value else "no different"
            around = (
                ""
                if ahead.interval is None
                else f" (95 % interval {100 * ahead.interval.low:+.0f} to {100 * ahead.interval.high:+.0f})"
            )
            plain = _PLAIN.get(best.name, best.name)
            if (scene := _scene(found)) is not None:
                sentences.append(scene[:1].upper() + scene[1:])
            sentences.append(f"Against the best simple method, {plain}, it is {by} in balanced accuracy{around}.")
    elif not found.baselines:
        sentences.append(
            "No simple method was measured on the same clips, so nothing says whether the model earns its cost."
        )
    return sentences


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"

"""Cues that have nothing to do with motion and yet tell the class: how clips were made, not what happens in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.tree import DecisionTreeClassifier

from tillwatch.clip_spec import event_scores
from tillwatch.data.catalog import Clip
from tillwatch.data.fingerprints import Fingerprint
from tillwatch.evaluation.figures import auroc
from tillwatch.evaluation.intervals import group_interval

#: AUROC over which a cue is flagged, if chance is excluded.
FLAGGED_OVER = 0.7

SCENE_NOTE = (
    "the scene alone gives the class away: one frame, without any motion, reaches an event AUROC of {auroc:.2f}. Look "
    "for what differs between the classes besides the event: camera, place, time of day, how clips were cut."
)

_FOLDS = 5
_RARE_CHANCE = 0.01  # where no interval can be given, what a rank test must stay below


@dataclass(frozen=True, kw_only=True)
class Cue:
    """How well one cue alone predicts the class of clips whose group it has not seen.

    Attributes:
        cue: its name.
        auroc: of the event against the rest, cross-validated by group.
        low, high: its 95 % interval by group; None where none can be given.
        flagged: whether it is over 0.7 and more than chance.
    """

    cue: str
    auroc: float
    low: float | None
    high: float | None
    flagged: bool

    @property
    def sentence(self) -> str:
        """What it means, to read."""
        around = "" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})"
        return (
            f"{self.cue} alone tells the classes apart, AUROC {self.auroc:.2f}{around}: a network may learn how clips "
            "were made instead of what happens in them."
        )


def cue_values(clips: Sequence[Clip], prints: Mapping[str, Fingerprint]) -> dict[str, NDArray[np.float64]]:
    """Returns each cue's value of each clip, float64 ``(N,)``; names of codecs and the like as numbers.

    Args:
        clips: all of them have a fingerprint.
        prints: by clip name.
    """
    taken = [prints[clip.name] for clip in clips]
    seconds = np.array([clip.seconds or one.times[-1] + 0.1 for clip, one in zip(clips, taken, strict=True)])
    sizes = np.array([one.bytes for one in taken], np.float64)
    widths, heights = (np.array([getattr(one, side) for one in taken], np.float64) for side in ("width", "height"))
    return {
        "width": widths,
        "height": heights,
        "aspect": (widths / heights).round(3),
        "frame rate": np.array([clip.fps or 0.0 for clip in clips]).round(2),
        "length": seconds,
        "number of frames": np.array([clip.num_frames for clip in clips], np.float64),
        "brightness": np.array([one.frames.mean() for one in taken]),
        "contrast": np.array([one.frames.std((1, 2)).mean() for one in taken]),
        "bytes a second": sizes / seconds,
        "codec": _numbered([one.codec for one in taken]),
        "file type": _numbered([clip.path.suffix.lower() if clip.is_video else "frames" for clip in clips]),
    }


def measure_cues(
    values: Mapping[str, NDArray[np.float64]], is_event: NDArray[np.bool_], groups: Sequence[str]
) -> list[Cue]:
    """Returns the cues that differ between clips at all, the most telling first.

    Each is scored by a small tree, fitted on other groups, so that a cue need not rise or fall with the class.

    Args:
        values: of each cue, float64 ``(N,)``.
        is_event: bool ``(N,)``.
        groups: of the clips.
    """
    folds = min(_FOLDS, *(len({g for g, e in zip(groups, is_event, strict=True) if e == kind}) for kind in (0, 1)))
    if folds < 2:
        return []
    cues = [_measure(name, row, is_event, groups, folds) for name, row in values.items() if len(set(row.tolist())) > 1]
    return sorted(cues, key=lambda cue: -cue.auroc)


def _measure(
    name: str, row: NDArray[np.float64], is_event: NDArray[np.bool_], groups: Sequence[str], folds: int
) -> Cue:
    scores = np.zeros(len(row))
    column = row.reshape(-1, 1)
    divided = StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(column, is_event, np.asarray(groups))
    for train, test in divided:
        least = max(2, len(train) // 20)
        tree = DecisionTreeClassifier(max_leaf_nodes=4, min_samples_leaf=least, random_state=0)
        if len(set(is_event[train].tolist())) < 2:
            scores[test] = is_event[train].mean()
        else:
            scores[test] = tree.fit(column[train], is_event[train]).predict_proba(column[test])[:, 1]
    figure = auroc(is_event, scores, np.ones(len(row)))
    kinds = is_event.astype(np.int64)
    interval = group_interval(lambda w: auroc(is_event, scores, w), groups, kinds=kinds, ranking=True)
    if interval is not None:
        beyond_chance = interval.low > 0.5
    else:
        chance = mannwhitneyu(scores[is_event], scores[~is_event], alternative="greater").pvalue
        beyond_chance = bool(chance < _RARE_CHANCE)
    return Cue(
        cue=name,
        auroc=figure,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        flagged=figure > FLAGGED_OVER and beyond_chance,
    )


def _numbered(names: Sequence[str]) -> NDArray[np.float64]:
    known = sorted(set(names))
    return np.array([known.index(name) for name in names], np.float64)


def scene_note(
    single_frame: NDArray[np.float64] | None, labels: NDArray[np.int64], event_indices: Sequence[int]
) -> str | None:
    """Says in a sentence that a single frame tells the class, and more than luck would; None if it does not.

    Args:
        single_frame: its scores, float64 ``(N, classes)``; None if it was not measured.
        labels: int64 ``(N,)``.
        event_indices: columns of the event's classes.
    """
    is_event = np.isin(labels, list(event_indices))
    if single_frame is None or is_event.all() or not is_event.any():
        return None
    scores = event_scores(single_frame, event_indices)
    reached = auroc(is_event, scores, np.ones(len(scores)))
    if reached < FLAGGED_OVER:
        return None
    by_luck = float(mannwhitneyu(scores[is_event], scores[~is_event], alternative="greater").pvalue)
    return SCENE_NOTE.format(auroc=reached) if by_luck < 0.05 else None

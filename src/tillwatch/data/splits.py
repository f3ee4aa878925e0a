"""Grouped, stratified hold-out: train, validation and test sides that never divide a group."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tillwatch.data.catalog import Clip
from tillwatch.errors import DataError, one_line
from tillwatch.files import read_csv

SIDES = ("train", "validation", "test")
SHARES = (0.70, 0.15, 0.15)

# What a class missing on a side costs: more than any imbalance; least in validation, most in training.
_MISSING_COST = np.array([1e6, 1e3, 1e4])
_EXHAUSTIVE_UP_TO = 9  # groups; 3**9 = 19,683 assignments
_REPAIR_TRIES = 200  # groups looked at on each side


def split_clips(clips: Sequence[Clip], seed: int, fixed: Mapping[str, str] | None = None) -> dict[str, str]:
    """Puts every clip on one side: 70 % train, 15 % validation, 15 % test, of each class alike.

    Groups are taken from the largest to the smallest, equal ones in an order drawn from the seed, each to
    the side where it leaves the least imbalance: Pearson's chi-squared distance of class counts per side
    from their shares, ``sum((count - expected)**2 / expected)``. Few groups are tried in every way; among
    many, a class still missing on a side is mended by moving groups.

    Args:
        clips: the clips; their order does not matter.
        seed: another seed gives another split.
        fixed: sides of clips by name, settled before (a split file); other clips of the same group follow.

    Returns:
        The side of each clip by its name.

    Raises:
        DataError: if ``fixed`` puts one group on two sides.
    """
    sizes = Counter(clip.group for clip in clips)
    labels = sorted({clip.label for clip in clips})
    settled = _settled_groups(clips, fixed or {})
    names = sorted((group for group in sizes if group not in settled), key=lambda g: _order(g, sizes[g], seed))
    counts, settled_counts = np.split(_class_counts(clips, [*names, *settled], labels), [len(names)])
    have = np.zeros((len(SIDES), len(labels)))
    for side, group in zip(settled.values(), settled_counts, strict=True):
        have[SIDES.index(side)] += group
    expected = np.outer(SHARES, have.sum(0) + counts.sum(0))
    if len(names) <= _EXHAUSTIVE_UP_TO:
        chosen = _best_of_all(counts, have, expected)
    else:
        chosen = _repair(_greedy(counts, have, expected), counts, have, expected)
    sides = settled | {name: SIDES[side] for name, side in zip(names, chosen.tolist(), strict=True)}
    return {clip.name: sides[clip.group] for clip in clips}


def fold_splits(clips: Sequence[Clip], folds: int, seed: int) -> list[dict[str, str]]:
    """Divides clips into folds for cross-validation; each is the test side once, and no group is divided.

    Folds get equal shares of each class, by the rule of :func:`split_clips`. In each fold, a part of the other groups
    is its validation side, 15 % of all clips where the groups allow it.

    Args:
        clips: the clips; their order does not matter.
        folds: how many, at least 2.
        seed: another seed gives other folds.

    Returns:
        For each fold the side of each clip by its name.

    Raises:
        DataError: if the groups do not suffice for so many folds; says how many are possible.
    """
    _check_folds(clips, folds)
    shares = [1 / folds] * folds
    tested_in = _put_groups(clips, seed, shares, np.full(folds, 1e4))
    splits = []
    for fold in range(folds):
        others = [clip for clip in clips if tested_in[clip.group] != fold]
        left = 1 - 1 / folds
        validation = min(SHARES[1] / left, 0.5)
        side_of = _put_groups(others, seed, [1 - validation, validation], _MISSING_COST[:2])
        sides = {clip.name: "test" for clip in clips} | {clip.name: SIDES[side_of[clip.group]] for clip in others}
        if lacking := missing_classes(clips, sides):
            side, label = lacking[0]
            raise DataError(
                f"--folds {folds} leaves fold {fold + 1} without a clip of {label!r} for {side}: its groups are "
                "too few or too uneven; try fewer --folds or another --seed."
            )
        splits.append(sides)
    return splits


def _check_folds(clips: Sequence[Clip], folds: int) -> None:
    if folds < 2:
        raise DataError(f"--folds is {folds}; it must be at least 2.")
    groups_of: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        groups_of[clip.label].add(clip.group)
    label, fewest = min(((label, len(groups)) for label, groups in groups_of.items()), key=lambda pair: pair[::-1])
    if fewest < 3:
        raise DataError(
            f"the clips of {label!r} fall into {n_groups(fewest)}, so no folds are possible: training, validation and "
            "test need one each, and a group is never divided."
        )
    # The groups left beside a fold must do for training and for validation.
    possible = [k for k in range(2, fewest + 1) if fewest - -(-fewest // k) >= 2]
    if folds not in possible:
        raise DataError(
            f"--folds {folds} does not fit: the clips of {label!r} fall into {n_groups(fewest)}, and a group is never "
            f"divided; {possible[0]} to {possible[-1]} folds are possible."
        )


def _put_groups(
    clips: Sequence[Clip], seed: int, shares: Sequence[float], missing: NDArray[np.float64]
) -> dict[str, int]:
    """Returns the part that each group goes to, so that each class falls into the shares as nearly as may be."""
    sizes = Counter(clip.group for clip in clips)
    names = sorted(sizes, key=lambda group: _order(group, sizes[group], seed))
    counts = _class_counts(clips, names, sorted({clip.label for clip in clips}))
    have = np.zeros((len(shares), counts.shape[1]))
    expected = np.outer(shares, counts.sum(0))
    chosen = _repair(_greedy(counts, have, expected), counts, have, expected, missing)
    return dict(zip(names, chosen.tolist(), strict=True))


def read_split_file(path: Path) -> dict[str, str]:
    """Returns the sides that a run's clips.csv (columns path and split) gives to clips, by name.

    Raises:
        DataError: if the file is missing, has other columns or names an unknown side.
    """
    try:
        rows = read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"--split-file {path} cannot be read ({one_line(error)}).") from None
    if not rows or not {"path", "split"} <= set(rows[0]):
        raise DataError(f"--split-file {path} needs the columns path and split, as a run's clips.csv has them.")
    unknown = sorted({row["split"] for row in rows} - {"", *SIDES})
    if unknown:
        raise DataError(f"--split-file {path}: split is {unknown[0]!r}; it must be one of {', '.join(SIDES)}.")
    sides: dict[str, str] = {}
    for row in rows:
        if row["split"] and sides.setdefault(row["path"], row["split"]) != row["split"]:
            raise DataError(f"--split-file {path}: {row['path']} stands there on two sides.")
    return sides


def missing_classes(clips: Sequence[Clip], sides: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns the (side, class) pairs without a clip, sides and classes in order."""
    present = {(sides[clip.name], clip.label) for clip in clips}
    labels = sorted({clip.label for clip in clips})
    return [(side, label) for side in SIDES for label in labels if (side, label) not in present]


def _settled_groups(clips: Sequence[Clip], fixed: Mapping[str, str]) -> dict[str, str]:
    sides_of: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        if clip.name in fixed:
            sides_of[clip.group].add(fixed[clip.name])
    for group, sides in sides_of.items():
        if len(sides) > 1:
            raise DataError(
                f"the split file puts group {group!r} on {' and '.join(sorted(sides))}; clips of one group "
                "share their source, so a score on the one would flatter. Mend the file or the groups."
            )
    return {group: side for group, (side,) in sides_of.items()}


def _order(group: str, size: int, seed: int) -> tuple[int, bytes]:
    return -size, hashlib.sha256(f"{seed}:{group}".encode()).digest()


def _class_counts(clips: Sequence[Clip], groups: Sequence[str], labels: Sequence[str]) -> NDArray[np.float64]:
    """Returns how many clips of each class each group holds, float64 ``(groups, classes)``."""
    row_of = {group: row for row, group in enumerate(groups)}
    column_of = {label: column for column, label in enumerate(labels)}
    rows = np.fromiter((row_of[clip.group] for clip in clips), int, len(clips))
    columns = np.fromiter((column_of[clip.label] for clip in clips), int, len(clips))
    counts = np.zeros((len(groups), len(labels)))
    np.add.at(counts, (rows, columns), 1)
    return counts


def _cost(
    have: NDArray[np.float64], expected: NDArray[np.float64], missing_cost: NDArray[np.float64] = _MISSING_COST
) -> NDArray[np.float64]:
    """Returns imbalance plus what missing classes cost; ``have`` may have leading dimensions."""
    imbalance = ((have - expected) ** 2 / expected).sum((-2, -1))
    # All clips on the smallest side are 5.7 per clip away from the shares; nothing is further.
    missing = (have == 0).sum(-1) @ missing_cost * (1 + expected.sum())
    cost: NDArray[np.float64] = imbalance + missing
    return cost


def _best_of_all(
    counts: NDArray[np.float64], have: NDArray[np.float64], expected: NDArray[np.float64]
) -> NDArray[np.int64]:
    # Row by row over all 3**n assignments; the first of equally good ones, so the order decides ties.
    every = np.array(list(itertools.product(range(len(SIDES)), repeat=len(counts))), dtype=int)
    totals = np.stack([have[side] + (every == side) @ counts for side in range(len(SIDES))], axis=1)
    best: NDArray[np.int64] = every[int(np.argmin(_cost(totals, expected).round(9)))]
    return best


def _greedy(counts: NDArray[np.float64], have: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.int64]:
    have = have.copy()
    chosen = np.zeros(len(counts), dtype=int)
    for row, group in enumerate(counts):
        # The growth of sum((h - e)**2 / e) when h becomes h + g: only the side that takes it changes.
        growth = ((2 * (have - expected) + group) * group / expected).sum(1)
        side = int(np.argmin(growth.round(9)))
        chosen[row] = side
        have[side] += group
    return chosen


def _repair(
    chosen: NDArray[np.int64],
    counts: NDArray[np.float64],
    have: NDArray[np.float64],
    expected: NDArray[np.float64],
    missing_cost: NDArray[np.float64] = _MISSING_COST,
) -> NDArray[np.int64]:
    """Moves groups, or swaps two, for as long as that brings a missing class to a side."""
    chosen = chosen.copy()
    totals = have + np.stack([(chosen == side) @ counts for side in range(len(have))])
    improved = True
    while improved:
        improved = False
        for side, label in np.argwhere(totals == 0).tolist():
            holders = np.flatnonzero((counts[:, label] > 0) & (chosen != side))[:_REPAIR_TRIES]
            returns = [None, *np.flatnonzero(chosen == side)[:_REPAIR_TRIES].tolist()]
            best_cost, best = float(_cost(totals, expected, missing_cost)), None
            for row, back in itertools.product(holders.tolist(), returns):
                trial = totals.copy()
                trial[chosen[row]] -= counts[row]
                trial[side] += counts[row]
                if back is not None:
                    trial[side] -= counts[back]
                    trial[chosen[row]] += counts[back]
                cost = float(_cost(trial, expected, missing_cost))
                if cost < best_cost:
                    best_cost, best = cost, (row, back, trial)
            if best is not None:
                row, back, totals = best
                if back is not None:
                    chosen[back] = chosen[row]
                chosen[row] = side
                improved = True
                break
    return chosen


def n_groups(count: int) -> str:
    """Returns "1 group", "2 groups" and so on."""
    return "1 group" if count == 1 else f"{count} groups"

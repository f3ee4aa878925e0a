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


def _cost(have: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns imbalance plus what missing classes cost; ``have`` may have leading dimensions."""
    imbalance = ((have - expected) ** 2 / expected).sum((-2, -1))
    # All clips on the smallest side are 5.7 per clip away from the shares; nothing is further.
    missing = (have == 0).sum(-1) @ _MISSING_COST * (1 + expected.sum())
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
) -> NDArray[np.int64]:
    """Moves groups, or swaps two, for as long as that brings a missing class to a side."""
    chosen = chosen.copy()
    totals = have + np.stack([(chosen == side) @ counts for side in range(len(SIDES))])
    improved = True
    while improved:
        improved = False
        for side, label in np.argwhere(totals == 0).tolist():
            holders = np.flatnonzero((counts[:, label] > 0) & (chosen != side))[:_REPAIR_TRIES]
            returns = [None, *np.flatnonzero(chosen == side)[:_REPAIR_TRIES].tolist()]
            best_cost, best = float(_cost(totals, expected)), None
            for row, back in itertools.product(holders.tolist(), returns):
                trial = totals.copy()
                trial[chosen[row]] -= counts[row]
                trial[side] += counts[row]
                if back is not None:
                    trial[side] -= counts[back]
                    trial[chosen[row]] += counts[back]
                cost = float(_cost(trial, expected))
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

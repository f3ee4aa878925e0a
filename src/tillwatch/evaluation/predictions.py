"""A table of predictions, from this program or any other: read, checked, each fault said in one line."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tillwatch.errors import DataError, did_you_mean, one_line
from tillwatch.files import misspelt_column, read_csv

_PREFIX = "p_"
_COLUMNS = ("path", "label", "group", "split", "repeat", "fold", "camera")
_SUM_TOLERANCE = 5e-4  # a class: tables of other programs often hold three digits


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Scored, labelled clips.

    Attributes:
        names: of the N clips, each once.
        labels: int64 ``(N,)``, places in ``classes``.
        groups: of each clip; its own name where the table says none.
        splits: of each clip; empty where the table says none.
        classes: in the order of the columns.
        probabilities: float64 ``(N, len(classes))``, rows sum to 1.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: NDArray[np.float64]


def read_predictions(path: Path) -> Predictions:
    """Reads ``path,label,group,split,p_<class>,...``; group and split may be absent, other columns are ignored.

    Raises:
        DataError: if it cannot be read, or its scores cannot be used; one line that names the first such clip.
    """
    return predictions_of(read_rows(path), path)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a table of predictions as they stand.

    Raises:
        DataError: if it cannot be read, or a column is another in capitals.
    """
    try:
        rows = read_csv(path, surplus_ok=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}).") from None
    if (told := misspelt_column(rows[0] if rows else (), _COLUMNS)) is not None:
        raise DataError(f"{path}: {told}")
    if pathless := [line for line, row in enumerate(rows, start=2) if not row.get("path", "-").strip()]:
        raise DataError(f"{path}: {len(pathless)} of {len(rows)} rows have no path, the first is line {pathless[0]}.")
    return [row | {"path": _shortened(row["path"])} if "path" in row else row for row in rows]


def _shortened(path: str) -> str:
    """Takes "./" from before a path: with and without, it is one clip."""
    return re.sub(r"^(?:\./+)+(?=.)", "", path)


def predictions_of(rows: Sequence[Mapping[str, str]], path: Path, *, one_class_ok: bool = False) -> Predictions:
    """Takes and checks the rows of a table; arguments and errors as :func:`read_predictions`.

    Args:
        rows: of the table.
        path: where they come from, for errors.
        one_class_ok: whether all clips may be of one class.
    """
    if not rows:
        raise DataError(f"{path} holds no predictions; give a CSV with the columns path,label,p_<class>,...")
    columns = list(rows[0])
    classes = tuple(name.removeprefix(_PREFIX) for name in columns if name.startswith(_PREFIX) and name != _PREFIX)
    for name in ("path", "label"):
        if name not in columns:
            raise DataError(f"{path} lacks the column {name!r}; it has {', '.join(columns)}.")
    if len(classes) < 2:
        counted = "1 column" if len(classes) == 1 else f"{len(classes)} columns"
        raise DataError(f"{path} has {counted} p_<class>; it must have one for each class, two at least.")
    if unnamed := [row["path"] for row in rows if not row["label"].strip()]:
        raise DataError(f"{path}: {len(unnamed)} of {len(rows)} clips have no label, the first is {unnamed[0]!r}.")
    names = tuple(row["path"] for row in rows)
    probabilities = np.array([[_number(path, row, _PREFIX + name) for name in classes] for row in rows])
    for row in rows:
        if row["label"] not in classes:
            raise DataError(
                f"{path}: {row['path']!r} has the label {row['label']!r}, but there is no column "
                f"{_PREFIX}{row['label']}.{did_you_mean(row['label'], classes)}"
            )
    labels = np.array([classes.index(row["label"]) for row in rows], dtype=np.int64)
    try:
        check_scores(names, labels, classes, probabilities, one_class_ok=one_class_ok)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return Predictions(
        names=names,
        labels=labels,
        groups=tuple(row.get("group") or row["path"] for row in rows),
        splits=tuple(row.get("split", "") for row in rows),
        classes=classes,
        probabilities=probabilities,
    )


def check_scores(
    names: Sequence[str],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    *,
    one_class_ok: bool = False,
) -> None:
    """Checks that labelled scores can be evaluated.

    Args:
        names: of the clips.
        labels: int64 ``(N,)``.
        classes: in the order of the columns.
        probabilities: float64 ``(N, len(classes))``.
        one_class_ok: whether all clips may be of one class.

    Raises:
        DataError: if there is none, a clip is named twice, a score is not finite or outside [0, 1], a row does not
            sum to 1, or all clips are of one class.
    """
    if not len(names):
        raise DataError("there is no clip to evaluate.")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(f"{name!r} stands in {times} rows; each clip must stand in one.")
    for what, bad in (
        ("scores that are not finite", ~np.isfinite(probabilities).all(1)),
        ("a score outside 0 to 1", ((probabilities < 0) | (probabilities > 1)).any(1)),
        ("scores that do not sum to 1", np.abs(probabilities.sum(1) - 1) > _SUM_TOLERANCE * len(classes) + 1e-9),
    ):
        if bad.any():
            row = int(bad.argmax())
            scores = ", ".join(f"{p:g}" for p in probabilities[row])
            raise DataError(
                f"{int(bad.sum())} of {len(names)} clips have {what}, the first is {names[row]!r}: {scores}."
            )
    present = {int(label) for label in labels}
    if len(present) == 1 and not one_class_ok:
        raise DataError(
            f"all {len(labels)} clips are of the class {classes[present.pop()]!r}; "
            "how well classes are told apart shows on clips of two or more."
        )


def _number(path: Path, row: Mapping[str, str], column: str) -> float:
    try:
        return float(row[column])
    except ValueError:
        if row[column].strip().lower() in ("", "none", "null", "na"):
            return math.nan
        raise DataError(f"{path}: {column} of {row['path']!r} is {row[column]!r}; it must be a number.") from None

"""What labels and probabilities say of a classifier; pure arithmetic on top of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, classification_report, confusion_matrix, roc_auc_score

from tillwatch.clip_spec import event_scores
from tillwatch.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Figures of one set of clips.

    Attributes:
        report: scikit-learn's ``classification_report`` as a dict. A precision, recall or F1 whose
            denominator is zero stands as 0, as is scikit-learn's custom.
        report_text: the same to read.
        confusion: int64 ``(classes, classes)``, rows true, columns predicted.
        accuracy: share of clips whose most probable class is theirs.
        balanced_accuracy: mean recall of the classes that occur.
        event_auroc: area under the ROC curve of the event probability; None unless both event and
            other clips occur.
        event_average_precision: likewise, the average precision.
    """

    report: dict[str, Any]
    report_text: str
    confusion: NDArray[np.int64]
    accuracy: float
    balanced_accuracy: float
    event_auroc: float | None
    event_average_precision: float | None


def compute_metrics(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
    event_indices: Sequence[int],
) -> Metrics:
    """Computes the figures of a set of clips.

    Args:
        labels: int64 ``(N,)``, places in ``classes``.
        probabilities: float64 ``(N, len(classes))``, rows sum to 1.
        classes: names in the order of the columns.
        event_indices: columns whose sum is the event probability.

    Raises:
        DataError: if there is no clip, or a score is not finite.
    """
    if not len(labels):
        raise DataError("there is no clip to evaluate.")
    if not np.isfinite(probabilities).all():
        bad = int((~np.isfinite(probabilities).all(1)).sum())
        raise DataError(f"the scores of {bad} of {len(labels)} clips are not finite; the network is broken.")
    predicted = probabilities.argmax(1)
    indices = list(range(len(classes)))
    report: dict[str, Any] = {"labels": indices, "target_names": list(classes), "zero_division": 0}
    confusion = confusion_matrix(labels, predicted, labels=indices)
    is_event = np.isin(labels, list(event_indices))
    scores = event_scores(probabilities, event_indices)
    both = bool(is_event.any() and not is_event.all())
    return Metrics(
        report=classification_report(labels, predicted, output_dict=True, **report),
        report_text=classification_report(labels, predicted, digits=3, **report),
        confusion=confusion,
        accuracy=float((predicted == labels).mean()),
        balanced_accuracy=balanced_accuracy(confusion),
        event_auroc=float(roc_auc_score(is_event, scores)) if both else None,
        event_average_precision=float(average_precision_score(is_event, scores)) if both else None,
    )


def balanced_accuracy(confusion: NDArray[np.int64]) -> float:
    """Returns the mean recall of the classes that occur, from a confusion matrix with true rows."""
    occurring = confusion.sum(1) > 0
    return float((confusion.diagonal()[occurring] / confusion.sum(1)[occurring]).mean())

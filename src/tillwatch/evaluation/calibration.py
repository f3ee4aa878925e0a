"""Temperature and reliability: whether a score of 0.8 is right in eight cases of ten. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

LOWEST, HIGHEST = 0.2, 10.0
MIN_CLIPS, MIN_CLIPS_OF_CLASS = 50, 10

_SMALLEST = 1e-300  # the logarithm of a probability that has become 0
_SIMULATED = 200


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """What logits are divided by, and how it came about, in a sentence."""

    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Clips of like event probability.

    Attributes:
        low, high: event probabilities in it, ``[low, high)``, the last one closed.
        clips: how many.
        mean_probability: of the event; None if the bin is empty.
        share_of_events: how many of them are events in truth; None likewise.
    """

    low: float
    high: float
    clips: int
    mean_probability: float | None
    share_of_events: float | None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How well event probabilities match what is true.

    Attributes:
        bins: of equal width.
        ece: expected calibration error, the mean gap between probability and truth, weighted by clips
            (Naeini et al., 2015).
        ece_by_chance: what perfectly calibrated scores of just these clips have on average.
        ece_by_chance_95: what they stay below in 95 of 100 cases.
    """

    bins: tuple[ReliabilityBin, ...]
    ece: float
    ece_by_chance: float
    ece_by_chance_95: float


def fit_temperature(
    log_probabilities: NDArray[np.float64], labels: NDArray[np.int64], *, on: str = "validation"
) -> Temperature:
    """Fits the temperature that makes the labels most likely (Guo et al., 2017).

    Args:
        log_probabilities: float64 ``(N, classes)``; logits do as well, a temperature acts on both alike.
        labels: int64 ``(N,)``.
        on: what the clips are, for the source: "validation" or "out-of-fold".

    Returns:
        Within 0.2 to 10; 1 if there are fewer than 50 clips or 10 of a class, and the source says so.
    """
    counts = np.bincount(labels, minlength=log_probabilities.shape[1])
    if len(labels) < MIN_CLIPS or counts.min() < MIN_CLIPS_OF_CLASS:
        return Temperature(
            value=1.0,
            source=f"left at 1: {len(labels)} {on} clips, {int(counts.min())} of the rarest class; a fit takes "
            f"{MIN_CLIPS}, and {MIN_CLIPS_OF_CLASS} of each class",
        )

    def loss(log_temperature: float) -> float:
        scaled = log_probabilities / math.exp(log_temperature)
        total: float = (logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean()
        return total

    # The loss is convex in 1 / T, so it has one minimum in log T too.
    found = minimize_scalar(
        loss, bounds=(math.log(LOWEST), math.log(HIGHEST)), method="bounded", options={"xatol": 1e-7}
    )
    value = math.exp(float(found.x))
    for bound, meaning in (
        (LOWEST, "the scores are far less sure than they are right"),
        (HIGHEST, "the scores are far surer than they are right"),
    ):
        if loss(math.log(bound)) <= float(found.fun):  # the search ends just inside of its bounds
            return Temperature(
                value=bound, source=f"fitted on {len(labels)} {on} clips, at its bound of {bound:g}: {meaning}"
            )
    return Temperature(value=value, source=f"fitted on {len(labels)} {on} clips")


def apply_temperature(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Returns probabilities as they are after their logits are divided by a temperature.

    Args:
        probabilities: float64 ``(N, classes)``, of temperature 1.
        temperature: above 0.
    """
    if temperature == 1.0:
        return probabilities
    scaled: NDArray[np.float64] = np.exp(log_softmax(logs(probabilities) / temperature, axis=1))
    return scaled


def logs(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns finite log probabilities, also of 0."""
    taken: NDArray[np.float64] = np.log(np.maximum(probabilities, _SMALLEST))
    return taken


def calibration(
    event_probabilities: NDArray[np.float64],
    is_event: NDArray[np.bool_],
    *,
    num_bins: int = 10,
    seed: int = 0,
    repeats: int = 1,
) -> Calibration:
    """Compares event probabilities with the truth.

    Args:
        event_probabilities: float64 ``(N,)`` in [0, 1].
        is_event: bool ``(N,)``.
        num_bins: of equal width.
        seed: of the simulation that gives the level of chance.
        repeats: of the same clips, one after another; a clip's label is drawn once for all of them.
    """
    bins = np.minimum((event_probabilities * num_bins).astype(int), num_bins - 1)
    clips = np.bincount(bins, minlength=num_bins)
    scores = np.bincount(bins, event_probabilities, num_bins)
    events = np.bincount(bins, is_event.astype(float), num_bins)
    random = np.random.default_rng(seed)
    chance = []
    for _ in range(_SIMULATED):  # labels drawn as if the scores were right
        of_clips = np.tile(random.random(len(bins) // repeats), repeats)
        drawn = np.bincount(bins, of_clips < event_probabilities, num_bins)
        chance.append(np.abs(drawn - scores).sum() / len(bins))
    return Calibration(
        bins=tuple(
            ReliabilityBin(
                low=place / num_bins,
                high=(place + 1) / num_bins,
                clips=int(clips[place]),
                mean_probability=float(scores[place] / clips[place]) if clips[place] else None,
                share_of_events=float(events[place] / clips[place]) if clips[place] else None,
            )
            for place in range(num_bins)
        ),
        ece=float(np.abs(events - scores).sum() / len(bins)),
        ece_by_chance=float(np.mean(chance)),
        ece_by_chance_95=float(np.quantile(chance, 0.95)),
    )

"""What a search of settings may vary, as a user says it: ``lr=1e-5..1e-2``, ``batch_size=4,8,16``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tillwatch.config import TrainConfig
from tillwatch.errors import ConfigError, did_you_mean, one_line

#: Settings of how a network learns. What it is shown (frames, sizes, classes) is one for the whole search.
SEARCHABLE: dict[str, type] = {
    "lr": float,
    "dropout": float,
    "batch_size": int,
    "lr_patience": int,
    "early_share": float,
    "early_frames": float,
    "early_pixels": float,
}

_LOG_FROM = 50  # times the least: ranges so wide are searched by their logarithm


@dataclass(frozen=True)
class Range:
    """Every number from ``low`` to ``high``, both included; whole ones where the setting is."""

    low: float
    high: float

    @property
    def log(self) -> bool:
        """Whether each factor is as likely as every other, rather than each number."""
        return self.low > 0 and self.high >= _LOG_FROM * self.low

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}{' (by its logarithm)' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[float, ...]

    def __str__(self) -> str:
        return ",".join(f"{value:g}" for value in self.values)


Space = Mapping[str, Range | Choice]

#: What is searched unless told.
DEFAULT: Space = {"lr": Range(1e-5, 1e-2), "dropout": Range(0.0, 0.7), "batch_size": Choice((2, 4, 8))}


def parse_space(texts: Sequence[str], config: TrainConfig) -> Space:
    """Reads ``NAME=LOW..HIGH`` and ``NAME=A,B,C``; nothing said is :data:`DEFAULT`.

    Args:
        texts: as they were given.
        config: the other settings, which every value must go with.

    Raises:
        ConfigError: quoting what cannot be searched.
    """
    space: dict[str, Range | Choice] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if name not in SEARCHABLE or not equals:
            raise ConfigError(
                f"--search is {text!r}; it must be NAME=LOW..HIGH or NAME=A,B,C, and NAME one of "
                f"{', '.join(SEARCHABLE)}.{did_you_mean(name, SEARCHABLE)}"
            )
        if name in space:
            raise ConfigError(f"--search names {name} twice.")
        space[name] = _parse_values(name, values, text)
    found = space or DEFAULT
    for name, values_of in found.items():
        for value in _ends(values_of):
            try:
                replace(config, **{name: SEARCHABLE[name](value)})
            except ConfigError as error:
                raise ConfigError(f"--search {name} tries {value:g}: {one_line(error)}") from None
    return found


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """Lets an Optuna trial choose a value for each setting."""
    chosen: dict[str, Any] = {}
    for name, values in space.items():
        kind = SEARCHABLE[name]
        if isinstance(values, Choice):
            chosen[name] = trial.suggest_categorical(name, [kind(value) for value in values.values])
        elif kind is int:
            chosen[name] = trial.suggest_int(name, int(values.low), int(values.high), log=values.log)
        else:
            chosen[name] = trial.suggest_float(name, values.low, values.high, log=values.log)
    return chosen


def as_given(config: TrainConfig, space: Space) -> dict[str, Any] | None:
    """Returns the values that the settings have unsearched; None if one of them lies outside what is searched."""
    given = {name: getattr(config, name) for name in space}
    for name, values in space.items():
        value = given[name]
        inside = value in values.values if isinstance(values, Choice) else values.low <= value <= values.high
        if not inside:
            return None
    return given


def _parse_values(name: str, values: str, text: str) -> Range | Choice:
    try:
        if ".." in values:
            low, high = (_number(part, SEARCHABLE[name]) for part in values.split(".."))
            if low >= high:
                raise ValueError("its low end is not below its high end")
            return Range(low, high)
        numbers = tuple(_number(part, SEARCHABLE[name]) for part in values.split(","))
        if len(set(numbers)) != len(numbers):
            raise ValueError("a value stands there twice")
        return Choice(numbers)
    except ValueError as error:
        raise ConfigError(f"--search is {text!r}: {one_line(error)}.") from None


def _number(text: str, kind: type) -> float:
    number = float(text)
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise ValueError(f"{text.strip()} is not a {'whole ' if kind is int else ''}number")
    return number


def _ends(values: Range | Choice) -> tuple[float, ...]:
    return values.values if isinstance(values, Choice) else (values.low, values.high)

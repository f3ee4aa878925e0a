"""What a run was begun with, and which of it may be another when it goes on."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tillwatch.config import RESUME_MAY_CHANGE, TrainConfig, flag, read_yaml
from tillwatch.errors import ConfigError, RunError, one_line


@dataclass(frozen=True, kw_only=True)
class Begun:
    """What a run's config.yaml says.

    Attributes:
        data: its data folder.
        config: its settings, as they were resolved.
    """

    data: Path
    config: TrainConfig


def read_begun(run: Path) -> Begun:
    """Reads what a run was begun with.

    Raises:
        ConfigError, RunError: if its config.yaml cannot be read.
    """
    path = run / "config.yaml"
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in read_yaml(path).items()
    }
    values.pop("out", None)
    try:
        data = Path(values.pop("data"))
        for name in ("split_file", "cache_folder", "normal_footage"):
            if name in values:
                values[name] = Path(values[name])
        return Begun(data=data, config=TrainConfig(**values))
    except (KeyError, TypeError, ConfigError) as error:
        raise RunError(f"{path} is not what a run was begun with ({one_line(error)}).") from None


def as_begun(begun: TrainConfig, config: TrainConfig | None) -> TrainConfig:
    """Returns what a run goes on with: as it was begun where nothing is said, or where "auto" asks what was found then.

    Args:
        begun: the run's settings.
        config: those that are wanted; None for just those.
    """
    if config is None:
        return begun
    return replace(config, batch_size=begun.batch_size) if config.batch_size == "auto" else config


def refuse_changes(run: Path, begun: TrainConfig, config: TrainConfig) -> None:
    """Holds settings against those that a run was begun with.

    Args:
        run: the run folder.
        begun: its settings.
        config: those that it is to go on with.

    Raises:
        RunError: naming each that would change what is learnt, and those that may differ.
    """
    names = [field.name for field in fields(config) if field.name not in (*RESUME_MAY_CHANGE, "overwrite")]
    changed = [name for name in names if getattr(begun, name) != getattr(config, name)]
    if changed:
        told = ", ".join(
            f"{flag(name)} was {_told(getattr(begun, name))} and is {_told(getattr(config, name))}" for name in changed
        )
        may = ", ".join(flag(name) for name in RESUME_MAY_CHANGE)
        raise RunError(
            f"{run} goes on as it was begun: {told}. Only the place of the data and {may} may change; "
            "for anything else train anew with another --out."
        )


def _told(value: Any) -> str:
    if value is None:
        return "not given"
    return ",".join(value) if isinstance(value, tuple) else str(value)

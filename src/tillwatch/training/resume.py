"""What a run was begun with, and which of it may be another when it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from tillwatch.config import RESUME_MAY_CHANGE, TrainConfig, flag, read_yaml, to_yaml
from tillwatch.errors import RunError


def refuse_changes(run: Path, config: TrainConfig) -> None:
    """Holds settings against those that a run was begun with.

    Args:
        run: the run folder.
        config: as resolved as config.yaml is.

    Raises:
        RunError: naming each that would change what is learnt, and those that may differ.
    """
    began = read_yaml(run / "config.yaml")
    now: Mapping[str, Any] = yaml.safe_load(to_yaml(config, run, run))
    usual: dict[str, Any] = {field.name: field.default for field in fields(config)}
    settled = usual.keys() - {*RESUME_MAY_CHANGE, "overwrite"}
    changed = [name for name in usual if name in settled and began.get(name, usual[name]) != now.get(name)]
    if changed:
        told = ", ".join(f"{flag(name)} was {_told(began.get(name))} and is {_told(now.get(name))}" for name in changed)
        may = ", ".join(flag(name) for name in RESUME_MAY_CHANGE)
        raise RunError(
            f"{run} goes on as it was begun: {told}. Only the place of the data and {may} may change; "
            "for anything else train anew with another --out."
        )


def _told(value: Any) -> str:
    return "not given" if value is None else repr(value)

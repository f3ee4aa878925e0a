"""What a run was begun with, and which of it may be another when it goes on."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from tillwatch.config import RESUME_MAY_CHANGE, TrainConfig, flag, read_yaml, to_yaml
from tillwatch.data.catalog import Clip, count_and_names
from tillwatch.errors import ConfigError, RunError, one_line
from tillwatch.files import read_csv, write_csv
from tillwatch.training.recorded import relabelled


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


def settings_learnt(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings that may not change when a run goes on, as plain values by name."""
    record = settings_record(config, Path(), Path())
    return {name: value for name, value in record.items() if name not in ("data", "out", *RESUME_MAY_CHANGE)}


def refuse_edits(run: Path, begun: Mapping[str, Any], config: TrainConfig) -> None:
    """Holds config.yaml against the settings that a checkpoint tells, as :func:`settings_learnt` has them.

    Args:
        run: the run folder.
        begun: those that it was begun with; a setting that came since is as it was without it.
        config: what its config.yaml says.

    Raises:
        RunError: naming each that was edited.
    """
    if told := _changes(begun, settings_learnt(config)):
        raise RunError(
            f"{run / 'config.yaml'} is not as this run was begun: {told}. Put it back, or train anew with another "
            "--out."
        )


# Of what trains again and again: a cross-validation, a search


def settings_record(config: TrainConfig, data: Path, out: Path) -> dict[str, Any]:
    """Returns settings as a YAML file keeps them."""
    record: dict[str, Any] = yaml.safe_load(to_yaml(config, data.resolve(), out))
    return record


def refuse_other_settings(
    out: Path, older: Mapping[str, Any], now: Mapping[str, Any], may_differ: Container[str], advice: str
) -> None:
    """Holds settings against those that something was begun with, both as :func:`settings_record` has them.

    Args:
        out: its folder.
        older: those that it was begun with; a setting that came since is as it was without it.
        now: those that it is to go on with.
        may_differ: names that do not matter.
        advice: what else to do.

    Raises:
        RunError: naming each that is another.
    """
    if told := _changes(older, now, may_differ):
        raise RunError(f"{out} was begun with other settings: {told}. Give another --out{advice}.")


def write_sides(path: Path, sides: Mapping[str, str], clips: Sequence[Clip], sizes: Mapping[str, str]) -> None:
    """Writes the split that something is begun with: the side, the label, the group and the bytes of clips, as
    :func:`~tillwatch.data.fingerprints.bytes_of` has them.
    """
    clip_of = {clip.name: clip for clip in clips}
    rows = [
        {"path": name, "label": clip.label, "group": clip.group, "split": side, "bytes": sizes[name]}
        for name, side in sorted(sides.items())
        if (clip := clip_of[name])
    ]
    write_csv(path, ("path", "label", "group", "split", "bytes"), rows)


def refuse_other_clips(
    out: Path, path: Path, sides: Mapping[str, str], clips: Sequence[Clip], sizes: Mapping[str, str], advice: str
) -> None:
    """Holds clips against those that something was begun with, as :func:`write_sides` wrote them.

    Args:
        out: its folder.
        path: of the split.
        sides, clips: as they are now.
        sizes: of them, as :func:`~tillwatch.data.fingerprints.bytes_of` has them.
        advice: what else to do.

    Raises:
        RunError: if labels, clips, their bytes or groups are others, or the file cannot be read.
    """
    try:
        rows = read_csv(path)
        began = {row["path"]: row["split"] for row in rows}
    except (OSError, ValueError, KeyError):
        rows, began = [], {}
    labelled = {row["path"]: row["label"] for row in rows if "label" in row}
    if others := relabelled(clips, labelled):
        raise RunError(f"{out} was begun with other labels of {count_and_names(others)}; give another --out{advice}.")
    older = {row["path"]: row["bytes"] for row in rows if row.get("bytes")}
    if changed := [name for name, size in older.items() if sizes.get(name, size) != size]:
        raise RunError(
            f"{out} was begun with other footage: {count_and_names(changed)} changed since; give another --out{advice}."
        )
    group_of = {clip.name: clip.group for clip in clips}
    grouped = {row["path"]: row["group"] for row in rows if row.get("group")}
    if began != dict(sides) or any(group_of.get(name, group) != group for name, group in grouped.items()):
        raise RunError(f"{out} was begun with other clips or groups; give another --out{advice}.")


def _changes(older: Mapping[str, Any], now: Mapping[str, Any], may_differ: Container[str] = ()) -> str:
    """Names what differs of plain settings, and how; empty if nothing does."""
    defaults = settings_record(TrainConfig(), Path(), Path())
    known = {name: value for name, value in defaults.items() if name in now} | dict(older)
    changed = [name for name in sorted({*now, *known}) if name not in may_differ and now.get(name) != known.get(name)]
    return ", ".join(f"{flag(name)} {known.get(name)!r} is now {now.get(name)!r}" for name in changed)


def _told(value: Any) -> str:
    if value is None:
        return "not given"
    return ",".join(value) if isinstance(value, tuple) else str(value)

"""The clips of a run that goes on: groups and sides as its clips.csv has them, whatever became of the files since."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tillwatch.clip_spec import FrameStep
from tillwatch.data.catalog import CLIPS_CSV, Catalog, Clip, count_and_names
from tillwatch.data.splits import SIDES
from tillwatch.data.video import is_video_file
from tillwatch.errors import DataError, RunError, one_line
from tillwatch.files import read_csv


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a run's clips.csv says of the clips that it uses.

    Attributes:
        rows: by name.
        order: names in the order that the run's indices count them; of a run without a checkpoint, none.
    """

    rows: Mapping[str, Mapping[str, str]]
    order: Sequence[str] = ()

    @property
    def sizes(self) -> dict[str, str]:
        """The bytes of each clip's files when the run began; empty where its clips.csv, an older one, tells none."""
        return {name: row.get("bytes", "") for name, row in self.rows.items()}

    def restore(
        self,
        catalog: Catalog,
        sizes: Mapping[str, str],
        data: Path,
        step: FrameStep,
        max_skipped: float,
        note: Callable[[str], None],
    ) -> tuple[Catalog, dict[str, str]]:
        """Returns what was found as the run knew it, and each clip's side.

        A clip that is gone or damaged stays, to be skipped where it would be read: so every other draw is what it
        would have been. Clips that came since are left out. All are named.

        Args:
            catalog: what the data folder holds now.
            sizes: of its clips, as :func:`~tillwatch.data.fingerprints.bytes_of` has them.
            data: the data folder.
            step: which frames of a source count.
            max_skipped: the share of clips, 0 to 1, that may be gone.
            note: where to say what has changed.

        Raises:
            DataError: if labels are others, or more than three clips and more than that share are gone.
        """
        found = {clip.name: clip for clip in catalog.clips}
        if others := relabelled(catalog.clips, {name: row["label"] for name, row in self.rows.items()}):
            raise DataError(
                f"{count_and_names(others)} of the run's {len(self.rows)} clips have another label in {data} than "
                "when it began; put the labels back, or train anew with another --out."
            )
        gone = [name for name in self.rows if name not in found]
        if len(gone) > 3 and len(gone) > max_skipped * len(self.rows):
            raise DataError(
                f"{count_and_names(gone)} of the run's {len(self.rows)} clips are gone from {data} or damaged since it "
                "began; put them back, or name the data folder if it has moved."
            )
        for name in gone:
            note(f"{name} is gone or damaged since the run began: it is left out from here on.")
        if new := [name for name in found if name not in self.rows]:
            note(f"{count_and_names(new)} not used: not there when the run began.")
        changed = [name for name in self.rows if name in found and self._changed(found[name], sizes[name])]
        if changed:
            note(f"{count_and_names(changed)} changed since the run began: read as they are now.")
        names = self.order or [*(name for name in found if name in self.rows), *gone]
        clips = tuple(
            replace(found[name], group=self.rows[name]["group"]) if name in found else self._gone(name, data, step)
            for name in names
        )
        return replace(catalog, clips=clips), {name: self.rows[name]["split"] for name in names}

    def _changed(self, clip: Clip, size: str) -> bool:
        row = self.rows[clip.name]
        return _frames(row) != clip.num_frames or bool(row.get("bytes") and row["bytes"] != size)

    def _gone(self, name: str, data: Path, step: FrameStep) -> Clip:
        row, is_video = self.rows[name], is_video_file(Path(name))
        fps = float(row["fps"]) if row["fps"] else None
        return Clip(
            name=name,
            path=data / name,
            label=row["label"],
            group=row["group"],
            is_video=is_video,
            num_frames=_frames(row),
            every=None,
            fps=fps,
            frame_step=step.of_source(fps) if is_video else 1,
        )


def relabelled(clips: Sequence[Clip], labels: Mapping[str, str]) -> list[str]:
    """Returns the names of the clips that have another label than was written down, by name; unknown ones have not."""
    return [clip.name for clip in clips if labels.get(clip.name, clip.label) != clip.label]


def read_recorded(run: Path, begun: Mapping[str, tuple[str, str, str]] | None = None) -> Recorded | None:
    """Reads a run's clips.csv; None if it has none.

    Args:
        run: the run folder.
        begun: label, group and side of each clip, in the order that indices count them, as a checkpoint tells them.

    Raises:
        RunError: if it is damaged, or says something else than the checkpoint.
    """
    path = run / CLIPS_CSV
    if not path.is_file():
        if begun:
            raise RunError(f"{path} is gone; put it back.")
        return None
    try:
        rows = {row["path"]: row for row in read_csv(path) if row["split"]}
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} cannot be read ({one_line(error)}).") from None
    if not rows or not all(map(_is_whole, rows.values())):
        raise RunError(f"{path} is not the one that this run wrote; put it back.")
    if begun:
        now = {name: (row["label"], row["group"], row["split"]) for name, row in rows.items()}
        if others := [name for name in sorted({*begun, *now}) if begun.get(name) != now.get(name)]:
            raise RunError(
                f"{path} is not the one that this run wrote: {count_and_names(others)} with another label, group or "
                "side, or in one of them only; put it back."
            )
    return Recorded(rows=rows, order=tuple(begun or ()))


def _is_whole(row: Mapping[str, str]) -> bool:
    """Whether a row of a clip that is used has what every such row has."""
    try:
        fps = float(row["fps"]) if row["fps"] else None
        named = row["label"] and row["group"] and row["split"] in SIDES
        return bool(named) and _frames(row) > 0 and (fps is None or 0 < fps < math.inf)
    except (KeyError, ValueError):
        return False


def _frames(row: Mapping[str, str]) -> int:
    return int(row["frames"])

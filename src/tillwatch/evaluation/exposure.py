"""What a model had to do with the clips that it is measured on: the less that is nothing, the less they can say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

#: Stands above any figure that was measured on the clips that the model learnt from.
TRAINED_ON_NOTE = "Measured on the clips that the model was trained on: this is no estimate of how it does on others."

#: Stands above figures of a test whose groups choices were made on.
CHOSEN_GROUPS_NOTE = (
    "The best epoch, the temperature or the operating point was chosen on clips of groups that are measured here: "
    "these figures may flatter."
)

#: The key of evaluation.json under which a model trained on all clips names the cross-validation that measured it.
CROSS_VALIDATION = "cross_validation"


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How far the clips that were measured are new to the model.

    Attributes:
        clips: that were measured.
        learnt_from: those of them that the model was trained on, or that are copies of such.
        chosen_on: those that the best epoch, the temperature or the operating point was chosen on, or copies of such.
        groups_divided: whether clips of one group were learnt from and measured, as folds drawn at random have it.
        own_clips: whether they are the run's own clips, which its audit speaks of.
        doubt: a sentence on what else may make the model look better than it is; empty if nothing does.
        groups_told: whether somebody named the groups of most clips; the others count as groups of their own.
    """

    clips: int
    learnt_from: int = 0
    chosen_on: int = 0
    groups_divided: bool = False
    own_clips: bool = True
    doubt: str = ""
    groups_told: bool = True

    def to_json(self) -> dict[str, Any]:
        """Returns it as evaluation.json has it."""
        return asdict(self)

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns the sentences that must stand above the figures."""
        divided = (
            "Clips of one group were learnt from and measured: these figures leak." if self.groups_divided else None
        )
        return tuple(note for note in (self.learnt_note, divided, self.chosen_note, self.doubt) if note)

    @property
    def why_no_claim(self) -> str | None:
        """Says why no interval, bound or rate may stand beside the figures; None if they may."""
        if not self.learnt_from:
            return None
        return (
            f"no intervals and no rate of false alarms: the model learnt from {self.learnt_from} of these {self.clips} "
            "clips, so nothing here can be said of others."
        )

    @property
    def learnt_note(self) -> str | None:
        """Says that the model knows clips that it is measured on; None if it knows none."""
        if not self.learnt_from:
            return None
        if self.learnt_from == self.clips:
            return TRAINED_ON_NOTE
        return (
            f"The model was trained on {self.learnt_from} of these {self.clips} clips: this is no estimate of how it "
            "does on others."
        )

    @property
    def chosen_note(self) -> str | None:
        """Says that choices were made on clips that the model is measured on; None if none were."""
        if not self.chosen_on:
            return None
        which = "these clips" if self.chosen_on == self.clips else f"{self.chosen_on} of these {self.clips} clips"
        return f"The best epoch, the temperature or the operating point was chosen on {which}: what they show flatters."


def exposure_of(
    sides: Sequence[str],
    *,
    groups_divided: bool = False,
    own_clips: bool = True,
    doubt: str = "",
    groups_told: bool = True,
) -> Exposure:
    """Counts the sides of what was measured: "train", "validation"; anything else is new to the model."""
    return Exposure(
        clips=len(sides),
        learnt_from=sum(side == "train" for side in sides),
        chosen_on=sum(side == "validation" for side in sides),
        groups_divided=groups_divided,
        own_clips=own_clips,
        doubt=doubt,
        groups_told=groups_told,
    )


def read_exposure(record: Mapping[str, Any]) -> Exposure | None:
    """Returns the exposure that evaluation.json tells of; None if it tells of none, as older ones do not."""
    told = record.get("exposure")
    if not isinstance(told, Mapping) or not isinstance(told.get("clips"), int):
        return None
    counts = {name: int(told.get(name) or 0) for name in ("clips", "learnt_from", "chosen_on")}
    return Exposure(
        clips=counts["clips"],
        learnt_from=counts["learnt_from"],
        chosen_on=counts["chosen_on"],
        groups_divided=bool(told.get("groups_divided")),
        own_clips=bool(told.get("own_clips", True)),
        doubt=str(told.get("doubt") or ""),
        groups_told=bool(told.get("groups_told", True)),
    )

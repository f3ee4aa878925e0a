"""The audit's tables."""

from __future__ import annotations

from pathlib import Path

from tillwatch.data.audit import tables
from tillwatch.data.catalog import Clip


def lasting(seconds: float | None) -> Clip:
    frames, fps = (30, None) if seconds is None else (round(seconds * 20), 20.0)
    name = f"clip {seconds}"
    return Clip(name=name, path=Path(name), label="x", group=name, is_video=True, num_frames=frames, every=1, fps=fps)


def test_lengths_stand_in_their_order_and_their_bounds_belong_to_the_longer() -> None:
    rows = tables([lasting(seconds) for seconds in (None, 90, 0.4, 12, 2, 1.5, 1.2, 60)], {})["seconds"]
    assert [(row["value"], row["clips"]) for row in rows] == [
        ("under 0.5", 1),
        ("under 2", 2),
        ("under 3", 1),
        ("under 30", 1),
        ("60 or more", 2),
        ("unknown", 1),
    ]

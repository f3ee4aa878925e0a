"""The audit's tables, and what it finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tillwatch.data.audit import find_problems, tables
from tillwatch.data.catalog import Catalog, Clip


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


def places_of(scenes: list[list[str]], labels: dict[str, str]) -> list[str]:
    clips = tuple(replace(lasting(2.0), name=name, label=label) for name, label in labels.items())
    catalog = Catalog(clips=clips, classes=tuple(sorted(set(labels.values()))))
    found = find_problems(catalog, {}, (), scenes, num_frames=8)
    return [one.text for one in found if (one.kind, one.severity) == ("confound", "problem")]


def test_a_class_filmed_at_a_place_of_its_own_is_a_problem() -> None:
    labels = {f"a{n}": "theft" for n in range(12)} | {f"b{n}": "normal" for n in range(12)}
    of_a, of_b = [name for name in labels if name[0] == "a"], [name for name in labels if name[0] == "b"]
    told = "of the 12 clips of theft show one scene, which no clip of another class shows: "
    told += "the place alone tells the class."
    assert places_of([of_a, of_b[:5], of_b[5:]], labels) == [f"12 {told}"]
    assert places_of([of_a[:10]], labels) == [f"10 {told}"]
    assert places_of([of_a[:9]], labels) == []
    assert places_of([of_a + of_b[:1]], labels) == []
    assert places_of([of_a], {name: labels[name] for name in of_a}) == [], "one class alone"
    fights = {f"c{n}": "fight" for n in range(4)}
    both = "15 of the 16 clips of theft or fight show one scene, which no clip of another class shows: "
    both += "the place alone tells these classes from the rest."
    assert places_of([[*of_a, *list(fights)[:3]]], labels | fights) == [both]

"""Two models on the same clips: counts, differences, the verdict, and what is no comparison."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tillwatch.cli import main
from tillwatch.errors import DataError
from tillwatch.evaluation.comparison import compare
from tillwatch.evaluation.evaluated import Told, read_evaluated
from tillwatch.evaluation.findings import rivals, summary_of, verdict
from tillwatch.evaluation.paired import cost_note, rivals_of
from tillwatch.training.cross_validation import Folds, cross_validate

Rows = list[dict[str, Any]]


def table(path: Path, rows: Rows) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def scored(wrong: Callable[[int], bool], groups: int = 20, **extra: Any) -> Rows:
    """Six clips a group, every other a theft; those that ``wrong`` names score 0.2 for their class, others 0.8."""
    rows = []
    for place in range(6 * groups):
        event = place % 2 == 0
        own = 0.2 if wrong(place) else 0.8
        theft = own if event else 1 - own
        label = "theft" if event else "normal"
        rows.append(
            {"path": f"{label}/{place}", "label": label, "group": f"g{place // 6}", "p_theft": theft, **extra}
            | {"p_normal": 1 - theft}
        )
    return rows


def test_who_was_right_and_by_how_much(tmp_path: Path) -> None:
    a = table(tmp_path / "a.csv", scored(lambda place: place % 6 == 0))
    others = scored(lambda place: place % 6 in (1, 2) or place % 12 == 0)
    # Another program: rows and columns in another order, and no groups.
    swapped = [{key: row[key] for key in ("path", "p_normal", "p_theft", "label")} for row in reversed(others)]
    b = table(tmp_path / "b.csv", swapped)
    found = compare(a, b)
    assert (found.both, found.only_first, found.only_second, found.neither) == (60, 40, 10, 10)
    assert found.differences["accuracy"].value == pytest.approx(30 / 120)
    assert found.groups == 20
    assert [one.figures["accuracy"].value for one in found.summaries] == pytest.approx([100 / 120, 70 / 120])
    assert all(one.figures["accuracy"].interval is not None for one in found.summaries), "groups are A's for both"
    assert "a.csv is better than" in found.verdict
    assert f"{a} is better than {b}: balanced accuracy, A less B, -0.250" in compare(b, a).verdict
    assert compare(b, a).differences["accuracy"].value == pytest.approx(-30 / 120)


def test_what_clips_do_not_tell_is_not_claimed(tmp_path: Path) -> None:
    a = table(tmp_path / "a.csv", scored(lambda place: place in (0, 7, 22)))
    b = table(tmp_path / "b.csv", scored(lambda place: place in (0, 7, 22, 41)))
    assert compare(a, b).differences["balanced_accuracy"].value == pytest.approx(1 / 120)
    assert "do not tell" in compare(a, b).verdict
    few = [table(tmp_path / f"{k}.csv", scored(lambda p, k=k: p % 3 < k, groups=4)) for k in (0, 1)]  # type: ignore[misc]
    found = compare(few[0], few[1])
    assert found.differences["balanced_accuracy"].interval is None
    assert "fall into 4 groups" in (found.differences["balanced_accuracy"].reason or "")
    assert found.verdict.startswith("nothing says which")


def test_clips_that_a_model_learnt_from_decide_nothing(tmp_path: Path) -> None:
    a = table(tmp_path / "a.csv", scored(lambda place: place % 8 == 0))
    b = table(tmp_path / "b.csv", scored(lambda place: place % 8 < 3, split="train"))
    found = compare(a, b)
    assert all(one.interval is None for one in found.differences.values())
    assert "nothing says which of" in found.verdict
    assert "the model learnt from 120 of these 120 clips" in found.verdict


def test_clips_whose_groups_were_divided_decide_nothing(tmp_path: Path) -> None:
    a = table(tmp_path / "a.csv", scored(lambda place: place % 8 == 0))
    rows = scored(lambda place: place % 8 < 3)
    b = table(tmp_path / "b.csv", [row | {"fold": place % 5} for place, row in enumerate(rows)])
    found = compare(a, b)
    assert all(one.interval is None for one in found.differences.values())
    assert "nothing says which of" in found.verdict
    assert f"the figures of {b} leak" in found.verdict


def test_a_table_without_groups_is_judged_by_those_of_the_other(tmp_path: Path) -> None:
    a = table(tmp_path / "a.csv", scored(lambda place: place % 8 == 0))
    rows = [{**row, "group": "", "fold": place % 5} for place, row in enumerate(scored(lambda place: place % 8 < 3))]
    b = table(tmp_path / "b.csv", rows)
    for found in (compare(a, b), compare(b, a)):
        assert f"the figures of {b} leak" in found.verdict
    alone = compare(b, table(tmp_path / "c.csv", rows))
    assert alone.verdict.endswith(
        "95 % interval by group, provided that each clip is of a source of its own and neither model learnt from these "
        "clips, which nothing here says."
    )
    tested = [table(tmp_path / f"{k}.csv", scored(lambda p, k=k: p % 8 < k, split="test")) for k in (1, 4)]  # type: ignore[misc]
    assert compare(tested[0], tested[1]).verdict.endswith("95 % interval by group.")


def test_groups_that_either_names_are_those_of_both(
    tiny_run: tuple[Path, Path], tiny_config: Any, quiet: Any, tmp_path: Path
) -> None:
    rows = scored(lambda place: place % 8 < 3)
    alone = [row | {"group": f"clip{place}", "fold": place % 5} for place, row in enumerate(rows)]
    a = table(tmp_path / "a.csv", alone)
    b = table(tmp_path / "b.csv", scored(lambda place: place % 8 == 0))
    for found in (compare(a, b), compare(b, a)):
        assert found.groups == 20
        assert f"the figures of {a} leak" in found.verdict
    cross_validate(tiny_run[0], tmp_path / "cv", tiny_config(groups="none", epochs=1), Folds(folds=2), quiet())
    with (tmp_path / "cv" / "predictions.csv").open(encoding="utf-8") as file:
        named = [row | {"group": row["path"].split("/")[1][:4]} for row in csv.DictReader(file)]
    for row in named:
        row.pop("fold", None)
    found = compare(table(tmp_path / "named.csv", named), tmp_path / "cv")
    assert found.groups == len({row["group"] for row in named})
    assert f"the figures of {tmp_path / 'cv'} leak" in found.verdict


def test_clips_that_choices_were_made_on_decide_nothing(tmp_path: Path) -> None:
    a = table(tmp_path / "a.csv", scored(lambda place: place % 8 == 0, split="validation"))
    b = table(tmp_path / "b.csv", scored(lambda place: place % 8 < 3, split="validation"))
    found = compare(a, b)
    assert "nothing says which of" in found.verdict
    assert f"no interval for the figures of {a}: the best epoch" in found.verdict


def test_other_clips_labels_or_classes_are_no_comparison(tmp_path: Path) -> None:
    rows = scored(lambda place: False)
    a = table(tmp_path / "a.csv", rows)
    with pytest.raises(DataError, match=r"3 stand only in the first, 1 only in the second, such as 'normal/1'"):
        compare(a, table(tmp_path / "b.csv", [rows[0] | {"path": "theft/new"}, rows[2], *rows[4:]]))
    with pytest.raises(DataError, match=r"1 clips bear other labels .* such as 'theft/0'"):
        compare(a, table(tmp_path / "c.csv", [rows[0] | {"label": "normal"}, *rows[1:]]))
    renamed = [
        {("p_fight" if key == "p_theft" else key): "fight" if value == "theft" else value for key, value in row.items()}
        for row in rows
    ]
    with pytest.raises(DataError, match="only the same classes"):
        compare(a, table(tmp_path / "d.csv", renamed))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = table(tmp_path / "a.csv", scored(lambda place: place % 6 == 0))
    b = table(tmp_path / "b.csv", scored(lambda place: place % 3 == 0))
    with pytest.raises(SystemExit, match="0"):
        main(["compare", str(a), str(b)])
    told = capsys.readouterr().out
    assert "right: both 80, only A 20, only B 0, neither 20" in told
    assert "0.833" in told
    assert f"{a} is better than {b}" in told.splitlines()[-1]
    with pytest.raises(SystemExit, match="0"):
        main(["compare", str(a), str(b), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["only_first"] == 20
    assert record["differences"]["accuracy"]["interval"]["low"] > 0
    table(b, scored(lambda place: False, groups=19))
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(a), str(b)])
    error = capsys.readouterr().err
    assert "6 stand only in the first, 0 only in the second" in error
    assert error.count("\n") == 1


def test_a_network_beats_a_baseline_only_where_the_interval_says_so() -> None:
    labels = np.arange(120) % 2
    groups = [f"g{place // 6}" for place in range(120)]
    right = np.eye(2)[labels][None] * 0.6 + 0.2
    worse, equal = right.copy(), right.copy()
    worse[0, ::3] = worse[0, ::3, ::-1]
    equal[0, :2] = equal[0, :2, ::-1]
    assert cost_note(rivals_of(labels, right, {"motion": worse}, groups, [1])) is None
    note = cost_note(rivals_of(labels, right, {"motion": worse, "single frame": equal}, groups, [1])) or ""
    assert "does not beat single frame" in note, "ahead by two clips, which the next two may turn"
    assert "95 % interval by group -0.0" in note
    four = [f"g{place // 30}" for place in range(120)]
    note = cost_note(rivals_of(labels, right, {"motion": worse}, four, [1])) or ""
    assert "nothing says that it would be again: no intervals" in note
    assert "does not beat motion" in (cost_note(rivals_of(labels, worse, {"motion": right}, four, [1])) or "")


def test_repeats_are_no_new_clips(tmp_path: Path) -> None:
    once = scored(lambda place: place % 6 in (0, 1))
    thrice = [row | {"repeat": number} for number in (1, 2, 3) for row in once]
    one, three = (
        summary_of(read_evaluated(table(tmp_path / f"{len(rows)}.csv", rows), Told(normal_hours=3)))
        for rows in (once, thrice)
    )
    assert one.figures == three.figures, "the same scores three times say as much as once, intervals and all"
    assert one.calibration is not None
    assert three.calibration is not None
    assert three.calibration.ece_by_chance == pytest.approx(one.calibration.ece_by_chance)
    assert one.at_point.alarms == three.at_point.alarms
    assert (one.at_point.false_alarms, three.at_point.false_alarms) == (20, 60)
    assert "repeats are no new clips" in three.sentences[-1]
    six = [row for place, row in enumerate(once) if place % 2 or place < 12]
    few = [row | {"repeat": number} for number in (1, 2, 3) for row in six]
    found = read_evaluated(table(tmp_path / "few.csv", few))
    assert "Too few clips to tell: 6 theft" in verdict(found, summary_of(found), rivals(found)).headline
    assert any("6 event clips are too few" in sentence for sentence in summary_of(found).sentences)


def test_a_comparison_of_repeats_counts_clips_once(tmp_path: Path) -> None:
    a = [row | {"repeat": number} for number in (1, 2) for row in scored(lambda p, n=number: p % 6 == n)]  # type: ignore[misc]
    found = compare(table(tmp_path / "a.csv", a), table(tmp_path / "b.csv", scored(lambda place: False)))
    assert (found.both, found.only_first, found.only_second, found.neither) == (100, 0, 20, 0)
    assert found.clips == 120

"""The page: numbers as in evaluation.json, nothing that runs or is asked for, and what is missing is said."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml

from tillwatch.cli import main
from tillwatch.errors import ConfigError, DataError, RunError
from tillwatch.evaluation import filmstrips, publish
from tillwatch.evaluation.evaluated import Told, read_evaluated
from tillwatch.evaluation.exposure import CHOSEN_GROUPS_NOTE
from tillwatch.evaluation.filmstrips import choose_shown
from tillwatch.evaluation.findings import rivals, summary_of, verdict
from tillwatch.evaluation.report import SLIDER_STEPS, render_report, report_table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def simulated(groups: int = 14, seed: int = 0, *, labels: tuple[str, str] = ("theft", "normal"), **extra: Any) -> Any:
    """Rows of a table: ten clips a group, half events, scored well but not perfectly."""
    random, rows = np.random.default_rng(seed), []
    for place in range(10 * groups):
        event = place % 2 == 0
        p = round(float(1 / (1 + np.exp(-random.normal(1.2 if event else -1.2, 1)))), 4)
        label = labels[0] if event else labels[1]
        scores = {f"p_{labels[0]}": p, f"p_{labels[1]}": round(1 - p, 4)}
        rows.append({"path": f"{label}/clip{place}", "label": label, "group": f"g{place // 10}", **extra, **scores})
    return rows


def page_of(path: Path, **told: Any) -> str:
    return render_report(read_evaluated(path, Told(**told)))


def text_of(page: str) -> str:
    """What a reader sees, in one line."""
    page = re.sub(r"<(style|script|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def explorer_of(page: str) -> Any:
    found = re.search(r'id="explorer-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_a_run_has_a_page_and_a_card_whose_figures_are_those_of_evaluation_json(tiny_run: tuple[Path, Path]) -> None:
    run = tiny_run[1]
    record = json.loads((run / "evaluation.json").read_text())
    page, card = (run / "report.html").read_text(), (run / "model_card.md").read_text()
    figures = record["summary"]["figures"]
    for place, name in enumerate(figures):
        cell = re.search(rf'<td id="figure-{place}">(.*?)</td>', page)
        assert cell is not None
        assert f"{figures[name]['value']:.3f}" in cell[1], name
    matrix = re.findall(r"<b>(\d+)</b> <span>\(", page)
    assert [int(count) for count in matrix] == np.array(record["confusion_matrix"]["rows_true"]).ravel().tolist()
    assert f"{record['summary']['calibration']['ece']:.3f}" in text_of(page)
    assert record["model_sha256"] in page
    front = yaml.safe_load(card.split("---")[1])
    metrics = {one["type"]: one["value"] for one in front["model-index"][0]["results"][0]["metrics"]}
    assert metrics["roc_auc"] == pytest.approx(record["event_auroc"], abs=1e-4)
    assert "license" not in front
    assert record["model_sha256"] in card


def test_sections_stand_in_order_and_parts_that_are_there_are_shown(
    tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    claim = {"can": "This camera, other days.", "cannot": "Other cameras."}
    cues = [{"cue": "brightness", "auroc": 0.81, "low": None, "high": None, "flagged": True}]
    findings = [{"severity": "problem", "text": "Two clips are copies.", "clips": ["theft/<b>a</b>"]}]
    (run / "audit.json").write_text(json.dumps({"claim": claim, "cues": cues, "findings": findings}))
    page = page_of(run)
    order = re.findall(r'<section id="(\w+)"', page)
    assert order == (
        [
            "claim",
            "verdict",
            "figures",
            "baselines",
            "curves",
            "explorer",
            "confusion",
            "groups",
            "clips",
            "learning",
            "audit",
            "repeat",
        ]
    )
    told = text_of(page)
    for part in (
        *claim.values(),
        "brightness 0.810 tells the class",
        "Two clips are copies. theft/<b>a</b>",
        "majority",
    ):
        assert part in told
    assert f"tillwatch train --config {run / 'config.yaml'}" in told
    for name in ("audit.json", "metrics.csv", "baselines.csv", "model.json"):
        (run / name).unlink(missing_ok=True)
    told = text_of(page_of(run))
    assert "No audit of the clips" in told
    assert "No simple method was measured" in told
    assert "How it learnt" not in told


def test_names_are_inert(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
    rows = simulated(labels=(evil, "normal"))
    rows[0]["group"] = "</title><svg onload=alert(3)>"
    page = page_of(write_table(tmp_path / "<i>p.csv", rows))
    assert page.count("<script") == 2, "the page's own two"
    assert "<img" not in page
    assert "<svg onload" not in page
    assert evil in html.unescape(page)
    assert "<title>&lt;i&gt;p.csv" in page


def test_the_page_asks_for_nothing_and_allows_its_own_script_alone(tmp_path: Path) -> None:
    page = page_of(write_table(tmp_path / "p.csv", simulated()))
    assert "default-src 'none'" in page
    assert "script-src 'sha256-" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert page == page_of(tmp_path / "p.csv"), "the same table, the same bytes"


def test_the_explorer_knows_what_each_threshold_does(tmp_path: Path) -> None:
    rows = simulated()
    page = page_of(write_table(tmp_path / "p.csv", rows), threshold=0.3333, normal_hours=5)
    assert "Whether these clips had a part in choosing it is for whoever gave it to say." in text_of(page)
    data = explorer_of(page)
    scores = np.array([row["p_theft"] for row in rows])
    event = np.array([row["label"] == "theft" for row in rows])
    assert len(data["rows"]) == SLIDER_STEPS + 1
    for row in (*data["rows"], data["point"]):
        hits, false = int((event & (scores >= row[0])).sum()), int((~event & (scores >= row[0])).sum())
        assert row[2:4] == [f"{hits / 70:.3f}", f"{hits} of 70 events"]
        assert row[4] == (f"{hits / (hits + false):.3f}" if hits + false else "\u2013")
        assert row[6] == str(false)
        assert row[8] == f"{false / 5:.3g}"
    assert data["point"][1] == "0.3333"
    assert "at most 0.599" in data["rows"][-1][9], "no false alarm in 5 h: 3.0 / 5 at most"


def test_validation_rows_choose_the_point_and_are_in_no_figure(tmp_path: Path) -> None:
    test, chosen = simulated(split="test"), simulated(seed=5, split="validation")
    for row in chosen:
        row["path"] += "v"
        row["group"] += "v"
    found = read_evaluated(write_table(tmp_path / "p.csv", test + chosen))
    alone = read_evaluated(write_table(tmp_path / "q.csv", test))
    assert len(found.names) == 140
    assert "chosen on 140 validation clips" in found.point_source
    assert (alone.threshold, alone.point_source) == (0.5, "default, not chosen on data")
    poisoned = [row | {"p_theft": 0.5, "p_normal": 0.5} for row in test]
    assert read_evaluated(write_table(tmp_path / "r.csv", poisoned + chosen)).threshold == found.threshold
    told = text_of(page_of(tmp_path / "p.csv"))
    assert "of the 140 rows of the split test; 140 validation are left out of every figure" in told
    assert "None of these clips had a part in that" in told


@pytest.mark.parametrize(
    ("sides", "measured", "says", "never"),
    [
        (["validation"], 140, "chosen on these very clips", "None of these clips had a part"),
        (
            ["TRAIN "],
            140,
            "o intervals and no rate of false alarms: the model learnt from 140 of these 140",
            "interval 0",
        ),
        (["Test", "Train"], 70, "70 train are left out of every figure", "learnt from"),
        (["train", "Validation"], 70, "70 train are left out of every figure", "None of these clips had a part"),
        (["", "train"], 70, "the 70 rows without a split; 70 train are left out", "learnt from"),
        (["all"], 140, "On other groups of the same sort", "left out of every figure"),
    ],
)
def test_a_table_says_which_rows_it_is_measured_on(
    tmp_path: Path, sides: list[str], measured: int, says: str, never: str
) -> None:
    rows = [row | {"split": sides[place // 2 % len(sides)]} for place, row in enumerate(simulated())]
    rows = [row | {"group": f"{row['group']} {row['split']}"} for row in rows]
    path = write_table(tmp_path / "p.csv", rows)
    found = read_evaluated(path, Told(normal_hours=5))
    told = text_of(render_report(found))
    assert len(found.names) == measured
    assert says in told
    assert never not in told
    claims = "On other groups of the same sort" in told
    assert claims == (not (found.exposure.learnt_from or found.exposure.chosen_on))
    assert ("false alarms in" in told) == (not found.exposure.learnt_from)
    assert ("Measured, with intervals" in told) == (claims and found.split_told)
    assert ("No row says that it is of a test, and none that it is of training" in told) == (sides == ["all"])
    assert ("provided that the model learnt from none of these clips, which" in told) == (sides == ["all"])


def test_a_split_that_is_none_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "p.csv", simulated(split="valdation"))
    with pytest.raises(DataError, match=r"split says 'valdation'; it must be test, validation or train.*'validation'"):
        read_evaluated(path)


def test_a_point_that_has_seen_the_clips_is_said_to_flatter(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    assert "flatters" not in text_of(page_of(run))
    record = json.loads((run / "evaluation.json").read_text())
    record["operating_point"] = {"threshold": 0.4, "source": "best F1, chosen on 24 out-of-fold clips"}
    (run / "evaluation.json").write_text(json.dumps(record))
    assert "chosen on these very clips" in text_of(page_of(run))


def test_repeats_give_the_mean_of_their_figures(tmp_path: Path) -> None:
    several = [simulated(seed=seed, repeat=seed) for seed in (1, 2, 3)]
    pooled = read_evaluated(write_table(tmp_path / "p.csv", [row for rows in several for row in rows]))
    each = [summary_of(read_evaluated(write_table(tmp_path / f"{k}.csv", rows))) for k, rows in enumerate(several)]
    summary = summary_of(pooled)
    assert pooled.probabilities.shape == (3, 140, 2)
    for name in ("accuracy", "event_auroc", "precision"):
        values = [one.figures[name].value for one in each]
        assert summary.figures[name].value == pytest.approx(np.mean([v for v in values if v is not None]))
    assert summary.at_point.events == 210
    assert summary.figures["accuracy"].interval is not None


def test_repeats_are_no_more_clips_in_the_headline(tmp_path: Path) -> None:
    rows = [{**row, "repeat": repeat} for repeat in (1, 2) for row in simulated(seed=repeat)]
    found = read_evaluated(write_table(tmp_path / "p.csv", rows))
    hits = sum(row["p_theft"] >= 0.5 for row in rows if row["label"] == "theft")
    headline = verdict(found, summary_of(found), rivals(found)).headline
    assert headline.startswith(f"The model found {hits / 2:.3g} of 70 theft clips, each scored 2 times; ")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": "theft"}, "has the label 'normal' in the first repeat and 'theft' in repeat 2"),
        ({"group": "moved"}, "has the group 'g0' in the first repeat and 'moved' in repeat 2"),
        ({"split": "train"}, "has the split 'test' in the first repeat and 'train' in repeat 2"),
    ],
)
def test_repeats_that_contradict_each_other_are_refused(change: dict[str, str], says: str, tmp_path: Path) -> None:
    rows = [{**row, "split": "test", "repeat": repeat} for repeat in (1, 2) for row in simulated(seed=repeat)]
    last = max(place for place, row in enumerate(rows) if row["label"] == "normal" and row["group"] == "g0")
    rows[last] |= change
    with pytest.raises(DataError, match=says) as refused:
        read_evaluated(write_table(tmp_path / "p.csv", rows))
    assert repr(rows[last]["path"]) in str(refused.value)


def test_clips_that_stand_in_some_repeats_alone_are_counted_and_named(tmp_path: Path) -> None:
    rows = [{**row, "repeat": repeat} for repeat in (1, 2) for row in simulated(seed=repeat)]
    whole = write_table(tmp_path / "whole.csv", rows)
    assert "some repeats alone" not in text_of(page_of(whole))
    lacking = write_table(tmp_path / "lacking.csv", [*rows[1:-1]])
    assert len(read_evaluated(lacking).names) == len(rows) // 2 - 2
    told = text_of(page_of(lacking))
    left_out = f"2 ({rows[-1]['path']}, {rows[0]['path']})"
    assert f"Clips that stand in some repeats alone are left out of every figure: {left_out}." in told


def test_a_table_whose_threshold_was_chosen_on_the_measured_groups_is_doubted(tmp_path: Path) -> None:
    rows = simulated()
    sides = ["validation" if place % 4 < 2 else "test" for place in range(len(rows))]
    shared = [row | {"split": side} for row, side in zip(rows, sides, strict=True)]
    found = read_evaluated(write_table(tmp_path / "p.csv", shared))
    told = text_of(render_report(found))
    assert CHOSEN_GROUPS_NOTE in told
    assert "None of these clips had a part in that" not in told
    assert verdict(found, summary_of(found), rivals(found)).tone == "unsure"
    apart = [row | {"group": f"{row['group']} {row['split']}"} for row in shared]
    found = read_evaluated(write_table(tmp_path / "p.csv", apart))
    told = text_of(render_report(found))
    assert CHOSEN_GROUPS_NOTE not in told
    assert "None of these clips had a part in that" in told
    assert verdict(found, summary_of(found), rivals(found)).tone == "good"


def test_a_table_that_divides_groups_between_training_and_test_flatters(tmp_path: Path) -> None:
    rows = simulated()
    sides = ["train" if place % 3 else "test" for place in range(len(rows))]
    divided = [row | {"split": side} for row, side in zip(rows, sides, strict=True)]
    found = read_evaluated(write_table(tmp_path / "p.csv", divided))
    told = text_of(render_report(found))
    assert verdict(found, summary_of(found), rivals(found)).tone == "bad"
    assert "These figures flatter: clips of one source were learnt from and tested." in told
    assert "held out of training" not in told
    apart = [row | {"group": f"{row['group']} {row['split']}"} for row in divided]
    assert "These figures flatter" not in text_of(render_report(read_evaluated(write_table(tmp_path / "p.csv", apart))))
    for clips_a_fold, flatters in ((1, True), (10, False)):
        folds = [row | {"fold": place // clips_a_fold % 5} for place, row in enumerate(rows)]
        told = text_of(page_of(write_table(tmp_path / "p.csv", folds)))
        assert ("These figures flatter" in told) == flatters


def test_a_table_without_groups_says_so_first_and_is_not_green(tmp_path: Path) -> None:
    ungrouped = "No row has a group: each clip is a group of its own, and intervals may be too narrow."
    rows = [{name: value for name, value in row.items() if name != "group"} for row in simulated()]
    for table in (rows, [row | {"group": ""} for row in rows]):
        found = read_evaluated(write_table(tmp_path / "p.csv", table))
        assert verdict(found, summary_of(found), rivals(found)).tone == "unsure"
        told = text_of(render_report(found))
        assert told.index(ungrouped) < told.index("Group by group")
        assert "(95 % interval), provided that each clip is of a source of its own and the model learnt from " in told
        assert "nobody named them" in told
    for label in ("theft", "normal"):
        of_one = [row | {"group": f"g{place // 4}" if row["label"] == label else ""} for place, row in enumerate(rows)]
        assert not read_evaluated(write_table(tmp_path / "p.csv", of_one)).groups_told, "half of each class at least"
        own = [row | {"group": row["path"]} for row in rows]
        assert not read_evaluated(write_table(tmp_path / "p.csv", own)).groups_told, "as a run without groups has it"
    one = read_evaluated(
        write_table(tmp_path / "p.csv", [{**row, "group": ""} for row in rows[:-1]] + [{**rows[-1], "group": "g"}])
    )
    assert ungrouped not in one.notes
    assert any("without a group: each is a group of its own." in note for note in one.notes)


def test_training_rows_without_a_group_leave_the_leak_in_doubt(tmp_path: Path) -> None:
    rows = simulated()
    train = [{**row, "path": f"old{row['path']}", "group": "", "split": "train"} for row in simulated(seed=1)[:30]]
    found = read_evaluated(write_table(tmp_path / "p.csv", [row | {"split": "test"} for row in rows] + train))
    assert found.exposure.doubt == (
        "Whether groups of 30 rows of training or validation without a group are measured here cannot be told."
    )
    assert found.exposure.doubt in found.notes
    said = verdict(found, summary_of(found), rivals(found))
    assert said.tone == "unsure"
    assert said.rest[0] == f"How it does on other groups cannot be said. {found.exposure.doubt}"
    chosen = [row | {"split": "validation"} for row in train]
    assert read_evaluated(
        write_table(tmp_path / "p.csv", [row | {"split": "test"} for row in rows] + chosen)
    ).exposure.doubt


def test_another_event_than_the_runs_takes_nothing_that_was_chosen_for_it(
    tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    record = json.loads((run / "evaluation.json").read_text())
    record["operating_point"] |= {"threshold": 0.3, "source": "recall of at least 0.8, chosen on 6 validation clips"}
    record["summary"]["at_point"]["alarms"] = {"hours": 40.0}
    (run / "evaluation.json").write_text(json.dumps(record))
    own, other = read_evaluated(run), read_evaluated(run, Told(event=("normal",)))
    assert (own.event, own.threshold, own.normal_hours) == (("theft",), 0.3, 40.0)
    assert (other.threshold, other.point_source) == (0.5, "default, not chosen on data")
    assert other.normal_hours != 40.0
    assert not other.audit["cues"]
    (run / "audit.json").write_text(json.dumps({"findings": 3, "claim": None}))
    assert read_evaluated(run, Told(event=("normal",))).audit["findings"] == []
    assert "nothing else tells this event from the rest" in other.unsaid
    assert other.notes[-1].startswith("The event here is normal, the run's is theft: its operating point")


def test_the_verdict_says_the_worst_that_is_true(tmp_path: Path) -> None:
    def said(rows: list[dict[str, Any]], **told: Any) -> tuple[str, str]:
        found = read_evaluated(write_table(tmp_path / "p.csv", rows), Told(**told))
        one = verdict(found, summary_of(found), rivals(found))
        return one.tone, " ".join((one.headline, *one.rest))

    rows = simulated(split="test")
    hits = sum(row["p_theft"] >= 0.5 for row in rows if row["label"] == "theft")
    tone, text = said(rows)
    assert tone == "good"
    assert "(95 % interval, by group). No simple" in text
    tone, given = said(rows, threshold=0.5)
    assert (tone, given.count("provided that the threshold was not chosen on them, which")) == ("unsure", 1)
    assert f"found {hits} of 70 theft clips" in text
    assert "no simple method" in text.lower()
    assert said(simulated(4))[0] == "unsure"
    assert said(rows, threshold=1.0)[0] == "unsure"
    assert "fall into too few groups for an interval" in said(simulated(4))[1]
    random = np.random.default_rng(0)
    blind = [row | {"p_theft": (p := round(float(random.random()), 3)), "p_normal": 1 - p} for row in rows]
    assert said(blind)[0] == "bad"
    assert "no better than guessing" in said(blind)[1]
    tone, text = said(rows[:2])
    assert (tone, "Too few clips to tell: 1" in text) == ("unsure", True)


def test_what_the_audit_says_tells_the_classes_apart_is_in_the_verdict(
    tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    rows = [row | {"split": "test"} for row in simulated(labels=("theft", "normal"))]
    write_table(run / "predictions.csv", rows)
    frame = [{"baseline": "single frame", **row} for row in simulated(seed=3, labels=("theft", "normal"))]
    write_table(run / "baselines.csv", frame)

    def said(severity: str) -> tuple[str, str]:
        audit = json.loads((run / "audit.json").read_text())
        text = "frame rate alone tells the classes apart, AUROC 0.93."
        audit["findings"] = [{"kind": "confound", "severity": severity, "text": text}]
        (run / "audit.json").write_text(json.dumps(audit))
        found = read_evaluated(run)
        one = verdict(found, summary_of(found), rivals(found))
        return one.tone, " ".join((one.headline, *one.rest))

    confounded = (
        "These figures may be of how the clips were made, not of theft. Frame rate alone tells the classes apart"
    )
    tone, text = said("problem")
    assert (tone, text.startswith(confounded)) == ("unsure", True)
    assert "The scene alone gives the class away: one frame, without any motion, reaches an event AUROC of 0.9" in text
    assert confounded not in said("warning")[1]
    (run / "baselines.csv").unlink()
    assert said("warning")[0] == "good"
    audit = json.loads((run / "audit.json").read_text())
    (run / "audit.json").write_text(json.dumps(audit | {"groups": audit["groups"] | {"source": "none"}}))
    assert said("warning")[0] == "unsure", "nothing says what belongs together"
    record = json.loads((run / "evaluation.json").read_text())
    record["exposure"] |= {"own_clips": False}
    record["split"] = "all"
    (run / "evaluation.json").write_text(json.dumps(record))
    assert confounded not in said("problem")[1], "the audit is of other clips"


def test_a_network_that_a_baseline_equals_is_told_so(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    rows = [row | {"split": "test"} for row in simulated(labels=("theft", "normal"))]
    write_table(run / "predictions.csv", rows)
    same = [{"baseline": name, **row} for name in ("single frame", "majority") for row in rows]
    for row in same:
        if row["baseline"] == "majority":
            row |= {"p_theft": 0.5, "p_normal": 0.5}
    write_table(run / "baselines.csv", same)
    (run / "audit.json").unlink()  # which tells of their brightness
    found = read_evaluated(run)
    compared = {rival.name: rival for rival in rivals(found)}
    assert compared["single frame"].ahead["event_auroc"].value == 0
    assert compared["majority"].ahead["event_auroc"].value == pytest.approx(
        (summary_of(found).figures["event_auroc"].value or 0) - 0.5
    )
    one = verdict(found, summary_of(found), list(compared.values()))
    assert one.tone == "unsure"
    assert "single frame" in one.headline
    write_table(run / "baselines.csv", [row for row in same if row["baseline"] == "majority"])
    found = read_evaluated(run)
    assert verdict(found, summary_of(found), rivals(found)).tone == "good"
    write_table(run / "baselines.csv", same[:30])  # of other clips: no comparison
    assert rivals(read_evaluated(run)) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: [{k: v for k, v in row.items() if k != "p_normal"} for row in rows], "has 1 column p_<class>"),
        (lambda rows: [{k: v for k, v in row.items() if k != "label"} for row in rows], "lacks the column 'label'"),
        (lambda rows: [rows[0] | {"label": ""}, *rows[1:]], "1 of 140 clips have no label, the first is"),
        (lambda rows: [rows[0] | {"p_theft": "nan"}, *rows[1:]], "1 of 140 clips have scores that are not finite"),
        (lambda rows: [rows[0] | {"p_theft": 0.9, "p_normal": 0.9}, *rows[1:]], "do not sum to 1"),
        (lambda rows: rows[::2], "all 70 clips are of the class 'theft'"),
        (
            lambda rows: [row | {"Split": "train"} for row in rows],
            "has a column 'Split'; write 'split', or it would be",
        ),
        (lambda rows: [row | {" path": "x"} for row in rows], "its header has the column 'path' twice"),
    ],
)
def test_tables_that_cannot_be_reported_are_one_clear_line(
    change: Callable[[Any], Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_table(tmp_path / "p.csv", change(simulated()))
    with pytest.raises(SystemExit) as left:
        main(["report", str(path)])
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "p.report.html").exists()


def test_what_can_be_reported_but_says_little_is_reported_and_says_so(tmp_path: Path) -> None:
    one_group = [row | {"group": "all"} for row in simulated()]
    told = text_of(page_of(write_table(tmp_path / "p.csv", one_group)))
    assert "All clips are of one group" in told
    assert "fall into 1 group, and" in told
    assert "No bands" in told
    told = text_of(page_of(write_table(tmp_path / "p.csv", simulated()[:2])))
    assert "Too few clips to tell" in told
    assert "too few to say anything" in told


def test_a_test_side_of_one_class_is_reported_without_curves(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    write_table(run / "predictions.csv", [row | {"split": "test"} for row in simulated()[1::2]])
    told = text_of(page_of(run))
    assert "none of them is theft" in told
    assert "No curve can be drawn" in told
    assert "Reliability cannot be shown" in told


def test_cameras_stand_side_by_side_where_they_are_known(tmp_path: Path) -> None:
    rows = simulated()
    told = text_of(page_of(write_table(tmp_path / "p.csv", rows)))
    assert "By camera" not in told
    for place, row in enumerate(rows):
        row["path"] = f"{row['label']}/till{place % 2 + 1}_202603{place // 60 + 1:02}_08{place % 60:02}00.mp4"
    told = text_of(page_of(write_table(tmp_path / "q.csv", rows)))
    assert "By camera" in told
    assert {"till1", "till2"} <= set(told.split())
    for row in rows:
        row["camera"] = f"back door {row['group']}"
    told = text_of(page_of(write_table(tmp_path / "r.csv", rows)))
    assert "back door g3" in told
    assert "till1 " not in told[told.index("By camera") : told.index("By group")]
    one = text_of(page_of(write_table(tmp_path / "s.csv", [row | {"camera": "door"} for row in rows])))
    assert "By camera" not in one, "one camera is no comparison"


def test_clips_without_a_group_are_counted_and_told(tmp_path: Path) -> None:
    rows = simulated()
    for place in (3, 8):
        rows[place]["group"] = ""
    told = text_of(page_of(write_table(tmp_path / "p.csv", rows)))
    assert "2 (normal/clip3, theft/clip8) without a group: each is a group of its own" in told
    for row in rows:
        del row["group"]
    assert "Each clip is a group of its own" in text_of(page_of(write_table(tmp_path / "q.csv", rows)))


def test_a_strip_without_an_overlay_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [filmstrips.Shown(name=n, label="a", predicted="a", what="found", score=1.0, repeat=0) for n in "xy"]

    def strips(*whys: str | None) -> Any:
        several = iter(whys)

        def strip(one: Any, *_: Any) -> Any:
            why = next(several)
            return filmstrips.Strip(shown=one, plain="p", why_not_looked=why), why

        monkeypatch.setattr(filmstrips, "_strip", strip)
        made, everywhere = filmstrips.filmstrips(shown, lambda one: cast(Any, None), lambda one: None)
        return [one.why_not_looked for one in made], everywhere

    assert strips("nothing spoke", None) == (["nothing spoke", None], None), "under the one that it is true of"
    assert strips("no Captum", "no Captum") == ([None, None], "no Captum"), "once for all"


def test_findings_name_a_clip_once(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    finding = {"severity": "note", "text": "theft/one is short.", "clips": ["theft/one", "theft/two"]}
    (run / "audit.json").write_text(json.dumps({"findings": [finding]}))
    told = text_of(page_of(run))
    assert told.count("theft/one") == 1
    assert told.count("theft/two") == 1


def test_flags_and_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_table(tmp_path / "p.csv", simulated())
    arguments = ["--event", "normal", "--threshold", "0.25", "--normal-hours", "2", "--out", str(tmp_path / "x.html")]
    with pytest.raises(SystemExit) as left:
        main(["report", str(path), *arguments])
    assert left.value.code == 0, capsys.readouterr().err
    page = (tmp_path / "x.html").read_text()
    assert explorer_of(page)["point"][1] == "0.2500"
    assert "The event: normal." in page
    again = f"tillwatch report {path} --event normal --threshold 0.25 --normal-hours 2.0"
    assert f"<code>{again}</code>" in page, "all that was told"
    main_again = [*again.split()[1:], "--out", str(tmp_path / "y.html")]
    with pytest.raises(SystemExit):
        main(main_again)
    assert (tmp_path / "y.html").read_bytes() == (tmp_path / "x.html").read_bytes()
    assert report_table(path) == tmp_path / "p.report.html"
    assert f"<code>tillwatch report {path}</code>" in (tmp_path / "p.report.html").read_text(), "and nothing else"
    with pytest.raises(ConfigError, match="--threshold is 2"):
        Told(threshold=2)
    with pytest.raises(ConfigError, match="--normal-hours is -1"):
        Told(normal_hours=-1)
    with pytest.raises(ConfigError, match="Say so with --event"):
        read_evaluated(write_table(tmp_path / "q.csv", simulated(labels=("a", "b"))))
    with pytest.raises(RunError, match="does not exist"):
        read_evaluated(tmp_path / "absent")
    with pytest.raises(RunError, match="holds no evaluation"):
        read_evaluated(tmp_path)
    with pytest.raises(RunError, match="cannot be written"):
        report_table(path, tmp_path / "absent" / "x.html")
    with pytest.raises(DataError, match="stands in 2 rows"):
        read_evaluated(write_table(tmp_path / "q.csv", [*simulated(), simulated()[0]]))


def test_mistakes_come_worst_first_and_a_clip_once(tmp_path: Path) -> None:
    rows = simulated()
    rows[0] |= {"p_theft": 0.001, "p_normal": 0.999}
    rows[3] |= {"p_theft": 0.998, "p_normal": 0.002}
    rows[2] |= {"p_theft": 0.9999, "p_normal": 0.0001}
    both = [row | {"repeat": repeat} for repeat in (1, 2) for row in rows]
    shown = choose_shown(read_evaluated(write_table(tmp_path / "p.csv", both)))
    assert [(one.what, one.name) for one in shown[:2]] == [
        ("missed", "theft/clip0"),
        ("false alarm", "normal/clip3"),
    ]
    assert next(one.name for one in shown if one.what == "found") == "theft/clip2"
    assert len({one.name for one in shown}) == len(shown) == filmstrips.MISTAKES + filmstrips.HITS


def test_pictures_show_clips_that_are_there_and_where_the_network_looked(
    tiny_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("captum")
    from tillwatch.models.backbones import BACKBONES

    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    plain = publish.publish(run).read_text()
    assert plain.count("<img") == plain.count('class="strip"') > 0
    assert filmstrips.NOT_CONVOLUTIONAL in html.unescape(plain), "nothing says which map of tinynet is its last"
    monkeypatch.setitem(BACKBONES, "tinynet", _with_map(BACKBONES["tinynet"]))
    page = publish.publish(run).read_text()
    assert page.count("<img") == 2 * page.count('class="strip"')
    assert page == publish.publish(run).read_text(), "pictures too are the same every time"
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert filmstrips.NO_CAPTUM in html.unescape(publish.publish(run).read_text())
    settings = (run / "config.yaml").read_text().replace(str(tiny_run[0]), str(tmp_path / "gone"))
    (run / "config.yaml").write_text(settings)
    notes: list[str] = []
    assert "<img" not in publish.publish(run, note=notes.append).read_text()
    assert "no pictures" in notes[0]


def test_grad_cam_lights_up_what_decides(tiny_run: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("captum")
    import torch

    from tillwatch.data.catalog import find_clips
    from tillwatch.models.backbones import BACKBONES
    from tillwatch.models.saved import load_model

    monkeypatch.setitem(BACKBONES, "tinynet", _with_map(BACKBONES["tinynet"]))
    classifier = load_model(tiny_run[1])

    class Corner(torch.nn.Module):
        """A map that is lit in the upper left alone, whatever it sees."""

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            lit = torch.zeros_like(clips[:, :1])
            lit[..., :8, :8] = 1
            return lit + 0 * clips[:, :1]

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Corner()

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            total = self.stem(clips).sum((1, 2, 3, 4))
            return torch.stack([total, -total], 1)

    classifier.network = Net()
    clip = find_clips(tiny_run[0], num_frames=4).clips[0]
    heat, note = filmstrips._heat(classifier, clip, classifier.spec.classes[0])
    assert note is None
    assert heat is not None
    assert heat.shape == (4, 24, 24)
    assert heat[:, :7, :7].min() == 1
    assert heat[:, 10:, 10:].max() == 0
    nothing = filmstrips._heat(classifier, clip, classifier.spec.classes[1])
    assert nothing == (None, filmstrips.NOTHING_SPOKE.format(predicted=classifier.spec.classes[1]))
    frames = np.full((4, 56, 112, 3), 100, np.uint8)
    laid = filmstrips._overlay(frames, heat, classifier.spec)
    assert (laid[:, -4:, -4:] == 100).all(), "nothing is laid where nothing decides"
    assert (laid[:, 12, 20, 0] > laid[:, 12, 20, 2] + 50).all(), "red where it does"


def test_a_failure_to_draw_loses_nothing(
    tiny_run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    notes: list[str] = []

    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("no room for ink")

    monkeypatch.setattr(publish, "filmstrips", fail)
    publish.publish_or_say_why(run, notes.append)
    assert "no pictures (no room for ink)" in notes[0]
    assert "<img" not in (run / "report.html").read_text()
    monkeypatch.setattr(publish, "write_report", fail)
    publish.publish_or_say_why(run, notes.append)
    assert "no report.html was written (no room for ink)" in notes[-1]


def test_a_card_escapes_what_markdown_would_read(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    record = json.loads((run / "evaluation.json").read_text())
    record["notes"] = ["<script>alert(1)</script> [x](javascript:y)"]
    (run / "evaluation.json").write_text(json.dumps(record))
    publish.publish(run)
    card = (run / "model_card.md").read_text()
    assert "<script" not in card
    assert "\\[x\\]" in card


def test_an_evaluation_of_other_clips_gets_its_own_page(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    before = (run / "report.html").read_bytes()
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(run), "--split", "train", "--workers", "0"])
    assert left.value.code == 0
    page = (run / "evaluations" / "train" / "report.html").read_text()
    assert "they say nothing of new ones" in page
    assert not (run / "evaluations" / "train" / "model_card.md").exists()
    assert (run / "report.html").read_bytes() == before


def test_what_the_clips_are_is_decided_by_data_and_not_by_the_words_of_a_note(
    tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    record = json.loads((run / "evaluation.json").read_text())
    record["notes"] = ["3 clips of leakcam were not trained on and are left out."]
    (run / "evaluation.json").write_text(json.dumps(record))
    told = text_of(page_of(run))
    assert "These figures flatter" not in told
    assert "learnt from: they say nothing" not in told
    assert "groups divided" not in told
    record |= {"notes": [], "exposure": record["exposure"] | {"groups_divided": True}}
    (run / "evaluation.json").write_text(json.dumps(record))
    assert "These figures flatter" in text_of(page_of(run))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium in the path")
def test_in_a_browser(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    table = write_table(tmp_path / "p.csv", simulated())
    report_table(table, told=Told(threshold=0.4321, normal_hours=3))
    pages = [tmp_path / "p.report.html", tiny_run[1] / "report.html"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for path in pages:
            for width in (390, 1440):
                tab = _tab(browser, width)
                faults: list[str] = []
                asked: list[str] = []
                tab.on("console", lambda message, faults=faults: faults.append(message.text))
                tab.on("pageerror", lambda error, faults=faults: faults.append(str(error)))
                tab.on("request", lambda request, asked=asked: asked.append(request.url))
                tab.goto(path.as_uri())
                _move_the_threshold(tab, explorer_of(path.read_text()))
                assert tab.evaluate("document.documentElement.scrollWidth") <= width
                assert faults == []
                assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
                tab.close()
            assert path.stat().st_size < 5_000_000
        browser.close()


def _tab(browser: Any, width: int) -> Any:
    return browser.new_page(viewport={"width": width, "height": 900}, reduced_motion="reduce")


def _move_the_threshold(tab: Any, data: Any) -> None:
    ids = ["threshold-value", *(f"e-{name}" for name in ("recall", "found", "precision", "alarms", "false"))]
    ids += [f"e-{name}" for name in ("others", "rate", "bounds")]

    def shown() -> list[str]:
        return [tab.text_content(f"#{name}") for name in ids]

    assert shown() == data["point"][1:]
    slider = tab.locator("#threshold")
    slider.focus()
    tab.keyboard.press("End")
    assert shown() == data["rows"][-1][1:]
    for _ in range(3):
        tab.keyboard.press("ArrowLeft")
    assert shown() == data["rows"][-4][1:]
    tab.keyboard.press("Home")
    for _ in range(29):  # 0.145 * 200 is a hair below 29
        tab.keyboard.press("ArrowRight")
    assert shown() == data["rows"][29][1:]
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2, steps=3)
    place = round(float(slider.input_value()) * SLIDER_STEPS)
    assert shown() == data["rows"][place][1:], "while it is dragged, not only when it is let go"
    tab.mouse.up()
    assert 40 < place < 60
    assert shown() == data["rows"][place][1:]
    tab.get_by_role("button", name="Back to the operating point").click()
    assert shown() == data["point"][1:]


def _with_map(known: Any) -> Any:
    from dataclasses import replace

    return replace(known, last_map="stem")

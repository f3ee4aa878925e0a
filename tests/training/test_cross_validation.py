"""Cross-validation: folds, resuming, refusing, and what is collected."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tillwatch.cli import main
from tillwatch.config import TrainConfig
from tillwatch.data.catalog import find_clips
from tillwatch.data.splits import fold_splits
from tillwatch.errors import ConfigError, DataError, Interrupted, RunError
from tillwatch.evaluation.evaluated import Told, read_evaluated
from tillwatch.evaluation.findings import summary_of
from tillwatch.files import write_csv, write_text
from tillwatch.training import cross_validation, loop
from tillwatch.training.cross_validation import Folds, cross_validate
from tillwatch.training.guard import StepGuard

Config = Callable[..., TrainConfig]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def crossval(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("crossval") / "cv"
    config = tiny_config(group_pattern=r"day\d", min_recall=0.75, baselines=True)
    cross_validate(tiny_run[0], out, config, Folds(folds=4, final=True), quiet())
    return out


def test_folds_test_every_clip_once_and_divide_no_group(tiny_run: tuple[Path, Path]) -> None:
    clips = find_clips(tiny_run[0], num_frames=4, group_pattern=r"day\d").clips
    for seed in range(5):
        splits = fold_splits(clips, 4, seed)
        assert splits == fold_splits(clips[::-1], 4, seed)
        assert Counter(name for sides in splits for name, side in sides.items() if side == "test") == Counter(
            clip.name for clip in clips
        )
        for sides in splits:
            for group in {clip.group for clip in clips}:
                assert len({sides[clip.name] for clip in clips if clip.group == group}) == 1
            assert set(sides.values()) == {"train", "validation", "test"}


def test_too_many_folds_say_how_many_are_possible(tiny_run: tuple[Path, Path]) -> None:
    clips = find_clips(tiny_run[0], num_frames=4, group_pattern=r"day\d").clips
    with pytest.raises(DataError, match=r"fall into 4 groups.*2 to 4 folds are possible"):
        fold_splits(clips, 5, 0)


def test_every_clip_is_scored_by_the_fold_that_did_not_see_it(crossval: Path, tiny_run: tuple[Path, Path]) -> None:
    rows = rows_of(crossval / "predictions.csv")
    assert {row["path"] for row in rows} == {f"{p.parent.name}/{p.name}" for p in tiny_run[0].glob("*/*")}
    assert len(rows) == 24
    assert list(rows[0]) == ["path", "label", "group", "split", "predicted", "p_normal", "p_theft", "fold", "threshold"]
    for row in rows:
        seen = {clip["path"]: clip for clip in rows_of(crossval / "folds" / row["fold"] / "clips.csv")}
        assert seen[row["path"]]["split"] == "test"
        assert all(clip["group"] != row["group"] for clip in seen.values() if clip["split"] != "test")
    record = json.loads((crossval / "evaluation.json").read_text())
    hits = sum(row["predicted"] == row["label"] for row in rows)
    assert record["accuracy"] == pytest.approx(hits / 24)
    assert [fold["fold"] for fold in record["folds"]] == [1, 2, 3, 4]
    page = (crossval / "report.html").read_text()
    assert f"{record['balanced_accuracy']:.3f}" in page
    assert all(f"{fold['accuracy']:.3f}" in page for fold in record["folds"])
    assert page.count("<img") == page.count('class="strip"') > 0, "of clips that the folds' models scored"
    assert (crossval / "final" / "model.pth").is_file()
    assert {row["split"] for row in rows_of(crossval / "final" / "clips.csv")} == {"train"}


def test_a_fold_holds_its_own_epochs_alone_and_the_final_model_trains_as_long_as_they(crossval: Path) -> None:
    for number in ("1", "2", "3", "4"):
        assert [row["epoch"] for row in rows_of(crossval / "folds" / number / "metrics.csv")] == ["1"]
    assert yaml.safe_load((crossval / "final" / "config.yaml").read_text())["epochs"] == 1


def test_figures_at_a_point_are_those_of_each_folds_own(crossval: Path) -> None:
    rows, record = rows_of(crossval / "predictions.csv"), json.loads((crossval / "evaluation.json").read_text())
    own = {}
    for number in "1234":
        own[number] = json.loads((crossval / "folds" / number / "model.json").read_text())["operating_point"][
            "threshold"
        ]
    assert len(set(own.values())) > 1, "thresholds that differ, or this shows nothing"
    found = sum(float(row["p_theft"]) >= own[row["fold"]] for row in rows if row["label"] == "theft")
    false = sum(float(row["p_theft"]) >= own[row["fold"]] for row in rows if row["label"] == "normal")
    point = record["summary"]["at_point"]
    assert (point["found"], point["false_alarms"]) == (found, false)
    assert record["summary"]["figures"]["recall"]["value"] == pytest.approx(found / 12)
    assert [fold["threshold"] for fold in record["folds"]] == list(own.values())
    assert any("each fold's own threshold" in note for note in record["notes"])
    read = read_evaluated(crossval)
    assert summary_of(read).to_json()["figures"] == record["summary"]["figures"], "the report says the same"
    assert read.threshold == record["operating_point"]["threshold"]
    page = " ".join((crossval / "report.html").read_text().split())
    assert "each fold&#39;s own operating point" in page
    assert "chosen on these very clips" in page
    ahead = record["baselines"]["single frame"]["network_ahead"]["balanced_accuracy"]
    means = record["balanced_accuracy"] - record["baselines"]["single frame"]["balanced_accuracy"]
    assert ahead["value"] == pytest.approx(means)
    assert ahead["interval"] is None
    assert "4 groups" in ahead["reason"]


def test_the_final_model_gets_what_out_of_fold_scores_say(crossval: Path) -> None:
    record = json.loads((crossval / "evaluation.json").read_text())["final"]
    model = json.loads((crossval / "final" / "model.json").read_text())
    assert model["operating_point"] == record["operating_point"]
    assert (
        "recall of at least 0.75, chosen on 24 out-of-fold clips, 12 of them events"
        in record["operating_point"]["source"]
    )
    assert model["temperature"] == record["temperature"]
    assert "24 out-of-fold clips" in record["temperature_source"]


def test_the_final_model_publishes_out_of_fold_figures_and_none_of_the_clips_it_learnt_from(
    crossval: Path, tmp_path: Path
) -> None:
    record = json.loads((crossval / "evaluation.json").read_text())
    final = tmp_path / "final"
    shutil.copytree(crossval / "final", final)
    card = (final / "model_card.md").read_text()
    result = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"][0]
    assert result["dataset"]["split"] == "out of fold"
    assert {one["type"]: one["value"] for one in result["metrics"]} == {
        {"event_auroc": "roc_auc", "event_average_precision": "average_precision"}.get(name, name): pytest.approx(
            figure["value"], abs=1e-4
        )
        for name, figure in record["summary"]["figures"].items()
    }
    assert all("out of fold" in one["name"] for one in result["metrics"])
    assert "All figures are out-of-fold figures of the cross-validation in cv" in " ".join(card.split())
    model = json.loads((final / "model.json").read_text())["operating_point"]
    assert f"event probability {model['threshold']:.4f}" in card
    own = json.loads((final / "evaluation.json").read_text())
    assert (own["split"], own["summary"]) == ("out of fold", record["summary"])
    assert rows_of(final / "predictions.csv") == rows_of(crossval / "predictions.csv")
    page = " ".join((final / "report.html").read_text().split())
    assert "This model learnt from all clips and was measured on none" in page
    assert summary_of(read_evaluated(final)).to_json()["figures"] == record["summary"]["figures"]
    assert "--folds 4 --repeats 1 --grouping group --final" in page
    of_folds = "are those of each fold's own threshold"
    assert any(of_folds in note for note in read_evaluated(final).notes)
    assert not any(of_folds in note for note in read_evaluated(final, Told(threshold=0.9)).notes)
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(final), "--workers", "0"])
    assert left.value.code == 0
    assert json.loads((final / "evaluation.json").read_text()) == own, "never replaced by training figures"


def test_a_broken_off_cross_validation_goes_on_and_ends_the_same(
    crossval: Path, tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    config, out = tiny_config(group_pattern=r"day\d", min_recall=0.75), tmp_path / "cv"
    trained: list[str] = []
    original = loop.train

    def train(data: Path, run: Path, *rest: Any, **options: Any) -> Any:
        trained.append(run.name)
        if trained == ["1", "2", "3"]:
            run.mkdir()
            (run / "half-written").touch()
            raise KeyboardInterrupt
        return original(data, run, *rest, **options)

    monkeypatch.setattr(cross_validation, "train", train)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(tiny_run[0], out, config, Folds(folds=4), quiet())
    with pytest.raises(RunError, match=r"--lr 0\.01 is now 0\.02"):
        cross_validate(
            tiny_run[0], out, tiny_config(group_pattern=r"day\d", min_recall=0.75, lr=0.02), Folds(folds=4), quiet()
        )
    cross_validate(tiny_run[0], out, config, Folds(folds=4), quiet())
    assert trained == ["1", "2", "3", "3", "4"]
    assert (out / "predictions.csv").read_bytes() == (crossval / "predictions.csv").read_bytes()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_cross_validation_that_is_being_done_is_nobody_elses(
    overwrite: bool, crossval: Path, tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any
) -> None:
    config = tiny_config(group_pattern=r"day\d", min_recall=0.75)
    before = {path: path.read_bytes() for path in crossval.rglob("*") if path.is_file()}
    wanted = replace(config, overwrite=overwrite)
    with (
        cross_validation._alone(tiny_run[0], crossval, config),
        pytest.raises(RunError, match="is being cross-validated by another process; wait for it"),
    ):
        cross_validate(tiny_run[0], crossval, wanted, Folds(folds=4, final=True), quiet())
    assert {path: path.read_bytes() for path in crossval.rglob("*") if path.is_file()} == before


def test_a_signal_inside_a_fold_is_gone_on_from_there(
    crossval: Path, tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    config, out = tiny_config(group_pattern=r"day\d", min_recall=0.75), tmp_path / "cv"
    original, calls = StepGuard.check, [0]

    def check(self: StepGuard, *args: Any) -> list[float]:
        calls[0] += 1
        if calls[0] == 5:  # three steps a fold: the second of the second
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(StepGuard, "check", check)
    with pytest.raises(
        Interrupted, match=r"interrupted in .*folds/2, which is saved; the same tillwatch crossval"
    ) as end:
        cross_validate(tiny_run[0], out, config, Folds(folds=4), quiet())
    assert end.value.signum == signal.SIGTERM
    log = quiet()
    cross_validate(tiny_run[0], out, config, Folds(folds=4), log)
    assert "fold 1 of 4: done before" in log.console.export_text(clear=False)
    assert "going on from epoch 1, step 2." in log.console.export_text()
    assert calls[0] == 4 * 3
    assert (out / "predictions.csv").read_bytes() == (crossval / "predictions.csv").read_bytes()


def test_a_signal_between_two_folds_is_gone_on_from_there(
    tiny_run: tuple[Path, Path], tiny_config: Any, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(path: Path, text: str) -> None:
        write_text(path, text)
        if path.name == "1.done":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(cross_validation, "write_text", signalled)
    config = tiny_config(epochs=1, group_pattern=r"day\d")
    with pytest.raises(Interrupted, match=r"^interrupted; the same tillwatch crossval goes on$") as end:
        cross_validate(tiny_run[0], tmp_path / "cv", config, Folds(folds=2), quiet())
    assert end.value.signum == signal.SIGTERM
    monkeypatch.undo()
    log = quiet()
    cross_validate(tiny_run[0], tmp_path / "cv", config, Folds(folds=2), log)
    assert "fold 1 of 2: done before" in log.console.export_text()


def test_hours_of_footage_and_a_budget_reach_every_fold_and_the_final_model_goes_without(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, make_video: Any
) -> None:
    make_video(tmp_path / "footage" / "day.mp4", num_frames=72, fps=10)
    config = tiny_config(
        group_pattern=r"day\d", baselines=False, max_false_alarms_per_hour=1e6, normal_footage=tmp_path / "footage"
    )
    cross_validate(tiny_run[0], tmp_path / "cv", config, Folds(folds=2, final=True), quiet())
    for number in ("1", "2"):
        settings = yaml.safe_load((tmp_path / "cv" / "folds" / number / "config.yaml").read_text())
        assert settings["normal_hours"] == pytest.approx(7.2 / 3600)
        assert "normal_footage" not in settings
        model = json.loads((tmp_path / "cv" / "folds" / number / "model.json").read_text())
        assert "1e+06 false alarms an hour" in model["operating_point"]["source"]
    assert (tmp_path / "cv" / "final" / "model.pth").is_file()


def test_corrected_labels_are_not_taken_for_the_old_ones_and_settings_of_a_newer_version_for_no_change(
    labelled_apart: tuple[Path, Callable[..., None]], tiny_config: Config, quiet: Any, tmp_path: Path
) -> None:
    (data, label), out = labelled_apart, tmp_path / "cv"
    cross_validate(data, out, tiny_config(), Folds(folds=2), quiet())
    before = yaml.safe_load((out / "crossval.yaml").read_text())
    before.pop("devices")
    (out / "crossval.yaml").write_text(yaml.safe_dump(before))
    cross_validate(data, out, tiny_config(), Folds(folds=2), quiet())  # as a version without that setting began it
    label(normal_day0_0="theft")
    with pytest.raises(RunError, match=r"begun with other labels of 1 \(clips/normal_day0_0\)"):
        cross_validate(data, out, tiny_config(), Folds(folds=2), quiet())
    label()
    frame = next((data / "clips" / "theft_day1_1").iterdir())
    before_it = frame.read_bytes()
    frame.write_bytes(before_it + b"\0")
    with pytest.raises(RunError, match=r"begun with other footage: 1 \(clips/theft_day1_1\) changed since"):
        cross_validate(data, out, tiny_config(), Folds(folds=2), quiet())
    frame.write_bytes(before_it)
    shutil.rmtree(out / "folds" / "2")  # as is advised where it is damaged
    log = quiet()
    cross_validate(data, out, tiny_config(), Folds(folds=2), log)
    said = log.console.export_text()
    assert "fold 1 of 2: done before" in said
    assert "fold 2 of 2: 12 clips to test" in said
    table = out / "folds" / "1" / "predictions.csv"
    for damage in (table.read_text().replace("p_normal", "p_zz"), "x", ""):
        table.write_text(damage)
        with pytest.raises(RunError, match=r"folds/1/predictions\.csv is damaged; remove the fold and start again\.$"):
            cross_validate(data, out, tiny_config(), Folds(folds=2), quiet())
    (out / "splits" / "1.csv").unlink()
    with pytest.raises(RunError, match="begun with other clips or groups"):
        cross_validate(data, out, tiny_config(), Folds(folds=2), quiet())


@pytest.mark.parametrize(("share", "epoch"), [(0.0, 1), (0.5, 4), (1.0, 4)])
def test_the_final_model_takes_as_many_epochs_as_the_folds_at_full_size_did(
    share: float, epoch: int, tiny_config: Config, tmp_path: Path
) -> None:
    losses = (0.1, 0.2, 0.6, 0.5)
    rows = [{"epoch": number, "val_loss": loss} for number, loss in enumerate(losses, start=1)]
    write_csv(tmp_path / "metrics.csv", ("epoch", "val_loss"), rows)
    assert cross_validation._best_epoch(tmp_path, tiny_config(epochs=4, early_share=share)) == epoch


def test_random_folds_divide_groups_and_say_that_they_leak(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path
) -> None:
    plan = Folds(folds=2, repeats=2, grouping="random")
    log = quiet()
    cross_validate(tiny_run[0], tmp_path / "cv", tiny_config(group_pattern=r"day\d"), plan, log)
    rows = rows_of(tmp_path / "cv" / "predictions.csv")
    assert Counter(row["repeat"] for row in rows) == {"1": 24, "2": 24}
    sides = {(row["group"], row["split"]) for row in rows_of(tmp_path / "cv" / "folds" / "1" / "clips.csv")}
    assert any((group, "train") in sides and (group, "test") in sides for group, _ in sides)
    said = log.console.export_text()
    assert "leak" in said
    assert "what the score can claim" not in said
    assert "leak" in json.loads((tmp_path / "cv" / "evaluation.json").read_text())["notes"][0]
    page = (tmp_path / "cv" / "report.html").read_text()
    assert "These figures flatter" in page
    claim = " ".join(page[page.index('<section id="claim"') : page.index('<section id="figures"')].split())
    assert "It can say" not in claim
    assert "groups were divided, clips of one were learnt from and tested, so these figures leak" in claim
    assert "On other groups of the same sort" not in page
    assert "Repeat by repeat" in page
    shutil.copytree(tiny_run[0], tmp_path / "copied")
    with pytest.raises(SystemExit) as left:
        main(["evaluate", str(tmp_path / "cv" / "folds" / "1"), str(tmp_path / "copied"), "--split", "test"])
    assert left.value.code == 0
    moved = read_evaluated(tmp_path / "cv" / "folds" / "1" / "evaluations" / "copied-test")
    assert moved.exposure.groups_divided, "the same clips elsewhere leak as much"
    began = tmp_path / "cv" / "splits" / "2.csv"
    began.write_text(began.read_text().replace(",day0,", ",day9,", 1))
    with pytest.raises(RunError, match="begun with other clips or groups"):
        cross_validate(tiny_run[0], tmp_path / "cv", tiny_config(group_pattern=r"day\d"), plan, quiet())


def test_bad_plans_are_refused(tiny_run: tuple[Path, Path], tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--folds is 1"):
        Folds(folds=1)
    with pytest.raises(ConfigError, match="makes its own splits"):
        cross_validate(tiny_run[0], tmp_path / "cv", tiny_config(split_file=tmp_path / "split.csv"), Folds())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(RunError, match="exists already"):
        cross_validate(tiny_run[0], tmp_path / "mine", tiny_config(), Folds(folds=3))


def test_clips_are_looked_at_once_and_folds_show_none(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path
) -> None:
    log, out = quiet(), tmp_path / "cv"
    cross_validate(tiny_run[0], out, tiny_config(group_pattern=r"day\d"), Folds(folds=2), log)
    assert log.console.export_text().count("audit of 24 clips") == 1
    assert "<img" in (out / "report.html").read_text()
    for fold in ("1", "2"):
        assert "<img" not in (out / "folds" / fold / "report.html").read_text()
        assert (out / "folds" / fold / "audit.json").read_bytes() == (out / "audit.json").read_bytes()

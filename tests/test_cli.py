"""The command line, run for real: what it prints, writes, and says of bad input."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torchvision.models import video

from tillwatch.cli import main
from tillwatch.config import RECIPES, TrainConfig
from tillwatch.evaluation.evaluated import Told, read_evaluated

TINY = {
    "--arch": "tinynet",
    "--weights": "none",
    "--batch-size": "4",
    "--workers": "0",
    "--lr": "1e-2",
    "--epochs": "1",
}


def tiny(*flags: object) -> list[str]:
    """Flags of the smallest training, with others added or put in their place."""
    words = [str(flag) for flag in flags]
    return [*(word for name, value in TINY.items() if name not in words for word in (name, value)), *words]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: ``run_cli("train", data, "--out", run)``."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = exited.value.code
        assert isinstance(code, int)
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(run_cli: Run) -> Run:
    """Runs a command that must be refused: code 2, one line on standard error, no traceback."""

    def run(*arguments: object) -> Result:
        result = run_cli(*arguments)
        assert result.code == 2, result
        assert result.err.startswith("tillwatch: error: ")
        assert result.err.count("\n") == 1, result.err
        assert "Traceback" not in result.err
        return result

    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# What works


def test_help_and_version_do_without_torch() -> None:
    code = (
        "import sys, tillwatch.cli as cli\n"
        "for words in (['--help'], ['train', '--help'], ['--version']):\n"
        "    try: cli.main(words)\n"
        "    except SystemExit as exited: assert exited.code == 0\n"
        "heavy = {'torch', 'torchvision', 'av', 'sklearn', 'PIL', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_public_names_are_resolved_when_first_used() -> None:
    code = (
        "import sys, tillwatch\n"
        "assert 'torch' not in sys.modules\n"
        "missing = [name for name in tillwatch.__all__ if not hasattr(tillwatch, name)]\n"
        "assert not missing, missing\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_flag_of_train_is_a_field_of_its_configuration(run_cli: Run) -> None:
    helped = run_cli("train", "--help").out
    for name in TrainConfig.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in helped


def test_videos_to_prediction_by_the_four_commands(
    tmp_path: Path, make_video: Callable[..., Path], run_cli: Run
) -> None:
    for label, brightness in (("theft", 150), ("normal", 20)):
        for number in range(8):
            make_video(tmp_path / "videos" / label / f"{number}.mp4", seed=number, brightness=brightness)
    extracted = run_cli("extract", tmp_path / "videos", tmp_path / "frames", "--every", "2", "--workers", "1")
    assert "16 clips written" in extracted.out
    trained = run_cli("train", tmp_path / "frames", "--out", tmp_path / "run", *tiny("--epochs", "8"))
    assert trained.code == 0
    assert "precision" in trained.out
    assert "recall" in trained.out

    evaluated = run_cli("evaluate", tmp_path / "run", "--workers", "0")
    assert evaluated.out.count("support") == 1
    before = rows_of(tmp_path / "run" / "predictions.csv")
    assert {row["split"] for row in before} == {"validation", "test"}

    clip = tmp_path / "videos" / "theft" / "0.mp4"
    predicted = run_cli("predict", tmp_path / "run", clip)
    assert f"{clip}: theft (normal 0." in predicted.out
    records = json.loads(run_cli("predict", tmp_path / "run", "--json", clip, tmp_path / "frames" / "normal").out)
    assert len(records) == 9
    assert records[0]["predicted"] == "theft"
    assert records[0]["is_event"] is True
    assert records[0]["event_probability"] == records[0]["probabilities"]["theft"]
    assert [record["predicted"] for record in records[1:]] == ["normal"] * 8
    assert records[3]["path"] == str(tmp_path / "frames" / "normal" / "2")


def test_evaluating_again_writes_the_same_files(tiny_run: tuple[Path, Path], tmp_path: Path, run_cli: Run) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    names = ("predictions.csv", "evaluation.json", "classification_report.txt")
    before = {name: (run / name).read_text(encoding="utf-8") for name in names}
    for name in names:
        (run / name).unlink()
    run_cli("evaluate", run, "--workers", "0")
    assert {name: (run / name).read_text(encoding="utf-8") for name in names} == before


def test_other_splits_are_written_beside_and_marked(tiny_run: tuple[Path, Path], tmp_path: Path, run_cli: Run) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    before = (run / "evaluation.json").read_text(encoding="utf-8")
    result = run_cli("evaluate", run, "--split", "train", "--workers", "0")
    assert "no estimate" in result.out
    record = json.loads((run / "evaluations" / "train" / "evaluation.json").read_text(encoding="utf-8"))
    assert record["split"] == "train"
    assert "no estimate" in record["notes"][0]
    assert {row["split"] for row in rows_of(run / "evaluations" / "train" / "predictions.csv")} == {"train"}
    assert (run / "evaluation.json").read_text(encoding="utf-8") == before
    run_cli("evaluate", run, "--split", "all", "--workers", "0")
    assert len(rows_of(run / "evaluations" / "all" / "predictions.csv")) == 24


def test_clips_that_were_learnt_from_get_no_interval_and_no_claim(
    tiny_run: tuple[Path, Path], tmp_path: Path, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tillwatch.evaluation.intervals.MIN_GROUPS", 1)
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    (run / "audit.json").write_text(json.dumps({"claim": {"kind": "x", "can": "Much.", "cannot": "Little."}}))
    assert " to " in run_cli("evaluate", run, "--workers", "0").out.split("balanced accuracy", 1)[1]
    for split, count in (("train", "the model was trained on"), ("all", "The model was trained on")):
        out = run_cli("evaluate", run, "--split", split, "--workers", "0").out
        assert count in out
        assert " to " not in out[out.index("balanced accuracy") : out.index("note: no intervals")]
        record = json.loads((run / "evaluations" / split / "evaluation.json").read_text(encoding="utf-8"))
        assert all(figure["interval"] is None for figure in record["summary"]["figures"].values())
        assert record["summary"]["at_point"]["alarms"] is None
        page = (run / "evaluations" / split / "report.html").read_text(encoding="utf-8")
        assert "95 % interval" not in page
        assert "On other groups of the same sort" not in page
        assert "Much." not in page, "the audit's claim is of clips that were held out"
    assert "other clips than the run" not in page
    assert "choices were made on" in page
    assert "None of these clips had a part in that" not in page


def test_other_data_of_the_groups_learnt_from_is_told(
    tiny_run: tuple[Path, Path], tmp_path: Path, run_cli: Run, make_frames: Callable[..., Path]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(tiny_run[1], run)
    trained = next(row["group"] for row in rows_of(run / "clips.csv") if row["split"] == "train")
    for number in range(4):
        make_frames(other / ("theft", "normal")[number % 2] / f"new{number}", seed=50 + number)
    lines = [
        f"{name}/new{number},{name},{trained if number < 2 else 'elsewhere'}"
        for number, name in enumerate(["theft", "normal"] * 2)
    ]
    (other / "clips.csv").write_text("\n".join(["path,label,group", *lines]) + "\n", encoding="utf-8")
    result = run_cli("evaluate", run, other, "--workers", "0")
    note = f"2 of these clips bear the names of groups that the model learnt from, 1 ({trained}); "
    assert note in result.out
    page = " ".join((run / "evaluations" / "other-all" / "report.html").read_text(encoding="utf-8").split())
    assert html.escape(note) in page


def test_other_clips_that_nobody_grouped_are_not_spoken_of_as_groups(
    tiny_run: tuple[Path, Path], tmp_path: Path, run_cli: Run, make_frames: Callable[..., Path]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(tiny_run[1], run)
    for number in range(6):
        make_frames(other / ("theft", "normal")[number % 2] / f"new{number}", seed=50 + number)
    shutil.copytree(other / "theft" / "new0", other / "theft" / "again")
    shutil.copytree(other / "normal" / "new1", other / "theft" / "other")
    result = run_cli("evaluate", run, other, "--workers", "0")
    assert "nothing says which sources 7 of these 7 clips are of, so each is a group of its own" in result.out
    assert "left out, as they are others byte for byte: 1 (theft/new0 is theft/again)" in result.out
    assert "the same bytes under two labels: 1 (theft/other is normal/new1)" in result.out
    folder = run / "evaluations" / "other-all"
    record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert (record["exposure"]["groups_told"], record["clips"], record["groups"]) == (False, 7, 6)
    found = read_evaluated(folder, Told(normal_hours=40.0))
    assert not found.groups_told
    assert found.normal_hours == 40.0, "those of these clips, not of the run's"
    lines = [f"{row['path']},{row['label']},{row['path'][-1]}" for row in rows_of(folder / "predictions.csv")]
    (other / "clips.csv").write_text("\n".join(["path,label,group", *lines]) + "\n", encoding="utf-8")
    assert "nothing says which sources" not in run_cli("evaluate", run, other, "--workers", "0").out
    assert read_evaluated(folder).groups_told


def test_other_data_is_evaluated_whole_and_warned_of(tiny_run: tuple[Path, Path], tmp_path: Path, run_cli: Run) -> None:
    data, run = tmp_path / "other", tmp_path / "run"
    shutil.copytree(tiny_run[0], data)
    shutil.copytree(tiny_run[1], run)
    (data / "unknown").mkdir()
    shutil.copytree(data / "theft" / "day0_0", data / "unknown" / "x")
    result = run_cli("evaluate", run, data, "--workers", "0")
    record = json.loads((run / "evaluations" / "other-all" / "evaluation.json").read_text(encoding="utf-8"))
    assert record["clips"] == 24
    trained = sum(row["split"] == "train" for row in rows_of(run / "clips.csv"))
    assert f"clips that the model was trained on: {trained} (" in result.out, "the same bytes"
    assert "bear the names of training clips" not in result.out, "which has been said"
    page = " ".join((run / "evaluations" / "other-all" / "report.html").read_text(encoding="utf-8").split())
    own = json.loads((run / "audit.json").read_text(encoding="utf-8"))
    assert html.escape(own["claim"]["can"]) in (run / "report.html").read_text(encoding="utf-8")
    assert html.escape(own["claim"]["can"]) not in page, "that is of other clips"
    assert "How the model does on any other clips: the model learnt from" in page
    new = record | {"exposure": record["exposure"] | {"learnt_from": 0, "chosen_on": 0}}
    (run / "evaluations" / "other-all" / "evaluation.json").write_text(json.dumps(new), encoding="utf-8")
    run_cli("report", run / "evaluations" / "other-all")
    page = " ".join((run / "evaluations" / "other-all" / "report.html").read_text(encoding="utf-8").split())
    assert html.escape(own["claim"]["can"]) not in page
    assert "its audit did not look at them" in page
    assert "audit is of the clips that it was trained and tested on, not of these" in page
    assert "folder 'unknown' left out: it is none of the classes normal, theft" in result.out
    run_cli("evaluate", run, data, "--split", "test", "--workers", "0")
    test_rows = rows_of(run / "evaluations" / "other-test" / "predictions.csv")
    assert test_rows == rows_of(run / "predictions.csv")


def test_copies_of_training_clips_are_found_under_any_name(
    tiny_run: tuple[Path, Path], tmp_path: Path, run_cli: Run
) -> None:
    data, run = tmp_path / "other", tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    sides = {row["path"]: row["split"] for row in rows_of(run / "clips.csv")}
    for number, (name, side) in enumerate(sides.items()):
        copied = data / name.split("/")[0] / f"clip{number}"
        shutil.copytree(tiny_run[0] / name, copied)
        if side == "test":
            with Image.open(copied / "frame_000000.jpg") as frame:
                frame.rotate(180).save(copied / "frame_000000.jpg")
    trained, validated = (sum(side == wanted for side in sides.values()) for wanted in ("train", "validation"))
    result = run_cli("evaluate", run, data, "--workers", "0")
    assert f"copies, byte for byte, of clips that the model was trained on: {trained} (" in result.out
    assert f"of clips that the run was validated on: {validated} (" in result.out
    record = json.loads((run / "evaluations" / "other-all" / "evaluation.json").read_text(encoding="utf-8"))
    assert (record["exposure"]["learnt_from"], record["exposure"]["chosen_on"]) == (trained, validated)
    page = (run / "evaluations" / "other-all" / "report.html").read_text(encoding="utf-8")
    assert "these are the clips that the model learnt from: they say nothing of new ones" in page
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace(str(tiny_run[0].resolve()), str(tmp_path / "gone")), "utf-8")
    result = run_cli("evaluate", run, data, "--workers", "0")
    assert f"{trained + validated} of the {trained + validated} clips" in result.out
    assert "cannot be told" in result.out


def test_configuration_file_is_overridden_by_flags_and_overrides_the_recipe(
    tmp_path: Path, frame_root: Path, run_cli: Run
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("recipe: original\nepochs: 1\nseed: 5\nlr: 1e-2\nbatch-size: 4\nworkers: 0\n", encoding="utf-8")
    flags = ["--config", file, "--arch", "tinynet", "--weights", "none", "--num-frames", "4", "--seed", "6"]
    result = run_cli("train", frame_root, "--out", tmp_path / "run", *flags, "--resize", "28", "--crop", "24")
    assert result.code == 0, result.err
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert written["seed"] == 6, "the flag"
    assert written["lr"] == 1e-2, "the file"
    assert written["every"] == RECIPES["original"]["every"], "the recipe"
    assert written["dropout"] == 0.5, "the default"


def test_a_rate_takes_the_place_of_the_recipes_step(tmp_path: Path, frame_root: Path, run_cli: Run) -> None:
    flags = ["--recipe", "original", "--fps", "2", "--num-frames", "4", "--resize", "28", "--crop", "24"]
    result = run_cli("train", frame_root, "--out", tmp_path / "run", *tiny(*flags))
    assert result.code == 0, result.err
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert written["fps"] == 2.0
    assert "every" not in written


def test_config_yaml_of_a_run_repeats_it(tiny_run: tuple[Path, Path], tmp_path: Path, run_cli: Run) -> None:
    result = run_cli("train", "--config", tiny_run[1] / "config.yaml", "--out", tmp_path / "again")
    assert result.code == 0, result.err
    for name in ("predictions.csv", "clips.csv", "evaluation.json"):
        assert (tmp_path / "again" / name).read_text("utf-8") == (tiny_run[1] / name).read_text("utf-8")


def test_overwrite_replaces_a_run_and_nothing_else(tmp_path: Path, frame_root: Path, run_cli: Run) -> None:
    flags = ["train", frame_root, "--out", tmp_path / "run", *tiny()]
    assert run_cli(*flags).code == 0
    (tmp_path / "run" / "evaluations" / "train").mkdir(parents=True)
    (tmp_path / "run" / "my notes.txt").write_text("keep", encoding="utf-8")
    (tmp_path / "run" / "model.json").write_text("old", encoding="utf-8")
    assert run_cli(*flags, "--overwrite").code == 0
    assert (tmp_path / "run" / "model.json").read_text(encoding="utf-8") != "old"
    assert not (tmp_path / "run" / "evaluations").exists()
    assert (tmp_path / "run" / "my notes.txt").read_text(encoding="utf-8") == "keep"
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.docx").write_text("precious", encoding="utf-8")
    assert run_cli(*flags, "--overwrite").code == 2
    assert (tmp_path / "run" / "thesis.docx").read_text(encoding="utf-8") == "precious"


def test_overwrite_never_deletes_what_training_reads_or_another_project(
    tmp_path: Path, frame_root: Path, run_cli: Run, tiny_run: tuple[Path, Path]
) -> None:
    inside = tmp_path / "run"
    shutil.copytree(tiny_run[1], inside)
    shutil.copytree(frame_root, inside / "frames")
    project = tmp_path / "project"
    project.mkdir()
    (project / "config.yaml").write_text("name: mine\n", encoding="utf-8")
    (frame_root / "config.yaml").write_text("name: mine\n", encoding="utf-8")
    for data, out in ((inside / "frames", inside), (frame_root, project), (frame_root, frame_root)):
        before = sorted(path for path in out.rglob("*"))
        result = run_cli("train", data, "--out", out, *tiny("--overwrite"))
        assert result.code == 2
        assert sorted(path for path in out.rglob("*")) == before
    weights = ["--weights", str(inside)]
    assert (
        "which this training reads" in run_cli("train", frame_root, "--out", inside, *tiny("--overwrite", *weights)).err
    )
    assert "lies inside the data folder" in run_cli("train", frame_root, "--out", frame_root / "r", *tiny()).err


# Labels: on disk, in --classes and in the alphabet the order differs


def test_every_path_reports_the_right_name_and_event(
    tmp_path: Path, make_frames: Callable[..., Path], run_cli: Run
) -> None:
    """Three classes told apart by brightness; their order on disk, in --classes and alphabetically all differ."""
    brightness = {"zebra": 200, "none": 20, "apple": 110}  # made in this order
    for label, level in brightness.items():
        for number in range(8):
            make_frames(tmp_path / "data" / label / f"{number}", num_frames=4, seed=number, brightness=level)
    classes = ["none", "zebra", "apple"]
    assert classes not in (sorted(classes), list(brightness))
    run = tmp_path / "run"
    flags = tiny("--epochs", "25", "--classes", ",".join(classes), "--event", "zebra")
    assert run_cli("train", tmp_path / "data", "--out", run, *flags).code == 0

    record = json.loads((run / "model.json").read_text(encoding="utf-8"))
    assert (record["classes"], record["event"]) == (classes, ["zebra"])
    rows = rows_of(run / "predictions.csv")
    assert list(rows[0])[-3:] == ["p_none", "p_zebra", "p_apple"]
    assert all(row["predicted"] == row["label"] == row["path"].split("/")[0] for row in rows)
    for row in rows:  # the columns, too, stand under the right names
        assert max(classes, key=lambda name: float(row[f"p_{name}"])) == row["label"]
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["event_auroc"] == 1.0
    assert evaluation["confusion_matrix"]["classes"] == classes
    for label in classes:
        clip = json.loads(run_cli("predict", run, "--json", tmp_path / "data" / label / "3").out)[0]
        assert clip["predicted"] == label
        assert clip["event_probability"] == clip["probabilities"]["zebra"]
        assert clip["is_event"] == (label == "zebra")
    run_cli("evaluate", run, "--split", "all", "--workers", "0")
    everything = json.loads((run / "evaluations" / "all" / "evaluation.json").read_text(encoding="utf-8"))
    assert everything["confusion_matrix"]["rows_true"] == [[8, 0, 0], [0, 8, 0], [0, 0, 8]]


def test_fine_tuning_with_the_classes_in_another_order_does_not_swap_them(
    tmp_path: Path, frame_root: Path, run_cli: Run
) -> None:
    first = ["train", frame_root, "--out", tmp_path / "a", *tiny("--epochs", "8", "--classes", "normal,theft")]
    assert run_cli(*first).code == 0
    flags = ["--classes", "theft,normal", "--weights", tmp_path / "a"]
    swapped = run_cli("train", frame_root, "--out", tmp_path / "b", *tiny("--lr", "1e-12", *flags))
    assert "with a new last layer" in swapped.out
    same = ["--classes", "normal,theft", "--weights", tmp_path / "a"]
    kept = run_cli("train", frame_root, "--out", tmp_path / "c", *tiny("--lr", "1e-12", *same))
    assert "with its last layer" in kept.out
    evaluation = json.loads((tmp_path / "c" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["accuracy"] == 1.0


# The region and the step of training hold on every path


def test_region_and_step_of_training_hold_on_every_path(
    tmp_path: Path, make_video: Callable[..., Path], run_cli: Run
) -> None:
    videos = tmp_path / "videos"
    for label, brightness in (("theft", 150), ("normal", 20)):
        for number in range(8):
            make_video(videos / label / f"{number}.mp4", num_frames=20, seed=number, brightness=brightness)
    for name, roi in (("left", "0,0,0.5,1"), ("right", "0.5,0,0.5,1")):
        flags = ["--every", "3", "--roi", roi, "--workers", "1", "--quality", "95"]
        assert run_cli("extract", videos, tmp_path / name, *flags).code == 0
    run = tmp_path / "run"
    assert run_cli("train", tmp_path / "left", "--out", run, *tiny("--epochs", "2")).code == 0
    record = json.loads((run / "model.json").read_text(encoding="utf-8"))
    assert record["step"]["every"] == 3
    assert record["roi"] == {"x": 0.0, "y": 0.0, "width": 0.5, "height": 1.0}

    # Evaluating the videos gives what predicting them gives, and nearly what their frames gave.
    assert run_cli("evaluate", run, videos, "--workers", "0").code == 0
    written = {row["path"]: row for row in rows_of(run / "evaluations" / "videos-all" / "predictions.csv")}
    of_frames = {row["path"]: row for row in rows_of(run / "predictions.csv")}
    for name, row in written.items():
        predicted = json.loads(run_cli("predict", run, "--json", videos / name).out)[0]
        assert predicted["probabilities"]["theft"] == pytest.approx(float(row["p_theft"]), abs=1e-6)
        if name.removesuffix(".mp4") in of_frames:
            expected = float(of_frames[name.removesuffix(".mp4")]["p_theft"])
            assert float(row["p_theft"]) == pytest.approx(expected, abs=0.01), "JPEG lies between"

    # Frames of another region are no input for this model.
    for command in (("predict", run, tmp_path / "right" / "theft" / "0"), ("evaluate", run, tmp_path / "right")):
        result = run_cli(*command)
        assert result.code == 2
        assert "show another region" in result.err


@pytest.mark.parametrize("side", ["test", "validation"])  # validation clips are scored beside the test's
def test_evaluation_says_which_clips_are_gone_and_keeps_the_runs_own_figures(
    tiny_run: tuple[Path, Path], tmp_path: Path, run_cli: Run, side: str
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(tiny_run[0], data)
    shutil.copytree(tiny_run[1], run)
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace(str(tiny_run[0].resolve()), str(data)), encoding="utf-8")
    gone = next(row["path"] for row in rows_of(run / "clips.csv") if row["split"] == side)
    shutil.rmtree(data / gone)
    before = (run / "evaluation.json").read_text(encoding="utf-8")
    scored = (run / "predictions.csv").read_text(encoding="utf-8")
    result = run_cli("evaluate", run, "--workers", "0")
    assert (run / "predictions.csv").read_text(encoding="utf-8") == scored
    assert f"1 ({gone}) of the run's clips cannot be read any more" in result.out
    assert (run / "evaluation.json").read_text(encoding="utf-8") == before
    record = json.loads((run / "evaluations" / "test" / "evaluation.json").read_text(encoding="utf-8"))
    assert record["clips"] == json.loads(before)["clips"] - (side == "test")


# Bad input


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "nan"], "--lr is nan; it must be a positive number"),
        (["--lr", "-1"], "--lr is -1.0"),
        (["--num-frames", "0"], "--num-frames is 0; it must be at least 1"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--dropout", "1"], "--dropout is 1.0"),
        (["--max-skipped", "5"], "--max-skipped is 5.0; it must be a share"),
        (["--crop", "64", "--resize", "32"], "--crop 64 is larger than --resize 32"),
        (["--crop", "64"], "--crop 64 is larger than --resize 28"),
        (["--lerning-rate", "1"], "Unknown option: --lerning-rate."),
        (["--epoch", "1"], "Unknown option: --epoch. Did you mean --epochs?"),
        (["--epochs", "1.5"], 'unable to convert "1.5" into int'),
        (["--seed", str(2**70)], "--seed is"),
        (["--num-frames", "1000000000000"], "it must be at most 4096"),
        (["--epochs", "many"], 'unable to convert "many" into int'),
        (["--recipe", "orignal"], 'Did you mean "original"?'),
        (["--arch", "r2plus1d_81"], "Did you mean 'r2plus1d_18'?"),
        (["--weights", "/no/such.pth"], "--weights is '/no/such.pth'"),
        (["--every", "2", "--fps", "5"], "--every and --fps exclude each other"),
        (["--no-hold-out"], "--no-hold-out leaves nothing to validate on"),
        (["--save-as", "a/b.pth"], "--save-as is 'a/b.pth'"),
        (["--save-as", "model.json"], "ends in .pth"),
        (["--patience", "0"], "--patience is 0"),
        (["--classes", "theft,norml"], "--classes names 'norml', but"),
        (["--classes", "theft,norml"], "Did you mean 'normal'?"),
        (["--classes", "theft,theft"], "names a class twice"),
        (["--classes", "theft"], "one class only, theft"),
        (["--event", "normall"], "--event names 'normall', but the classes are normal, theft"),
        (["--group-pattern", "("], "is no regular expression"),
        (["--group-pattern", "camera"], "matches none of the clips' names"),
        (["--short", "error", "--num-frames", "13"], "fewer than 13 frames in 16"),
        (["--split-file", "/no/such.csv"], "--split-file /no/such.csv cannot be read"),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml cannot be read"),
        (["--precision", "fp16", "--device", "cpu"], "--precision fp16 needs a GPU"),
        (["--precision", "fp8"], "--precision"),
        (["--early-share", "2"], "--early-share is 2.0; it must be a share between 0 and 1"),
        (["--early-frames", "0"], "--early-frames is 0.0; it must be a share above 0"),
        (["--early-share", "0.5", "--freeze", "backbone"], "drop --early-share"),
        (["--recipe", "fast", "--freeze", "backbone"], "or --recipe fast"),
        (["--recipe", "fast", "--arch", "mvit_v2_s"], "mvit_v2_s takes clips of one size only"),
        (["--no-cache", "--cache-folder", "x"], "--no-cache and --cache-folder exclude each other"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    frame_root: Path, out: Path, refused: Run, flags: list[str], message: str
) -> None:
    assert message in refused("train", frame_root, "--out", out, *tiny(*flags)).err
    assert not out.exists()


def test_all_problems_of_a_configuration_are_named_at_once(frame_root: Path, out: Path, refused: Run) -> None:
    error = refused("train", frame_root, "--out", out, "--lr", "0", "--epochs", "0", "--dropout", "2").err
    assert all(flag in error for flag in ("--lr is 0.0", "--epochs is 0", "--dropout is 2.0"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1\n", "unknown key 'lerning_rate'"),
        ("batch_sise: 4\n", "Did you mean 'batch_size'?"),
        ("batch_size: 2\nbatch-size: 3\n", "has both 'batch-size' and 'batch_size'"),
        ("- 1\n- 2\n", "must hold lines of the form key: value"),
        ("lr: [1\n", "is no YAML"),
        ("lr: fast\n", "[lr]"),
        ("recipe: fastest\n", "[recipe]"),
        ("\x00\x01", "is no YAML"),
        ("seed: 2026-13-01\n", "is no YAML"),
        ("seed: " + "[" * 5000, "is no YAML"),
        ("seed: &a [*a]\n", "seed must be a value, or a list of values"),
        ("classes: {theft: 1}\n", "classes must be a value, or a list of values"),
        ("lr: .nan\n", "--lr is nan"),
    ],
)
def test_bad_configuration_files_are_refused(
    frame_root: Path, out: Path, tmp_path: Path, refused: Run, text: str, message: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    flags = ["--arch", "tinynet", "--weights", "none", "--config", file]
    assert message in refused("train", frame_root, "--out", out, *flags).err
    assert not out.exists()


def test_missing_data_is_refused(tmp_path: Path, out: Path, refused: Run) -> None:
    assert "nowhere does not exist" in refused("train", tmp_path / "nowhere", "--out", out, *tiny()).err
    file = tmp_path / "file"
    file.touch()
    assert "is not a folder" in refused("train", file, "--out", out, *tiny()).err
    (tmp_path / "hollow").mkdir()
    assert "no class folder" in refused("train", tmp_path / "hollow", "--out", out, *tiny()).err
    assert "give the data folder and --out RUN for a new run, or --resume RUN" in refused("train", "--out", out).err
    assert f"--resume {out} holds no run to go on with" in refused("train", "--resume", out).err


def test_empty_class_folder_is_refused_by_name(frame_root: Path, out: Path, refused: Run) -> None:
    (frame_root / "shoplifting").mkdir()
    error = refused("train", frame_root, "--out", out, *tiny()).err
    assert f"{frame_root / 'shoplifting'} holds no clip" in error


@pytest.mark.parametrize("name", ["a,b", " lead", "trail "])
def test_class_names_that_no_flag_could_name_are_refused(frame_root: Path, out: Path, refused: Run, name: str) -> None:
    (frame_root / "theft").rename(frame_root / name)
    assert (
        "must not hold a comma or begin or end with a space" in refused("train", frame_root, "--out", out, *tiny()).err
    )


def test_split_files_that_do_not_fit_are_refused(frame_root: Path, out: Path, tmp_path: Path, refused: Run) -> None:
    file = tmp_path / "split.csv"
    file.write_text("path,split\nelsewhere/a,train\n", encoding="utf-8")
    flags = ["--split-file", file]
    assert "names none of the clips here" in refused("train", frame_root, "--out", out, *tiny(*flags)).err
    rows = [f"{path.parent.name}/{path.name},train" for path in frame_root.glob("*/*")]
    file.write_text("path,split\n" + "\n".join(rows), encoding="utf-8")
    assert "leaves no clip of 'normal' for validation" in refused("train", frame_root, "--out", out, *tiny(*flags)).err


def test_a_folder_taken_away_midway_is_one_line(
    frame_root: Path, out: Path, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*arguments: Any, **options: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory", str(out / "model.pth"))

    monkeypatch.setattr("tillwatch.training.finish.save_model", gone)
    said = refused("train", frame_root, "--out", out, *tiny()).err
    assert "the file system refused" in said
    assert "go on with: tillwatch train --resume" in said


def test_one_class_only_is_refused(frame_root: Path, out: Path, refused: Run) -> None:
    shutil.rmtree(frame_root / "normal")
    assert "one class only, theft" in refused("train", frame_root, "--out", out, *tiny()).err


@pytest.mark.parametrize("command", ["train", "crossval"])
def test_one_group_that_holds_everything_is_refused(frame_root: Path, out: Path, refused: Run, command: str) -> None:
    (frame_root / "clips.csv").write_text(
        "path,label,group\n" + "".join(f"{c}/clip{n},{c},everything\n" for c in ("theft", "normal") for n in range(8)),
        encoding="utf-8",
    )
    said = refused(command, frame_root, "--out", out, *tiny()).err
    assert "clips fall into 1 group," in said or "of 'normal' fall into 1 group," in said
    assert "a group is never divided" in said
    assert not out.exists()


@pytest.mark.parametrize("command", ["train", "crossval"])
def test_two_clips_in_all_are_refused(frame_root: Path, out: Path, refused: Run, command: str) -> None:
    for folder in frame_root.glob("*/clip[1-7]"):
        shutil.rmtree(folder)
    assert "fall into 1 group," in refused(command, frame_root, "--out", out, *tiny()).err
    assert not out.exists()


def test_other_clips_of_one_class_only_are_evaluated_and_the_page_says_what_that_lacks(
    tiny_run: tuple[Path, Path], tmp_path: Path, run_cli: Run
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(tiny_run[1], run)
    shutil.copytree(tiny_run[0] / "theft", other / "theft")
    result = run_cli("evaluate", run, other)
    assert result.code == 0, result.err
    assert "no clip of 'normal' is in" in result.out
    assert "0 other clips are too few to say anything of" in result.out
    assert "AUROC" not in result.out[result.out.index("balanced accuracy") :]
    page = (run / "evaluations" / "other-all" / "report.html").read_text(encoding="utf-8")
    assert "none of them is anything but theft" in page


def test_ambiguous_event_asks(frame_root: Path, out: Path, refused: Run) -> None:
    (frame_root / "normal").rename(frame_root / "buying")
    error = refused("train", frame_root, "--out", out, *tiny()).err
    assert "which of the classes buying, theft is the event" in error
    assert "--event CLASS" in error


def test_class_folder_that_is_not_asked_for_is_named(frame_root: Path, out: Path, run_cli: Run) -> None:
    shutil.copytree(frame_root / "theft", frame_root / "other")
    result = run_cli("train", frame_root, "--out", out, *tiny("--classes", "theft,normal"))
    assert result.code == 0
    assert "folder 'other' left out: it is none of the classes theft, normal" in result.out
    assert len(rows_of(out / "clips.csv")) == 16


def test_a_few_damaged_clips_are_named_counted_and_left_out(frame_root: Path, out: Path, run_cli: Run) -> None:
    (frame_root / "theft" / "empty.mp4").touch()
    whole = frame_root / "normal" / "clip3" / "frame_000000.jpg"
    whole.write_bytes(whole.read_bytes()[:-300])
    Image.new("RGB", (20, 20)).save(frame_root / "theft" / "clip5" / "frame_000011.jpg")
    (frame_root / "normal" / "clip1" / "notes.txt").write_text("a text among frames", encoding="utf-8")
    result = run_cli("train", frame_root, "--out", out, *tiny("--num-frames", "12"))
    assert result.code == 0, result.err
    status = {row["path"]: row["status"] for row in rows_of(out / "clips.csv")}
    assert len(status) == 17
    assert status["theft/empty.mp4"] == "skipped: the file is empty"
    assert "truncated" in status["normal/clip3"]
    assert "frames of two sizes" in status["theft/clip5"]
    assert status["normal/clip1"] == "ok"
    assert "normal/clip1/notes.txt) left out" in result.out
    for name in ("theft/empty.mp4", "normal/clip3", "theft/clip5"):
        assert f"{name} left out: " in result.out


def test_many_damaged_clips_stop_training_before_it_starts(frame_root: Path, out: Path, refused: Run) -> None:
    for number in range(4):
        (frame_root / "theft" / f"broken{number}.mp4").touch()
    error = refused("train", frame_root, "--out", out, *tiny()).err
    assert "4 of 20 clips are damaged, over the 5% that --max-skipped allows" in error
    assert "theft/broken0.mp4: the file is empty" in error
    assert not out.exists()


def test_max_skipped_allows_more(frame_root: Path, out: Path, run_cli: Run) -> None:
    for number in range(4):
        (frame_root / "theft" / f"broken{number}.mp4").touch()
    assert run_cli("train", frame_root, "--out", out, *tiny("--max-skipped", "0.2")).code == 0


def test_names_with_spaces_and_non_ascii_letters_go_through(
    tmp_path: Path, make_video: Callable[..., Path], run_cli: Run
) -> None:
    for label in ("Überfall am Tag", "nörmal"):
        for number in range(4):
            make_video(tmp_path / "süd strasse" / label / f"caméra {number} 店.mp4", num_frames=5, seed=number)
    frames, run = tmp_path / "bilder ü", tmp_path / "lauf 1"
    assert run_cli("extract", tmp_path / "süd strasse", frames, "--workers", "1").code == 0
    flags = tiny("--event", "Überfall am Tag")
    assert run_cli("train", frames, "--out", run, *flags).code == 0
    assert "Überfall am Tag/caméra 0 店" in {row["path"] for row in rows_of(run / "clips.csv")}
    clip = tmp_path / "süd strasse" / "nörmal" / "caméra 3 店.mp4"
    record = json.loads(run_cli("predict", run, "--json", clip).out)[0]
    assert set(record["probabilities"]) == {"Überfall am Tag", "nörmal"}


def test_folder_linked_to_itself_is_named_and_not_followed(frame_root: Path, out: Path, run_cli: Run) -> None:
    (frame_root / "theft" / "loop").symlink_to(frame_root / "theft")
    (frame_root / "again").symlink_to(frame_root)
    result = run_cli("train", frame_root, "--out", out, *tiny())
    assert result.code == 0, result.err
    assert "theft/loop left out: it is a link that leads back" in result.out
    assert "folder 'again' left out: it is a link that leads back" in result.out
    assert len(rows_of(out / "clips.csv")) == 16


def test_existing_run_is_not_touched(tiny_run: tuple[Path, Path], refused: Run) -> None:
    before = (tiny_run[1] / "model.pth").stat().st_mtime_ns
    error = refused("train", tiny_run[0], "--out", tiny_run[1], *tiny()).err
    assert "exists already" in error
    assert "--overwrite" in error
    assert (tiny_run[1] / "model.pth").stat().st_mtime_ns == before


def test_unwritable_run_is_refused(frame_root: Path, tmp_path: Path, refused: Run) -> None:
    (tmp_path / "file").touch()
    error = refused("train", frame_root, "--out", tmp_path / "file" / "run", *tiny()).err
    assert "cannot be written" in error
    assert "is not a folder" in refused("train", frame_root, "--out", tmp_path / "file", *tiny()).err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes anywhere")
def test_read_only_parent_is_refused(frame_root: Path, tmp_path: Path, refused: Run) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    assert "cannot be written" in refused("train", frame_root, "--out", tmp_path / "closed" / "run", *tiny()).err


class _Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_weights_with_code_are_refused_and_not_executed(
    frame_root: Path, out: Path, tmp_path: Path, refused: Run
) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(_Marker(tmp_path / "executed")))
    flags = tiny("--weights", tmp_path / "evil.pth")
    assert "never executed" in refused("train", frame_root, "--out", out, *flags).err
    assert not (tmp_path / "executed").exists()
    assert not out.exists()


def test_weights_of_another_network_are_refused_by_name(
    frame_root: Path, out: Path, tmp_path: Path, refused: Run
) -> None:
    buffer = io.BytesIO()
    torch.save(video.r3d_18(weights=None).state_dict(), buffer)
    (tmp_path / "w.pth").write_bytes(buffer.getvalue())
    error = refused("train", frame_root, "--out", out, *tiny("--weights", tmp_path / "w.pth")).err
    assert "are for r3d_18, not for tinynet; say --arch r3d_18" in error


def test_default_weights_without_a_network_fail_with_advice(
    frame_root: Path, out: Path, tmp_path: Path, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    error = refused("train", frame_root, "--out", out, "--arch", "tinynet").err
    assert "place tinynet-00000000.pth in" in error
    assert "--weights none" in error
    assert not out.exists()


def test_bad_predictions_are_refused(tiny_run: tuple[Path, Path], tmp_path: Path, refused: Run, run_cli: Run) -> None:
    data, run = tiny_run
    clip = data / "theft" / "day0_0"
    assert "nowhere does not exist" in refused("predict", run, tmp_path / "nowhere").err
    assert "does not exist" in refused("predict", tmp_path / "nowhere", clip).err
    assert "give the run folder" in refused("evaluate", run / "model.pth").err
    assert "--arch and --classes" in refused("predict", run / "model.pth", clip).err
    assert "is for" not in refused("predict", run, clip, "--arch", "tinynet").out
    (tmp_path / "hollow").mkdir()
    assert "holds no frames, no video" in refused("predict", run, tmp_path / "hollow").err
    mixed = run_cli("predict", run, tmp_path / "nowhere", clip)
    assert mixed.code == 0
    assert f"{clip}: " in mixed.out
    assert "left out: " in mixed.err
    bare = run_cli("predict", run / "model.pth", clip, "--arch", "tinynet", "--classes", "normal,theft")
    assert bare.code == 0
    assert "assumed" in bare.err


def test_bad_extractions_are_refused(tmp_path: Path, make_video: Callable[..., Path], refused: Run) -> None:
    make_video(tmp_path / "videos" / "a" / "1.mp4")
    for flags, message in (
        (["--every", "0"], "--every is 0"),
        (["--fps", "-3"], "--fps is -3.0"),
        (["--every", "2", "--fps", "3"], "exclude each other"),
        (["--quality", "200"], "--quality is 200"),
        (["--short-side", "2"], "--short-side is 2"),
        (["--roi", "1,2,3"], "--roi is '1,2,3'"),
        (["--roi", "0.5,0,0.6,1"], "inside it"),
        (["--roi", "nan,0,1,1"], "inside it"),
        (["--workers", "-1"], "--workers is -1"),
    ):
        assert message in refused("extract", tmp_path / "videos", tmp_path / "frames", *flags).err
        assert not (tmp_path / "frames").exists()
    (tmp_path / "dark" / "a").mkdir(parents=True)
    (tmp_path / "dark" / "a" / "1.mp4").touch()
    assert "none of 1 videos could be extracted" in refused("extract", tmp_path / "dark", tmp_path / "f").err


# --- the store of decoded clips ----------------------------------------------------------------------


def test_cache_lists_verifies_and_prunes(frame_root: Path, out: Path, tmp_path: Path, run_cli: Run) -> None:
    cache = tmp_path / "cache"
    assert run_cli("train", frame_root, "--out", out, "--cache-folder", cache, *tiny()).code == 0
    held = len(list(cache.glob("??/*.clip")))
    listed = run_cli("cache", "list", "--cache-folder", cache)
    assert f"\n{frame_root}: 4 frames of 28x28, {held - 44} clips, 0." in f"\n{listed.out}"
    for what, clips in (
        ("fingerprint 2 of 1 frames of 64x64", 16),
        ("scene features of 4 frames of 28x28", 14),  # those of training and test
        ("motion features of 32 frames of 128x128", 14),
    ):
        assert f"\n{frame_root}: {what}, {clips} clips, 0." in f"\n{listed.out}"
    assert listed.out.splitlines()[-1].startswith(f"{cache}: {held} clips")
    damaged = next(cache.glob("??/*.clip"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # any fixed byte may stand there already
    verified = run_cli("cache", "verify", "--cache-folder", cache)
    assert verified.out.strip() == f"{cache}: {held} clips read, 1 of them damaged and removed"
    assert f"{damaged} removed" in verified.err
    next(cache.glob("??/*.clip")).write_bytes(b"no head")
    assert "damaged entries: unknown, 1 clip, 0.000 GB" in run_cli("cache", "list", "--cache-folder", cache).out
    pruned = run_cli("cache", "prune", "--max-size", "90kB", "--cache-folder", cache)
    left = sum(path.stat().st_size for path in cache.glob("??/*.clip"))
    assert 0 < left <= 90_000
    assert pruned.out.startswith(f"{cache}: removed ")
    (cache / "aa" / "mine.clip").mkdir(parents=True)  # somebody else's, and in nobody's way
    assert run_cli("cache", "verify", "--cache-folder", cache).code == 0
    run_cli("cache", "prune", "--max-size", "0", "--cache-folder", cache)
    assert list(cache.glob("??/*.clip")) == [cache / "aa" / "mine.clip"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "--max-size", "much"), "--max-size is 'much'; it must be a size such as 5GB"),
        (("prune", "--max-size", "9" * 400), "; it must be a size such as 5GB"),
        (("prune", "--max-size", "-1"), "--max-size"),
        (("list", "--cache-folder", "nowhere"), "--cache-folder nowhere is not a folder"),
    ],
)
def test_bad_cache_commands_are_refused(arguments: tuple[str, ...], message: str, refused: Run) -> None:
    assert message in refused("cache", *arguments).err


def test_words_that_are_no_unicode_are_refused(refused: Run, tmp_path: Path, frame_root: Path) -> None:
    odd = os.fsdecode(bytes(tmp_path) + b"/odd\xff")
    assert r"odd\xff is not Unicode (UTF-8); rename it" in refused("train", frame_root, "--out", odd, *tiny()).err
    assert not Path(odd).exists()
    Path(odd).mkdir()
    assert r"odd\xff" in refused("predict", frame_root, odd).err


def test_a_cache_named_by_the_environment_must_be_a_folder(
    refused: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TILLWATCH_CACHE", str(tmp_path / "file"))
    for command in (("list",), ("verify",), ("prune", "--max-size", "0")):
        assert "file is not a folder; name another with $TILLWATCH_CACHE or" in refused("cache", *command).err


def test_crossval_prints_a_table_and_labels_ranks_its_clips(
    run_cli: Run, refused: Run, tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "cv"
    flags = ["crossval", tiny_run[0], "--out", out, *tiny("--group-pattern", r"day\d"), "--folds"]
    assert "2 to 4 folds are possible" in refused(*flags, "5").err
    assert not out.exists()
    result = run_cli(*flags, "2")
    assert result.code == 0, result.err
    table = [line.split() for line in result.out[result.out.rindex("event AUROC\n") :].splitlines()[1:6]]
    assert [row[:2] for row in table[:3]] == [["fold", "1"], ["fold", "2"], ["all", "clips"]]
    record = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert table[2][2] == f"{record['accuracy']:.3f}"
    assert table[4] == ["single", "frame", *(f"{record['baselines']['single frame'][name]:.3f}" for name in FIGURES)]
    ranked = run_cli("labels", out, "--top", "2")
    assert [line.split(".")[0].strip() for line in ranked.out.splitlines()[:2]] == ["1", "2"]
    assert "holds no finished cross-validation" in refused("labels", tiny_run[1]).err


FIGURES = ("accuracy", "balanced_accuracy", "event_auroc")


# Other engines


def test_an_exported_folder_is_a_model_like_any_other(
    tiny_run: tuple[Path, Path], tmp_path: Path, run_cli: Run, refused: Run
) -> None:
    pytest.importorskip("openvino", reason="the extra export is not installed")
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    data, run = tiny_run
    model = tmp_path / "model"
    done = run_cli("export", run, "--to", "openvino", "--out", model, "--workers", 0)
    assert done.code == 0, done
    assert "against torch on" in done.out
    clip = data / "theft" / "day0_0"
    scores = [
        json.loads(run_cli("predict", folder, "--json", clip).out)[0]["event_probability"] for folder in (run, model)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert run_cli("evaluate", model, "--workers", 0).code == 0
    written = json.loads((model / "evaluations/test-openvino-fp32/evaluation.json").read_text(encoding="utf-8"))
    assert (written["engine"], written["precision"]) == ("openvino", "fp32")
    assert "holds no torch" in refused("predict", model, clip, "--engine", "torch").err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert "holds no model" in refused("export", run, "--to", "openvino", "--out", tmp_path / "other").err
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["file"]

"""tillwatch runs: what each run reached, where settings differ, and what cannot be compared, named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tillwatch import cli
from tillwatch.errors import DataError
from tillwatch.evaluation.runs import compare_runs
from tillwatch.files import read_csv
from tillwatch.training.loop import train


@pytest.fixture(scope="module")
def several(
    tiny_run: tuple[Path, Path], tiny_config: Any, quiet: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of two runs that differ in their rate, one on another split, one unfinished and two damaged."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(tiny_run[1], folder / "first")
    options: dict[str, Any] = {"epochs": 2, "group_pattern": r"day\d", "baselines": False}
    train(tiny_run[0], folder / "deep" / "slow[er]", tiny_config(**options, lr=1e-6), quiet())
    for name in ("broken", "unfinished", "no model"):
        shutil.copytree(tiny_run[1], folder / name)
    (folder / "broken" / "evaluation.json").write_text("{")
    (folder / "no model" / "evaluation.json").unlink()
    (folder / "unfinished" / "unfinished").touch()
    (folder / "empty").mkdir()
    return folder


def test_the_best_epoch_is_one_at_full_size(tmp_path: Path, tiny_run: tuple[Path, Path]) -> None:
    for name, share in (("full", 0.0), ("growing", 0.7), ("odd", "a lot")):
        run = shutil.copytree(tiny_run[1], tmp_path / name)
        settings = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump({**settings, "epochs": 3, "early_share": share}))
        head, *rows = (run / "metrics.csv").read_text().splitlines()
        at = head.split(",").index("val_loss")
        written = []
        for epoch, loss in enumerate((0.1, 0.5, 0.4), start=1):
            cells = rows[0].split(",")
            cells[0], cells[at] = str(epoch), str(loss)
            written.append(",".join(cells))
        (run / "metrics.csv").write_text("\n".join([head, *written]) + "\n")
    found = compare_runs(tmp_path)
    best = {run.name: (run.best_epoch, run.val_loss) for run in found.compared}
    assert best == {"full": (1, 0.1), "growing": (3, 0.4)}
    assert [run.name for run in found.others] == ["odd"]


def test_runs_stand_beside_each_other_and_the_rest_is_named(several: Path) -> None:
    found = compare_runs(several)
    assert [run.name for run in found.compared] == ["first", "deep/slow[er]"]
    first, slow = found.compared
    record = json.loads((several / "first" / "evaluation.json").read_text())
    assert first.figures["accuracy"].value == record["accuracy"]
    assert (first.split, first.clips, first.epochs) == ("test", record["clips"], 2)
    rows = read_csv(several / "first" / "metrics.csv")
    assert first.best_epoch == min((1, 2), key=lambda epoch: float(rows[epoch - 1]["val_loss"]))
    assert first.seconds == pytest.approx(sum(float(row["seconds"]) for row in rows))
    assert found.told(first) == {"lr": "0.01", "baselines": "True"}
    assert found.told(slow) == {"lr": "1e-06", "baselines": "False"}
    trouble = {run.name: run.trouble for run in found.others}
    assert trouble.keys() == {"broken", "no model", "unfinished"}
    go_on = f"go on with: tillwatch train --resume {several / 'unfinished'}"
    assert trouble["unfinished"] == f"not finished, 2 epochs are done; {go_on}"
    assert "cannot be read (No such file" in trouble["no model"] or "evaluation.json" in trouble["no model"]
    assert trouble["broken"].startswith("cannot be read (Expecting property name")
    (note,) = found.notes
    record["exposure"]["groups_divided"] = True
    (several / "first" / "evaluation.json").write_text(json.dumps(record))
    assert compare_runs(several).notes[1:] == (
        "first: Clips of one group were learnt from and measured: these figures leak.",
    )
    record["exposure"]["groups_divided"] = False
    audit = json.loads((several / "first" / "audit.json").read_text())
    (several / "first" / "audit.json").write_text(json.dumps(audit | {"claim": {**audit["claim"], "kind": "unknown"}}))
    (several / "first" / "evaluation.json").write_text(json.dumps(record))
    assert compare_runs(several).notes[1:] == (
        "first: Nothing says which clips share a source: these figures may flatter.",
    )
    (several / "first" / "audit.json").write_text(json.dumps(audit))
    (several / "first" / "evaluation.json").write_text(json.dumps(record))
    assert note.startswith("choose by validation loss, not by these figures")


@pytest.mark.parametrize(
    ("file", "old", "new", "comes_back"),
    [
        ("evaluation.json", r'"clips": \d+', '"clips": Infinity', False),
        ("evaluation.json", r'"value": [\d.]+', '"value": 1' + "0" * 400, False),
        ("metrics.csv", r"(?m)^1,([^,]+),[^,]+", r"1,\1,nan", False),
        ("metrics.csv", r"(?m)^(1(?:,[^,]+){4}),[^,]+", r"\1,inf", False),
        ("config.yaml", r"(?m)^lr: .*", "lr: .nan", True),
        ("config.yaml", r"(?m)^lr: ", "2026-01-01: ", False),
    ],
)
def test_runs_with_odd_figures_are_named_or_told(
    file: str, old: str, new: str, comes_back: bool, several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("good", "odd"):
        shutil.copytree(several / "first", tmp_path / name)
    path = tmp_path / "odd" / file
    changed = re.sub(old, new, path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    for words in ((), ("--json",), ("--html", str(tmp_path / "page.html"))):
        with pytest.raises(SystemExit) as exited:
            cli.main(["runs", str(tmp_path), *words])
        assert exited.value.code == 0
        told = capsys.readouterr()
        assert not told.err
        if words == ("--json",):
            found = json.loads(told.out, parse_constant=lambda name: pytest.fail(name))
            assert [run["run"] for run in found["others"]] == ([] if comes_back else ["odd"])


def test_other_test_clips_are_no_comparison(several: Path, tmp_path: Path) -> None:
    shutil.copytree(several / "first", tmp_path / "a")
    shutil.copytree(several / "first", tmp_path / "b")
    table = tmp_path / "b" / "predictions.csv"
    table.write_text(re.sub(r"theft/day(\d)", r"theft/night\1", table.read_text()))
    (note,) = compare_runs(tmp_path).notes
    assert "2 different sets of clips (one of them: that of a), so they do not compare" in note


def test_the_command_prints_a_table_json_and_a_page(
    several: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str) -> str:
        with pytest.raises(SystemExit) as exited:
            cli.main(["runs", str(several), *words])
        assert exited.value.code == 0
        return capsys.readouterr().out

    page = tmp_path / "runs.html"
    lines = said("--html", str(page)).splitlines()
    assert re.split(r"\s{2,}|\s(?=\w+$)", lines[0].strip())[:5] == ["run", "accuracy", "balanced", "AUROC", "clips"]
    assert [line.split()[0] for line in lines[1:3]] == ["first", "deep/slow[er]"]
    assert "lr 1e-06" in lines[2]
    text = page.read_text()
    assert text.count('class="mark') == 2
    assert "deep/slow[er]" in text
    assert "class=&#34;" not in text, "the plot is drawn, not quoted"
    assert not re.search(r"(src|href)=|url\(", text)
    record = json.loads(said("--json"))
    assert [run["run"] for run in record["runs"]] == ["first", "deep/slow[er]"]
    assert record["runs"][0]["settings"] == {"lr": 0.01, "baselines": True}
    assert {other["run"] for other in record["others"]} == {"broken", "no model", "unfinished"}


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        compare_runs(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        compare_runs(tmp_path / "none")

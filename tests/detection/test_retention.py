"""tillwatch prune-evidence: what is old goes, and nothing that the manifest does not name."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tillwatch.cli import main
from tillwatch.detection.evidence import seal_of
from tillwatch.files import write_json

RunPrune = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> RunPrune:
    """Runs a command: (exit code, out, err)."""

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(str(exited.value.code)), captured.out, captured.err

    return command


@pytest.fixture
def evidence(scan_folder: Path, tmp_path: Path, run: RunPrune) -> Path:
    """A folder with evidence collected 40 days ago, and today, each in a folder of its own."""
    for name in ("old", "new"):
        run("evidence", scan_folder, "--out", tmp_path / "all" / name)
    date_back(tmp_path / "all" / "old", timedelta(days=40))
    return tmp_path / "all"


def date_back(folder: Path, age: timedelta) -> None:
    manifest = folder / "manifest.json"
    record = json.loads(manifest.read_text())
    assert abs(datetime.fromisoformat(record["collected"]) - datetime.now(UTC)) < timedelta(minutes=5)
    write_json(manifest, {**record, "collected": (datetime.now(UTC) - age).isoformat(timespec="seconds")})
    (folder / "manifest.json.sha256").write_text(seal_of(manifest))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_old_evidence_is_deleted_and_listed_and_new_is_kept(evidence: Path, tmp_path: Path, run: RunPrune) -> None:
    old, new = contents(evidence / "old"), contents(evidence / "new")
    originals = {name: (tmp_path / name).read_bytes() for name in ("a.mp4", "b.h264")}
    code, out, err = run("prune-evidence", evidence, "--retention-days", 30, "--dry-run")
    assert (code, err) == (0, "")
    assert f"{len(old)} files of 1 folder would be deleted; 1 folder kept" in out
    assert contents(evidence / "old") == old
    code, out, err = run("prune-evidence", evidence, "--retention-days", 30)
    assert (code, err) == (0, "")
    assert sorted(out.splitlines()[:-1]) == sorted(str(evidence / "old" / name) for name in old)
    assert out.splitlines()[-1] == f"{len(old)} files of 1 folder deleted; 1 folder kept"
    assert not (evidence / "old").exists()
    assert contents(evidence / "new") == new
    assert originals == {name: (tmp_path / name).read_bytes() for name in originals}
    assert run("prune-evidence", evidence, "--retention-days", 30)[1].startswith("0 files of 0 folders")


def test_what_is_not_finished_is_named_and_stays(
    evidence: Path, run: RunPrune, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tillwatch.detection.evidence._write_manifest", killed)
    run("evidence", evidence.parent / "scan", "--out", evidence / "broken")
    (evidence / "run").mkdir()
    (evidence / "run" / "unfinished").write_text("{}")  # of a training
    before = contents(evidence / "broken")
    assert "0001_a_00-00-02.mp4" in before
    for folder, folders in ((evidence, "1 folder"), (evidence / "broken", "0 folders")):
        code, out, err = run("prune-evidence", folder, "--retention-days", 30)
        assert code == 3
        assert f"of {folders} deleted" in out
        assert f"{evidence / 'broken'} stays: it is not finished, so nothing tells when it was collected." in err
        assert err.count("\n") == 1
    assert contents(evidence / "broken") == before


def test_evidence_of_exactly_so_many_days_goes(evidence: Path, run: RunPrune) -> None:
    assert "0 files of 0 folders deleted; 2 folders" in run("prune-evidence", evidence, "--retention-days", 41)[1]
    assert "of 1 folder deleted" in run("prune-evidence", evidence, "--retention-days", 40)[1]


def test_what_the_manifest_does_not_name_is_left_alone(evidence: Path, run: RunPrune) -> None:
    (evidence / "old" / "notes.txt").write_text("mine")
    (evidence / "old" / "more").mkdir()
    (evidence / "old" / "more" / "a.mp4").write_text("mine too")
    code, _, err = run("prune-evidence", evidence / "old", "--retention-days", 30)
    assert code == 3
    assert "notes.txt stays: the manifest does not name it" in err
    assert "more stays: the manifest does not name it" in err
    assert contents(evidence / "old") == {"notes.txt": b"mine", "more/a.mp4": b"mine too"}


@pytest.mark.parametrize("name", ["../mine.txt", "/etc/hostname", "more/mine.txt", "..", ""])
def test_a_manifest_that_names_what_lies_elsewhere_deletes_nothing(name: str, evidence: Path, run: RunPrune) -> None:
    folder, manifest = evidence / "old", evidence / "old" / "manifest.json"
    (evidence / "mine.txt").write_text("mine")
    record = json.loads(manifest.read_text())
    write_json(manifest, {**record, "files": {**record["files"], name: "0" * 64}})
    before = contents(evidence)
    code, _, err = run("prune-evidence", folder, "--retention-days", 30)
    assert code == 3
    assert "not the one that manifest.json.sha256 is of, so what it names is not believed" in err
    (folder / "manifest.json.sha256").write_text(seal_of(manifest))  # even if somebody sealed it anew
    code, _, err = run("prune-evidence", folder, "--retention-days", 30)
    assert code == 3
    assert "which is no file beside it" in err
    before["old/manifest.json.sha256"] = seal_of(manifest).encode()
    assert contents(evidence) == before


def test_a_link_goes_and_what_it_leads_to_stays(evidence: Path, tmp_path: Path, run: RunPrune) -> None:
    clip = next((evidence / "old").glob("*.mp4"))
    clip.replace(tmp_path / "kept.mp4")
    clip.symlink_to(tmp_path / "kept.mp4")
    assert run("prune-evidence", evidence, "--retention-days", 30)[0] == 0
    assert (tmp_path / "kept.mp4").is_file()


def test_what_was_deleted_in_part_is_deleted_on(evidence: Path, run: RunPrune) -> None:
    next((evidence / "old").glob("*.mp4")).unlink()
    left = len(contents(evidence / "old"))
    assert run("prune-evidence", evidence, "--retention-days", 30, "--dry-run")[1].count("\n") == left + 1
    assert run("prune-evidence", evidence, "--retention-days", 30)[0] == 0
    assert not (evidence / "old").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--retention-days", "30"], "give at least one folder"),
        (["nowhere", "--retention-days", "30"], "nowhere is no folder"),
        ([".", "--retention-days", "30"], "holds no manifest.json with its manifest.json.sha256"),
        ([".", "--retention-days", "0"], "--retention-days is 0"),
        ([".", "--retention-days", "1.5"], 'unable to convert "1.5"'),
    ],
)
def test_bad_input_is_a_line(
    arguments: list[str], message: str, tmp_path: Path, run: RunPrune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")  # another program's
    code, _, err = run("prune-evidence", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1

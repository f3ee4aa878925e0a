"""The audit of a folder: every kind of damage, planted confounds, modes of groups, and what a run keeps of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tillwatch.cli import main
from tillwatch.config import TrainConfig
from tillwatch.data.synthetic import write_video
from tillwatch.errors import ConfigError, DataError
from tillwatch.evaluation.audit_report import AuditReport
from tillwatch.training.auditing import audit_folder
from tillwatch.training.cross_validation import Folds, cross_validate
from tillwatch.training.loop import train


def film(seed: int, num_frames: int = 12, brightness: int = 80) -> Any:
    """Boxes that jitter before a background of their own: no two seeds look or move alike."""
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 60, (6, 8, 3)).repeat(8, 0).repeat(8, 1) + brightness
    frames = np.repeat(background[None], num_frames, 0)
    for frame in frames:
        for _ in range(3):
            y, x = rng.integers(0, 38), rng.integers(0, 54)
            frame[y : y + 10, x : x + 10] = rng.integers(0, 255)
    return np.clip(frames, 0, 255).astype(np.uint8)


def kinds_of(report: AuditReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in report.findings:
        found.setdefault(finding.kind, []).extend(finding.clips or (finding.text.split()[0],))
    return found


def test_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    for place, label in enumerate(("normal", "theft")):
        (tmp_path / label).mkdir()
        for number in range(5):
            write_video(film(10 * place + number, 24), tmp_path / label / f"{number}.mp4", fps=10)
    write_video(np.full((24, 48, 64, 3), 4, np.uint8), tmp_path / "theft" / "black.mp4", fps=10)
    write_video(
        np.concatenate([film(90, 4), film(90, 5)[-1:].repeat(20, 0)]), tmp_path / "theft" / "frozen.mp4", fps=10
    )
    write_video(film(91, 4), tmp_path / "theft" / "short.mp4", fps=10)
    (tmp_path / "theft" / "unreadable.mp4").write_bytes(b"no video at all")
    write_video(film(92, 60), tmp_path / "long.mp4", fps=10, g="5")
    whole = (tmp_path / "long.mp4").read_bytes()
    (tmp_path / "normal" / "truncated.mp4").write_bytes(broken(whole))
    (tmp_path / "long.mp4").unlink()
    shutil.copy(tmp_path / "normal" / "0.mp4", tmp_path / "theft" / "again.mp4")
    found = kinds_of(audit_folder(tmp_path, TrainConfig(), num_frames=8).report)
    assert found["black"] == ["theft/black.mp4"]
    assert found["frozen"] == ["theft/frozen.mp4"]
    assert found["damaged"] == ["theft/unreadable.mp4", "normal/truncated.mp4"]
    assert set(found["short"]) == {"theft/short.mp4"}
    assert found["exact copy"] == ["normal/0.mp4", "theft/again.mp4"]
    assert "near-duplicate" not in found


def broken(video: bytes) -> bytes:
    """Zeroes the second half of an .mp4's pictures: its index is whole, but the decoder stops."""
    start = video.index(b"mdat") + 4
    middle = start + (len(video) - start) // 3
    end = video.index(b"moov") - 4
    return video[:middle] + b"\0" * (end - middle) + video[end:]


def two_classes(root: Path, brighter: int = 0, rates: tuple[int, int] = (10, 10)) -> Path:
    """Twelve clips of each class, each before a background of its own."""
    for place, label in enumerate(("normal", "theft")):
        (root / label).mkdir(parents=True)
        for number in range(12):
            frames = film(100 * place + number, brightness=80 + brighter * (label == "normal"))
            write_video(frames, root / label / f"{number}.mp4", fps=rates[place])
    return root


def flagged(root: Path) -> set[str]:
    return {cue.cue for cue in audit_folder(root, TrainConfig(), num_frames=8).report.cues if cue.flagged}


def test_planted_confounds_are_flagged_and_shuffled_ones_are_not(tmp_path: Path) -> None:
    assert "frame rate" in flagged(two_classes(tmp_path / "rates", rates=(10, 15)))
    assert "brightness" in flagged(two_classes(tmp_path / "bright", brighter=60))
    assert not flagged(two_classes(tmp_path / "plain"))
    for label in ("normal", "theft"):  # half of each class at another rate
        for number in range(0, 12, 2):
            write_video(film(500 + number), tmp_path / "plain" / label / f"{number}.mp4", fps=15)
    assert not flagged(tmp_path / "plain")


def test_a_run_keeps_the_audit_and_the_claim_stands_with_the_figures(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig], quiet: Any
) -> None:
    root, log = two_classes(tmp_path / "data"), quiet()
    shutil.copy(root / "normal" / "0.mp4", root / "normal" / "again.mp4")
    train(root, tmp_path / "run", tiny_config(), log)
    record = json.loads((tmp_path / "run" / "audit.json").read_text())
    assert {"clips", "classes", "groups", "claim", "findings", "cues", "tables"} <= set(record)
    assert record["clips"] == 25
    assert record["groups"]["source"].startswith("inferred from")
    assert {"kind", "severity", "text", "clips"} == set(record["findings"][0])
    claim = json.loads((tmp_path / "run" / "evaluation.json").read_text())["claim"]
    assert claim == record["claim"]
    said = log.console.export_text()
    assert claim["can"] in said
    assert "nobody named them" in said
    lines = [line.split(",") for line in (tmp_path / "run" / "clips.csv").read_text().splitlines()[1:]]
    group = {line[0]: line[2] for line in lines}
    assert group["normal/0.mp4"] == group["normal/again.mp4"]


def test_cross_validation_writes_audit_and_claim(
    tiny_run: tuple[Path, Path], tiny_config: Callable[..., TrainConfig], quiet: Any, tmp_path: Path
) -> None:
    cross_validate(tiny_run[0], tmp_path / "cv", tiny_config(group_pattern=r"day\d"), Folds(folds=2), quiet())
    record = json.loads((tmp_path / "cv" / "audit.json").read_text())
    assert record["claim"]["kind"] == "other groups"
    assert record["groups"]["source"] == "--group-pattern"
    assert json.loads((tmp_path / "cv" / "evaluation.json").read_text())["claim"] == record["claim"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": "pattern"}, ConfigError, "--groups pattern needs --group-pattern"),
        ({"groups": "file"}, DataError, "names no group"),
        ({"groups": "none", "group_pattern": "a"}, ConfigError, "exclude each other"),
    ],
)
def test_groups_that_are_nowhere_are_refused(
    frame_root: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        audit_folder(frame_root, TrainConfig(**options))


def test_modes_of_groups(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "data")
    rows = [f"{label}/{number}.mp4,{label},day{number % 4}" for label in ("normal", "theft") for number in range(12)]
    (root / "clips.csv").write_text("\n".join(["path,label,group", *rows]) + "\n")
    for mode, source, count in (("auto", "clips.csv", 4), ("file", "clips.csv", 4), ("none", "none", 24)):
        groups = audit_folder(root, TrainConfig(groups=mode), num_frames=8).report.groups  # type: ignore[arg-type]
        assert (groups["source"], groups["count"]) == (source, count)
    by_name = audit_folder(root, TrainConfig(groups="pattern", group_pattern=r"\d"), num_frames=8).report.groups
    assert (by_name["source"], by_name["count"]) == ("--group-pattern", 10)


def test_the_command_prints_json_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = two_classes(tmp_path / "data", brighter=60)
    with pytest.raises(SystemExit) as exited:
        main(["audit", str(root), "--json", "--html", str(tmp_path / "audit.html")])
    assert exited.value.code == 0
    record = json.loads(capsys.readouterr().out)
    assert record["findings"][0]["kind"] == "confound"
    page = (tmp_path / "audit.html").read_text()
    assert "brightness alone tells the classes apart" in page
    assert "http" not in page
    with pytest.raises(SystemExit) as exited:
        main(["audit", str(root), "--html", str(tmp_path / "nowhere" / "a.html")])
    assert exited.value.code == 2
    assert "--html" in capsys.readouterr().err
    (root / "clips.csv").write_text("path,label,group\n")
    for place, flag in (("audit", "--html"), ("report", "--out")):
        with pytest.raises(SystemExit) as exited:
            main([place, str(root), flag, str(root / "clips.csv")])
        assert exited.value.code == 2
        assert f"{flag} {root / 'clips.csv'} is a file that is no page, and would be lost" in capsys.readouterr().err
    assert (root / "clips.csv").read_text() == "path,label,group\n"


def test_cues_that_were_not_measured_are_told_to_be(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "data", brighter=60)
    config = TrainConfig(group_pattern="(.).*")
    names = sorted(path.name for path in (root / "theft").iterdir())
    for number, name in enumerate(names):
        (root / "theft" / name).rename(root / "theft" / f"t{number}.mp4")
    (finding,) = (one for one in audit_folder(root, config).report.findings if one.kind == "confound")
    assert finding.severity == "note"
    assert finding.text.endswith("was not measured: all clips of theft are of one group.")

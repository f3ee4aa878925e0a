"""The demo's steps, on a network and a set of cameras small enough for a test."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tillwatch import demo
from tillwatch.config import TrainConfig
from tillwatch.errors import RunError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CAMERAS", {"train": 2, "validation": 1, "test": 2})
    monkeypatch.setattr(demo, "CLIPS_PER_CAMERA", 2)
    monkeypatch.setattr(demo, "DEMO_SETTINGS", {"arch": "tinynet", "epochs": 1, "batch_size": 2, "workers": 0})
    monkeypatch.setattr("os.cpu_count", lambda: 1)


@pytest.mark.usefixtures("small")
def test_demo_tests_on_cameras_that_it_did_not_train_on(tmp_path: Path, quiet: Any) -> None:
    log = quiet()
    evaluation = demo.run_demo(tmp_path / "demo", seed=3, log=log)
    assert [clip.group for clip in evaluation.scores.clips] == ["camera03", "camera04"] * 2
    with (tmp_path / "demo" / "run" / "clips.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sides = {row["group"]: row["split"] for row in rows}
    assert sides == dict(
        zip(
            [f"camera{n:02d}" for n in range(5)],
            ["train", "train", "validation", "test", "test"],
            strict=True,
        )
    )
    printed = log.console.export_text()
    assert "predicted " in printed
    assert "tillwatch train my_frames --out my_run" in printed
    record = json.loads((tmp_path / "demo" / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert f"held-out accuracy {record['accuracy']:.3f}" in printed
    assert not (tmp_path / "demo" / "videos" / "unseen.mp4").exists(), "the last video is in no class folder"


@pytest.mark.usefixtures("small")
def test_demo_overwrites_a_demo_and_nothing_else(tmp_path: Path, quiet: Any) -> None:
    out = tmp_path / "demo"
    demo.run_demo(out, log=quiet())
    with pytest.raises(RunError, match="exists already"):
        demo.run_demo(out, log=quiet())
    demo.run_demo(out, overwrite=True, log=quiet())
    other = tmp_path / "mine"
    (other / "videos").mkdir(parents=True)
    with pytest.raises(RunError, match="does not touch it"):
        demo.run_demo(other, overwrite=True, log=quiet())
    assert (other / "videos").is_dir()


@pytest.mark.usefixtures("small")
def test_demo_videos_are_new_with_each_seed_and_the_same_for_one(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        demo.render_videos(tmp_path / name, seed)
    first, again, other = (
        [path.read_bytes() for path in sorted((tmp_path / name / "videos").glob("*/*.mp4"))] for name in "abc"
    )
    assert first == again
    assert not set(first) & set(other)


def test_demo_settings_are_settings_of_training() -> None:
    assert set(demo.DEMO_SETTINGS) <= set(TrainConfig.__dataclass_fields__)

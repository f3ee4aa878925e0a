"""--arch motion from end to end: a model like any other."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tillwatch.cli import main
from tillwatch.clip_spec import frame_indices
from tillwatch.config import TrainConfig, read_yaml
from tillwatch.data.frames import list_frames
from tillwatch.data.synthetic import write_video
from tillwatch.errors import ConfigError
from tillwatch.files import sha256_of
from tillwatch.models.motion import MotionNetwork, motion_features
from tillwatch.models.saved import load_model
from tillwatch.training import describe
from tillwatch.training.cross_validation import Folds, cross_validate
from tillwatch.training.loop import train

SMALL: dict[str, Any] = {"arch": "motion", "num_frames": 6, "resize": 48, "group_pattern": r"day\d", "workers": 1}


def film(label: str, seed: int) -> Any:
    """A patch that walks on (normal) or trembles (theft), on a background that tells nothing: uint8 (8, 48, 48, 3)."""
    rng = np.random.default_rng(seed)
    background = rng.integers(60, 100, (12, 12, 3)).repeat(4, 0).repeat(4, 1)
    patch = rng.integers(120, 250, (4, 4, 3)).repeat(4, 0).repeat(4, 1)
    frames = np.repeat(background[None], 8, 0).astype(np.uint8)
    top, left = rng.integers(2, 30), rng.integers(2, 8)
    for t in range(8):
        x = left + 3 * t if label == "normal" else left + 10 + 4 * (t % 2)
        frames[t, top : top + 16, x : x + 16] = patch
    return frames


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("motion") / "frames"
    for place, label in enumerate(("normal", "theft")):
        for number in range(16):
            folder = root / label / f"day{number % 8}_{number}"
            folder.mkdir(parents=True)
            for t, frame in enumerate(film(label, 100 * place + number)):
                Image.fromarray(frame).save(folder / f"{t:03d}.png")
    return root


@pytest.fixture(scope="module")
def run(data: Path, quiet: Any) -> Path:
    out = data.parent / "run"
    train(data, out, TrainConfig(**SMALL), quiet())
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_has_the_files_of_any_run_and_model_skops(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        "audit.json",
        "baselines.csv",
        "baselines.json",
        "classification_report.txt",
        "clips.csv",
        "config.yaml",
        "evaluation.json",
        "metrics.csv",
        "model.json",
        "model.skops",
        "model_card.md",
        "predictions.csv",
        "report.html",
    }
    record = json.loads((run / "model.json").read_text())
    assert record["sha256"] == sha256_of(run / "model.skops")
    assert [step["step"] for step in record["steps"]] == ["decode", "resize", "center_crop", "scale"]
    assert (record["steps"][1]["height"], record["steps"][2]["height"]) == (48, 48)
    assert {"scikit-learn", "skops", "opencv-python-headless"} <= set(record["versions"])
    assert record["operating_point"]["source"] != "default, not chosen on data"
    (epoch,) = rows_of(run / "metrics.csv")
    assert (epoch["epoch"], epoch["lr"]) == ("1", "")
    assert json.loads((run / "evaluation.json").read_text())["accuracy"] == 1.0  # motion tells, no single frame does
    assert set(json.loads((run / "baselines.json").read_text())["baselines"]) == {"majority", "single frame"}


def test_a_clip_has_one_score_on_every_path(run: Path, data: Path, tmp_path: Path) -> None:
    model = load_model(run)
    for row in rows_of(run / "predictions.csv"):
        folder = data / row["path"]
        prediction = model.predict(folder)
        assert f"{prediction.probabilities['theft']:.6f}" == f"{float(row['p_theft']):.6f}"
        frames = np.stack([np.asarray(Image.open(path)) for path in list_frames(folder)])
        assert model.predict(frames).probabilities == prediction.probabilities
        assert isinstance(model.network, MotionNetwork)
        wanted = frames[frame_indices(len(frames), 6)]  # as the trees saw them in training
        by_hand = np.exp(model.network.log_probabilities(motion_features(wanted)[None]))[0]
        assert list(prediction.probabilities.values()) == pytest.approx(by_hand.tolist(), abs=1e-9)
    write_video(film("theft", 900), tmp_path / "film.mp4", fps=8)
    assert model.predict(tmp_path / "film.mp4").predicted == "theft"


def test_its_own_configuration_repeats_it_and_another_seed_does_not(run: Path, data: Path, quiet: Any) -> None:
    settings = {k: v for k, v in read_yaml(run / "config.yaml").items() if k not in ("data", "out")}
    settings |= {name: tuple(settings[name]) for name in ("classes", "event")}
    for name, options in (("again", {}), ("other", {"seed": 1, "split_file": run / "clips.csv"})):
        train(data, data.parent / name, TrainConfig(**{**settings, **options}), quiet())
    hashes = [sha256_of(data.parent / name / "model.skops") for name in ("run", "again", "other")]
    assert hashes[0] == hashes[1] != hashes[2]
    assert settings["weights"] == "none"


def test_weights_are_never_fetched_and_contradictions_are_refused(
    data: Path, tmp_path: Path, quiet: Any, monkeypatch: Any
) -> None:
    def fetch(*_: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("tillwatch.training.prepare.fetch_kinetics", fetch)
    for options in (
        {"weights": "some.pth"},
        {"freeze": "backbone"},
        {"compile": True},
        {"early_share": 0.5},
        {"precision": "bf16"},
        {"device": "cuda"},
        {"save_as": "weights.pth"},
        {"crop": 40},
    ):
        with pytest.raises(ConfigError, match="--arch motion"):
            train(data, tmp_path / "run", TrainConfig(**{**SMALL, **options}))
    with pytest.raises(ConfigError, match="at least 3 frames"):
        train(data, tmp_path / "run", TrainConfig(**{**SMALL, "num_frames": 2}))
    assert not (tmp_path / "run").exists()
    train(data, tmp_path / "run", TrainConfig(**SMALL, baselines=False), quiet())


def test_a_changed_or_malicious_model_is_refused_in_one_line(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    weights = tmp_path / "run" / "model.skops"

    def refused() -> str:
        with pytest.raises(SystemExit) as end:
            main(["predict", str(tmp_path / "run"), str(data / "theft" / "day0_0")])
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    assert "is not the file that model.json describes" in refused()
    import skops.io

    weights.write_bytes(skops.io.dumps({"a": json.dumps}))
    record = json.loads((tmp_path / "run" / "model.json").read_text())
    (tmp_path / "run" / "model.json").write_text(json.dumps({**record, "sha256": sha256_of(weights)}))
    assert "is refused: it names" in refused()
    weights.unlink()
    assert "holds no model.skops" in refused()


def test_features_are_computed_once_and_folds_pool_every_clip(data: Path, quiet: Any, monkeypatch: Any) -> None:
    computed: list[int] = []
    original = describe._describe
    store = data.parent / "store"

    def counted(dataset: Any, index: int, describer: Any, derived: str) -> Any:
        def counting(frames: Any) -> Any:
            computed.append(index)
            return describer(frames)

        return original(dataset, index, counting, derived)

    monkeypatch.setattr(describe, "_describe", counted)
    config = TrainConfig(**SMALL, cache_folder=store, baselines=False)
    result = cross_validate(data, data.parent / "folds", config, Folds(folds=4, final=True), quiet())
    assert len(computed) == 32
    assert result.pooled[0].accuracy == 1.0
    assert (data.parent / "folds" / "final" / "model.skops").is_file()


def test_a_network_that_motion_beats_is_not_worth_its_cost(data: Path, tiny_config: Any, quiet: Any) -> None:
    log, out = quiet(), data.parent / "network"
    train(data, out, tiny_config(group_pattern=r"day\d", lr=1e-6, baselines=True), log)
    record = json.loads((out / "baselines.json").read_text())
    assert record["baselines"]["motion"]["accuracy"] == 1.0
    assert "does not beat motion (1.000" in record["notes"][0]
    assert "\n       motion     1.000" in log.console.export_text()


def test_unreadable_clips_are_left_out_and_named(data: Path, tmp_path: Path, quiet: Any) -> None:
    shutil.copytree(data, tmp_path / "frames")
    config = TrainConfig(**SMALL, split_file=None)
    whole = tmp_path / "whole"
    train(tmp_path / "frames", whole, config, quiet())
    lost = next(row["path"] for row in rows_of(whole / "clips.csv") if row["split"] == "train")
    broken = sorted((tmp_path / "frames" / lost).iterdir())[-1]
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    log = quiet()
    train(tmp_path / "frames", tmp_path / "run", TrainConfig(**SMALL, cache=False), log)
    assert f"{lost} was left out" in log.console.export_text()
    assert [r["status"][:7] for r in rows_of(tmp_path / "run" / "clips.csv") if r["path"] == lost] == ["skipped"]

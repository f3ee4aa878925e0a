"""A frozen backbone: the head learns from kept features, and the run folder is the same as any other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tillwatch.config import TrainConfig
from tillwatch.errors import ConfigError, DataError
from tillwatch.files import read_csv
from tillwatch.models.backbones import build_model, head_of
from tillwatch.models.saved import load_model
from tillwatch.training.loop import train
from tillwatch.training.prepare import prepare
from tillwatch.training.probe import Backbone, FeatureDataset, Head, head_on_features

Config = Callable[..., TrainConfig]


@pytest.fixture
def frozen(tmp_path: Path, tiny_config: Config) -> Callable[..., TrainConfig]:
    """Returns a function that makes a configuration with a frozen backbone and a store of its own."""

    def make(**options: Any) -> TrainConfig:
        return tiny_config(**{"freeze": "backbone", "cache_folder": tmp_path / "cache", "epochs": 3, **options})

    return make


def test_only_the_head_learns(
    tmp_path: Path, tiny_run: tuple[Path, Path], frozen: Config, tiny_config: Config, quiet: Any
) -> None:
    data, first = tiny_run
    run = tmp_path / "run"
    train(data, run, frozen(weights=str(first), group_pattern=r"day\d"), quiet())
    before = torch.load(first / "model.pth", weights_only=True)
    after = torch.load(run / "model.pth", weights_only=True)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"fc.1.weight", "fc.1.bias"}  # not even batch norm's statistics


def test_large_batches_of_the_head_are_no_batches_of_clips(
    tmp_path: Path, tiny_run: tuple[Path, Path], frozen: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = Backbone.__call__

    def counted(self: Backbone, clips: torch.Tensor) -> torch.Tensor:
        seen.append(len(clips))
        return forward(self, clips)

    monkeypatch.setattr(Backbone, "__call__", counted)
    train(tiny_run[0], tmp_path / "run", frozen(group_pattern=r"day\d", batch_size=64), quiet())
    assert max(seen) == 8


@pytest.mark.parametrize("where", ["data/cache", "data", "file"])
def test_a_cache_folder_that_cannot_be_one_is_refused(
    where: str,
    tmp_path: Path,
    tiny_run: tuple[Path, Path],
    tiny_config: Config,
    quiet: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = shutil.copytree(tiny_run[0], tmp_path / "data")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--cache-folder .* (lies inside the data folder|is a file)"):
        train(data, tmp_path / "run", tiny_config(cache_folder=tmp_path / where), quiet())
    if where == "data":
        monkeypatch.setenv("TILLWATCH_CACHE", str(data))
        with pytest.raises(ConfigError, match=r"the store's folder .*data/clips lies inside the data folder"):
            train(data, tmp_path / "run", tiny_config(cache_folder=None), quiet())
    assert not (tmp_path / "run").exists()


def test_the_run_folder_is_the_same_as_any_other(
    tmp_path: Path, tiny_run: tuple[Path, Path], frozen: Config, quiet: Any
) -> None:
    data, other = tiny_run
    run = tmp_path / "run"
    evaluation = train(data, run, frozen(group_pattern=r"day\d", epochs=30, baselines=True), quiet())
    names = {path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file()}
    assert {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} == names
    assert len(read_csv(run / "metrics.csv")) == 30
    assert evaluation.metrics.accuracy == 1.0  # bright against dark: random features tell
    for row in read_csv(run / "predictions.csv")[:3]:
        scores = load_model(run).predict(data / row["path"]).probabilities
        assert scores["theft"] == pytest.approx(float(row["p_theft"]), abs=1e-5)


@pytest.mark.parametrize(
    ("arch", "num_frames", "crop"), [("r2plus1d_18", 4, 32), ("s3d", 14, 224), ("swin3d_t", 4, 32), ("tinynet", 4, 24)]
)
def test_the_head_on_features_scores_as_the_live_network(arch: str, num_frames: int, crop: int) -> None:
    torch.manual_seed(0)
    network = build_model(arch, 3, weights=None).eval()
    head = head_of(network, arch)
    clips = torch.randn(2, 3, num_frames, crop, crop)
    features = Backbone(network, head, torch.device("cpu"))(clips)
    with torch.inference_mode():
        torch.testing.assert_close(Head(head).eval()(features), network(clips), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kept", [False, True])
def test_features_are_those_of_the_clips_as_they_are_scored(
    kept: bool, tmp_path: Path, tiny_run: tuple[Path, Path], frozen: Config, quiet: Any
) -> None:
    """Of the centre crop and not mirrored: whatever augmentation would do shows here, read from the store or not."""
    config = frozen(weights="none", group_pattern=r"day\d", resize=40, crop=24)
    train(tiny_run[0], tmp_path / "run", config, quiet())
    model = load_model(tmp_path / "run")
    if not kept:
        config = replace(config, cache=False, cache_folder=None)
    job = prepare(tiny_run[0], config, quiet())
    head, feed, _ = head_on_features(model.network, job, config, quiet())
    features = feed.training.dataset
    assert isinstance(features, FeatureDataset)
    with torch.inference_mode():
        scores = head.eval()(features.features).softmax(1)
    clips = job.side("train")
    assert len(clips) == len(features)
    for clip, row in zip(clips, scores.tolist(), strict=True):
        live = list(model.predict(clip.path).probabilities.values())
        assert row == pytest.approx(live, abs=1e-5), clip.name


def test_features_are_computed_once(
    tmp_path: Path, tiny_run: tuple[Path, Path], frozen: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, first = tiny_run
    options = {"weights": str(first), "group_pattern": r"day\d"}
    train(data, tmp_path / "one", frozen(**options), quiet())
    computed: list[int] = []
    original = Backbone.__call__

    def count(self: Backbone, clips: torch.Tensor) -> torch.Tensor:
        computed.append(len(clips))
        return original(self, clips)

    monkeypatch.setattr(Backbone, "__call__", count)
    train(data, tmp_path / "two", frozen(**options), quiet())
    assert computed == []
    one, two = (torch.load(tmp_path / name / "model.pth", weights_only=True) for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    train(data, tmp_path / "three", frozen(**options, crop=20), quiet())  # other pixels, other features
    rows = read_csv(tmp_path / "one" / "clips.csv")
    assert sum(computed) == sum(row["split"] in ("train", "validation") for row in rows)
    computed.clear()
    train(data, tmp_path / "four", frozen(weights="none", group_pattern=r"day\d"), quiet())  # other weights
    assert sum(computed) == sum(row["split"] in ("train", "validation") for row in rows)


def test_without_a_store_features_are_computed_each_time(
    tmp_path: Path, tiny_run: tuple[Path, Path], frozen: Config, quiet: Any
) -> None:
    data, first = tiny_run
    runs = [tmp_path / "kept", tmp_path / "not kept"]
    options = {"weights": str(first), "group_pattern": r"day\d"}
    train(data, runs[0], frozen(**options), quiet())
    train(data, runs[1], frozen(**options, cache=False, cache_folder=None), quiet())
    kept, other = (torch.load(run / "model.pth", weights_only=True) for run in runs)
    assert all(torch.equal(kept[key], other[key]) for key in kept)


def test_a_clip_deleted_midway_is_named(
    tmp_path: Path, frame_root: Path, frozen: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = Backbone.digest

    def lose_one(self: Backbone) -> str:
        shutil.rmtree(frame_root / "theft/clip0", ignore_errors=True)
        return digest(self)

    monkeypatch.setattr(Backbone, "digest", lose_one)
    train(frame_root, tmp_path / "run", frozen(seed=1), quiet())
    status = {row["path"]: row["status"] for row in read_csv(tmp_path / "run/clips.csv")}
    assert [name for name, text in status.items() if text.startswith("skipped")] == ["theft/clip0"]


def test_no_clip_left(
    tmp_path: Path, frame_root: Path, frozen: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = Backbone.digest

    def lose_all(self: Backbone) -> str:
        for folder in frame_root.glob("*/*"):
            shutil.rmtree(folder)
        return digest(self)

    monkeypatch.setattr(Backbone, "digest", lose_all)
    with pytest.raises(DataError, match="not one train clip could be read"):
        train(frame_root, tmp_path / "run", frozen(), quiet())


def test_early_epochs_and_a_frozen_backbone_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="drop --early-share"):
        TrainConfig(freeze="backbone", early_share=0.5)

"""Training: the run folder, repeatability, recipes, early stopping, damage on the way."""

from __future__ import annotations

import csv
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning_fabric import Fabric
from torch import nn

from tillwatch.config import RECIPES, TrainConfig
from tillwatch.errors import ConfigError, DataError, RunError
from tillwatch.evaluation.exposure import TRAINED_ON_NOTE
from tillwatch.files import sha256_of
from tillwatch.models.backbones import build_model
from tillwatch.models.saved import load_model
from tillwatch.training import feed, loop
from tillwatch.training.devices import Devices, fresh_statistics
from tillwatch.training.loop import train
from tillwatch.training.pausing import Pausing
from tillwatch.training.prepare import Job
from tillwatch.training.probe import FeatureBatch
from tillwatch.training.state import Progress

Config = Callable[..., TrainConfig]

RUN_FILES = {
    "audit.json",
    "baselines.csv",
    "baselines.json",
    "checkpoints/best.pth",
    "classification_report.txt",
    "clips.csv",
    "config.yaml",
    "evaluation.json",
    "metrics.csv",
    "model.json",
    "model.pth",
    "model_card.md",
    "predictions.csv",
    "report.html",
}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def files_in(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}


def test_run_folder_holds_exactly_its_files(tiny_run: tuple[Path, Path]) -> None:
    assert files_in(tiny_run[1]) == RUN_FILES


def test_every_clip_is_accounted_for_and_no_group_is_on_two_sides(tiny_run: tuple[Path, Path]) -> None:
    data, run = tiny_run
    rows = rows_of(run / "clips.csv")
    assert {row["path"] for row in rows} == {f"{p.parent.name}/{p.name}" for p in data.glob("*/*")}
    assert list(rows[0]) == ["path", "label", "group", "camera", "split", "frames", "fps", "seconds", "bytes", "status"]
    sides = defaultdict(set)
    for row in rows:
        assert row["group"] == Path(row["path"]).name[:4]
        sides[row["group"]].add(row["split"])
    assert all(len(split) == 1 for split in sides.values())
    assert {row["split"] for row in rows} == {"train", "validation", "test"}


def test_metrics_csv_has_one_line_an_epoch(tiny_run: tuple[Path, Path]) -> None:
    rows = rows_of(tiny_run[1] / "metrics.csv")
    assert list(rows[0]) == (
        ["epoch", "train_loss", "val_loss", "val_balanced_accuracy", "lr", "seconds", "clips_per_s", "data_wait_s"]
    )
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert 0 < float(row["train_loss"]) < 10
        assert 0 < float(row["data_wait_s"]) < float(row["seconds"])
        assert float(row["lr"]) == 1e-2


def test_predictions_cover_validation_and_test(tiny_run: tuple[Path, Path]) -> None:
    run = tiny_run[1]
    rows = rows_of(run / "predictions.csv")
    assert list(rows[0]) == ["path", "label", "group", "split", "predicted", "p_normal", "p_theft"]
    held_out = {row["path"] for row in rows_of(run / "clips.csv") if row["split"] in ("validation", "test")}
    assert {row["path"] for row in rows} == held_out
    for row in rows:
        scores = {"normal": float(row["p_normal"]), "theft": float(row["p_theft"])}
        assert sum(scores.values()) == pytest.approx(1, abs=1e-6)
        assert row["predicted"] == max(scores, key=lambda name: scores[name])


def test_kept_weights_are_those_of_the_best_epoch(tiny_run: tuple[Path, Path]) -> None:
    run = tiny_run[1]
    kept = torch.load(run / "model.pth", weights_only=True)
    best = torch.load(run / "checkpoints" / "best.pth", weights_only=True)
    assert kept.keys() == best.keys()
    assert all(torch.equal(kept[key], best[key]) for key in kept)


def test_weights_of_an_earlier_epoch_are_kept_if_it_was_the_best(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 0.4, 0.9])
    seen: list[torch.Tensor] = []

    def validate(network: nn.Module, *args: Any) -> Any:
        seen.append(network.state_dict()["fc.1.weight"].clone())
        return loop._Validated(next(losses), 0.5)

    monkeypatch.setattr(loop, "validate", validate)
    train(frame_root, tmp_path / "run", tiny_config(epochs=3), quiet())
    kept = torch.load(tmp_path / "run" / "model.pth", weights_only=True)["fc.1.weight"]
    assert torch.equal(kept, seen[1])
    assert not torch.equal(kept, seen[2])


def test_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_does_not(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any
) -> None:
    for name, seed, workers in (("a", 3, 0), ("b", 3, 0), ("workers", 3, 2), ("other", 4, 0)):
        torch.rand(3 + workers)  # whatever the global generator has been through must not matter
        train(frame_root, tmp_path / name, tiny_config(seed=seed, workers=workers), quiet())
    hashes = {name: sha256_of(tmp_path / name / "model.pth") for name in ("a", "b", "workers", "other")}
    assert hashes["a"] == hashes["b"] == hashes["workers"]
    assert hashes["other"] != hashes["a"]


def test_training_leaves_the_global_generator_alone(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any
) -> None:
    before = torch.get_rng_state()
    train(frame_root, tmp_path / "run", tiny_config(), quiet())
    assert torch.equal(torch.get_rng_state(), before)


def test_config_yaml_repeats_the_run(tmp_path: Path, tiny_run: tuple[Path, Path], quiet: Any) -> None:
    data, run = tiny_run
    values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert values.pop("data") == str(data.resolve())
    values.pop("out")
    values["classes"], values["event"] = tuple(values["classes"]), tuple(values["event"])
    train(data, tmp_path / "again", TrainConfig(**values), quiet())
    assert sha256_of(tmp_path / "again" / "model.pth") == sha256_of(run / "model.pth")
    assert rows_of(tmp_path / "again" / "clips.csv") == rows_of(run / "clips.csv")


def test_recipe_original_trains_on_all_clips_and_says_what_that_is_worth(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any
) -> None:
    recipe = {k: v for k, v in RECIPES["original"].items() if k not in ("num_frames", "resize", "crop", "arch")}
    log = quiet()
    evaluation = train(frame_root, tmp_path / "run", tiny_config(recipe="original", epochs=2, **recipe), log)
    run = tmp_path / "run"
    assert {row["split"] for row in rows_of(run / "clips.csv")} == {"train"}
    assert all(row["val_loss"] == "" for row in rows_of(run / "metrics.csv"))
    assert evaluation.split == "train"
    assert len(evaluation.scores.clips) == len({clip.name for clip in evaluation.scores.clips}) == 16
    assert (run / "classification_report.txt").read_text(encoding="utf-8").startswith(TRAINED_ON_NOTE)
    card = (run / "model_card.md").read_text(encoding="utf-8")
    assert "model-index" not in card, "no figure of clips learnt from for machines to read"
    assert "No figure stands here" in card
    record = json.loads((run / "model.json").read_text(encoding="utf-8"))
    assert [step["step"] for step in record["steps"]] == ["decode", "resize", "center_crop", "scale"]
    assert record["step"]["every"] == 5
    assert (run / "improved_cashlifting_model_01.pth").read_bytes() == (run / "model.pth").read_bytes()
    last = torch.load(run / "model.pth", weights_only=True)
    best = torch.load(run / "checkpoints" / "best.pth", weights_only=True)
    losses = [float(row["train_loss"]) for row in rows_of(run / "metrics.csv")]
    same = all(torch.equal(last[key], best[key]) for key in last)
    assert same == (losses[-1] == min(losses)), "the last epoch's weights are kept, best or not"


def test_plateau_lowers_the_learning_rate_and_patience_stops(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9])
    monkeypatch.setattr(loop, "validate", lambda *args: loop._Validated(next(losses), 0.5))
    train(frame_root, tmp_path / "run", tiny_config(epochs=8, lr_patience=1, patience=3), quiet())
    rows = rows_of(tmp_path / "run" / "metrics.csv")
    # Best at epoch 2; worse at 3 and 4 lowers the rate from epoch 5 on; the third worse epoch ends it.
    assert [float(row["lr"]) for row in rows] == pytest.approx([1e-2, 1e-2, 1e-2, 1e-2, 1e-3])


def test_patience_counts_at_full_size(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 1.1, 1.2, 1.3, 0.9, 1.0, 1.1, 1.2])
    monkeypatch.setattr(loop, "validate", lambda *args: loop._Validated(next(losses), 0.5))
    settings = {"epochs": 8, "early_share": 0.5, "patience": 2}
    train(frame_root, tmp_path / "run", tiny_config(**settings), quiet())
    # Three worse epochs of small clips end nothing; of full size the first is best, and the third ends it.
    assert len(rows_of(tmp_path / "run" / "metrics.csv")) == 7


def test_validation_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "validate", lambda *args: loop._Validated(float("nan"), 0.5))
    with pytest.raises(RunError, match="validation loss became nan in epoch 1"):
        train(frame_root, tmp_path / "run", tiny_config(), quiet())


def test_training_learns_what_is_easy(tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any) -> None:
    # Bright against dark: a network, loss or label that is wired wrongly does not get there.
    evaluation = train(frame_root, tmp_path / "easy", tiny_config(epochs=8), quiet())
    losses = [float(row["train_loss"]) for row in rows_of(tmp_path / "easy" / "metrics.csv")]
    assert losses[-1] < 0.5 * losses[0]
    assert evaluation.metrics.accuracy == 1.0


def test_bf16_on_a_cpu_trains_folded_and_reports_in_fp32(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any
) -> None:
    train(frame_root, tmp_path / "run", tiny_config(epochs=8, precision="bf16"), quiet())
    losses = [float(row["train_loss"]) for row in rows_of(tmp_path / "run" / "metrics.csv")]
    assert losses[-1] < 0.5 * losses[0]
    state = torch.load(tmp_path / "run" / "model.pth", weights_only=True)
    assert {value.dtype for key, value in state.items() if "tracked" not in key} == {torch.float32}
    # The plain network, loaded from the file, gives the scores that the folded one wrote.
    loaded = load_model(tmp_path / "run")
    for row in rows_of(tmp_path / "run" / "predictions.csv"):
        assert loaded.predict(frame_root / row["path"]).probabilities["theft"] == pytest.approx(
            float(row["p_theft"]), abs=1e-5
        )


def test_clip_deleted_midway_is_named_and_left_out(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = feed.clip_feed
    removed = []

    def lose_one(job: Job, config: TrainConfig, *share: Any) -> Any:
        removed.append(job.side("train")[0].name)
        shutil.rmtree(job.side("train")[0].path)
        return original(job, config, *share)

    monkeypatch.setattr("tillwatch.training.loop.clip_feed", lose_one)
    log = quiet()
    train(frame_root, tmp_path / "run", tiny_config(epochs=2), log)
    status = {row["path"]: row["status"] for row in rows_of(tmp_path / "run" / "clips.csv")}
    assert status[removed[0]].startswith("skipped: ")
    assert f"{removed[0]} was left out" in log.console.export_text()


def test_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any
) -> None:
    with pytest.raises(RunError, match=r"the loss became (nan|inf) in epoch \d"):
        train(frame_root, tmp_path / "run", tiny_config(lr=1e30, epochs=3), quiet())


def test_split_file_is_reused_and_added_clips_move_no_others(
    tmp_path: Path, tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any
) -> None:
    data, run = tiny_run
    more = tmp_path / "more"
    shutil.copytree(data, more)
    shutil.copytree(more / "theft" / "day0_0", more / "theft" / "day9_0")
    config = tiny_config(seed=99, split_file=run / "clips.csv", group_pattern=r"day\d")
    train(more, tmp_path / "run", config, quiet())
    before = {row["path"]: row["split"] for row in rows_of(run / "clips.csv")}
    after = {row["path"]: row["split"] for row in rows_of(tmp_path / "run" / "clips.csv")}
    assert after.pop("theft/day9_0") in ("train", "validation", "test")
    assert after == before


def test_fine_tuning_starts_from_another_runs_weights(
    tmp_path: Path, tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any
) -> None:
    data, run = tiny_run
    config = tiny_config(weights=str(run), lr=1e-12, group_pattern=r"day\d")
    train(data, tmp_path / "tuned", config, quiet())
    start = torch.load(run / "model.pth", weights_only=True)
    tuned = torch.load(tmp_path / "tuned" / "model.pth", weights_only=True)
    # At this rate nothing but batch norm's statistics can move.
    learnt = [key for key in start if "running" not in key and "tracked" not in key]
    assert all(torch.allclose(start[key], tuned[key], atol=1e-6) for key in learnt)


def test_nothing_is_written_when_training_cannot_start(tmp_path: Path, frame_root: Path, tiny_config: Config) -> None:
    for config, error in (
        (tiny_config(weights=str(tmp_path / "absent.pth")), ConfigError),
        (tiny_config(arch="s3d", num_frames=4), ConfigError),
        (tiny_config(event=("theft", "normal")), ConfigError),
    ):
        with pytest.raises(error):
            train(frame_root, tmp_path / "run", config)
    with pytest.raises(DataError, match="does not exist"):
        train(tmp_path / "nowhere", tmp_path / "run", tiny_config())
    assert not (tmp_path / "run").exists()


def test_too_few_groups_of_a_class_are_refused(tmp_path: Path, make_frames: Any, tiny_config: Config) -> None:
    root = tmp_path / "data"
    for label, count in (("theft", 2), ("normal", 6)):
        for number in range(count):
            make_frames(root / label / f"{number}", num_frames=4, seed=10 * count + number)
    with pytest.raises(DataError, match=r"'theft'.*2 groups.*at least 3 groups"):
        train(root, tmp_path / "run", tiny_config())


def test_validate_weighs_each_clip_once_whatever_the_batches(tmp_path: Path) -> None:
    class Echo(nn.Module):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            return clips.flatten(1)

    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 0, 1])

    batches: Any = SimpleNamespace(
        validation=[FeatureBatch(logits[rows], labels[rows]) for rows in (slice(0, 2), slice(2, 3))],
        validation_inputs=lambda batch, device: batch.features,
    )
    network = Echo()
    pausing = Pausing(network, lambda: None)
    result = loop.validate(network, batches, Fabric(accelerator="cpu"), Devices(), Progress(), pausing)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    assert result.balanced_accuracy == pytest.approx((0.5 + 0.0) / 2)


def test_statistics_of_another_size_are_forgotten() -> None:
    norm = nn.BatchNorm3d(1)
    for _ in range(50):
        norm(torch.full((2, 1, 1, 2, 2), 100.0))
    with fresh_statistics(norm):
        for value in (1.0, 2.0, 6.0):
            norm(torch.full((2, 1, 1, 2, 2), value))
    assert norm.running_mean is not None
    assert norm.running_mean.item() == pytest.approx(3.0)
    assert norm.momentum == 0.1


@pytest.mark.parametrize(("early_share", "times"), [(0.0, 0), (0.5, 1), (1.0, 1)])
def test_statistics_are_taken_anew_once_when_clips_grow(
    early_share: float,
    times: int,
    frame_root: Path,
    tmp_path: Path,
    tiny_config: Config,
    quiet: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renewed = []
    fresh = fresh_statistics

    def counted(learner: nn.Module, *, forget: bool) -> Any:
        renewed.append(forget)
        return fresh(learner, forget=forget)

    monkeypatch.setattr(loop, "fresh_statistics", counted)
    train(frame_root, tmp_path / "run", tiny_config(epochs=2, early_share=early_share, crop=24), quiet())
    assert renewed == [True] * times


def test_early_epochs_see_fewer_frames_and_pixels(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, tuple[int, ...]]] = []

    def watched(*args: Any, **options: Any) -> nn.Module:
        network = build_model(*args, **options)
        network.register_forward_pre_hook(lambda net, inputs: seen.append((net.training, tuple(inputs[0].shape[2:]))))
        return network

    monkeypatch.setattr(loop, "build_model", watched)
    config = tiny_config(epochs=4, early_share=0.5, early_frames=0.75, early_pixels=0.5, crop=24)
    log = quiet()
    train(frame_root, tmp_path / "run", config, log)
    training = [shape for is_training, shape in seen if is_training]
    steps = len(training) // 4
    assert training == [(3, 16, 16)] * 2 * steps + [(4, 24, 24)] * 2 * steps
    validated = [shape for is_training, shape in seen if not is_training]
    early = validated.index((4, 24, 24))
    assert validated[:early] == [(3, 16, 16)] * early  # two validations
    assert validated[early:] == [(4, 24, 24)] * (early + 2)  # two more, the calibration, and the report
    assert "the first 2 epochs on 3 x 16 x 16" in log.console.export_text()


def test_auto_says_what_it_takes_and_why_and_config_yaml_keeps_it(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tillwatch.models.precision.bf16_speedup", lambda: 6.0)
    log = quiet()
    train(frame_root, tmp_path / "run", tiny_config(), log)
    assert "precision bf16: this CPU multiplies 6 times as fast in it" in log.console.export_text()
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["precision"] == "bf16"


def test_a_store_that_cannot_be_written_is_said_once_and_training_goes_on(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any
) -> None:
    (tmp_path / "file").write_text("in the way")
    log = quiet()
    train(frame_root, tmp_path / "run", tiny_config(epochs=2, cache_folder=tmp_path / "file" / "cache"), log)
    text = log.console.export_text()
    assert text.count("so they are decoded each time, which is slower") == 1
    assert (tmp_path / "run/model.pth").is_file()


def test_with_and_without_the_store_training_is_the_same(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any
) -> None:
    for name, options in (("kept", {"cache_folder": tmp_path / "cache"}), ("decoded", {"cache": False})):
        train(frame_root, tmp_path / name, tiny_config(epochs=2, **options), quiet())
    kept, decoded = (torch.load(tmp_path / name / "model.pth", weights_only=True) for name in ("kept", "decoded"))
    assert all(torch.equal(kept[key], decoded[key]) for key in kept)


@pytest.mark.slow
def test_a_compiled_network_learns_and_is_saved_under_its_own_names(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    train(frame_root, tmp_path / "run", tiny_config(epochs=8, compile=True), quiet())
    losses = [float(row["train_loss"]) for row in rows_of(tmp_path / "run" / "metrics.csv")]
    assert losses[-1] < 0.5 * losses[0]
    assert load_model(tmp_path / "run").predict(frame_root / "theft/clip0").predicted == "theft"

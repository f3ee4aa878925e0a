"""What fits in memory is found, and what does not is told with what would."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from training import memory_tasks
from training.broken_off import run_apart

from tillwatch.config import TrainConfig
from tillwatch.errors import ConfigError, RunError
from tillwatch.files import sha256_of
from tillwatch.models.backbones import BACKBONES, build_model
from tillwatch.training import memory
from tillwatch.training.loop import resume, train
from tillwatch.training.memory import Line, StepSize, estimate, free_bytes, measure
from tillwatch.training.resume import read_begun

Config = Callable[..., TrainConfig]
Measured = Callable[[Line | None, float], None]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Returns a function that says what a step takes and how much is free."""

    def say(line: Line | None, free: float) -> None:
        monkeypatch.setattr("tillwatch.training.fitting.measure", lambda arch, size: line)
        monkeypatch.setattr("tillwatch.training.fitting.free_bytes", lambda swap=False: free)

    return say


def settings_of(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return values


# What is free, and what a step takes


def test_what_is_free_is_the_least_of_machine_container_and_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   60 kB\nSwapFree:   30 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    assert (free_bytes(), free_bytes(swap=True)) == (60 * 1024, 90 * 1024)
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes() == 60 * 1024
    (tmp_path / "memory.max").write_text("50000\n")
    (tmp_path / "memory.current").write_text("40000\n")
    (tmp_path / "memory.stat").write_text("anon 30000\ninactive_file 8000\n")
    assert free_bytes() == 50000 - 40000 + 8000
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "absent")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes() is None


def test_a_line_says_how_many_fit() -> None:
    assert Line(100, 10).at(4) == 140
    assert Line(100, 10).most(139) == 3
    assert Line(100, 10).most(50) == 0
    assert Line(math.inf, math.inf).at(1) == math.inf


def test_the_estimate_is_what_is_kept_and_changes_nothing() -> None:
    state = torch.get_rng_state()
    size = StepSize(shape=(3, 4, 24, 24), device="cpu", precision="fp32")
    line = estimate("tinynet", size)
    network = build_model("tinynet", weights=None)
    assert line.fixed == 3 * 4 * sum(parameter.numel() for parameter in network.parameters())
    # By hand, in floats: the clip; the first convolution's output and what follows it; of 4 frames, then of 2.
    clip, first, second = 3 * 4 * 24 * 24, 8 * 4 * 10 * 10, 8 * 2 * 10 * 10
    assert 4 * (clip + 2 * first + second) <= line.per_clip <= 4 * (clip + 4 * first + 3 * second)
    state = torch.get_rng_state()
    half = estimate("tinynet", StepSize(shape=(3, 4, 24, 24), device="cpu", precision="bf16"))
    assert half.per_clip == pytest.approx(line.per_clip / 2, rel=0.05)
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_that_is_really_refused_is_noticed() -> None:
    assert run_apart(memory_tasks.refused_memory) == 0


@pytest.mark.slow
def test_a_steps_peak_is_measured_in_a_process_of_its_own() -> None:
    size = StepSize(shape=(3, 8, 56, 56), device="cpu", precision="fp32")
    line = measure("r2plus1d_18", size)
    least = estimate("r2plus1d_18", size)
    assert line is not None
    assert 0.8 * least.at(2) < line.at(2) < 4 * least.at(2)


# Settled before training


@pytest.mark.parametrize(
    ("options", "line", "free", "expected"),
    [
        ({}, Line(10, 1), 1e9, (4, 1)),  # an epoch would have fewer than 16 steps, but 4 clips it may be
        ({}, Line(10, 100), 10 + 350.0, (2, 1)),  # 0.8 of what is free
        ({"accumulate": 2}, Line(10, 1), 1e9, (4, 2)),
        ({"batch_size": 10, "accumulate": "auto"}, Line(10, 100), 1e9, (10, 1)),
        ({"batch_size": 10, "accumulate": "auto"}, Line(10, 100), 600.0, (10, 3)),
        ({"batch_size": 10, "accumulate": "auto"}, Line(10, 100), 140.0, (10, 10)),
    ],
)
def test_auto_finds_what_fits_and_config_yaml_keeps_it(
    options: dict[str, Any],
    line: Line,
    free: float,
    expected: tuple[int, int],
    frame_root: Path,
    tmp_path: Path,
    tiny_config: Config,
    quiet: Any,
    measured: Measured,
) -> None:
    measured(line, free)
    config = tiny_config(**{"batch_size": "auto", **options})
    train(frame_root, tmp_path / "run", config, quiet())
    settings = settings_of(tmp_path / "run")
    assert (settings["batch_size"], settings["accumulate"]) == expected


@pytest.mark.parametrize(
    ("options", "line", "message"),
    [
        (
            {"batch_size": 8},
            Line(10, 100),
            r"8 clips at once need 0.0 GB.*; 4 fit: say --accumulate 2, which",
        ),
        ({"batch_size": 8}, Line(600, 100), r"one clip needs 0.0 GB of memory; .* take fewer --num-frames, a smaller"),
        (
            {"batch_size": "auto"},
            Line(math.inf, math.inf),
            r"one clip needs more memory than there is; .* --crop, or",
        ),
        ({"batch_size": "auto"}, None, r"could not be measured \(it can be on GPUs and on Linux, .*; give a number"),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(
    options: dict[str, Any],
    line: Line | None,
    message: str,
    frame_root: Path,
    tmp_path: Path,
    tiny_config: Config,
    quiet: Any,
    measured: Measured,
) -> None:
    measured(line, 600.0)
    with pytest.raises(ConfigError, match=message):
        train(frame_root, tmp_path / "run", tiny_config(**options), quiet())
    assert not (tmp_path / "run").exists()


def test_what_is_far_from_the_limit_is_not_measured(
    frame_root: Path, tmp_path: Path, tiny_config: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tillwatch.training.fitting.measure", lambda arch, size: pytest.fail("it was"))
    train(frame_root, tmp_path / "run", tiny_config(), quiet())


def test_a_step_that_is_refused_memory_says_how_to_go_on_and_that_is_how(
    frame_root: Path, tmp_path: Path, tiny_config: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: Any = type(BACKBONES["tinynet"].builder(weights=None))
    original = kind.forward

    def refuse(self: nn.Module, clips: torch.Tensor) -> Any:
        if len(clips) > 1 and torch.is_grad_enabled() and clips.device.type != "meta":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return original(self, clips)

    monkeypatch.setattr(kind, "forward", refuse)
    run = tmp_path / "run"
    with pytest.raises(RunError) as refused:
        train(frame_root, run, tiny_config(), quiet())
    assert str(refused.value) == (
        "4 clips at once do not fit in the memory that this process may have; 1 does: say --accumulate 4, which learns "
        f"from the same 4 a step; go on with: tillwatch train --resume {run} --accumulate 4"
    )
    resume(run, replace(read_begun(run).config, accumulate=4), log=quiet())
    assert settings_of(run)["accumulate"] == 4
    assert (run / "model.pth").is_file()


def test_an_error_that_is_no_lack_of_memory_stays_itself(
    frame_root: Path, tmp_path: Path, tiny_config: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: nn.Module, clips: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(BACKBONES["tinynet"].builder(weights=None)), "forward", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        train(frame_root, tmp_path / "run", tiny_config(), quiet())


def test_activations_computed_again_give_the_same_weights(
    frame_root: Path, tmp_path: Path, tiny_config: Config, quiet: Any
) -> None:
    for name, again in (("kept", False), ("again", True)):
        config = tiny_config(epochs=2, checkpoint_activations=again, precision="fp32")
        train(frame_root, tmp_path / name, config, quiet())
    assert sha256_of(tmp_path / "again/model.pth") == sha256_of(tmp_path / "kept/model.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "auto", "accumulate": "auto"}, "--batch-size auto and --accumulate auto exclude each other"),
        ({"batch_size": "auto", "freeze": "backbone"}, "give --batch-size a number, and drop --accumulate"),
        ({"accumulate": 2.0}, "--accumulate is 2.0; it must be a whole number"),
        ({"batch_size": "4", "crop": "a"}, "--crop is 'a'; it must be a whole number. --batch-size is '4'; it must"),
        ({"num_frames": "auto"}, "--num-frames is 'auto'; it must be a whole number"),
        (
            {"epochs": None, "seed": True},
            "--epochs is None; it must be a whole number. --seed is True; it must be a whole",
        ),
        ({"batch_size": None}, "--batch-size is None; it must be a whole number"),
        ({"lr": "x", "prevalence": "y"}, "--lr is 'x'; it must be an int or a float. --prevalence is 'y'; it must be"),
        ({"dropout": None}, "--dropout is None; it must be an int or a float"),
        ({"lr": np.float64(0.1)}, r"--lr is np.float64\(0.1\); it must be an int or a float"),
        ({"accumulate": 0}, "--accumulate is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)

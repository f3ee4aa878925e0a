"""What is not finite is noticed in its step, named by layer, and never gets into the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tillwatch.config import TrainConfig
from tillwatch.errors import RunError
from tillwatch.models.saved import load_model
from tillwatch.training.guard import NonFiniteError, StepGuard
from tillwatch.training.loop import train

Config = Callable[..., TrainConfig]


class Overflowing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.inf


def chain(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), *middle, nn.Linear(4, 2))


def gradient_of(network: nn.Module, name: str) -> torch.Tensor:
    gradient = network.get_parameter(name).grad
    assert gradient is not None
    return gradient


def after_backward(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = network(inputs).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def test_finite_steps_pass_and_give_the_loss() -> None:
    network, inputs = chain(nn.ReLU()), torch.ones(2, 3)
    loss = after_backward(network, inputs)
    assert StepGuard(network, network).check([loss], lambda part: inputs, "step 1") == [loss.item()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_wrong_gradient_is_named(value: float) -> None:
    network, inputs = chain(nn.ReLU(), nn.Linear(4, 4)), torch.ones(2, 3)
    loss = after_backward(network, inputs)
    gradient_of(network, "2.weight")[1, 2] = value
    with pytest.raises(NonFiniteError, match=r"a gradient became (nan|inf) in step 7: 2\.weight is the first.*\(1 are"):
        StepGuard(network, network).check([loss], lambda part: inputs, "step 7")


def test_of_several_wrong_gradients_the_last_layers_is_named() -> None:
    network, inputs = chain(nn.Linear(4, 4)), torch.ones(2, 3)
    loss = after_backward(network, inputs)
    for layer in (0, 1):
        gradient_of(network, f"{layer}.weight").fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"1\.weight is the first on the way back \(2 are not finite\)"):
        StepGuard(network, network).check([loss], lambda part: inputs, "step 7")


def test_gradients_finite_one_by_one_but_too_large_together() -> None:
    network, inputs = chain(), torch.ones(2, 3)
    loss = after_backward(network, inputs)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e25)
    gradient_of(network, "1.bias").fill_(1e30)
    with pytest.raises(NonFiniteError, match=r"far too large, most of all that of 1\.bias \(norm "):
        StepGuard(network, network).check([loss], lambda part: inputs, "step 7")


def test_the_first_layer_with_a_wrong_output_is_named() -> None:
    network, inputs = chain(nn.ReLU(), Overflowing()), torch.ones(2, 3)
    loss = after_backward(network, inputs)
    with pytest.raises(NonFiniteError, match=r"the loss became nan in step 2: layer 2 is the first whose output"):
        StepGuard(network, network).check([loss * 0], lambda part: inputs, "step 2")


def test_wrong_weights_are_named() -> None:
    network, inputs = chain(nn.ReLU()), torch.ones(2, 3)
    with torch.no_grad():
        network.get_parameter("0.bias")[1] = float("nan")
    loss = after_backward(network, inputs)
    with pytest.raises(NonFiniteError, match=r"the weights 0\.bias are not finite"):
        StepGuard(network, network).check([loss], lambda part: inputs, "step 2")


def test_a_scaled_loss_may_overflow_now_and_then_but_not_for_ever() -> None:
    network, inputs = chain(), torch.ones(2, 3)
    guard = StepGuard(network, network, scaled=True)

    def step(wrong: bool) -> None:
        network.zero_grad()
        loss = after_backward(network, inputs)
        if wrong:
            gradient_of(network, "0.weight").fill_(float("inf"))
        guard.check([loss], lambda part: inputs, "step 9")

    for wrong in [True] * 20 + [False] + [True] * 20:
        step(wrong)
    with pytest.raises(NonFiniteError, match=r"0\.weight"):
        step(True)


def poison_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Puts NaN into one weight's gradient at one step of training, counted from 1."""
    original, calls = StepGuard.check, [0]

    def check(self: StepGuard, *args: Any) -> list[float]:
        calls[0] += 1
        if calls[0] == call:
            gradient_of(self.module, "stem.3.weight")[0, 0, 0] = float("nan")
        return original(self, *args)

    monkeypatch.setattr(StepGuard, "check", check)


def test_training_ends_in_that_step_with_its_last_good_weights(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_at(monkeypatch, 4)  # three steps an epoch: the first of the second
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"became nan in epoch 2, step 1: stem\.3\.weight .*are kept as .*model\.pth"):
        train(frame_root, run, tiny_config(epochs=3), quiet())
    model = torch.load(run / "model.pth", weights_only=True)
    best = torch.load(run / "checkpoints/best.pth", weights_only=True)
    assert all(torch.equal(model[key], best[key]) for key in best)
    assert all(torch.isfinite(value).all() for value in model.values())
    assert load_model(run).predict(frame_root / "theft/clip0").probabilities.keys() == {"normal", "theft"}
    assert len((run / "metrics.csv").read_text().splitlines()) == 2  # the first epoch alone was finished


def test_training_that_ends_in_its_first_epoch_leaves_no_model(
    tmp_path: Path, frame_root: Path, tiny_config: Config, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_at(monkeypatch, 1)
    with pytest.raises(RunError, match=r"epoch 1, step 1.*No epoch was finished, so there is no model"):
        train(frame_root, tmp_path / "run", tiny_config(epochs=3), quiet())
    assert not (tmp_path / "run/model.pth").exists()

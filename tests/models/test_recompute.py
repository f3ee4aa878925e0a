"""Activations computed again: the same gradients, statistics and random numbers, for less memory kept."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from tillwatch.models.backbones import BACKBONES, backbone, build_model
from tillwatch.models.folded import SpatialConv3d, TemporalConv3d, fold
from tillwatch.models.recompute import Recomputed, recompute_activations


class Small(nn.Module):
    """Blocks with everything that matters: folded convolutions, batch norm, dropout within a block."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(self.block(3), self.block(6))
        self.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 2))

    def block(self, channels: int) -> nn.Sequential:
        spatial, temporal = nn.Conv3d(channels, 6, (1, 3, 3)), nn.Conv3d(6, 6, (3, 1, 1), padding=(1, 0, 0))
        return nn.Sequential(spatial, nn.BatchNorm3d(6), nn.ReLU(), nn.Dropout3d(0.3), temporal, nn.BatchNorm3d(6))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.layers(clips).mean((2, 3, 4)))
        return out


def learn(network: nn.Module, shape: tuple[int, ...], steps: int = 2) -> tuple[dict[str, torch.Tensor], int]:
    """Returns gradients, buffers and the generator's state after some steps, and how many bytes were kept."""
    kept = 0

    def keep(value: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += value.nbytes
        return value

    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(steps):
            clips = torch.randn(shape)
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
                loss = network(clips).square().sum()
            loss.backward()
        found = {name: value.clone() for name, value in network.named_buffers()}
        found |= {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        return found | {"generator": torch.get_rng_state()}, kept


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_statistics_and_random_numbers_are_the_same(momentum: float | None, frozen: bool) -> None:
    torch.manual_seed(0)
    plain = fold(Small()).train()
    assert [type(layer) for layer in plain.modules() if isinstance(layer, nn.Conv3d)][:2] == [
        SpatialConv3d,
        TemporalConv3d,
    ]
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = momentum  # None takes plain means, as training does when clips have grown
            module.train(not frozen)
    again = copy.deepcopy(plain)
    assert recompute_activations(again) == ["layers.0", "layers.1", "fc"]
    expected, kept = learn(plain, (2, 3, 4, 8, 8))
    found, kept_again = learn(again, (2, 3, 4, 8, 8))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert kept_again < kept / 2
    assert again.state_dict().keys() == plain.state_dict().keys()


def test_without_gradients_nothing_is_done_twice() -> None:
    network, calls = Small().eval(), []
    recompute_activations(network)
    network.layers[0].register_forward_hook(lambda *args: calls.append(1))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 4, 8, 8))
    assert calls == [1]


def test_twice_is_once_and_copies_are_their_own() -> None:
    network = Small()
    recompute_activations(network)
    kind = type(network.layers[0])
    recompute_activations(network)
    assert type(network.layers[0]) is kind
    another = copy.deepcopy(network)
    learn(another, (2, 3, 4, 8, 8))
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("arch", [name for name in BACKBONES if name != "tinynet"])
def test_every_network_has_blocks(arch: str) -> None:
    with torch.device("meta"):
        network = backbone(arch).builder(weights=None)
    names = recompute_activations(network)
    blocks = [network.get_submodule(name) for name in names]
    assert len(blocks) >= 9
    assert all(isinstance(block, Recomputed) for block in blocks)
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    assert len(inside) > 0.9 * len(list(network.parameters())), "what is outside keeps its activations"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "shape"),
    [("r2plus1d_18", (2, 3, 4, 32, 32)), ("mvit_v2_s", (1, 3, 16, 224, 224)), ("swin3d_t", (1, 3, 4, 64, 64))],
)
def test_torchvisions_networks_learn_the_same(
    arch: str, shape: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    if arch == "mvit_v2_s":  # several threads add up its relative positions' gradients in no fixed order
        request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
        torch.set_num_threads(1)
    torch.manual_seed(0)
    plain = fold(build_model(arch, weights=None)).train()
    again = copy.deepcopy(plain)
    recompute_activations(again)
    expected, _ = learn(plain, shape, steps=1)
    found, _ = learn(again, shape, steps=1)
    assert all(torch.equal(found[name], expected[name]) for name in expected)

"""Folded convolutions give what the plain ones give, with the very same parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tillwatch.models.backbones import BACKBONES, build_model
from tillwatch.models.folded import SpatialConv3d, TemporalConv3d, fold

KERNELS = [
    # kernel, stride, padding, dilation, groups
    ((1, 7, 7), (1, 2, 2), (0, 3, 3), 1, 1),
    ((1, 3, 3), (1, 1, 1), (0, 1, 1), (1, 2, 2), 2),
    ((1, 3, 3), (1, 1, 1), (0, 1, 1), 1, 1),
    ((1, 3, 3), (1, 2, 1), (0, 0, 2), (1, 2, 1), 1),
    ((1, 2, 5), (2, 3, 2), (0, 1, 2), (1, 3, 2), 1),
    ((1, 3, 1), (1, 1, 2), (0, 1, 1), 1, 1),
    ((1, 1, 1), (2, 2, 2), (0, 0, 0), 1, 1),
    ((3, 1, 1), (1, 1, 1), (1, 0, 0), 1, 1),
    ((3, 1, 1), (2, 1, 1), (1, 0, 0), 1, 4),
    ((3, 1, 1), (2, 1, 1), (1, 0, 0), 1, 1),
    ((3, 1, 1), (2, 1, 1), (2, 0, 0), (2, 1, 1), 1),
    ((3, 1, 1), (2, 2, 2), (1, 0, 0), (2, 1, 1), 1),
]


@pytest.fixture(params=[True, False], ids=["columns", "no columns"])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Gradients over space by products of matrices, as on a CPU with AVX2, or as on others: on whatever CPU this is."""
    used: bool = request.param
    monkeypatch.setattr("tillwatch.models.folded._has_slow_gradients_over_space", lambda: used)
    return used


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize("depth", [2, 5, 8])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "groups"), KERNELS)
def test_outputs_and_gradients_equal_the_plain_convolutions(
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
    dilation: int | tuple[int, int, int],
    groups: int,
    memory_format: torch.memory_format,
    depth: int,
) -> None:
    torch.manual_seed(0)
    # float64, so that the two agree to rounding and a wrong element cannot hide in a tolerance.
    plain = nn.Conv3d(4, 8, kernel, stride, padding, dilation, groups).double()
    folded = fold(copy.deepcopy(plain))
    assert type(folded) in (SpatialConv3d, TemporalConv3d)
    clips = torch.randn(2, 4, depth, 9, 10, dtype=torch.float64).to(memory_format=memory_format)
    inputs = [clips.clone().requires_grad_() for _ in range(2)]
    if dilation == (2, 1, 1) and depth == 2:
        pytest.skip("the kernel is longer than the clip")
    outputs = [module(x) for module, x in zip((plain, folded), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0])
    upstream = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(upstream)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for ours, theirs in zip(folded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("columns_bytes", [1, 30_000, 150_000, 1 << 20])
def test_gradients_over_space_are_whole_whatever_is_worked_on_at_once(
    columns_bytes: int, columns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one line of one frame to all frames: 7 frames of 9 x 11 outputs, 63 columns, are cut at odd places."""
    monkeypatch.setattr("tillwatch.models.folded._COLUMNS_BYTES", columns_bytes)
    torch.manual_seed(0)
    plain = nn.Conv3d(7, 5, (1, 3, 3), padding=(0, 1, 1)).double()
    clips = torch.randn(1, 7, 7, 9, 11, dtype=torch.float64).to(memory_format=torch.channels_last_3d)
    upstream = torch.randn(1, 5, 7, 9, 11, dtype=torch.float64)
    expected, got = (
        torch.autograd.grad(conv(clips), list(conv.parameters()), upstream)
        for conv in (plain, fold(copy.deepcopy(plain)))
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 1)])
def test_a_compiler_is_given_no_loops_over_frames(
    kernel: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_by_columns", "_by_taps"):
        monkeypatch.setattr(f"tillwatch.models.folded.{name}", lambda *_: pytest.fail("it would be unrolled"))
    conv = fold(nn.Conv3d(4, 8, kernel))
    clips = torch.randn(2, 4, 5, 6, 6).to(memory_format=torch.channels_last_3d)
    torch.compile(conv, fullgraph=True, backend="aot_eager")(clips).sum().backward()
    assert next(conv.parameters()).grad is not None


@pytest.mark.parametrize("arch", ["r2plus1d_18", "mc3_18", "r3d_18"])
def test_networks_score_alike_and_keep_their_state_dict(arch: str) -> None:
    torch.manual_seed(0)
    plain = build_model(arch, 2, weights=None).eval()
    folded = fold(copy.deepcopy(plain))
    assert list(folded.state_dict()) == list(plain.state_dict())
    clips = torch.randn(2, 3, 9, 40, 40)
    with torch.inference_mode():
        expected, got = plain(clips), folded(clips)
    # The same sums in another order: a few units in the last place of fp32.
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("arch", "spatial", "temporal", "left"),
    [("r2plus1d_18", 20, 17, 0), ("r3d_18", 3, 0, 17), ("mc3_18", 15, 0, 5)],
)
def test_every_convolution_that_can_be_folded_is(arch: str, spatial: int, temporal: int, left: int) -> None:
    with torch.device("meta"):
        kinds = [type(m) for m in fold(BACKBONES[arch].builder(weights=None)).modules() if isinstance(m, nn.Conv3d)]
    folded = kinds.count(SpatialConv3d), kinds.count(TemporalConv3d)
    counted = (*folded, len(kinds) - sum(folded))
    assert counted == (spatial, temporal, left)


def test_folding_copies_nothing_in_channels_last() -> None:
    clips = torch.randn(2, 4, 6, 8, 8).to(memory_format=torch.channels_last_3d)
    frames = clips.transpose(1, 2).flatten(0, 1)
    assert frames.data_ptr() == clips.data_ptr()
    assert frames.is_contiguous(memory_format=torch.channels_last)
    pixels = clips.flatten(3)
    assert pixels.data_ptr() == clips.data_ptr()
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("kernel", "padding"), [((1, 1, 1), 0), ((3, 1, 1), (1, 0, 0))])
def test_gradients_of_strided_convolutions_stay_channels_last(
    kernel: tuple[int, int, int], padding: int | tuple[int, int, int]
) -> None:
    conv = fold(nn.Conv3d(4, 8, kernel, 2, padding))
    clips = torch.randn(2, 4, 6, 8, 8).to(memory_format=torch.channels_last_3d).requires_grad_()
    seen: list[torch.Tensor] = []
    between = clips.clone()
    between.register_hook(seen.append)  # type: ignore[no-untyped-call]
    conv(between).sum().backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize(
    "conv", [nn.Conv3d(2, 2, 3), nn.Conv3d(2, 2, (3, 1, 1), padding=1), nn.Conv3d(2, 2, (1, 3, 3), padding="same")]
)
def test_other_convolutions_are_left_alone(conv: nn.Conv3d) -> None:
    assert type(fold(conv)) is nn.Conv3d


def leave_nans_in_freed_memory() -> None:
    """Fills memory that the next allocations will get with NaN.

    Whether the plain form then returns garbage depends on the CPU: with AVX-512 bf16 and AMX it has; with AVX2, which
    imitates bf16, it does not, and the tests below show there that gradients are close and no more.
    """
    blocks = [torch.full((2**k,), float("nan")) for k in range(12, 22)] * 3
    del blocks


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_bf16_gradients_are_finite_and_close_to_fp32_in_dirty_memory(depth: int) -> None:
    torch.manual_seed(depth)
    conv = fold(nn.Conv3d(64, 48, (3, 1, 1), padding=(1, 0, 0), bias=False))
    for _ in range(5):
        clips = torch.randn(4, 64, depth, 4, 4)
        upstream = torch.randn(4, 48, depth, 4, 4)
        gradients = []
        for enabled in (False, True):
            conv.zero_grad()
            leave_nans_in_freed_memory()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                out = conv(clips)
            out.backward(upstream.to(out.dtype))
            gradients.append(next(conv.parameters()).grad.clone())  # type: ignore[union-attr]
        fp32, bf16 = gradients
        assert torch.isfinite(bf16).all()
        # bf16 has 8 bits of mantissa: each product is off by up to 1/256, and sums of hundreds average that out.
        assert (bf16 - fp32).norm() / fp32.norm() < 1e-2


@pytest.mark.parametrize(("arch", "count"), [("r2plus1d_18", 37), ("s3d", 77)])  # those that auto may take bf16 for
def test_bf16_gradients_are_those_of_fp32_layer_by_layer_in_a_whole_network(arch: str, count: int) -> None:
    """Each convolution on the input and the upstream gradient that it has inside the network, in dirty memory.

    End to end, an untrained network turns rounding into other gradients; layer by layer nothing hides.
    """
    torch.manual_seed(0)
    network = fold(build_model(arch, 2, weights=None)).to(memory_format=torch.channels_last_3d)
    if arch == "s3d":
        network = network.get_submodule("features")  # what comes after takes 224 pixels and more
    inputs: dict[str, torch.Tensor] = {}
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv3d)}
    for name, module in convolutions.items():

        def keep(conv: nn.Module, given: tuple[torch.Tensor, ...], name: str = name) -> None:
            inputs[name] = given[0].detach()

        module.register_forward_pre_hook(keep)
    # 16 frames: the last convolutions get a depth of 2, at which the plain form has returned garbage.
    clips = torch.randn(2, 3, 16, 32, 32).to(memory_format=torch.channels_last_3d)
    network(clips)
    assert len(inputs) == count
    assert min(x.shape[2] for x in inputs.values()) == 2
    for name, conv in convolutions.items():
        found = []
        upstream: torch.Tensor | None = None
        for enabled in (False, True):
            given = inputs[name].clone().requires_grad_()
            conv.zero_grad()
            leave_nans_in_freed_memory()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                out = conv(given)
            upstream = torch.randn_like(out, dtype=torch.float32) if upstream is None else upstream
            out.backward(upstream.to(out.dtype))
            found.append((out.float(), given.grad, conv.get_parameter("weight").grad))
        for fp32, bf16 in zip(*found, strict=True):
            assert fp32 is not None
            assert bf16 is not None
            assert torch.isfinite(bf16).all(), name
            assert (bf16 - fp32).norm() / fp32.norm() < 1e-2, name

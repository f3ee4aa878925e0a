"""Which precision `auto` takes, and that laying a network out changes nothing but speed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tillwatch.errors import ConfigError
from tillwatch.models import precision
from tillwatch.models.backbones import BACKBONES, build_model
from tillwatch.models.folded import SpatialConv3d, TemporalConv3d
from tillwatch.models.precision import bf16_speedup, choose_precision, folds_whole, lay_out


@pytest.fixture
def fast_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_speedup", lambda: 6.0)


@pytest.mark.parametrize("arch", [arch for arch in BACKBONES if arch != "tinynet"])
def test_auto_takes_bf16_on_a_cpu_only_where_no_plain_convolution_is_left(arch: str, fast_bf16: None) -> None:
    with torch.device("meta"):
        network = lay_out(BACKBONES[arch].builder(weights=None), "cpu")
    plain = [m for m in network.modules() if isinstance(m, nn.Conv3d) and type(m) is nn.Conv3d]
    chosen = choose_precision("auto", "cpu", arch)
    assert chosen.name == ("fp32" if plain else "bf16")
    assert chosen.why == (
        f"{arch} has convolutions in three dimensions, which are not safe in bf16 on a CPU"
        if plain
        else "this CPU multiplies 6 times as fast in it"
    )
    assert folds_whole(arch) is (arch in ("r2plus1d_18", "s3d"))


def test_auto_takes_fp32_where_bf16_is_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_speedup", lambda: 1.2)
    chosen = choose_precision("auto", "cpu", "r2plus1d_18")
    assert (chosen.name, chosen.why) == ("fp32", "this CPU is no faster in bf16")


@pytest.mark.parametrize(
    ("bf16", "capability", "expected"), [(True, (9, 0), "bf16"), (False, (7, 5), "fp16"), (False, (6, 1), "fp32")]
)
def test_auto_on_a_gpu_takes_what_it_computes_in(
    bf16: bool, capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert choose_precision("auto", "cuda", "r3d_18").name == expected


@pytest.mark.parametrize(("asked", "arch"), [("fp32", "r3d_18"), ("bf16", "r2plus1d_18")])
def test_what_is_asked_for_is_taken(asked: str, arch: str) -> None:
    chosen = choose_precision(asked, "cpu", arch)
    assert (chosen.name, chosen.why) == (asked, "as asked")


def test_impossible_precisions_are_refused() -> None:
    with pytest.raises(ConfigError, match="--precision fp16 needs a GPU"):
        choose_precision("fp16", "cpu", "r2plus1d_18")
    with pytest.raises(ConfigError, match="--precision bf16: r3d_18 has convolutions in three dimensions"):
        choose_precision("bf16", "cpu", "r3d_18")
    with pytest.raises(ConfigError, match="--precision is 'int4'; it must be"):
        choose_precision("int4", "cpu", "r2plus1d_18")


@pytest.mark.parametrize(
    ("bf16_rate", "products", "times"),
    [(8.0, {256, 1024}, 8.0), (0.01, {256}, 0.01)],  # a CPU that imitates bf16 is not made to multiply much in it
)
def test_the_speed_of_bf16_is_measured(
    monkeypatch: pytest.MonkeyPatch, bf16_rate: float, products: set[int], times: float
) -> None:
    multiplied: set[int] = set()

    def seconds(dtype: torch.dtype, size: int) -> float:
        multiplied.add(size)
        return size**3 / (bf16_rate if dtype == torch.bfloat16 else 1.0)

    bf16_speedup.cache_clear()
    monkeypatch.setattr(precision, "_seconds", seconds)
    assert bf16_speedup() == pytest.approx(times)
    assert multiplied == products
    bf16_speedup.cache_clear()


def test_a_product_of_matrices_takes_time() -> None:
    assert 0 < precision._seconds(torch.float32, 8) < precision._seconds(torch.float32, 512) < 10


def test_laying_out_keeps_keys_and_scores() -> None:
    torch.manual_seed(0)
    plain = build_model("r2plus1d_18", 2, weights=None).eval()
    ours = lay_out(copy.deepcopy(plain), "cpu")
    assert {SpatialConv3d, TemporalConv3d} < {type(m) for m in ours.modules()}
    assert list(ours.state_dict()) == list(plain.state_dict())
    clips = torch.randn(2, 3, 4, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours(clips), plain(clips), atol=2e-6, rtol=0)


def test_on_a_gpu_convolutions_stay_what_they_are() -> None:
    conv = nn.Conv3d(2, 2, (3, 1, 1))
    lay_out(nn.Sequential(conv), "cuda")
    assert type(conv) is nn.Conv3d
    assert conv.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_machine_that_cannot_compile_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"--compile does not work here \(no working C\+\+ compiler\)"):
        precision.check_compiler()

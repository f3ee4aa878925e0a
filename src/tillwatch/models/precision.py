"""Which arithmetic a network trains in on this machine, and how it lies in memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import nn

from tillwatch.errors import ConfigError, one_line
from tillwatch.models.backbones import backbone
from tillwatch.models.folded import fold, is_folded_whole

PrecisionName = Literal["fp32", "bf16", "fp16"]

_WORTH_IT = 1.5  # times as fast
_IMITATED = 0.5


@dataclass(frozen=True)
class Precision:
    """What training computes in; weights and optimiser stay fp32.

    Attributes:
        name: "fp32", or mixed "bf16" or "fp16".
        why: the reason, for the user.
    """

    name: PrecisionName
    why: str


def choose_precision(asked: str, device: str, arch: str) -> Precision:
    """Settles ``--precision``: what is asked for, or for "auto" the fastest that is safe on this machine.

    On a CPU, three-dimensional convolutions in bf16 are slow and have returned gradients from uninitialised memory
    (kernel (3, 1, 1) at depth 2). So "auto" takes bf16 there only for networks whose convolutions can all be folded to
    two dimensions, and only where bf16 products are measurably faster.

    Args:
        asked: "auto", "fp32", "bf16" or "fp16".
        device: "cpu" or "cuda".
        arch: the network.

    Raises:
        ConfigError: for fp16 on a CPU, and for bf16 there where its gradients may be wrong.
    """
    if asked == "fp16" and device == "cpu":
        raise ConfigError("--precision fp16 needs a GPU; on a CPU take bf16, or auto.")
    if asked == "bf16" and device == "cpu" and not folds_whole(arch):
        raise ConfigError(
            f"--precision bf16: {arch} has convolutions in three dimensions, whose gradients may be garbage in bf16 "
            "on a CPU; take fp32, or auto."
        )
    if asked != "auto":
        return Precision(_known(asked), "as asked")
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "this GPU computes in it")
        if torch.cuda.get_device_capability() >= (7, 0):
            return Precision("fp16", "this GPU computes in it, and not in bf16")
        return Precision("fp32", "this GPU computes no faster in less")
    if not folds_whole(arch):
        return Precision("fp32", f"{arch} has convolutions in three dimensions, which are not safe in bf16 on a CPU")
    times = bf16_speedup()
    if times < _WORTH_IT:
        return Precision("fp32", "this CPU is no faster in bf16")
    return Precision("bf16", f"this CPU multiplies {times:.0f} times as fast in it")


def lay_out(network: nn.Module, device: str) -> nn.Module:
    """Puts a network into the form in which it computes fastest, in place; weights and keys stay what they are.

    Channels last in memory everywhere; on a CPU, folded convolutions.

    Returns:
        The same network.
    """
    if device == "cpu":
        fold(network)
    return network.to(memory_format=torch.channels_last_3d)


def check_compiler() -> None:
    """Compiles a function of one line, so that a machine that cannot compile is found out before any work.

    Raises:
        ConfigError: if it cannot.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8))
    except Exception as error:  # whatever the compiler says
        raise ConfigError(
            f"--compile does not work here ({one_line(error)[:200]}); install a C++ compiler, or drop it."
        ) from None


@cache
def bf16_speedup() -> float:
    """Returns how many times as fast this CPU multiplies matrices in bf16 as in fp32.

    A small product goes first: a CPU that only imitates bf16 would be at a large one for seconds.
    """
    small = _seconds(torch.float32, 256) / _seconds(torch.bfloat16, 256)
    return small if small < _IMITATED else _seconds(torch.float32, 1024) / _seconds(torch.bfloat16, 1024)


def _seconds(dtype: torch.dtype, size: int) -> float:
    """Returns the time of one square matrix product, the best of a few."""
    a = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return best


def folds_whole(arch: str) -> bool:
    """Whether every convolution of a network can be computed in two dimensions."""
    with torch.device("meta"):
        return is_folded_whole(fold(backbone(arch).builder(weights=None)))


def _known(name: str) -> PrecisionName:
    match name:
        case "fp32" | "bf16" | "fp16":
            return name
    raise ConfigError(f"--precision is {name!r}; it must be auto, fp32, bf16 or fp16.")

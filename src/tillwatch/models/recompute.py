"""Activations computed again on the way back instead of kept: less memory for a third more time, the same gradients.

The network's blocks keep their inputs alone. What a block draws at random (dropout, stochastic depth) is drawn again
from the generator's state of the first time. Batch norm's running statistics, which gradients do not depend on, are
taken the first time only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Module):
    """Mixed into a block's class: its forward pass is done a second time when gradients are wanted."""

    def forward(self, *inputs: Any) -> Any:
        """Maps what the block takes to what it gives."""
        if not torch.is_grad_enabled():
            return super().forward(*inputs)
        return checkpoint(super().forward, *inputs, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(self)


def recompute_activations(network: nn.Module) -> list[str]:
    """Makes a network's blocks compute their activations anew on the way back, in place.

    Parameters, state_dict keys and module names stay what they were.

    Returns:
        The names of the blocks.
    """
    blocks = dict(_blocks(network, ""))
    for block in blocks.values():
        if not isinstance(block, Recomputed):
            kind: Any = type(block)
            block.__class__ = _recomputed(kind)
    return list(blocks)


def _blocks(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yields the largest modules that are neither the network nor a mere list of others with layers below them."""
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        below = list(child.children())
        is_list = type(child) in (nn.Sequential, nn.ModuleList) and any(any(one.children()) for one in below)
        if is_list:
            yield from _blocks(child, full)
        elif below:
            yield full, child


@cache
def _recomputed(kind: Any) -> Any:
    return type(f"Recomputed{kind.__name__}", (Recomputed, kind), {})


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Lets batch norm count on copies of its running statistics over the block, and gives it back its own."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    own = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, own, strict=True):
        norm._buffers.update({name: None if value is None else value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers.update(buffers)

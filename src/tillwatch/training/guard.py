"""Losses and gradients that are not finite: noticed in their step, and traced to the layer that they come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tillwatch.errors import RunError

_SKIPPED_AT_MOST = 20


class NonFiniteError(RunError):
    """A loss or a gradient is infinite or not a number; the weights are those of before the step."""


class StepGuard:
    """Looks at each step's loss and gradients before the weights take them.

    Args:
        module: the part that learns.
        model: the same as it is called in training, in its precision.
        scaled: whether the loss is scaled (fp16): then single steps with infinite gradients are normal, the scaler
            leaves them out and scales less.
    """

    def __init__(self, module: nn.Module, model: nn.Module, *, scaled: bool = False) -> None:
        self.module = module
        self.model = model
        self.scaled = scaled
        self._skipped = 0

    def check(self, losses: Sequence[torch.Tensor], inputs: Callable[[int], torch.Tensor], place: str) -> list[float]:
        """Returns the losses as numbers, if they and all gradients are finite.

        Args:
            losses: of each part of the step, after its backward pass.
            inputs: returns what the module was given in a part, to trace a loss that is not finite.
            place: where training is, in words.

        Raises:
            NonFiniteError: naming the layer that it comes from.
        """
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        found = torch.stack([loss.detach() for loss in losses] + [norm.to(losses[0].device)])
        *values, size = (float(value) for value in found.tolist())  # the one wait for a GPU in a step
        for part, value in enumerate(values):
            if not math.isfinite(value):
                raise NonFiniteError(f"the loss became {value} in {place}: {self._trace_loss(inputs(part))}")
        self._skipped = 0 if math.isfinite(size) else self._skipped + 1
        if self._skipped > (_SKIPPED_AT_MOST if self.scaled else 0):
            raise NonFiniteError(f"a gradient became {size} in {place}: {self._trace_gradient()}")
        return values

    def _trace_loss(self, inputs: torch.Tensor) -> str:
        """Runs the clips again for the first layer whose output is not finite."""
        for name, parameter in self.module.named_parameters():
            if not _finite(parameter):
                return f"the weights {name} are not finite."
        wrong: list[str] = []

        def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def look(_layer: nn.Module, _inputs: Any, output: Any) -> None:
                if isinstance(output, torch.Tensor) and not _finite(output):
                    wrong.append(name)

            return look

        innermost = [(name, layer) for name, layer in self.module.named_modules() if not any(layer.children())]
        handles = [layer.register_forward_hook(watch(name)) for name, layer in innermost]
        with torch.no_grad():
            self.model(inputs)
        for handle in handles:
            handle.remove()
        if wrong:
            return f"layer {wrong[0]} is the first whose output is not finite."
        return "computed again, all layers' outputs are finite; the machine may be faulty."

    def _trace_gradient(self) -> str:
        """Gradients are computed from the last layer to the first, so they go wrong at the last that is wrong."""
        wrong = [name for name, p in self.module.named_parameters() if p.grad is not None and not _finite(p.grad)]
        if not wrong:
            sizes = {
                name: float(parameter.grad.double().norm())  # squares that fp32 could not hold
                for name, parameter in self.module.named_parameters()
                if parameter.grad is not None
            }
            largest = max(sizes, key=sizes.__getitem__)
            return (
                "each is finite, their sum of squares is not: they are far too large, most of all that of "
                f"{largest} (norm {sizes[largest]:.2g})."
            )
        return f"{wrong[-1]} is the first on the way back ({len(wrong)} are not finite)."


def _finite(values: torch.Tensor) -> bool:
    return bool(torch.isfinite(values).all())

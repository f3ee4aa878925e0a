"""Where training can stop after a signal: between batches, while it waits for one, and within a step that takes long.

A step on a CPU may take minutes, and whoever sends a signal waits for seconds, then kills. A step that is left costs no
more than itself: what it draws at random follows from its place, so it is done again as it would have been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from tillwatch.training.interrupts import Interrupts, Left

T = TypeVar("T")


class Pausing:
    """Calls ``pause``, which raises if a signal has come, wherever the state is whole, and makes it whole again.

    Args:
        learner: what takes steps.
        pause: saves the state where that is due; raises after a signal.
        interrupts: signals that steps and waiting are left for; None if they are not, as where several processes take
            steps together, or where the learner is compiled and nothing is called between its layers. On a GPU steps
            are short, and are not watched.
    """

    def __init__(self, learner: nn.Module, pause: Callable[[], None], interrupts: Interrupts | None = None) -> None:
        self.learner = learner
        self.pause = pause
        self.interrupts = interrupts
        self._leaves = interrupts is not None and all(one.device.type == "cpu" for one in learner.parameters())
        self._inside = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Looks, while the block lasts, wherever a layer begins and a gradient is done, if a step is to be left."""
        handles: list[Any] = []
        if self._leaves:
            innermost = [layer for layer in self.learner.modules() if not any(layer.children())]
            learning = [parameter for parameter in self.learner.parameters() if parameter.requires_grad]
            handles += [layer.register_forward_pre_hook(self._look) for layer in innermost]
            for parameter in learning:
                handles.append(parameter.register_post_accumulate_grad_hook(self._look))  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def step(self) -> Iterator[None]:
        """A block that may be left: batch norm's statistics are then what they were, and the state is saved."""
        before = [buffer.clone() for buffer in self.learner.buffers()] if self._leaves else []
        # Older than the step's graph, so that what is left of that is taken off autograd's queue before it, and freed:
        # else this thread holds it to the end, when the interpreter is gone that some of it belongs to.
        last_in_queue = torch.zeros((), requires_grad=True) * 1 if torch.is_grad_enabled() else None
        self._inside = True
        try:
            yield
        except BaseException as error:
            self._inside = False
            if isinstance(error, Left):
                error.__traceback__ = None  # it holds the half of a step, with all its activations
            if last_in_queue is not None:
                last_in_queue.backward()  # type: ignore[no-untyped-call]
            if isinstance(error, Left):
                with torch.no_grad():
                    for buffer, value in zip(self.learner.buffers(), before, strict=True):
                        buffer.copy_(value)
                self.pause()
            raise
        finally:
            self._inside = False

    def each(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields batches; a signal that comes while one is waited for is obeyed at once."""
        if self.interrupts is None:
            yield from batches
            return
        ahead = iter(batches)
        while True:
            if self.interrupts.asked is not None:
                self.pause()
            try:
                with self.interrupts.waiting():
                    batch = next(ahead, None)
            except Left:
                self.pause()
                raise
            if batch is None:
                return
            yield batch

    def _look(self, *_given: Any) -> None:
        if self._inside and self.interrupts is not None and self.interrupts.overdue:
            raise Left

"""Which clips an epoch shows, in which order: a pure function of seed and epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch.utils.data import WeightedRandomSampler


@dataclass(frozen=True, slots=True)
class Draw:
    """One clip at one place of one epoch's order; a clip drawn twice has two positions.

    Attributes:
        index: of the clip in the data set.
        epoch: from 0.
        position: in the epoch's order, from 0.
    """

    index: int
    epoch: int
    position: int

    def seed(self, seed: int) -> int:
        """Returns the seed of this draw's augmentation."""
        return derive_seed(seed, self.epoch, self.position)


def derive_seed(*numbers: int) -> int:
    """Mixes whole numbers, at least 0, into one seed below 2**63, well apart even for neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class BalancedSampler(WeightedRandomSampler):
    """Draws clips with replacement so that every class is as likely as every other.

    Yields a :class:`Draw` for each of as many draws as there are clips. Call :meth:`start_epoch` before
    each epoch; the order then depends on the seed and the epoch alone.

    Args:
        labels: each clip's label.
        seed: of the order.

    Raises:
        ValueError: if there are no clips.
    """

    def __init__(self, labels: Sequence[int], seed: int) -> None:
        counts = Counter(labels)
        weights = [1.0 / counts[label] for label in labels]
        super().__init__(weights, num_samples=len(labels), replacement=True, generator=torch.Generator())
        self._seed = seed
        self._epoch = 0
        self._first = 0

    def start_epoch(self, epoch: int, first: int = 0) -> None:
        """Says which epoch (from 0) the next iteration is.

        Args:
            epoch: from 0.
            first: position of the first draw wanted; those before it were used before an interruption.
        """
        self._epoch = epoch
        self._first = first

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(derive_seed(self._seed, self._epoch))
        # Drawn at once: a second pass seeds the generator anew.
        draws = [Draw(i, self._epoch, position) for position, i in enumerate(super().__iter__())]
        # The base class promises ints; a data loader hands on whatever key the data set understands.
        return cast(Iterator[int], iter(draws[self._first :]))

"""Which clips an epoch shows, in which order: a pure function of seed and epoch; and which process takes which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch.utils.data import Sampler, WeightedRandomSampler


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one of several processes takes of what all of them see together: shares never meet and leave nothing out.

    Attributes:
        rank: of the process, from 0.
        world: how many processes there are.
        parts: that a process takes its share of a batch in, one after another.
    """

    rank: int = 0
    world: int = 1
    parts: int = 1

    @property
    def in_words(self) -> str:
        """How a batch is cut."""
        return "taken at once" if self.world * self.parts == 1 else f"cut into {self.world} x {self.parts} parts"

    def of_batch(self, size: int) -> list[range]:
        """Returns the places of a batch that this process takes, a range for each part; sizes differ by 1 at most."""
        pieces, first = self.world * self.parts, self.rank * self.parts
        cuts = [size * piece // pieces for piece in range(first, first + self.parts + 1)]
        return [range(start, stop) for start, stop in pairwise(cuts)]

    def of_clips(self, count: int) -> range:
        """Returns the clips that this process evaluates: in the order of ranks they are all clips once, in order."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)


ALONE = Share()


class StepBatches(Sampler[list[Draw]]):
    """Cuts a sampler's order into the batches of one step each, and yields one process's parts of them.

    An incomplete last batch is dropped, by all processes alike, where there is a complete one: its clips were drawn at
    random anyway, and batch normalisation over one or two does harm.

    Args:
        sampler: the order of an epoch, which is the same in every process.
        batch_size: draws of one step, over all processes.
        share: what this process takes of them.

    Attributes:
        batch_size: the same, but no more than an epoch has.
        dropped: draws at an epoch's end that are left out.

    Raises:
        ValueError: if a part would be empty.
    """

    def __init__(self, sampler: BalancedSampler, batch_size: int, share: Share = ALONE) -> None:
        self.sampler = sampler
        self.batch_size = min(batch_size, len(sampler))
        self.dropped = len(sampler) % self.batch_size
        self.share = share
        if self.batch_size < share.world * share.parts:
            raise ValueError(f"{share.world} x {share.parts} parts of {self.batch_size} draws would not all have one")

    @property
    def steps(self) -> int:
        """How many steps an epoch has."""
        return len(self.sampler) // self.batch_size

    def __len__(self) -> int:
        return self.steps * self.share.parts

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = cast(list[Draw], list(self.sampler))
        for start in range(0, len(draws) - self.batch_size + 1, self.batch_size):
            for part in self.share.of_batch(self.batch_size):
                yield draws[start + part.start : start + part.stop]

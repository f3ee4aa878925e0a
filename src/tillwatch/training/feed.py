"""What the loop is fed: batches of clips, or of features, and how each becomes the learner's input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from tillwatch.config import TrainConfig
from tillwatch.data.loader import Batch, evaluation_loader, training_loader
from tillwatch.data.sampler import ALONE, BalancedSampler, Share, StepBatches
from tillwatch.data.transforms import ClipTransform, Place
from tillwatch.models.saved import dataset_of, transform_of
from tillwatch.training.prepare import Job

ToInputs = Callable[[Any, torch.device], torch.Tensor]


@dataclass
class Feed:
    """Training and validation batches.

    Attributes:
        training: this process's parts of balanced draws, cut by :class:`StepBatches`; its batches have labels, skipped
            and trouble as :class:`Batch` has.
        sampler: of the training batches.
        training_inputs: maps a batch to what the learner takes, on a device.
        validation: this process's share of clips, each once; None if nothing was held out.
        validation_inputs: as ``training_inputs``.
        small_inputs: both of them in early epochs, on fewer frames and pixels; None if there are none.
        early_epochs: how many those are.
        blank: a batch of one black clip, for a part of which nothing could be read; None if that cannot be.
    """

    training: DataLoader[Any]
    sampler: BalancedSampler
    training_inputs: ToInputs
    validation: DataLoader[Any] | None
    validation_inputs: ToInputs
    small_inputs: tuple[ToInputs, ToInputs] | None = None
    early_epochs: int = 0
    blank: Any = None

    def __post_init__(self) -> None:
        self._full = self.training_inputs, self.validation_inputs

    @property
    def batches(self) -> StepBatches:
        """How the training draws are cut into steps and parts."""
        return cast(StepBatches, self.training.batch_sampler)

    def steps(self) -> Iterator[list[Any]]:
        """Yields the parts of each step that is left of the epoch: the batches that this process takes."""
        batches = iter(self.training)
        while parts := list(islice(batches, self.batches.share.parts)):
            yield parts

    def inputs_of(self, parts: Sequence[Any], device: torch.device, part: int) -> torch.Tensor:
        """Returns what the learner takes in a part of a step."""
        return self.training_inputs(parts[part], device)

    def piece(self, part: int) -> tuple[int, ...]:
        """Tells a part of a step from all others, of all processes; of a step that is not cut, nothing."""
        share = self.batches.share
        number = share.rank * share.parts + part
        return (number,) if number else ()

    def start_epoch(self, epoch: int, step: int = 0) -> None:
        """Says which epoch, from 0, is drawn next, at which size, and from which of its batches on."""
        self.sampler.start_epoch(epoch, step * self.batches.batch_size)
        small = self.small_inputs if epoch < self.early_epochs else None
        self.training_inputs, self.validation_inputs = small or self._full


def clip_feed(job: Job, config: TrainConfig, share: Share = ALONE) -> Feed:
    """Returns augmented training clips and plain validation clips, both smaller in early epochs if the job says so.

    Args:
        job: clips, spec, store.
        config: batch size, seed, early epochs.
        share: what this process takes of them.
    """
    prep = job.spec.preprocessing
    full, plain = transform_of(prep, augment=True), transform_of(prep)
    options: dict[str, Any] = {"workers": job.workers, "pin_memory": job.device == "cuda"}
    learnt_from = dataset_of(job.spec, job.side("train"), full, seed=config.seed, store=job.store)
    training, sampler = training_loader(learnt_from, config.step_clips, seed=config.seed, share=share, **options)
    validation = None
    if config.hold_out:
        held_out = dataset_of(job.spec, job.side("validation"), plain, store=job.store)
        validation = evaluation_loader(held_out, config.clips_at_once, share=share, **options)
    feed = Feed(training, sampler, _by(full), validation, _by(plain), blank=_blank(job))
    if job.early is not None:
        size = job.early.num_frames, job.early.crop
        feed.small_inputs = _by(full.shrunk(*size)), _by(plain.shrunk(*size))
        feed.early_epochs = job.early.epochs
    return feed


def _blank(job: Job) -> Batch:
    frames = torch.zeros(1, job.spec.num_frames, *job.spec.preprocessing.resize, 3, dtype=torch.uint8)
    label = torch.zeros(1, dtype=torch.int64)
    return Batch(frames=frames, places=(Place(0, 0, False),), labels=label, indices=label)


def _by(transform: ClipTransform) -> ToInputs:
    def to_inputs(batch: Batch, device: torch.device) -> torch.Tensor:
        return batch.clips(transform, device)

    return to_inputs

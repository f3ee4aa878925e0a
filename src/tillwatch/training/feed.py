"""What the loop is fed: batches of clips, or of features, and how each becomes the learner's input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from tillwatch.config import TrainConfig
from tillwatch.data.loader import Batch, evaluation_loader, training_loader
from tillwatch.data.sampler import BalancedSampler
from tillwatch.data.transforms import ClipTransform
from tillwatch.models.saved import dataset_of, transform_of
from tillwatch.training.prepare import Job

ToInputs = Callable[[Any, torch.device], torch.Tensor]


@dataclass
class Feed:
    """Training and validation batches.

    Attributes:
        training: balanced draws; its batches have labels, skipped and trouble as :class:`Batch` has.
        sampler: of the training batches.
        training_inputs: maps a batch to what the learner takes, on a device.
        validation: each clip once; None if nothing was held out.
        validation_inputs: as ``training_inputs``.
        small_inputs: both of them in early epochs, on fewer frames and pixels; None if there are none.
        early_epochs: how many those are.
    """

    training: DataLoader[Any]
    sampler: BalancedSampler
    training_inputs: ToInputs
    validation: DataLoader[Any] | None
    validation_inputs: ToInputs
    small_inputs: tuple[ToInputs, ToInputs] | None = None
    early_epochs: int = 0

    def __post_init__(self) -> None:
        self._full = self.training_inputs, self.validation_inputs

    def start_epoch(self, epoch: int, step: int = 0) -> None:
        """Says which epoch, from 0, is drawn next, at which size, and from which of its batches on."""
        self.sampler.start_epoch(epoch, step * (self.training.batch_size or 1))
        small = self.small_inputs if epoch < self.early_epochs else None
        self.training_inputs, self.validation_inputs = small or self._full


def clip_feed(job: Job, config: TrainConfig) -> Feed:
    """Returns augmented training clips and plain validation clips, both smaller in early epochs if the job says so.

    Args:
        job: clips, spec, store.
        config: batch size, seed, early epochs.
    """
    prep = job.spec.preprocessing
    full, plain = transform_of(prep, augment=True), transform_of(prep)
    options: dict[str, Any] = {"workers": job.workers, "pin_memory": job.device == "cuda"}
    learnt_from = dataset_of(job.spec, job.side("train"), full, seed=config.seed, store=job.store)
    training, sampler = training_loader(learnt_from, config.batch_size, seed=config.seed, **options)
    validation = None
    if config.hold_out:
        held_out = dataset_of(job.spec, job.side("validation"), plain, store=job.store)
        validation = evaluation_loader(held_out, config.batch_size, **options)
    if job.early is None:
        return Feed(training, sampler, _by(full), validation, _by(plain))
    size = job.early.num_frames, job.early.crop
    small = _by(full.shrunk(*size)), _by(plain.shrunk(*size))
    return Feed(training, sampler, _by(full), validation, _by(plain), small, job.early.epochs)


def _by(transform: ClipTransform) -> ToInputs:
    def to_inputs(batch: Batch, device: torch.device) -> torch.Tensor:
        return batch.clips(transform, device)

    return to_inputs

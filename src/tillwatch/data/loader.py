"""Data loaders that go on past a clip that turns out damaged."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tillwatch.data.catalog import Skip
from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.sampler import BalancedSampler, Draw
from tillwatch.errors import ClipError, one_line


@dataclass(frozen=True)
class Batch:
    """Clips that were read, and those that could not be.

    Attributes:
        clips: float32 ``(B, C, T, H, W)``; B is 0 if none could be read.
        labels: int64 ``(B,)``.
        indices: int64 ``(B,)``, the clips' places in the data set.
        skipped: the others.
    """

    clips: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    skipped: tuple[Skip, ...]

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory (the data loader calls this)."""
        return Batch(self.clips.pin_memory(), self.labels.pin_memory(), self.indices.pin_memory(), self.skipped)


_Item = tuple[int, torch.Tensor, int] | Skip


class _Guarded(Dataset[_Item]):
    """Turns an unreadable clip into a Skip, so that a worker does not die of it."""

    def __init__(self, dataset: VideoFrameDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | Draw) -> _Item:
        index = key.index if isinstance(key, Draw) else key
        try:
            clip, label = self.dataset[key]
        except ClipError as error:
            return Skip(self.dataset.clips[index].name, one_line(error).rstrip("."))
        return index, clip, label


def collate(items: Sequence[_Item]) -> Batch:
    """Stacks what could be read."""
    read = [item for item in items if not isinstance(item, Skip)]
    return Batch(
        clips=torch.stack([clip for _, clip, _ in read]) if read else torch.empty(0),
        labels=torch.tensor([label for _, _, label in read], dtype=torch.int64),
        indices=torch.tensor([index for index, _, _ in read], dtype=torch.int64),
        skipped=tuple(item for item in items if isinstance(item, Skip)),
    )


def training_loader(
    dataset: VideoFrameDataset,
    batch_size: int,
    *,
    seed: int,
    workers: int = 0,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> tuple[DataLoader[Any], BalancedSampler]:
    """Returns a loader of balanced, augmented batches, and the sampler to tell the epoch to.

    An incomplete last batch is dropped where there is a complete one: its clips were drawn at random
    anyway, and batch normalisation over one or two clips does harm.

    Args:
        dataset: the training clips.
        batch_size: clips per batch.
        seed: of the order.
        workers: processes that read clips; 0 reads in this one.
        pin_memory: whether batches are put into page-locked memory, for a GPU.
        start_method: of the workers; None for Python's default.
    """
    sampler = BalancedSampler([label for _, label in dataset.samples], seed)
    drop_last = len(dataset) >= batch_size
    options = _worker_options(workers, pin_memory, start_method)
    return DataLoader(_Guarded(dataset), batch_size, sampler=sampler, drop_last=drop_last, **options), sampler


def evaluation_loader(
    dataset: VideoFrameDataset,
    batch_size: int,
    *,
    workers: int = 0,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> DataLoader[Any]:
    """Returns a loader of every clip once, in order. Arguments as :func:`training_loader`."""
    return DataLoader(
        _Guarded(dataset), batch_size, shuffle=False, **_worker_options(workers, pin_memory, start_method)
    )


def _worker_options(workers: int, pin_memory: bool, start_method: str | None) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "collate_fn": collate,
        "pin_memory": pin_memory,
        "persistent_workers": workers > 0,
        "multiprocessing_context": multiprocessing.get_context(start_method) if workers else None,
        # The loader draws a seed for its workers: from its own generator, not the global one.
        "generator": torch.Generator().manual_seed(0),
    }

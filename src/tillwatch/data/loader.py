"""Data loaders of batches of bytes, to be transformed where they are used; they go on past a damaged clip."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from tillwatch.data.catalog import Skip
from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.sampler import ALONE, BalancedSampler, Draw, Share, StepBatches
from tillwatch.data.transforms import ClipTransform, Place
from tillwatch.errors import ClipError, one_line
from tillwatch.signals import signals_later


@dataclass(frozen=True)
class Batch:
    """Clips that were read, as bytes, and those that could not be.

    Attributes:
        frames: uint8 ``(B, T, H, W, C)``; B is 0 if none could be read.
        places: what augmentation does to each.
        labels: int64 ``(B,)``.
        indices: int64 ``(B,)``, the clips' places in the data set.
        skipped: the others.
        trouble: why the store keeps no more clips; None if it does.
    """

    frames: torch.Tensor
    places: tuple[Place, ...]
    labels: torch.Tensor
    indices: torch.Tensor
    skipped: tuple[Skip, ...] = ()
    trouble: str | None = None

    def clips(self, transform: ClipTransform, device: str | torch.device = "cpu") -> torch.Tensor:
        """Moves the bytes to a device and transforms them there: float32 ``(B, C, T, H', W')``."""
        return transform.batch(self.frames.to(device, non_blocking=True), self.places)

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory (the data loader calls this)."""
        return replace(self, frames=self.frames.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True)
class _Item:
    index: int
    frames: torch.Tensor
    place: Place
    label: int
    trouble: str | None


class _Bytes(Dataset[_Item | Skip]):
    """A data set's clips as they were read, with the place that its transform draws for each.

    An unreadable clip is a Skip, so that a worker does not die of it.
    """

    def __init__(self, dataset: VideoFrameDataset) -> None:
        if not isinstance(dataset.transform, ClipTransform):
            raise TypeError("these loaders transform whole batches: the data set's transform must be a ClipTransform")
        self.dataset = dataset
        self.transform = dataset.transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | Draw) -> _Item | Skip:
        dataset, index = self.dataset, key.index if isinstance(key, Draw) else key
        try:
            frames = dataset.read(index)
        except ClipError as error:
            return Skip(dataset.clips[index].name, one_line(error).rstrip("."))
        place = self.transform.place(torch.Generator().manual_seed(dataset.augmentation_seed(key)))
        return _Item(
            index=index,
            frames=_tensor(frames),
            place=place,
            label=dataset.samples[index][1],
            trouble=None if dataset.store is None else dataset.store.trouble,
        )


def _tensor(frames: NDArray[np.uint8]) -> torch.Tensor:
    if frames.flags.writeable:
        return torch.from_numpy(frames)
    with warnings.catch_warnings():  # of memory that must not be written to, which nobody does before it is stacked
        warnings.simplefilter("ignore")
        return torch.from_numpy(frames)


def collate(items: Sequence[_Item | Skip]) -> Batch:
    """Stacks what could be read."""
    read = [item for item in items if isinstance(item, _Item)]
    return Batch(
        frames=torch.stack([item.frames for item in read]) if read else torch.empty(0, dtype=torch.uint8),
        places=tuple(item.place for item in read),
        labels=torch.tensor([item.label for item in read], dtype=torch.int64),
        indices=torch.tensor([item.index for item in read], dtype=torch.int64),
        skipped=tuple(item for item in items if isinstance(item, Skip)),
        trouble=next((item.trouble for item in read if item.trouble), None),
    )


class _Loader(DataLoader[Any]):
    """A signal waits while workers start: Python drops what its handler raises in a fork, and it would be lost."""

    def __iter__(self) -> Any:
        with signals_later():
            return super().__iter__()


def training_loader(
    dataset: VideoFrameDataset,
    batch_size: int,
    *,
    seed: int,
    share: Share = ALONE,
    workers: int = 0,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> tuple[DataLoader[Any], BalancedSampler]:
    """Returns a loader of balanced, augmented batches, and the sampler to tell the epoch to.

    Args:
        dataset: the training clips; its transform must be a ClipTransform.
        batch_size: clips per step.
        seed: of the order.
        share: what this process takes of each step, and in how many batches.
        workers: processes that read clips; 0 reads in this one.
        pin_memory: whether batches are put into page-locked memory, for a GPU.
        start_method: of the workers; None for Python's default.
    """
    labels = [label for _, label in dataset.samples]
    return balanced_loader(
        _Bytes(dataset), labels, batch_size, seed, share, **_worker_options(workers, pin_memory, start_method)
    )


def balanced_loader(
    items: Dataset[Any], labels: Sequence[int], batch_size: int, seed: int, share: Share = ALONE, **options: Any
) -> tuple[DataLoader[Any], BalancedSampler]:
    """Returns a loader of balanced batches of any items, and the sampler to tell the epoch to.

    Args:
        items: asked for by :class:`Draw`.
        labels: theirs.
        batch_size: items per step; see :class:`StepBatches`.
        seed: of the order.
        share: what this process takes of each step.
        **options: of the DataLoader.
    """
    sampler = BalancedSampler(labels, seed)
    return _Loader(items, batch_sampler=StepBatches(sampler, batch_size, share), **options), sampler


def evaluation_loader(
    dataset: VideoFrameDataset,
    batch_size: int,
    *,
    share: Share = ALONE,
    workers: int = 0,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> DataLoader[Any]:
    """Returns a loader of every clip once, in order, or of this process's share of them.

    Arguments as :func:`training_loader`, but for ``batch_size``: clips per batch.
    """
    options = _worker_options(workers, pin_memory, start_method)
    return _Loader(_Bytes(dataset), batch_size, sampler=share.of_clips(len(dataset)), **options)


def _leave_signals_to_parent(_worker: int) -> None:
    """Lets a signal to the whole group (Ctrl-C, a service manager) stop the main process alone, which ends its workers.

    A worker that died first would break the step that the main process is about to finish.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def obey_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)

    threading.Thread(target=obey_parent, daemon=True).start()


def _worker_options(workers: int, pin_memory: bool, start_method: str | None) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "collate_fn": collate,
        "pin_memory": pin_memory,
        "persistent_workers": workers > 0,
        "worker_init_fn": _leave_signals_to_parent if workers else None,
        "multiprocessing_context": multiprocessing.get_context(start_method) if workers else None,
        # The loader draws a seed for its workers: from its own generator, not the global one.
        "generator": torch.Generator().manual_seed(0),
    }

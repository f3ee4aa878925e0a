"""A frozen backbone: each clip's features computed once and kept, then a head trained on them in seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tillwatch.clip_spec import Reading
from tillwatch.config import TrainConfig
from tillwatch.data.catalog import Clip, Skip
from tillwatch.data.loader import balanced_loader, evaluation_loader
from tillwatch.data.sampler import Draw
from tillwatch.data.store import ClipStore
from tillwatch.errors import ClipError, DataError
from tillwatch.models.backbones import digest_around, head_of
from tillwatch.models.precision import lay_out
from tillwatch.models.saved import dataset_of, transform_of, true_fp32
from tillwatch.training.feed import Feed
from tillwatch.training.prepare import Job
from tillwatch.training.runlog import RunLog

_AT_ONCE = 256  # rows of features in one validation batch
_CLIPS_AT_ONCE = 8  # through the backbone


class Head(nn.Module):
    """A network's head by itself: features, as the network hands them to it, to logits."""

    def __init__(self, head: nn.Sequential) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps ``(B, C)``, or ``(B, C, T, H, W)`` where the head is a convolution, to logits ``(B, num_classes)``."""
        out: torch.Tensor = self.head(features)
        return out if out.ndim == 2 else out.mean((2, 3, 4))  # S3D averages its head's output


@dataclass(frozen=True)
class FeatureBatch:
    """Features in the place of clips.

    Attributes:
        features: float32 ``(B, ...)``.
        labels: int64 ``(B,)``.
        skipped, trouble: as of a :class:`Batch`; whatever was unreadable was left out when features were computed.
    """

    features: torch.Tensor
    labels: torch.Tensor
    skipped: tuple[Skip, ...] = ()
    trouble: str | None = None


class FeatureDataset(Dataset[tuple[torch.Tensor, int]]):
    """Features of clips, all in memory."""

    def __init__(self, features: torch.Tensor, labels: Sequence[int]) -> None:
        self.features = features
        self.labels = list(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | Draw) -> tuple[torch.Tensor, int]:
        index = key.index if isinstance(key, Draw) else key
        return self.features[index], self.labels[index]


def head_on_features(
    network: nn.Module, job: Job, config: TrainConfig, log: RunLog
) -> tuple[Head, Feed, dict[str, Skip]]:
    """Freezes a network but for its head, and computes the features of the clips that the head learns from.

    Features are those of the centre crop, in fp32 as scores are: nothing is augmented.

    Args:
        network: as built; it goes into evaluation mode, and its backbone needs no gradients any more.
        job: clips, spec, store.
        config: batch size, seed.
        log: where to say what happens.

    Returns:
        The head, its feed, and the clips that turned out unreadable, by name.

    Raises:
        DataError: if no clip of a side can be read.
    """
    head = head_of(network, job.spec.arch)
    network.requires_grad_(False)
    head.requires_grad_(True)
    lay_out(network.to(job.device), job.device).eval()
    backbone = Backbone(network, head, torch.device(job.device))
    skipped: dict[str, Skip] = {}
    derived = f"features {job.spec.arch} {backbone.digest()} {json.dumps(job.spec.preprocessing.to_steps())}"
    started, sides = time.perf_counter(), ("train", "validation") if config.hold_out else ("train",)
    datasets = [_features_of_side(backbone, derived, job, config, side, skipped, log) for side in sides]
    log.say(f"features of {sum(map(len, datasets))} clips in {time.perf_counter() - started:.0f} s")
    training, sampler = balanced_loader(
        datasets[0], datasets[0].labels, config.step_clips, config.seed, collate_fn=_collate
    )
    validation = DataLoader(datasets[1], _AT_ONCE, collate_fn=_collate) if config.hold_out else None
    return Head(head), Feed(training, sampler, _inputs, validation, _inputs), skipped


class Backbone:
    """A network up to its head.

    Args:
        network: the whole of it, in evaluation mode.
        head: its head.
        device: where it is.
    """

    def __init__(self, network: nn.Module, head: nn.Module, device: torch.device) -> None:
        self.network = network
        self.head = head
        self.device = device

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        """Maps float32 clips ``(B, C, T, H, W)`` to what the head is given, float32 ``(B, ...)`` on the CPU."""
        given: list[torch.Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda head, inputs: given.append(inputs[0].float().cpu()))
        with handle, torch.inference_mode(), true_fp32(self.device):
            self.network(clips)
        return given[0].clone()

    def digest(self) -> str:
        """Tells one backbone's weights from another's."""
        return digest_around(self.network, self.head)


def _features_of_side(
    backbone: Backbone,
    derived: str,
    job: Job,
    config: TrainConfig,
    side: str,
    skipped: dict[str, Skip],
    log: RunLog,
) -> FeatureDataset:
    """Takes features from the store where they are kept as ``derived``, and computes and keeps the others."""
    transform, reading, store = transform_of(job.spec.preprocessing), job.spec.reading, job.store
    clips = job.side(side)
    features = {} if store is None else _kept(store, clips, reading, derived)
    missing = [clip for clip in clips if clip.name not in features]
    if missing:
        dataset = dataset_of(job.spec, missing, transform, store=store)
        # The head's batches may be large: its clips are but features.
        loader = evaluation_loader(dataset, min(config.clips_at_once, _CLIPS_AT_ONCE), workers=job.workers)
        with log.progress(f"features of the {side} clips") as on_batch:
            for number, batch in enumerate(loader, start=1):
                skipped.update({skip.name: skip for skip in batch.skipped})
                if len(batch.labels):
                    computed = backbone(batch.clips(transform, backbone.device)).numpy()
                    for index, of_clip in zip(batch.indices.tolist(), computed, strict=True):
                        features[missing[index].name] = of_clip
                        if store is not None:
                            store.keep(missing[index], reading, of_clip, derived)
                log.note_once(batch.trouble)
                on_batch(number, len(loader))
    rows = [(features[clip.name], clip.label) for clip in clips if clip.name in features]
    if not rows:
        raise DataError(f"not one {side} clip could be read.")
    stacked = torch.from_numpy(np.stack([of_clip for of_clip, _ in rows]))
    return FeatureDataset(stacked, [job.spec.classes.index(label) for _, label in rows])


def _kept(store: ClipStore, clips: Sequence[Clip], reading: Reading, derived: str) -> dict[str, NDArray[np.float32]]:
    kept = {}
    for clip in clips:
        try:
            features = store.find(clip, reading, derived)
        except ClipError:
            continue  # whoever reads the clip says what is wrong with it
        if features is not None:
            kept[clip.name] = features
    return kept


def _inputs(batch: FeatureBatch, device: torch.device) -> torch.Tensor:
    return batch.features.to(device)


def _collate(items: Sequence[tuple[torch.Tensor, int]]) -> FeatureBatch:
    return FeatureBatch(torch.stack([item for item, _ in items]), torch.tensor([label for _, label in items]))

"""Tillwatch trains a video classifier on labelled CCTV clips, says how good it is, and finds the event again.

The public names are resolved when first used: ``import tillwatch`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tillwatch.clip_spec import ClipSpec as ClipSpec
    from tillwatch.clip_spec import FrameStep as FrameStep
    from tillwatch.clip_spec import frame_indices as frame_indices
    from tillwatch.config import TrainConfig as TrainConfig
    from tillwatch.data.catalog import find_clips as find_clips
    from tillwatch.data.dataset import VideoFrameDataset as VideoFrameDataset
    from tillwatch.data.sampler import BalancedSampler as BalancedSampler
    from tillwatch.data.splits import split_clips as split_clips
    from tillwatch.data.transforms import eval_transform as eval_transform
    from tillwatch.data.transforms import train_transform as train_transform
    from tillwatch.errors import TillwatchError as TillwatchError
    from tillwatch.models.backbones import build_model as build_model
    from tillwatch.models.saved import Classifier as Classifier
    from tillwatch.models.saved import load_model as load_model
    from tillwatch.training.loop import train as train

__version__ = "0.1.0"

_HOMES = {
    "BalancedSampler": "tillwatch.data.sampler",
    "ClipSpec": "tillwatch.clip_spec",
    "Classifier": "tillwatch.models.saved",
    "FrameStep": "tillwatch.clip_spec",
    "TillwatchError": "tillwatch.errors",
    "TrainConfig": "tillwatch.config",
    "VideoFrameDataset": "tillwatch.data.dataset",
    "build_model": "tillwatch.models.backbones",
    "eval_transform": "tillwatch.data.transforms",
    "find_clips": "tillwatch.data.catalog",
    "frame_indices": "tillwatch.clip_spec",
    "load_model": "tillwatch.models.saved",
    "split_clips": "tillwatch.data.splits",
    "train": "tillwatch.training.loop",
    "train_transform": "tillwatch.data.transforms",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tillwatch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""VideoFrameDataset: labelled clips as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from tillwatch.clip_spec import FrameStep, Roi, Size, frame_indices
from tillwatch.data.catalog import Catalog, Clip, Skip, find_clips
from tillwatch.data.frames import list_frames, read_frames
from tillwatch.data.sampler import Draw
from tillwatch.data.transforms import train_transform
from tillwatch.data.video import read_video
from tillwatch.errors import ClipError

Transform = Callable[[torch.Tensor], torch.Tensor]


def read_clip(
    clip: Clip,
    num_frames: int,
    step: FrameStep | None = None,
    resize: Size | None = None,
    roi: Roi | None = None,
) -> NDArray[np.uint8]:
    """Reads a clip's frames: every k-th of its source, then ``num_frames`` of them spread uniformly.

    Args:
        clip: a frame folder or a video file.
        num_frames: frames wanted.
        step: which frames of a video count; a frame folder's own step was settled when it was catalogued.
        resize: (height, width) that each frame is squeezed to; None to leave them as they are.
        roi: what to cut out of a video's frames; of a frame folder it was cut out when it was extracted.

    Returns:
        uint8 ``(num_frames, H, W, 3)``, RGB.

    Raises:
        ClipError: if the clip cannot be read.
    """
    if clip.is_video:
        return read_video(clip.path, num_frames, step, resize, roi)
    frames = list_frames(clip.path)[:: clip.frame_step]
    if not frames:
        raise ClipError(f"{clip.path}: the folder holds no image.")
    return read_frames([frames[index] for index in frame_indices(len(frames), num_frames)], resize)


class VideoFrameDataset(Dataset[tuple[torch.Tensor, int]]):
    """Clips in class folders, each a folder of frames (``root/<class>/<video>/*.jpg``) or a video file.

    An item is (clip, label): the clip float32 ``(C, T, H, W)`` as the default transform returns it, the
    label an int, the class's place in ``classes``. It is asked for by an int, or by a :class:`Draw`, which
    says with its position in the epoch what augmentation it gets: the same Draw always gives the same item.

    Args:
        root: the folder that holds the class folders.
        classes: their names; the order gives the labels.
        num_frames: frames per clip, sampled uniformly; shorter clips repeat frames.
        transform: takes uint8 ``(T, C, H, W)``, RGB. None for the training transform (128x128 squeezed,
            random 112x112 crop, horizontal flip, normalised). Its ``resize`` attribute, where it has one,
            is the (height, width) that frames are read at.
        short: what becomes of clips with fewer frames: "repeat", "skip" or "error".
        step: which frames of a source count.
        roi: what to cut out of a video's frames.
        seed: of the augmentation.
        clips: the clips to use instead of searching ``root``.

    Attributes:
        samples: (path, label) of each clip, in order.
        classes: class names in label order.
        class_counts: clips of each class.
        skipped: clips left out, each with its reason.
        notes: what else was noticed, in sentences.

    Raises:
        DataError, ConfigError: as :func:`find_clips`; items raise ClipError.
    """

    def __init__(
        self,
        root: str | Path,
        classes: Sequence[str],
        num_frames: int = 32,
        transform: Transform | None = None,
        *,
        short: Literal["repeat", "skip", "error"] = "repeat",
        step: FrameStep | None = None,
        roi: Roi | None = None,
        seed: int = 0,
        clips: Sequence[Clip] | None = None,
    ) -> None:
        if clips is None:
            catalog = find_clips(Path(root), classes, num_frames=num_frames, step=step, short=short)
        else:
            catalog = Catalog(clips=tuple(clips), classes=tuple(classes))
        self.root = Path(root)
        self.clips = catalog.clips
        self.classes = catalog.classes
        self.class_counts = catalog.class_counts
        self.skipped: tuple[Skip, ...] = (*catalog.skipped, *catalog.too_short)
        self.notes = catalog.notes
        self.num_frames = num_frames
        self.transform: Transform = train_transform() if transform is None else transform
        self.step = step
        self.roi = roi
        self.seed = seed
        labels = {name: index for index, name in enumerate(self.classes)}
        self.samples = [(clip.path, labels[clip.label]) for clip in self.clips]
        self._own_random: torch.Generator | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | Draw) -> tuple[torch.Tensor, int]:
        index = key.index if isinstance(key, Draw) else key
        size: Size | None = getattr(self.transform, "resize", None)
        frames = read_clip(self.clips[index], self.num_frames, self.step, size, self.roi)
        clip = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
        # torchvision's transforms draw from the global generator: lend it a seed of our own, then restore it.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._augmentation_seed(key))
            return self.transform(clip), self.samples[index][1]

    def _augmentation_seed(self, key: int | Draw) -> int:
        if isinstance(key, Draw):
            return key.seed(self.seed)
        # A worker's seed differs by worker and by epoch, so plain samplers get fresh augmentation too. The
        # generator of the process that the data set was copied from is not a worker's own.
        worker = get_worker_info()
        seed = self.seed if worker is None else worker.seed
        if self._own_random is None or self._own_random.initial_seed() != seed:
            self._own_random = torch.Generator().manual_seed(seed)
        return int(torch.randint(2**62, (), generator=self._own_random))

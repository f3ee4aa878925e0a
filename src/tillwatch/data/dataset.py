"""VideoFrameDataset: labelled clips as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, get_worker_info

from tillwatch.clip_spec import FrameStep, Reading, Roi, frame_indices
from tillwatch.data.catalog import Catalog, Clip, Skip, find_clips
from tillwatch.data.frames import list_frames, read_frames
from tillwatch.data.sampler import Draw
from tillwatch.data.store import ClipStore
from tillwatch.data.transforms import train_transform
from tillwatch.data.video import read_video
from tillwatch.errors import ClipError

Transform = Callable[[torch.Tensor], torch.Tensor]


def read_clip(clip: Clip, reading: Reading) -> NDArray[np.uint8]:
    """Reads a clip's frames: every k-th of its source, then ``num_frames`` of them spread uniformly.

    Returns:
        uint8 ``(num_frames, H, W, 3)``, RGB.

    Raises:
        ClipError: if the clip cannot be read.
    """
    if clip.is_video:
        return read_video(clip.path, reading.num_frames, reading.step, reading.resize, reading.roi)
    frames = list_frames(clip.path)[:: clip.frame_step]
    if not frames:
        raise ClipError(f"{clip.path}: the folder holds no image.")
    wanted = [frames[index] for index in frame_indices(len(frames), reading.num_frames)]
    return read_frames(wanted, reading.resize, reading.draft)


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
            random 112x112 crop, horizontal flip, normalised). Its attributes ``resize`` and ``draft``, where it has
            them, say how frames are read, see :class:`Reading`.
        short: what becomes of clips with fewer frames: "repeat", "skip" or "error".
        step: which frames of a source count.
        roi: what to cut out of a video's frames.
        seed: of the augmentation.
        clips: the clips to use instead of searching ``root``.
        store: keeps decoded clips; None decodes them each time.

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
        store: ClipStore | None = None,
    ) -> None:
        if clips is None:
            catalog = find_clips(Path(root), classes, num_frames=num_frames, step=step, short=short)
        else:
            catalog = Catalog(
                clips=tuple(clips), classes=tuple(classes), ungrouped=frozenset(clip.name for clip in clips)
            )
        self.root = Path(root)
        self.clips = catalog.clips
        self.classes = catalog.classes
        self.class_counts = catalog.class_counts
        self.skipped: tuple[Skip, ...] = (*catalog.skipped, *catalog.too_short)
        self.notes = catalog.notes
        self.num_frames = num_frames
        self.transform: Transform = train_transform() if transform is None else transform
        self.reading = Reading(
            num_frames=num_frames,
            step=step or FrameStep(),
            roi=roi,
            resize=getattr(self.transform, "resize", None),
            draft=getattr(self.transform, "draft", None),
        )
        self.seed = seed
        self.store = store
        labels = {name: index for index, name in enumerate(self.classes)}
        self.samples = [(clip.path, labels[clip.label]) for clip in self.clips]
        self._own_random: torch.Generator | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | Draw) -> tuple[torch.Tensor, int]:
        index = key.index if isinstance(key, Draw) else key
        frames = self.read(index)
        clip = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
        # Transforms draw from torch's global generator: lend it a seed of our own, then restore it.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.augmentation_seed(key))
            return self.transform(clip), self.samples[index][1]

    def read(self, index: int) -> NDArray[np.uint8]:
        """Reads a clip's frames, from the store if they are kept there.

        Returns:
            uint8 ``(num_frames, H, W, 3)``, RGB; perhaps read-only.

        Raises:
            ClipError: if the clip cannot be read.
        """
        clip = self.clips[index]
        if self.store is None:
            return read_clip(clip, self.reading)
        frames = self.store.find(clip, self.reading)
        if frames is None:
            frames = read_clip(clip, self.reading)
            self.store.keep(clip, self.reading, frames)
        return frames

    def augmentation_seed(self, key: int | Draw) -> int:
        """Returns the seed of an item's augmentation: a Draw's own, or the next of this process."""
        if isinstance(key, Draw):
            return key.seed(self.seed)
        # A worker's seed differs by worker and by epoch, so plain samplers get fresh augmentation too. The
        # generator of the process that the data set was copied from is not a worker's own.
        worker = get_worker_info()
        seed = self.seed if worker is None else worker.seed
        if self._own_random is None or self._own_random.initial_seed() != seed:
            self._own_random = torch.Generator().manual_seed(seed)
        return int(torch.randint(2**62, (), generator=self._own_random))

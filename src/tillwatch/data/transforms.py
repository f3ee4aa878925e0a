"""Training and evaluation transforms of whole clips: every frame of a clip gets the same crop and flip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tillwatch.clip_spec import Size, Triple, draft_for, frame_indices

#: What torchvision's R(2+1)D weights were trained with; other networks bring their own.
KINETICS_MEAN: Triple = (0.43216, 0.394666, 0.37645)
KINETICS_STD: Triple = (0.22803, 0.22145, 0.216989)


class Place(NamedTuple):
    """What augmentation does to a clip: where its crop lies, in pixels, and whether it is mirrored."""

    top: int
    left: int
    flip: bool


class ClipTransform:
    """Crop, flip, values to [0, 1], normalise: of one clip, or of a batch of bytes on any device.

    What is random, the place, is drawn apart from what is done, so that a data loader's worker can draw it and a GPU
    can do it.

    Args:
        resize: (height, width) that frames must have been read at, see ``read_frames(resize=...)``.
            Resizing while reading keeps one small frame in memory instead of a clip of large ones.
        crop: (height, width) of the crop, within ``resize``.
        mean, std: of each channel; None for both leaves the values in [0, 1].
        augment: random crop and flip; otherwise the centre crop, its corner rounded as torchvision rounds it.
        draft: least size that JPEGs are to be decoded at, see ``read_frames(draft=...)``.
        shrink: frames and (height, width) that each clip is reduced to after the crop; None leaves it as it is.
        planar: whether batches lie in memory channel by channel, as engines other than torch take them; for the CPU.
    """

    def __init__(
        self,
        resize: Size,
        crop: Size,
        mean: Triple | None,
        std: Triple | None,
        *,
        augment: bool,
        draft: Size | None = None,
        shrink: tuple[int, Size] | None = None,
        planar: bool = False,
    ) -> None:
        self.resize = resize
        self.crop = crop
        self.mean = mean
        self.std = std
        self.augment = augment
        self.draft = draft
        self.shrink = shrink
        self.planar = planar

    def shrunk(self, num_frames: int, size: Size) -> ClipTransform:
        """Returns the same transform that then takes ``num_frames`` spread uniformly, and squeezes each to ``size``."""
        return ClipTransform(
            self.resize,
            self.crop,
            self.mean,
            self.std,
            augment=self.augment,
            draft=self.draft,
            shrink=(num_frames, size),
        )

    def place(self, generator: torch.Generator | None = None) -> Place:
        """Draws where the crop lies and whether the clip is mirrored; the centre if nothing is random.

        Args:
            generator: what to draw from; None for torch's global one.
        """
        spare = self.resize[0] - self.crop[0], self.resize[1] - self.crop[1]
        if not self.augment:
            return Place(round(spare[0] / 2), round(spare[1] / 2), False)
        top, left = (int(torch.randint(0, most + 1, (), generator=generator)) for most in spare)
        return Place(top, left, bool(torch.rand((), generator=generator) < 0.5))

    def batch(self, frames: torch.Tensor, places: Sequence[Place]) -> torch.Tensor:
        """Transforms clips where they lie, on the CPU or a GPU.

        Args:
            frames: uint8 ``(B, T, H, W, C)`` with (H, W) equal to ``resize``.
            places: one for each clip.

        Returns:
            float32 ``(B, C, T', H', W')`` in channels_last_3d memory, or contiguous where ``planar``; the same values.

        Raises:
            ValueError: for frames of another size.
        """
        if tuple(frames.shape[2:4]) != self.resize:
            raise ValueError(f"frames are {tuple(frames.shape[2:4])}, this transform takes {self.resize}")
        if self.planar and self.shrink is None:
            return torch.from_numpy(self._looked_up(frames.numpy(), places))
        if self.shrink is not None:
            frames = frames[:, frame_indices(frames.shape[1], self.shrink[0]).tolist()]
        height, width = self.crop
        cut = [
            clip[:, top : top + height, left : left + width].flip(2)
            if flip
            else clip[:, top : top + height, left : left + width]
            for clip, (top, left, flip) in zip(frames, places, strict=True)
        ]
        values = self._values(torch.stack(cut))
        if self.shrink is not None:
            images = values.flatten(0, 1).permute(0, 3, 1, 2)  # channels last in memory, and stays so
            smaller = F.interpolate(images, self.shrink[1], mode="bilinear", antialias=True)
            values = smaller.permute(0, 2, 3, 1).reshape(*values.shape[:2], *self.shrink[1], -1)
        return values.permute(0, 4, 1, 2, 3)

    def _values(self, frames: torch.Tensor) -> torch.Tensor:
        """Bytes ``(..., H, W, C)`` to values as the network takes them."""
        values = frames.to(torch.float32).div_(255)
        if self.mean is not None and self.std is not None:
            # Row by row of (width x channels) values: three at a time would be slow.
            rows, width = values.flatten(-2), frames.shape[-2]
            rows.sub_(rows.new_tensor(self.mean).repeat(width)).div_(rows.new_tensor(self.std).repeat(width))
        return values

    def _looked_up(self, frames: NDArray[np.uint8], places: Sequence[Place]) -> NDArray[np.float32]:
        """As :meth:`batch`, channel by channel: a byte has but 256 values, which are computed once."""
        channels, (height, width) = frames.shape[-1], self.crop
        of_byte = self._values(torch.arange(256, dtype=torch.uint8)[:, None, None].expand(-1, 1, channels)).numpy()
        values = np.empty((len(frames), channels, frames.shape[1], height, width), np.float32)
        for clip, (top, left, flip), out in zip(frames, places, values, strict=True):
            cut = clip[:, top : top + height, left : left + width]
            for channel in range(channels):
                bytes_ = cut[:, :, ::-1, channel] if flip else cut[..., channel]
                np.take(of_byte[:, 0, channel], bytes_, out=out[channel], mode="clip")  # "raise" would copy first
        return values

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Transforms one clip, drawing from torch's global generator as torchvision's transforms do.

        Args:
            frames: uint8 ``(T, C, H, W)`` with (H, W) equal to ``resize``.

        Returns:
            float32 ``(C, T, H', W')``.

        Raises:
            ValueError: for frames of another size.
        """
        return self.batch(frames.permute(0, 2, 3, 1)[None], [self.place()])[0].contiguous()


def train_transform(
    resize: Size = (128, 128),
    crop: Size = (112, 112),
    mean: Triple | None = KINETICS_MEAN,
    std: Triple | None = KINETICS_STD,
) -> ClipTransform:
    """Random crop, random horizontal flip, values to [0, 1], normalised.

    Args:
        resize: (height, width) that frames are read at.
        crop: (height, width) of the random crop, within ``resize``.
        mean, std: of each channel; None for both leaves the values in [0, 1].
    """
    return ClipTransform(resize, crop, mean, std, augment=True, draft=draft_for(resize))


def eval_transform(
    resize: Size = (128, 128),
    crop: Size = (112, 112),
    mean: Triple | None = KINETICS_MEAN,
    std: Triple | None = KINETICS_STD,
) -> ClipTransform:
    """Centre crop, values to [0, 1], normalised; nothing random. Arguments as :func:`train_transform`."""
    return ClipTransform(resize, crop, mean, std, augment=False, draft=draft_for(resize))

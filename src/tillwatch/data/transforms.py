"""Training and evaluation transforms of a whole clip: every frame gets the same crop and flip."""

from __future__ import annotations

import torch
from torchvision.transforms import v2

from tillwatch.clip_spec import Size, Triple

#: What torchvision's R(2+1)D weights were trained with; other networks bring their own.
KINETICS_MEAN: Triple = (0.43216, 0.394666, 0.37645)
KINETICS_STD: Triple = (0.22803, 0.22145, 0.216989)


class ClipTransform:
    """A chain of torchvision transforms on a clip whose frames are read at a known size.

    Attributes:
        resize: (height, width) that frames must have been read at, see ``read_frames(resize=...)``.
            Resizing while reading keeps one small frame in memory instead of a clip of large ones.
    """

    def __init__(self, resize: Size, chain: v2.Compose) -> None:
        self.resize = resize
        self.chain = chain

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Transforms a clip.

        Args:
            frames: uint8 ``(T, C, H, W)`` with (H, W) equal to :attr:`resize`.

        Returns:
            float32 ``(C, T, H', W')``.

        Raises:
            ValueError: for frames of another size.
        """
        if tuple(frames.shape[-2:]) != self.resize:
            raise ValueError(f"frames are {tuple(frames.shape[-2:])}, this transform takes {self.resize}")
        out: torch.Tensor = self.chain(frames)
        return out.transpose(0, 1).contiguous()


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
    return ClipTransform(resize, v2.Compose([v2.RandomCrop(crop), v2.RandomHorizontalFlip(), *_to_float(mean, std)]))


def eval_transform(
    resize: Size = (128, 128),
    crop: Size = (112, 112),
    mean: Triple | None = KINETICS_MEAN,
    std: Triple | None = KINETICS_STD,
) -> ClipTransform:
    """Centre crop, values to [0, 1], normalised; nothing random. Arguments as :func:`train_transform`."""
    return ClipTransform(resize, v2.Compose([v2.CenterCrop(crop), *_to_float(mean, std)]))


def _to_float(mean: Triple | None, std: Triple | None) -> list[torch.nn.Module]:
    chain: list[torch.nn.Module] = [v2.ToDtype(torch.float32, scale=True)]
    if mean is not None and std is not None:
        chain.append(v2.Normalize(list(mean), list(std)))
    return chain

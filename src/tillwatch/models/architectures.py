"""Every model that --arch can name: what it takes, and the file that it lies in."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn

from tillwatch.clip_spec import ClipSpec
from tillwatch.errors import ConfigError, ModelError, did_you_mean, one_line
from tillwatch.files import DigestWriter, replacing
from tillwatch.models import motion
from tillwatch.models.backbones import BACKBONES, Backbone, backbone, build_model, read_state_dict
from tillwatch.models.motion import Motion, MotionNetwork
from tillwatch.signals import signals_later


def architecture(arch: str) -> Backbone | Motion:
    """Returns what is known of a model.

    Raises:
        ConfigError: listing the names, if there is none of this name.
    """
    if arch == motion.ARCH:
        return motion.MOTION
    if arch not in BACKBONES:
        names = (*BACKBONES, motion.ARCH)
        raise ConfigError(f"--arch is {arch!r}; it must be one of {', '.join(names)}.{did_you_mean(arch, names)}")
    return backbone(arch)


def check_input_size(arch: str, num_frames: int, crop: tuple[int, int]) -> None:
    """Refuses clips that a model cannot take, before any work.

    Raises:
        ConfigError: naming the size and what the model takes.
    """
    known = architecture(arch)
    if known.fixed and (num_frames, *crop) != (known.num_frames, known.crop, known.crop):
        raise ConfigError(
            f"{arch} takes {known.num_frames} frames of {known.crop}x{known.crop} and nothing else, not "
            f"{num_frames} of {crop[0]}x{crop[1]}; drop --num-frames and --crop, or take another --arch."
        )
    if num_frames < known.min_frames:
        raise ConfigError(f"{arch} takes at least {known.min_frames} frames; --num-frames is {num_frames}.")
    if min(crop) < known.min_crop:
        raise ConfigError(
            f"{arch} takes at least {known.min_crop}x{known.min_crop} pixels; --crop is {crop[0]}x{crop[1]}."
        )


def model_file(arch: str) -> str:
    """Returns the name of the file that what a model has learnt lies in."""
    return "model.skops" if arch == motion.ARCH else "model.pth"


def packages(arch: str) -> tuple[str, ...]:
    """Returns the distributions whose versions decide a model's scores."""
    read_with = ("tillwatch", "torch", "torchvision", "Pillow", "av")
    return (*read_with, "opencv-python-headless", "scikit-learn", "skops") if arch == motion.ARCH else read_with


def write_network(folder: Path, network: nn.Module, arch: str) -> Path:
    """Writes what a network has learnt into its file below a folder, whole or not at all, and returns the file."""
    path = folder / model_file(arch)
    if isinstance(network, MotionNetwork):
        motion.save_trees(path, network)
    else:
        save_state_dict(path, network)
    return path


def read_network(path: Path, spec: ClipSpec) -> nn.Module:
    """Reads what :func:`write_network` wrote, executing nothing in it.

    Raises:
        ModelError: if the file is missing, damaged, or not of a network as the spec describes.
    """
    if spec.arch == motion.ARCH:
        return motion.load_trees(path, len(spec.classes))
    state = read_state_dict(path)
    network = build_model(spec.arch, len(spec.classes), weights=None)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ModelError(
            f"weights {path} are not those of a {spec.arch} with {len(spec.classes)} classes ({one_line(error)[:160]})."
        ) from None
    return network


def save_state_dict(path: Path, network: nn.Module) -> None:
    """Writes a network's state dict, on the CPU."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    # Through an open file: given a path, torch.save puts the name into the archive and so into the hash.
    with replacing(path, "wb") as file:
        write_tensors(file, state)


def write_tensors(file: IO[bytes], data: Any) -> bytes:
    """Writes what torch.load reads with weights_only=True; returns the SHA-256 of its bytes, 32 bytes.

    Raises:
        OSError: if the system refuses, and nothing else then.
    """
    writer = DigestWriter(file)
    with signals_later():  # what is raised inside of torch.save comes out as another error
        torch.save(data, cast(IO[bytes], writer))
    return writer.close()

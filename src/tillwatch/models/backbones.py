"""torchvision's video networks with a new head: what each takes, its weights, and building one."""

from __future__ import annotations

import hashlib
import socket
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn
from torchvision.models import video

from tillwatch.clip_spec import Triple
from tillwatch.errors import ConfigError, ModelError, did_you_mean, one_line

KINETICS = "kinetics400"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """What torchvision does not say of a network: what it takes, and where its head is.

    Attributes:
        builder: torchvision's function.
        weights: torchvision's Kinetics-400 weights; they bring mean, std and address.
        num_frames, resize, crop: what it is meant for; sizes in pixels, square.
        head: dotted name of the last layer.
        min_frames, min_crop: the least it can take.
        fixed: takes ``num_frames`` and ``crop`` and nothing else.
        last_map: dotted name of the module whose output is the last map of a convolutional network; None for others.
    """

    builder: Callable[..., nn.Module]
    weights: Any
    num_frames: int
    resize: int
    crop: int
    head: str
    min_frames: int = 1
    min_crop: int = 16
    fixed: bool = False
    last_map: str | None = None

    @property
    def mean(self) -> Triple:
        """Channel means that its weights were trained with."""
        red, green, blue = self.weights.transforms().mean
        return red, green, blue

    @property
    def std(self) -> Triple:
        """Channel standard deviations that its weights were trained with."""
        red, green, blue = self.weights.transforms().std
        return red, green, blue


def _resnet(builder: Callable[..., nn.Module], weights: Any) -> Backbone:
    # From 17 pixels on, the last map has more than one position: batch norm of one clip is defined.
    return Backbone(
        builder=builder,
        weights=weights,
        num_frames=32,
        resize=128,
        crop=112,
        head="fc",
        min_crop=17,
        last_map="layer4",
    )


def _swin(builder: Callable[..., nn.Module], weights: Any) -> Backbone:
    return Backbone(builder=builder, weights=weights, num_frames=32, resize=256, crop=224, head="head")


def _mvit(builder: Callable[..., nn.Module], weights: Any) -> Backbone:
    return Backbone(builder=builder, weights=weights, num_frames=16, resize=256, crop=224, head="head.1", fixed=True)


BACKBONES: dict[str, Backbone] = {
    "r2plus1d_18": _resnet(video.r2plus1d_18, video.R2Plus1D_18_Weights.KINETICS400_V1),
    "r3d_18": _resnet(video.r3d_18, video.R3D_18_Weights.KINETICS400_V1),
    "mc3_18": _resnet(video.mc3_18, video.MC3_18_Weights.KINETICS400_V1),
    "s3d": Backbone(
        builder=video.s3d,
        weights=video.S3D_Weights.KINETICS400_V1,
        num_frames=32,
        resize=256,
        crop=224,
        head="classifier.1",
        min_frames=14,  # this and the next are torchvision's min_temporal_size and min_size
        min_crop=224,
        last_map="features",
    ),
    "mvit_v1_b": _mvit(video.mvit_v1_b, video.MViT_V1_B_Weights.KINETICS400_V1),
    "mvit_v2_s": _mvit(video.mvit_v2_s, video.MViT_V2_S_Weights.KINETICS400_V1),
    "swin3d_t": _swin(video.swin3d_t, video.Swin3D_T_Weights.KINETICS400_V1),
    "swin3d_s": _swin(video.swin3d_s, video.Swin3D_S_Weights.KINETICS400_V1),
    "swin3d_b": _swin(video.swin3d_b, video.Swin3D_B_Weights.KINETICS400_V1),
}


def backbone(arch: str) -> Backbone:
    """Returns what is known of a network.

    Raises:
        ConfigError: listing the names, if there is none of this name.
    """
    if arch not in BACKBONES:
        raise ConfigError(
            f"--arch is {arch!r}; it must be one of {', '.join(BACKBONES)}.{did_you_mean(arch, BACKBONES)}"
        )
    return BACKBONES[arch]


def build_model(
    arch: str = "r2plus1d_18",
    num_classes: int = 2,
    dropout: float = 0.5,
    weights: str | Path | None = KINETICS,
    *,
    keep_head: bool = True,
) -> nn.Module:
    """Builds a torchvision video network whose head is Dropout, then its own last layer for ``num_classes``.

    For the three ResNets the head is ``fc = Sequential(Dropout(dropout), Linear(512, num_classes))``.

    Args:
        arch: one of :data:`BACKBONES`.
        num_classes: outputs, at least 2.
        dropout: probability, in [0, 1).
        weights: "kinetics400" for torchvision's, from its cache or the network; None for none; or the path
            of a state dict, torchvision's with 400 classes (the head starts anew) or a Tillwatch model's
            (see ``keep_head``), or of a folder that holds a model.pth.
        keep_head: whether the last layer of a Tillwatch model with as many classes is kept. Say False where
            its outputs may be other classes, or the same in another order.

    Returns:
        The network, in training mode, float32. It maps ``(B, C, T, H, W)`` to logits ``(B, num_classes)``.

    Raises:
        ConfigError: for an unknown network or impossible numbers.
        ModelError: if weights cannot be had, read, or are for another network.
    """
    known = backbone(arch)
    if num_classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes, not {num_classes}.")
    if not 0 <= dropout < 1:
        raise ConfigError(f"--dropout is {dropout}; it must be at least 0 and below 1.")
    state = None if weights is None else load_weights(arch, weights)
    model = known.builder(weights=None)
    _replace_head(model, known.head, num_classes, dropout)
    if state is not None:
        _load_into(model, state, arch, known.head, str(weights), keep_head)
    return model


def load_weights(arch: str, weights: str | Path) -> dict[str, torch.Tensor]:
    """Returns a state dict: torchvision's Kinetics-400 weights of a network, or what a path holds.

    Raises:
        ModelError: if it cannot be had or read.
    """
    if str(weights) == KINETICS:
        return read_state_dict(fetch_kinetics(arch))
    path = Path(weights)
    if path.is_dir():
        path = path / "model.pth"
    return read_state_dict(path)


def weights_url(arch: str) -> str:
    """Returns where torchvision keeps a network's Kinetics-400 weights."""
    return str(backbone(arch).weights.url)


def fetch_kinetics(arch: str, timeout_s: float = 20) -> Path:
    """Returns the file of torchvision's Kinetics-400 weights, downloading it unless it is cached.

    The cache is torch's own (``TORCH_HOME`` moves it); the file's name holds the start of its SHA-256,
    against which a download is checked.

    Args:
        arch: the network.
        timeout_s: seconds without an answer after which the network counts as absent.

    Raises:
        ModelError: if it is not cached and cannot be downloaded.
    """
    url = weights_url(arch)
    name = Path(urlparse(url).path).name
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if cached.is_file():
        return cached
    hash_prefix = Path(name).stem.rsplit("-", 1)[1]
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(timeout_s):
            torch.hub.download_url_to_file(url, str(cached), hash_prefix, progress=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ModelError(
            f"the {KINETICS} weights of {arch} are not on this machine and cannot be downloaded "
            f"({one_line(error)}): place {name} in {cached.parent}, or start from nothing with --weights none."
        ) from None
    return cached


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict without executing anything in it (``weights_only=True``).

    Raises:
        ModelError: if the file is missing, damaged, or anything but named tensors.
    """
    if not path.is_file():
        raise ModelError(f"weights {path} do not exist.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on damaged files
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"weights {path} are refused: not a file of plain tensors, damaged, or holding code, which is "
            f"never executed ({first[:120]})."
        ) from None
    if not isinstance(state, Mapping) or not state:
        raise ModelError(f"weights {path} hold a {type(state).__name__}, not a state dict of named tensors.")
    if not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        raise ModelError(f"weights {path} hold more than named tensors; save model.state_dict() alone.")
    return dict(state)


def head_of(model: nn.Module, arch: str) -> nn.Sequential:
    """Returns a built model's head, Dropout and last layer."""
    module = model.get_submodule(_head_parent(backbone(arch).head))
    if not isinstance(module, nn.Sequential):
        raise TypeError(f"the head of {arch} is a {type(module).__name__}; was it built by build_model?")
    return module


def _head_parent(head: str) -> str:
    """Where Dropout and last layer stand together: torchvision's own Sequential, or one we make."""
    return head.rsplit(".", 1)[0]


def _replace_head(model: nn.Module, head: str, num_classes: int, dropout: float) -> None:
    old = model.get_submodule(head)
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes)
    elif isinstance(old, nn.Conv3d):
        new = nn.Conv3d(old.in_channels, num_classes, kernel_size=1)
    else:
        raise TypeError(f"the last layer is a {type(old).__name__}")
    setattr(model, _head_parent(head), nn.Sequential(nn.Dropout(dropout), new))


def _load_into(
    model: nn.Module, state: dict[str, torch.Tensor], arch: str, head: str, source: str, keep_head: bool
) -> None:
    """Loads the backbone, and the head where it is ours, wanted, and has as many classes."""
    own = model.state_dict()
    parent = _head_parent(head)
    ours = f"{parent}.1.weight" in state and state[f"{parent}.1.weight"].shape[0] != 400
    wanted = {key for key in own if not key.startswith(f"{parent}.")}
    given = {key for key in state if not key.startswith(f"{parent}.")}
    wrong = sorted(key for key in wanted & given if own[key].shape != state[key].shape)
    if wanted != given or wrong:
        of = identify_arch(state)
        raise ModelError(
            f"weights {source} are for {of}, not for {arch}; say --arch {of}."
            if of
            else f"weights {source} are not for {arch}: {len(wanted - given)} tensors missing, "
            f"{len(given - wanted)} unknown, {len(wrong)} of another shape."
        )
    kept = {key: state[key] for key in wanted}
    head_keys = [f"{parent}.1.weight", f"{parent}.1.bias"]
    if keep_head and ours and all(key in state and state[key].shape == own[key].shape for key in head_keys):
        kept |= {key: state[key] for key in head_keys}
    model.load_state_dict(kept, strict=False)


def identify_arch(state: Mapping[str, torch.Tensor]) -> str | None:
    """Returns which of the nine networks a state dict's backbone belongs to, None if to none."""
    for arch, known in BACKBONES.items():
        with torch.device("meta"):
            own = known.builder(weights=None).state_dict()
        parent = _head_parent(known.head)
        shapes = {key: own[key].shape for key in own if not key.startswith(f"{parent}.")}
        if shapes == {key: state[key].shape for key in state if not key.startswith(f"{parent}.")}:
            return arch
    return None


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def digest_around(network: nn.Module, part: nn.Module) -> str:
    """Tells the weights of a network from others, but for those of a part of it."""
    own = {id(value) for value in (*part.parameters(), *part.buffers())}
    digest = hashlib.blake2b(digest_size=16)
    for name, value in network.state_dict(keep_vars=True).items():
        if id(value) not in own:
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

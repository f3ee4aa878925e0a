"""Training's settings: one frozen dataclass that is the command-line flags and the YAML keys; recipes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from cyclopts import Parameter, Token

from tillwatch.errors import ConfigError


def _split_commas(_type: Any, tokens: tuple[Token, ...]) -> tuple[str, ...]:
    names = [name.strip() for token in tokens for name in token.value.split(",")]
    if not all(names):
        raise ValueError("a name between the commas is empty")
    return tuple(names)


Names = Annotated[tuple[str, ...], Parameter(converter=_split_commas, consume_multiple=False, n_tokens=1, negative=())]


def _whole_number(_type: Any, tokens: tuple[Token, ...]) -> int:
    """Refuses 1.5, where the command-line library would cut the fraction off."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f'unable to convert "{tokens[0].value}" into int') from None


def _whole_number_or_auto(_type: Any, tokens: tuple[Token, ...]) -> int | Literal["auto"]:
    return "auto" if tokens[0].value == "auto" else _whole_number(_type, tokens)


Whole = Annotated[int, Parameter(converter=_whole_number)]
MaybeWhole = Annotated[int | None, Parameter(converter=_whole_number)]
WholeOrAuto = Annotated[int | Literal["auto"], Parameter(converter=_whole_number_or_auto)]


_AT_LEAST = {
    "num_frames": 1,
    "every": 1,
    "resize": 1,
    "crop": 1,
    "epochs": 1,
    "batch_size": 1,
    "patience": 1,
    "accumulate": 1,
    "devices": 1,
    "num_nodes": 1,
    "lr_patience": 0,
    "seed": 0,
    "workers": 0,
}
_AT_MOST = {"num_frames": 4096, "resize": 4096, "batch_size": 65536, "seed": 2**63 - 1}

NO_SYNC_ON_CPU = (
    "--sync-batchnorm is for GPUs alone (PyTorch's refuses tensors on a CPU); drop it: each process's batch norm then "
    "takes the statistics of its own clips."
)


#: What `--log` can name.
LOGS = ("tensorboard", "mlflow", "wandb")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Validated as a whole: every problem is named at once, but first what is no number.

    Attributes:
        recipe: a set of defaults that other flags override; `fast` trains small first, `original` repeats the
            well-known script.
        classes: class folders to use, in order: a,b. All of them unless given.
        event: the classes worth an alarm: a,b. Those not named like normal, background, other or no... unless given.
        arch: network, one of torchvision's video models; or motion, trees on optical flow that need seconds and no GPU.
        weights: kinetics400 (torchvision's), none, or a path to a .pth or run folder.
        num_frames: frames per clip. The network's own number unless given.
        every: take every k-th frame of the source. As extracted, or 1, unless given.
        fps: take frames at about this rate instead.
        resize: frames are squeezed to this many pixels each way.
        crop: pixels each way, cut at random in training and from the middle otherwise.
        normalize: subtract the mean and divide by the deviation that the weights were trained with.
        short: clips with fewer frames than wanted: repeat frames, skip the clip, or error.
        max_skipped: share of damaged clips over which training does not start (three are always allowed).
        groups: auto takes those of --group-pattern or clips.csv, else infers them from scenes, recordings and copies;
            file, pattern and none insist.
        group_pattern: regular expression on a clip's name; what it matches is the clip's group.
        split_file: a run's clips.csv whose split is used again.
        hold_out: keep 30 % of the clips, by group, out of training to measure on.
        epochs: passes over the training clips.
        batch_size: clips per step, over all devices; auto takes as many as fit in memory at once.
        accumulate: parts that a device takes its share of a step in, one after another, which needs less memory; auto
            takes as few as fit.
        lr: Adam's learning rate.
        dropout: before the last layer.
        lr_patience: epochs without improvement before the learning rate falls to a tenth.
        patience: epochs at full size without improvement before training stops; never unless given.
        plateau_on: the loss that the learning rate follows.
        keep: the epoch whose weights are kept.
        seed: of everything random.
        precision: auto is the fastest that is safe on this machine, and says why; weights and reports stay fp32.
        compile: let torch.compile make the network faster; needs a C++ compiler, and minutes to start.
        device: auto takes a GPU where there is one.
        devices: GPUs of this machine, or processes on its CPU, that train together.
        num_nodes: machines that train together; each runs the same command.
        sync_batchnorm: on GPUs, batch norm takes its statistics over all devices instead of each over its own clips.
        checkpoint_activations: compute activations again on the way back instead of keeping them: less memory, slower.
        workers: processes that read clips for each device; one per core but one, at most 4, unless given.
        freeze: backbone trains the head alone, on features that are computed once.
        early_share: share of the epochs, from the first, that train on fewer frames and pixels.
        early_frames: share of the frames that they take.
        early_pixels: share of the pixels each way.
        cache: keep decoded clips for later epochs and runs.
        cache_folder: where; the user's cache folder, or $TILLWATCH_CACHE, unless given.
        max_false_alarms_per_hour: choose the operating point on the validation clips by this budget.
        min_recall: choose it by this recall instead; with neither, by the best F1.
        normal_hours: of footage that all clips without the event stand for; their summed lengths unless given.
        normal_footage: folder of videos that the clips without the event were cut from; its length is normal_hours.
        prevalence: share of clips like these that show the event where you will use it, for alarms a day.
        baselines: score what needs no network, the commonest class, a single frame and motion, beside it.
        log: other programs that are told of each epoch: tensorboard,mlflow,wandb. metrics.csv is written anyway.
        checkpoint_minutes: time between checkpoints inside an epoch; each epoch ends with one anyway.
        save_as: also save the weights in RUN under this name.
        overwrite: replace RUN if it is an older run.
    """

    recipe: Literal["default", "fast", "original"] = "default"
    classes: Names | None = None
    event: Names | None = None
    arch: str = "r2plus1d_18"
    weights: str = "kinetics400"
    num_frames: MaybeWhole = None
    every: MaybeWhole = None
    fps: float | None = None
    resize: MaybeWhole = None
    crop: MaybeWhole = None
    normalize: bool = True
    short: Literal["repeat", "skip", "error"] = "repeat"
    max_skipped: float = 0.05
    groups: Literal["auto", "file", "pattern", "none"] = "auto"
    group_pattern: str | None = None
    split_file: Path | None = None
    hold_out: bool = True
    epochs: Whole = 30
    batch_size: WholeOrAuto = 4
    accumulate: WholeOrAuto = 1
    lr: float = 1e-4
    dropout: float = 0.5
    lr_patience: Whole = 3
    patience: MaybeWhole = None
    plateau_on: Literal["validation", "train"] = "validation"
    keep: Literal["best", "last"] = "best"
    seed: Whole = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Annotated[bool, Parameter(negative=())] = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Whole = 1
    num_nodes: Whole = 1
    sync_batchnorm: Annotated[bool, Parameter(negative=())] = False
    checkpoint_activations: Annotated[bool, Parameter(negative=())] = False
    workers: MaybeWhole = None
    freeze: Literal["none", "backbone"] = "none"
    early_share: float = 0.0
    early_frames: float = 0.5
    early_pixels: float = 0.7
    cache: bool = True
    cache_folder: Path | None = None
    max_false_alarms_per_hour: float | None = None
    min_recall: float | None = None
    normal_hours: float | None = None
    normal_footage: Path | None = None
    prevalence: float | None = None
    baselines: bool = True
    log: Names | None = None
    checkpoint_minutes: float = 10.0
    save_as: str | None = None
    overwrite: Annotated[bool, Parameter(negative=())] = False

    def __post_init__(self) -> None:
        problems = list(self._no_numbers()) or list(self._problems())
        if problems:
            raise ConfigError(" ".join(problems))

    @property
    def early_epochs(self) -> int:
        """How many epochs are of small clips, at most."""
        return early_epochs(self.early_share, self.epochs)

    @property
    def step_clips(self) -> int:
        """``batch_size``, once it is a number."""
        assert isinstance(self.batch_size, int), "settled before training starts"
        return self.batch_size

    @property
    def parts(self) -> int:
        """``accumulate``, once it is a number."""
        assert isinstance(self.accumulate, int), "settled before training starts"
        return self.accumulate

    @property
    def clips_at_once(self) -> int:
        """How many clips of a step a device has at one time, at most."""
        return -(-self.step_clips // (self.devices * self.num_nodes * self.parts))

    def _no_numbers(self) -> Iterator[str]:
        """Flags and files are read as what they must be; a call from Python may bring what YAML could not keep."""
        for name, hint in get_type_hints(type(self)).items():
            value, kinds = getattr(self, name), get_args(hint) or (hint,)
            if float in kinds:
                is_one, what = type(value) in (int, float), "an int or a float"
            elif int in kinds:
                is_one, what = type(value) is int, "a whole number"
            else:
                continue
            otherwise = (value is None and NoneType in kinds) or (value == "auto" and Literal["auto"] in kinds)
            if not (is_one or otherwise):
                yield f"{flag(name)} is {value!r}; it must be {what}."

    def _problems(self) -> Any:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                yield f"{flag(name)} is {value}; it must be at least {least}."
            elif isinstance(value, int) and value > _AT_MOST.get(name, value):
                yield f"{flag(name)} is {value}; it must be at most {_AT_MOST[name]}."
        for name in ("lr", "fps"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                yield f"{flag(name)} is {value}; it must be a positive number."
        if not 0 <= self.dropout < 1:
            yield f"--dropout is {self.dropout}; it must be at least 0 and below 1."
        if not 0 <= self.early_share <= 1:
            yield f"--early-share is {self.early_share}; it must be a share between 0 and 1."
        for name in ("early_frames", "early_pixels"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                yield f"{flag(name)} is {value}; it must be a share above 0, at most 1."
        for name in self.log or ():
            if name not in LOGS or (self.log or ()).count(name) > 1:
                yield f"--log is {','.join(self.log or ())}; it must be some of {', '.join(LOGS)}, each once."
                break
        if not (math.isfinite(self.checkpoint_minutes) and self.checkpoint_minutes >= 0):
            yield f"--checkpoint-minutes is {self.checkpoint_minutes}; it must be a number, at least 0."
        if self.freeze == "backbone" and self.early_share:
            yield "--freeze backbone takes each clip's features once; drop --early-share, or --recipe fast."
        if (self.batch_size, self.accumulate) == ("auto", "auto"):
            yield "--batch-size auto and --accumulate auto exclude each other; give a number for one."
        if self.sync_batchnorm and self.device == "cpu":
            yield NO_SYNC_ON_CPU
        if self.devices * self.num_nodes > 1 and self.freeze == "backbone":
            yield "--freeze backbone trains its head in seconds, on one device; drop --devices and --num-nodes."
        if self.freeze == "backbone" and (self.batch_size == "auto" or self.accumulate != 1):
            yield "--freeze backbone keeps all features in memory; give --batch-size a number, and drop --accumulate."
        if self.cache_folder is not None and not self.cache:
            yield "--no-cache and --cache-folder exclude each other; give one."
        if not 0 <= self.max_skipped <= 1:
            yield f"--max-skipped is {self.max_skipped}; it must be a share between 0 and 1."
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            yield f"--crop {self.crop} is larger than --resize {self.resize}; crop at most what is there."
        if self.every is not None and self.fps is not None:
            yield "--every and --fps exclude each other; give one."
        if not self.hold_out and (self.plateau_on, self.keep) != ("train", "last"):
            yield "--no-hold-out leaves nothing to validate on; add --plateau-on train --keep last."
        if not self.hold_out and self.patience is not None:
            yield "--no-hold-out leaves nothing to validate on; drop --patience."
        if not self.hold_out and self.split_file is not None:
            yield "--no-hold-out and --split-file exclude each other; give one."
        yield from self._point_problems()
        if self.save_as is not None and not re.fullmatch(r"[^/\\\0]{1,100}\.pth", self.save_as):
            yield f"--save-as is {self.save_as!r}; it must be a file name without folders that ends in .pth."

    def _point_problems(self) -> Any:
        budget, recall, hours = self.max_false_alarms_per_hour, self.min_recall, self.normal_hours
        if budget is not None and not (math.isfinite(budget) and budget >= 0):
            yield f"--max-false-alarms-per-hour is {budget}; it must be a number, at least 0."
        if recall is not None and not 0 < recall <= 1:
            yield f"--min-recall is {recall}; it must be a share above 0, at most 1."
        if budget is not None and recall is not None:
            yield "--max-false-alarms-per-hour and --min-recall exclude each other; give one."
        if hours is not None and not (math.isfinite(hours) and hours > 0):
            yield f"--normal-hours is {hours}; it must be a positive number."
        if hours is not None and self.normal_footage is not None:
            yield "--normal-hours and --normal-footage exclude each other; give one."
        if self.prevalence is not None and not 0 < self.prevalence < 1:
            yield f"--prevalence is {self.prevalence}; it must be a share between 0 and 1."
        if not self.hold_out and (budget is not None or recall is not None):
            yield "--no-hold-out leaves nothing to choose an operating point on; drop the budget or recall."


@dataclass(frozen=True, kw_only=True)
class ScanConfig:
    """How to scan footage.

    Attributes:
        window: seconds; the training clips' median length unless given.
        stride: seconds from a window to the next; half a window unless given.
        roi: NAME=x,y,width,height of a region in fractions of the frame; may be given often.
        cameras: YAML file of cameras, with the files and regions of each.
        release: share of the threshold that every window of an incident reaches.
        smoothing: windows, an odd number, that a score is the mean of.
        min_seconds: incidents that are shorter are dropped.
        merge_gap: incidents at most so many seconds apart are one; a window unless given.
        gate: auto skips windows in which nothing moves, without asking the model; what that costs must be measured.
        engine: what scores; auto takes the fastest that the model folder holds, int8 only if it passed its check.
        precision: fp32 or int8; the fastest of the engine unless given.
        device: auto takes a GPU where there is one.
        workers: processes that scan files side by side; they share the cores, and the result is the same.
        overwrite: replace another scan in the folder.
    """

    window: float | None = None
    stride: float | None = None
    roi: tuple[str, ...] = ()
    cameras: Path | None = None
    release: float = 0.8
    smoothing: Whole = 1
    min_seconds: float = 0.0
    merge_gap: float | None = None
    gate: Literal["auto", "off"] = "off"
    engine: Literal["auto", "torch", "openvino", "onnx"] = "auto"
    precision: Literal["fp32", "int8"] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: Whole = 1
    overwrite: Annotated[bool, Parameter(negative=())] = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"--workers is {self.workers}; it must be at least 1.")
        if self.roi and self.cameras is not None:
            raise ConfigError("--roi and --cameras exclude each other; give one.")


@dataclass(frozen=True, kw_only=True)
class NegativesConfig:
    """Which false alarms of a scan are kept as training clips.

    Attributes:
        collect_negatives: folder of clips that the worst false alarms are added to; needs --truth or --no-events.
        truth: table file,start,end of all events in the footage: incidents apart from them are false alarms.
        no_events: the footage holds no event, so every incident is a false alarm.
        max_negatives: at most so many, those with the highest peaks.
        negatives_class: class of the clips; the model's only class that is no event unless given.
    """

    collect_negatives: Path | None = None
    truth: Path | None = None
    no_events: Annotated[bool, Parameter(negative=())] = False
    max_negatives: Whole = 50
    negatives_class: str | None = None

    def __post_init__(self) -> None:
        if self.collect_negatives is None:
            if self.truth is not None or self.no_events or self.negatives_class is not None:
                raise ConfigError(
                    "--truth, --no-events and --negatives-class go with --collect-negatives; give it too."
                )
            return
        if self.truth is not None and self.no_events:
            raise ConfigError("--truth and --no-events exclude each other; give one.")
        if self.truth is None and not self.no_events:
            raise ConfigError(
                "--collect-negatives needs --truth TRUTH.csv, or a true event would be learnt as a false alarm; "
                "say --no-events if the footage holds none."
            )
        if self.max_negatives < 1:
            raise ConfigError(f"--max-negatives is {self.max_negatives}; it must be at least 1.")


#: What `--recipe` changes of the defaults. `original` is the well-known script; docs/recipes.md says where it differs.
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": {"early_share": 0.67, "early_frames": 0.5, "early_pixels": 0.5},
    "original": {
        "arch": "r2plus1d_18",
        "num_frames": 32,
        "every": 5,
        "resize": 128,
        "crop": 112,
        "normalize": False,
        "hold_out": False,
        "plateau_on": "train",
        "keep": "last",
        "save_as": "improved_cashlifting_model_01.pth",
    },
}


#: What `--resume` lets differ: it changes how fast a run learns, and not what, but for batch norm on other devices.
RESUME_MAY_CHANGE = (
    "accumulate",
    "cache",
    "cache_folder",
    "checkpoint_activations",
    "checkpoint_minutes",
    "device",
    "devices",
    "log",
    "num_nodes",
    "workers",
)


_SCALARS = (bool, int, float, str)


def early_epochs(share: float, epochs: int) -> int:
    """Returns how many epochs that share of all is; one at least is left at full size."""
    return min(round(share * epochs), epochs - 1)


def default_workers() -> int:
    """Returns how many processes read clips unless told: one per core but one, at most 4."""
    return max(0, min(4, (os.cpu_count() or 1) - 1))


def flag(name: str) -> str:
    """Returns the command-line flag of a field: num_frames to --num-frames."""
    return "--" + name.replace("_", "-")


def to_yaml(config: TrainConfig, data: Path, out: Path) -> str:
    """Returns the whole configuration as YAML that `train --config` reads back.

    Fields that are None are left out; `overwrite` is not part of what a run is.
    """
    values: dict[str, Any] = {"data": str(data), "out": str(out)}
    for field in fields(config):
        value = getattr(config, field.name)
        if value is None or field.name == "overwrite":
            continue
        values[field.name] = _plain(value)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """Returns a YAML file's mapping.

    Raises:
        ConfigError: if it cannot be read or holds something else.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2026-13-01 is a ValueError
        raise ConfigError(f"--config {path} is no YAML ({' '.join(str(error).split())}).") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"--config {path} must hold lines of the form key: value.")
    for key, value in data.items():
        if not all(
            item is None or isinstance(item, _SCALARS) for item in (value if isinstance(value, list) else [value])
        ):
            raise ConfigError(f"--config {path}: {key[:80]} must be a value, or a list of values.")
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value

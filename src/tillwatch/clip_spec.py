"""ClipSpec, the one contract between training and every later use, and which frames make a clip.

Pure values and arithmetic: nothing here reads a file or needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tillwatch.errors import ConfigError, DataError, ModelError

Size = tuple[int, int]  # height, width in pixels
Triple = tuple[float, float, float]  # red, green, blue

#: A threshold that not even a score of 1 reaches.
UNREACHED = math.nextafter(1.0, 2.0)

_LARGEST_SIDE = 16384  # pixels, _MOST_FRAMES, _FAR_OFF: beyond these a model.json is damaged
_MOST_FRAMES = 65536
_FAR_OFF = 1e6
_LONGEST_TOLD = 200

_NEGATIVE_NAMES = {"background", "negative", "other"}  # and all that begin with "no"


def frame_indices(num_available: int, num_frames: int) -> NDArray[np.int64]:
    """Returns which frames of a clip are used: spread uniformly, first and last included.

    A clip with fewer frames than asked for repeats some of them, by the same formula:
    ``np.linspace(0, num_available - 1, num_frames, dtype=int)``.

    Args:
        num_available: frames that the clip has after the frame step, at least 1.
        num_frames: frames wanted, at least 1.

    Returns:
        int64 ``(num_frames,)``, ascending, each in ``[0, num_available)``.

    Raises:
        ValueError: if either number is below 1.
    """
    if num_available < 1 or num_frames < 1:
        raise ValueError(f"cannot take {num_frames} of {num_available} frames; both must be at least 1")
    return np.linspace(0, num_available - 1, num_frames, dtype=int)


def event_scores(probabilities: NDArray[np.float64], event_indices: Sequence[int]) -> NDArray[np.float64]:
    """Returns the event probabilities: the sums of the event classes' probabilities.

    A sum of several has 14 significant digits: what is the same on paper, 0.7 + 0.1 and 0.6 + 0.2, is the same here,
    and reaches a threshold of 0.8. It is 1 at most, whatever the rounding of a table's digits adds to it.

    Args:
        probabilities: float64 ``(..., classes)``, not negative.
        event_indices: columns of the event's classes.

    Returns:
        float64 ``(...)``.
    """
    total: NDArray[np.float64] = probabilities[..., list(event_indices)].sum(-1)
    if len(event_indices) == 1:
        return total
    scale = 10.0 ** (13 - np.floor(np.log10(np.maximum(total, 1e-200))))
    rounded: NDArray[np.float64] = np.minimum(np.round(total * scale) / scale, 1.0)
    return rounded


@dataclass(frozen=True, kw_only=True)
class FrameStep:
    """Which frames of a source count: every k-th, with k fixed or chosen for a frame rate.

    Attributes:
        every: k itself; 1 takes each frame.
        fps: where given, k is the whole number that comes nearest to this rate (frames a second) for
            each source: ``max(1, round(source_fps / fps))``.
    """

    every: int = 1
    fps: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise ConfigError(f"--every is {shortened(self.every)}; it must be a whole number, at least 1.")
        if self.fps is not None and not (_is_number(self.fps) and self.fps > 0):
            raise ConfigError(f"--fps is {shortened(self.fps)}; it must be a positive number.")
        if self.fps is not None and self.every != 1:
            raise ConfigError("--every and --fps exclude each other; give one.")

    def of_source(self, source_fps: float | None) -> int:
        """Returns k for a source with ``source_fps`` frames a second.

        Raises:
            DataError: if k depends on the rate and the rate is unknown.
        """
        if self.fps is None:
            return self.every
        if source_fps is None:
            raise DataError("its frame rate is unknown, so --fps cannot choose frames; use --every.")
        return max(1, round(source_fps / self.fps))

    def of_stored(self, stored_every: int | None, stored_fps: float | None) -> int:
        """Returns the step through frames that were already taken, every ``stored_every``-th, from a source.

        Args:
            stored_every: source frames per stored frame; None if unknown, then the stored frames are
                taken to be the wanted ones.
            stored_fps: stored frames a second, None if unknown.

        Raises:
            DataError: if the wanted frames are not among the stored ones.
        """
        if stored_every is None:
            return 1
        source_fps = None if stored_fps is None else stored_fps * stored_every
        wanted = self.of_source(source_fps)
        if source_fps is not None and stored_every in {self.of_source(source_fps * f) for f in (1 - 1e-6, 1 + 1e-6)}:
            return 1  # half-way cases: the stored rate is rounded, the source's was not
        if wanted % stored_every:
            raise DataError(
                f"every {wanted}. frame of the source is wanted, but every {stored_every}. was extracted; "
                "extract again with a step that divides it."
            )
        return wanted // stored_every

    def __str__(self) -> str:
        return f"every {self.every}" if self.fps is None else f"{self.fps:g} fps"


@dataclass(frozen=True, kw_only=True)
class Roi:
    """A region of interest in fractions of the frame, after display rotation."""

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        numbers = (self.x, self.y, self.width, self.height)
        ordered = all(map(_is_number, numbers)) and min(self.x, self.y) >= 0 and min(self.width, self.height) > 0
        if not ordered or self.x + self.width > 1 + 1e-9 or self.y + self.height > 1 + 1e-9:
            raise ConfigError(
                f"--roi is {','.join(map(shortened, numbers))}; it must be x,y,width,height in fractions of the frame, "
                "inside it, such as 0.25,0.5,0.5,0.5."
            )

    @classmethod
    def parse(cls, text: str) -> Roi:
        """Reads ``"x,y,width,height"``."""
        try:
            x, y, width, height = (float(part) for part in text.split(","))
        except ValueError:
            raise ConfigError(
                f"--roi is {text!r}; it must be four fractions x,y,width,height, such as 0.25,0.5,0.5,0.5."
            ) from None
        return cls(x=x, y=y, width=width, height=height)

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns (left, top, right, bottom) in pixels of a frame, at least one pixel each way."""
        left = min(round(self.x * width), width - 1)
        top = min(round(self.y * height), height - 1)
        right = max(left + 1, min(width, round((self.x + self.width) * width)))
        bottom = max(top + 1, min(height, round((self.y + self.height) * height)))
        return left, top, right, bottom

    def __str__(self) -> str:
        return f"{self.x:g},{self.y:g},{self.width:g},{self.height:g}"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is read of a clip: which frames, what part of them, at which size.

    Attributes:
        num_frames: frames wanted, spread uniformly over those that the step leaves.
        step: which frames of a video count; a frame folder's own step was settled when it was catalogued.
        roi: what to cut out of a video's frames; of a frame folder it was cut out when it was extracted.
        resize: (height, width) that each frame is squeezed to; None leaves them as they are.
        draft: JPEGs are decoded at the smallest of libjpeg's scales that leaves at least this (height, width);
            None decodes them whole.
    """

    num_frames: int
    step: FrameStep = field(default_factory=FrameStep)
    roi: Roi | None = None
    resize: Size | None = None
    draft: Size | None = None


def draft_for(resize: Size) -> Size:
    """Returns the least size that a JPEG is decoded at when it is bound for ``resize``: twice as much each way.

    Decoded at just over its size, a frame passes through a coarser filter; at twice its size it is a few grey levels
    off at most, and a 1080p frame bound for 128 pixels still takes far less than decoded whole (docs/performance.md).
    """
    return 2 * resize[0], 2 * resize[1]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What happens to each frame, in this order: decode, resize, centre crop, scale, normalise.

    Attributes:
        resize: (height, width) that the whole frame is squeezed to, by Pillow's bilinear filter (a video's by
            FFmpeg's, nearly the same).
        crop: (height, width) cut from the middle of it.
        mean, std: per channel, of values in [0, 1]; None leaves the values in [0, 1].
        draft: least size at which JPEGs are decoded, as in :class:`Reading`; None, as in models of version 0.1,
            decodes them whole.
    """

    resize: Size
    crop: Size
    mean: Triple | None
    std: Triple | None
    draft: Size | None = None

    def to_steps(self) -> list[dict[str, Any]]:
        """Returns the ordered steps as they stand in model.json."""
        decode: dict[str, Any] = {"step": "decode", "colour": "RGB", "dtype": "uint8"}
        if self.draft is not None:
            decode["jpeg_draft"] = {
                "height": self.draft[0],
                "width": self.draft[1],
                "method": "PIL.Image.draft",
            }
        steps: list[dict[str, Any]] = [
            decode,
            {
                "step": "resize",
                "height": self.resize[0],
                "width": self.resize[1],
                "method": "PIL.Image.resize",
                "filter": "bilinear",
            },
            {"step": "center_crop", "height": self.crop[0], "width": self.crop[1]},
            {"step": "scale", "divide_by": 255},
        ]
        if self.mean is not None and self.std is not None:
            steps.append({"step": "normalize", "mean": list(self.mean), "std": list(self.std)})
        return steps

    @classmethod
    def from_steps(cls, steps: Sequence[Mapping[str, Any]]) -> Preprocessing:
        """Reads the steps of a model.json.

        Raises:
            ModelError: if they are not the steps that this version carries out, in its order.
        """
        try:
            by_name = {step["step"]: step for step in steps}
            resize, crop = by_name["resize"], by_name["center_crop"]
            normalize, draft = by_name.get("normalize"), by_name["decode"].get("jpeg_draft")
            preprocessing = cls(
                resize=(int(resize["height"]), int(resize["width"])),
                crop=(int(crop["height"]), int(crop["width"])),
                mean=None if normalize is None else _triple(normalize["mean"]),
                std=None if normalize is None else _triple(normalize["std"]),
                draft=None if draft is None else (int(draft["height"]), int(draft["width"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            told = shortened(f"{type(error).__name__}: {error}")
            raise ModelError(f"model.json: its preprocessing steps are malformed ({told}).") from None
        larger = preprocessing.crop[0] > preprocessing.resize[0] or preprocessing.crop[1] > preprocessing.resize[1]
        sizes = (*preprocessing.resize, *preprocessing.crop, *(preprocessing.draft or (1, 1)))
        possible = (
            min(sizes) >= 1 and max(sizes) <= _LARGEST_SIDE and _are_usable(preprocessing.mean, preprocessing.std)
        )
        if larger or not possible or preprocessing.to_steps() != [dict(step) for step in steps]:
            raise ModelError(
                "model.json: its preprocessing steps are not ones that this version of Tillwatch carries out."
            )
        return preprocessing


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Median and range of something measured on the training clips."""

    median: float
    min: float
    max: float

    def __post_init__(self) -> None:
        numbers = (self.min, self.median, self.max)
        if not all(map(_is_number, numbers)) or not 0 <= self.min <= self.median <= self.max:
            raise ConfigError(f"lengths of {shortened(numbers)} are not a range and its median.")

    @classmethod
    def of(cls, values: Sequence[float]) -> Lengths | None:
        """Summarises the values; None if there are none."""
        if not values:
            return None
        return cls(
            median=round(float(np.median(values)), 3),
            min=round(float(min(values)), 3),
            max=round(float(max(values)), 3),
        )


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """All that a later use must repeat: made once at training, saved beside the weights.

    Attributes:
        arch: name of the network.
        classes: in the order of the network's outputs.
        event: the classes worth an alarm; the event score is the sum of their probabilities.
        num_frames: frames in one forward pass.
        step: which frames of a source count.
        roi: what part of a source's frames the training clips show; None for all of it.
        preprocessing: the ordered steps from a decoded frame to the network's input.
        clip_seconds: how long the training clips were; None if that is unknown.
        clip_frames: how many frames they had after the step.
    """

    arch: str
    classes: tuple[str, ...]
    event: tuple[str, ...]
    num_frames: int
    step: FrameStep = field(default_factory=FrameStep)
    roi: Roi | None = None
    preprocessing: Preprocessing
    clip_seconds: Lengths | None = None
    clip_frames: Lengths | None = None

    @property
    def event_indices(self) -> tuple[int, ...]:
        """Positions of the event's classes among the outputs."""
        return tuple(self.classes.index(name) for name in self.event)

    @property
    def reading(self) -> Reading:
        """What is read of a clip under this spec."""
        prep = self.preprocessing
        return Reading(num_frames=self.num_frames, step=self.step, roi=self.roi, resize=prep.resize, draft=prep.draft)

    def to_json(self) -> dict[str, Any]:
        """Returns the spec as it stands in model.json."""
        return {
            "arch": self.arch,
            "classes": list(self.classes),
            "event": list(self.event),
            "num_frames": self.num_frames,
            "step": asdict(self.step),
            "roi": None if self.roi is None else asdict(self.roi),
            "steps": self.preprocessing.to_steps(),
            "clip_seconds": None if self.clip_seconds is None else asdict(self.clip_seconds),
            "clip_frames": None if self.clip_frames is None else asdict(self.clip_frames),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ClipSpec:
        """Reads what :meth:`to_json` wrote.

        Raises:
            ModelError: naming what is missing or malformed.
        """
        try:
            spec = cls(
                arch=str(data["arch"]),
                classes=tuple(map(str, data["classes"])),
                event=tuple(map(str, data["event"])),
                num_frames=int(data["num_frames"]),
                step=FrameStep(**data["step"]),
                roi=None if data["roi"] is None else Roi(**data["roi"]),
                preprocessing=Preprocessing.from_steps(data["steps"]),
                clip_seconds=None if data["clip_seconds"] is None else Lengths(**data["clip_seconds"]),
                clip_frames=None if data["clip_frames"] is None else Lengths(**data["clip_frames"]),
            )
        except KeyError as error:
            raise ModelError(f"model.json lacks {error.args[0]!r}; the model folder is damaged.") from None
        except (TypeError, ValueError, AttributeError, OverflowError, ConfigError) as error:
            raise ModelError(f"model.json is malformed: {shortened(error)}") from None
        unknown = set(spec.event) - set(spec.classes)
        if not _are_names(data["classes"]) or unknown or not spec.event or len(set(spec.classes)) != len(spec.classes):
            told = f"classes {shortened(data['classes'])}, event {shortened(data['event'])}"
            raise ModelError(f"model.json is malformed: {told}.")
        if not 1 <= spec.num_frames <= _MOST_FRAMES or spec.num_frames != data["num_frames"]:
            raise ModelError(f"model.json is malformed: num_frames is {shortened(data['num_frames'])}.")
        return spec


def choose_event(classes: Sequence[str], wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """Returns the classes worth an alarm.

    Unless told, every class whose name is not background, negative or other and does not begin with
    "no" (normal, none, noFight, non-theft).

    Args:
        classes: all classes.
        wanted: the event's classes, None to infer them.

    Raises:
        ConfigError: if a wanted class is unknown, all are wanted, or the names do not settle it.
    """
    if wanted is not None:
        unknown = [name for name in wanted if name not in classes]
        if unknown:
            raise ConfigError(f"--event names {unknown[0]!r}, but the classes are {', '.join(classes)}.")
        if not wanted or set(wanted) == set(classes):
            raise ConfigError("--event must name some of the classes and leave at least one out.")
        return tuple(name for name in classes if name in wanted)
    event = tuple(name for name in classes if not _sounds_negative(name))
    if not event or len(event) == len(classes):
        raise ConfigError(
            f"which of the classes {', '.join(classes)} is the event worth an alarm? Say so with --event CLASS[,CLASS]."
        )
    return event


def seconds_of(num_frames: int, fps: float | Fraction | None) -> float | None:
    """Returns how long frames at a rate last, in seconds; None if the rate is unknown."""
    return None if not fps else float(num_frames / fps)


def _sounds_negative(name: str) -> bool:
    return name.lower() in _NEGATIVE_NAMES or name.lower().startswith("no")


def shortened(value: object) -> str:
    """Returns a value as text that fits into a message, whatever it is."""
    text = str(value)
    return text if len(text) <= _LONGEST_TOLD else f"{text[:_LONGEST_TOLD]}..."


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _are_names(values: object) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, str) and value for value in values)


def _are_usable(mean: Triple | None, std: Triple | None) -> bool:
    """Whether values in [0, 1], less the mean, over the deviation, stay numbers that a network can be shown."""
    return all(abs(value) <= _FAR_OFF for value in mean or ()) and all(
        1 / _FAR_OFF <= value <= _FAR_OFF for value in std or ()
    )


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue

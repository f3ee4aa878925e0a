"""What was learnt and model.json: write, read, verify; and the classifier that they make."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tillwatch.clip_spec import (
    UNREACHED,
    ClipSpec,
    FrameStep,
    Lengths,
    Preprocessing,
    choose_event,
    draft_for,
    event_scores,
    frame_indices,
    shortened,
)
from tillwatch.data.catalog import Clip, describe_clip
from tillwatch.data.dataset import VideoFrameDataset, read_clip
from tillwatch.data.store import ClipStore
from tillwatch.data.transforms import ClipTransform
from tillwatch.data.video import squeeze
from tillwatch.errors import ClipError, ConfigError, ModelError, one_line
from tillwatch.files import sha256_of, write_json
from tillwatch.models.architectures import check_input_size, model_file, packages, read_network, write_network
from tillwatch.models.backbones import backbone
from tillwatch.models.engines import TORCH, Held, choose_engine, exports_of, read_export
from tillwatch.models.precision import lay_out

FORMAT = 1

_LONGEST_S = 1e9  # more than any footage lasts
_FAR_OUTSIDE = 2.0  # times shorter or longer than any training clip


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The event probability from which on a clip counts as the event.

    Attributes:
        threshold: in [0, 1].
        unit: what it was chosen on, "clip" or "incident".
        source: how it was chosen, in words.
        holds_for: of a threshold of incidents, how footage was scanned and what made them; None where that is not told.
    """

    threshold: float = 0.5
    unit: str = "clip"
    source: str = "default, not chosen on data"
    holds_for: Mapping[str, float | str] | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.threshold, int | float) and 0 <= self.threshold <= UNREACHED):
            raise ValueError(f"threshold {shortened(self.threshold)}")
        if self.unit not in ("clip", "incident") or not isinstance(self.source, str):
            raise ValueError(f"unit {shortened(self.unit)}, source {shortened(self.source)}")
        told = {} if self.holds_for is None else self.holds_for
        if not isinstance(told, dict) or not all(
            isinstance(value, str) or (isinstance(value, int | float) and abs(value) <= _LONGEST_S)
            for value in told.values()
        ):
            raise ValueError(f"holds_for {shortened(repr(told))}")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a classifier says of one clip.

    Attributes:
        predicted: the most probable class.
        probabilities: of each class, in class order; they sum to 1.
        event_probability: sum of the event classes' probabilities.
        is_event: whether that reaches the operating point.
        warnings: why the score may mean little, in sentences.
    """

    predicted: str
    probabilities: dict[str, float]
    event_probability: float
    is_event: bool
    warnings: tuple[str, ...] = ()


class Classifier:
    """A trained network with the contract it was trained under.

    Attributes:
        network: in evaluation mode, on :attr:`device`.
        spec: the contract.
        temperature: logits are divided by it.
        operating_point: in force for ``is_event``.
        sha256: of model.pth or model.skops, also where an export of it scores; empty for a bare .pth.
        assumptions: what a bare .pth left to be guessed, in sentences.
        held: the engine and precision that scores come from, and an export's files.
        notes: which engines had to be passed over and why, in sentences.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ClipSpec,
        *,
        temperature: float = 1.0,
        operating_point: OperatingPoint | None = None,
        sha256: str = "",
        assumptions: Sequence[str] = (),
        device: str | torch.device = "cpu",
        held: Held = TORCH,
        notes: Sequence[str] = (),
    ) -> None:
        self.device = torch.device(device)
        self.network = lay_out(network.to(self.device), self.device.type).eval()
        self.spec = spec
        self.temperature = temperature
        self.operating_point = operating_point or OperatingPoint()
        self.sha256 = sha256
        self.assumptions = tuple(assumptions)
        self.held = held
        self.notes = tuple(notes)
        self.transform = transform_of(spec.preprocessing, planar=held.engine != "torch")

    def probabilities(self, clips: torch.Tensor) -> NDArray[np.float64]:
        """Scores transformed clips: in fp32, unless :attr:`held` is an export to int8.

        Args:
            clips: float32 ``(B, C, T, H, W)``, as :attr:`transform` returns them.

        Returns:
            float64 ``(B, num_classes)``, rows sum to 1.
        """
        with torch.inference_mode(), true_fp32(self.device):
            logits = self.network(clips.to(self.device)).double() / self.temperature
        scores: NDArray[np.float64] = logits.softmax(1).cpu().numpy()
        return scores

    def predict(self, clip: str | Path | NDArray[np.uint8]) -> Prediction:
        """Scores one clip.

        Args:
            clip: a video file, a folder of frames, or frames as uint8 ``(T, H, W, 3)``, RGB. An array holds
                the frames that count: every k-th, cut to the region of interest, as the spec says.

        Raises:
            ClipError: if it cannot be read, or is an array of another shape or type.
        """
        spec = self.spec
        if isinstance(clip, np.ndarray):
            frames, warning = self._frames_of_array(clip)
        else:
            described = describe_clip(Path(clip), spec.num_frames, spec.step, spec.roi)
            frames = read_clip(described, spec.reading)
            warning = _length_warning(spec, described.stepped_frames, described.seconds)
        scores = self.probabilities(self.transform.batch(torch.from_numpy(frames)[None], [self.transform.place()]))[0]
        return self.prediction(scores, (warning,) if warning else ())

    def prediction(self, scores: NDArray[np.float64], warnings: tuple[str, ...] = ()) -> Prediction:
        """Puts names to the scores of one clip, float64 ``(num_classes,)``.

        Raises:
            ModelError: if they are not finite.
        """
        if not np.isfinite(scores).all():
            raise ModelError("the scores are not finite; the weights are broken.")
        event_probability = self.event_probability(scores[None])[0]
        return Prediction(
            predicted=self.spec.classes[int(scores.argmax())],
            probabilities=dict(zip(self.spec.classes, scores.tolist(), strict=True)),
            event_probability=float(event_probability),
            is_event=bool(event_probability >= self.operating_point.threshold),
            warnings=warnings,
        )

    def event_probability(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the sum of the event classes' probabilities: ``(N, num_classes)`` to ``(N,)``."""
        return event_scores(scores, self.spec.event_indices)

    def _frames_of_array(self, array: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], str | None]:
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
            raise ClipError(f"a clip is an array of {array.dtype} {array.shape}; it must be uint8 (T, H, W, 3), RGB.")
        kept = array[frame_indices(len(array), self.spec.num_frames)]
        size = self.spec.preprocessing.resize
        frames = np.stack([squeeze(np.ascontiguousarray(frame), size) for frame in kept])
        return frames, _length_warning(self.spec, len(array), None)


def save_model(
    folder: Path,
    network: nn.Module,
    spec: ClipSpec,
    *,
    temperature: float = 1.0,
    operating_point: OperatingPoint | None = None,
) -> str:
    """Writes model.pth, a plain state dict (of the motion model model.skops), and model.json, each whole or not at all.

    Returns:
        The SHA-256 of the first.
    """
    sha256 = sha256_of(write_network(folder, network, spec.arch))
    write_json(
        folder / "model.json",
        {
            "format": FORMAT,
            **spec.to_json(),
            "temperature": temperature,
            "operating_point": asdict(operating_point or OperatingPoint()),
            "sha256": sha256,
            "versions": {name: version(name) for name in packages(spec.arch)},
        },
    )
    return sha256


def write_operating_point(folder: Path, point: OperatingPoint) -> None:
    """Gives a model folder another operating point; all else in model.json stays.

    Raises:
        ModelError: if the folder holds no model.json that can be read.
    """
    write_json(folder / "model.json", {**read_record(folder), "operating_point": asdict(point)})


def write_export(folder: Path, export: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Names an export in a folder's model.json, in place of an older one of the same engine and precision.

    A threshold of incidents that was chosen with this folder stays, as long as the model is the same.

    Args:
        folder: of the export's files; perhaps without a model.json as yet.
        export: engine, precision, files (SHA-256 by path below the folder), of (SHA-256 of what was exported), check
            and versions.
        record: model.json of the model that was exported.
    """
    known = read_record(folder) if (folder / "model.json").is_file() else {}
    exports = {**known.get("exports", {}), f"{export['engine']}-{export['precision']}": dict(export)}
    point = known.get("operating_point", {})
    own = {"operating_point": point} if known.get("sha256") == record["sha256"] and _of_incidents(point) else {}
    write_json(folder / "model.json", {**record, **own, "exports": exports})


def _of_incidents(point: object) -> bool:
    return isinstance(point, dict) and point.get("unit") == "incident"


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a user says of a bare state dict, which says nothing itself.

    Attributes:
        arch, classes: must be given; the classes in the order of the outputs.
        event: the classes worth an alarm, None to infer them.
        num_frames, resize, crop: as in training, None for the network's own; sizes square, in pixels.
        every: which frames of a source counted in training.
        normalize: whether training normalised as torchvision's weights are.
    """

    arch: str | None = None
    classes: Sequence[str] | None = None
    event: Sequence[str] | None = None
    num_frames: int | None = None
    every: int = 1
    resize: int | None = None
    crop: int | None = None
    normalize: bool = True

    def __post_init__(self) -> None:
        for name in ("num_frames", "resize", "crop"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")


def load_model(
    path: str | Path,
    *,
    told: Told | None = None,
    device: str = "auto",
    engine: str | None = None,
    precision: str | None = None,
    fastest: bool = False,
) -> Classifier:
    """Reads a run or model folder, verifying the weights against model.json, or a bare .pth.

    Args:
        path: a folder with model.json and model.pth (or model.skops, or exports); or a state dict alone, which says
            nothing of how it was trained.
        told: what to believe of a bare state dict; the rest is assumed, and all of it listed in
            :attr:`Classifier.assumptions`.
        device: "auto" (a GPU where there is one), "cpu" or "cuda".
        engine: "auto" for the fastest that the folder holds, int8 only if it passed its check; "torch", "openvino" or
            "onnx"; None for torch in fp32, or what is nearest to it where the folder holds none.
        precision: "fp32" or "int8"; None for either.
        fastest: whether an engine asked for by name takes its fastest precision rather than fp32.

    Raises:
        ModelError: if files are missing, damaged or do not fit each other.
        ConfigError: if a bare .pth comes without network and classes, or a folder comes with them; or if the folder
            does not hold the engine that was asked for.
    """
    path, told = Path(path), told or Told()
    asked_device, device = device, choose_device(device)
    if path.is_file():
        if engine not in (None, "auto", "torch") or precision not in (None, "fp32"):
            raise ConfigError(f"{path} is a bare .pth, which torch alone scores with, in fp32.")
        return _load_bare(path, told, device)
    if told != Told():
        raise ConfigError(
            f"{path} says itself what it was trained on; --arch, --classes and so on are for a bare .pth."
        )
    record = read_record(path)
    try:
        spec = ClipSpec.from_json(record)
    except ModelError as error:
        raise ModelError(f"{path}/{error}") from None  # it begins with model.json
    weights = path / model_file(spec.arch)
    ways = [*([TORCH] if weights.is_file() else []), *exports_of(record, path / "model.json")]
    if not ways:
        raise ModelError(f"{path} holds no {weights.name}; give a run or model folder.")
    if asked_device == "cuda" and engine in (None, "auto"):
        engine = "torch"  # the others run on the CPU
    held, notes = choose_engine(ways, engine, precision, folder=path, fastest=fastest, gpu=device == "cuda")
    if held.engine != "torch":
        if asked_device == "cuda":
            raise ConfigError(f"--device cuda is for torch; {held.engine} runs on the CPU.")
        device = "cpu"
    elif sha256_of(weights) != record.get("sha256"):
        raise ModelError(f"{weights} is not the file that model.json describes (its SHA-256 differs).")
    try:
        temperature = float(record["temperature"])
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature {temperature}")
        operating_point = OperatingPoint(**record["operating_point"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{path / 'model.json'} is malformed ({shortened(repr(error))}).") from None
    try:
        check_input_size(spec.arch, spec.num_frames, spec.preprocessing.crop)
    except ConfigError as error:
        raise ModelError(f"{path / 'model.json'} is malformed: {shortened(error)}") from None
    return Classifier(
        read_network(weights, spec) if held.engine == "torch" else read_export(path, held),
        spec,
        temperature=temperature,
        operating_point=operating_point,
        sha256=str(record["sha256"]),
        device=device,
        held=held,
        notes=notes,
    )


def read_classes(folder: Path) -> tuple[str, ...] | None:
    """Returns the classes that a model folder's outputs stand for; None if no model.json says."""
    try:
        return ClipSpec.from_json(read_record(folder)).classes
    except ModelError:
        return None


def choose_device(device: str) -> str:
    """Returns "cuda" or "cpu" for "auto", "cuda" or "cpu".

    Raises:
        ConfigError: if a GPU is asked for and there is none.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device is {device!r}; it must be auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but PyTorch finds no GPU here; use auto or cpu.")
    return "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")


def dataset_of(
    spec: ClipSpec, clips: Sequence[Clip], transform: ClipTransform, *, seed: int = 0, store: ClipStore | None = None
) -> VideoFrameDataset:
    """Returns clips as a data set that reads them as a spec says.

    Args:
        spec: classes, frames, step and region.
        clips: labelled with classes of the spec.
        transform: of the data set.
        seed: of the augmentation.
        store: keeps decoded clips; None decodes them each time.
    """
    return VideoFrameDataset(
        ".",
        spec.classes,
        spec.num_frames,
        transform,
        step=spec.step,
        roi=spec.roi,
        seed=seed,
        clips=clips,
        store=store,
    )


def transform_of(prep: Preprocessing, *, augment: bool = False, planar: bool = False) -> ClipTransform:
    """Returns the transform that a spec's preprocessing asks for; for training, with augmentation."""
    return ClipTransform(prep.resize, prep.crop, prep.mean, prep.std, augment=augment, draft=prep.draft, planar=planar)


@contextmanager
def true_fp32(device: torch.device) -> Iterator[None]:
    """Keeps a GPU from computing fp32 convolutions in TF32, which has 10 bits of mantissa."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn  # its conv is made at run time
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before


def read_record(folder: Path) -> Mapping[str, Any]:
    """Returns what a model folder's model.json holds.

    Raises:
        ModelError: if it is missing, damaged, or of another version.
    """
    path = folder / "model.json"
    if not path.is_file():
        what = "holds no model.json" if folder.is_dir() else "does not exist"
        raise ModelError(f"{folder} {what}; give a run or model folder, or a .pth file.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({one_line(error)}).") from None
    if not isinstance(record, dict):
        raise ModelError(f"{path} is damaged: it holds no JSON object.")
    if record.get("format") != FORMAT:
        raise ModelError(
            f"{path} has format {shortened(repr(record.get('format')))}; "
            f"this version of Tillwatch reads format {FORMAT}."
        )
    return record


def _load_bare(path: Path, told: Told, device: str) -> Classifier:
    if told.arch is None or not told.classes:
        raise ConfigError(
            f"{path} is a bare state dict; say what it is with --arch and --classes, in the order of its outputs, "
            "or give the run folder."
        )
    known = backbone(told.arch)
    resize, crop = told.resize or known.resize, told.crop or known.crop
    if crop > resize:
        raise ConfigError(f"--crop {crop} is larger than --resize {resize}; crop at most what is there.")
    spec = ClipSpec(
        arch=told.arch,
        classes=tuple(told.classes),
        event=choose_event(told.classes, told.event),
        num_frames=told.num_frames or known.num_frames,
        step=FrameStep(every=told.every),
        preprocessing=Preprocessing(
            resize=(resize, resize),
            crop=(crop, crop),
            mean=known.mean if told.normalize else None,
            std=known.std if told.normalize else None,
            draft=draft_for((resize, resize)),
        ),
    )
    check_input_size(spec.arch, spec.num_frames, spec.preprocessing.crop)
    normalized = "normalised as torchvision's weights are" if told.normalize else "not normalised"
    assumption = (
        f"{path.name} does not say how it was trained; assumed: outputs are {', '.join(spec.classes)} in this order, "
        f"{spec.num_frames} frames, {spec.step} of the source, {resize}x{resize} cropped to {crop}x{crop}, "
        f"{normalized}. If one is wrong, so are the scores."
    )
    network = read_network(path, spec)
    return Classifier(network, spec, sha256=sha256_of(path), assumptions=[assumption], device=device)


def _length_warning(spec: ClipSpec, num_frames: int, seconds: float | None) -> str | None:
    """Returns a sentence if a clip is far shorter or longer than any in training."""
    if seconds is not None and spec.clip_seconds is not None:
        value, lengths, unit = seconds, spec.clip_seconds, "s"
    elif spec.clip_frames is not None:
        value, lengths, unit = float(num_frames), spec.clip_frames, "frames"
    else:
        return None
    if _within(value, lengths):
        return None
    return (
        f"the clip lasts {value:.3g} {unit}, training clips lasted {lengths.min:.3g} to {lengths.max:.3g}: "
        "the network has seen nothing like it, so the score means little."
    )


def _within(value: float, lengths: Lengths) -> bool:
    return lengths.min / _FAR_OUTSIDE <= value <= lengths.max * _FAR_OUTSIDE

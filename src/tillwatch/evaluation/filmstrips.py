"""Pictures of the worst mistakes and the surest hits: some frames of each clip, and where the network looked."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tillwatch.clip_spec import ClipSpec, Reading, frame_indices
from tillwatch.data.catalog import Clip
from tillwatch.data.dataset import read_clip
from tillwatch.errors import ClipError, one_line
from tillwatch.evaluation.evaluated import Evaluated
from tillwatch.models.backbones import BACKBONES
from tillwatch.models.engines import ExportedNetwork
from tillwatch.models.saved import Classifier, transform_of, true_fp32

MISTAKES, HITS = 4, 3
FRAMES, HEIGHT = 6, 112

NO_CAPTUM = "Where the network looked is not shown: that needs Captum (pip install 'tillwatch[explain]')."
NOT_TORCH = "Where the network looked is not shown: its export does not tell; tillwatch report on the run does."
NO_MODEL = "Where the model looked is not shown: the model that scored the clip cannot be read."
NOTHING_SPOKE = "Where the network looked is not shown: nothing on its last map spoke for {predicted}."
NOT_CONVOLUTIONAL = "Where the model looked is not shown: Grad-CAM is for convolutional networks."


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A clip worth a picture.

    Attributes:
        name: of the clip.
        label, predicted: true and most probable class.
        what: "missed", "false alarm" or "found".
        score: its event probability, in the repeat that is shown.
        repeat: which, from 0.
    """

    name: str
    label: str
    predicted: str
    what: str
    score: float
    repeat: int


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A clip's picture as a data URI, one with Grad-CAM on it, or why there is none of either."""

    shown: Shown
    plain: str | None = None
    looked: str | None = None
    why_none: str | None = None
    why_not_looked: str | None = None


def choose_shown(found: Evaluated) -> list[Shown]:
    """Returns the mistakes furthest on the wrong side of the operating point, then the events found most surely."""
    scores, events = found.event_scores, found.is_event
    alarm = found.alarms
    wrong = alarm != events
    entries = [(float(scores[r, n]), r, n) for r in range(found.repeats) for n in range(len(found.names))]
    # How far wrong: a missed event at 0 and a false alarm at 1 are alike.
    mistakes = sorted((e for e in entries if wrong[e[1], e[2]]), key=lambda e: e[0] if events[e[2]] else 1 - e[0])
    hits = sorted((e for e in entries if events[e[2]] and alarm[e[1], e[2]]), key=lambda e: -e[0])
    return [
        Shown(
            name=found.names[place],
            label=found.classes[found.labels[place]],
            predicted=found.classes[int(found.probabilities[repeat, place].argmax())],
            what="found" if not wrong[repeat, place] else "missed" if events[place] else "false alarm",
            score=score,
            repeat=repeat,
        )
        for score, repeat, place in (*_first_of_each(mistakes)[:MISTAKES], *_first_of_each(hits)[:HITS])
    ]


def filmstrips(
    shown: Sequence[Shown], clip_of: Callable[[Shown], Clip], classifier_of: Callable[[Shown], Classifier | None]
) -> tuple[list[Strip], str | None]:
    """Makes the pictures.

    Args:
        shown: the clips.
        clip_of: where each lies; raises ClipError if it is not there any more.
        classifier_of: the model that scored it; None if there is none.

    Returns:
        A strip for each, and a sentence on why no strip shows where the network looked; None if they do.
    """
    strips, notes = [], []
    for one in shown:
        try:
            strip, note = _strip(one, clip_of(one), classifier_of(one))
        except ClipError as error:
            strip, note = Strip(shown=one, why_none=one_line(error)), None
        strips.append(strip)
        notes.append(note)
    # What holds for all is said once, below them; what holds for one stands under it.
    everywhere = notes[0] if notes and len(set(notes)) == 1 else None
    if everywhere is not None:
        strips = [replace(strip, why_not_looked=None) for strip in strips]
    return strips, everywhere


def _first_of_each(entries: Sequence[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """Drops a clip's further repeats."""
    return list({entry[2]: entry for entry in reversed(entries)}.values())[::-1]


def _strip(shown: Shown, clip: Clip, classifier: Classifier | None) -> tuple[Strip, str | None]:
    if classifier is None:
        frames = read_clip(clip, Reading(num_frames=FRAMES, resize=_size(clip, None)))
        return Strip(shown=shown, plain=_picture(frames), why_not_looked=NO_MODEL), NO_MODEL
    spec = classifier.spec
    frames = read_clip(clip, replace(spec.reading, resize=_size(clip, spec), draft=None))
    wanted = frame_indices(len(frames), FRAMES)
    plain = _picture(frames[wanted])
    heat, note = _heat(classifier, clip, shown.predicted)
    if heat is None:
        return Strip(shown=shown, plain=plain, why_not_looked=note), note
    return Strip(shown=shown, plain=plain, looked=_picture(_overlay(frames, heat, spec)[wanted])), None


def _size(clip: Clip, spec: ClipSpec | None) -> tuple[int, int]:
    """Returns the size of a strip's frames: as wide as the clip's own shape asks for."""
    first = Reading(num_frames=1) if spec is None else replace(spec.reading, num_frames=1, resize=None, draft=None)
    height, width = read_clip(clip, first).shape[1:3]
    return HEIGHT, max(1, min(3 * HEIGHT, round(HEIGHT * width / height)))


def _heat(classifier: Classifier, clip: Clip, predicted: str) -> tuple[NDArray[np.float32] | None, str | None]:
    """Returns where the network looked for the class it named, float32 ``(T, H, W)`` in [0, 1], over its crop.

    Grad-CAM (Selvaraju et al., 2017) on the last map of a convolutional network.
    """
    known = BACKBONES.get(classifier.spec.arch)
    network = getattr(classifier, "network", None)
    if isinstance(network, ExportedNetwork):
        return None, NOT_TORCH
    if known is None or known.last_map is None or not isinstance(network, torch.nn.Module):
        return None, NOT_CONVOLUTIONAL
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        return None, NO_CAPTUM
    spec = classifier.spec
    frames = torch.from_numpy(np.array(read_clip(clip, spec.reading)))[None]
    transform = transform_of(spec.preprocessing)
    inputs = transform.batch(frames, [transform.place()]).to(classifier.device).requires_grad_()
    with true_fp32(classifier.device):
        cam = LayerGradCam(network, network.get_submodule(known.last_map)).attribute(
            inputs, target=spec.classes.index(predicted), relu_attributions=True
        )
        if isinstance(cam, tuple):
            cam = cam[0]
        size = (len(frames[0]), *spec.preprocessing.crop)
        smooth = torch.nn.functional.interpolate(cam.detach().float(), size=size, mode="trilinear")[0, 0]
    heat: NDArray[np.float32] = smooth.cpu().numpy()
    most = float(heat.max())
    return (heat / most, None) if most > 0 else (None, NOTHING_SPOKE.format(predicted=predicted))


def _overlay(frames: NDArray[np.uint8], heat: NDArray[np.float32], spec: ClipSpec) -> NDArray[np.uint8]:
    """Lays the heat over whole frames; outside the network's crop there is none."""
    (height, width), crop = spec.preprocessing.resize, spec.preprocessing.crop
    place = transform_of(spec.preprocessing).place()
    whole = np.zeros((len(frames), height, width), np.float32)
    whole[:, place.top : place.top + crop[0], place.left : place.left + crop[1]] = heat
    shown = torch.nn.functional.interpolate(torch.from_numpy(whole)[None], size=frames.shape[1:3], mode="bilinear")[0]
    alpha = 0.65 * shown.numpy()[..., None]
    # From yellow to red with the heat, over a grey picture, so that colour means one thing.
    grey = frames.mean(-1, keepdims=True)
    green = 40 + 190 * (1 - shown.numpy()[..., None])
    colour = np.concatenate([np.full_like(green, 255), green, np.zeros_like(green)], axis=-1)
    mixed: NDArray[np.uint8] = (grey * (1 - alpha) + colour * alpha).clip(0, 255).astype(np.uint8)
    return mixed


def _picture(frames: NDArray[np.uint8]) -> str:
    """Returns frames side by side, a thin gap between them, as a JPEG's data URI."""
    gap = np.full((frames.shape[1], 2, 3), 128, np.uint8)
    row = [part for frame in frames for part in (frame, gap)][:-1]
    held = io.BytesIO()
    Image.fromarray(np.concatenate(row, axis=1)).save(held, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}"

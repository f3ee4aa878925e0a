"""Rendered till scenes whose class lies in the order of events alone, for the demo and the tests.

A theft is a hand that takes a banknote from the till drawer to a pocket; a deposit is the same film
played backwards. Both classes hold the very same frames: one of them tells nothing unless it is known where in the
film it stands, and the middle frame stands in the middle of both. Mirroring a clip keeps its class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

THEFT = "cashlifting"
DEPOSIT = "normal"
CLASSES = (THEFT, DEPOSIT)

#: Odd, so that the middle frame of a film is the middle frame of its reversal too.
NUM_FRAMES = 25
FPS = 12
WIDTH, HEIGHT = 160, 120

_SUPERSAMPLING = 2

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Camera:
    """What one till camera sees when nobody moves: its background, framing and light.

    Attributes:
        name: the camera's name, used as the clips' group.
        background: RGB image of the empty scene, uint8 ``(HEIGHT * 2, WIDTH * 2, 3)``.
        drawer, pocket, rest: where the hand goes, in fractions of the picture.
        shoulder: where the arm enters the picture, in fractions.
        scale: size of hand and banknote relative to the picture's width.
        skin, sleeve, note: colours of hand, arm and banknote.
        gain: brightness factor per colour channel.
        noise: standard deviation of the sensor's noise, in grey levels.
    """

    name: str
    background: NDArray[np.uint8]
    drawer: Point
    pocket: Point
    rest: Point
    shoulder: Point
    scale: float
    skin: Colour
    sleeve: Colour
    note: Colour
    gain: tuple[float, float, float]
    noise: float


def make_camera(name: str, seed: int) -> Camera:
    """Draws one camera at random.

    Args:
        name: the camera's name.
        seed: the same seed gives the same camera.
    """
    rng = np.random.default_rng([seed, 0])
    mirrored = bool(rng.random() < 0.5)

    def place(x: float, y: float, jitter: float = 0.04) -> Point:
        x, y = x + rng.uniform(-jitter, jitter), y + rng.uniform(-jitter, jitter)
        return (1 - x if mirrored else x), y

    drawer, pocket = place(0.26, 0.30), place(0.74, 0.74)
    rest, shoulder = place(0.50, 0.52), place(0.56, 1.15)
    warmth = rng.uniform(-0.12, 0.12)
    brightness = rng.uniform(0.8, 1.15)
    skin_tone = rng.uniform(0.6, 1.0)
    return Camera(
        name=name,
        background=_draw_background(rng, drawer, pocket),
        drawer=drawer,
        pocket=pocket,
        rest=rest,
        shoulder=shoulder,
        scale=float(rng.uniform(0.9, 1.15)),
        skin=(int(235 * skin_tone), int(180 * skin_tone), int(150 * skin_tone)),
        sleeve=_random_colour(rng, 30, 110),
        note=(150, 235, 140),
        gain=(
            float(brightness * (1 + warmth)),
            float(brightness),
            float(brightness * (1 - warmth)),
        ),
        noise=float(rng.uniform(2.0, 6.0)),
    )


def render_clip(camera: Camera, label: str, seed: int) -> NDArray[np.uint8]:
    """Renders one film of a theft or of a deposit.

    Args:
        camera: where it is seen from.
        label: ``cashlifting`` or ``normal``.
        seed: the same camera and seed give the same film; a deposit is the theft of that seed reversed.

    Returns:
        uint8 ``(NUM_FRAMES, HEIGHT, WIDTH, 3)``, RGB.

    Raises:
        ValueError: for another label.
    """
    if label not in CLASSES:
        raise ValueError(f"label is {label!r}; the rendered scene has {CLASSES}")
    rng = np.random.default_rng([seed, 1])
    film = np.stack([_draw_frame(camera, *pose, rng) for pose in _theft_poses(camera, rng)])
    return film if label == THEFT else film[::-1].copy()


def write_video(frames: NDArray[np.uint8], path: Path, fps: int = FPS, **options: str) -> None:
    """Writes frames as an H.264 .mp4 file.

    Args:
        frames: uint8 ``(T, H, W, 3)``, RGB; H and W even.
        path: the file to write; its folder must exist.
        fps: frames a second.
        **options: options of x264, such as ``crf="18"``.
    """
    with av.open(str(path), "w") as container:
        # With its macroblock tree, x264 gives equal frames different bytes from run to run.
        fixed = {"preset": "veryfast", "crf": "20", "mbtree": "0"}
        stream: Any = container.add_stream("libx264", rate=Fraction(fps), options={**fixed, **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _theft_poses(camera: Camera, rng: np.random.Generator) -> Iterator[tuple[Point, bool]]:
    """Yields (hand position, holds a banknote) for each frame: rest, drawer, pocket, rest."""
    jitter = 0.03

    def near(point: Point) -> Point:
        return point[0] + rng.normal(0, jitter), point[1] + rng.normal(0, jitter)

    stops = [near(camera.rest), near(camera.drawer), near(camera.pocket), near(camera.rest)]
    # Waiting, moving, dwelling, carrying, dwelling, moving back, waiting: the two ends alike.
    durations = np.array([0.08, 0.24, 0.08, 0.30, 0.08, 0.24, 0.08]) * rng.uniform(0.6, 1.4, 7)
    ends = np.cumsum(durations / durations.sum())
    starts = np.concatenate([[0.0], ends[:-1]])
    for time in np.linspace(0, 1, NUM_FRAMES):
        segment = min(int(np.searchsorted(ends, time, side="left")), 6)
        done = (time - starts[segment]) / (ends[segment] - starts[segment])
        smooth = done * done * (3 - 2 * done)
        leg, moving = segment // 2, segment % 2 == 1
        start, stop = stops[leg], stops[min(leg + 1, 3)]
        share = smooth if moving else 0.0
        hand = start[0] + share * (stop[0] - start[0]), start[1] + share * (stop[1] - start[1])
        yield hand, segment == 3


def _draw_frame(camera: Camera, hand: Point, holds_note: bool, rng: np.random.Generator) -> NDArray[np.uint8]:
    picture = Image.fromarray(camera.background)
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    radius = 0.07 * width * camera.scale
    x, y = hand[0] * width, hand[1] * height
    shoulder = camera.shoulder[0] * width, camera.shoulder[1] * height
    draw.line([shoulder, (x, y)], fill=camera.sleeve, width=int(1.3 * radius))
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=camera.skin)
    if holds_note:
        side = 1.4 * radius
        box = [x - side, y - 1.6 * radius, x + side, y + 0.2 * radius]
        draw.rectangle(box, fill=camera.note, outline=(60, 110, 60))
    small = picture.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    light = np.asarray(small, np.float32) * np.asarray(camera.gain, np.float32)
    light += rng.normal(0, camera.noise, light.shape).astype(np.float32)
    return np.clip(light, 0, 255).astype(np.uint8)


def _draw_background(rng: np.random.Generator, drawer: Point, pocket: Point) -> NDArray[np.uint8]:
    width, height = WIDTH * _SUPERSAMPLING, HEIGHT * _SUPERSAMPLING
    picture = Image.new("RGB", (width, height), _random_colour(rng, 60, 170))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(4, 10))):  # shelves, screens, boxes
        x, y = rng.uniform(0, width), rng.uniform(0, 0.35 * height)
        w, h = rng.uniform(0.05, 0.25) * width, rng.uniform(0.05, 0.2) * height
        draw.rectangle([x, y, x + w, y + h], fill=_random_colour(rng, 30, 190))
    counter_top = rng.uniform(0.2, 0.3) * height
    draw.polygon(
        [(0, counter_top), (width, counter_top + rng.uniform(-10, 10)), (width, height), (0, height)],
        fill=_random_colour(rng, 70, 150),
    )
    x, y = drawer[0] * width, drawer[1] * height
    w, h = 0.15 * width, 0.13 * height
    draw.rectangle([x - w, y - h, x + w, y + h], fill=(35, 35, 40))
    for column in range(4):
        left = x - w + (column + 0.15) * w / 2
        draw.rectangle([left, y - 0.8 * h, left + 0.35 * w, y + 0.8 * h], fill=(75, 75, 80))
    x, y = pocket[0] * width, pocket[1] * height
    clothes = _random_colour(rng, 40, 130)
    draw.ellipse([x - 0.2 * width, y - 0.22 * height, x + 0.2 * width, y + 0.7 * height], fill=clothes)
    darker = (clothes[0] // 2, clothes[1] // 2, clothes[2] // 2)
    draw.rectangle([x - 0.06 * width, y, x + 0.06 * width, y + 0.14 * height], fill=darker)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(1.0)))


def _random_colour(rng: np.random.Generator, low: int, high: int) -> Colour:
    grey = rng.uniform(low, high)
    red, green, blue = (int(value) for value in grey * rng.uniform(0.85, 1.15, 3))
    return red, green, blue

"""Small valid files, and what damage makes of them: the same for the same seed."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import yaml
from conftest import moving_frames
from PIL import Image

#: Name, encoder, container where the name does not tell it, pixel format, and (width, height) for H.263, which has few.
VIDEOS: tuple[tuple[str, str, str | None, str, tuple[int, int]], ...] = (
    ("h264.mp4", "libx264", None, "yuv420p", (48, 40)),
    ("h264.mkv", "libx264", None, "yuv420p", (48, 40)),
    ("h264.ts", "libx264", None, "yuv420p", (48, 40)),
    ("h264.flv", "libx264", None, "yuv420p", (48, 40)),
    ("h264.264", "libx264", "h264", "yuv420p", (48, 40)),
    ("recorder.dav", "libx264", "mpegts", "yuv420p", (48, 40)),
    ("h265.mp4", "libx265", None, "yuv420p", (64, 64)),
    ("mpeg4.avi", "mpeg4", None, "yuv420p", (48, 40)),
    ("mjpeg.mov", "mjpeg", None, "yuvj420p", (48, 40)),
    ("mjpeg.avi", "mjpeg", None, "yuvj420p", (48, 40)),
    ("mpeg2.mpg", "mpeg2video", "vob", "yuv420p", (48, 40)),
    ("vp8.webm", "libvpx", None, "yuv420p", (48, 40)),
    ("vp9.webm", "libvpx-vp9", None, "yuv420p", (48, 40)),
    ("av1.mkv", "libsvtav1", None, "yuv420p", (64, 64)),
    ("h263.3gp", "h263", None, "yuv420p", (128, 96)),
    ("wmv2.wmv", "wmv2", None, "yuv420p", (48, 40)),
    ("ffv1.mkv", "ffv1", None, "yuv420p", (48, 40)),
)

_NASTY_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
_NASTY_LENGTHS = (1, 2, 4, 8)


def valid_jpegs() -> list[tuple[str, bytes]]:
    """Returns JPEGs of every kind that cameras and programs write, each of some hundred bytes."""
    picture = Image.fromarray(moving_frames(1)[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    exif[0x010F] = "camera"
    icc = bytes(range(256)) * 2
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("baseline", picture, {"quality": 75}),
        ("progressive", picture, {"progressive": True}),
        ("fine", picture, {"quality": 95, "subsampling": 0}),
        ("coarse", picture, {"quality": 5}),
        ("grey", picture.convert("L"), {}),
        ("cmyk", picture.convert("CMYK"), {}),
        ("described", picture, {"exif": exif, "comment": b"till 2", "icc_profile": icc, "dpi": (72, 72)}),
        ("restarts", picture, {"restart_marker_blocks": 1}),
        ("one pixel", picture.crop((0, 0, 1, 1)), {}),
        ("large", picture.resize((640, 360)), {"quality": 10}),
    ]
    written = []
    for name, image, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", **options)
        written.append((f"{name}.jpg", buffer.getvalue()))
    return written


def valid_images() -> list[tuple[str, bytes]]:
    """Returns images of the other formats that a frame may have; the names are their files'."""
    picture = Image.fromarray(moving_frames(1)[0])
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("0.png", picture, {}),
        ("palette.png", picture.quantize(16), {"transparency": 3}),
        ("0.bmp", picture, {}),
        ("grey.bmp", picture.convert("L"), {}),
        ("0.webp", picture, {}),
        ("0.tif", picture, {}),
        ("packed.tif", picture, {"compression": "tiff_lzw"}),
        ("deflated.tif", picture.convert("L"), {"compression": "tiff_adobe_deflate"}),
        ("jpeg.tif", picture, {"compression": "jpeg"}),
        ("0.ppm", picture, {}),
        ("0.pgm", picture.convert("L"), {}),
    ]
    written = []
    for name, image, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, Image.registered_extensions()[Path(name).suffix], **options)
        written.append((name, buffer.getvalue()))
    return written


def valid_videos(folder: Path) -> list[tuple[str, bytes]]:
    """Returns videos of eight frames, of the codecs and containers that recorders and phones write."""
    written = []
    for name, encoder, container_format, pixels, (width, height) in VIDEOS:
        path = folder / name
        with av.open(str(path), "w", format=container_format) as container:
            fast = {"preset": "12", "svtav1-params": "lp=1"} if encoder == "libsvtav1" else {}
            fast |= {"x265-params": "log-level=none:pools=1"} if encoder == "libx265" else {}
            stream: Any = container.add_stream(encoder, rate=Fraction(10), options=fast)
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            stream.codec_context.thread_count = 1
            for picture in moving_frames(8, height, width):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        written.append((name, path.read_bytes()))
    return written


def damaged(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Returns what one to three kinds of damage, one after the other, make of a file.

    Args:
        content: the file.
        others: whose parts may get into it.
        rng: decides.
    """
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        if content:
            content = _damaged_once(content, others, rng)
    return content


def _damaged_once(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    # Half of all damage hits the head, where sizes, lengths and tables stand.
    within = len(data) if rng.random() < 0.5 else min(len(data), 400)
    at = int(rng.integers(within))
    end = min(len(data), at + int(rng.integers(1, 65)))
    match int(rng.integers(9)):
        case 0:  # bits flip
            for place in rng.integers(within, size=int(rng.integers(1, 9))).tolist():
                data[place] ^= 1 << int(rng.integers(8))
        case 1:  # numbers that programs trip over
            for place in rng.integers(within, size=int(rng.integers(1, 5))).tolist():
                length = int(rng.choice(_NASTY_LENGTHS))
                data[place : place + length] = bytes([int(rng.choice(_NASTY_BYTES))]) * length
        case 2:  # the rest is missing
            del data[at:]
        case 3:  # a part is missing
            del data[at:end]
        case 4:  # a part stands there twice
            data[at:at] = data[at:end]
        case 5:  # noise in between
            data[at:at] = rng.bytes(int(rng.integers(1, 65)))
        case 6:  # a sector of nothing
            data[at : at + 512] = bytes(len(data[at : at + 512]))
        case 7:  # a part of another file
            other = others[int(rng.integers(len(others)))]
            begin = int(rng.integers(len(other)))
            data[at:end] = other[begin : begin + int(rng.integers(1, 257))]
        case _:  # its end first
            data = data[at:] + data[:at]
    return bytes(data)


#: What a hand, a script or a bug puts where something else belongs.
_NASTY_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 0.5, 1.5, -0.0, 1e-300, 1e300, 10**30, -(10**30), 2**63,
    float("nan"), float("inf"),
    "", " ", "0", "1", "-1", "1.5", "nan", "inf", "true", "null", "none", "auto", "../..", "/", "a,b", "a,,b", "\0",
    chr(0x1F600), "x" * 5000, "{}", "%s", "--epochs", "[red]bold[/red]", [], [[]], [1, 2], ["theft"],
    ["theft", "normal"], [None], {}, {"a": 1}, {"every": 2}, {"step": "resize"},
)  # fmt: skip


def damaged_yaml(values: dict[str, Any], others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Returns a configuration file with wrong values, keys or bytes."""
    if rng.random() < 0.3:
        return damaged(yaml.safe_dump(values, sort_keys=False).encode(), others, rng)
    values = copy.deepcopy(values)
    for _ in range(int(rng.integers(1, 4))):
        key = str(rng.choice(list(values)))
        match int(rng.integers(6)):
            case 0:
                del values[key]
                values.setdefault("seed", 0)
            case 1:
                values[_misspelt(key, rng)] = values.pop(key)
            case _:
                values[key] = _nasty(rng)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if rng.random() < 0.1:  # what YAML itself can do to a reader
        text += str(
            rng.choice(
                [
                    "seed: !!python/object/apply:os.getcwd []\n",
                    "seed: &a [*a]\n",
                    "<<: {epochs: 1}\n",
                    "? [1, 2]\n: 3\n",
                    "seed: 2026-03-01\n",
                    "---\nseed: 1\n",
                    "seed: *nowhere\n",
                    "\tseed: 1\n",
                    "seed: 0x1F\nseed: 1_000\n",
                ]
            )
        )
    return text.encode()


def damaged_json(record: dict[str, Any], others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Returns a JSON file with wrong values, keys or bytes, at any depth."""
    if rng.random() < 0.3:
        return damaged(json.dumps(record, indent=2).encode(), others, rng)
    record = copy.deepcopy(record)
    for _ in range(int(rng.integers(1, 4))):
        owner, key = _anywhere(record, rng)
        match int(rng.integers(6)):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, dict):
                owner[_misspelt(str(key), rng)] = owner.pop(key)
            case _:
                owner[key] = _nasty(rng)
    return json.dumps(record, indent=2).encode()


def _anywhere(record: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Returns a mapping or list in a record, and a key of it."""
    places = []
    left = [record]
    while left:
        owner = left.pop()
        items = owner.items() if isinstance(owner, dict) else enumerate(owner)
        for key, value in items:
            places.append((owner, key))
            if isinstance(value, dict | list):
                left.append(value)
    return places[int(rng.integers(len(places)))] if places else ({"": None}, "")


def _nasty(rng: np.random.Generator) -> Any:
    return copy.deepcopy(_NASTY_VALUES[int(rng.integers(len(_NASTY_VALUES)))])


def _misspelt(key: str, rng: np.random.Generator) -> str:
    at = int(rng.integers(len(key) + 1))
    return str(
        rng.choice([key[:at] + key[at + 1 :], key.upper(), key.replace("_", "-"), key + " ", f"{key[:at]}x{key[at:]}"])
    )

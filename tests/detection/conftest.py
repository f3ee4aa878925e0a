"""Tiny footage, with whatever timestamps, and clips cut from it without loss."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tillwatch.cli import main
from tillwatch.data.video import decode_video
from tillwatch.detection.incidents import Rule
from tillwatch.detection.results import Recording, WindowScore, write_scan
from tillwatch.detection.results import Scan as ScanResult
from tillwatch.detection.timeline import write_timeline

MakeFootage = Callable[..., Path]
CutLosslessly = Callable[..., Path]
Probe = Callable[[Path], dict[str, Any]]
Scan = Callable[..., tuple[int, str, str]]


def footage_frame(place: int, height: int, width: int, bright: bool) -> av.VideoFrame:
    """A picture that differs from its neighbours everywhere: noise, and a square that walks."""
    rng = np.random.default_rng(place)
    picture = rng.integers(0, 80, (height, width, 3)).astype(np.uint8) + np.uint8(130 * bright)
    left = (3 * place) % (width - 10)
    picture[10:20, left : left + 10] = 60 + 19 * place % 190
    return av.VideoFrame.from_ndarray(picture, format="rgb24")


@pytest.fixture
def make_footage() -> MakeFootage:
    """Returns a function that writes a recording: ``make_footage(path, ticks, time_base, rate, codec="libx264")``.

    Frames in ``bright`` look like the event of the tiny network; ``picture`` draws other frames.
    """

    def make(
        path: Path,
        ticks: Sequence[int] = tuple(range(50)),
        time_base: Fraction = Fraction(1, 25),
        rate: Fraction | int = 25,
        codec: str = "libx264",
        size: tuple[int, int] = (48, 64),
        bright: range = range(0),
        picture: Callable[[int], av.VideoFrame] | None = None,
        **options: str,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=Fraction(rate), options={"g": "12", **options})
            stream.height, stream.width = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.thread_count = 1
            stream.codec_context.time_base = time_base
            for place, tick in enumerate(ticks):
                frame = footage_frame(place, *size, place in bright) if picture is None else picture(place)
                frame.pts, frame.time_base = tick, time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def make_flat_footage() -> MakeFootage:
    """Returns a function that writes pictures of one orange: ``make(path, codec, matrix, full_range, height=48)``.

    The numbers of the pictures are the same; the file tells a matrix (a code point of ITU-T H.273) and a range.
    """

    def make(path: Path, codec: str, matrix: int, full_range: bool, height: int = 48) -> Path:
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=25)
            stream.width, stream.height = 64, height
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full_range else 1
            planes = np.full((height * 3 // 2, 64), 100, np.uint8)
            planes[height : height * 5 // 4], planes[height * 5 // 4 :] = 70, 200  # Cb, Cr
            for tick in range(10):
                frame = av.VideoFrame.from_ndarray(planes, format=stream.pix_fmt)
                frame.pts = tick
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


# By quarter turns clockwise, the upper left of the matrix in an .mp4's box tkhd.
_TURNS = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}


def turn_clockwise(path: Path, quarters: int = 1) -> Path:
    """Makes an .mp4 file say that it must be turned, in its box tkhd, as a phone held upright does."""
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (number << 16 for number in _TURNS[quarters])
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + matrix + data[at + 36 :])
    return path


@pytest.fixture
def make_turned_footage(make_footage: MakeFootage) -> MakeFootage:
    """Returns a function as `make_footage`, of recordings that must be turned clockwise to be upright.

    ``quarters=1`` says how far.
    """

    def make(path: Path, *options: Any, quarters: int = 1, **more: Any) -> Path:
        return turn_clockwise(make_footage(path, *options, **more), quarters)

    return make


def write_dav(recording: Path, path: Path) -> Path:
    """Writes the packets of an H.264 recording as Dahua's recorders do, each between ``DHAV`` and ``dhav``.

    FFmpeg reads the format and cannot write it. A frame: the mark, type (0xfd for a key frame), three bytes, its
    number, its length with all marks, date and time in bits, milliseconds, length of what follows on size and codec.
    """
    began = (26 << 26) | (3 << 22) | (1 << 17) | (8 << 12) | (15 << 6)
    told = bytes([0x80, 0, 64 // 8, 48 // 8, 0x81, 0, 2, 25])
    with av.open(str(recording)) as container, path.open("wb") as file:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            ms = 40 * number
            length = 24 + len(told) + packet.size + 8
            kind = 0xFD if packet.is_keyframe else 0xFC
            numbers = struct.pack("<IIIHBB", number, length, began + ms // 1000, ms, len(told), 0)
            file.write(b"DHAV" + bytes([kind, 0, 0, 0]) + numbers + told + bytes(packet))
            file.write(b"dhav" + struct.pack("<I", length))
    return path


@pytest.fixture
def make_dav() -> Callable[[Path, Path], Path]:
    """Returns a function that writes a recording as a Dahua recorder does: ``make_dav(recording, path)``."""
    return write_dav


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


@pytest.fixture
def make_sound() -> Callable[[Path], Path]:
    """Returns a function that writes a file of sound alone."""
    return write_sound


@pytest.fixture
def cut_losslessly() -> CutLosslessly:
    """Returns a function that writes frames of a recording as a clip: ``cut(recording, first, stop, clip)``.

    The same decoded pictures, by x264 at quantiser 0, with the same timestamps.
    """

    def cut(recording: Path, first: int, stop: int, clip: Path) -> Path:
        with av.open(str(recording)) as container:
            rate = container.streams.video[0].average_rate
        with av.open(str(clip), "w") as container:
            stream: Any = container.add_stream("libx264", rate=rate, options={"qp": "0", "preset": "ultrafast"})
            stream.pix_fmt = "yuv420p"
            for place, frame in enumerate(decode_video(recording)):
                if first <= place < stop:
                    if place == first:
                        stream.height, stream.width = frame.height, frame.width
                        stream.codec_context.time_base = frame.time_base
                    frame.pict_type = av.video.frame.PictureType.NONE
                    container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return clip

    return cut


@pytest.fixture
def ffprobe() -> Probe:
    """Returns a function that gives what ffprobe, which is none of ours, tells of a file's first video stream.

    Frames are counted by decoding them.
    """
    program = shutil.which("ffprobe")
    if program is None:
        pytest.skip("there is no ffprobe here; Debian has it in its package ffmpeg")

    def probe(path: Path) -> dict[str, Any]:
        command = [program, "-v", "error", "-select_streams", "v:0", "-count_frames", "-of", "json"]
        shown = ["-show_entries", "stream:format=duration:frame=pts_time", str(path)]
        told = subprocess.run([*command, *shown], check=True, capture_output=True, text=True)
        assert told.stderr == ""
        read = json.loads(told.stdout)
        return {**read["streams"][0], "times": [float(frame["pts_time"]) for frame in read["frames"]]}

    return probe


@pytest.fixture
def scan(tiny_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> Scan:
    """Scans with the tiny network: ``scan(*videos, "--out", out, ...)`` gives (exit code, out, err)."""

    def run(*arguments: object, model: Path = tiny_run[1]) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main(["scan", str(model), *map(str, arguments)])
        captured = capsys.readouterr()
        return int(str(exited.value.code)), captured.out, captured.err

    return run


@pytest.fixture
def footage(tmp_path: Path, make_footage: MakeFootage) -> Path:
    """Two recordings of one till: three bright seconds in the first, from 2 s to 3.2 s."""
    make_footage(tmp_path / "footage" / "till2_20260301_0815.mp4", range(125), bright=range(50, 80))
    make_footage(tmp_path / "footage" / "till2_20260301_0820.mp4", range(60))
    return tmp_path / "footage"


@pytest.fixture
def scan_folder(tmp_path: Path, make_footage: MakeFootage) -> Path:
    """A scan of two files with an incident in each; the second tells no times."""
    recordings = []
    for name in ("a.mp4", "b.h264"):
        path = make_footage(tmp_path / name, list(range(80)))
        score = WindowScore(region="whole", number=4, start_s=2.0, end_s=3.0, frames=25, probabilities=(0.9, 0.1))
        recordings.append(
            Recording(
                file=name,
                path=str(path),
                camera="c",
                seconds=4.0,
                started=None,
                regions={"whole": None},
                scores=[score],
            )
        )
    result = ScanResult(
        model={"path": "run", "arch": "tinynet", "sha256": "abc"},
        classes=("theft", "normal"),
        event=("theft",),
        window_s=1.0,
        stride_s=0.5,
        rule=Rule(threshold=0.5),
        rule_source="",
        recordings=tuple(recordings),
        left_out={},
    )
    (tmp_path / "scan").mkdir()
    write_timeline(tmp_path / "scan", result, write_scan(tmp_path / "scan", result))
    return tmp_path / "scan"

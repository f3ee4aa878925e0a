"""Footage whose events are known, made from labelled clips: what the scan is measured on.

    python benchmarks/footage.py CLIPS OUT            # 10 minutes each: moving and still, 1080p25 and 640x360
    python benchmarks/footage.py CLIPS OUT --seconds 60

CLIPS are class folders of videos. *Moving* footage plays normal clips one after another, as a recorder's file with many
scenes, and about every minute clips of the event for 6 seconds. *Still* footage is of fixed cameras: a picture in which
nothing moves but the sensor's noise, 2 grey levels of it, for two minutes, then the clip of the event that the picture
was taken from, then the next. Frames are squeezed to the size wanted and shown 25 times a second by their own times.
H.264 as recorders write it: a key frame every two seconds, no B-frames, 4 Mbit/s at 1080p and 1 Mbit/s at 640x360.
``truth.csv`` beside the files names every event: file,start,end,label. The same clips and seed make the same footage.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation

from tillwatch.clip_spec import choose_event
from tillwatch.data.video import is_video_file
from tillwatch.files import read_csv, write_csv

FPS = 25
TRUTH_CSV = "truth.csv"
TRUTH_COLUMNS = ("file", "start", "end", "label")

FIRST_EVENT_S, EVERY_S, EVENT_S = 27.0, 60.0, 6.0
STILL_EVERY_S = 120.0
NOISE = 2.0  # grey levels, of a fixed camera's sensor
_NOISES = 16  # pictures of noise that take turns


@dataclass(frozen=True)
class Size:
    """A picture's size, and the bits a second that recorders spend on it."""

    width: int
    height: int
    bit_rate: int

    @property
    def name(self) -> str:
        """As in 1080p."""
        return f"{self.height}p"


LARGE = Size(1920, 1080, 4_000_000)
SMALL = Size(640, 360, 1_000_000)


@dataclass(frozen=True)
class Clips:
    """Labelled videos by whether they show the event."""

    events: Sequence[tuple[str, Path]]
    normals: Sequence[tuple[str, Path]]


def find_clips(folder: Path) -> Clips:
    """Returns the videos of class folders, with their labels."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    event = choose_event(classes)
    found = [(label, path) for label in classes for path in sorted((folder / label).iterdir()) if is_video_file(path)]
    return Clips([one for one in found if one[0] in event], [one for one in found if one[0] not in event])


def make_footage(clips: Clips, path: Path, size: Size, seconds: float, *, still: bool = False, seed: int = 0) -> Path:
    """Writes one file of footage, and its events into truth.csv beside it; what is there already stays.

    Args:
        clips: to play.
        path: the .mp4 file; its folder is made if missing.
        size: of the picture.
        seconds: of footage, cut to whole frames.
        still: a fixed camera and little motion.
        seed: of the clips' order.
    """
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    play = _still if still else _moving
    part = path.with_suffix(".part.mp4")
    events: list[dict[str, Any]] = []
    begun: tuple[str, float] | None = None
    with av.open(str(part), "w") as container:
        options = {"preset": "veryfast", "bf": "0", "g": str(2 * FPS), "maxrate": str(size.bit_rate)}
        options |= {"bufsize": str(2 * size.bit_rate)}
        stream: Any = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = size.width, size.height, "yuv420p", size.bit_rate
        for number, (frame, label) in zip(range(int(seconds * FPS)), play(clips, size, seed), strict=False):
            now = number / FPS
            if begun is not None and label != begun[0]:
                events.append({"file": path.name, "start": begun[1], "end": now, "label": begun[0]})
                begun = None
            if label and begun is None:
                begun = label, now
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            frame.pict_type = av.video.frame.PictureType.NONE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if begun is not None:
        events.append({"file": path.name, "start": begun[1], "end": seconds, "label": begun[0]})
    truth = path.parent / TRUTH_CSV
    others = [row for row in read_csv(truth) if row["file"] != path.name] if truth.is_file() else []
    write_csv(truth, TRUTH_COLUMNS, [*others, *events])
    part.replace(path)
    return path


def loop_footage(path: Path, out: Path, seconds: float) -> Path:
    """Writes a file that shows another again and again for so many seconds; its packets are copied."""
    with av.open(str(path)) as source, av.open(str(out), "w") as container:
        shown: Any = source.streams.video[0]
        stream = container.add_stream_from_template(shown)
        once = int(shown.frames * Fraction(1, FPS) / shown.time_base)
        offset = 0
        while offset * shown.time_base < seconds:
            source.seek(0)
            for packet in source.demux(shown):
                if packet.dts is None or packet.pts is None:
                    continue
                packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                container.mux(packet)
            offset += once
    return out


def _moving(clips: Clips, size: Size, seed: int) -> Iterator[tuple[av.VideoFrame, str]]:
    """Yields frames without end, each with the event that it shows or an empty string."""
    events, normals = _shuffled(clips.events, seed), _shuffled(clips.normals, seed)
    shown, next_event = 0, FIRST_EVENT_S
    while True:
        if shown < next_event * FPS:
            for frame in _at_25(next(normals)[1], size):
                yield frame, ""
                shown += 1
        else:
            label, begun = "", shown
            while shown < begun + EVENT_S * FPS:
                of_class, path = next(events)
                label = label or of_class
                for frame in _at_25(path, size):
                    yield frame, label
                    shown += 1
            next_event += EVERY_S


def _still(clips: Clips, size: Size, seed: int) -> Iterator[tuple[av.VideoFrame, str]]:
    """The same of a fixed camera: a clip's first picture under noise, then the clip."""
    events = _shuffled(clips.events, seed)
    shown, next_event = 0, FIRST_EVENT_S
    rng = np.random.default_rng(seed)
    noises = [rng.normal(0, NOISE, (size.height, size.width)).round().astype(np.int16) for _ in range(_NOISES)]
    while True:
        label, path = next(events)
        film = list(_at_25(path, size))
        noisy = [_with_noise(film[0], noise) for noise in noises]
        while shown < next_event * FPS:
            yield noisy[rng.integers(_NOISES)], ""
            shown += 1
        for frame in film:
            yield _with_noise(frame, noises[rng.integers(_NOISES)]), label
            shown += 1
        next_event += STILL_EVERY_S


def _shuffled(clips: Sequence[tuple[str, Path]], seed: int) -> Iterator[tuple[str, Path]]:
    rng = random.Random(seed)
    while True:
        order = list(clips)
        rng.shuffle(order)
        yield from order


def _at_25(path: Path, size: Size) -> Iterator[av.VideoFrame]:
    """Yields a clip's frames as they are shown at 25 a second, in the size wanted."""
    shown = 0
    with av.open(str(path)) as container:
        first: float | None = None
        for frame in container.decode(video=0):
            first = frame.time if first is None else first
            until = frame.time - first + 0.5 / FPS  # now: a frame of the right size is no copy, and gets a new time
            scaled = frame.reformat(size.width, size.height, "yuv420p", interpolation=Interpolation.BICUBIC)
            while shown / FPS <= until:
                yield scaled
                shown += 1


def _with_noise(frame: av.VideoFrame, noise: np.ndarray[Any, np.dtype[np.int16]]) -> av.VideoFrame:
    planes = frame.to_ndarray()
    height = frame.height
    planes[:height] = np.clip(planes[:height].astype(np.int16) + noise, 0, 255)  # the first rows are the luma
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def main() -> None:
    """Makes all four files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    clips = find_clips(options.clips)
    for size in (LARGE, SMALL):
        for still in (False, True):
            name = f"{'still' if still else 'moving'}_{size.name}.mp4"
            print(make_footage(clips, options.out / name, size, options.seconds, still=still))


if __name__ == "__main__":
    main()

"""Loading alone, one worker, 1080p JPEG frames: ours against the plain data set; and how long training waits for it.

    python benchmarks/loading.py --videos FOLDER

Cold is each clip's first reading, which also writes it to the store. All end with a float batch that a network can
take. The frames are those of real videos in class folders, or rendered ones, enlarged to 1920 x 1080.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from contender import OurTraining, classes_in
from numpy.typing import NDArray
from PIL import Image
from reference import PlainDataset
from table import Row, print_table
from torch.utils.data import DataLoader

from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.frames import read_frames
from tillwatch.data.loader import evaluation_loader
from tillwatch.data.store import ClipStore
from tillwatch.data.synthetic import CLASSES, make_camera, render_clip
from tillwatch.data.transforms import eval_transform
from tillwatch.data.video import cut_out, is_video_file, read_video, shrunk, squeeze, to_rgb

NUM_FRAMES = 32


def write_clips(root: Path, clips: int, videos: Path | None = None, grain: float = 0.0) -> float:
    """Writes frame folders of ``NUM_FRAMES`` 1080p JPEGs each, at the quality of ``tillwatch extract``.

    Args:
        root: a new folder.
        clips: how many.
        videos: class folders of real videos whose frames are enlarged; None renders some.
        grain: standard deviation of noise that is added, in grey levels.

    Returns:
        The JPEGs' mean size in kilobytes.
    """
    rng, sizes = np.random.default_rng(0), []
    real = [] if videos is None else sorted(path for path in videos.glob("*/*") if is_video_file(path))
    for number in range(clips):
        label = CLASSES[number % 2]
        folder = root / label / f"clip{number:03d}"
        folder.mkdir(parents=True)
        if real:
            film = read_video(real[number * len(real) // clips], NUM_FRAMES)
        else:
            film = render_clip(make_camera(f"camera{number}", number), label, number)
        for index in range(NUM_FRAMES):
            large = Image.fromarray(film[index % len(film)]).resize((1920, 1080), Image.Resampling.BICUBIC)
            if grain:
                noisy = np.asarray(large, np.float32) + rng.normal(0, grain, (1080, 1920, 1)).astype(np.float32)
                large = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
            path = folder / f"frame_{index:06d}.jpg"
            large.save(path, quality=92)
            sizes.append(path.stat().st_size / 1e3)
    return statistics.mean(sizes)


def rows(quick: bool, videos: Path | None = None) -> list[Row]:
    """Measures and returns the table's rows; real videos are taken where there are any."""
    clips, turns, out = (4, 1, []) if quick else (24, 3, [])
    source = "rendered" if videos is None else "real"
    with tempfile.TemporaryDirectory() as name:
        root, stores = Path(name) / "frames", Path(name) / "stores"
        kilobytes = write_clips(root, clips, videos)
        plain, cold, warm = seconds_a_clip(root, stores, clips, turns)
        store = stores / "0"  # holds every clip by now
        waiting = _share_of_waiting(root, store, 2, 1) if quick else _share_of_waiting(root, store, 4, 10)
        what = f"loading a {source} clip of {NUM_FRAMES} 1080p JPEGs ({kilobytes:.0f} kB each), one worker, ms"
        for state, ours, bar in (("cold", cold, 3), ("from the store", warm, 50)):
            ratio = plain / ours
            figures = (f"{1e3 * ours:.1f}", f"{1e3 * plain:.0f}", f"{ratio:.1f}")
            held = None if quick and state == "cold" else ratio >= bar  # a cold clip is read but once
            out.append(Row("2", f"{what}: {state}", *figures, f"at least {bar}", held))
        share = "share of the time that training waits for data, with the store"
        out.append(Row("2", share, f"{waiting:.2%}", "", "", "under 2 %", waiting < 0.02))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "frames"
        few = 2 if quick else 4
        kilobytes = write_clips(root, few, videos, grain=3.0)
        plain, cold, _ = seconds_a_clip(root, Path(name) / "stores", few, turns)
        what = f"the same with grain of 3 levels, which is most of a JPEG's {kilobytes:.0f} kB, ms: cold"
        out.append(Row("2", what, f"{1e3 * cold:.1f}", f"{1e3 * plain:.0f}", f"{plain / cold:.1f}", "printed", None))
    return [*out, *scale_rows(), *video_rows()]


def seconds_a_clip(root: Path, stores: Path, clips: int, turns: int) -> tuple[float, float, float]:
    """Returns the seconds a clip of the plain data set, and of ours cold and from the store, each with one worker.

    Turn by turn; ours is cold in each, for it begins with an empty store below ``stores``. Medians.
    """
    transform = eval_transform()
    plain, cold, warm = [], [], []
    for turn in range(turns):
        plain.append(_one_pass(DataLoader(PlainDataset(root, NUM_FRAMES), 4, num_workers=1), clips, lambda batch: None))
        store = ClipStore(stores / str(turn))
        dataset = VideoFrameDataset(root, classes_in(root), NUM_FRAMES, transform, store=store)
        ours = evaluation_loader(dataset, 4, workers=1)
        first, *others = (_one_pass(ours, clips, lambda batch: batch.clips(transform)) for _ in range(4))
        cold.append(first)
        warm += others
    return statistics.median(plain), statistics.median(cold), statistics.median(warm)


def _one_pass(loader: DataLoader[Any], clips: int, use: Any) -> float:
    started = time.perf_counter()
    for batch in loader:
        use(batch)
    return (time.perf_counter() - started) / clips


def scale_rows() -> list[Row]:
    """Returns how long one frame takes decoded whole, at just over its size and at twice it, and how far it is off."""
    out = []
    film = render_clip(make_camera("camera", 0), CLASSES[0], 0)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "frame.jpg"
        for width, height in ((1920, 1080), (455, 256)):
            large = np.asarray(Image.fromarray(film[0]).resize((width, height), Image.Resampling.BICUBIC), np.float32)
            grain = np.random.default_rng(0).normal(0, 8, large.shape)
            Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8)).save(path, quality=85)
            whole, whole_ms = _read_timed(path, None)
            for times in (1, 2):
                frame, spent_ms = _read_timed(path, (128 * times, 128 * times))
                gap = np.abs(frame - whole)
                off = f"off by {gap.mean():.2f} grey levels in the mean, {gap.max():.0f} at most"
                what = f"{width}x{height} JPEG to 128x128, decoded at {times} x that or more, {off}, ms"
                ratio = f"{whole_ms / spent_ms:.1f}"
                out.append(Row("2", what, f"{spent_ms:.2f}", f"{whole_ms:.2f}", ratio, "printed", None))
    return out


def _read_timed(path: Path, draft: tuple[int, int] | None) -> tuple[NDArray[np.float64], float]:
    spent = []
    for _ in range(15):
        started = time.perf_counter()
        frame = read_frames([path], (128, 128), draft)[0]
        spent.append(time.perf_counter() - started)
    return frame.astype(float), 1e3 * statistics.median(spent)


def video_rows() -> list[Row]:
    """Returns how long a decoded video frame takes to shrink and convert, and how far it is off Pillow's resizing.

    Held against converting it whole and squeezing that, by torch's kernel for bytes.
    """
    out = []
    film = render_clip(make_camera("camera", 0), CLASSES[0], 0)
    for width, height in ((1920, 1080), (640, 360)):
        large = Image.fromarray(film[0]).resize((width, height), Image.Resampling.BICUBIC)
        wanted = np.asarray(large.resize((128, 128), Image.Resampling.BILINEAR), np.float64)
        decoded = av.VideoFrame.from_ndarray(np.asarray(large), format="rgb24")
        # As many as a decoder gives in turn: the same one again would lie in the cores' caches.
        frames = [decoded.reformat(format="yuv420p") for _ in range(16)]
        ours, ours_ms = _converted_timed(frames, lambda frame: shrunk(frame, (128, 128)))
        whole, whole_ms = _converted_timed(frames, lambda frame: squeeze(cut_out(to_rgb(frame), None), (128, 128)))
        gap, gap_whole = ours - wanted, whole - wanted
        off = f"off by {gap.mean():+.2f} grey levels in the mean (the other way {gap_whole.mean():+.2f})"
        what = f"{width}x{height} video frame to 128x128, shrunk, then converted, {off}, ms"
        figures = (f"{ours_ms:.2f}", f"{whole_ms:.2f}", f"{whole_ms / ours_ms:.1f}")
        out.append(Row("2", what, *figures, "printed", None))
    return out


def _converted_timed(
    frames: Sequence[av.VideoFrame], convert: Callable[[av.VideoFrame], NDArray[np.uint8]]
) -> tuple[NDArray[np.float64], float]:
    spent = []
    for _ in range(5):
        started = time.perf_counter()
        for frame in frames:
            small = convert(frame)
        spent.append((time.perf_counter() - started) / len(frames))
    return small.astype(float), 1e3 * statistics.median(spent)


def _share_of_waiting(root: Path, store: Path, batch_size: int, steps: int) -> float:
    training = OurTraining(root, NUM_FRAMES, batch_size, store=store)
    for _ in range(4 if steps > 1 else 1):  # the first make the worker ready
        training.step()
    training.waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        training.step()
    return training.waited / (time.perf_counter() - started)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--videos", type=Path)
    options = parser.parse_args()
    print_table(rows(options.quick, options.videos))


if __name__ == "__main__":
    main()

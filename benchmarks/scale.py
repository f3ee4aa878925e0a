"""Cost against size: catalog and split of a million clips, how even the split is, an epoch's overhead per clip.

    python benchmarks/scale.py           # a million clips; minutes, and a million empty files in a temporary folder
    python benchmarks/scale.py --quick   # twenty thousand

The catalog is searched, its rows read, its groups and short clips settled as training does it; only the files are
not opened, since there is nothing in them. Each case runs in a process of its own. How even a split is:
Pearson's chi-squared distance of class counts per side from their shares, beside StratifiedGroupKFold's on the same
clips. The epoch's clips cost nothing to read, so what is left is the sampler's and the loader's own work.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold
from table import Row, print_table

from tillwatch.clip_spec import FrameStep
from tillwatch.data.catalog import CLIPS_CSV, Clip, Found, look_into, search_folder
from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.loader import training_loader
from tillwatch.data.splits import SHARES, SIDES, missing_classes, split_clips
from tillwatch.data.transforms import train_transform
from tillwatch.files import write_csv

LINE = "9"
CLASSES = ("normal", "theft")
THEFT_SHARE = 0.1

MOST_SECONDS = 60.0
MOST_GB = 4.0
SIZES = (1_000, 10_000, 100_000)
FEW_SIZES = (1_000, 10_000)

#: "Does not grow", with room for what the same epoch differs by from one time to the next.
MOST_GROWTH = 1.2


# --- catalog and split -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CatalogFigures:
    """What a catalog and its split cost: seconds of each part, of the processor, and the process's peak of memory."""

    clips: int
    groups: int
    search_s: float
    look_s: float
    split_s: float
    processor_s: float
    peak_gb: float

    @property
    def seconds(self) -> float:
        """All three together."""
        return self.search_s + self.look_s + self.split_s


def make_files(root: Path, count: int) -> None:
    """Makes class folders of empty files that bear the names of videos."""
    for label in CLASSES:
        (root / label).mkdir()
    for name, _ in _names(count):
        (root / name).touch()


def write_rows(root: Path, count: int, num_groups: int) -> None:
    """Writes clips.csv with every clip: each its own group, or groups of very different sizes."""
    rng = random.Random(1)

    def rows() -> Iterator[dict[str, object]]:
        for number, (name, label) in enumerate(_names(count)):
            group = number if num_groups == count else int(num_groups * rng.random() ** 2)
            # 20 to 59 frames: many clips are shorter than the 32 asked for.
            held = {"every": 2, "fps": 12.5, "seconds": f"{(20 + number % 40) / 12.5:.2f}", "source": name}
            yield {"path": name, "label": label, "group": f"camera {group}", **held}

    write_csv(root / CLIPS_CSV, ("path", "label", "group", "every", "fps", "seconds", "source"), rows())


def _names(count: int) -> Iterator[tuple[str, str]]:
    rng = random.Random(0)
    for number in range(count):
        label = CLASSES[rng.random() < THEFT_SHARE]
        yield f"{label}/till{number % 37:02d}_{number:07d}.mp4", label


def clip_of_row(found: Found, row: Mapping[str, str], num_frames: int, step: FrameStep) -> Clip:
    """Believes clips.csv, where training would open the video."""
    fps = float(row["fps"])
    return Clip(
        name=found.name,
        path=found.path,
        label=found.label,
        group=found.name,
        is_video=True,
        num_frames=round(float(row["seconds"]) * fps),
        every=1,
        fps=fps,
        frame_step=step.of_source(fps),
    )


def measure_catalog(root: Path) -> CatalogFigures:
    """Finds and splits the clips below a folder in this process, whose peak of memory counts."""
    started, processor_before = time.perf_counter(), time.process_time()
    search = search_folder(root)
    searched = time.perf_counter()
    catalog = look_into(search, num_frames=32, open_clip=clip_of_row)
    looked = time.perf_counter()
    sides = split_clips(catalog.clips, seed=0)
    split, processor_s = time.perf_counter(), time.process_time() - processor_before
    assert not missing_classes(catalog.clips, sides)
    return CatalogFigures(
        clips=len(catalog.clips),
        groups=len({clip.group for clip in catalog.clips}),
        search_s=searched - started,
        look_s=looked - searched,
        split_s=split - looked,
        processor_s=processor_s,
        peak_gb=_peak_bytes() / 1e9,
    )


def _peak_bytes() -> int:
    """Returns the peak of this program's own memory; getrusage also counts what it was forked from."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("this measurement needs Linux")


def catalog_figures(count: int) -> list[CatalogFigures]:
    """Measures ``count`` clips in as many groups, and in a thousand, each in a fresh process."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_files(root, count)
        for num_groups in (count, 1_000):
            write_rows(root, count, num_groups)
            # Linux lets a child's peak begin at its parent's: these run before this process has grown.
            child = [sys.executable, __file__, "--measure", str(root)]
            answer = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout
            figures.append(CatalogFigures(**json.loads(answer)))
    return figures


# --- how even the split is ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class QualityFigures:
    """Imbalance over many small data sets, and how many (side, class) pairs were left without a clip."""

    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    ours_missing: int
    theirs_missing: int

    @property
    def as_even(self) -> float:
        """The share of data sets on which ours is no less even."""
        return sum(ours <= theirs + 1e-9 for ours, theirs in zip(self.ours, self.theirs, strict=True)) / len(self.ours)


def made_up_clip(name: str, label: str, group: str) -> Clip:
    """Returns a clip that no file stands for."""
    return Clip(
        name=name,
        path=Path(name),
        label=label,
        group=group,
        is_video=False,
        num_frames=8,
        every=None,
        fps=None,
    )


def small_data_set(seed: int) -> list[Clip]:
    """Returns 40 to 400 clips of 2 to 4 classes, one rarer than the other, in 5 to 60 groups of uneven sizes."""
    rng = np.random.default_rng(seed)
    count, classes = int(rng.integers(40, 401)), int(rng.integers(2, 5))
    groups = int(rng.integers(5, min(60, count // 2) + 1))
    common = rng.dirichlet(np.full(classes, 2.0))
    sizes = rng.dirichlet(np.full(groups, rng.choice([0.5, 1.0, 5.0])))  # from a few large ones to almost equal
    leans = rng.dirichlet(common * rng.choice([0.5, 2.0, 20.0]) + 1e-3, groups)  # of one class each, to all alike
    members = np.concatenate([np.arange(groups), rng.choice(groups, count - groups, p=sizes)])
    labels = [int(rng.choice(classes, p=leans[group])) for group in members]
    return [
        made_up_clip(f"{n}", "abcd"[label], f"{g}") for n, (label, g) in enumerate(zip(labels, members, strict=True))
    ]


def imbalance(clips: Sequence[Clip], sides: Mapping[str, str], shares: Sequence[float]) -> float:
    """Returns ``sum((count - expected)**2 / expected)`` over sides and classes."""
    totals = Counter(clip.label for clip in clips)
    counts = Counter((sides[clip.name], clip.label) for clip in clips)
    return sum(
        (counts[side, label] - share * total) ** 2 / (share * total)
        for side, share in zip(SIDES, shares, strict=True)
        for label, total in totals.items()
    )


def split_by_folds(clips: Sequence[Clip], folds: Sequence[int], seed: int) -> dict[str, str]:
    """Splits by scikit-learn: so many folds for each side, in the order that it gives them."""
    kept = [side for side, number in zip(SIDES, folds, strict=True) for _ in range(number)]
    splitter = StratifiedGroupKFold(n_splits=len(kept), shuffle=True, random_state=seed)
    labels, groups = [clip.label for clip in clips], [clip.group for clip in clips]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer clips than folds
        parts = list(splitter.split(labels, labels, groups))
    return {clips[i].name: side for side, (_, members) in zip(kept, parts, strict=True) for i in members.tolist()}


def quality_figures(count: int) -> QualityFigures:
    """Splits ``count`` small data sets both ways.

    scikit-learn's side of it is the evener of seven folds (5, 1, 1) and of twenty (14, 3, 3), where so many can be
    made, each held against its own shares; of five or six groups it can make no more than five folds.
    """
    ours, theirs, ours_missing, theirs_missing = [], [], 0, 0
    for seed in range(count):
        clips = small_data_set(seed)
        sides = split_clips(clips, seed)
        ours.append(imbalance(clips, sides, SHARES))
        ours_missing += len(missing_classes(clips, sides))
        most_folds = min(len({clip.group for clip in clips}), max(Counter(clip.label for clip in clips).values()))
        tries = []
        for folds in [(5, 1, 1), (14, 3, 3)] if most_folds >= 7 else [(3, 1, 1)]:
            if sum(folds) <= most_folds:
                sides = split_by_folds(clips, folds, seed)
                shares = [number / sum(folds) for number in folds]
                tries.append((imbalance(clips, sides, shares), len(missing_classes(clips, sides))))
        distance, missing = min(tries)
        theirs.append(distance)
        theirs_missing += missing
    return QualityFigures(
        ours=tuple(ours), theirs=tuple(theirs), ours_missing=ours_missing, theirs_missing=theirs_missing
    )


# --- overhead of an epoch ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EpochFigures:
    """Microseconds a clip of an epoch whose clips cost nothing to read, by the number of clips."""

    workers: int
    us_per_clip: dict[int, float]

    @property
    def growth(self) -> float:
        """The largest data set's to the smallest's."""
        return self.us_per_clip[max(self.us_per_clip)] / self.us_per_clip[min(self.us_per_clip)]


class CostlessDataset(VideoFrameDataset):
    """A data set whose clips are all the same tiny frame."""

    def __init__(self, count: int) -> None:
        clips = [made_up_clip(name, label, name) for name, label in _names(count)]
        super().__init__(".", CLASSES, 1, train_transform(resize=(8, 8), crop=(6, 6)), clips=clips)
        self.frames = np.zeros((1, 8, 8, 3), np.uint8)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Returns the frame."""
        return self.frames


def epoch_figures(workers: int, epochs: int, sizes: Sequence[int] = SIZES) -> EpochFigures:
    """Times epochs in batches of 8: their median, the first, in which workers start, apart."""
    us_per_clip = {}
    for size in sizes:
        loader, sampler = training_loader(CostlessDataset(size), 8, seed=0, workers=workers)
        seconds = []
        for epoch in range(1 + max(epochs, min(20, 10_000 // size))):
            sampler.start_epoch(epoch)
            started = time.perf_counter()
            drawn = sum(len(batch.labels) for batch in loader)
            seconds.append((time.perf_counter() - started) / drawn)
        us_per_clip[size] = 1e6 * statistics.median(seconds[1:])
        del loader  # and its worker
    return EpochFigures(workers=workers, us_per_clip=us_per_clip)


# --- all of it ---------------------------------------------------------------------------------------


def rows(quick: bool) -> list[Row]:
    """Measures everything.

    Args:
        quick: fewer clips, data sets and epochs.
    """
    torch.set_num_threads(1)
    return [
        *catalog_rows(catalog_figures(20_000 if quick else 1_000_000)),
        *quality_rows(quality_figures(30 if quick else 300)),
        *(
            replace(epoch_row(epoch_figures(workers, 1, FEW_SIZES)), holds=None)  # so short an epoch judges nothing
            if quick
            else epoch_row(epoch_figures(workers, 3))
            for workers in (0, 1)
        ),
    ]


def catalog_rows(figures: Sequence[CatalogFigures]) -> list[Row]:
    """Returns time and memory of each case."""
    made = []
    for case in figures:
        what = f"catalog and split, {case.clips:,} clips, {case.groups:,} groups"
        parts = f"(search {case.search_s:.0f}, look {case.look_s:.0f}, split {case.split_s:.0f})"
        spent = f"{case.seconds:.1f} s {parts}, {case.processor_s:.1f} s of the processor"
        time_held, memory_held = case.seconds < MOST_SECONDS, case.peak_gb < MOST_GB
        made.append(Row(LINE, what, spent, "", "", f"< {MOST_SECONDS:.0f} s", time_held))
        made.append(Row(LINE, what, f"{case.peak_gb:.2f} GB at most", "", "", f"< {MOST_GB:.0f} GB", memory_held))
    return made


def quality_rows(figures: QualityFigures) -> list[Row]:
    """Returns how even the split is, and what it leaves out, beside scikit-learn's."""
    ours, theirs = statistics.mean(figures.ours), statistics.mean(figures.theirs)
    of = f"{len(figures.ours)} data sets of 40 to 400 clips"
    evenness = Row(
        LINE,
        f"imbalance of the split, mean over {of}",
        f"{ours:.2f} (as even or evener on {figures.as_even:.0%})",
        f"{theirs:.2f} StratifiedGroupKFold",
        f"{ours / theirs:.2f}",
        "<= 1",
        ours <= theirs,
    )
    missing = Row(
        LINE,
        f"classes missing on a side, {of}",
        f"{figures.ours_missing}",
        f"{figures.theirs_missing} StratifiedGroupKFold",
        f"{figures.ours_missing / max(1, figures.theirs_missing):.2f}",
        "<= 1",
        figures.ours_missing <= figures.theirs_missing,
    )
    return [evenness, missing]


def epoch_row(figures: EpochFigures) -> Row:
    """Returns how the overhead grows."""
    *smaller, (large, most) = sorted(figures.us_per_clip.items())
    reference = ", ".join(f"{us:.0f} us at {size:,}" for size, us in smaller)
    return Row(
        LINE,
        f"overhead a clip of an epoch, {figures.workers} workers, {large:,} clips against {smaller[0][0]:,}",
        f"{most:.0f} us",
        reference,
        f"{figures.growth:.2f}",
        f"<= {MOST_GROWTH}",
        figures.growth <= MOST_GROWTH,
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer clips")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="prints one catalog's figures as JSON")
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(asdict(measure_catalog(options.measure))))
    else:
        print_table(rows(options.quick))


if __name__ == "__main__":
    main()

"""The whole table: a row for each promise about speed, with ours, the plain reference and the ratio.

    make bench          everything, an hour and more on two cores (the quality of five seeds is half of it)
    make bench-quick    the same rows from fewer steps, seeds and clips, in five minutes

Real clips are taken where there are any: ``make bench CLIPS=FOLDER`` with class folders of videos. Without, rendered
ones stand in. Each part's rows are written to results/ (results/quick/) as they are known; ``--only PART ...``
measures some parts, and ``--report`` prints the table of what lies there. Of trainings on several seeds (seeds.csv,
until.csv) a broken-off run goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import NoReturn

import engines
import gating
import gpu
import gpu_resume
import loading
import memory
import probe_speed
import quality
import scale
import scan
import store_faults
import tasks
import time_to_accuracy
import training_speed
from table import Row, print_table

from tillwatch.clip_spec import FrameStep
from tillwatch.data.extraction import extract
from tillwatch.data.provenance import Extraction
from tillwatch.data.video import READING, is_video_file
from tillwatch.files import read_csv, write_csv

_COLUMNS = tuple(field.name for field in fields(Row))

Part = tuple[str, Callable[[], list[Row]]]

#: Of the videos, ``--quick`` takes every so manieth.
QUICK_STRIDE = 8


def every_few(videos: Path, results: Path) -> Path:
    """Returns class folders with links to every ``QUICK_STRIDE``-th video of each class."""
    few = results / "videos"
    for folder in sorted(path for path in videos.iterdir() if path.is_dir()):
        (few / folder.name).mkdir(parents=True, exist_ok=True)
        for video in sorted(filter(is_video_file, folder.iterdir()))[::QUICK_STRIDE]:
            link = few / folder.name / video.name
            if not link.is_symlink():
                link.symlink_to(video.resolve())
    return few


def frames_of(videos: Path | None, results: Path, quick: bool) -> Path:
    """Returns frame folders of the videos, extracted once, or rendered ones (few for ``quick``)."""
    if videos is not None:
        frames = results / f"frames{READING}"  # those that another version extracted are others
        extract(videos, frames, Extraction(step=FrameStep(), short_side=128), workers=os.cpu_count() or 1)
        return frames
    rendered = results / "rendered"
    if not rendered.is_dir():
        tasks.noisy_till(1.0, tasks.FEW_CAMERAS if quick else tasks.CAMERAS).make(rendered, 0)
    return rendered


def parts(frames: Path, videos: Path | None, results: Path, quick: bool, crossval: Path | None = None) -> list[Part]:
    """Returns the measurements: what is timed first, while the machine is as it was found, and the long one last."""
    quality_csv = results / "seeds.csv"

    def folds() -> Path | None:
        return engines.cross_validated(frames, results, quick) if crossval is None and videos is not None else crossval

    return [
        ("training speed", lambda: training_speed.rows(frames, quick)),
        ("loading", lambda: loading.rows(quick, videos)),
        ("fast", lambda: time_to_accuracy.rows(results / "until.csv", [0] if quick else [0, 1, 2], quick)),
        ("probe", lambda: probe_speed.rows(frames, quick)),
        ("memory", lambda: memory.rows(frames, quick)),
        ("store", lambda: store_faults.rows(quick)),
        ("engines", lambda: engines.rows(folds(), quick, scan.int8_export(videos, results, quick))),
        ("gpu", gpu.rows),
        ("gpu resume", gpu_resume.rows),
        ("scan", lambda: scan.rows(videos, results, quick)),
        ("gating", lambda: gating.rows(videos, quick)),
        ("scale", lambda: scale.rows(quick)),
        ("quality", lambda: quality.measured_rows(quality_csv, frames if videos else None, quick)),
    ]


def main() -> None:
    """Measures everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path)
    crossval = "folds of a network, for what int8 costs on clips held out, instead of those of a small one trained here"
    parser.add_argument("--crossval", type=Path, help=crossval)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", help='some of the parts, by name, such as "training speed" quality')
    parser.add_argument("--report", action="store_true", help="print what was measured before, and measure nothing")
    options = parser.parse_args()
    if options.report:
        finish(read_rows(options.results))
    results = options.results / "quick" if options.quick else options.results
    results.mkdir(parents=True, exist_ok=True)
    videos = options.clips if options.clips is not None and options.clips.is_dir() else None
    if videos is not None and options.quick:
        videos = every_few(videos, results)
    started = time.perf_counter()
    frames = frames_of(videos, results, options.quick)
    print(f"[frames: {time.perf_counter() - started:.0f} s]", file=sys.stderr, flush=True)
    table: list[Row] = []
    all_parts = parts(frames, videos, results, options.quick, options.crossval)
    if unknown := set(options.only or ()) - {name for name, _ in all_parts}:
        parser.error(f"--only: no part is called {', '.join(sorted(unknown))}; there are {', '.join(dict(all_parts))}.")
    for name, measure in all_parts:
        if options.only and name not in options.only:
            continue
        started = time.perf_counter()
        rows = measure()
        table += rows
        write_csv(part_csv(results, name), _COLUMNS, map(asdict, rows))
        print(f"[{name}: {time.perf_counter() - started:.0f} s]", file=sys.stderr, flush=True)
    finish(table)


def part_csv(results: Path, part: str) -> Path:
    """Returns the file of a part's rows."""
    return results / f"{part.replace(' ', '-')}.csv"


def read_rows(results: Path) -> list[Row]:
    """Returns the rows of all parts that were measured before."""
    files = [part_csv(results, name) for name, _ in parts(results, None, results, False)]
    return [
        Row(**{**row, "holds": {"True": True, "False": False}.get(row["holds"])})  # type: ignore[arg-type]
        for file in files
        if file.is_file()
        for row in read_csv(file)
    ]


def finish(table: Sequence[Row]) -> NoReturn:
    """Prints the table and exits, with 1 if a bar is missed."""
    print_table(sorted(table, key=lambda row: row.line))
    missed = [row for row in table if row.holds is False]
    print(f"\n{len(table)} rows, {len(missed)} of them miss their bar")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()

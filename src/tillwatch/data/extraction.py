"""Class folders of videos to class folders of JPEG frames."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tillwatch.clip_spec import seconds_of
from tillwatch.data.catalog import CLIPS_CSV, Found, Skip, count_and_names, search_folder
from tillwatch.data.provenance import EXTRACTION_JSON, Extraction, read_extraction
from tillwatch.data.video import decode_video, probe_video, to_image
from tillwatch.errors import ClipError, DataError, RunError, TillwatchError, one_line
from tillwatch.files import read_csv, write_csv, write_json

COLUMNS = ("path", "label", "group", "every", "fps", "seconds", "source")


@dataclass(frozen=True, kw_only=True)
class ExtractionReport:
    """What became of each video: the names of clips written, found done, and left out with the reason."""

    written: tuple[str, ...]
    done_before: tuple[str, ...]
    skipped: tuple[Skip, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Job:
    video: Path
    folder: Path
    name: str  # of the clip, below the destination
    row: dict[str, str]  # what is known before extraction


def extract(
    src: Path,
    dst: Path,
    extraction: Extraction,
    *,
    workers: int = 1,
    on_clip: Callable[[int, int], None] = lambda done, total: None,
) -> ExtractionReport:
    """Extracts the frames of all videos in class folders, several videos at a time.

    Each clip is written aside and renamed when whole; clips that are there already are left as they are.
    ``dst/clips.csv`` describes all of them, with the groups of ``src/clips.csv`` carried over.

    Args:
        src: class folders of videos.
        dst: made if missing; gets ``<class>/<video>/frame_000000.jpg``.
        extraction: which frames, how large.
        workers: processes.
        on_clip: called with (videos finished, videos in all).

    Raises:
        DataError: if there is no video, or none can be read.
        RunError: if ``dst`` holds frames extracted in another way or cannot be written.
    """
    search = search_folder(src)
    jobs, taken = _plan(search.found, search.rows, dst)
    if not jobs:
        raise DataError(f"{src} holds no video in a class folder that is not in {dst} already.")
    frame_folders = [clip.name for clip in search.found if not clip.is_video]
    if frame_folders:
        search.notes.append(
            f"{count_and_names(frame_folders)} left out: folders of frames already; extract takes videos."
        )
    try:
        dst.mkdir(parents=True, exist_ok=True)
        _claim(dst, extraction)
        rows, skipped = _run_jobs(jobs, extraction, workers, on_clip)
        done_before = tuple(name for name, row in rows.items() if row.pop("done_before"))
        old = {row["path"]: row for row in _read_rows(dst)}
        merged = {**old, **{row["path"]: row for row in rows.values()}}
        write_csv(dst / CLIPS_CSV, COLUMNS, [merged[path] for path in sorted(merged)])
    except OSError as error:
        raise RunError(f"{dst} cannot be written ({error.strerror or one_line(error)}).") from None
    if not rows:
        first = skipped[0]
        raise DataError(f"none of {len(jobs)} videos could be read; the first, {first.name}: {first.reason}.")
    return ExtractionReport(
        written=tuple(name for name in rows if name not in set(done_before)),
        done_before=done_before,
        skipped=(*search.skipped, *taken, *skipped),
        notes=tuple(search.notes),
    )


def _plan(found: Sequence[Found], rows: dict[str, dict[str, str]], dst: Path) -> tuple[list[_Job], list[Skip]]:
    """Gives each video its folder; a video whose folder holds another one's frames is left out."""
    before = {row["source"]: row["path"] for row in _read_rows(dst)}
    owners = {path: source for source, path in before.items()}
    videos = [clip for clip in found if clip.is_video]
    stems = [(clip.label, clip.path.stem) for clip in videos]
    jobs, taken = [], []
    for clip, stem in zip(videos, stems, strict=True):
        # a.mp4 and a.avi would share a folder: then, and only then, the suffix stays.
        folder = clip.path.stem if stems.count(stem) == 1 else clip.path.name
        source = str(clip.path.resolve())
        path = before.get(source, f"{clip.label}/{folder}")  # once extracted, a video keeps its folder
        owner = owners.get(path, source)
        if owner != source and Path(owner).exists():  # a source that is gone was moved, or renamed above us
            taken.append(Skip(clip.name, f"{dst / path} holds the frames of {owner}; extract into another folder"))
            continue
        row = {
            "path": path,
            "label": clip.label,
            "group": rows.get(clip.name, {}).get("group", ""),
            "source": source,
        }
        jobs.append(_Job(clip.path, dst / path, path, row))
    return jobs, taken


def _claim(dst: Path, extraction: Extraction) -> None:
    """Writes extraction.json, or holds it against what is asked for now."""
    before = read_extraction(dst)
    if before is None:
        write_json(dst / EXTRACTION_JSON, asdict(extraction))
    elif before != extraction:
        differing = [key for key, value in asdict(before).items() if asdict(extraction)[key] != value]
        raise RunError(
            f"{dst} holds frames extracted with another {' and '.join(differing)}; "
            "use the same settings, another folder, or remove it."
        )


def _run_jobs(
    jobs: Sequence[_Job], extraction: Extraction, workers: int, on_clip: Callable[[int, int], None]
) -> tuple[dict[str, dict[str, Any]], list[Skip]]:
    rows: dict[str, dict[str, Any]] = {}
    skips: dict[str, Skip] = {}
    for done, (job, result) in enumerate(_results(jobs, extraction, workers), start=1):
        if isinstance(result, Skip):
            skips[job.name] = result
        else:
            rows[job.name] = result
        on_clip(done, len(jobs))
    ordered = [job.name for job in jobs]  # results come as they finish
    return {name: rows[name] for name in ordered if name in rows}, [skips[n] for n in ordered if n in skips]


def _results(
    jobs: Sequence[_Job], extraction: Extraction, workers: int
) -> Iterator[tuple[_Job, dict[str, Any] | Skip]]:
    if workers <= 1 or len(jobs) == 1:
        for job in jobs:
            yield job, _extract_clip(job, extraction)
        return
    # Spawned, not forked: FFmpeg's and the progress bar's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        futures = {pool.submit(_extract_clip, job, extraction): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C or a full disk the rest is not worth starting


def _extract_clip(job: _Job, extraction: Extraction) -> dict[str, Any] | Skip:
    """Extracts one video; OSError (a full disk) is left to end the whole run."""
    try:
        info = probe_video(job.video)
        fps = None if info.fps is None else float(info.fps)
        every = extraction.step.of_source(fps)
        done_before = job.folder.is_dir()
        if not done_before:
            _write_frames(job, every, extraction)
    except TillwatchError as error:
        return Skip(job.name, one_line(error).removeprefix(f"{job.video}: ").rstrip("."))
    seconds = seconds_of(info.num_frames, fps)
    return {
        **job.row,
        "every": every,
        "fps": None if fps is None else f"{fps / every:.6f}".rstrip("0").rstrip("."),
        "seconds": None if seconds is None else f"{seconds:.3f}",
        "done_before": done_before,
    }


def _write_frames(job: _Job, every: int, extraction: Extraction) -> None:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp's own names exactly: .a.b.xxxxxxxx.part is another clip's, and may be under way.
    stale = re.compile(rf"\.{re.escape(job.folder.name)}\.[a-z0-9_]{{8}}\.part")
    for entry in job.folder.parent.iterdir():
        if stale.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(dir=job.folder.parent, prefix=f".{job.folder.name}.", suffix=".part"))
    try:
        written = 0
        for position, frame in enumerate(decode_video(job.video, threads=1)):
            if position % every == 0:
                image = _shrink(to_image(frame, extraction.roi), extraction.short_side)
                image.save(aside / f"frame_{written:06d}.jpg", quality=extraction.quality)
                written += 1
        if not written:
            raise ClipError(f"{job.video}: holds no frame.")
        aside.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        aside.rename(job.folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _shrink(image: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    size = round(image.width * scale), round(image.height * scale)
    # reducing_gap averages whole blocks first: several times faster from 1080p, and as good at 2 or more.
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def _read_rows(dst: Path) -> list[dict[str, str]]:
    path = dst / CLIPS_CSV
    return read_csv(path) if path.is_file() else []

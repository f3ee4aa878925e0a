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

import av
from PIL import Image

from tillwatch.clip_spec import seconds_of
from tillwatch.data.catalog import CLIPS_CSV, Found, Skip, count_and_names, search_folder
from tillwatch.data.provenance import EXTRACTION_JSON, Extraction, read_extraction
from tillwatch.data.video import can_be_shrunk, decode_video, probe_video, shrunk, to_image, upright_size
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
    old: dict[str, str]  # its row in the destination's clips.csv, empty if there is none


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
    if src.resolve() in (dst.resolve(), *dst.resolve().parents):
        raise RunError(f"{dst} lies inside {src}, where its frames would pass for clips to extract; give another DST.")
    search = search_folder(src)
    before = _read_rows(dst)
    jobs, taken = _plan(search.found, search.rows, dst, before)
    frame_folders = [clip.name for clip in search.found if not clip.is_video]
    if not jobs and not taken:
        raise DataError(f"{src} holds no video in a class folder.")
    if frame_folders:
        search.notes.append(
            f"{count_and_names(frame_folders)} left out: folders of frames already; extract takes videos."
        )
    try:
        dst.mkdir(parents=True, exist_ok=True)
        claimed = _claim(dst, extraction)
        rows, skipped = _run_jobs(jobs, extraction, workers, on_clip)
        if rows:
            _write_rows(dst, before, rows)
        elif claimed:
            (dst / EXTRACTION_JSON).unlink()  # nothing was extracted, so nothing was extracted that way
    except OSError as error:
        raise RunError(f"{dst} cannot be written ({error.strerror or one_line(error)}).") from None
    skipped = [*taken, *skipped]
    if not rows:
        first = skipped[0]
        raise DataError(f"none of {len(skipped)} videos could be extracted; the first, {first.name}: {first.reason}.")
    done_before = tuple(name for name, row in rows.items() if row["done_before"])
    return ExtractionReport(
        written=tuple(name for name in rows if name not in set(done_before)),
        done_before=done_before,
        skipped=(*search.skipped, *skipped),
        notes=tuple(search.notes),
    )


def _plan(
    found: Sequence[Found], rows: dict[str, dict[str, str]], dst: Path, before: dict[str, dict[str, str]]
) -> tuple[list[_Job], list[Skip]]:
    """Gives each video its folder; a video whose folder holds another one's frames is left out."""
    paths = {row["source"]: path for path, row in before.items() if row.get("source")}
    videos = [clip for clip in found if clip.is_video]
    stems = [(clip.label, clip.path.stem) for clip in videos]
    jobs, taken = [], []
    for clip, stem in zip(videos, stems, strict=True):
        # a.mp4 and a.avi would share a folder: then, and only then, the suffix stays.
        folder = clip.path.stem if stems.count(stem) == 1 else clip.path.name
        source = str(clip.path.resolve())
        path = paths.get(source, f"{clip.label}/{folder}")  # once extracted, a video keeps its folder
        old = before.get(path, {})
        owner = old.get("source") or source
        if owner != source and Path(owner).exists():  # a source that is gone was moved, or renamed above us
            taken.append(_taken(clip.name, dst / path, owner))
            continue
        group = rows.get(clip.name, {}).get("group") or old.get("group", "")
        row = {"path": path, "label": clip.label, "group": group, "source": source}
        jobs.append(_Job(clip.path, dst / path, path, row, old))
    return jobs, taken


def _taken(name: str, folder: Path, owner: str) -> Skip:
    return Skip(name, f"{folder} holds the frames of {owner}; extract into another folder")


def _claim(dst: Path, extraction: Extraction) -> bool:
    """Writes extraction.json, or holds it against what is asked for now; returns whether it was written."""
    before = read_extraction(dst)
    if before is None:
        write_json(dst / EXTRACTION_JSON, asdict(extraction))
        return True
    if before != extraction:
        if before.reading != extraction.reading:
            raise RunError(
                f"{dst} holds frames that another version of tillwatch extracted, and their brightness may differ; "
                "extract into another folder, or remove it."
            )
        differing = [key for key, value in asdict(before).items() if asdict(extraction)[key] != value]
        raise RunError(
            f"{dst} holds frames extracted with another {' and '.join(differing)}; "
            "use the same settings, another folder, or remove it."
        )
    return False


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
        seconds = seconds_of(info.num_frames, fps)
        row: dict[str, Any] = {
            **job.row,
            "every": every,
            "fps": None if fps is None else f"{fps / every:.6f}".rstrip("0").rstrip("."),
            "seconds": None if seconds is None else f"{seconds:.3f}",
        }
        there = job.folder.is_dir()
        changed = there and _differs(job, row["seconds"] or "")
        if changed and job.old and job.old.get("source") != job.row["source"]:
            return _taken(job.name, job.folder, job.old.get("source", "another video"))
        if not there or changed:
            _write_frames(job, every, extraction)
    except TillwatchError as error:
        return Skip(job.name, one_line(error).removeprefix(f"{job.video}: ").rstrip("."))
    return {**row, "done_before": there and not changed}


def _differs(job: _Job, seconds: str) -> bool:
    """Whether a video is not the one that its folder was extracted from: newer, or of another length."""
    newer = job.video.stat().st_mtime > job.folder.stat().st_mtime
    return newer or (bool(job.old) and job.old.get("seconds", "") != seconds)


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
                image = _small_image(frame, extraction)
                image.save(aside / f"frame_{written:06d}.jpg", quality=extraction.quality)
                written += 1
        if not written:
            raise ClipError(f"{job.video}: holds no frame.")
        aside.chmod(0o755)  # mkdtemp makes folders that only their owner can read
        if job.folder.is_dir():
            shutil.rmtree(job.folder)  # of the same video before it changed
        aside.rename(job.folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _small_image(frame: av.VideoFrame, extraction: Extraction) -> Image.Image:
    if extraction.roi is None and can_be_shrunk(frame):
        # As videos are read without extracting: the same colours either way.
        height, width = upright_size(frame)
        width, height = _shrunk_size(width, height, extraction.short_side) or (width, height)
        return Image.fromarray(shrunk(frame, (height, width)))
    image = to_image(frame, extraction.roi)
    size = _shrunk_size(*image.size, extraction.short_side)
    # reducing_gap averages whole blocks first: several times faster from 1080p, and as good at 2 or more.
    return image if size is None else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def _shrunk_size(width: int, height: int, short_side: int) -> tuple[int, int] | None:
    """Returns (width, height) of the smaller picture; None if it is to stay as it is."""
    scale = short_side / min(width, height)
    return None if scale >= 1 else (round(width * scale), round(height * scale))


def _read_rows(dst: Path) -> dict[str, dict[str, str]]:
    """Returns the rows of the destination's clips.csv by path; none if there is no such file."""
    path = dst / CLIPS_CSV
    if not path.is_file():
        return {}
    try:
        return {row["path"]: row for row in read_csv(path)}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read as a list of clips ({one_line(error)}).") from None


def _write_rows(dst: Path, before: dict[str, dict[str, str]], rows: dict[str, dict[str, Any]]) -> None:
    """Writes clips.csv: the rows there before, the new ones, and whatever columns a user has added."""
    added = [column for row in list(before.values())[:1] for column in row if column not in COLUMNS]
    columns = [*COLUMNS, *added]
    merged = [{**before.get(path, {}), **rows.get(path, {})} for path in sorted({*before, *rows})]
    write_csv(dst / CLIPS_CSV, columns, [{column: row.get(column) for column in columns} for row in merged])

"""Evidence of incidents: clips out of the original, filmstrips, copies to show, and hashes that tell any change."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tillwatch.clip_spec import Roi
from tillwatch.data.playback import Damage, play, timing_of_packets
from tillwatch.data.video import open_container, packets_of, to_image, video_stream
from tillwatch.detection.annotated import Annotation, annotate, regions_of
from tillwatch.detection.blurring import CAVEATS, Blur
from tillwatch.detection.cameras import flat_name
from tillwatch.detection.incidents import Incident
from tillwatch.detection.results import INCIDENTS_CSV, SCAN_JSON, SCORES_CSV, Recording, Scan, read_scan, timecode
from tillwatch.detection.timeline import TIMELINE_HTML
from tillwatch.detection.windows import Clock, seconds_exactly, timeline
from tillwatch.errors import ClipError, ConfigError, DataError, RunError, one_line
from tillwatch.files import replacing, sha256_of, write_json, write_text
from tillwatch.locks import open_held, release, take

MANIFEST, SEAL = "manifest.json", "manifest.json.sha256"
#: Lies in a folder of evidence until all is collected; locked by the process that collects.
UNFINISHED = "unfinished"

_NOT_FINISHED = "This evidence is not finished; the command that began it begins anew.\n"
_FURTHER_BACK_S = 20
_MOST_EARLIER = 10  # beginnings that are tried
_ROUNDED_S = Fraction(1, 1000)  # as some containers round timestamps
_PICTURES, _PICTURE_HEIGHT, _GAP, _JPEG_QUALITY = 6, 180, 4, 85  # of a filmstrip

_OURS = re.compile(r"\d{4}_|\..*\.part$")  # names of what is made of incidents, and of what is half-written
_COPIED = (INCIDENTS_CSV, SCORES_CSV, SCAN_JSON, TIMELINE_HTML)
_IN_MP4 = {"h264", "hevc", "mpeg4"}  # what else there is goes into Matroska, which takes all


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was collected.

    Attributes:
        clips, filmstrips, annotated: how many.
        left_out: what there is not, with the reason.
        notes: sentences on recordings that are not as the scan found them.
    """

    clips: int
    filmstrips: int
    annotated: int
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What became of a folder of evidence: what has changed, in sentences, and originals that are not there."""

    changes: tuple[str, ...]
    not_there: tuple[str, ...]


def collect(
    folder: Path,
    out: Path,
    *,
    around_s: float = 5.0,
    annotated: bool = False,
    blur: Blur = "none",
    on_incident: Callable[[int, int], None] = lambda done, total: None,
) -> Evidence:
    """Cuts a clip of each incident of a scan, copies what the scan wrote, and lists it all with its SHA-256.

    Clips are made of the original's own packets, from the last key frame before, without sound. Beside each lies a
    filmstrip of the incident and, if asked for, a video to be shown, encoded anew, with region, score and label. Where
    there can be no clip, both are made from the recording itself.

    Args:
        folder: of the scan.
        out: made if missing; must be empty, or hold what a collecting that was broken off has left, which is cleared.
        around_s: seconds before and after each incident that the clip shows too.
        annotated: make annotated videos.
        blur: what is made unrecognisable in those; clip and filmstrip are as the recording is.
        on_incident: called with (incidents done, incidents in all).

    Raises:
        ConfigError: if there is nothing to blur, or nothing outside any region.
        DataError: if the folder holds no finished scan, or none of its recordings is there any more.
        RunError: if ``out`` is not empty, cannot be written, or another process collects into it.
    """
    if not 0 <= around_s < math.inf:
        raise ConfigError(f"--around is {around_s}; it must be a number of seconds, at least 0.")
    if blur != "none" and not annotated:
        raise ConfigError(f"--blur {blur} is for the copy that is shown; add --annotate.")
    scan = read_scan(folder)
    if scan is None:
        raise DataError(f"{folder} holds no finished scan; give what tillwatch scan wrote.")
    if out.exists() and not (out.is_dir() and (is_unfinished(out) or not any(out.iterdir()))):
        raise RunError(f"{out} is not empty; give another --out.")
    collecting = [_Collecting(out, *one, number) for number, one in enumerate(scan.incidents(), start=1)]
    used = {one.recording.file: one.recording for one in collecting}
    if used and not any(Path(recording.path).is_file() for recording in used.values()):
        raise DataError(f"{next(iter(used.values())).path} is not there any more; put back what {folder} is a scan of.")
    notes = [note for recording in used.values() if (note := _other_than_scanned(recording))]
    if blur == "outside-roi" and collecting and not any(one.regions for one in collecting):
        raise ConfigError("--blur outside-roi: the whole picture was scanned; scan with --roi, or take --blur people.")
    try:
        with _unfinished(out):
            without_clip: dict[str, list[_Collecting]] = {}
            for one in collecting:
                begin, end = max(0.0, one.incident.start_s - around_s), one.incident.end_s + around_s
                try:
                    one.entry |= remux(Path(one.recording.path), begin, end, out / one.name)
                except ClipError as error:
                    one.entry["left_out"] = one_line(error).removeprefix(f"{one.recording.path}: ")
                    without_clip.setdefault(one.recording.path, []).append(one)
                else:
                    _show(out / one.entry["clip"], [one], scan, annotated, blur, around_s)
                on_incident(one.number, len(collecting))
            for path, missing in without_clip.items():
                _show(Path(path), missing, scan, annotated, blur, around_s)
            for copied in _COPIED:
                shutil.copyfile(folder / copied, out / copied)
            _write_manifest(out, scan, [one.entry for one in collecting], blur if annotated else None)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror or one_line(error)}).") from None
    entries = [one.entry for one in collecting]
    return Evidence(
        clips=sum("clip" in entry for entry in entries),
        filmstrips=sum("filmstrip" in entry for entry in entries),
        annotated=sum("annotated" in entry for entry in entries),
        left_out=tuple(lack for one in collecting for lack in one.left_out()),
        notes=tuple(notes),
    )


def _other_than_scanned(recording: Recording) -> str | None:
    """Says so if a recording is there and not as the scan found it."""
    path = Path(recording.path)
    if recording.size is None or not path.is_file():
        return None
    status = path.stat()
    if status.st_size != recording.size:
        return f"{path} is not what was scanned: it has {status.st_size:,} bytes, and had {recording.size:,}"
    if status.st_mtime_ns != recording.modified_ns:
        return f"{path} was written, or copied, since it was scanned: nothing tells whether its pictures are the same"
    return None


def is_unfinished(out: Path) -> bool:
    """Whether a folder holds evidence whose collecting goes on, or was broken off."""
    return (out / UNFINISHED).is_file()


def says_unfinished(mark: Path) -> bool:
    """Whether a file is the mark of such evidence; trainings leave a file of that name too."""
    try:
        return mark.is_file() and mark.read_text(encoding="utf-8") == _NOT_FINISHED
    except (OSError, ValueError):
        return False


@contextmanager
def _unfinished(out: Path) -> Iterator[None]:
    """Makes the folder, clears it of what was broken off, and marks it until the block ends well."""
    out.mkdir(parents=True, exist_ok=True)
    mark, begun = out / UNFINISHED, is_unfinished(out)
    with ExitStack() as held:
        if sys.platform != "win32":  # Windows has no such locks, and removes no open file
            try:
                # Made in a folder that was empty alone: the mark of another process may be gone by now, with all done.
                descriptor = open_held(mark, os.O_RDONLY | (0 if begun else os.O_CREAT))
                held.callback(release, descriptor)
                take(descriptor, mark)
            except BlockingIOError:
                raise RunError(f"{out} is being written by another process; give another --out.") from None
            except FileNotFoundError:
                raise RunError(f"{out} was finished by another process just now; give another --out.") from None
        left = sorted(path for path in out.iterdir() if path != mark)
        for path in left:
            if not begun or (not _OURS.match(path.name) and path.name not in (*_COPIED, MANIFEST, SEAL)):
                if not begun:
                    mark.unlink(missing_ok=True)
                raise RunError(f"{out} is not empty: it holds {path.name}; give another --out.")
        for path in left:
            path.unlink()
        mark.write_text(_NOT_FINISHED, encoding="utf-8")
        yield
        mark.unlink()


@dataclass
class _Collecting:
    """An incident, and what is known of it so far."""

    out: Path
    recording: Recording
    incident: Incident
    number: int
    entry: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.entry = {
            "file": self.recording.file,
            "camera": self.recording.camera,
            "start_s": round(self.incident.start_s, 3),
            "end_s": round(self.incident.end_s, 3),
            "peak": round(self.incident.peak, 6),
        }

    @property
    def regions(self) -> list[Roi]:
        """Where it was seen, unless that was the whole picture."""
        return regions_of(self.recording, self.incident)

    @property
    def name(self) -> str:
        """What its files' names begin with."""
        at = timecode(self.incident.start_s)[:8].replace(":", "-")
        return f"{self.number:04d}_{flat_name(self.recording.file)}_{at}"

    def left_out(self) -> list[tuple[str, str]]:
        """Returns what there is not of it, and why."""
        where = f"of {self.recording.file} at {timecode(self.incident.start_s)}"
        lacks = {"left_out": "clip", "filmstrip_left_out": "filmstrip", "annotated_left_out": "annotated video"}
        return [(f"{what} {where}", self.entry[key]) for key, what in lacks.items() if key in self.entry]


def remux(source: Path, start_s: float, end_s: float, stem: Path) -> dict[str, Any]:
    """Writes part of a recording as a file of its own, from the original's packets.

    Args:
        source: the recording.
        start_s, end_s: what it must show, in seconds since the first frame.
        stem: path of the new file without its ending.

    Returns:
        The clip's name, and what it shows: ``clip``, ``clip_start_s`` and ``clip_frames``.

    Raises:
        ClipError: if the file cannot be read, or only by encoding it anew.
    """
    first, begin, end, time_base = _in_ticks(source, start_s, end_s)
    part = _remux_from(source, first, begin, end, time_base, stem)
    if part is None:
        raise ClipError(f"{source}: no key frame is found before the incident.")
    # Where a recording has no whole pictures, the decoder shows none for a while: an earlier beginning is wanted then.
    for _ in range(_MOST_EARLIER):
        if part.shown and part.shown[0] <= begin:
            break
        earlier = _remux_from(source, first, part.begins - 1, end, time_base, stem)
        if earlier is None:
            break
        part = earlier
    if not part.shown:
        stem.with_name(part.name).unlink()
        raise ClipError(f"{source}: no picture of the incident can be decoded from a key frame on.")
    return {
        "clip": part.name,
        "clip_start_s": round(float((part.shown[0] - first) * time_base), 3),
        "clip_frames": len(part.shown),
    }


@dataclass(frozen=True)
class _Part:
    """A part of a recording as a file of its own; timestamps are the recording's.

    Attributes:
        name: of the file.
        begins: the timestamp of its first picture.
        shown: those of the pictures that a decoder shows of it, ascending.
    """

    name: str
    begins: int
    shown: Sequence[int]


def _remux_from(source: Path, first: int, begin: int, end: int, time_base: Fraction, stem: Path) -> _Part | None:
    """Writes from the last key frame shown by ``begin`` to the last picture before ``end``; None if there is none."""
    # Some containers seek to a place near by, and a key frame may lie long before: try further and further back, and
    # at last from the very beginning, for there may be no place before the first frame that one can seek to.
    for place in (begin, max(first, begin - math.ceil(_FURTHER_BACK_S / time_base)), None):
        with open_container(source) as container:  # it was read a moment ago
            stream = video_stream(container, source)
            packets = _packets_between(container, stream, place, begin, end)
            if packets:
                stamps = sorted(packet.pts for packet in packets)
                path = _mux(source, stream, packets, stem)
                return _Part(path.name, stamps[0], _shown_of(path, stamps, time_base))
    return None


def _shown_of(path: Path, stamps: Sequence[int], time_base: Fraction) -> list[int]:
    """Returns those of a clip's timestamps, as the recording has them, from which on a decoder shows its pictures."""
    opening = next((frame for frame in play(path, Damage()) if frame.pts is not None and frame.time_base), None)
    if opening is None:
        return []
    timing = timing_of_packets(path)
    late = ((opening.pts or 0) - (timing.timestamps[0] or 0)) * timing.time_base
    return [stamp for stamp in stamps if (stamp - stamps[0]) * time_base >= late - _ROUNDED_S]


def _mux(source: Path, stream: Any, packets: Sequence[Any], stem: Path) -> Path:
    """Writes packets of a recording, in the order they are decoded, as a file of their own.

    Raises:
        ClipError: if no container that we write takes them.
    """
    shown = sorted(packet.pts for packet in packets)
    # Decoding times anew, for some containers have none: in order, and none after the time of showing.
    delay = max(shown_at - packet.pts for shown_at, packet in zip(shown, packets, strict=True))
    suffix = ".mp4" if stream.codec_context.name in _IN_MP4 else ".mkv"
    path = stem.with_name(f"{stem.name}{suffix}")
    try:
        with av.open(str(path), "w") as written:
            copy = written.add_stream_from_template(stream)
            for place, packet in enumerate(packets):
                packet.pts -= shown[0]
                packet.dts = shown[place] - shown[0] - delay
                packet.stream = copy
                written.mux(packet)
    except av.error.FFmpegError as error:
        path.unlink(missing_ok=True)
        raise ClipError(f"{source}: cannot be cut without encoding it anew ({one_line(error)}).") from None
    return path


def _show(
    path: Path, incidents: Sequence[_Collecting], scan: Scan, annotated: bool, blur: Blur, around_s: float
) -> None:
    """Makes of a video, a recording or one incident's clip, what shows the incidents in it."""
    _add_filmstrips(path, [(one.entry, one.out / f"{one.name}.jpg") for one in incidents])
    if annotated:
        _add_annotated(path, incidents, scan, blur, around_s)


def _add_annotated(path: Path, incidents: Sequence[_Collecting], scan: Scan, blur: Blur, around_s: float) -> None:
    annotations = []
    for one in incidents:
        clip = "clip" in one.entry  # it is shown whole, so that the two can be played side by side
        annotation = Annotation(
            recording=one.recording,
            incident=one.incident,
            path=one.out / f"{one.name}_annotated.mp4",
            begin_s=None if clip else one.incident.start_s - around_s,
            end_s=None if clip else one.incident.end_s + around_s,
            shift_s=one.entry["clip_start_s"] if clip else 0.0,
        )
        if blur == "outside-roi" and not one.regions:
            one.entry["annotated_left_out"] = "it was seen in the whole picture, so nothing lies outside"
        else:
            annotations.append((one.entry, annotation))
    try:
        shown = annotate(path, [annotation for _, annotation in annotations], scan, blur)
    except ClipError as error:
        for entry, _ in annotations:
            entry["annotated_left_out"] = one_line(error).removeprefix(f"{path}: ")
        return
    for (entry, annotation), video in zip(annotations, shown, strict=True):
        if video.frames:
            name = annotation.path.name
            entry |= {"annotated": name, "annotated_start_s": video.start_s, "annotated_frames": video.frames}
        else:
            entry["annotated_left_out"] = "no frame of it can be decoded"


def _add_filmstrips(path: Path, incidents: Sequence[tuple[dict[str, Any], Path]]) -> None:
    """Writes a filmstrip of each incident that a video shows, and names it in the incident's entry.

    Args:
        path: the recording, or the one incident's clip.
        incidents: entry of the manifest and path of the filmstrip.
    """
    spans = []
    for entry, _ in incidents:
        shift = entry.get("clip_start_s", 0.0)
        spans.append((entry["start_s"] - shift, entry["end_s"] - shift))
    try:
        pictures = _pictures(path, spans)
    except ClipError as error:
        pictures = [[]] * len(spans)
        reason = one_line(error).removeprefix(f"{path}: ")
    else:
        reason = "no frame of it can be decoded"
    for (entry, strip), shown in zip(incidents, pictures, strict=True):
        if not shown:
            entry["filmstrip_left_out"] = reason
            continue
        with replacing(strip, "wb") as file:
            _side_by_side(shown).save(file, "JPEG", quality=_JPEG_QUALITY)
        entry["filmstrip"] = strip.name


def _pictures(path: Path, spans: Sequence[tuple[float, float]]) -> list[list[Image.Image]]:
    """Returns small pictures spread over each span of seconds, from the middle of as many equal parts.

    The video is played once, to the last picture that is wanted. Where it ends sooner there are fewer.
    """
    timing = timing_of_packets(path)
    clock = Clock(timing.time_base, timing.interval)
    wanted = sorted(
        (start + (end - start) * (2 * part + 1) / (2 * _PICTURES), place)
        for place, (start, end) in enumerate(spans)
        for part in range(_PICTURES)
    )
    found: list[list[Image.Image]] = [[] for _ in spans]
    coming = 0
    for frame in play(path, Damage()):
        until = float((clock.shown(frame.pts) + timing.interval / timing.time_base) * timing.time_base)
        if until <= wanted[coming][0]:
            continue
        image = to_image(frame)
        width = max(1, min(3 * _PICTURE_HEIGHT, round(_PICTURE_HEIGHT * image.width / image.height)))
        small = image.resize((width, _PICTURE_HEIGHT), Image.Resampling.BILINEAR)
        while coming < len(wanted) and wanted[coming][0] < until:
            found[wanted[coming][1]].append(small)
            coming += 1
        if coming == len(wanted):
            break
    return found


def _side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    width = sum(picture.width + _GAP for picture in pictures) - _GAP
    strip = Image.new("RGB", (width, _PICTURE_HEIGHT), "grey")
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width + _GAP
    return strip


def verify(folder: Path) -> Verified:
    """Holds a folder of evidence against what it was when it was collected, and the originals that are there.

    Raises:
        DataError: if the folder holds no manifest, or one that cannot be read.
    """
    path, seal = folder / MANIFEST, folder / SEAL
    if is_unfinished(folder):
        raise DataError(f"{folder} is not finished: tillwatch evidence is writing it, or was broken off; run it again.")
    if not path.is_file():
        raise DataError(f"{folder} holds no {MANIFEST}; give a folder that tillwatch evidence wrote.")
    found = []
    if not seal.is_file() or seal.read_bytes() != seal_of(path).encode():
        found.append(f"{MANIFEST} is not the one that {SEAL} is of")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files, sources = dict(manifest["files"]), list(manifest["sources"])
        for name, sha256 in files.items():
            found += _differing(folder / name, sha256, name)
        not_there = [str(source["path"]) for source in sources if not Path(source["path"]).is_file()]
        for source in sources:
            if str(source["path"]) not in not_there:
                found += _differing(Path(source["path"]), source["sha256"], f"the original {source['path']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({one_line(error)}).") from None
    there = {
        entry.relative_to(folder).as_posix()
        for entry in folder.rglob("*")
        if entry.is_symlink() or not entry.is_dir() or not any(entry.iterdir())
    }
    found += [f"{name} was added" for name in sorted(there - {*files, MANIFEST, SEAL})]
    return Verified(changes=tuple(found), not_there=tuple(not_there))


def _in_ticks(source: Path, start_s: float, end_s: float) -> tuple[int, int, int, Fraction]:
    """Returns the first timestamp, seconds since the first frame as timestamps, and what one of them is in seconds."""
    timing = timing_of_packets(source)
    known = [stamp for stamp in timing.timestamps if stamp is not None]
    # A recording that begins between two key frames is seen, and counted, from the first frame that can be decoded.
    first = next((frame.pts for frame in play(source, Damage())), None)
    if first is None or len(known) < len(timing.timestamps):
        raise ClipError(f"{source}: it tells no times, so a clip would have to be encoded anew.")
    ticks = timeline(known, timing.time_base, timing.interval)
    if not np.array_equal(ticks, np.array(known) - known[0]):
        raise ClipError(f"{source}: its clock jumps, so a clip would have to be encoded anew.")
    start, end = (seconds_exactly(seconds) / timing.time_base for seconds in (start_s, end_s))
    return first, first + math.ceil(start), first + math.ceil(end), timing.time_base


def _packets_between(container: Any, stream: Any, place: int | None, begin: int, end: int) -> list[Any]:
    """Returns packets as they are decoded: from the last key frame shown by ``begin`` to the last before ``end``.

    Reading starts at ``place``, or at the beginning; there are none if no such key frame follows it.
    """
    if place is not None:
        container.seek(place, stream=stream)
    packets: list[Any] = []
    for packet in packets_of(container, stream):
        if not packet.size or packet.pts is None:
            continue
        if packet.is_keyframe and packet.pts <= begin:
            packets = []  # a later key frame will do
        if packet.is_keyframe and packet.pts >= end:
            break
        if packets or (packet.is_keyframe and packet.pts <= begin):
            packets.append(packet)
    # What is shown before the key frame leans on frames that are left out; what is shown after the end, others lean on.
    if not packets:
        return []
    kept = [packet for packet in packets if packet.pts >= packets[0].pts]
    last = max((place for place, packet in enumerate(kept) if packet.pts < end), default=-1)
    return kept[: last + 1]


def _write_manifest(out: Path, scan: Scan, entries: list[dict[str, Any]], blur: Blur | None) -> None:
    used = {entry["file"] for entry in entries}
    sources = [
        _source(recording)
        for recording in scan.recordings
        if recording.file in used and Path(recording.path).is_file()  # of one that is gone its incidents say so
    ]
    files = {entry.name: sha256_of(entry) for entry in sorted(out.iterdir()) if entry.name != UNFINISHED}
    write_json(
        out / MANIFEST,
        {
            "format": 1,
            "tillwatch": version("tillwatch"),
            "collected": datetime.now(UTC).isoformat(timespec="seconds"),
            "model": dict(scan.model),
            "sources": sources,
            **({} if blur is None else {"annotated": {"blur": blur, "caveat": CAVEATS[blur]}}),
            "incidents": entries,
            "files": files,
        },
    )
    write_text(out / SEAL, seal_of(out / MANIFEST))


def _source(recording: Recording) -> dict[str, Any]:
    path = Path(recording.path)
    return {"file": recording.file, "path": str(path), "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def seal_of(manifest: Path) -> str:
    """Returns the manifest's hash as the command sha256sum writes and checks it."""
    return f"{sha256_of(manifest)}  {MANIFEST}\n"


def _differing(path: Path, sha256: str, name: str) -> list[str]:
    if not path.is_file():
        return [f"{name} is gone"]
    return [] if sha256_of(path) == sha256 else [f"{name} has changed"]

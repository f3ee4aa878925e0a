"""What recorders and phones leave: turned, without duration, broken off, in whatever codec; and two hours at 29.97."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tillwatch.clip_spec import FrameStep, Reading, Roi
from tillwatch.data.playback import header_seconds
from tillwatch.data.video import decode_video, read_video
from tillwatch.detection.cameras import find_sources
from tillwatch.detection.cutting import Cut, cut_file
from tillwatch.detection.evidence import remux
from tillwatch.detection.results import timecode
from tillwatch.detection.sampling import Sampler
from tillwatch.detection.windows import Grid, seconds_exactly, timeline, windows_of

MakeFootage = Callable[..., Path]
Scan = Callable[..., tuple[int, str, str]]

GRID = Grid(length=seconds_exactly(1.1), stride=seconds_exactly(0.5))


def whole_windows(path: Path, region: Roi | None = None) -> list[Any]:
    """Reads one window that lasts as long as the recording, and those of a grid."""
    grid = Grid(length=Fraction(60), stride=Fraction(60))
    reading = Reading(num_frames=5, resize=(28, 30))
    return list(Sampler(path=path, regions={"r": region}, grid=grid, reading=reading, threads=2).read())


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("region", [None, Roi(x=0, y=0.2, width=0.6, height=0.7)])
def test_a_turned_recording_is_scanned_as_training_reads_it(
    quarters: int, region: Roi | None, tmp_path: Path, make_turned_footage: MakeFootage
) -> None:
    path = make_turned_footage(tmp_path / "a.mp4", range(40), quarters=quarters)
    (window,) = whole_windows(path, region)
    np.testing.assert_array_equal(window.frames, read_video(path, 5, FrameStep(), (28, 30), region))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_upright_is_what_ffmpeg_takes_for_it(
    quarters: int, tmp_path: Path, make_footage: MakeFootage, make_turned_footage: MakeFootage
) -> None:
    program = shutil.which("ffmpeg")
    if program is None:
        pytest.skip("there is no ffmpeg here; Debian has it in its package ffmpeg")
    path = make_turned_footage(tmp_path / "a.mp4", range(12), quarters=quarters)
    command = [program, "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    told = subprocess.run(command, check=True, capture_output=True).stdout
    shown = read_video(path, 12)
    theirs = np.frombuffer(told, np.uint8).reshape(shown.shape).astype(int)
    assert np.abs(theirs - shown).mean() < 4  # another scaler of colours
    upside_down = np.rot90(shown, 2, axes=(1, 2))
    assert np.abs(theirs - upside_down).mean() > 15


class Pipe:
    """Where a recorder writes to: what went cannot be written over, so no duration is put into the head."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


def without_duration(source: Path, path: Path) -> Path:
    pipe = Pipe()
    with av.open(str(source)) as read, av.open(pipe, "w", format="matroska") as written:
        copy = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = copy
                written.mux(packet)
    path.write_bytes(pipe.data)
    assert header_seconds(path) == 0
    return path


def breaking_off(source: Path, path: Path) -> Path:
    """Writes an .mp4 whose index stands at its beginning, as for the web, and leaves half of it."""
    with (
        av.open(str(source)) as read,
        av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as written,
    ):
        copy = written.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = copy
                written.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_odd_files_are_scanned_or_named_while_the_others_go_on(
    tmp_path: Path,
    scan: Scan,
    make_footage: MakeFootage,
    make_turned_footage: MakeFootage,
    make_dav: Callable[[Path, Path], Path],
    make_sound: Callable[[Path], Path],
) -> None:
    folder = tmp_path / "f"
    plain = make_footage(folder / "plain.mp4", range(40))
    make_footage(folder / "h265.mp4", range(40), codec="libx265", **{"x265-params": "log-level=none"})
    make_footage(folder / "mpeg4.avi", range(40), codec="mpeg4")
    make_footage(folder / "mjpeg.avi", range(40), codec="mjpeg")
    make_footage(folder / "interlaced.mp4", range(40), **{"x264-params": "interlaced=1"})
    make_footage(folder / "interlaced.mpg", range(40), codec="mpeg2video", flags="+ildct+ilme")
    make_turned_footage(folder / "turned.mp4", range(40))
    make_dav(make_footage(tmp_path / "s.ts", range(40), bf="0"), folder / "recorder.dav")
    without_duration(plain, folder / "live.mkv")
    make_footage(folder / "late.mkv", range(125, 165))  # its first frame is shown at 5 s, its duration tells 6.6
    no_index = make_footage(folder / "noindex.avi", range(40), codec="mpeg4")
    no_index.write_bytes(no_index.read_bytes()[: no_index.read_bytes().rindex(b"idx1")])
    breaking_off(plain, folder / "half.mp4")
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video")
    make_sound(folder / "sound.mp4")
    (folder / "nohead.mp4").write_bytes(plain.read_bytes()[: plain.stat().st_size // 2])  # its index stood at the end

    code, out, err = scan(folder, "--out", tmp_path / "scan", "--window", "1.1", "--stride", "0.5")
    assert code == 3
    record = json.loads((tmp_path / "scan" / "scan.json").read_text())
    left_out = {entry["file"]: entry["reason"] for entry in record["left_out"]}
    assert left_out.keys() == {"empty.mp4", "text.mp4", "sound.mp4", "nohead.mp4"}
    assert left_out["empty.mp4"] == "the file is empty"
    assert left_out["sound.mp4"] == "holds no video stream"
    assert left_out["text.mp4"].startswith("cannot be read as a video (")
    assert left_out["nohead.mp4"].startswith("cannot be read as a video (")
    assert len(err.splitlines()) == 4
    for name, reason in left_out.items():
        assert f"{name} left out: {reason}." in err
    scanned = {entry["file"]: entry for entry in record["files"]}
    assert len(scanned) == 12
    assert "4 files left out" in out
    half = scanned.pop("half.mp4")
    assert 0.4 < half["seconds"] < 1.5
    *others, note = half["notes"]
    assert others
    assert all("pictures" in other for other in others)
    assert note.startswith(f"it says that it lasts 1.6 s, and its video ends after {half['seconds']:.1f} s")
    for name, entry in scanned.items():
        assert entry["seconds"] == pytest.approx(1.6, abs=0.05), name
        assert entry["notes"] == [], name
        assert entry["windows"] == 2, name
    with (tmp_path / "scan" / "scores.csv").open(encoding="utf-8", newline="") as file:
        frames = {(row["file"], row["window"]): int(row["frames"]) for row in csv.DictReader(file)}
    for name in scanned:
        assert frames[name, "0"] == pytest.approx(28, abs=1), name


# What is shown at 29.97 frames a second, around the start, one hour and two hours: the number of each frame.
SHOWN = [*range(3), *range(107_890, 107_896), *range(215_780, 215_786)]
NTSC = Fraction(30_000, 1001)


def test_two_hours_at_29_97_drift_by_nothing() -> None:
    count = 215_786  # two hours and six frames
    rate_base = Fraction(1, 30_000)
    ticks = timeline([1001 * n for n in range(count)], rate_base, 1 / NTSC)
    grid = Grid(length=seconds_exactly(6.4), stride=seconds_exactly(3.2))
    windows = list(windows_of(ticks, rate_base, grid, every=1, num_frames=8))
    for window in (windows[0], windows[1125], windows[-2], windows[-1]):
        assert window.start == window.number * Fraction(16, 5)
        assert [window.first, window.stop] == [
            next(n for n in range(min(count, round(edge * NTSC) - 2), count + 1) if n == count or n / NTSC >= edge)
            for edge in (window.start, window.end)
        ]
    assert windows[-1].end > (count - 1) / NTSC > 7200
    assert windows[-1].number == 2249


@pytest.mark.parametrize(
    ("name", "time_base"),
    [("a.mp4", Fraction(1, 30_000)), ("a.mkv", Fraction(1, 30_000)), ("a.ts", Fraction(1, 90_000))],
)
def test_times_in_a_file_of_two_hours_are_right_to_a_frame(
    name: str, time_base: Fraction, tmp_path: Path, make_footage: MakeFootage
) -> None:
    ticks = [int(Fraction(1001 * n, 30_000) / time_base) for n in SHOWN]
    path = make_footage(tmp_path / name, ticks, time_base, NTSC, bf="0", g="1")
    sampler = Sampler(path=path, regions={"r": None}, grid=GRID, reading=Reading(num_frames=4, resize=(28, 30)))
    seen: dict[int, set[int]] = {}
    for one in sampler.read():
        window = one.window
        for place in range(window.first, window.stop):
            seen.setdefault(place, set()).add(window.number)
            # Matroska rounds to milliseconds: far less than a frame, 33 ms.
            assert window.start - Fraction(1, 1000) <= SHOWN[place] / NTSC < window.end + Fraction(1, 1000)
    assert seen.keys() == set(range(len(SHOWN)))
    assert sampler.seconds == pytest.approx(float((SHOWN[-1] + 1) / NTSC), abs=0.5 / 29.97)
    assert timecode(sampler.seconds)[:8] == "02:00:00"

    # A clip from the third of the frames around two hours on, cut anew and out of the original's packets.
    start = float(SHOWN[-4] / NTSC) - 0.01
    (source,) = find_sources([path], {"whole": None})
    wanted = {"x/cut.mp4": Cut(file=name, start_s=start, end_s=start + 0.07, label="x")}
    paths, failed = cut_file(source, wanted, tmp_path / "cuts")
    assert (paths, failed) == (list(wanted), [])
    originals = [frame.to_ndarray(format="gray8").astype(int) for frame in decode_video(path)]
    shown = [frame.to_ndarray(format="gray8") for frame in decode_video(tmp_path / "cuts" / paths[0])]
    nearest = [int(np.argmin([np.abs(one - original).mean() for original in originals])) for one in shown]
    assert nearest == [len(SHOWN) - 4, len(SHOWN) - 3]
    told = remux(path, start, start + 0.07, tmp_path / "clip")
    assert told["clip_start_s"] == pytest.approx(float(SHOWN[-5] / NTSC), abs=2e-3)  # the key frame before

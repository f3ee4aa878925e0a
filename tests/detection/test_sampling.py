"""A recording to its windows: the pictures that a clip cut there would give, each converted once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import av
import numpy as np
import pytest

from tillwatch.clip_spec import FrameStep, Reading, Roi
from tillwatch.data import playback
from tillwatch.data.bitstream import GroupFinder
from tillwatch.data.playback import timing_of_packets
from tillwatch.data.video import decode_video, read_video, squeezed_parts
from tillwatch.detection import sampling
from tillwatch.detection.sampling import Sampler, WindowFrames
from tillwatch.detection.windows import Grid, seconds_exactly, timeline, windows_of
from tillwatch.errors import ClipError, DataError

MakeFootage = Callable[..., Path]
CutLosslessly = Callable[..., Path]

LEFT = Roi(x=0, y=0.2, width=0.6, height=0.7)
GRID = Grid(length=seconds_exactly(1.1), stride=seconds_exactly(0.5))
NTSC, FILM = Fraction(30_000, 1001), Fraction(24_000, 1001)

# (frames, ticks of the frames, seconds a tick, nominal rate)
RECORDINGS: dict[str, tuple[list[int], Fraction, Fraction]] = {
    "10": (list(range(30)), Fraction(1, 10), Fraction(10)),
    "23.976": ([1001 * n for n in range(72)], Fraction(1, 24_000), FILM),
    "25": (list(range(75)), Fraction(1, 25), Fraction(25)),
    "29.97": ([1001 * n for n in range(90)], Fraction(1, 30_000), NTSC),
    "30": (list(range(90)), Fraction(1, 30), Fraction(30)),
    "variable": (
        np.cumsum(np.random.default_rng(3).integers(10, 120, 60)).tolist(),
        Fraction(1, 1000),
        Fraction(16),
    ),
}


def sampler(
    path: Path, regions: dict[str, Roi | None] | None = None, grid: Grid = GRID, threads: int = 2, **reading: Any
) -> Sampler:
    taken = Reading(**{"num_frames": 5, "resize": (28, 30), **reading})
    return Sampler(path=path, regions=regions or {"whole": None}, grid=grid, reading=taken, threads=threads)


def numbers(shown: list[WindowFrames]) -> list[tuple[int, int, int]]:
    return [(one.window.number, one.window.first, one.window.stop) for one in shown]


@pytest.mark.parametrize("name", RECORDINGS)
@pytest.mark.parametrize("every", [1, 3])
def test_a_window_shows_what_a_clip_cut_there_does(
    name: str, every: int, tmp_path: Path, make_footage: MakeFootage, cut_losslessly: CutLosslessly
) -> None:
    ticks, time_base, rate = RECORDINGS[name]
    path = make_footage(tmp_path / "footage.mp4", ticks, time_base, rate)
    regions: dict[str, Roi | None] = {"whole": None, "left": LEFT}
    step = FrameStep(every=every)
    shown = list(sampler(path, regions, step=step).read())
    seconds = (ticks[-1] - ticks[0]) * time_base
    assert len(shown) == 2 * (int((seconds - GRID.length) / GRID.stride) + 2)
    for one in (shown[5], shown[-1]):
        window = one.window
        inside = [n for n, tick in enumerate(ticks) if window.start <= (tick - ticks[0]) * time_base < window.end]
        assert (window.first, window.stop) == (inside[0], inside[-1] + 1)
        clip = cut_losslessly(path, window.first, window.stop, tmp_path / "clip.mp4")
        of_clip = read_video(clip, 5, step, (28, 30), regions[one.region])
        np.testing.assert_array_equal(one.frames, of_clip)


TWO_RATES = {"two rates": ([*range(0, 3000, 40), *range(3000, 9000, 200)], Fraction(1, 1000), Fraction(12))}


@pytest.mark.parametrize("name", [*RECORDINGS, *TWO_RATES])
def test_a_step_by_rate_is_that_of_a_clip_cut_there(
    name: str, tmp_path: Path, make_footage: MakeFootage, cut_losslessly: CutLosslessly
) -> None:
    ticks, time_base, rate = {**RECORDINGS, **TWO_RATES}[name]
    path = make_footage(tmp_path / "footage.mp4", ticks, time_base, rate)
    for one in list(sampler(path, step=FrameStep(fps=8)).read())[:5]:
        for suffix in (".mp4", ".mkv"):
            clip = cut_losslessly(path, one.window.first, one.window.stop, tmp_path / f"clip{suffix}")
            np.testing.assert_array_equal(one.frames, read_video(clip, 5, FrameStep(fps=8), (28, 30)))


def test_only_frames_that_a_window_takes_are_converted_and_each_once(
    tmp_path: Path, make_footage: MakeFootage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_footage(tmp_path / "footage.mp4", list(range(100)))
    converted: list[int] = []

    def counting(frame: av.VideoFrame, *arguments: Any) -> Any:
        converted.append(frame.pts or 0)
        return squeezed_parts(frame, *arguments)

    monkeypatch.setattr(sampling, "squeezed_parts", counting)
    shown = list(sampler(path, {"a": None, "b": LEFT, "c": None}).read())
    wanted = {place for one in shown for place in one.window.frames.tolist()}
    assert len(converted) == len(wanted) < 50
    assert len(set(converted)) == len(converted)


def test_frames_are_let_go_once_no_window_wants_them(
    tmp_path: Path, make_footage: MakeFootage, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = [0]
    keep = sampling._Windows.keep

    def measuring(self: Any, place: int, parts: Any) -> None:
        keep(self, place, parts)
        most[0] = max(most[0], len(self._kept))

    monkeypatch.setattr(sampling._Windows, "keep", measuring)
    list(sampler(make_footage(tmp_path / "footage.mp4", list(range(200)))).read())
    assert most[0] <= 15  # three windows of five frames are open at once, however long the recording


@pytest.mark.parametrize("done", [1, 2, 3, 8])
def test_reading_goes_on_where_it_was(done: int, tmp_path: Path, make_footage: MakeFootage) -> None:
    path = make_footage(tmp_path / "footage.mp4", list(range(75)))
    regions: dict[str, Roi | None] = {"whole": None, "left": LEFT}
    everything = list(sampler(path, regions).read())
    rest_of = sampler(path, regions)
    rest = list(rest_of.read(done))
    assert [(one.region, one.window.number) for one in rest] == [
        (one.region, one.window.number) for one in everything[done:]
    ]
    for one, other in zip(rest, everything[done:], strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
    assert rest_of.seconds == 3.0


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.avi", "mpeg4", {}),
        ("a.avi", "mjpeg", {}),
        ("a.avi", "libx264", {}),  # B-frames: the container's timestamps are out of order
        ("a.mkv", "libx264", {}),
        ("a.mov", "libx265", {"x265-params": "log-level=none"}),
        ("a.ts", "libx264", {}),
        ("a.mpg", "mpeg2video", {}),
        ("a.h264", "libx264", {}),  # no timestamps at all
        ("a.mp4", "libx264", {"x264-params": "interlaced=1"}),
    ],
)
def test_containers_and_codecs(
    name: str, codec: str, options: dict[str, str], tmp_path: Path, make_footage: MakeFootage
) -> None:
    path = make_footage(tmp_path / name, list(range(75)), codec=codec, **options)
    reader = sampler(path)
    shown = list(reader.read())
    assert [one.window.number for one in shown] == [0, 1, 2, 3, 4]
    assert shown[0].window.stop == pytest.approx(28, abs=1)
    assert reader.seconds == pytest.approx(3.0, abs=0.05)
    frames = [squeezed_parts(frame, [None], None)[0] for frame in decode_video(path)]
    one = shown[2]
    alone = sampler(path, resize=None, num_frames=5)
    np.testing.assert_array_equal(list(alone.read())[2].frames, [frames[n] for n in one.window.frames.tolist()])
    assert (reader.notes == ["it tells no times; 25 frames a second assumed"]) is (name == "a.h264")


def test_a_gap_in_the_recording_stays_one(tmp_path: Path, make_footage: MakeFootage) -> None:
    path = make_footage(tmp_path / "footage.mp4", [*range(30), *range(280, 310)])
    reader = sampler(path)
    shown = list(reader.read())
    assert reader.seconds == pytest.approx(310 / 25)
    assert reader.gaps > 15
    assert reader.pauses_s == pytest.approx(reader.seconds - 60 / 25)
    assert len(shown) + reader.gaps == shown[-1].window.number + 1
    assert all(one.window.stop <= 30 or one.window.first >= 30 for one in shown)


def without_its_beginning(whole: Path, path: Path, packets: int = 5) -> Path:
    with av.open(str(whole)) as container, av.open(str(path), "w") as cut:
        stream = cut.add_stream_from_template(container.streams.video[0])
        for place, packet in enumerate(container.demux(video=0)):
            if place >= packets and packet.size:
                packet.stream = stream
                cut.mux(packet)
    return path


def test_pictures_that_cannot_be_decoded_are_counted(tmp_path: Path, make_footage: MakeFootage) -> None:
    whole = make_footage(tmp_path / "whole.ts", list(range(60)))
    reader = sampler(without_its_beginning(whole, tmp_path / "a.ts"))
    list(reader.read())
    lost = 60 - 5 - len(list(decode_video(tmp_path / "a.ts")))
    assert lost > 0
    assert reader.notes == [f"pictures that could not be decoded: {lost}"]


EVERY_12TH = list(range(0, 75, 12))


@pytest.mark.parametrize(
    ("name", "codec", "options", "begins"),
    [
        ("a.mp4", "libx264", {}, EVERY_12TH),  # with B-frames
        ("a.mkv", "libx264", {"bf": "0"}, EVERY_12TH),
        ("a.mkv", "libx264", {"x264-params": "scenecut=0:slices=3:threads=1"}, EVERY_12TH),
        ("a.ts", "libx264", {}, EVERY_12TH),  # behind start codes, parameter sets with each
        ("a.mp4", "libx265", {"x265-params": "log-level=none:scenecut=0:open-gop=0"}, EVERY_12TH),
        ("a.ts", "libx265", {"x265-params": "log-level=none:scenecut=0:open-gop=0"}, EVERY_12TH),
        ("a.mp4", "libx264", {"x264-params": "scenecut=0:open-gop=1"}, [0]),  # later ones refer to what was before
        ("a.mp4", "libx265", {"x265-params": "log-level=none:scenecut=0:open-gop=1"}, [0]),
        ("a.mp4", "libx264", {"x264-params": "scenecut=0:intra-refresh=1"}, [0]),
        ("a.mp4", "mpeg4", {}, []),
        ("a.avi", "mjpeg", {}, []),
    ],
)
def test_groups_of_pictures_decoded_side_by_side_give_the_same_frames(
    name: str, codec: str, options: dict[str, str], begins: list[int], tmp_path: Path, make_footage: MakeFootage
) -> None:
    if codec == "libx264":
        options = {"x264-params": "scenecut=0", **options}
    path = make_footage(tmp_path / name, list(range(75)), codec=codec, **options)
    assert timing_of_packets(path).groups == begins
    one_by_one = sampler(path, {"whole": None, "left": LEFT}, threads=1, num_frames=11)
    expected = list(one_by_one.read())
    for threads in (2, 3, 8):
        reader = sampler(path, {"whole": None, "left": LEFT}, threads=threads, num_frames=11)
        shown = list(reader.read())
        assert numbers(shown) == numbers(expected)
        assert (reader.seconds, reader.gaps, reader.notes) == (one_by_one.seconds, one_by_one.gaps, one_by_one.notes)
        np.testing.assert_array_equal([one.frames for one in shown], [one.frames for one in expected])


def test_groups_are_decoded_by_as_many_threads_as_are_given_and_memory_allows(
    tmp_path: Path, make_footage: MakeFootage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_footage(tmp_path / "a.mp4", list(range(75)), **{"x264-params": "scenecut=0"})
    both = threading.Barrier(2, timeout=20)

    def meeting(frame: av.VideoFrame, *arguments: Any) -> Any:
        if frame.pts in (first, second):
            both.wait()  # for ever, if the two were decoded one after the other
        return squeezed_parts(frame, *arguments)

    taken = sorted({place for one in sampler(path).read() for place in one.window.frames.tolist()})
    pts = timing_of_packets(path).timestamps
    first, second = (pts[next(place for place in taken if place >= begin)] for begin in (0, 12))
    monkeypatch.setattr(sampling, "squeezed_parts", meeting)
    assert list(sampler(path).read())
    a_frame = 28 * 30 * 3
    timing = timing_of_packets(path)
    for room, threads in ((11 * 12 * a_frame, 5), (4 * 12 * a_frame, 2), (4 * 12 * a_frame - 1, 1), (0, 0)):
        monkeypatch.setattr(sampling, "_MOST_AHEAD", room)
        assert sampler(path, threads=5)._threads(timing) == threads
    assert sampler(path, threads=5, resize=None)._threads(timing) == 1  # of frames as large as they come


def test_what_goes_wrong_in_a_thread_is_raised_and_ends_all(
    tmp_path: Path, make_footage: MakeFootage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(frame: av.VideoFrame, *arguments: Any) -> Any:
        raise MemoryError("no room")

    path = make_footage(tmp_path / "a.mp4", list(range(150)))
    monkeypatch.setattr(sampling, "squeezed_parts", failing)
    before = threading.active_count()
    with pytest.raises(MemoryError, match="no room"):
        list(sampler(path).read())
    assert threading.active_count() == before


# A unit of H.264 by its type, and one of H.265 by its type times two.
def units(*kinds: int | bytes, length: int = 4) -> bytes:
    """A packet: NAL units of these types, or as they are, each behind its length, or a start code for a length of 0."""
    bodies = [kind if isinstance(kind, bytes) else bytes([kind]) + b"\x80" * (kind + 1) for kind in kinds]
    return b"".join((len(body).to_bytes(length) if length else b"\0\0\0\1") + body for body in bodies)


AVCC = b"\x01\x64\x00\x1f\xff"  # the last two bits: lengths have four bytes
OTHER_PPS = bytes([0x68, 1])


@pytest.mark.parametrize(
    ("packets", "begins"),
    [
        ([(5,), (1,), (5, 5), (1, 1), (5,)], [0, 2, 4]),  # the container holds the parameters
        ([(9, 7, 8, 6, 5), (9, 1), (9, 7, 8, 5), (1,)], [0, 2]),
        ([(7, 8, 5), (1,), (5,), (1,)], []),  # the container's may be others
        ([(5,), (1,), (7, 8, 5)], []),  # from there on others count, for the decoder that has seen them
        ([(7, 8, 5), (1,), (7, 8, 5), (5,)], []),
        ([(7, 8, 5), (1,), (7, OTHER_PPS, 5)], []),
        ([(7, 8, 5), (8, 1), (7, 8, 5)], []),
        ([(7, 8, 5), (8,), (7, 8, 5)], []),
        ([(7, 8, 5), (8, 5)], []),
        ([(1,), (5,), (1,)], []),
        ([], []),
    ],
)
def test_what_a_group_of_pictures_needs(packets: list[tuple[int | bytes, ...]], begins: list[int]) -> None:
    for extradata, length in ((AVCC, 4), (b"\0\0\0\1\x67", 0), (None, 0)):
        finder = GroupFinder(cast(Any, SimpleNamespace(name="h264", extradata=extradata)))
        for kinds in packets:
            finder.see(units(*kinds, length=length))
        assert finder.begins() == begins


@pytest.mark.parametrize(("second", "begins"), [(0x80, [0, 1]), (0xC0, [])])
def test_pictures_that_an_idr_picture_throws_away_need_one_decoder(second: int, begins: list[int]) -> None:
    finder = GroupFinder(cast(Any, SimpleNamespace(name="hevc", extradata=None)))
    for flags in (0xC0, second):  # before the first there is nothing to throw away
        finder.see(units(2 * 32, 2 * 33, 2 * 34, bytes([2 * 19, 1, flags, 7]), length=0))
    assert finder.begins() == begins


def test_parameters_that_the_container_changes_need_one_decoder() -> None:
    finder = GroupFinder(cast(Any, SimpleNamespace(name="h264", extradata=AVCC)))
    finder.see(units(5))
    finder.see(units(5), parameters_beside=True)
    assert finder.begins() == []


@pytest.mark.parametrize("what", ["interlaced_frame", "rotation"])
def test_groups_that_depend_on_what_was_before_are_decoded_in_turn(
    what: str, tmp_path: Path, make_footage: MakeFootage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_footage(tmp_path / "a.mp4", list(range(75)), **{"x264-params": "scenecut=0"})
    expected = list(sampler(path, threads=1).read())
    late = cast(int, timing_of_packets(path).timestamps[40])
    decoded = playback._decoded

    def telling(codec: Any, packet: Any, damage: Any) -> Any:
        for frame in decoded(codec, packet, damage):
            alone = codec.thread_count == 1 and (frame.pts or 0) >= late
            told = {"interlaced_frame": alone, "rotation": 90 * alone}[what]
            yield Telling(frame, **{what: told}) if alone else frame

    def squeezing(frame: av.VideoFrame | Telling, *arguments: Any) -> Any:
        return squeezed_parts(frame.frame if isinstance(frame, Telling) else frame, *arguments)

    monkeypatch.setattr(playback, "_decoded", telling)
    monkeypatch.setattr(sampling, "squeezed_parts", squeezing)
    shown = list(sampler(path, threads=2).read())
    assert numbers(shown) == numbers(expected)
    np.testing.assert_array_equal([one.frames for one in shown], [one.frames for one in expected])


class Telling:
    """A frame that tells something else of itself."""

    def __init__(self, frame: av.VideoFrame, **told: Any) -> None:
        self.frame, self.told = frame, told

    def __getattr__(self, name: str) -> Any:
        return self.told[name] if name in self.told else getattr(self.frame, name)


def two_in_a_row(first: Path, second: Path, path: Path) -> Path:
    """Recordings of a transport stream may simply be put one behind the other; the second's clock starts again."""
    path.write_bytes(first.read_bytes() + second.read_bytes())
    return path


def test_a_clock_that_starts_again_goes_on(tmp_path: Path, make_footage: MakeFootage) -> None:
    piece = make_footage(tmp_path / "piece.ts", list(range(60)))
    path = two_in_a_row(piece, piece, tmp_path / "both.ts")
    reader = sampler(path)
    shown = list(reader.read())
    assert reader.seconds == pytest.approx(4.8, abs=0.2)
    assert [one.window.number for one in shown] == list(range(len(shown)))
    frames = [squeezed_parts(frame, [None], None)[0] for frame in decode_video(path)]
    late = list(sampler(path, resize=None).read())[7]
    np.testing.assert_array_equal(late.frames, [frames[n] for n in late.window.frames.tolist()])


def test_what_is_damaged_in_the_middle_is_told_and_the_rest_is_read(tmp_path: Path, make_footage: MakeFootage) -> None:
    path = make_footage(tmp_path / "a.ts", list(range(120)))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    path.write_bytes(data)
    reader = sampler(path)
    shown = list(reader.read())
    assert shown[-1].window.end >= 4
    assert reader.seconds == pytest.approx(4.8, abs=0.3)


@pytest.mark.parametrize(("told", "noted"), [(7200.0, True), (7144.0, False), (7140.4, False)])
def test_a_minute_that_is_missing_of_hours_is_told(told: float, noted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = sampler(Path("long.mp4"))
    reader.seconds = 7140.0
    monkeypatch.setattr(sampling, "video_seconds_told", lambda path: told)
    assert bool(reader._shorter_than_told()) == noted


def test_a_file_that_breaks_off_is_read_to_there(tmp_path: Path, make_footage: MakeFootage) -> None:
    path = make_footage(tmp_path / "a.mkv", list(range(120)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reader = sampler(path)
    shown = list(reader.read())
    assert 1 < reader.seconds < 4
    assert reader.notes == [f"it says that it lasts 4.8 s, and its video ends after {reader.seconds:.1f} s"]
    assert shown[-1].window.end >= reader.seconds


def test_the_windows_do_not_depend_on_which_timestamps_were_believed_first(
    tmp_path: Path, make_footage: MakeFootage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_footage(tmp_path / "footage.mp4", list(range(75)))
    expected = list(sampler(path).read())
    honest = timing_of_packets(path)
    short = honest.timestamps[:50] + [stamp + 7 for stamp in honest.timestamps[50:70] if stamp is not None]
    wrong = replace(honest, timestamps=list(short))
    monkeypatch.setattr(sampling, "timing_of_packets", lambda path: wrong)
    shown = list(sampler(path).read())
    assert numbers(shown) == numbers(expected)
    for one, other in zip(shown, expected, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)


def test_a_dahua_recorders_file(
    tmp_path: Path, make_footage: MakeFootage, make_dav: Callable[[Path, Path], Path]
) -> None:
    source = make_footage(tmp_path / "a.ts", list(range(75)), bf="0")
    path = make_dav(source, tmp_path / "a.dav")
    reader, of_source = sampler(path), list(sampler(source).read())
    shown = list(reader.read())
    assert (reader.seconds, reader.gaps, reader.notes) == (3.0, 0, [])
    assert numbers(shown) == numbers(of_source)
    for one, other in zip(shown, of_source, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)


def test_a_broken_index_is_done_without(tmp_path: Path, make_footage: MakeFootage) -> None:
    path = make_footage(tmp_path / "a.avi", list(range(75)), codec="mpeg4")
    whole = list(sampler(path).read())
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"idx1")])  # the index stands at the end
    assert numbers(list(sampler(path).read())) == numbers(whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.touch(), "the file is empty"),
        (lambda path: path.write_text("no video"), "cannot be read as a video"),
        (lambda path: None, "No such file"),
    ],
)
def test_what_is_no_recording_is_a_line(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    make(tmp_path / "a.mp4")
    with pytest.raises(ClipError, match=message):
        list(sampler(tmp_path / "a.mp4").read())


def test_sound_alone_is_a_line(tmp_path: Path, make_sound: Callable[[Path], Path]) -> None:
    with pytest.raises(ClipError, match="holds no video stream"):
        list(sampler(make_sound(tmp_path / "a.mp4")).read())


def test_a_rate_that_is_not_told_is_a_line(
    tmp_path: Path, make_footage: MakeFootage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_footage(tmp_path / "a.mp4")
    honest = timing_of_packets(path)
    untold = replace(honest, fps=None)
    monkeypatch.setattr(sampling, "timing_of_packets", lambda path: untold)
    with pytest.raises(DataError, match="frame rate is unknown"):
        list(sampler(path, step=FrameStep(fps=5)).read())


def test_timestamps_of_packets_are_those_of_frames(tmp_path: Path, make_footage: MakeFootage) -> None:
    ticks, time_base, rate = RECORDINGS["variable"]
    path = make_footage(tmp_path / "a.mp4", ticks, time_base, rate)
    timing = timing_of_packets(path)
    assert timing.timestamps == [frame.pts for frame in decode_video(path)]
    told = timeline(timing.timestamps, timing.time_base, timing.interval) * float(timing.time_base)
    assert told == pytest.approx([(tick - ticks[0]) / 1000 for tick in ticks])
    assert list(windows_of(np.array([0]), Fraction(1), GRID, every=1, num_frames=1))

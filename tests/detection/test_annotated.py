"""Annotated copies: the recording's own pictures and times, what is said of them, and what is hidden."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tillwatch.cli import main
from tillwatch.clip_spec import Roi
from tillwatch.data.video import decode_video, to_image
from tillwatch.detection import panel
from tillwatch.detection.blurring import Movement, blurred, outside
from tillwatch.detection.incidents import Rule
from tillwatch.detection.results import Recording, WindowScore, write_scan
from tillwatch.detection.results import Scan as ScanResult
from tillwatch.detection.timeline import write_timeline
from tillwatch.errors import ClipError

MakeFootage = Callable[..., Path]
Probe = Callable[[Path], dict[str, Any]]
Frames = list[NDArray[np.uint8]]

LEFT = Roi(x=0, y=0, width=0.5, height=1)
WHOLE: dict[str, Roi | None] = {"whole": None}
SCORES = (0.1, 0.2, 0.9, 0.6, 0.3)  # of windows of 1 s, from 0 s, 0.5 s, ...
BLUE, ORANGE = (116, 177, 242), (242, 153, 90)


def collect(path: Path, *flags: object, regions: dict[str, Roi | None] = WHOLE, seconds: float = 3.0) -> dict[str, Any]:
    """Collects evidence of a scan with one incident, from 1 s to 2.5 s, in the first region; returns the manifest."""
    folder = path.parent / "scan"
    folder.mkdir()
    scores = [
        WindowScore(
            region=name,
            number=number,
            start_s=number / 2,
            end_s=number / 2 + 1,
            frames=25,
            probabilities=(score, 1 - score) if name == next(iter(regions)) else (0.0, 1.0),
        )
        for number, score in enumerate(SCORES)
        for name in regions
    ]
    recording = Recording(
        file=path.name, path=str(path), camera="c", seconds=seconds, started=None, regions=regions, scores=scores
    )
    scan = ScanResult(
        model={"path": "run", "arch": "tinynet", "sha256": "abc"},
        classes=("theft", "normal"),
        event=("theft",),
        window_s=1.0,
        stride_s=0.5,
        rule=Rule(threshold=0.5),
        rule_source="",
        recordings=(recording,),
        left_out={},
    )
    write_timeline(folder, scan, write_scan(folder, scan))
    code = run("evidence", folder, "--out", path.parent / "evidence", *flags)
    assert code in (0, 3)
    return {"code": code, **json.loads((path.parent / "evidence" / "manifest.json").read_text())}


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    return int(str(exited.value.code))


def pictures(path: Path) -> Frames:
    return [np.asarray(to_image(frame)) for frame in decode_video(path)]


def times(path: Path) -> list[float]:
    return [float(frame.time or 0) for frame in decode_video(path)]


TIMES: dict[str, tuple[Sequence[int], Fraction, Fraction]] = {
    "25": (range(75), Fraction(1, 25), Fraction(25)),
    "29.97": ([1001 * n for n in range(90)], Fraction(1, 30_000), Fraction(30_000, 1001)),
    "variable": (np.cumsum(np.random.default_rng(5).integers(10, 90, 60)).tolist(), Fraction(1, 1000), Fraction(20)),
}


@pytest.mark.parametrize(("suffix", "name"), [("mp4", "25"), ("mp4", "variable"), ("mkv", "29.97")])
def test_an_annotated_video_has_the_frames_and_times_of_its_clip(
    suffix: str, name: str, tmp_path: Path, make_footage: MakeFootage, ffprobe: Probe
) -> None:
    path = make_footage(tmp_path / f"a.{suffix}", *TIMES[name])
    (entry,) = collect(path, "--annotate", "--around", 0.2)["incidents"]
    told = ffprobe(tmp_path / "evidence" / entry["annotated"])
    assert (told["codec_name"], told["pix_fmt"], told["color_range"]) == ("h264", "yuv420p", "tv")
    assert told["color_space"] == "smpte170m"
    assert (told["width"], told["height"]) == (320, 48 + 86 - 48)
    assert int(told["nb_read_frames"]) == entry["annotated_frames"] == entry["clip_frames"] > 20
    of_clip = ffprobe(tmp_path / "evidence" / entry["clip"])
    assert of_clip["codec_name"] == "h264"
    assert int(of_clip["nb_read_frames"]) == entry["clip_frames"]
    clip_times = np.array(of_clip["times"]) - of_clip["times"][0]
    np.testing.assert_allclose(told["times"], clip_times, atol=1.1e-3)  # a tick of Matroska
    expected = np.array(times(path))
    first = int(np.abs(expected - entry["clip_start_s"] - expected[0]).argmin())
    in_source = expected[first : first + len(clip_times)] - expected[first]
    np.testing.assert_allclose(told["times"], in_source, atol=1.1e-3)
    assert float(told["duration"]) == pytest.approx(told["times"][-1], abs=0.1)
    assert float(told["duration"]) > told["times"][-1]


@pytest.mark.parametrize(
    ("codec", "matrix", "full", "told"),
    [
        ("libx264", 2, False, "smpte170m"),
        ("libx264", 1, False, "bt709"),
        ("libx264", 1, True, "bt709"),
        ("libx264", 5, False, "bt470bg"),
        ("mjpeg", 5, True, "bt470bg"),
    ],
)
def test_an_annotated_video_has_the_colours_of_the_recording(
    codec: str,
    matrix: int,
    full: bool,
    told: str,
    tmp_path: Path,
    make_flat_footage: MakeFootage,
    ffprobe: Probe,
) -> None:
    path = make_flat_footage(tmp_path / "a.mkv", codec, matrix, full)
    (entry,) = collect(path, "--annotate")["incidents"]
    annotated = tmp_path / "evidence" / entry["annotated"]
    assert ffprobe(annotated)["color_space"] == told
    for original, shown in zip(pictures(path), pictures(annotated), strict=True):
        assert np.abs(shown[4:44, 4:60].astype(int) - original[4:44, 4:60]).max() <= 4


def test_a_large_picture_that_tells_no_matrix_is_shown_as_players_show_it(
    tmp_path: Path, make_flat_footage: MakeFootage, ffprobe: Probe
) -> None:
    path = make_flat_footage(tmp_path / "a.mkv", "libx264", 2, False, 720)
    told = make_flat_footage(tmp_path / "told.mkv", "libx264", 1, False, 720)
    (entry,) = collect(path, "--annotate")["incidents"]
    annotated = tmp_path / "evidence" / entry["annotated"]
    assert ffprobe(annotated)["color_space"] == "bt709"
    shown = pictures(annotated)[3][4:700, 4:60].astype(int)
    assert np.abs(shown - pictures(told)[3][4:700, 4:60]).max() <= 4


def test_a_turned_recording_is_shown_upright(tmp_path: Path, make_turned_footage: MakeFootage) -> None:
    path = make_turned_footage(tmp_path / "a.mp4", range(75))
    (entry,) = collect(path, "--annotate", "--around", 9)["incidents"]
    shown = pictures(tmp_path / "evidence" / entry["annotated"])
    for original, one in zip(pictures(path), shown, strict=True):
        assert original.shape == (64, 48, 3)
        assert np.abs(one[:64, :48].astype(int) - original).mean() < 8  # noise, and colour at half the resolution


def test_pixels_that_are_not_square_are_shown_square(tmp_path: Path, make_footage: MakeFootage) -> None:
    source = make_footage(
        tmp_path / "square.mp4", range(75), size=(240, 320), picture=lambda place: walker(place, 240, 320)
    )
    with av.open(str(source)) as read, av.open(str(tmp_path / "a.mp4"), "w") as written:
        stream: Any = written.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        for frame in read.decode(video=0):
            written.mux(stream.encode(frame))
        written.mux(stream.encode(None))
    (entry,) = collect(tmp_path / "a.mp4", "--annotate")["incidents"]
    frame = next(decode_video(tmp_path / "evidence" / entry["annotated"]))
    assert frame.width == 480
    assert frame.height > 240


def test_the_bar_is_the_highest_score_of_the_windows_that_hold_the_frame(
    tmp_path: Path, make_footage: MakeFootage
) -> None:
    path = make_footage(tmp_path / "a.mp4", range(100))
    regions: dict[str, Roi | None] = {"till1": LEFT, "other": LEFT}
    (entry,) = collect(path, "--annotate", "--around", 0.4, regions=regions, seconds=4.0)["incidents"]
    assert (entry["start_s"], entry["end_s"]) == (1.0, 2.5)
    annotated = tmp_path / "evidence" / entry["annotated"]
    assert 0.1 < entry["annotated_start_s"] < 0.6
    for in_video, picture in zip(times(annotated), pictures(annotated), strict=True):
        now = in_video + entry["annotated_start_s"] + 1e-6
        row = picture[-10].astype(int)[8:312]
        holding = [score for number, score in enumerate(SCORES) if number / 2 <= now < number / 2 + 1]
        colour = ORANGE if 1 <= now < 2.5 else BLUE
        filled = np.abs(row - colour).max(axis=1) < 40
        assert filled.mean() == pytest.approx(max(holding, default=0.0), abs=0.03)
        assert picture[10, 31].astype(int) == pytest.approx(ORANGE if 1 <= now < 2.5 else (160, 173, 189), abs=90)


def test_a_recording_that_gives_no_clip_is_annotated_itself(
    tmp_path: Path, make_footage: MakeFootage, ffprobe: Probe
) -> None:
    path = make_footage(tmp_path / "a.h264", range(100))
    manifest = collect(path, "--annotate", "--around", 0.2)
    (entry,) = manifest["incidents"]
    assert manifest["code"] == 3
    assert "clip" not in entry
    assert entry["annotated_start_s"] == pytest.approx(0.8)
    told = ffprobe(tmp_path / "evidence" / entry["annotated"])
    assert int(told["nb_read_frames"]) == entry["annotated_frames"] == pytest.approx(1.9 * 25, abs=1)
    np.testing.assert_allclose(np.diff(told["times"]), 0.04, atol=1e-3)
    shown, originals = pictures(tmp_path / "evidence" / entry["annotated"]), pictures(path)
    assert np.abs(shown[5][:48, :64].astype(int) - originals[25]).mean() < 8


def test_a_recording_with_a_title_in_no_encoding_is_annotated(
    tmp_path: Path, make_footage: MakeFootage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impossible(*_: object) -> None:
        raise ClipError("it cannot be cut, so the recording itself is played")

    monkeypatch.setattr("tillwatch.detection.evidence.remux", impossible)
    path = tmp_path / "a.avi"
    with (
        av.open(str(make_footage(tmp_path / "plain.avi", range(100), codec="mpeg4", bf="2"))) as plain,
        av.open(str(path), "w") as titled,
    ):
        titled.metadata["title"] = "till2"
        stream = titled.add_stream_from_template(plain.streams.video[0])
        for packet in plain.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                titled.mux(packet)
    (tmp_path / "plain.avi").unlink()
    path.write_bytes(path.read_bytes().replace(b"till2", b"\xca\xd5\xd2\xf8\x80"))
    (entry,) = collect(path, "--annotate")["incidents"]
    assert "clip" not in entry
    assert entry["annotated_frames"] > 50


def walker(place: int, height: int = 96, width: int = 128) -> av.VideoFrame:
    """A chequered square that walks before bars; both have detail in every block."""
    picture = np.full((height, width, 3), 90, np.uint8)
    picture[:, ::4] = 160
    left = 4 + place
    square = picture[30:60, left : left + 20]
    square[:] = 30
    square[(np.indices(square.shape[:2]).sum(0) // 3) % 2 == 0] = 230
    return av.VideoFrame.from_ndarray(picture, format="rgb24")


def detail(picture: NDArray[np.uint8]) -> float:
    """How much neighbours differ."""
    grey = picture.astype(int).mean(axis=2)
    return float(np.abs(np.diff(grey, axis=1)).mean())


def test_what_moves_is_blurred_from_the_first_frame_on(tmp_path: Path, make_footage: MakeFootage) -> None:
    path = make_footage(tmp_path / "a.mp4", range(80), size=(96, 128), picture=walker, qp="10")
    manifest = collect(path, "--annotate", "--around", 9, "--blur", "people", seconds=3.2)
    assert manifest["annotated"]["blur"] == "people"
    assert "no guarantee" in manifest["annotated"]["caveat"]
    (entry,) = manifest["incidents"]
    originals, shown = pictures(path), pictures(tmp_path / "evidence" / entry["annotated"])
    assert len(originals) == len(shown) == 80
    for place, (original, picture) in enumerate(zip(originals, shown, strict=True)):
        square = np.s_[30:60, 4 + place : 24 + place]
        assert detail(picture[square]) < 0.2 * detail(original[square])
        still = np.s_[80:94, 4:124]
        assert detail(picture[still]) > 0.8 * detail(original[still])


def test_in_a_still_picture_nothing_moves() -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (90, 160, 3))
    frames = [np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255).astype(np.uint8) for _ in range(30)]
    movement = Movement()
    for frame in frames:
        movement.learn(frame)
    assert not any(movement.where(frame, place / 25).any() for place, frame in enumerate(frames))


def test_outside_the_region_all_is_blurred_and_inside_nothing(tmp_path: Path, make_footage: MakeFootage) -> None:
    path = make_footage(tmp_path / "a.mp4", range(75), size=(96, 128), picture=walker, qp="10")
    regions: dict[str, Roi | None] = {"till1": LEFT, "till2": Roi(x=0.5, y=0, width=0.5, height=1)}
    (entry,) = collect(path, "--annotate", "--around", 9, "--blur", "outside-roi", regions=regions)["incidents"]
    for original, picture in zip(pictures(path), pictures(tmp_path / "evidence" / entry["annotated"]), strict=True):
        assert detail(picture[24:95, 2:62]) > 0.8 * detail(original[24:95, 2:62])  # below the region's name
        assert detail(picture[:96, 66:126]) < 0.2 * detail(original[:, 66:126])


def test_a_blurred_picture_holds_no_more_than_its_blocks() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (90, 160, 3), np.uint8)
    where = outside([LEFT], 90, 160)
    hidden = blurred(picture, where)
    np.testing.assert_array_equal(hidden[:, :80], picture[:, :80])
    other = picture.copy()
    other[:, 80:] = picture.reshape(18, 5, 32, 5, 3).mean((1, 3)).repeat(5, 0).repeat(5, 1).astype(np.uint8)[:, 80:]
    # Block means alone tell what is shown: a picture with the same means gives the same.
    assert np.abs(blurred(other, where).astype(int) - hidden)[:, 80:].max() <= 3
    assert np.abs(other.astype(int) - picture)[:, 80:].max() > 100


@pytest.mark.parametrize("flags", [("--annotate",), ("--annotate", "--blur", "people")])
def test_the_manifest_and_verify_cover_the_copies(
    flags: tuple[str, ...], tmp_path: Path, make_footage: MakeFootage, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = collect(make_footage(tmp_path / "a.mp4", range(75)), *flags)
    assert "1 annotated video," in capsys.readouterr().out
    (entry,) = manifest["incidents"]
    assert entry["annotated"] in manifest["files"]
    assert run("verify", tmp_path / "evidence") == 0
    path = tmp_path / "evidence" / entry["annotated"]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert run("verify", tmp_path / "evidence") == 2
    assert capsys.readouterr().out == f"{entry['annotated']} has changed\n"


def test_without_the_flag_there_is_no_copy(tmp_path: Path, make_footage: MakeFootage) -> None:
    manifest = collect(make_footage(tmp_path / "a.mp4", range(75)))
    assert "annotated" not in manifest
    assert not any("annotated" in name for name in manifest["files"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--blur", "people"), "--blur people is for the copy that is shown; add --annotate."),
        (("--annotate", "--blur", "outside-roi"), "--blur outside-roi: the whole picture was scanned"),
        (("--annotate", "--blur", "faces"), '"faces"'),
    ],
)
def test_a_blur_that_cannot_be_is_one_line_and_nothing_is_written(
    flags: tuple[str, ...], message: str, scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evidence", scan_folder, "--out", tmp_path / "evidence", *flags) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "evidence").exists()


@pytest.mark.parametrize("font", ["new", "old"])
@pytest.mark.parametrize("label", ["theft", "vol à l'étalage", "窃盗", "a very long name of a class " * 3])
@pytest.mark.parametrize("size", [(48, 64), (360, 641), (1080, 1920)])
def test_a_panel_leaves_the_picture_whole_and_tells_the_time(
    size: tuple[int, int], label: str, font: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if font == "old":
        monkeypatch.setattr(panel, "_FONT", None)
    picture = np.full((*size, 3), 200, np.uint8)

    def drawn(time: str) -> NDArray[np.uint8]:
        return panel.with_panel(
            picture, label=label, score=0.5, threshold=0.9, times=["2026-03-01 08:15:02", time], colour=ORANGE
        )

    first, second = drawn("00:00:01.000"), drawn("00:00:08.000")
    assert first.shape[0] % 2 == first.shape[1] % 2 == 0
    np.testing.assert_array_equal(first[: size[0], : size[1]], picture)
    assert size[0] < first.shape[0] <= size[0] + 130
    changed = np.argwhere((first != second).any(axis=2))
    assert len(changed) > 4  # the digit of the time
    assert changed[:, 0].min() >= size[0]
    assert changed[:, 1].min() > first.shape[1] / 2

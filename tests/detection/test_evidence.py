"""Evidence: the original's own pictures, and every change noticed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tillwatch.cli import main
from tillwatch.data.video import decode_video, read_video
from tillwatch.detection.evidence import UNFINISHED, collect, remux
from tillwatch.errors import ClipError
from tillwatch.files import sha256_of
from tillwatch.locks import lock, open_held, release

MakeFootage = Callable[..., Path]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    return int(str(exited.value.code))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("a.mkv", "libx264", {}),  # packets without a time of decoding
        ("a.ts", "libx264", {}),
        ("a.avi", "mpeg4", {}),
        ("a.avi", "mjpeg", {}),
    ],
)
def test_a_clip_shows_the_originals_own_pictures(
    name: str, codec: str, options: dict[str, str], tmp_path: Path, make_footage: MakeFootage
) -> None:
    source = make_footage(tmp_path / name, list(range(75)), codec=codec, **options)
    frames = [frame.to_ndarray(format="rgb24") for frame in decode_video(source)]
    told = remux(source, 1.5, 2.5, tmp_path / "clip")
    clip = tmp_path / told["clip"]
    assert clip.suffix == (".mkv" if codec == "mjpeg" else ".mp4")
    with av.open(str(clip)) as container:
        decoded = list(container.decode(video=0))
    shown = [frame.to_ndarray(format="rgb24") for frame in decoded]
    first = round(told["clip_start_s"] * 25)
    assert 24 <= first <= 38  # the key frame before: one in twelve
    assert len(shown) == told["clip_frames"]
    assert first + len(shown) >= 60
    for picture, original in zip(shown, frames[first:], strict=False):
        np.testing.assert_array_equal(picture, original)
    times = [float(frame.time or 0) for frame in decoded]
    assert np.diff(times) == pytest.approx([0.04] * (len(shown) - 1), abs=2e-3)


@pytest.mark.parametrize("start", [0.0, 1.5])
def test_a_program_stream_is_cut_at_its_beginning_too(start: float, tmp_path: Path, make_footage: MakeFootage) -> None:
    """Seeking in it goes by times of decoding, and lands behind the key frame; a time may be half a frame off."""
    # Frames of several packets each: then the second has a time of its own to land at.
    path, ticks = tmp_path / "a.mpg", list(range(36))
    source = make_footage(path, ticks, Fraction(1, 12), 12, "mpeg2video", (192, 256), qmin="1", qmax="2")
    told = remux(source, start, start + 1, tmp_path / "clip")
    originals = [frame.to_ndarray(format="rgb24") for frame in decode_video(source)]
    shown = [frame.to_ndarray(format="rgb24") for frame in decode_video(tmp_path / told["clip"])]
    first = next(place for place, picture in enumerate(originals) if np.array_equal(picture, shown[0]))
    assert first / 12 == pytest.approx(told["clip_start_s"], abs=0.05)
    assert first / 12 <= start + 0.05
    assert len(shown) == told["clip_frames"] >= 12
    for picture, original in zip(shown, originals[first:], strict=False):
        np.testing.assert_array_equal(picture, original)


def test_a_turned_recording_gives_turned_clips(tmp_path: Path, make_turned_footage: MakeFootage) -> None:
    source = make_turned_footage(tmp_path / "a.mp4", list(range(60)))
    told = remux(source, 0, 1, tmp_path / "clip")
    clip = read_video(tmp_path / told["clip"], told["clip_frames"])
    np.testing.assert_array_equal(clip, read_video(source, 60)[: told["clip_frames"]])


def test_a_clip_at_the_beginning_and_at_the_end(tmp_path: Path, make_footage: MakeFootage) -> None:
    source = make_footage(tmp_path / "a.mp4", list(range(60)))
    assert remux(source, 0, 0.5, tmp_path / "begin")["clip_start_s"] == 0
    end = remux(source, 2.2, 9.9, tmp_path / "end")
    assert end["clip_start_s"] + end["clip_frames"] / 25 == pytest.approx(2.4)


def test_a_recording_that_begins_between_key_frames_is_counted_from_its_first_picture(
    tmp_path: Path, make_footage: MakeFootage
) -> None:
    whole = make_footage(tmp_path / "whole.ts", list(range(75)))
    source = tmp_path / "a.ts"
    with av.open(str(whole)) as container, av.open(str(source), "w") as cut:
        stream = cut.add_stream_from_template(container.streams.video[0])
        for place, packet in enumerate(container.demux(video=0)):
            if place >= 5 and packet.size:
                packet.stream = stream
                cut.mux(packet)
    frames = [frame.to_ndarray(format="rgb24") for frame in decode_video(source)]
    assert len(frames) < 75 - 5, "the decoder waits for a key frame"
    told = remux(source, 1.0, 1.4, tmp_path / "clip")
    first = round(told["clip_start_s"] * 25)
    assert 13 <= first <= 25  # the key frame before: one in twelve
    shown = [frame.to_ndarray(format="rgb24") for frame in decode_video(tmp_path / told["clip"])]
    assert len(shown) == told["clip_frames"]
    asked = 35 - first  # behind them comes what the last of them leans on
    np.testing.assert_array_equal(shown[:asked], frames[first : first + asked])


def test_a_stream_without_times_is_named(tmp_path: Path, make_footage: MakeFootage) -> None:
    source = make_footage(tmp_path / "a.h264", list(range(60)))
    with pytest.raises(ClipError, match="tells no times, so a clip would have to be encoded anew"):
        remux(source, 0, 1, tmp_path / "clip")


def test_a_recording_without_whole_pictures_is_cut_where_its_decoder_shows_some(
    tmp_path: Path, make_footage: MakeFootage
) -> None:
    """Intra refresh: behind each point that one may begin at, nothing is shown until all of the picture is renewed."""
    options = {"g": "60", "x264-params": "intra-refresh=1:bframes=0:scenecut=0"}
    source = make_footage(tmp_path / "a.ts", list(range(200)), size=(64, 400), **options)
    frames = [frame.to_ndarray(format="rgb24") for frame in decode_video(source)]
    for start_s, lasts_s in ((0.2, 1), (3.0, 1), (5.0, 1), (5.0, 0.2)):
        told = remux(source, start_s, start_s + lasts_s, tmp_path / "clip")
        shown = [frame.to_ndarray(format="rgb24") for frame in decode_video(tmp_path / told["clip"])]
        assert len(shown) == told["clip_frames"]
        first = round(told["clip_start_s"] * 25)
        assert first <= start_s * 25
        np.testing.assert_array_equal(shown, frames[first : first + len(shown)])


def test_a_recording_whose_clock_starts_again_is_named(tmp_path: Path, make_footage: MakeFootage) -> None:
    """Its second half has the times of the first, so a clip by times would be of another moment."""
    piece = make_footage(tmp_path / "piece.ts", list(range(60)), bf="2")
    source = tmp_path / "both.ts"
    source.write_bytes(2 * piece.read_bytes())
    with pytest.raises(ClipError, match="its clock jumps, so a clip would have to be encoded anew"):
        remux(source, 0.5, 1, tmp_path / "clip")


def test_a_clip_of_each_incident_and_a_manifest(
    scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evidence"
    assert run("evidence", scan_folder, "--out", out, "--around", "0.5") == 3
    assert "no clip of b.h264 at 00:00:02.000: it tells no times" in capsys.readouterr().err
    assert {entry.name for entry in out.iterdir()} == {
        "0001_a_00-00-02.jpg",
        "0001_a_00-00-02.mp4",
        "0002_b_00-00-02.jpg",
        "incidents.csv",
        "scores.csv",
        "scan.json",
        "timeline.html",
        "manifest.json",
        "manifest.json.sha256",
    }
    manifest = json.loads((out / "manifest.json").read_text())
    first, second = manifest["incidents"]
    assert first["clip_start_s"] <= 1.5
    assert first["clip_start_s"] + first["clip_frames"] / 25 >= 3.19  # to the end of the file
    assert "left_out" in second
    assert [source["file"] for source in manifest["sources"]] == ["a.mp4", "b.h264"]
    assert run("verify", out) == 0
    assert "is as it was collected" in capsys.readouterr().out
    assert run("evidence", scan_folder, "--out", out) == 2  # nothing is written over


def test_what_was_broken_off_is_begun_anew(
    scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dying(*arguments: object) -> None:
        raise Killed

    out = tmp_path / "evidence"
    with monkeypatch.context() as patch:
        patch.setattr("tillwatch.detection.evidence._write_manifest", dying)
        with pytest.raises(Killed):
            collect(scan_folder, out)
    left = {entry.name for entry in out.iterdir()}
    assert "0001_a_00-00-02.mp4" in left
    assert run("verify", out) == 2
    assert "is not finished" in capsys.readouterr().err
    # What another scan would have left, which the new manifest must not take up.
    (out / "0009_c_00-00-09.mp4").touch()
    (out / ".0003_c.mp4.part").touch()
    assert run("evidence", scan_folder, "--out", out) == 3
    assert {entry.name for entry in out.iterdir()} == left - {UNFINISHED} | {"manifest.json", "manifest.json.sha256"}
    assert run("verify", out) == 0


def test_a_folder_that_holds_something_else_or_is_being_written_is_left_alone(
    scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evidence"
    out.mkdir()
    for name in (UNFINISHED, "0001_a.mp4", "notes.txt"):
        (out / name).touch()
    assert run("evidence", scan_folder, "--out", out) == 2
    assert "it holds notes.txt" in capsys.readouterr().err
    (out / "notes.txt").unlink()
    descriptor = open_held(out / UNFINISHED, os.O_RDONLY)
    lock(descriptor, wait=False)
    try:
        assert run("evidence", scan_folder, "--out", out) == 2
        assert "is being written by another process" in capsys.readouterr().err
    finally:
        release(descriptor)
    assert (out / "0001_a.mp4").exists()


@pytest.mark.parametrize("opened_before", [False, True])
def test_what_another_process_finishes_meanwhile_is_left_alone(
    opened_before: bool,
    scan_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "evidence"
    out.mkdir()
    for name in (UNFINISHED, "0001_a.mp4", "manifest.json"):
        (out / name).touch()

    def finishing(path: Path, flags: int) -> int:
        if opened_before:
            descriptor = open_held(path, flags)
            path.unlink()
            return descriptor
        path.unlink()
        return open_held(path, flags)

    monkeypatch.setattr("tillwatch.detection.evidence.open_held", finishing)
    assert run("evidence", scan_folder, "--out", out) == 2
    assert "was finished by another process just now" in capsys.readouterr().err
    assert {entry.name for entry in out.iterdir()} == {"0001_a.mp4", "manifest.json"}


def test_a_filmstrip_shows_the_incident_with_a_clip_or_without(scan_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "evidence"
    run("evidence", scan_folder, "--out", out)
    manifest = json.loads((out / "manifest.json").read_text())
    for entry in manifest["incidents"]:
        strip = np.asarray(Image.open(out / entry["filmstrip"]).convert("RGB"))
        assert strip.shape == (180, 6 * 240 + 5 * 4, 3)
        assert manifest["files"][entry["filmstrip"]] == sha256_of(out / entry["filmstrip"])
        frames = [frame.to_ndarray(format="rgb24") for frame in decode_video(tmp_path / entry["file"])]
        originals = np.stack([np.asarray(Image.fromarray(frame).resize((240, 180))) for frame in frames]).astype(int)
        for part in range(6):
            picture = strip[:, 244 * part : 244 * part + 240].astype(int)
            nearest = int(np.abs(originals - picture).mean((1, 2, 3)).argmin())
            # The incident lasts from 2 s to 3 s: the middle of each sixth of it.
            assert nearest == int((2 + (2 * part + 1) / 12) * 25)


def test_one_changed_byte_is_noticed(scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "evidence"
    run("evidence", scan_folder, "--out", out)
    files = sorted(out.iterdir())
    assert len(files) == 9
    for path in files:
        honest = path.read_bytes()
        data = bytearray(honest)
        place = data.index(b"tinynet") if path.name == "manifest.json" else len(data) // 2
        data[place] ^= 1
        path.write_bytes(data)
        capsys.readouterr()
        assert run("verify", out) == 2
        captured = capsys.readouterr()
        assert path.name.removesuffix(".sha256") in captured.out
        assert captured.err.count("\n") == 1
        path.write_bytes(honest)
    seal = out / "manifest.json.sha256"
    seal.write_bytes(seal.read_bytes().replace(b"\n", b"\r"))  # a text's lines would read the same
    assert run("verify", out) == 2
    seal.write_bytes(seal.read_bytes().replace(b"\r", b"\n"))
    assert run("verify", out) == 0


def test_what_is_gone_or_added_or_an_original_that_changed_is_noticed(
    scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evidence"
    run("evidence", scan_folder, "--out", out)
    (out / "scores.csv").unlink()
    (out / "more.txt").touch()
    (tmp_path / "b.h264").write_bytes(b"another")
    (tmp_path / "a.mp4").unlink()  # an original may be kept elsewhere
    capsys.readouterr()
    assert run("verify", out) == 2
    text = capsys.readouterr().out
    assert "scores.csv is gone" in text
    assert "more.txt was added" in text
    assert f"the original {tmp_path / 'b.h264'} has changed" in text
    assert f"not held against the original {tmp_path / 'a.mp4'}, which is not there" in text


def test_a_recording_with_a_long_name_is_collected(
    scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "ä" * 125 + ".mp4"  # 254 bytes
    (tmp_path / "a.mp4").rename(tmp_path / name)
    for path in (scan_folder / "scan.json", scan_folder / "scores.csv"):
        path.write_text(path.read_text().replace("a.mp4", name))
    assert run("evidence", scan_folder, "--out", tmp_path / "evidence", "--annotate") == 3
    assert "no clip of b.h264" in capsys.readouterr().err
    assert len(list((tmp_path / "evidence").glob("0001_ä*"))) == 3


def test_an_empty_folder_and_a_link_to_nothing_are_noticed(
    scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evidence"
    run("evidence", scan_folder, "--out", out)
    (out / "more").mkdir()
    (out / "link").symlink_to(tmp_path / "nowhere")
    capsys.readouterr()
    assert run("verify", out) == 2
    assert capsys.readouterr().out == "link was added\nmore was added\n"


def test_recordings_that_are_not_as_they_were_scanned_are_named(
    scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((scan_folder / "scan.json").read_text())
    for entry in record["files"]:
        status = Path(entry["path"]).stat()
        entry |= {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    (scan_folder / "scan.json").write_text(json.dumps(record))
    path, size = tmp_path / "a.mp4", (tmp_path / "a.mp4").stat().st_size
    capsys.readouterr()
    assert run("evidence", scan_folder, "--out", tmp_path / "e1") == 3
    assert "scanned" not in capsys.readouterr().err
    os.utime(path)
    run("evidence", scan_folder, "--out", tmp_path / "e2")
    assert f"{path} was written, or copied, since it was scanned" in capsys.readouterr().err
    with path.open("ab") as file:
        file.write(b"more")
    run("evidence", scan_folder, "--out", tmp_path / "e3")
    err = capsys.readouterr().err
    assert f"{path} is not what was scanned: it has {size + 4:,} bytes, and had {size:,}" in err


def test_a_recording_that_is_gone_is_named_and_the_others_are_collected(
    scan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evidence"
    (tmp_path / "b.h264").unlink()
    assert run("evidence", scan_folder, "--out", out, "--annotate") == 3
    assert (
        "no clip of b.h264 at 00:00:02.000: cannot be read as a video (No such file or directory)"
        in capsys.readouterr().err
    )
    assert run("verify", out) == 0
    (tmp_path / "a.mp4").unlink()
    assert run("evidence", scan_folder, "--out", tmp_path / "other") == 2
    assert f"{tmp_path / 'a.mp4'} is not there any more" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("evidence", "nowhere", "--out", "out"), "holds no finished scan"),
        (("evidence", "nowhere", "--out", "out", "--around", "-1"), "--around is -1"),
        (("verify", "nowhere"), "holds no manifest.json"),
    ],
)
def test_bad_input_is_a_line(command: tuple[Any, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1

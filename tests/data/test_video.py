from __future__ import annotations

import multiprocessing
import os
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tillwatch.clip_spec import FrameStep, Roi, frame_indices
from tillwatch.data import video
from tillwatch.data.synthetic import write_video
from tillwatch.data.video import (
    cut_out,
    decode_video,
    is_video_file,
    packets_of,
    probe_video,
    read_video,
    shrunk,
    squeeze,
    squeezed_parts,
    to_image,
    to_rgb,
)
from tillwatch.errors import ClipError, DataError

MakeVideo = Callable[..., Path]
FrameNumbers = Callable[[Any], list[int]]


def decode_by_hand(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def quadrants(top_left: int, top_right: int, bottom_left: int, bottom_right: int) -> NDArray[np.uint8]:
    """Six equal frames, uint8 ``(6, 32, 48, 3)``, each quarter of one grey."""
    frames = np.empty((6, 32, 48, 3), np.uint8)
    frames[:, :16, :24], frames[:, :16, 24:] = top_left, top_right
    frames[:, 16:, :24], frames[:, 16:, 24:] = bottom_left, bottom_right
    return frames


def quarter_levels(frame: NDArray[np.uint8]) -> list[float]:
    """Mean grey of top left, top right, bottom left and bottom right."""
    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    parts = (frame[:height, :width], frame[:height, width:], frame[height:, :width], frame[height:, width:])
    return [float(part.mean()) for part in parts]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clip.mp4", True),
        ("CLIP.MP4", True),
        ("clip.avi", True),
        ("clip.mkv", True),
        ("clip.mov", True),
        ("clip.dav", True),
        ("clip.ts", True),
        ("clip.265", True),
        ("clip.mxf", True),
        ("kasse größe.mp4", True),
        (".clip.mp4", False),
        ("._clip.mp4", False),
        ("clip.jpg", False),
        ("clip.txt", False),
        ("mp4", False),
    ],
)
def test_what_is_a_video_file(name: str, expected: bool) -> None:
    assert is_video_file(Path("folder") / name) is expected


@pytest.mark.parametrize(("num_frames", "fps"), [(1, 10), (7, 25), (20, 12)])
def test_probe_counts_frames_and_tells_the_rate(
    tmp_path: Path, make_grey_video: MakeVideo, num_frames: int, fps: int
) -> None:
    info = probe_video(make_grey_video(tmp_path / "clip.mp4", num_frames, fps))
    assert info.num_frames == num_frames
    assert info.fps == Fraction(fps)
    assert info.seconds == pytest.approx(num_frames / fps)


def test_decode_video_gives_all_frames_in_order(
    tmp_path: Path, make_grey_video: MakeVideo, frame_numbers: FrameNumbers
) -> None:
    path = make_grey_video(tmp_path / "clip.mp4", num_frames=20)
    assert frame_numbers(to_image(frame) for frame in decode_video(path)) == list(range(20))


@pytest.mark.parametrize(
    ("num_frames", "step", "expected"),
    [
        (20, None, list(range(20))),
        (5, None, [0, 4, 9, 14, 19]),
        (1, None, [0]),
        (24, None, frame_indices(20, 24).tolist()),  # more than there are: some repeat
        (4, FrameStep(every=5), [0, 5, 10, 15]),
        (2, FrameStep(every=3), [0, 18]),
        (3, FrameStep(every=19), [0, 0, 19]),
        (3, FrameStep(every=50), [0, 0, 0]),
        (3, FrameStep(fps=5), [0, 8, 18]),  # every second of ten frames a second
    ],
)
def test_read_video_takes_the_right_frames(
    tmp_path: Path,
    make_grey_video: MakeVideo,
    frame_numbers: FrameNumbers,
    num_frames: int,
    step: FrameStep | None,
    expected: list[int],
) -> None:
    frames = read_video(make_grey_video(tmp_path / "clip.mp4", num_frames=20, fps=10), num_frames, step)
    assert frames.shape == (num_frames, 32, 48, 3)
    assert frames.dtype == np.uint8
    assert frame_numbers(frames) == expected


def test_frames_are_the_decoders_own(tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / "clip.mp4", num_frames=9, height=32, width=48)
    by_hand = np.stack([shrunk(frame, (32, 48)) for frame in decode_video(path)])
    assert len(by_hand) == 9
    np.testing.assert_array_equal(read_video(path, 3), by_hand[[0, 4, 8]])


def smooth_picture(height: int, width: int) -> NDArray[np.uint8]:
    """Colours that change slowly, and that neither end of the scale cuts off: uint8 ``(height, width, 3)``."""
    coarse = np.random.default_rng(0).integers(60, 200, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def as_decoded(rgb: NDArray[np.uint8], pixels: str) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pixels)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p", "yuv422p", "nv12", "yuv420p10le", "gbrp"])
@pytest.mark.parametrize("size", [(241, 427), (360, 640), (1080, 1920)])
@pytest.mark.parametrize("wanted", [(20, 24), (37, 46)])
def test_whole_pictures_shrink_by_pillows_bilinear_filter_and_keep_their_brightness(
    pixels: str, size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    rgb = smooth_picture(*size)
    (small,) = squeezed_parts(as_decoded(rgb, pixels), [None], wanted)
    assert small.dtype == np.uint8
    assert small.shape == (*wanted, 3)
    assert small.flags.c_contiguous
    off = small - np.asarray(Image.fromarray(rgb).resize(wanted[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(off).max() <= 2
    assert abs(off.mean()) <= 0.5  # FFmpeg's fast conversion takes off more than one


@pytest.mark.parametrize("wanted", [(20, 24), (48, 64)])
def test_plain_grey_stays_the_grey_it_is(wanted: tuple[int, int]) -> None:
    for level in range(256):
        frame = as_decoded(np.full((48, 64, 3), level, np.uint8), "gbrp")
        np.testing.assert_array_equal(shrunk(frame, wanted), np.full((*wanted, 3), level))


@pytest.mark.parametrize(
    ("luma", "grey"), [(0, 0), (16, 0), (235, 255), (255, 255)]
)  # 16 to 235 is all there should be
def test_blacker_than_black_and_whiter_than_white_are_cut_off(luma: int, grey: int) -> None:
    frame = av.VideoFrame(64, 48, "yuv420p")
    for plane, value in zip(frame.planes, (luma, 128, 128), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    np.testing.assert_array_equal(shrunk(frame, (20, 24)), np.full((20, 24, 3), grey))


@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p", "yuv422p", "nv12", "yuv420p10le", "gbrp"])
@pytest.mark.parametrize("wanted", [None, (96, 64), (40, 160), (120, 60), (120, 160)])
def test_whole_pictures_that_stay_or_grow_keep_their_colours(pixels: str, wanted: tuple[int, int] | None) -> None:
    rgb = smooth_picture(96, 64)
    (part,) = squeezed_parts(as_decoded(rgb, pixels), [None], wanted)
    assert part.flags.c_contiguous
    off = part - squeeze(rgb, wanted).astype(int)
    assert np.abs(off).mean() <= 1.2  # colours of yuv420p have half their pixels
    assert abs(off.mean()) <= 0.5  # FFmpeg's fast conversion takes off more than one


def test_interlaced_frames_are_converted_first(tmp_path: Path) -> None:
    path, rgb = tmp_path / "clip.mp4", smooth_picture(96, 128)
    rgb[::2] //= 2  # the fields differ, as where something moves
    with av.open(str(path), "w") as container:
        options = {"x264-params": "interlaced=1:tff=1"}
        stream: Any = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.flags |= 0x40000  # AV_CODEC_FLAG_INTERLACED_DCT
        container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))
    (frame,) = decode_video(path)
    assert frame.interlaced_frame
    (part,) = squeezed_parts(frame, [None], (20, 24))
    np.testing.assert_array_equal(part, squeeze(cut_out(to_rgb(frame), None), (20, 24)))


def test_each_part_of_a_picture_is_what_it_is_alone() -> None:
    frame = as_decoded(smooth_picture(96, 128), "yuv420p")
    rois = [Roi.parse("0.5,0,0.5,0.5"), None, Roi.parse("0,0.5,1,0.5")]
    parts = squeezed_parts(frame, rois, (20, 24))
    assert len({part.tobytes() for part in parts}) == 3
    for part, roi in zip(parts, rois, strict=True):
        np.testing.assert_array_equal(part, squeezed_parts(frame, [roi], (20, 24))[0])
    np.testing.assert_array_equal(parts[0], squeeze(cut_out(to_rgb(frame), rois[0]), (20, 24)))
    assert [part.shape for part in squeezed_parts(frame, rois, None)] == [(48, 64, 3), (96, 128, 3), (48, 128, 3)]


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (64, 48), (270, 480), (1080, 1920)])
@pytest.mark.parametrize("wanted", [(1, 1), (24, 20), (128, 171)])
def test_squeezing_is_pillows_bilinear_filter_to_a_grey_level(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (-(-size[0] // 4), -(-size[1] // 4), 3), dtype=np.uint8)
    rgb = np.ascontiguousarray(coarse.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]])
    by_pillow = np.asarray(Image.fromarray(rgb).resize(wanted[::-1], Image.Resampling.BILINEAR))
    squeezed = squeeze(rgb, wanted)
    assert squeezed.dtype == np.uint8
    assert squeezed.shape == (*wanted, 3)
    assert squeezed.flags.c_contiguous
    assert np.abs(squeezed.astype(int) - by_pillow).max() <= 1


def test_frames_of_files_of_other_sizes_and_formats_are_converted_in_turn(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    films = [
        list(decode_video(make_video(tmp_path / f"{height}.mp4", num_frames=3, height=height, width=64)))
        for height in (48, 96)
    ]
    for large, small in zip(*films, strict=True):
        full_range = small.reformat(format="yuvj444p")
        for frame in (large, small, full_range, large):
            np.testing.assert_array_equal(to_rgb(frame), frame.to_ndarray(format="rgb24"))
            by_itself = frame.reformat(24, 20, "gbrp16le", interpolation="BILINEAR").to_ndarray().astype(int)
            np.testing.assert_array_equal(shrunk(frame, (20, 24)), np.minimum((by_itself + 128) // 256, 255))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forked workers on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("roi", [None, Roi.parse("0,0,0.5,1")])
def test_a_forked_worker_converts_where_its_parent_did_before(
    tmp_path: Path, make_video: MakeVideo, roi: Roi | None
) -> None:
    path = make_video(tmp_path / "clip.mp4", num_frames=3, height=360, width=640)
    squeezed_parts(next(decode_video(path, threads=1)), [None, Roi.parse("0,0,0.5,1")], (28, 28))
    child = multiprocessing.get_context("fork").Process(target=read_video, args=(path, 3, None, (28, 28), roi))
    child.start()
    child.join(30)
    hung = child.is_alive()
    child.kill()
    assert not hung
    assert child.exitcode == 0


def test_squeezing_to_the_size_it_has_changes_nothing() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    assert squeeze(rgb, (20, 24)) is rgb
    assert squeeze(rgb, None) is rgb


def test_roi_is_cut_out_before_resizing(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(quadrants(20, 80, 140, 200), path)
    roi = Roi.parse("0.5,0,0.5,0.5")
    np.testing.assert_array_equal(read_video(path, 2, roi=roi), decode_by_hand(path)[[0, 5], :16, 24:])
    squeezed = read_video(path, 2, resize=(10, 10), roi=roi)
    assert squeezed.shape == (2, 10, 10, 3)
    assert squeezed.mean() == pytest.approx(80, abs=6)  # top right alone; an edge of coding noise on two sides


# What a phone writes that was held upright: the sensor's picture lies on its side, and the track header
# says how to turn it. The box `tkhd` (version 0) holds 40 bytes (flags, times, ids, duration, layer,
# volume), then the matrix: nine 32-bit big-endian numbers a b u / c d v / x y w, row by row, in 16.16 fixed
# point but for u, v, w, which are 2.30. A source pixel (p, q) is shown at (a p + c q + x, b p + d q + y), with
# y downwards: a = 0, b = 1, c = -1, d = 0 shows (p, q) at (-q, p), that is, turned clockwise by 90 degrees.
TURNS = {
    "90 clockwise": ((0, 1, -1, 0), [140, 20, 200, 80], (48, 32)),
    "180": ((-1, 0, 0, -1), [200, 140, 80, 20], (32, 48)),
    "270 clockwise": ((0, -1, 1, 0), [80, 200, 20, 140], (48, 32)),
    "upright": ((1, 0, 0, 1), [20, 80, 140, 200], (32, 48)),
}


def write_turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Writes quarters 20, 80, 140, 200 and a track header that turns them."""
    write_video(quadrants(20, 80, 140, 200), path)
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (number << 16 for number in matrix)
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    return path


@pytest.mark.parametrize("turn", TURNS)
def test_display_rotation_is_honoured(tmp_path: Path, turn: str) -> None:
    matrix, expected, size = TURNS[turn]
    frames = read_video(write_turned(tmp_path / "phone.mp4", matrix), 2)
    assert frames.shape == (2, *size, 3)
    for frame in frames:
        assert quarter_levels(frame) == pytest.approx(expected, abs=6)  # 60 apart; edges and coding blur a little


@pytest.mark.parametrize("turn", TURNS)
def test_rotation_is_honoured_when_shrinking(tmp_path: Path, turn: str) -> None:
    matrix, expected, _ = TURNS[turn]
    frames = read_video(write_turned(tmp_path / "phone.mp4", matrix), 2, resize=(28, 20))
    assert frames.shape == (2, 28, 20, 3)
    for frame in frames:
        assert quarter_levels(frame) == pytest.approx(expected, abs=10)


def test_roi_counts_after_rotation(tmp_path: Path) -> None:
    path = write_turned(tmp_path / "phone.mp4", TURNS["90 clockwise"][0])
    frames = read_video(path, 1, roi=Roi.parse("0,0.5,0.5,0.5"))  # bottom left of the upright picture
    assert frames.shape == (1, 24, 16, 3)
    assert frames.mean() == pytest.approx(200, abs=6)


def test_b_frames_come_in_display_order(
    tmp_path: Path, make_grey_video: MakeVideo, frame_numbers: FrameNumbers
) -> None:
    options = {"bf": "3", "x264-params": "b-adapt=0:scenecut=0", "g": "20"}
    path = make_grey_video(tmp_path / "clip.mp4", num_frames=20, **options)
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert times != sorted(times)  # otherwise the file shows nothing
    assert frame_numbers(read_video(path, 20)) == list(range(20))
    assert frame_numbers(read_video(path, 5)) == [0, 4, 9, 14, 19]


def test_packets_before_the_first_key_frame_give_no_frame(
    tmp_path: Path, make_grey_video: MakeVideo, frame_numbers: FrameNumbers
) -> None:
    # A recorder that starts a file in mid-stream: 18 packets, of which the three before a key frame are lost.
    whole = make_grey_video(tmp_path / "whole.mp4", 20, g="5", bf="0", **{"x264-params": "scenecut=0"})
    path = tmp_path / "recorder.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if number >= 2 and packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert probe_video(path).num_frames == 18
    assert frame_numbers(to_image(frame) for frame in decode_video(path)) == list(range(5, 20))
    assert frame_numbers(read_video(path, 4)) == [5, 9, 14, 19]  # spread over what can be seen
    assert frame_numbers(read_video(path, 3, FrameStep(every=7))) == [5, 12, 19]


def test_frames_trimmed_off_by_an_edit_list_do_not_count(
    tmp_path: Path, make_grey_video: MakeVideo, frame_numbers: FrameNumbers
) -> None:
    # Phones trim by an edit list: the packets before it stay in the file, are decoded, and are not shown.
    path = make_grey_video(tmp_path / "trimmed.mp4", num_frames=20, fps=10)
    data = path.read_bytes()
    at = data.index(b"elst") + 12  # behind the name, version and flags, and the number of entries
    duration, start = struct.unpack_from(">Ii", data, at)
    frame = 1024  # of the track's 10,240 ticks a second
    path.write_bytes(data[:at] + struct.pack(">Ii", duration * 15 // 20, start + 5 * frame) + data[at + 8 :])
    assert frame_numbers(to_image(frame) for frame in decode_video(path)) == list(range(5, 20))
    assert frame_numbers(read_video(path, 4)) == [5, 9, 14, 19]
    assert probe_video(path).num_frames == 15


@pytest.mark.parametrize("look", [probe_video, lambda path: read_video(path, 4)], ids=["probe", "read"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"clip\.mp4: the file is empty\."),
        (b"this is no video\n" * 50, r"clip\.mp4: cannot be read as a video"),
    ],
    ids=["empty", "text"],
)
def test_files_that_are_no_video(tmp_path: Path, look: Callable[[Path], Any], content: bytes, message: str) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(ClipError, match=message):
        look(path)


@pytest.mark.parametrize("look", [probe_video, lambda path: read_video(path, 4)], ids=["probe", "read"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_has_lost_its_index(
    tmp_path: Path, make_video: MakeVideo, look: Callable[[Path], Any], share: float
) -> None:
    path = make_video(tmp_path / "clip.mp4", num_frames=20)
    data = path.read_bytes()
    assert data.index(b"moov") > 0.5 * len(data)  # the index stands at the end
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ClipError, match=r"clip\.mp4: "):
        look(path)


def test_a_damaged_frame_ends_the_clip_and_not_the_program(tmp_path: Path, make_video: MakeVideo) -> None:
    path = tmp_path / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 48, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:  # PNG frames: unlike H.264, nothing is patched over
        stream: Any = container.add_stream("png", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert read_video(path, 6).tolist() == frames.tolist()
    data = path.read_bytes()
    third = [at for at in range(len(data)) if data.startswith(b"\x89PNG", at)][2]
    path.write_bytes(data[:third] + b"\0" * 200 + data[third + 200 :])
    assert probe_video(path).num_frames == 6  # only decoding finds out
    with pytest.raises(ClipError, match=r"clip\.mp4: cannot be read as a video"):
        read_video(path, 2)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"gone\.mp4: cannot be read as a video \(No such file or directory\)"):
        probe_video(tmp_path / "gone.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ClipError, match=r"folder\.mp4: cannot be read as a video \(Is a directory\)"):
        probe_video(tmp_path / "folder.mp4")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(ClipError, match=r"sound\.mkv: holds no video stream"):
        probe_video(path)


def test_a_rate_that_the_file_does_not_tell(
    tmp_path: Path, make_grey_video: MakeVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_grey_video(tmp_path / "clip.mp4", num_frames=4)
    unknown = video.VideoInfo(num_frames=4, fps=None)
    monkeypatch.setattr(video, "_count_packets", lambda path: unknown)
    assert unknown.seconds is None
    with pytest.raises(DataError, match="frame rate is unknown"):
        read_video(path, 2, FrameStep(fps=5))
    assert len(read_video(path, 2, FrameStep(every=2))) == 2


def test_a_title_in_no_encoding_is_no_damage(tmp_path: Path) -> None:
    """Recorders write titles in whatever encoding their maker uses."""
    path = tmp_path / "till.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "till2"
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for picture in quadrants(0, 80, 160, 240):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert content.count(b"till2") == 1
    path.write_bytes(content.replace(b"till2", b"\xca\xd5\xd2\xf8\x80"))
    assert probe_video(path).num_frames == 6
    assert read_video(path, 3).shape == (3, 32, 48, 3)


def test_a_codec_that_nobody_knows_is_named(tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / "till.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    with pytest.raises(ClipError, match=r"till\.mp4: FFmpeg knows no decoder"):
        probe_video(path)


@pytest.mark.parametrize("last", [[], [None]])
def test_packets_of_a_stream_that_turns_up_later_are_passed_over(last: list[None]) -> None:
    sizes = iter([1, None, 2, None, None, 3, 0, *last, 0])

    def demux(stream: object) -> Iterator[SimpleNamespace]:
        for size in sizes:
            if size is None:
                raise IndexError("list index out of range")  # as PyAV fails that knows the streams of the beginning
            yield SimpleNamespace(size=size)
            if size == 0 and not last:
                return

    packets = list(packets_of(SimpleNamespace(demux=demux), None))
    assert [packet.size for packet in packets] == [1, 2, 3, 0]  # a decoder is asked once for what it holds back

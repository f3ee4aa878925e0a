from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tillwatch.data.frames import (
    IMAGE_SUFFIXES,
    check_frames,
    is_frame_file,
    list_frames,
    natural_key,
    read_frames,
    resize_frame,
)
from tillwatch.errors import ClipError

MakeFrames = Callable[..., Path]


@pytest.mark.parametrize(
    "in_order",
    [
        ["frame_1", "frame_2", "frame_9", "frame_10", "frame_11", "frame_100"],
        ["7", "8", "70"],
        ["cam2_3", "cam2_12", "cam10_1"],
        ["007", "07", "7", "08", "8"],  # equal numbers: the text settles it, so the order is total
        ["1_clip", "clip", "clip1", "clip1a", "clip2"],
        ["größe2", "größe10"],
    ],
)
def test_natural_order(in_order: list[str]) -> None:
    backwards = in_order[::-1]
    assert sorted(backwards, key=natural_key) == in_order


@given(names=st.lists(st.text(alphabet="a1٣²09._é", max_size=6), max_size=6, unique=True))
@settings(max_examples=100, deadline=None)
def test_natural_order_is_total(names: list[str]) -> None:
    # Superscripts and digits of other scripts must not break the comparison, and no two names are equal.
    in_order = sorted(names, key=natural_key)
    backwards = in_order[::-1]
    assert sorted(backwards, key=natural_key) == in_order
    assert len({natural_key(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("frame_1.jpg", True),
        ("frame_1.JPG", True),
        ("frame_1.jpeg", True),
        ("frame_1.png", True),
        ("frame_1.bmp", True),
        ("frame_1.webp", True),
        ("frame_1.tiff", True),
        ("kasse größe 1.png", True),
        (".frame_1.jpg", False),
        ("._frame_1.jpg", False),  # macOS leaves these on shared disks
        ("notes.txt", False),
        ("clip.mp4", False),
        ("Thumbs.db", False),
        ("jpg", False),
        (".jpg", False),
    ],
)
def test_what_is_a_frame_file(name: str, expected: bool) -> None:
    assert is_frame_file(Path("folder") / name) is expected


def test_list_frames_in_natural_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    names = ["frame_10.jpg", "frame_9.jpg", "frame_1.JPG", "frame_2.png"]
    for name in [*names, ".frame_3.jpg", "notes.txt", "clip.mp4"]:
        (tmp_path / name).touch()
    listed = list_frames(tmp_path)
    assert [path.name for path in listed] == ["frame_1.JPG", "frame_2.png", "frame_9.jpg", "frame_10.jpg"]
    assert {path.parent for path in listed} == {tmp_path}


def test_list_frames_of_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"gone: cannot be listed \(No such file or directory\)"):
        list_frames(tmp_path / "gone")


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".jpg", ".jpeg", ".jpe", ".pgm"}))
def test_every_suffix_is_read(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    path = tmp_path / f"frame{suffix}"
    Image.fromarray(pixels).save(path, lossless=True)  # only WebP would lose something otherwise
    check_frames([path])
    np.testing.assert_array_equal(read_frames([path])[0], pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("frame.tif" if mode == "CMYK" else "frame.png")
    image = Image.fromarray(np.full((20, 24, 3), 255, np.uint8)).convert(mode)
    image.save(path)
    frames = read_frames([path])
    assert frames.shape == (1, 20, 24, 3)
    assert frames.min() == 255  # white in each of these modes


@pytest.mark.parametrize("resize", [None, (32, 24), (16, 48), (80, 96), (40, 48)])
def test_read_frames_equals_pillow_by_hand(
    tmp_path: Path, make_frames: MakeFrames, resize: tuple[int, int] | None
) -> None:
    paths = list_frames(make_frames(tmp_path / "clip", num_frames=4, height=40, width=48))
    wanted = [paths[0], paths[3], paths[3], paths[1]]
    frames = read_frames(wanted, resize)
    by_hand = []
    for path in wanted:
        image = Image.open(path).convert("RGB")
        if resize is not None:
            image = image.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
        by_hand.append(np.asarray(image))
    assert frames.dtype == np.uint8
    assert frames.shape == (4, *(resize or (40, 48)), 3)
    np.testing.assert_array_equal(frames, np.stack(by_hand))


@pytest.mark.parametrize(
    ("size", "draft", "decoded"),
    [
        ((1080, 1920), (256, 256), (270, 480)),
        ((360, 640), (256, 256), (360, 640)),
        ((512, 512), (256, 256), (256, 256)),
        ((511, 600), (256, 256), (511, 600)),
        ((2160, 3840), (32, 32), (270, 480)),  # libjpeg goes no further than an eighth
    ],
)
def test_a_large_jpeg_is_decoded_at_reduced_scale(
    tmp_path: Path, size: tuple[int, int], draft: tuple[int, int], decoded: tuple[int, int]
) -> None:
    path = tmp_path / "frame.jpg"
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)
    assert read_frames([path], draft=draft).shape == (1, *decoded, 3)
    assert read_frames([path]).shape == (1, *size, 3)


def test_reduced_scale_changes_little_and_is_what_pillow_gives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    path = tmp_path / "frame.jpg"
    coarse.resize((1280, 960), Image.Resampling.BICUBIC).save(path, quality=92)
    reduced, whole = read_frames([path], (128, 128), (256, 256))[0], read_frames([path], (128, 128))[0]
    by_hand = Image.open(path)
    by_hand.draft(None, (256, 256))
    expected = by_hand.convert("RGB").resize((128, 128), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(reduced, np.asarray(expected))
    gap = np.abs(reduced.astype(int) - whole.astype(int))
    assert 0 < gap.mean() < 0.7
    assert gap.max() <= 8


def test_reduced_scale_is_for_jpegs_alone(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    Image.fromarray(np.zeros((600, 800, 3), np.uint8)).save(path)
    assert read_frames([path], draft=(64, 64)).shape == (1, 600, 800, 3)


def test_resizing_to_the_size_it_has_changes_nothing() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    assert resize_frame(image, (20, 24)) is image
    assert resize_frame(image, None) is image
    assert resize_frame(image, (24, 20)).size == (20, 24)  # (height, width) here, (width, height) in Pillow


def test_whole_frames_pass_the_check(tmp_path: Path, make_frames: MakeFrames) -> None:
    paths = list_frames(make_frames(tmp_path / "clip"))
    assert len(paths) == 12
    check_frames(paths)
    check_frames([])


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.97])
def test_a_truncated_jpeg_is_found_without_and_with_decoding(
    tmp_path: Path, make_frames: MakeFrames, share: float
) -> None:
    paths = list_frames(make_frames(tmp_path / "clip", num_frames=3))
    cut(paths[1], share)
    with pytest.raises(ClipError, match=r"frame_000001\.jpg: not a readable image"):
        check_frames(paths)
    with pytest.raises(ClipError, match=r"frame_000001\.jpg: not a readable image"):
        read_frames(paths)


def test_padding_after_a_jpeg_does_no_harm(tmp_path: Path, make_frames: MakeFrames) -> None:
    paths = list_frames(make_frames(tmp_path / "clip", num_frames=2))
    before = read_frames(paths)
    for path, padding in zip(paths, (100, 5000), strict=True):
        path.write_bytes(path.read_bytes() + b"\0" * padding)
    check_frames(paths)
    np.testing.assert_array_equal(read_frames(paths), before)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("content", [b"", b"this is no image\n" * 50, b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_whatever_its_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"frame{suffix}"
    path.write_bytes(content)
    for look in (check_frames, read_frames):
        with pytest.raises(ClipError) as caught:
            look([path])
        message = str(caught.value)
        assert message.startswith(f"{path}: not a readable image")
        assert message.count(str(path)) == 1  # the path once, and all in one line
        assert "\n" not in message


def test_a_missing_frame_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match=r"gone\.jpg: not a readable image \(No such file or directory\)"):
        read_frames([tmp_path / "gone.jpg"])


def test_a_folder_named_like_a_frame(tmp_path: Path) -> None:
    (tmp_path / "frame_1.jpg").mkdir()
    with pytest.raises(ClipError, match=r"frame_1\.jpg: not a readable image \(Is a directory\)"):
        check_frames([tmp_path / "frame_1.jpg"])


def test_frames_of_two_sizes(tmp_path: Path) -> None:
    paths = [tmp_path / f"frame_{number}.png" for number in range(3)]
    for path, (height, width) in zip(paths, [(40, 48), (40, 48), (20, 24)], strict=True):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    with pytest.raises(ClipError, match=r"two sizes, frame_0\.png has 48x40 pixels, frame_2\.png has 24x20"):
        check_frames(paths)
    with pytest.raises(ClipError, match="two sizes"):
        read_frames(paths)
    check_frames(paths[:2])
    assert read_frames(paths, (16, 16)).shape == (3, 16, 16, 3)  # squeezed to one size they can be stacked


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_8_bits_are_refused_rather_than_read_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("frame.png" if mode == "I;16" else "frame.tif")
    Image.new(mode, (20, 20), 3000).save(path)
    with pytest.raises(ClipError, match="more than 8 bits"):
        check_frames([path])
    with pytest.raises(ClipError, match="more than 8 bits"):
        read_frames([path])


def test_damaged_metadata_is_no_concern_of_a_users_and_later_warnings_are_heard(tmp_path: Path) -> None:
    image = Image.new("RGB", (640, 480), (90, 60, 30))
    exif = Image.Exif()
    exif[0x011A] = 72.0
    image.save(tmp_path / "0.jpg", exif=exif)
    content = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "0.jpg").write_bytes(content.replace(b"MM\x00*\x00\x00\x00\x08", b"MM\x00*\x00\x00\xff\x08"))
    with pytest.warns(UserWarning, match="EXIF"), Image.open(tmp_path / "0.jpg"):
        pass
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        for read in pool.map(lambda _: read_frames([tmp_path / "0.jpg"]), range(40)):
            assert read.shape == (1, 480, 640, 3)
        list(pool.map(check_frames, [[tmp_path / "0.jpg"]] * 40))
    assert warnings.filters == before

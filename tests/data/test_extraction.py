from __future__ import annotations

import errno
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tillwatch.clip_spec import FrameStep, Roi
from tillwatch.data import extraction as extraction_module
from tillwatch.data.catalog import find_clips
from tillwatch.data.extraction import ExtractionReport, extract
from tillwatch.data.frames import list_frames, read_frames
from tillwatch.data.provenance import Extraction, read_extraction
from tillwatch.data.video import READING, decode_video, read_video, to_image
from tillwatch.errors import ClipError, ConfigError, DataError, RunError
from tillwatch.files import read_csv, write_csv, write_json

MakeVideo = Callable[..., Path]
FrameNumbers = Callable[[Any], list[int]]

ALL = Extraction(step=FrameStep())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, and its content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def frames_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rows_of(dst: Path) -> dict[str, dict[str, str]]:
    return {row["path"]: row for row in read_csv(dst / "clips.csv")}


@pytest.fixture
def src(tmp_path: Path, make_grey_video: MakeVideo) -> Path:
    """``theft/a.mp4`` with 7 frames at 10 a second, ``normal/b.mp4`` with 12 at 12."""
    root = tmp_path / "videos"
    make_grey_video(root / "theft/a.mp4", num_frames=7, fps=10)
    make_grey_video(root / "normal/b.mp4", num_frames=12, fps=12)
    return root


@pytest.fixture
def dst(tmp_path: Path) -> Path:
    return tmp_path / "made" / "frames"


# --- which frames, how they are written --------------------------------------------------------------


def test_every_frame_under_its_number(src: Path, dst: Path, frame_numbers: FrameNumbers) -> None:
    progress: list[tuple[int, int]] = []
    report = extract(src, dst, ALL, on_clip=lambda done, total: progress.append((done, total)))
    assert report == ExtractionReport(written=("normal/b", "theft/a"), done_before=(), skipped=(), notes=())
    assert progress == [(1, 2), (2, 2)]
    assert sorted(path.name for path in dst.iterdir()) == ["clips.csv", "extraction.json", "normal", "theft"]
    assert frames_in(dst / "theft") == ["a"]
    assert frames_in(dst / "theft/a") == [f"frame_{number:06d}.jpg" for number in range(7)]
    assert frames_in(dst / "normal/b") == [f"frame_{number:06d}.jpg" for number in range(12)]
    assert frame_numbers(read_frames(list_frames(dst / "normal/b"))) == list(range(12))


@pytest.mark.parametrize(
    ("step", "theft", "normal"),
    [
        (FrameStep(every=3), [0, 3, 6], [0, 3, 6, 9]),
        (FrameStep(every=7), [0], [0, 7]),
        (FrameStep(every=100), [0], [0]),
        (FrameStep(fps=4), [0, 2, 4, 6], [0, 3, 6, 9]),  # every 2nd of 10 a second, every 3rd of 12
        (FrameStep(fps=100), list(range(7)), list(range(12))),
    ],
)
def test_steps(
    src: Path, dst: Path, frame_numbers: FrameNumbers, step: FrameStep, theft: list[int], normal: list[int]
) -> None:
    extract(src, dst, Extraction(step=step))
    assert frame_numbers(read_frames(list_frames(dst / "theft/a"))) == theft
    assert frame_numbers(read_frames(list_frames(dst / "normal/b"))) == normal
    assert frames_in(dst / "theft/a") == [f"frame_{number:06d}.jpg" for number in range(len(theft))]


def test_clips_csv_as_written(src: Path, dst: Path) -> None:
    extract(src, dst, Extraction(step=FrameStep(every=3)))
    assert (dst / "clips.csv").read_text(encoding="utf-8") == (
        "path,label,group,every,fps,seconds,source\n"
        f"normal/b,normal,,3,4,1.000,{(src / 'normal/b.mp4').resolve()}\n"
        f"theft/a,theft,,3,3.333333,0.700,{(src / 'theft/a.mp4').resolve()}\n"
    )


def test_steps_are_understood_when_the_frames_are_used(src: Path, dst: Path) -> None:
    extract(src, dst, Extraction(step=FrameStep(every=2)))
    normal, theft = find_clips(dst, num_frames=2, step=FrameStep(every=4)).clips
    assert (normal.num_frames, normal.every, normal.fps, normal.frame_step) == (6, 2, 6.0, 2)
    assert (theft.num_frames, theft.every, theft.fps, theft.frame_step) == (4, 2, 5.0, 2)


def as_jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.mark.parametrize("quality", [50, 92])
def test_quality(tmp_path: Path, make_video: MakeVideo, dst: Path, quality: int) -> None:
    video = make_video(tmp_path / "videos/theft/a.mp4", num_frames=3)
    extract(tmp_path / "videos", dst, Extraction(step=FrameStep(), quality=quality))
    expected = Image.fromarray(read_video(video, 3)[2])
    assert (dst / "theft/a/frame_000002.jpg").read_bytes() == as_jpeg(expected, quality)


@pytest.mark.parametrize(
    ("height", "width", "short_side", "expected"),
    [
        (40, 60, 20, (20, 30)),
        (60, 40, 20, (30, 20)),
        (40, 40, 20, (20, 20)),
        (40, 60, 40, (40, 60)),
        (40, 60, 256, (40, 60)),  # never enlarged
        (42, 60, 16, (16, 23)),
    ],
)
def test_short_side(
    tmp_path: Path,
    make_grey_video: MakeVideo,
    dst: Path,
    height: int,
    width: int,
    short_side: int,
    expected: tuple[int, int],
) -> None:
    make_grey_video(tmp_path / "videos/theft/a.mp4", num_frames=2, height=height, width=width)
    extract(tmp_path / "videos", dst, Extraction(step=FrameStep(), short_side=short_side))
    assert read_frames(list_frames(dst / "theft/a")).shape == (2, *expected, 3)


def test_shrinking_averages(tmp_path: Path, make_video: MakeVideo, dst: Path) -> None:
    video = make_video(tmp_path / "videos/theft/a.mp4", num_frames=1, height=160, width=240)
    extract(tmp_path / "videos", dst, Extraction(step=FrameStep(), short_side=16, quality=95))
    whole = np.asarray(to_image(next(decode_video(video))), np.float64)
    averaged = whole.reshape(16, 10, 24, 10, 3).mean((1, 3))
    written = read_frames(list_frames(dst / "theft/a"))[0]
    # JPEG and the filter's overlap cost a few levels; picking single pixels of this grain costs over 10.
    assert np.abs(written - averaged).mean() < 4


@pytest.mark.parametrize(("short_side", "size"), [(60, (60, 90)), (240, (240, 360)), (600, (240, 360))])
def test_extracting_changes_no_colour(
    tmp_path: Path, make_video: MakeVideo, dst: Path, short_side: int, size: tuple[int, int]
) -> None:
    video = make_video(tmp_path / "videos/theft/a.mp4", num_frames=3, height=240, width=360)
    extract(tmp_path / "videos", dst, Extraction(step=FrameStep(), short_side=short_side, quality=95))
    off = read_frames(list_frames(dst / "theft/a")) - read_video(video, 3, resize=size).astype(float)
    assert np.abs(off.mean((0, 1, 2))).max() < 0.3  # JPEG itself; FFmpeg's fast conversion takes off more than one


def test_roi_is_cut_out_before_shrinking(tmp_path: Path, make_video: MakeVideo, dst: Path) -> None:
    video = make_video(tmp_path / "videos/theft/a.mp4", num_frames=3, height=40, width=48)
    extract(tmp_path / "videos", dst, Extraction(step=FrameStep(), roi=Roi.parse("0.5,0.25,0.5,0.5")))
    expected = to_image(list(decode_video(video))[1]).crop((24, 10, 48, 30))
    assert (dst / "theft/a/frame_000001.jpg").read_bytes() == as_jpeg(expected, quality=92)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 15}, "--short-side is 15"),
        ({"short_side": 0}, "--short-side is 0"),
        ({"quality": 0}, "--quality is 0"),
        ({"quality": 96}, "--quality is 96"),
    ],
)
def test_senseless_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Extraction(step=FrameStep(), **options)


# --- names and groups --------------------------------------------------------------------------------


def test_groups_are_carried_over(src: Path, dst: Path) -> None:
    write_csv(
        src / "clips.csv",
        ("path", "label", "group"),
        [
            {"path": "theft/a.mp4", "label": "theft", "group": "Montag, früh"},
            {"path": "normal/b.mp4", "label": "normal", "group": "Dienstag"},
        ],
    )
    extract(src, dst, ALL)
    assert {name: row["group"] for name, row in rows_of(dst).items()} == {
        "theft/a": "Montag, früh",
        "normal/b": "Dienstag",
    }
    catalog = find_clips(dst, num_frames=2)
    assert [clip.group for clip in catalog.clips] == ["Dienstag", "Montag, früh"]
    assert not catalog.own_groups


def test_groups_given_later_arrive_without_extracting_again(src: Path, dst: Path) -> None:
    extract(src, dst, ALL)
    write_csv(
        src / "clips.csv", ("path", "label", "group"), [{"path": "theft/a.mp4", "label": "theft", "group": "monday"}]
    )
    report = extract(src, dst, ALL)
    assert report.done_before == ("normal/b", "theft/a")
    assert rows_of(dst)["theft/a"]["group"] == "monday"


def test_two_videos_of_one_stem_keep_their_suffix(src: Path, dst: Path, make_grey_video: MakeVideo) -> None:
    make_grey_video(src / "theft/a.mkv", num_frames=3)
    make_grey_video(src / "normal/a.mp4", num_frames=4)  # of another class: no conflict
    report = extract(src, dst, ALL)
    assert report.written == ("normal/a", "normal/b", "theft/a.mkv", "theft/a.mp4")
    counts = {name: len(frames_in(dst / name)) for name in report.written}
    assert counts == {"normal/a": 4, "normal/b": 12, "theft/a.mkv": 3, "theft/a.mp4": 7}


def test_a_video_that_joins_one_of_its_stem_later(src: Path, dst: Path, make_grey_video: MakeVideo) -> None:
    # Were a.mp4 extracted once more under its longer name, the same film would be in the data twice.
    extract(src, dst, ALL)
    make_grey_video(src / "theft/a.mkv", num_frames=3)
    extract(src, dst, ALL)
    sources = sorted(Path(row["source"]).name for row in rows_of(dst).values())
    assert sources == ["a.mkv", "a.mp4", "b.mp4"]
    assert sorted(len(frames_in(folder)) for folder in (dst / "theft").iterdir()) == [3, 7]


@pytest.mark.parametrize("name", ["größe ö", "кража 1", "盗み", "clip 1 [links]", "a.b c", "x*?"])
def test_names_with_spaces_brackets_and_non_ascii_letters(
    tmp_path: Path, make_grey_video: MakeVideo, dst: Path, name: str
) -> None:
    make_grey_video(tmp_path / f"videos/Überfall am Tag/{name}.mp4", num_frames=3)
    report = extract(tmp_path / "videos", dst, ALL)
    assert report.written == (f"Überfall am Tag/{name}",)
    assert len(frames_in(dst / "Überfall am Tag" / name)) == 3
    assert list(rows_of(dst)) == [f"Überfall am Tag/{name}"]
    assert find_clips(dst, num_frames=3).class_counts == {"Überfall am Tag": 1}


# --- interrupted, resumed, repeated ------------------------------------------------------------------


def test_clips_that_are_done_are_left_as_they_are(src: Path, dst: Path, make_grey_video: MakeVideo) -> None:
    extract(src, dst, ALL)
    marked = dst / "theft/a/frame_000003.jpg"
    marked.write_bytes(b"not touched again")
    make_grey_video(src / "theft/c.mp4", num_frames=4)
    report = extract(src, dst, ALL)
    assert report.written == ("theft/c",)
    assert report.done_before == ("normal/b", "theft/a")
    assert marked.read_bytes() == b"not touched again"
    assert list(rows_of(dst)) == ["normal/b", "theft/a", "theft/c"]


def test_rows_of_videos_that_are_gone_stay(src: Path, dst: Path) -> None:
    extract(src, dst, ALL)
    before = rows_of(dst)["theft/a"]
    shutil.rmtree(src / "theft")
    extract(src, dst, ALL)
    assert rows_of(dst)["theft/a"] == before


def interrupt_at_frame(monkeypatch: pytest.MonkeyPatch, video: str, number: int, error: BaseException) -> None:
    """Makes decoding one video raise when it reaches a frame."""

    def decode(path: Path, threads: int = 0) -> Iterator[av.VideoFrame]:
        for position, frame in enumerate(decode_video(path, threads)):
            if path.name == video and position == number:
                raise error
            yield frame

    monkeypatch.setattr(extraction_module, "decode_video", decode)


def test_an_interrupted_run_leaves_no_half_clip_and_is_gone_on_with(
    src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupt_at_frame(monkeypatch, "a.mp4", 4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        extract(src, dst, ALL)
    assert frames_in(dst / "normal") == ["b"]  # was done before
    assert frames_in(dst / "theft") == []
    monkeypatch.undo()
    report = extract(src, dst, ALL)
    assert (report.written, report.done_before) == (("theft/a",), ("normal/b",))
    extract(src, tmp_path / "in one go", ALL)
    assert tree(dst) == tree(tmp_path / "in one go")


def test_frames_appear_under_their_name_only_when_all_are_there(
    src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def decode(path: Path, threads: int = 0) -> Iterator[av.VideoFrame]:
        for frame in decode_video(path, threads):
            seen.append([entry.name for entry in (dst / "theft").glob("[!.]*")])
            yield frame

    shutil.rmtree(src / "normal")
    monkeypatch.setattr(extraction_module, "decode_video", decode)
    extract(src, dst, ALL)
    assert seen == [[]] * 7
    assert frames_in(dst / "theft") == ["a"]


@pytest.mark.parametrize("name", ["a", "clip 1 [links]", "x*?"])
def test_what_a_killed_run_left_is_cleaned_up(tmp_path: Path, make_grey_video: MakeVideo, dst: Path, name: str) -> None:
    make_grey_video(tmp_path / f"videos/theft/{name}.mp4", num_frames=3)
    stale = dst / "theft" / f".{name}.abcd1234.part"
    stale.mkdir(parents=True)
    (stale / "frame_000000.jpg").touch()
    extract(tmp_path / "videos", dst, ALL)
    assert frames_in(dst / "theft") == [name]


def test_what_another_process_is_writing_is_left_alone(src: Path, dst: Path) -> None:
    # With several workers, a.mp4 and a.b.mp4 are under way at the same time.
    others = dst / "theft/.a.b.abcd1234.part"
    others.mkdir(parents=True)
    (others / "frame_000000.jpg").touch()
    extract(src, dst, ALL)
    assert frames_in(others) == ["frame_000000.jpg"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Extraction(step=FrameStep(every=2)), "with another step;"),
        (Extraction(step=FrameStep(), short_side=128), "with another short_side;"),
        (Extraction(step=FrameStep(), quality=80), "with another quality;"),
        (Extraction(step=FrameStep(), roi=Roi.parse("0,0,1,0.5")), "with another roi;"),
        (Extraction(step=FrameStep(fps=5), quality=80), "with another step and quality;"),
    ],
)
def test_other_settings_are_refused(src: Path, dst: Path, other: Extraction, message: str) -> None:
    extract(src, dst, ALL)
    before = tree(dst)
    with pytest.raises(RunError, match=message):
        extract(src, dst, other)
    assert tree(dst) == before


@pytest.mark.parametrize("said", [{"reading": READING + 1}, {"reading": READING - 1}, {}])
def test_frames_converted_by_another_version_are_not_mixed_with_ours(
    src: Path, dst: Path, said: dict[str, int]
) -> None:
    extract(src, dst, ALL)
    settings = json.loads((dst / "extraction.json").read_text())
    assert settings.pop("reading") == READING
    (dst / "extraction.json").write_text(json.dumps({**settings, **said}))
    before = tree(dst)
    with pytest.raises(RunError, match="another version of tillwatch extracted"):
        extract(src, dst, ALL)
    assert tree(dst) == before


@pytest.mark.parametrize(
    "extraction",
    [
        Extraction(step=FrameStep(every=5), short_side=128, quality=80, roi=Roi.parse("0.25,0,0.5,1")),
        Extraction(step=FrameStep(fps=7.5)),
    ],
)
def test_settings_are_kept_beside_the_frames(src: Path, dst: Path, extraction: Extraction) -> None:
    extract(src, dst, extraction)
    assert read_extraction(dst) == extraction


def test_no_settings_beside_frames_of_other_making(tmp_path: Path) -> None:
    assert read_extraction(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"step": {"every": 1, "fps": null}, "short_side": 256, "quality": 92}',
        '{"step": {"every": 0, "fps": null}, "short_side": 256, "quality": 92, "roi": null}',
        '{"step": {"every": 1, "fps": null}, "short_side": "x", "quality": 92, "roi": null}',
        '{"step": {"every": 1, "fps": null}, "short_side": 256, "quality": 92, "roi": "0,0,1,1"}',
    ],
)
def test_damaged_settings(tmp_path: Path, content: str) -> None:
    (tmp_path / "extraction.json").write_text(content)
    with pytest.raises(DataError, match=r"extraction\.json is damaged .*; extract again into another folder"):
        read_extraction(tmp_path)


# --- damaged videos, other troubles ------------------------------------------------------------------


def test_damaged_videos_are_named_and_the_others_go_on(
    src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch, make_grey_video: MakeVideo
) -> None:
    (src / "theft/empty.mp4").touch()
    (src / "theft/text.mp4").write_text("this is no video\n" * 50)
    late = make_grey_video(src / "normal/late.mp4", num_frames=9)
    error = ClipError(f"{late}: cannot be read as a video (Invalid data).")
    interrupt_at_frame(monkeypatch, "late.mp4", 5, error)
    report = extract(src, dst, ALL)
    assert report.written == ("normal/b", "theft/a")
    assert [(skip.name, skip.reason.split(" (")[0]) for skip in report.skipped] == [
        ("normal/late", "cannot be read as a video"),
        ("theft/empty", "the file is empty"),
        ("theft/text", "cannot be read as a video"),
    ]
    assert list(rows_of(dst)) == ["normal/b", "theft/a"]
    assert frames_in(dst / "normal") == ["b"]
    assert frames_in(dst / "theft") == ["a"]


def test_none_of_the_videos_can_be_read(tmp_path: Path, dst: Path) -> None:
    folder = tmp_path / "videos/theft"
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"{number}.mp4").touch()
    with pytest.raises(DataError, match=r"none of 2 videos could be extracted; the first, theft/0: the file is empty"):
        extract(tmp_path / "videos", dst, ALL)


def test_a_folder_of_frames_holds_no_video(frame_root: Path, dst: Path) -> None:
    with pytest.raises(DataError, match="holds no video in a class folder"):
        extract(frame_root, dst, ALL)
    assert not dst.exists()


def test_a_missing_source(tmp_path: Path, dst: Path) -> None:
    with pytest.raises(DataError, match="gone does not exist"):
        extract(tmp_path / "gone", dst, ALL)
    assert not dst.exists()


def test_what_else_lies_among_the_videos_is_named(src: Path, dst: Path) -> None:
    (src / "theft/notes.txt").touch()
    report = extract(src, dst, ALL)
    assert report.notes == ("1 (theft/notes.txt) left out: neither a video nor a frame folder.",)


def test_a_destination_that_is_a_file(src: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file cannot be written"):
        extract(src, tmp_path / "file", ALL)


def test_a_full_disk_ends_the_run_and_leaves_no_half_clip(
    src: Path, dst: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Image.Image.save

    def full(image: Image.Image, path: Path, **options: Any) -> None:
        if path.name == "frame_000003.jpg":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RunError, match=r"frames cannot be written \(No space left on device\)"):
        extract(src, dst, ALL)
    assert frames_in(dst / "normal") == []


def test_two_workers_give_the_same_as_one(src: Path, tmp_path: Path, make_grey_video: MakeVideo) -> None:
    make_grey_video(src / "theft/größe 1.mp4", num_frames=5)
    (src / "theft/empty.mp4").touch()
    step = Extraction(step=FrameStep(every=2))
    progress: list[tuple[int, int]] = []
    one = extract(src, tmp_path / "one", step)
    two = extract(src, tmp_path / "two", step, workers=2, on_clip=lambda done, total: progress.append((done, total)))
    assert one == two
    assert one.written == ("normal/b", "theft/a", "theft/größe 1")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_settings_written_by_hand_are_held_against_the_request(src: Path, dst: Path) -> None:
    dst.mkdir(parents=True)
    write_json(
        dst / "extraction.json",
        {"step": {"every": 1, "fps": None}, "short_side": 64, "quality": 92, "roi": None, "reading": READING},
    )
    with pytest.raises(RunError, match="with another short_side"):
        extract(src, dst, ALL)


def test_a_video_of_the_same_name_from_elsewhere_does_not_pass_for_the_one_extracted(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    for where, brightness in (("monday", 20), ("tuesday", 150)):
        make_video(tmp_path / where / "theft" / "a.mp4", brightness=brightness)
    make_video(tmp_path / "tuesday" / "theft" / "b.mp4")
    extract(tmp_path / "monday", tmp_path / "frames", Extraction(step=FrameStep()))
    report = extract(tmp_path / "tuesday", tmp_path / "frames", Extraction(step=FrameStep()))
    assert report.written == ("theft/b",)
    assert [skip.name for skip in report.skipped] == ["theft/a.mp4"]
    assert "holds the frames of" in report.skipped[0].reason
    sources = {row["path"]: Path(row["source"]).parent.parent.name for row in read_csv(tmp_path / "frames/clips.csv")}
    assert sources == {"theft/a": "monday", "theft/b": "tuesday"}
    # Moved as a whole, the same videos are the ones extracted.
    (tmp_path / "monday").rename(tmp_path / "archive")
    moved = extract(tmp_path / "archive", tmp_path / "frames", Extraction(step=FrameStep()))
    assert (moved.written, moved.done_before, moved.skipped) == ((), ("theft/a",), ())


def test_frame_folders_among_the_videos_are_named(
    tmp_path: Path, make_video: Callable[..., Path], make_frames: Callable[..., Path]
) -> None:
    make_video(tmp_path / "src" / "theft" / "a.mp4")
    make_frames(tmp_path / "src" / "theft" / "b")
    report = extract(tmp_path / "src", tmp_path / "frames", Extraction(step=FrameStep()))
    assert report.written == ("theft/a",)
    assert any("theft/b" in note and "folders of frames already" in note for note in report.notes)


def test_groups_and_columns_that_a_user_wrote_survive_extracting_again(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    make_video(tmp_path / "src" / "theft" / "a.mp4")
    extract(tmp_path / "src", tmp_path / "frames", Extraction(step=FrameStep()))
    rows = read_csv(tmp_path / "frames" / "clips.csv")
    columns = [*rows[0], "camera"]
    write_csv(tmp_path / "frames" / "clips.csv", columns, [{**rows[0], "group": "monday", "camera": "till 2"}])
    make_video(tmp_path / "src" / "theft" / "b.mp4")
    extract(tmp_path / "src", tmp_path / "frames", Extraction(step=FrameStep()))
    after = {row["path"]: row for row in read_csv(tmp_path / "frames" / "clips.csv")}
    assert (after["theft/a"]["group"], after["theft/a"]["camera"]) == ("monday", "till 2")
    assert (after["theft/b"]["group"], after["theft/b"]["camera"]) == ("", "")
    # What the source names counts more.
    write_csv(
        tmp_path / "src" / "clips.csv",
        ("path", "label", "group"),
        [{"path": "theft/a.mp4", "label": "theft", "group": "tuesday"}],
    )
    extract(tmp_path / "src", tmp_path / "frames", Extraction(step=FrameStep()))
    assert {r["path"]: r["group"] for r in read_csv(tmp_path / "frames" / "clips.csv")}["theft/a"] == "tuesday"


def test_a_video_that_changed_is_extracted_again(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    video = make_video(tmp_path / "src" / "theft" / "a.mp4", num_frames=6)
    extract(tmp_path / "src", tmp_path / "frames", Extraction(step=FrameStep()))
    video.unlink()
    make_video(video, num_frames=9)
    report = extract(tmp_path / "src", tmp_path / "frames", Extraction(step=FrameStep()))
    assert report.written == ("theft/a",)
    assert len(list_frames(tmp_path / "frames" / "theft" / "a")) == 9
    assert extract(tmp_path / "src", tmp_path / "frames", Extraction(step=FrameStep())).written == ()


def test_a_newer_video_of_a_name_whose_source_is_gone_does_not_pass_for_it(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    make_video(tmp_path / "card1" / "theft" / "IMG_0001.mp4", num_frames=6)
    make_video(tmp_path / "card1" / "theft" / "IMG_0002.mp4", num_frames=6)
    extract(tmp_path / "card1", tmp_path / "frames", Extraction(step=FrameStep()))
    before = (tmp_path / "frames" / "clips.csv").read_text(encoding="utf-8")
    shutil.rmtree(tmp_path / "card1")
    make_video(tmp_path / "card2" / "theft" / "IMG_0001.mp4", num_frames=6, brightness=150)
    with pytest.raises(DataError, match=r"IMG_0001 holds the frames of .*card1"):
        extract(tmp_path / "card2", tmp_path / "frames", Extraction(step=FrameStep()))
    assert (tmp_path / "frames" / "clips.csv").read_text(encoding="utf-8") == before


def test_a_run_that_extracts_nothing_leaves_nothing_that_binds_the_next(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    (tmp_path / "src" / "theft").mkdir(parents=True)
    (tmp_path / "src" / "theft" / "a.mp4").touch()
    with pytest.raises(DataError):
        extract(tmp_path / "src", tmp_path / "frames", Extraction(step=FrameStep(every=2)))
    make_video(tmp_path / "src" / "theft" / "b.mp4")
    assert extract(tmp_path / "src", tmp_path / "frames", Extraction(step=FrameStep(every=3))).written == ("theft/b",)


@pytest.mark.parametrize("inside", [".", "theft", "frames"])
def test_extracting_into_the_source_is_refused(tmp_path: Path, make_video: Callable[..., Path], inside: str) -> None:
    make_video(tmp_path / "theft" / "a.mp4")
    with pytest.raises(RunError, match="give another DST"):
        extract(tmp_path, tmp_path / inside, Extraction(step=FrameStep()))
    assert not (tmp_path / "clips.csv").exists()


@pytest.mark.parametrize("content", [b"path;label\n", b"path,label\na\xfc,b\n"])
def test_a_clips_csv_at_the_destination_that_is_none_is_refused(
    tmp_path: Path, make_video: Callable[..., Path], content: bytes
) -> None:
    make_video(tmp_path / "src" / "theft" / "a.mp4")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "clips.csv").write_bytes(content + b"x;y\n" if b";" in content else content)
    with pytest.raises(DataError, match="cannot be read as a list of clips"):
        extract(tmp_path / "src", tmp_path / "frames", Extraction(step=FrameStep()))


@pytest.mark.parametrize(("fps", "wanted"), [(11, 2), (12, 8), (25, 10), (50, 4), (30, 4)])
def test_frames_at_a_rate_can_be_used_at_that_rate(
    tmp_path: Path, make_video: Callable[..., Path], fps: int, wanted: float
) -> None:
    # 11 / 2 = 5.5 and the like: the rounded rate in clips.csv must not tip the balance the other way.
    make_video(tmp_path / "src" / "theft" / "a.mp4", num_frames=14, fps=fps)
    extract(tmp_path / "src", tmp_path / "frames", Extraction(step=FrameStep(fps=wanted)))
    catalog = find_clips(tmp_path / "frames", num_frames=2, step=FrameStep(fps=wanted))
    assert [clip.frame_step for clip in catalog.clips] == [1]

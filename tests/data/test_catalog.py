from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tillwatch.clip_spec import FrameStep
from tillwatch.data.catalog import (
    Catalog,
    Clip,
    Skip,
    describe_clip,
    expand_paths,
    find_clips,
    look_into,
    search_folder,
    too_many_skipped,
)
from tillwatch.errors import ClipError, ConfigError, DataError, TillwatchError
from tillwatch.files import write_csv

MakeFrames = Callable[..., Path]
MakeVideo = Callable[..., Path]


def names(catalog: Catalog) -> list[str]:
    return [clip.name for clip in catalog.clips]


def groups(catalog: Catalog) -> dict[str, str]:
    return {clip.name: clip.group for clip in catalog.clips}


def notes(catalog: Catalog) -> str:
    return "\n".join(catalog.notes)


def write_rows(root: Path, *rows: dict[str, Any]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_csv(root / "clips.csv", columns, rows)


@pytest.fixture
def small_root(tmp_path: Path, make_frames: MakeFrames) -> Path:
    """Class folders ``normal`` and ``theft`` with clips a and b of four frames each."""
    root = tmp_path / "data"
    for name in ("normal/a", "normal/b", "theft/a", "theft/b"):
        make_frames(root / name, num_frames=4)
    return root


SMALL = ["normal/a", "normal/b", "theft/a", "theft/b"]


def find(root: Path, classes: Sequence[str] | None = None, **options: Any) -> Catalog:
    return find_clips(root, classes, **{"num_frames": 4, **options})


# --- what is found -----------------------------------------------------------------------------------


def test_class_folders_of_frame_folders(tmp_path: Path, make_frames: MakeFrames) -> None:
    for name, num_frames in (("theft/clip10", 5), ("theft/clip9", 6), ("normal/x", 7)):
        make_frames(tmp_path / name, num_frames=num_frames)
    catalog = find(tmp_path)
    assert catalog.clips == (
        Clip(
            name="normal/x",
            path=tmp_path / "normal/x",
            label="normal",
            group="normal/x",
            is_video=False,
            num_frames=7,
            every=None,
            fps=None,
        ),
        Clip(
            name="theft/clip9",
            path=tmp_path / "theft/clip9",
            label="theft",
            group="theft/clip9",
            is_video=False,
            num_frames=6,
            every=None,
            fps=None,
        ),
        Clip(
            name="theft/clip10",
            path=tmp_path / "theft/clip10",
            label="theft",
            group="theft/clip10",
            is_video=False,
            num_frames=5,
            every=None,
            fps=None,
        ),
    )
    assert catalog.classes == ("normal", "theft")
    assert catalog.class_counts == {"normal": 1, "theft": 2}
    assert catalog.skipped == catalog.too_short == ()
    assert catalog.own_groups
    assert len(catalog.notes) == 1
    assert catalog.notes[0].startswith("nothing says which clips share a source, so each is its own group")


def test_class_folders_of_videos(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "theft/v1.mp4", num_frames=20, fps=10)
    make_video(tmp_path / "normal/v2.mkv", num_frames=6, fps=5)
    first, second = find(tmp_path, step=FrameStep(every=3), num_frames=2).clips
    assert (first.name, first.is_video, first.num_frames, first.every, first.fps) == (
        "normal/v2.mkv",
        True,
        6,
        1,
        5.0,
    )
    assert (first.frame_step, first.stepped_frames, first.seconds) == (3, 2, 1.2)
    assert (second.name, second.num_frames, second.fps, second.stepped_frames) == ("theft/v1.mp4", 20, 10.0, 7)


def test_a_rate_is_kept_for_each_source(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "theft/fast.mp4", num_frames=20, fps=20)
    make_video(tmp_path / "normal/slow.mp4", num_frames=20, fps=10)
    slow, fast = find(tmp_path, step=FrameStep(fps=5)).clips
    assert (slow.frame_step, slow.stepped_frames) == (2, 10)
    assert (fast.frame_step, fast.stepped_frames) == (4, 5)


def test_the_order_of_classes_is_the_one_given(small_root: Path) -> None:
    assert find(small_root, ["theft", "normal"]).classes == ("theft", "normal")
    assert find(small_root).classes == ("normal", "theft")


def test_frames_beside_their_video_count_once(small_root: Path, make_video: MakeVideo) -> None:
    make_video(small_root / "theft/a.mp4")
    catalog = find(small_root)
    assert names(catalog) == SMALL
    assert "theft/a.mp4 left out: its frames are there too, as theft/a." in notes(catalog)


def test_frames_beside_their_video_count_once_even_if_a_row_names_the_video(
    small_root: Path, make_video: MakeVideo
) -> None:
    # Twice in the data set, the same film could stand on two sides of the split.
    make_video(small_root / "theft/a.mp4")
    write_rows(small_root, {"path": "theft/a.mp4", "label": "theft", "group": "monday"})
    assert names(find(small_root)) == SMALL


def test_a_video_beside_a_folder_of_its_name_without_frames_is_used(small_root: Path, make_video: MakeVideo) -> None:
    make_video(small_root / "theft/c.mp4")
    (small_root / "theft/c").mkdir()
    assert names(find(small_root)) == [*SMALL, "theft/c.mp4"]


@pytest.mark.parametrize("label", ["Überfall", "Kasse 1 offen", "кража", "盗み"])
@pytest.mark.parametrize("clip", ["clip 1 (links)", "größe ö", "кражи", "レジ", "a'b;c&d"])
def test_names_with_spaces_and_non_ascii_letters(
    tmp_path: Path, make_frames: MakeFrames, label: str, clip: str
) -> None:
    make_frames(tmp_path / label / clip, num_frames=4)
    make_frames(tmp_path / "normal" / "x", num_frames=4)
    write_rows(
        tmp_path,
        {"path": f"{label}/{clip}", "label": label, "group": "Straße 1"},
        {"path": "normal/x", "label": "normal", "group": "b"},
    )
    catalog = find(tmp_path, [label, "normal"])
    assert groups(catalog)[f"{label}/{clip}"] == "Straße 1"
    assert catalog.class_counts == {label: 1, "normal": 1}
    assert catalog.notes == ()


def test_hidden_files_and_folders_are_nothing(small_root: Path, make_frames: MakeFrames, make_video: MakeVideo) -> None:
    make_frames(small_root / ".trash/x")
    make_frames(small_root / "theft/.c.abcd1234.part")  # what an interrupted extraction leaves
    make_video(small_root / "theft/.d.mp4")
    (small_root / "theft/a/.DS_Store").touch()
    (small_root / ".DS_Store").touch()
    catalog = find(small_root)
    assert names(catalog) == SMALL
    assert len(catalog.notes) == 1  # on groups
    assert catalog.skipped == ()


# --- what is left out, and said ----------------------------------------------------------------------


def test_other_files_are_named(small_root: Path) -> None:
    (small_root / "readme.txt").touch()
    (small_root / "theft/list.xlsx").touch()
    (small_root / "theft/a/notes.txt").touch()
    catalog = find(small_root)
    assert names(catalog) == SMALL
    assert (
        "3 (readme.txt, theft/a/notes.txt, theft/list.xlsx) left out: neither a video nor a frame folder."
        in catalog.notes
    )


def test_many_other_files_are_counted_whole_and_ten_are_named(small_root: Path) -> None:
    for number in range(12):
        (small_root / f"theft/a/{number}.txt").touch()
    named = ", ".join(f"theft/a/{number}.txt" for number in range(10))
    assert f"12 ({named}, ...) left out: neither a video nor a frame folder." in find(small_root).notes


def test_our_own_files_are_not_reported(small_root: Path) -> None:
    write_rows(small_root, {"path": "theft/a", "label": "theft", "group": "g"})
    (small_root / "extraction.json").write_text("{}")
    assert "neither a video" not in notes(find(small_root))


def test_a_folder_without_images_among_the_clips(small_root: Path) -> None:
    (small_root / "theft/c").mkdir()
    (small_root / "theft/c/notes.txt").touch()
    catalog = find(small_root)
    assert names(catalog) == SMALL
    assert catalog.skipped == (Skip("theft/c", "the folder holds no image"),)
    assert "1 (theft/c/notes.txt) left out" in notes(catalog)


def test_a_class_folder_that_is_not_asked_for(small_root: Path, make_frames: MakeFrames) -> None:
    make_frames(small_root / "unsorted/x")
    catalog = find(small_root, ["theft", "normal"])
    assert names(catalog) == SMALL
    assert "folder 'unsorted' left out: it is none of the classes theft, normal." in catalog.notes


def test_classes_that_may_be_absent(small_root: Path) -> None:
    search = search_folder(small_root, ["fire", "theft"], absent_ok=True)
    assert [found.name for found in search.found] == ["theft/a", "theft/b"]
    assert search.classes == ("theft",)
    assert f"no clip of 'fire' is in {small_root}." in search.notes
    with pytest.raises(DataError, match=r"holds none of the classes asked for; it has normal, theft"):
        search_folder(small_root, ["fire", "fall"], absent_ok=True)


def test_damaged_clips_are_named_and_the_others_go_on(small_root: Path, make_video: MakeVideo) -> None:
    jpeg = small_root / "theft/b/frame_000003.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-600])
    shutil.copytree(small_root / "normal/a", small_root / "normal/c")
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(small_root / "normal/c/frame_000002.jpg")
    (small_root / "theft/empty.mp4").touch()
    (small_root / "theft/text.mp4").write_text("this is no video\n" * 50)
    make_video(small_root / "theft/whole.mp4")
    cut = make_video(small_root / "theft/cut.mp4")
    cut.write_bytes(cut.read_bytes()[:-2000])  # the index stands at the end
    catalog = find(small_root)
    assert names(catalog) == ["normal/a", "normal/b", "theft/a", "theft/whole.mp4"]
    reasons = {skip.name: skip.reason for skip in catalog.skipped}
    assert list(reasons) == ["normal/c", "theft/b", "theft/cut.mp4", "theft/empty.mp4", "theft/text.mp4"]
    assert reasons["normal/c"].startswith("frames of two sizes, frame_000000.jpg has 48x40 pixels")
    assert "frame_000003.jpg: not a readable image" in reasons["theft/b"]
    assert reasons["theft/empty.mp4"] == "the file is empty"
    assert reasons["theft/text.mp4"].startswith("cannot be read as a video (")
    assert reasons["theft/cut.mp4"].startswith("cannot be read as a video (")
    assert not any("\n" in reason for reason in reasons.values())


def test_only_the_frames_that_will_be_used_are_checked(small_root: Path) -> None:
    (small_root / "theft/a/frame_000001.jpg").write_bytes(b"garbage")
    assert names(find(small_root, num_frames=2)) == SMALL
    assert [skip.name for skip in find(small_root, num_frames=4).skipped] == ["theft/a"]


def test_a_clip_whose_rate_is_unknown_is_left_out_when_a_rate_is_wanted(small_root: Path) -> None:
    write_rows(small_root, {"path": "theft/a", "label": "theft", "every": "2", "fps": ""})
    catalog = find(small_root, step=FrameStep(fps=5))
    assert names(catalog) == ["normal/a", "normal/b", "theft/b"]
    assert [skip.name for skip in catalog.skipped] == ["theft/a"]
    assert catalog.skipped[0].reason.startswith("its frame rate is unknown")


def test_nothing_usable_at_all(tmp_path: Path) -> None:
    for name in ("theft", "normal"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").touch()
    with pytest.raises(DataError, match="empty"):
        find(tmp_path)


# --- links -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "target"),
    [
        pytest.param("loop", "loop", id="class level, to itself"),
        pytest.param("loop", ".", id="class level, to the data folder"),
        pytest.param("loop", "..", id="class level, to the folder above"),
        pytest.param("theft/loop", "loop", id="clip level, to itself"),
        pytest.param("theft/loop", ".", id="clip level, to its class folder"),
        pytest.param("theft/loop", "..", id="clip level, to the data folder"),
    ],
)
def test_a_link_that_leads_back_is_named_and_left_out(small_root: Path, link: str, target: str) -> None:
    (small_root / link).symlink_to(target)
    catalog = find(small_root)
    assert names(catalog) == SMALL
    assert catalog.classes == ("normal", "theft")
    assert any(link in note and "left out" in note for note in catalog.notes)
    assert catalog.skipped == ()  # nothing is damaged


def test_links_to_clips_elsewhere_are_followed(small_root: Path, tmp_path: Path, make_frames: MakeFrames) -> None:
    (small_root / "theft/linked").symlink_to(make_frames(tmp_path / "elsewhere"))
    assert names(find(small_root)) == [*SMALL, "theft/linked"]


def test_a_video_name_that_links_to_itself(small_root: Path) -> None:
    (small_root / "theft/loop.mp4").symlink_to("loop.mp4")
    catalog = find(small_root)
    assert names(catalog) == SMALL
    assert [skip.name for skip in catalog.skipped] == ["theft/loop.mp4"]


# --- clips.csv ---------------------------------------------------------------------------------------


def test_groups_from_clips_csv(small_root: Path) -> None:
    write_rows(
        small_root,
        {"path": "theft/a", "label": "theft", "group": "monday"},
        {"path": "./theft/b", "label": "", "group": "monday"},  # a label that is not given does not contradict
        {"path": "normal\\a", "label": "normal", "group": "tuesday"},  # as written on Windows
        {"path": "normal/b", "label": "normal", "group": ""},
    )
    catalog = find(small_root)
    assert groups(catalog) == {
        "theft/a": "monday",
        "theft/b": "monday",
        "normal/a": "tuesday",
        "normal/b": "normal/b",
    }
    assert not catalog.own_groups
    assert catalog.notes == ("1 (normal/b) named no group by clips.csv: each is its own group.",)


def test_clips_csv_with_a_byte_order_mark(small_root: Path) -> None:
    (small_root / "clips.csv").write_text(
        "\ufeffpath,label,group\r\n" + "".join(f"{name},,g\r\n" for name in SMALL), encoding="utf-8"
    )
    assert set(groups(find(small_root)).values()) == {"g"}


def test_rows_for_clips_lying_elsewhere(small_root: Path, make_frames: MakeFrames, make_video: MakeVideo) -> None:
    make_frames(small_root / "recorder/day 1/x", num_frames=5)
    make_video(small_root / "recorder/day 1/y.mp4", num_frames=6)
    write_rows(
        small_root,
        {"path": "recorder/day 1/x", "label": "theft", "group": "day 1"},
        {"path": "recorder/day 1/y.mp4", "label": "fire", "group": "day 1"},
        {"path": "recorder/day 1/gone", "label": "theft", "group": "day 1"},
    )
    catalog = find(small_root, ["theft", "normal", "fire"])
    assert names(catalog) == ["normal/a", "normal/b", "recorder/day 1/x", "recorder/day 1/y.mp4", "theft/a", "theft/b"]
    labels = {clip.name: clip.label for clip in catalog.clips}
    assert (labels["recorder/day 1/x"], labels["recorder/day 1/y.mp4"]) == ("theft", "fire")
    assert "1 (recorder/day 1/gone) left out: listed in clips.csv but not there." in catalog.notes
    assert catalog.skipped == ()


def test_a_video_in_the_data_folder_itself_that_a_row_labels(small_root: Path, make_video: MakeVideo) -> None:
    make_video(small_root / "x.mp4")
    write_rows(small_root, {"path": "x.mp4", "label": "theft", "group": "g"})
    catalog = find(small_root)
    assert names(catalog) == [*SMALL, "x.mp4"]
    assert "neither a video" not in notes(catalog)  # it is used, so it is not left out


@pytest.mark.parametrize("label", ["theft", ""])
def test_rows_for_clips_that_are_not_there_are_named(small_root: Path, label: str) -> None:
    write_rows(small_root, {"path": "theft/gone", "label": label, "group": "g"})
    catalog = find(small_root)
    assert names(catalog) == SMALL
    assert "1 (theft/gone) left out: listed in clips.csv but not there." in catalog.notes


@pytest.mark.parametrize("path", ["theft/a/", "theft//a", "theft/./a", "./theft/a"])
def test_another_spelling_of_a_path_is_not_another_clip(small_root: Path, path: str) -> None:
    # The same film under two names could stand on two sides of the split.
    write_rows(small_root, {"path": path, "label": "theft", "group": "monday"})
    catalog = find(small_root)
    assert names(catalog) == SMALL
    assert groups(catalog)["theft/a"] == "monday"


def test_a_row_without_a_path_is_refused(small_root: Path) -> None:
    write_rows(small_root, {"path": "", "label": "theft", "group": "g"})
    with pytest.raises(DataError, match=r"clips\.csv"):
        find(small_root)


def test_a_label_that_contradicts_the_folder(small_root: Path) -> None:
    write_rows(small_root, {"path": "theft/a", "label": "normal"})
    with pytest.raises(DataError, match=r"clips\.csv gives theft/a the label 'normal', but it lies in 'theft'"):
        find(small_root)


@pytest.mark.parametrize("second", ["theft/a", "./theft/a", "theft\\a"])
def test_a_clip_listed_twice(small_root: Path, second: str) -> None:
    write_rows(
        small_root,
        {"path": "theft/a", "label": "theft", "group": "g"},
        {"path": second, "label": "theft", "group": "h"},
    )
    with pytest.raises(DataError, match=r"clips\.csv: theft/a stands there twice"):
        find(small_root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"name,class\ntheft/a,theft\n", "must name the columns path and label", id="other columns"),
        pytest.param(b"path,label,Group\ntheft/a,theft,x\n", "has a column 'Group'; write 'group'", id="capitals"),
        pytest.param(b"path,label,label\ntheft/a,theft,x\n", "has the column 'label' twice", id="a column twice"),
        pytest.param("path,label\ndiebstähle/a,x\n".encode("latin-1"), "cannot be read", id="not UTF-8"),
        pytest.param(b'path,label\n"' + b"x" * 200_000 + b",theft\n", "cannot be read", id="an open quotation mark"),
    ],
)
def test_a_clips_csv_that_cannot_be_used(small_root: Path, content: bytes, message: str) -> None:
    (small_root / "clips.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"clips\.csv: .*{message}"):
        find(small_root)


def test_step_and_rate_of_stored_frames(small_root: Path) -> None:
    write_rows(small_root, {"path": "theft/a", "label": "theft", "group": "", "every": "5", "fps": "5"})
    clip = find(small_root, step=FrameStep(every=10), num_frames=2).clips[2]
    assert (clip.name, clip.every, clip.fps, clip.frame_step) == ("theft/a", 5, 5.0, 2)
    assert (clip.stepped_frames, clip.seconds) == (2, 0.8)


def test_frames_that_were_not_extracted_leave_the_clip_out(small_root: Path) -> None:
    write_rows(small_root, {"path": "theft/a", "label": "theft", "every": "5", "fps": "5"})
    catalog = find(small_root, step=FrameStep(every=3))
    assert [skip.name for skip in catalog.skipped] == ["theft/a"]
    assert "every 5. was extracted" in catalog.skipped[0].reason


@pytest.mark.parametrize("column", ["every", "fps"])
@pytest.mark.parametrize("value", ["two", "0", "-1", "nan", "inf", "0.5"])
def test_senseless_numbers_in_clips_csv_leave_the_clip_out(small_root: Path, column: str, value: str) -> None:
    row = {"path": "theft/a", "label": "theft", "every": "2", "fps": "5", column: value}
    write_rows(small_root, row)
    catalog = find(small_root, step=FrameStep(every=2))
    if (column, value) == ("fps", "0.5"):
        assert names(catalog) == SMALL  # a frame every two seconds: slow, and possible
        return
    assert [skip.name for skip in catalog.skipped] == ["theft/a"]
    assert f"{column} of theft/a is {value!r}" in catalog.skipped[0].reason


# --- groups by pattern -------------------------------------------------------------------------------


@pytest.fixture
def till_root(tmp_path: Path, make_frames: MakeFrames) -> Path:
    root = tmp_path / "tills"
    for name in ("normal/till1_0815", "normal/till2_0900", "theft/till1_1000", "theft/unknown"):
        make_frames(root / name, num_frames=4)
    return root


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        pytest.param(r"(till\d+)_", ["till1", "till2", "till1"], id="its first group"),
        pytest.param(r"till(\d+)_(\d+)", ["1", "2", "1"], id="its first group of two"),
        pytest.param(r"till\d", ["till1", "till2", "till1"], id="all that it matched"),
        pytest.param(r"_\d\d", ["_08", "_09", "_10"], id="anywhere in the name"),
    ],
)
def test_group_pattern(till_root: Path, pattern: str, expected: list[str]) -> None:
    catalog = find(till_root, group_pattern=pattern)
    assert [clip.group for clip in catalog.clips] == [*expected, "theft/unknown"]
    assert not catalog.own_groups
    assert catalog.notes == ("1 (theft/unknown) named no group by --group-pattern: each is its own group.",)


def test_group_pattern_looks_at_the_clips_own_name_and_wins_over_clips_csv(till_root: Path) -> None:
    write_rows(till_root, {"path": "theft/unknown", "label": "theft", "group": "g"})
    catalog = find(till_root, group_pattern=r"t[a-z]+")  # "theft" stands in the folder's name only
    assert groups(catalog)["theft/unknown"] == "theft/unknown"
    assert groups(catalog)["theft/till1_1000"] == "till"


def test_a_group_pattern_that_matches_nothing(till_root: Path) -> None:
    with pytest.raises(ConfigError, match=r"--group-pattern 'camera\\\\d' matches none .* such as 'till1_0815'"):
        find(till_root, group_pattern=r"camera\d")


@pytest.mark.parametrize("pattern", ["(till", "[", "*"])
def test_a_group_pattern_that_is_no_regular_expression(till_root: Path, pattern: str) -> None:
    with pytest.raises(ConfigError, match="is no regular expression"):
        find(till_root, group_pattern=pattern)


# --- short clips -------------------------------------------------------------------------------------


@pytest.fixture
def short_root(small_root: Path, make_frames: MakeFrames) -> Path:
    make_frames(small_root / "theft/short", num_frames=3)
    return small_root


def test_short_clips_are_kept_and_named(short_root: Path) -> None:
    catalog = find(short_root, short="repeat")
    assert names(catalog) == [*SMALL, "theft/short"]
    assert "fewer than 4 frames in 1 (theft/short (3)): kept, frames repeat." in catalog.notes
    assert catalog.too_short == ()


def test_short_clips_left_out_on_request(short_root: Path) -> None:
    catalog = find(short_root, short="skip")
    assert names(catalog) == SMALL
    assert catalog.too_short == (Skip("theft/short", "short: 3 of 4 frames"),)
    assert catalog.skipped == ()  # left out, but not damaged
    assert "fewer than 4 frames in 1 (theft/short (3)): left out." in catalog.notes


def test_short_clips_as_an_error(short_root: Path) -> None:
    with pytest.raises(DataError, match=r"fewer than 4 frames in 1 \(theft/short \(3\)\); use fewer --num-frames"):
        find(short_root, short="error")
    assert len(find(short_root, short="error", num_frames=3).clips) == 5


def test_what_is_short_is_decided_after_the_step(short_root: Path, make_video: MakeVideo) -> None:
    make_video(short_root / "theft/video.mp4", num_frames=8)
    catalog = find(short_root, short="skip", num_frames=3, step=FrameStep(every=4))
    # The frame folders do not say which frames they hold, so all of theirs count.
    assert catalog.too_short == (Skip("theft/video.mp4", "short: 2 of 3 frames"),)


# --- data folders that cannot be used ----------------------------------------------------------------


def test_a_data_folder_that_is_missing_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone does not exist; give the folder"):
        find(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is not a folder; give the folder"):
        find(tmp_path / "file")


def test_a_data_folder_without_class_folders(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(DataError, match="holds no class folder"):
        find(tmp_path)


@pytest.mark.parametrize("content", [(), ("notes.txt",), ("clip/",), (".hidden.mp4",)])
def test_a_class_folder_without_clips(small_root: Path, content: tuple[str, ...]) -> None:
    folder = small_root / "empty"
    folder.mkdir()
    for name in content:
        if name.endswith("/"):
            (folder / name).mkdir()
        else:
            (folder / name).touch()
    with pytest.raises(DataError, match=r"data/empty holds no clip; put videos or folders of frames there"):
        find(small_root)
    assert names(find(small_root, ["normal", "theft"])) == SMALL


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["normal", "thefts"], r"'thefts', but .* it has normal, theft\. Did you mean 'theft'\?"),
        (["Normal", "theft"], r"'Normal', but .* it has normal, theft\. Did you mean 'normal'\?"),
        (["normal", "xyz"], r"'xyz', but .* it has normal, theft\.$"),
        (["normal", "theft", "normal"], "names a class twice"),
    ],
)
def test_classes_that_are_not_there(small_root: Path, classes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(small_root, classes)


def test_a_class_that_only_clips_csv_knows_is_suggested_too(small_root: Path, make_frames: MakeFrames) -> None:
    make_frames(small_root / "elsewhere/day/x")
    write_rows(small_root, {"path": "elsewhere/day/x", "label": "vandalism"})
    with pytest.raises(ConfigError, match="Did you mean 'vandalism'"):
        find(small_root, ["normal", "vandalismus"])


def test_search_opens_nothing(small_root: Path) -> None:
    (small_root / "theft/empty.mp4").touch()
    search = search_folder(small_root)
    assert [found.name for found in search.found] == [*SMALL, "theft/empty.mp4"]
    assert search.skipped == []
    assert search.classes == ("normal", "theft")


def test_what_was_found_can_be_looked_into_twice(small_root: Path) -> None:
    (small_root / "theft/empty.mp4").touch()
    search = search_folder(small_root)
    look_into(search, num_frames=8)
    assert look_into(search, num_frames=4) == find(small_root, num_frames=4)


# --- too much damaged --------------------------------------------------------------------------------


def catalog_of(whole: int, damaged: int) -> Catalog:
    clip = Clip(name="x", path=Path("x"), label="x", group="x", is_video=False, num_frames=1, every=None, fps=None)
    skips = tuple(Skip(f"theft/{number}", "the file is empty") for number in range(damaged))
    return Catalog(clips=(clip,) * whole, classes=("x",), skipped=skips)


@pytest.mark.parametrize(
    ("whole", "damaged", "max_skipped", "refused"),
    [
        pytest.param(100, 0, 0.05, False, id="none"),
        pytest.param(1, 3, 0.05, False, id="three are never too many"),
        pytest.param(0, 3, 0.0, False, id="three, and all"),
        pytest.param(76, 4, 0.05, False, id="just 5 percent"),
        pytest.param(75, 4, 0.05, True, id="just over 5 percent"),
        pytest.param(1000, 50, 0.05, False, id="many, under 5 percent"),
        pytest.param(1000, 4, 0.0, True, id="none allowed"),
        pytest.param(4, 4, 0.5, False, id="half allowed"),
        pytest.param(0, 10, 1.0, False, id="all allowed"),
    ],
)
def test_too_many_skipped(whole: int, damaged: int, max_skipped: float, refused: bool) -> None:
    assert (too_many_skipped(catalog_of(whole, damaged), max_skipped) is not None) is refused


def test_too_many_skipped_counts_and_names() -> None:
    assert too_many_skipped(catalog_of(10, 4), 0.05) == (
        "4 of 14 clips are damaged, over the 5% that --max-skipped allows: theft/0: the file is empty; "
        "theft/1: the file is empty; theft/2: the file is empty; theft/3: the file is empty."
    )
    assert str(too_many_skipped(catalog_of(10, 13), 0.05)).endswith("theft/9: the file is empty; and 3 more.")


def test_clips_left_out_as_short_are_not_damaged(short_root: Path, make_frames: MakeFrames) -> None:
    for number in range(4):
        make_frames(short_root / f"theft/short{number}", num_frames=2)
    catalog = find(short_root, short="skip")
    assert len(catalog.too_short) == 5
    assert too_many_skipped(catalog, 0.0) is None


def test_four_damaged_of_a_folder(small_root: Path) -> None:
    for number in range(4):
        (small_root / f"theft/{number}.mp4").touch()
    sentence = too_many_skipped(find(small_root), 0.05)
    assert sentence is not None
    assert sentence.startswith("4 of 8 clips are damaged")


# --- one clip by itself ------------------------------------------------------------------------------


def test_describe_a_frame_folder_by_itself(tmp_path: Path, make_frames: MakeFrames) -> None:
    clip = describe_clip(make_frames(tmp_path / "clip", num_frames=7), 4, FrameStep(every=2))
    assert (clip.name, clip.is_video, clip.num_frames, clip.every, clip.fps) == ("clip", False, 7, None, None)
    assert clip.frame_step == 1  # what the frames are is unknown, so they are taken to be the wanted ones


def test_describe_a_frame_folder_that_clips_csv_two_folders_up_describes(
    small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(small_root, {"path": "theft/a", "label": "theft", "group": "g", "every": "2", "fps": "5"})
    expected = (2, 5.0, 2)
    clip = describe_clip(small_root / "theft/a", 2, FrameStep(every=4))
    assert (clip.every, clip.fps, clip.frame_step) == expected
    monkeypatch.chdir(small_root / "theft/a")
    clip = describe_clip(Path(), 2, FrameStep(every=4))
    assert (clip.every, clip.fps, clip.frame_step) == expected
    with pytest.raises(DataError, match=r"every 3\. frame of the source is wanted, but every 2\. was extracted"):
        describe_clip(small_root / "theft/a", 2, FrameStep(every=3))


def test_describe_a_video(tmp_path: Path, make_video: MakeVideo) -> None:
    clip = describe_clip(make_video(tmp_path / "x.mp4", num_frames=12, fps=10), 4, FrameStep(fps=5))
    assert (clip.name, clip.is_video, clip.num_frames, clip.fps, clip.frame_step) == ("x.mp4", True, 12, 10.0, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "gone does not exist"),
        ("notes.txt", r"notes\.txt is neither a video nor a folder of frames"),
        ("empty.mp4", r"empty\.mp4: the file is empty"),
        ("folder", "folder: the folder holds no image"),
    ],
)
def test_describe_what_is_no_clip(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ClipError, match=message):
        describe_clip(tmp_path / name, 4, FrameStep())


# --- paths to clips ----------------------------------------------------------------------------------


def test_expand_paths(small_root: Path, make_frames: MakeFrames, make_video: MakeVideo) -> None:
    for name in ("b10.mp4", "b9.mp4"):
        make_video(small_root / "theft" / name)
    (small_root / "theft/notes.txt").touch()
    (small_root / "theft/no frames").mkdir()
    theft = small_root / "theft"
    alone = [theft / "b", theft / "b9.mp4", theft / "gone"]  # what is no folder is for others to judge
    assert expand_paths(alone) == alone
    assert expand_paths([small_root / "normal", theft / "b"]) == [
        small_root / "normal/a",
        small_root / "normal/b",
        theft / "b",
    ]
    assert expand_paths([theft]) == [theft / "a", theft / "b", theft / "b9.mp4", theft / "b10.mp4"]


def test_expand_paths_passes_over_half_written_clips(small_root: Path, make_frames: MakeFrames) -> None:
    make_frames(small_root / "theft/.c.abcd1234.part")
    assert expand_paths([small_root / "theft"]) == [small_root / "theft/a", small_root / "theft/b"]


@pytest.mark.parametrize("content", [(), ("notes.txt",)])
def test_expand_a_folder_that_holds_no_clip(tmp_path: Path, content: tuple[str, ...]) -> None:
    for name in content:
        (tmp_path / name).touch()
    with pytest.raises(TillwatchError, match="holds no frames, no video and no folder of frames"):
        expand_paths([tmp_path])


@pytest.mark.parametrize("nested", [False, True])
def test_a_storage_folder_whose_clips_are_all_labelled_by_rows_is_no_class(
    tmp_path: Path, make_frames: Callable[..., Path], nested: bool
) -> None:
    inner = "recorder/day" if nested else "recorder"
    for name in ("a", "b"):
        make_frames(tmp_path / inner / name, num_frames=4)
    rows = f"path,label,group\n{inner}/a,theft,x\n{inner}/b,normal,y\n"
    (tmp_path / "clips.csv").write_text(rows, encoding="utf-8")
    catalog = find_clips(tmp_path, num_frames=4)
    assert catalog.classes == ("normal", "theft")
    assert {clip.name: (clip.label, clip.group) for clip in catalog.clips} == {
        f"{inner}/a": ("theft", "x"),
        f"{inner}/b": ("normal", "y"),
    }
    assert catalog.skipped == ()


@pytest.mark.parametrize("path", ["../elsewhere/a", "/etc/passwd", ".", "a" * 5000])
def test_rows_that_lead_out_of_the_data_folder_are_refused(
    tmp_path: Path, make_frames: Callable[..., Path], path: str
) -> None:
    make_frames(tmp_path / "theft" / "a", num_frames=4)
    (tmp_path / "clips.csv").write_text(f"path,label\n{path},theft\n", encoding="utf-8")
    with pytest.raises(DataError, match="must be a path below"):
        find_clips(tmp_path, num_frames=4)


def test_spaces_around_fields_of_clips_csv_mean_nothing(tmp_path: Path, make_frames: Callable[..., Path]) -> None:
    for name in ("a", "b"):
        make_frames(tmp_path / "theft" / name, num_frames=4)
    (tmp_path / "clips.csv").write_text("path,label, group\ntheft/a,theft, day0 \ntheft/b,theft,day0\n", "utf-8")
    assert [clip.group for clip in find_clips(tmp_path, num_frames=4).clips] == ["day0", "day0"]


def test_a_search_leaves_the_garbage_collector_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        search_folder(tmp_path)
    assert gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(DataError):
            search_folder(tmp_path)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_names_that_are_no_unicode_are_skipped_and_named(tmp_path: Path, make_frames: MakeFrames) -> None:
    """They could be written into no table."""
    for label in ("normal", "theft"):
        make_frames(tmp_path / label / "fine", 4)
    shutil.copytree(tmp_path / "theft" / "fine", tmp_path / "theft" / os.fsdecode(b"odd\xff"))
    (tmp_path / os.fsdecode(b"odd\xff.txt")).touch()
    catalog = find_clips(tmp_path, num_frames=4)
    assert names(catalog) == ["normal/fine", "theft/fine"]
    assert catalog.skipped == (Skip(r"theft/odd\xff", "its name is not Unicode (UTF-8); rename it"),)
    assert r"odd\xff.txt" in notes(catalog)
    shutil.copytree(tmp_path / "theft", tmp_path / os.fsdecode(b"other\xff"))
    with pytest.raises(DataError, match=r"other\\xff: a class name must be Unicode \(UTF-8\); rename it"):
        find_clips(tmp_path, num_frames=4)

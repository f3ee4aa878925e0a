"""Groups that nobody named: scenes, and one camera over several days, named and timed as recorders do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tillwatch.data.catalog import Catalog, Clip, find_clips
from tillwatch.data.duplicates import Copy, find_copies
from tillwatch.data.fingerprints import Fingerprint, take_fingerprints
from tillwatch.data.grouping import Grouping, infer_groups, recorded_of, settle_groups
from tillwatch.data.splits import missing_classes, split_clips
from tillwatch.data.synthetic import CLASSES, THEFT, Camera, make_camera, render_clip, write_video

FIRST = datetime(2026, 3, 1, 8, 15)


def look(root: Path) -> tuple[Catalog, dict[str, Fingerprint], Grouping]:
    catalog = find_clips(root, num_frames=8)
    prints = take_fingerprints(catalog.clips)
    return catalog, prints, infer_groups(catalog.clips, prints, find_copies(catalog.clips, prints))


@pytest.fixture(scope="module")
def one_camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One till over seven days: a theft and a deposit a day, each cut in two that overlap; one of them at midnight."""
    root, camera = tmp_path_factory.mktemp("till"), make_camera("till", 4)
    for label in CLASSES:
        (root / label).mkdir()
    for day in range(7):
        for place, label in enumerate(CLASSES):
            at = FIRST + timedelta(days=day, hours=place)
            if day == 5 and label == THEFT:
                at = at.replace(hour=23, minute=59, second=59)  # the second half is of the next day
            film = render_clip(camera, label, 10 * day + place)
            for seconds, part in ((0, film[:18]), (1, film[7:])):
                name = f"till2_{at + timedelta(seconds=seconds):%Y%m%d_%H%M%S}.mp4"
                write_video(part, root / label / name)
    return root


def elsewhere(camera: Camera, seed: int) -> Camera:
    """The camera before a wall of boxes: rendered tills are furnished alike."""
    boxes = np.random.default_rng(seed).integers(40, 200, (10, 12, 3)).astype(np.uint8)
    height, width = camera.background.shape[:2]
    return replace(camera, background=boxes.repeat(height // 10, 0).repeat(-(-width // 12), 1)[:, :width])


def in_groups(clips: Sequence[Clip], grouping: Grouping) -> list[Clip]:
    return [replace(clip, group=grouping.groups[clip.name]) for clip in clips]


def test_one_camera_over_days_is_split_by_day_and_no_footage_is_on_two_sides(one_camera: Path) -> None:
    catalog, prints, grouping = look(one_camera)
    assert grouping.source == "inferred from recordings"
    assert grouping.claim.kind == "this camera, other days"
    assert "this camera" in grouping.claim.can
    assert "any other camera" in grouping.claim.cannot
    times = {clip.name: at for clip in catalog.clips if (at := recorded_of(clip, prints)) is not None}
    assert len(times) == 28
    assert len(set(grouping.groups.values())) == 6, "midnight joins two of seven days"
    clips = in_groups(catalog.clips, grouping)
    overlapping = 0
    for seed in range(5):
        sides = split_clips(clips, seed)
        assert not missing_classes(clips, sides)
        for a, b in combinations(clips, 2):
            if times[a.name].overlaps(times[b.name]):
                overlapping += 1
                assert sides[a.name] == sides[b.name], (a.name, b.name)
    assert overlapping == 5 * 14


def test_where_one_of_several_cameras_sees_most_the_claim_is_not_of_one(one_camera: Path, tmp_path: Path) -> None:
    for label in CLASSES:
        (tmp_path / label).mkdir()
        for path in (one_camera / label).iterdir():
            (tmp_path / label / path.name).symlink_to(path)
        for number in range(4):
            camera = elsewhere(make_camera(f"c{number}", 40 + number), number)
            name = f"shop{number}_{FIRST + timedelta(days=number, hours=3):%Y%m%d_%H%M%S}.mp4"
            write_video(render_clip(camera, label, 900 + number), tmp_path / label / name)
    _, _, grouping = look(tmp_path)
    assert grouping.source == "inferred from recordings"
    assert grouping.claim.can == "How the model does with these cameras on other days."
    assert "78% of the clips show one scene" in grouping.claim.cannot


def test_one_camera_without_times_goes_by_the_series_of_names(one_camera: Path, tmp_path: Path) -> None:
    for label in CLASSES:
        (tmp_path / label).mkdir()
        for number, path in enumerate(sorted((one_camera / label).iterdir())):
            (tmp_path / label / f"shift{'abcdefg'[number // 2]}_{number:02d}.mp4").symlink_to(path)
    _, _, grouping = look(tmp_path)
    assert grouping.claim.kind == "this camera, other recordings"
    assert grouping.groups[f"{THEFT}/shifta_00.mp4"] == grouping.groups[f"{CLASSES[1]}/shifta_00.mp4"]


def renamed(one_camera: Path, root: Path, name: Callable[[str, int], str]) -> Grouping:
    for label in CLASSES:
        (root / label).mkdir()
        for number, path in enumerate(sorted((one_camera / label).iterdir())):
            (root / label / name(label, number)).symlink_to(path)
    return look(root)[2]


@pytest.mark.parametrize(
    "name",
    [
        lambda label, number: f"{number:02d}.mp4",
        lambda label, number: f"{label[0]}{chr(97 + number)}.mp4",
        lambda label, number: f"till_{number}.mp4" if number < 11 else f"{label[0]}{chr(97 + number)}.mp4",
    ],
    ids=["numbers", "words", "most of one name"],
)
def test_one_camera_that_nothing_divides_is_never_one_group(
    one_camera: Path, tmp_path: Path, name: Callable[[str, int], str]
) -> None:
    grouping = renamed(one_camera, tmp_path, name)
    assert grouping.claim.kind == "unknown"
    assert "Name groups" in grouping.how
    sizes = Counter(grouping.groups.values())
    assert max(sizes.values()) == 2, "the halves of one film, known by the footage that they share"
    assert len(sizes) < 28


def test_a_few_names_in_common_do_not_tell_recordings_apart(one_camera: Path, tmp_path: Path) -> None:
    grouping = renamed(
        one_camera, tmp_path, lambda label, at: f"visit_{at}.mp4" if at in (1, 4) else f"{label[0]}{chr(97 + at)}.mp4"
    )
    assert grouping.claim.kind == "unknown"
    visits = {group for name, group in grouping.groups.items() if "visit" in name}
    assert len(visits) == 1, "yet they stay together"


def test_days_that_are_too_few_are_not_made_more_by_clips_without_an_hour(one_camera: Path, tmp_path: Path) -> None:
    grouping = renamed(one_camera, tmp_path, lambda label, at: f"2026030{1 + at % 2}_{label[0]}{chr(97 + at)}.mp4")
    assert grouping.claim.kind == "unknown"


def test_a_clip_a_day_is_a_group_a_day(one_camera: Path, tmp_path: Path) -> None:
    grouping = renamed(
        one_camera, tmp_path, lambda label, at: f"till_{FIRST + timedelta(days=30 * (label == THEFT) + at):%Y%m%d}.mp4"
    )
    assert grouping.claim.kind == "this camera, other days"


@pytest.mark.parametrize(("untimed", "kind"), [(1, "this camera, other days"), (3, "unknown")])
def test_clips_without_a_time_may_be_of_any_day(one_camera: Path, tmp_path: Path, untimed: int, kind: str) -> None:
    grouping = renamed(
        one_camera,
        tmp_path,
        lambda label, at: (
            f"{chr(97 + at)}.mp4"
            if label == THEFT and at < untimed
            else f"till_{FIRST + timedelta(days=at // 2):%Y%m%d_%H%M}{at % 2}0.mp4"
        ),
    )
    assert f"{untimed} of them tell no time" in grouping.how
    assert grouping.claim.kind == kind


def test_scenes_are_told_apart_whatever_moves_and_however_bright(tmp_path: Path) -> None:
    cameras = [elsewhere(make_camera(f"c{number}", number), number) for number in range(6)]
    for place, label in enumerate(CLASSES):
        (tmp_path / label).mkdir()
        for number, camera in enumerate(cameras):
            for turn in range(2):
                film = render_clip(camera, label, 100 * number + 10 * turn + place)
                # Names that say nothing, and put clips of one camera far apart.
                write_video((film * (1 - 0.3 * turn)).astype(np.uint8), tmp_path / label / f"{turn}{number}.mp4")
    catalog, _, grouping = look(tmp_path)
    assert grouping.source == "inferred from scenes"
    assert grouping.claim.kind == "other scenes"
    camera_of = {clip.name: clip.path.stem[1] for clip in catalog.clips}
    for a, b in combinations(catalog.clips, 2):
        same = grouping.groups[a.name] == grouping.groups[b.name]
        assert same == (camera_of[a.name] == camera_of[b.name]), (a.name, b.name)


def test_what_was_given_stays_but_for_copies(one_camera: Path) -> None:
    catalog = find_clips(one_camera, num_frames=8, group_pattern=r"_\d{6}$|(\d{6})\.mp4")
    copy = Copy(original=catalog.clips[0].name, copy=catalog.clips[-1].name, exact=True, transforms=(), overlap_s=2.0)
    given = {clip.name: clip.group for clip in catalog.clips}
    settled, notes = settle_groups(catalog, {}, [], "auto", "pattern")
    assert settled.groups == given
    assert not notes
    assert (settled.source, settled.claim.kind) == ("--group-pattern", "other groups")
    settled, notes = settle_groups(catalog, {}, [copy], "auto", "pattern")
    assert settled.groups[copy.original] == settled.groups[copy.copy]
    assert "now joined: 1" in notes[0]
    settled, notes = settle_groups(catalog, {}, [copy], "none", None)
    assert settled.groups == given
    assert settled.claim.kind == "unknown"
    assert "divides copies of one footage: 1" in notes[1]


def test_groups_that_few_clips_are_in_are_not_groups_as_named(one_camera: Path, tmp_path: Path) -> None:
    for label in CLASSES:
        (tmp_path / label).symlink_to(one_camera / label)
    names = [clip.name for clip in find_clips(tmp_path, num_frames=8).clips]
    for named, kind in ((10, "unknown"), (20, "unknown"), (22, "other groups")):
        rows = [f"{name},{Path(name).parent},day {number % 5}" for number, name in enumerate(names[:named])]
        (tmp_path / "clips.csv").write_text("\n".join(["path,label,group", *rows]))
        catalog = find_clips(tmp_path, num_frames=8)
        settled, _ = settle_groups(catalog, {}, [], "auto", None)
        assert settled.claim.kind == kind
        assert f"{28 - named} of 28 clips are in none of them" in settled.how
        assert kind == "unknown" or f"the {28 - named} clips without a group" in settled.claim.cannot

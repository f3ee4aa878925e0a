"""Groups that nobody named: scenes, and one camera over several days, named and timed as recorders do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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


def test_one_camera_that_nothing_divides_is_never_one_group(one_camera: Path, tmp_path: Path) -> None:
    for label in CLASSES:
        (tmp_path / label).mkdir()
        for number, path in enumerate(sorted((one_camera / label).iterdir())):
            (tmp_path / label / f"{number:02d}.mp4").symlink_to(path)
    _, _, grouping = look(tmp_path)
    assert grouping.claim.kind == "unknown"
    assert "Name groups" in grouping.how
    sizes = Counter(grouping.groups.values())
    assert max(sizes.values()) == 2, "the halves of one film, known by the footage that they share"
    assert len(sizes) < 28


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

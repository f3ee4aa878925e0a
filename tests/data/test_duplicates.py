"""Copies of rendered clips: every kind is found, told, and nothing else is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tillwatch.data.catalog import Clip, find_clips
from tillwatch.data.duplicates import Copy, find_copies
from tillwatch.data.fingerprints import SIDE, Fingerprint, take_fingerprints
from tillwatch.data.store import ClipStore
from tillwatch.data.synthetic import CLASSES, FPS, make_camera, render_clip, write_video

Frames = NDArray[np.uint8]


def resized(frames: Frames) -> Frames:
    return np.stack(
        [av.VideoFrame.from_ndarray(np.ascontiguousarray(f)).reformat(96, 72, "rgb24").to_ndarray() for f in frames]
    )


COPIES: dict[str, Callable[[Frames], Frames]] = {
    "re-encoded": lambda frames: frames,
    "resized": resized,
    "trimmed": lambda frames: frames[5:22],
    "mirrored": lambda frames: frames[:, :, ::-1],
    "brightened": lambda frames: np.clip(frames * 1.15 + 20, 0, 255).astype(np.uint8),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of two cameras, three of each class and camera, and a copy of each kind of the first ones."""
    root = tmp_path_factory.mktemp("copies")
    films: dict[str, Frames] = {}
    for camera in (make_camera("a", 1), make_camera("b", 2)):
        for label in CLASSES:
            (root / label).mkdir(exist_ok=True)
            for number in range(3):
                name = f"{label}/{camera.name}{number}.mp4"
                # Another seed for each class: a deposit is the theft of its own seed played backwards.
                films[name] = render_clip(camera, label, 10 * number + CLASSES.index(label))
                write_video(films[name], root / name)
    for (name, frames), (kind, change) in zip(films.items(), COPIES.items(), strict=False):
        crf = "35" if kind == "re-encoded" else "20"
        write_video(np.ascontiguousarray(change(frames)), root / f"{name.split('/')[0]}/copy_{kind}.mp4", crf=crf)
    shutil.copy(root / list(films)[-1], root / CLASSES[0] / "copy_exact.mp4")
    return root


@pytest.fixture(scope="module")
def found(data: Path) -> list[Copy]:
    clips = find_clips(data, num_frames=8).clips
    return find_copies(clips, take_fingerprints(clips))


@pytest.mark.parametrize("kind", [*COPIES, "exact"])
def test_each_kind_of_copy_is_found_and_told(kind: str, found: list[Copy]) -> None:
    (copy,) = [one for one in found if f"copy_{kind}" in one.copy + one.original]
    assert copy.exact == (kind == "exact")
    if f"copy_{kind}" in copy.copy:
        assert copy.exact or copy.transforms == (kind,)
    else:  # of equal length and size, which is the copy is a guess by bytes
        told = {"brightened": "darkened"}.get(kind, kind)
        assert kind in ("mirrored", "brightened", "exact")
        assert copy.exact or copy.transforms == (told,)


def test_other_films_of_one_camera_are_no_copies(found: list[Copy]) -> None:
    assert len(found) == len(COPIES) + 1


def test_the_overlap_of_a_trimmed_copy_is_told_in_time(found: list[Copy]) -> None:
    (copy,) = [one for one in found if "trimmed" in one.transforms]
    assert copy.overlap_s == pytest.approx(17 / FPS, abs=0.15)
    assert copy.original_from_s == pytest.approx(5 / FPS, abs=0.05)
    assert copy.copy_from_s == pytest.approx(0, abs=0.05)


def test_kept_fingerprints_are_those_of_the_clips(data: Path, tmp_path: Path) -> None:
    clips = find_clips(data, num_frames=8).clips[:3]
    store = ClipStore(tmp_path / "store")
    fresh, kept = take_fingerprints(clips, store=store), take_fingerprints(clips, store=store)
    assert len(list(store.entries())) == 3
    for clip in clips:
        for name, value in vars(fresh[clip.name]).items():
            again = vars(kept[clip.name])[name]
            assert type(value) is type(again)
            assert np.array_equal(value, again), name


def nearly_still(
    scene: int, film: int, coded: bool = False, *, levels: float = 4.0, noise: float = 0.3, light: float = 0.0
) -> Fingerprint:
    """A film in which something of a few grey levels passes; coding smooths away noise and some of that.

    Args:
        scene, film: seeds of the background, and of what passes.
        coded: whether it is the copy.
        levels, noise: grey levels by which what passes is brighter, and of noise.
        light: grey levels that the copy is brighter by, cut off at white.
    """
    background = cv2.GaussianBlur(np.random.default_rng(scene).uniform(0, 255, (SIDE, SIDE)), (0, 0), 1.5)
    draws, grain = np.random.default_rng(film), np.random.default_rng([film, coded])
    row, column = draws.integers(2, 16, 2)
    frames = np.tile(background, (60, 1, 1)).astype(np.float64)
    for time in range(60):
        frames[time, row : row + 8, column + time // 6 : column + 4 + time // 6] += levels * (0.75 if coded else 1)
    frames += grain.normal(0, noise * (0.67 if coded else 1), frames.shape) + coded * light
    return Fingerprint(
        frames=np.clip(frames.round(), 0, 255).astype(np.uint8),
        times=np.arange(60) / 20,
        background=np.zeros((64, 64), np.float32),
        width=320,
        height=240,
        bytes=1000 - 500 * coded + film,
        codec="h264",
        created="",
        damage="",
    )


@pytest.mark.parametrize(
    "kind",
    [{}, {"levels": 7.0, "noise": 0.6}, {"light": 115.0}],
    ids=["coded", "more moves", "brightened into white"],
)
def test_copies_in_which_little_moves_are_found_and_other_films_of_that_scene_are_not(kind: dict[str, Any]) -> None:
    prints = {
        "a": nearly_still(1, 1, **kind),
        "b": nearly_still(1, 2, **kind),
        "c": nearly_still(1, 3, **kind),
        "copy": nearly_still(1, 1, True, **kind),
    }
    clips = [
        Clip(name=name, path=Path(name), label="x", group=name, is_video=True, num_frames=60, every=1, fps=20.0)
        for name in prints
    ]
    assert [(one.original, one.copy) for one in find_copies(clips, prints)] == [("a", "copy")]
    prints["copy"] = replace(prints["copy"], frames=np.ascontiguousarray(prints["copy"].frames[:, :, ::-1]))
    (turned,) = find_copies(clips, prints)
    assert (turned.original, turned.copy, turned.transforms[0]) == ("a", "copy", "mirrored")


def passing(scene: int, film: int, brightened: bool = False) -> Fingerprint:
    """A film in which something dark goes through a bright scene, or the same brightened until much of it is white."""
    background = cv2.GaussianBlur(np.random.default_rng(scene).uniform(0, 255, (SIDE, SIDE)), (0, 0), 1.5)
    background = 175 + 3 * (background - background.mean())
    row, column = np.random.default_rng(film).integers(2, 16, 2)
    frames = np.tile(background.clip(0, 255), (60, 1, 1))
    for time in range(60):
        frames[time, row : row + 4 + 3 * film, column + time // 6 : column + 4 + time // 6] = 60
    frames += np.random.default_rng([film, brightened]).normal(0, 0.3, frames.shape)
    if brightened:
        frames = frames * 1.15 + 30
    return Fingerprint(
        frames=np.clip(frames.round(), 0, 255).astype(np.uint8),
        times=np.arange(60) / 20,
        background=np.full((64, 64), 150.0 + 60 * brightened, np.float32),
        width=320,
        height=240,
        bytes=1000 - 500 * brightened + film,
        codec="h264",
        created="",
        damage="",
    )


@pytest.mark.parametrize("scene", [0, 1, 2])
def test_copies_brightened_until_much_is_white_are_found_and_other_films_of_that_scene_are_not(scene: int) -> None:
    copy = passing(scene, 1, brightened=True)
    assert (copy.frames == 255).mean() > 0.25
    prints = {"a": passing(scene, 1), "b": passing(scene, 2), "copy": copy}
    clips = [
        Clip(name=name, path=Path(name), label="x", group=name, is_video=True, num_frames=60, every=1, fps=20.0)
        for name in prints
    ]
    assert [(one.original, one.copy, one.transforms) for one in find_copies(clips, prints)] == [
        ("a", "copy", ("brightened",))
    ]


def test_films_of_one_till_in_which_the_same_is_done_are_no_copies(tmp_path: Path) -> None:
    camera = make_camera("till2", 7)
    for film in (9001, 9009, 9023, 9031):  # theft after theft, alike to 0.95 in their change
        path = tmp_path / CLASSES[0] / f"{film}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(render_clip(camera, CLASSES[0], film), path)
    clips = find_clips(tmp_path, [CLASSES[0]], num_frames=8).clips
    assert len(clips) == 4
    assert not find_copies(clips, take_fingerprints(clips))

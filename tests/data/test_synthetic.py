from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tillwatch.data.synthetic import (
    CLASSES,
    DEPOSIT,
    FPS,
    HEIGHT,
    NUM_FRAMES,
    THEFT,
    WIDTH,
    Camera,
    make_camera,
    render_clip,
    write_video,
)
from tillwatch.data.video import decode_video, probe_video, to_image


@pytest.fixture(scope="module")
def camera() -> Camera:
    return make_camera("till1", seed=3)


@pytest.fixture(scope="module")
def theft(camera: Camera) -> NDArray[np.uint8]:
    return render_clip(camera, THEFT, seed=5)


def test_size_and_values_of_a_film(theft: NDArray[np.uint8]) -> None:
    assert theft.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)
    assert theft.dtype == np.uint8
    assert theft.min() < 60 < 180 < theft.max()  # neither night nor glare


@pytest.mark.parametrize("seed", [5, 6])
def test_a_deposit_is_the_theft_played_backwards(camera: Camera, seed: int) -> None:
    forwards, backwards = render_clip(camera, THEFT, seed), render_clip(camera, DEPOSIT, seed)
    np.testing.assert_array_equal(backwards, forwards[::-1])
    assert not np.array_equal(backwards, forwards)


def test_the_middle_frame_does_not_tell_theft_from_deposit(camera: Camera, theft: NDArray[np.uint8]) -> None:
    assert NUM_FRAMES % 2 == 1
    deposit = render_clip(camera, DEPOSIT, seed=5)
    np.testing.assert_array_equal(theft[NUM_FRAMES // 2], deposit[NUM_FRAMES // 2])


@pytest.mark.parametrize("seed", [1, 3, 4])
def test_in_a_theft_the_banknote_goes_from_the_drawer_to_the_pocket(seed: int) -> None:
    camera = make_camera("till", seed)
    film = render_clip(camera, THEFT, seed).astype(np.float64)
    away = film - np.median(film, axis=0)  # what moves
    green = away[..., 1] - (away[..., 0] + away[..., 2]) / 2 > 40
    shown = [t for t in range(NUM_FRAMES) if green[t].sum() > 60]
    assert 3 <= len(shown) <= 15
    assert shown == list(range(shown[0], shown[-1] + 1))  # in one go, while it is carried

    def place(t: int) -> NDArray[np.float64]:
        rows, columns = np.nonzero(green[t])
        return np.array([columns.mean() / WIDTH, rows.mean() / HEIGHT])

    def away_from(point: tuple[float, float], t: int) -> float:
        return float(np.linalg.norm(place(t) - point))

    assert away_from(camera.drawer, shown[0]) < away_from(camera.pocket, shown[0])
    assert away_from(camera.pocket, shown[-1]) < away_from(camera.drawer, shown[-1])


def test_same_seed_same_film_other_seed_another(camera: Camera, theft: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(theft, render_clip(camera, THEFT, seed=5))
    assert not np.array_equal(theft, render_clip(camera, THEFT, seed=6))


def test_same_seed_same_camera() -> None:
    one, another = make_camera("x", seed=3), make_camera("x", seed=3)
    np.testing.assert_array_equal(one.background, another.background)
    assert {k: v for k, v in vars(one).items() if k != "background"} == {
        k: v for k, v in vars(another).items() if k != "background"
    }


def test_cameras_differ_in_background_framing_and_light() -> None:
    cameras = [make_camera(f"till{seed}", seed) for seed in range(6)]
    for one, another in itertools.combinations(cameras, 2):
        difference = np.abs(one.background.astype(int) - another.background).mean()
        assert difference > 10
        assert one.drawer != another.drawer
        assert one.pocket != another.pocket
        assert one.gain != another.gain
    assert {camera.drawer[0] < 0.5 for camera in cameras} == {True, False}  # till on the left, till on the right
    assert [camera.name for camera in cameras] == [f"till{seed}" for seed in range(6)]


def test_another_class_is_refused(camera: Camera) -> None:
    assert CLASSES == (THEFT, DEPOSIT)
    with pytest.raises(ValueError, match="label is 'fight'"):
        render_clip(camera, "fight", seed=0)


@pytest.mark.parametrize(("num_frames", "fps"), [(NUM_FRAMES, FPS), (1, 25), (7, 5)])
def test_a_written_video_has_these_frames_and_this_rate(
    tmp_path: Path, theft: NDArray[np.uint8], num_frames: int, fps: int
) -> None:
    path = tmp_path / "x.mp4"
    write_video(theft[:num_frames], path, fps)
    info = probe_video(path)
    assert (info.num_frames, info.fps) == (num_frames, Fraction(fps))
    decoded = np.stack([np.asarray(to_image(frame)) for frame in decode_video(path)])
    assert decoded.shape == (num_frames, HEIGHT, WIDTH, 3)
    # Lossy, but each frame is nearest to its own original.
    differences = np.abs(decoded[:, None].astype(np.int16) - theft[None, :num_frames]).mean((2, 3, 4))
    assert differences.diagonal().max() < 8
    assert differences.argmin(1).tolist() == list(range(num_frames))


def test_a_video_written_again_is_the_same_file(tmp_path: Path, theft: NDArray[np.uint8]) -> None:
    # Twelve times: an encoder that reads memory it has not written differs in one file out of five or so.
    contents = set()
    for number in range(12):
        path = tmp_path / f"{number}.mp4"
        write_video(theft, path)
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_options_reach_the_encoder(tmp_path: Path, theft: NDArray[np.uint8]) -> None:
    write_video(theft, tmp_path / "fine.mp4", crf="10")
    write_video(theft, tmp_path / "coarse.mp4", crf="40", g="5")
    assert (tmp_path / "coarse.mp4").stat().st_size < 0.5 * (tmp_path / "fine.mp4").stat().st_size
    with av.open(str(tmp_path / "coarse.mp4")) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert keys[::5] == [True] * 5

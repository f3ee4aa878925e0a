from __future__ import annotations

import itertools
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from tillwatch.clip_spec import FrameStep, Roi, Triple, frame_indices
from tillwatch.data import dataset as dataset_module
from tillwatch.data.catalog import Skip, find_clips
from tillwatch.data.dataset import VideoFrameDataset, read_clip
from tillwatch.data.frames import list_frames
from tillwatch.data.sampler import Draw
from tillwatch.data.transforms import (
    KINETICS_MEAN,
    KINETICS_STD,
    ClipTransform,
    Place,
    eval_transform,
    train_transform,
)
from tillwatch.data.video import read_video
from tillwatch.errors import ClipError, ConfigError, DataError
from tillwatch.files import write_csv

MakeFrames = Callable[..., Path]
MakeVideo = Callable[..., Path]

HEIGHT, WIDTH = 20, 24


def draw(index: int, position: int = 0, epoch: int = 0) -> Draw:
    return Draw(index, epoch, position)


@pytest.fixture
def root(tmp_path: Path, make_frames: MakeFrames) -> Path:
    """Two theft clips, three normal clips, six frames of 20 x 24 each, without loss."""
    for name in ("theft/t0", "theft/t1", "normal/n0", "normal/n1", "normal/n2"):
        make_frames(
            tmp_path / "data" / name,
            num_frames=6,
            suffix=".png",
            height=HEIGHT,
            width=WIDTH,
            seed=sum(map(ord, name)),
        )
    return tmp_path / "data"


def frames_by_hand(folder: Path, indices: list[int], resize: tuple[int, int]) -> NDArray[np.float32]:
    """Pillow alone: float32 ``(T, H, W, 3)`` in [0, 1]."""
    names = sorted(path.name for path in folder.iterdir())
    frames = []
    for index in indices:
        image = Image.open(folder / names[index]).convert("RGB")
        frames.append(np.asarray(image.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)))
    return np.stack(frames).astype(np.float32) / np.float32(255)


# --- what an item is ---------------------------------------------------------------------------------


def test_an_item(root: Path) -> None:
    dataset = VideoFrameDataset(root, ["normal", "theft"], num_frames=4)
    assert len(dataset) == 5
    clip, label = dataset[4]
    assert clip.shape == (3, 4, 112, 112)
    assert clip.dtype == torch.float32
    assert clip.is_contiguous()
    assert type(label) is int
    assert label == 1


@pytest.mark.parametrize("classes", [["normal", "theft"], ["theft", "normal"]])
def test_labels_follow_the_order_of_the_classes_given(root: Path, classes: list[str]) -> None:
    dataset = VideoFrameDataset(str(root), classes, num_frames=2, transform=eval_transform((16, 16), (16, 16)))
    assert dataset.classes == tuple(classes)
    folders = [path.parent.name for path, _ in dataset.samples]
    assert sorted(folders) == ["normal"] * 3 + ["theft"] * 2
    assert [label for _, label in dataset.samples] == [classes.index(name) for name in folders]
    assert [dataset[index][1] for index in range(5)] == [classes.index(name) for name in folders]


def test_samples_counts_and_what_was_left_out(root: Path, make_frames: MakeFrames) -> None:
    (root / "theft/t1/frame_000003.png").write_bytes(b"garbage")
    make_frames(root / "theft/short", num_frames=3, height=HEIGHT, width=WIDTH)
    dataset = VideoFrameDataset(root, ["theft", "normal"], num_frames=6, short="skip")
    expected = [("normal/n0", 1), ("normal/n1", 1), ("normal/n2", 1), ("theft/t0", 0)]
    assert dataset.samples == [(root / name, label) for name, label in expected]
    assert dataset.class_counts == {"theft": 1, "normal": 3}
    assert list(dataset.class_counts) == ["theft", "normal"]
    assert [skip.name for skip in dataset.skipped] == ["theft/t1", "theft/short"]
    assert dataset.skipped[1] == Skip("theft/short", "short: 3 of 6 frames")
    assert any("left out" in note for note in dataset.notes)


def test_clips_given_instead_of_searched(root: Path) -> None:
    clips = [clip for clip in find_clips(root, num_frames=2).clips if clip.name in ("normal/n1", "theft/t0")]
    dataset = VideoFrameDataset(root, ["theft", "normal"], num_frames=2, clips=clips[::-1])
    assert dataset.samples == [(root / "theft/t0", 0), (root / "normal/n1", 1)]
    assert dataset.class_counts == {"theft": 1, "normal": 1}
    assert dataset.skipped == ()


def test_troubles_of_the_data_folder_are_raised_at_once(root: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'theft'"):
        VideoFrameDataset(root, ["thef", "normal"])
    with pytest.raises(DataError, match="fewer than 32 frames in 5"):
        VideoFrameDataset(root, ["theft", "normal"], short="error")


def test_a_clip_that_is_damaged_after_the_search(root: Path) -> None:
    dataset = VideoFrameDataset(root, ["theft", "normal"], num_frames=6)
    (root / "normal/n1/frame_000002.png").write_bytes(b"")
    shutil.rmtree(root / "normal/n2")
    for path in (root / "theft/t0").iterdir():
        path.unlink()
    with pytest.raises(ClipError, match=r"frame_000002\.png: not a readable image"):
        dataset[1]
    with pytest.raises(ClipError, match="n2: cannot be listed"):
        dataset[2]
    with pytest.raises(ClipError, match="t0: the folder holds no image"):
        dataset[3]


# --- which frames ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 4, 6, 13])
def test_frames_are_spread_uniformly_and_short_clips_repeat(root: Path, num_frames: int) -> None:
    dataset = VideoFrameDataset(
        root, ["normal", "theft"], num_frames, eval_transform((HEIGHT, WIDTH), (HEIGHT, WIDTH), None, None)
    )
    clip, _ = dataset[0]
    expected = frames_by_hand(root / "normal/n0", frame_indices(6, num_frames).tolist(), (HEIGHT, WIDTH))
    torch.testing.assert_close(clip, torch.from_numpy(expected).permute(3, 0, 1, 2), rtol=0, atol=1e-6)
    assert any("frames repeat" in note for note in dataset.notes) is (num_frames > 6)


def test_stored_frames_are_stepped_through(root: Path) -> None:
    row = {"path": "normal/n0", "label": "normal", "group": "", "every": 2, "fps": 5}
    write_csv(root / "clips.csv", list(row), [row])
    dataset = VideoFrameDataset(root, ["normal", "theft"], 2, lambda frames: frames, step=FrameStep(every=6))
    # Every 2nd frame of the source is stored and every 6th is wanted: stored frames 0 and 3.
    expected = frames_by_hand(root / "normal/n0", [0, 3], (HEIGHT, WIDTH))
    np.testing.assert_array_equal(dataset[0][0].permute(0, 2, 3, 1).numpy(), (expected * 255).round())


def test_videos_as_clips(tmp_path: Path, make_video: MakeVideo, make_frames: MakeFrames) -> None:
    video = make_video(tmp_path / "theft/v.mp4", num_frames=9, height=40, width=48)
    make_frames(tmp_path / "normal/n", num_frames=9, height=40, width=48)
    step, roi = FrameStep(every=2), Roi.parse("0.5,0,0.5,0.5")
    transform = eval_transform((16, 16), (16, 16), None, None)
    dataset = VideoFrameDataset(tmp_path, ["normal", "theft"], 3, transform, step=step, roi=roi)
    assert [path.name for path, _ in dataset.samples] == ["n", "v.mp4"]
    clip, label = dataset[1]
    expected = read_video(video, 3, step, (16, 16), roi) / np.float32(255)
    assert label == 1
    torch.testing.assert_close(clip, torch.from_numpy(expected).permute(3, 0, 1, 2), rtol=0, atol=1e-6)
    # What a frame folder shows was cut out when it was extracted: it is not cut again.
    whole = frames_by_hand(tmp_path / "normal/n", [0, 4, 8], (16, 16))
    np.testing.assert_allclose(read_clip(dataset.clips[0], dataset.reading) / np.float32(255), whole, atol=1e-6)
    torch.testing.assert_close(dataset[0][0], torch.from_numpy(whole).permute(3, 0, 1, 2), rtol=0, atol=1e-6)


# --- the evaluation transform ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resize", "crop", "top", "left"),
    [
        ((128, 128), (112, 112), 8, 8),
        ((30, 40), (24, 32), 3, 4),
        ((29, 39), (24, 32), 2, 4),  # 2.5 and 3.5 are rounded to even
        ((16, 16), (16, 16), 0, 0),
    ],
)
def test_eval_items_equal_pillow_and_torch_by_hand(
    root: Path, resize: tuple[int, int], crop: tuple[int, int], top: int, left: int
) -> None:
    dataset = VideoFrameDataset(root, ["normal", "theft"], 4, eval_transform(resize, crop))
    clip, _ = dataset[3]
    frames = frames_by_hand(root / "theft/t0", [0, 1, 3, 5], resize)[:, top : top + crop[0], left : left + crop[1]]
    normalized = (torch.from_numpy(frames) - torch.tensor(KINETICS_MEAN)) / torch.tensor(KINETICS_STD)
    # Only the order of float32 operations may differ.
    torch.testing.assert_close(clip, normalized.permute(3, 0, 1, 2), rtol=0, atol=1e-5)


def test_eval_items_are_the_same_each_time(root: Path) -> None:
    dataset = VideoFrameDataset(root, ["normal", "theft"], 4, eval_transform())
    first, _ = dataset[0]
    assert torch.equal(first, dataset[0][0])
    assert torch.equal(first, dataset[draw(0, position=7, epoch=3)][0])


def test_without_mean_and_std_values_stay_between_0_and_1(root: Path) -> None:
    clip, _ = VideoFrameDataset(root, ["normal", "theft"], 4, train_transform(mean=None, std=None))[0]
    assert clip.min() >= 0
    assert 0.5 < clip.max() <= 1  # the bright square has level 230


def test_a_transform_refuses_frames_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"frames are \(64, 64\), this transform takes \(128, 128\)"):
        eval_transform()(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize(("mean", "std"), [(KINETICS_MEAN, KINETICS_STD), (None, None)])
def test_a_batch_for_other_engines_has_the_same_values_in_the_order_of_its_axes(mean: Triple, std: Triple) -> None:
    frames = torch.randint(0, 256, (2, 3, 12, 14, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    places = [Place(1, 4, True), Place(3, 0, False)]
    both = [
        ClipTransform((12, 14), (9, 10), mean, std, augment=False, planar=planar).batch(frames, places)
        for planar in (False, True)
    ]
    assert both[1].is_contiguous()
    assert torch.equal(*both)


# --- the training transform --------------------------------------------------------------------------


@pytest.fixture
def still(tmp_path: Path) -> Path:
    """A clip whose five frames are all the same random image, so that crop and flip can be read off."""
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for label in ("theft", "normal"):
        (tmp_path / "still" / label / "x").mkdir(parents=True)
        for number in range(5):
            Image.fromarray(pixels).save(tmp_path / "still" / label / "x" / f"{number}.png")
    return tmp_path / "still"


def test_crop_and_flip_are_the_same_for_all_frames_and_vary_between_draws(still: Path) -> None:
    crop = (16, 17)
    dataset = VideoFrameDataset(
        still, ["normal", "theft"], 5, train_transform((HEIGHT, WIDTH), crop, mean=None, std=None)
    )
    image = torch.from_numpy(frames_by_hand(still / "theft/x", [0], (HEIGHT, WIDTH))[0]).permute(2, 0, 1)
    places = list(itertools.product(range(HEIGHT - 16 + 1), range(WIDTH - 17 + 1), (False, True)))
    seen = []
    for position in range(120):
        clip, _ = dataset[draw(1, position)]
        assert clip.shape == (3, 5, 16, 17)
        assert torch.equal(clip, clip[:, :1].expand_as(clip))
        for top, left, flipped in places:
            window = image[:, top : top + 16, left : left + 17]
            if torch.allclose(clip[:, 0], window.flip(2) if flipped else window, atol=1e-6):
                seen.append((top, left, flipped))
    assert len(seen) == 120  # each is exactly one of the 80 possible windows
    tops, lefts, flips = (list(values) for values in zip(*seen, strict=True))
    assert set(tops) == set(range(5))
    assert set(lefts) == set(range(8))
    assert 40 <= sum(flips) <= 80  # 60 expected, standard deviation 5.5
    assert len(set(seen)) > 50  # of 80; 62 expected


def test_the_default_is_the_training_transform(root: Path) -> None:
    default = VideoFrameDataset(root, ["normal", "theft"], 4)
    training = VideoFrameDataset(root, ["normal", "theft"], 4, train_transform((128, 128), (112, 112)))
    evaluation = VideoFrameDataset(root, ["normal", "theft"], 4, eval_transform())
    for position in range(3):
        item, _ = default[draw(0, position)]
        assert torch.equal(item, training[draw(0, position)][0])
        assert not torch.equal(item, evaluation[draw(0, position)][0])


def test_a_draw_gives_the_same_item_each_time(root: Path) -> None:
    first = VideoFrameDataset(root, ["normal", "theft"], 4, seed=3)
    second = VideoFrameDataset(root, ["normal", "theft"], 4, seed=3)
    item, _ = first[draw(2, position=5, epoch=1)]
    first[0]
    first[draw(2, position=6, epoch=1)]
    assert torch.equal(item, first[draw(2, position=5, epoch=1)][0])
    torch.manual_seed(99)  # no matter what else is drawn in the program
    assert torch.equal(item, second[draw(2, position=5, epoch=1)][0])


def test_position_epoch_and_seed_each_change_the_augmentation(root: Path) -> None:
    dataset = VideoFrameDataset(root, ["normal", "theft"], 2, seed=3)
    other_seed = VideoFrameDataset(root, ["normal", "theft"], 2, seed=4)
    items = [
        dataset[draw(0, position=5, epoch=1)][0],
        dataset[draw(0, position=6, epoch=1)][0],
        dataset[draw(0, position=5, epoch=2)][0],
        dataset[draw(0, position=1, epoch=5)][0],
        other_seed[draw(0, position=5, epoch=1)][0],
    ]
    for one, another in itertools.combinations(items, 2):
        assert not torch.equal(one, another)


def test_asked_for_by_number_a_clip_is_augmented_anew_each_time(root: Path) -> None:
    def three_times(seed: int) -> list[torch.Tensor]:
        dataset = VideoFrameDataset(root, ["normal", "theft"], 2, seed=seed)
        return [dataset[0][0] for _ in range(3)]

    items = three_times(0)
    for one, another in itertools.combinations([*items, three_times(1)[0]], 2):
        assert not torch.equal(one, another)
    for one, another in zip(items, three_times(0), strict=True):
        assert torch.equal(one, another)


def test_workers_augment_differently_even_if_the_data_set_was_used_before(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VideoFrameDataset(root, ["normal", "theft"], 2)
    dataset[0]  # a look at the first item, as in every tutorial, before the loader starts its workers

    def in_worker(seed: int) -> torch.Tensor:
        monkeypatch.setattr(dataset_module, "get_worker_info", lambda: SimpleNamespace(seed=seed))
        copy: VideoFrameDataset = pickle.loads(pickle.dumps(dataset))  # as it gets into a worker
        return copy[0][0]

    assert torch.equal(in_worker(1), in_worker(1))
    assert not torch.equal(in_worker(1), in_worker(2))


def test_global_random_states_are_left_alone(root: Path) -> None:
    dataset = VideoFrameDataset(root, ["normal", "theft"], 2)
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002 (that very one)
    dataset[0]
    dataset[draw(1, position=2)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert str(np.random.get_state()) == before[2]  # noqa: NPY002


def test_global_random_state_is_left_alone_where_an_item_fails(root: Path) -> None:
    def fail(frames: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        raise RuntimeError("a bug in the transform")

    dataset = VideoFrameDataset(root, ["normal", "theft"], 2, fail)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="a bug"):
        dataset[0]
    assert torch.equal(torch.get_rng_state(), before)


# --- transforms of one's own -------------------------------------------------------------------------


def test_a_transform_of_ones_own_gets_whole_frames(root: Path) -> None:
    given: list[torch.Tensor] = []

    def keep(frames: torch.Tensor) -> torch.Tensor:
        given.append(frames)
        return frames

    clip, _ = VideoFrameDataset(root, ["normal", "theft"], 3, keep)[0]
    assert given[0].dtype == torch.uint8
    assert given[0].shape == (3, 3, HEIGHT, WIDTH)  # (T, C, H, W)
    expected = frames_by_hand(root / "normal/n0", [0, 2, 5], (HEIGHT, WIDTH))
    np.testing.assert_array_equal(clip.permute(0, 2, 3, 1).numpy(), (expected * 255).round())


def test_torchvision_transforms_are_taken_as_they_are(still: Path) -> None:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop((12, 14), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    dataset = VideoFrameDataset(still, ["normal", "theft"], 5, transform)
    one, another = dataset[draw(0, 0)][0], dataset[draw(0, 1)][0]
    assert one.shape == (5, 3, 12, 14)
    assert torch.equal(one, one[:1].expand_as(one))  # one crop for all frames
    assert not torch.equal(one, another)
    assert torch.equal(one, dataset[draw(0, 0)][0])


def test_natural_order_of_frames(tmp_path: Path) -> None:
    for label in ("theft", "normal"):
        (tmp_path / label / "x").mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (WIDTH, HEIGHT), (20 * number,) * 3).save(tmp_path / label / "x" / f"frame_{number}.png")
    clip, _ = VideoFrameDataset(tmp_path, ["normal", "theft"], 12, lambda frames: frames)[0]
    assert clip[:, 0, 0, 0].tolist() == [20 * number for number in range(12)]
    assert list_frames(tmp_path / "theft/x")[-1].name == "frame_11.png"

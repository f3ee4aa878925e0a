from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tillwatch.data.catalog import Skip
from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.loader import Batch, evaluation_loader, training_loader
from tillwatch.data.sampler import BalancedSampler, Draw, derive_seed
from tillwatch.data.transforms import eval_transform, train_transform

MakeFrames = Callable[..., Path]

NINE_TO_ONE = [0] * 900 + [1] * 100


def draws(sampler: BalancedSampler, epoch: int) -> list[Draw]:
    sampler.start_epoch(epoch)
    return cast(list[Draw], list(sampler))


# --- the sampler -------------------------------------------------------------------------------------


def test_every_class_is_drawn_as_often() -> None:
    sampler = BalancedSampler(NINE_TO_ONE, seed=0)
    shares = [sum(NINE_TO_ONE[draw.index] for draw in draws(sampler, epoch)) / 1000 for epoch in range(20)]
    # Binomial: 1,000 draws have a standard deviation of 0.016, 20 epochs' mean one of 0.0035; 4.5 of each.
    assert all(abs(share - 0.5) < 0.071 for share in shares)
    assert abs(sum(shares) / 20 - 0.5) < 0.016


def test_within_a_class_every_clip_is_drawn_as_often() -> None:
    sampler = BalancedSampler(NINE_TO_ONE, seed=0)
    counts = Counter(draw.index for epoch in range(20) for draw in draws(sampler, epoch))
    rare = [counts[index] for index in range(900, 1000)]  # 100 expected, standard deviation 10
    common = [counts[index] for index in range(900)]  # 11.1 expected, standard deviation 3.3
    assert 50 < min(rare) <= max(rare) < 150
    assert 0 < min(common) <= max(common) < 30


def test_three_classes() -> None:
    labels = [2] * 10 + [0] * 300 + [1] * 90
    sampler = BalancedSampler(labels, seed=1)
    counts = Counter(labels[draw.index] for epoch in range(30) for draw in draws(sampler, epoch))
    for label in range(3):
        assert abs(counts[label] / 12_000 - 1 / 3) < 0.02  # standard deviation 0.0043


def test_an_epoch_has_as_many_draws_as_clips_each_with_its_position() -> None:
    sampler = BalancedSampler(NINE_TO_ONE, seed=0)
    assert len(sampler) == 1000
    epoch = draws(sampler, 4)
    assert [draw.position for draw in epoch] == list(range(1000))
    assert {draw.epoch for draw in epoch} == {4}
    assert all(0 <= draw.index < 1000 for draw in epoch)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    used = BalancedSampler(NINE_TO_ONE, seed=7)
    for epoch in (0, 5, 2):
        draws(used, epoch)
    torch.manual_seed(123)
    fresh = BalancedSampler(NINE_TO_ONE, seed=7)
    assert draws(used, 3) == draws(fresh, 3)
    assert draws(used, 3) == draws(fresh, 3)  # and again


def test_two_passes_at_once_do_not_disturb_each_other() -> None:
    sampler = BalancedSampler(NINE_TO_ONE, seed=7)
    expected = draws(sampler, 0)
    one, another = iter(sampler), iter(sampler)
    assert cast(list[Draw], list(one)) == expected
    assert cast(list[Draw], list(another)) == expected


def test_epochs_and_seeds_differ() -> None:
    orders = [
        tuple(draw.index for draw in draws(BalancedSampler(NINE_TO_ONE, seed), epoch))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9  # seed 0 in epoch 1 is not seed 1 in epoch 0 either


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draws(BalancedSampler(NINE_TO_ONE, seed=0), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_clips() -> None:
    with pytest.raises(ValueError, match="num_samples"):
        BalancedSampler([], seed=0)


def test_seeds_of_draws_do_not_meet() -> None:
    seeds = [Draw(0, epoch, position).seed(seed) for seed in range(3) for epoch in range(10) for position in range(100)]
    assert len(set(seeds)) == 3000
    assert 0 <= min(seeds) <= max(seeds) < 2**63
    assert Draw(0, 1, 2).seed(3) == Draw(9, 1, 2).seed(3) == derive_seed(3, 1, 2)  # the clip does not matter


# --- the loader --------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path, make_frames: MakeFrames) -> Path:
    """Seven normal clips and three of theft, four frames each."""
    for label, count in (("normal", 7), ("theft", 3)):
        for number in range(count):
            make_frames(tmp_path / "data" / label / f"x{number}", num_frames=4, height=20, width=24, seed=number)
    return tmp_path / "data"


def training_set(root: Path) -> VideoFrameDataset:
    return VideoFrameDataset(root, ["normal", "theft"], 3, train_transform((20, 24), (16, 16)), seed=11)


def evaluation_set(root: Path) -> VideoFrameDataset:
    return VideoFrameDataset(root, ["normal", "theft"], 3, eval_transform((20, 24), (16, 16)))


def epochs_of(dataset: VideoFrameDataset, epochs: list[int], **options: Any) -> list[Batch]:
    loader, sampler = training_loader(dataset, 3, seed=11, **options)
    batches: list[Batch] = []
    for epoch in epochs:
        sampler.start_epoch(epoch)
        batches.extend(loader)
    return batches


def assert_equal(one: Batch, another: Batch) -> None:
    assert torch.equal(one.frames, another.frames)
    assert one.places == another.places
    assert torch.equal(one.labels, another.labels)
    assert torch.equal(one.indices, another.indices)
    assert one.skipped == another.skipped


def test_a_batch(root: Path) -> None:
    dataset = training_set(root)
    batches = epochs_of(dataset, [0])
    assert len(batches) == 3  # the tenth draw would stand alone
    sampler = BalancedSampler([label for _, label in dataset.samples], seed=11)
    drawn = draws(sampler, 0)
    for number, batch in enumerate(batches):
        assert batch.frames.shape == (3, 3, 20, 24, 3)
        assert batch.frames.dtype == torch.uint8
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert batch.skipped == ()
        expected = drawn[3 * number : 3 * number + 3]
        assert batch.indices.tolist() == [draw.index for draw in expected]
        assert batch.labels.tolist() == [dataset.samples[draw.index][1] for draw in expected]
        clips = batch.clips(train_transform((20, 24), (16, 16)))
        assert clips.shape == (3, 3, 3, 16, 16)
        assert clips.dtype == torch.float32
        for clip, draw in zip(clips, expected, strict=True):
            assert torch.equal(clip, dataset[draw][0])


def test_epochs_differ_and_a_resumed_run_goes_on_as_it_would_have(root: Path) -> None:
    whole = epochs_of(training_set(root), [0, 1])
    resumed = epochs_of(training_set(root), [1])
    assert [batch.indices.tolist() for batch in whole[:3]] != [batch.indices.tolist() for batch in whole[3:]]
    for one, another in zip(whole[3:], resumed, strict=True):
        assert_equal(one, another)


def test_workers_change_nothing(root: Path) -> None:
    dataset = training_set(root)
    shutil.rmtree(root / "theft/x1")  # damage must come out the same way too
    alone = epochs_of(dataset, [0, 1])
    assert any(batch.skipped for batch in alone)
    shared = epochs_of(dataset, [0, 1], workers=2, start_method="spawn")
    assert len(shared) == len(alone) == 6
    for one, another in zip(alone, shared, strict=True):
        assert_equal(one, another)


def test_loading_leaves_the_global_random_state_alone(root: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    epochs_of(training_set(root), [0])
    list(evaluation_loader(evaluation_set(root), 4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(4, [4, 4]), (5, [5, 5]), (10, [10]), (11, [10]), (64, [10]), (1, [1] * 10)],
)
def test_an_incomplete_batch_is_dropped_where_there_is_a_complete_one(
    root: Path, batch_size: int, expected: list[int]
) -> None:
    loader, _ = training_loader(training_set(root), batch_size, seed=0)
    assert [len(batch.labels) for batch in loader] == expected


@pytest.mark.parametrize(("batch_size", "expected"), [(4, [4, 4, 2]), (10, [10]), (64, [10])])
def test_evaluation_takes_every_clip_once_in_order(root: Path, batch_size: int, expected: list[int]) -> None:
    dataset = evaluation_set(root)
    loader = evaluation_loader(dataset, batch_size)
    for _ in range(2):
        batches = list(loader)
        assert [len(batch.labels) for batch in batches] == expected
        assert [index for batch in batches for index in batch.indices.tolist()] == list(range(10))
        assert [label for batch in batches for label in batch.labels.tolist()] == [0] * 7 + [1] * 3
        clips = torch.cat([batch.clips(eval_transform((20, 24), (16, 16))) for batch in batches])
        assert torch.equal(clips, torch.stack([dataset[index][0] for index in range(10)]))


def test_a_clip_damaged_in_the_meantime_is_skipped_and_named(root: Path) -> None:
    dataset = evaluation_set(root)
    (root / "normal/x2/frame_000001.jpg").write_bytes(b"garbage")
    first, *others = evaluation_loader(dataset, 4)
    assert first.indices.tolist() == [0, 1, 3]
    assert first.labels.tolist() == [0, 0, 0]
    clips = first.clips(eval_transform((20, 24), (16, 16)))
    assert clips.shape == (3, 3, 3, 16, 16)
    assert torch.equal(clips[2], dataset[3][0])
    (skip,) = first.skipped
    assert skip.name == "normal/x2"
    assert "frame_000001.jpg: not a readable image" in skip.reason
    assert not skip.reason.endswith(".")
    assert [batch.skipped for batch in others] == [(), ()]


def test_training_goes_on_past_a_damaged_clip(root: Path) -> None:
    dataset = training_set(root)
    shutil.rmtree(root / "theft/x1")
    drawn = draws(BalancedSampler([label for _, label in dataset.samples], seed=11), 0)
    batches = epochs_of(dataset, [0])
    hit = sum(draw.index == 8 for draw in drawn[:9])
    assert hit > 0
    assert sum(len(batch.skipped) for batch in batches) == hit
    assert sum(len(batch.labels) for batch in batches) == 9 - hit
    assert {skip.name for batch in batches for skip in batch.skipped} == {"theft/x1"}


def test_a_batch_of_which_nothing_can_be_read(root: Path) -> None:
    dataset = evaluation_set(root)
    for number in range(4):
        shutil.rmtree(root / f"normal/x{number}")
    first, *others = evaluation_loader(dataset, 4)
    assert len(first.frames) == len(first.labels) == len(first.indices) == 0
    assert first.labels.dtype == torch.int64
    assert [skip.name for skip in first.skipped] == [f"normal/x{number}" for number in range(4)]
    assert all(isinstance(skip, Skip) for skip in first.skipped)
    assert [len(batch.labels) for batch in others] == [4, 2]


def test_a_mistake_of_ours_is_no_damaged_clip(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = evaluation_set(root)

    def fail(index: int) -> None:
        raise RuntimeError("a bug in reading")

    monkeypatch.setattr(dataset, "read", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        next(iter(evaluation_loader(dataset, 4)))


def test_transforms_that_take_one_clip_at_a_time_are_refused(root: Path) -> None:
    dataset = VideoFrameDataset(root, ["normal", "theft"], 3, lambda frames: frames)
    with pytest.raises(TypeError, match="must be a ClipTransform"):
        evaluation_loader(dataset, 4)

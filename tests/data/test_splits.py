from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from tillwatch.data.catalog import Clip
from tillwatch.data.splits import SHARES, SIDES, missing_classes, read_split_file, split_clips
from tillwatch.errors import DataError

Members = Sequence[tuple[int, str]]  # (group, label) of each clip


def make_clip(name: str, label: str, group: str) -> Clip:
    return Clip(
        name=name,
        path=Path(name),
        label=label,
        group=group,
        is_video=False,
        num_frames=8,
        every=None,
        fps=None,
    )


def make_clips(members: Members, prefix: str = "") -> list[Clip]:
    return [
        make_clip(f"{label}/{prefix}{number}", label, f"group {group}") for number, (group, label) in enumerate(members)
    ]


def singles(counts: Mapping[str, int]) -> list[Clip]:
    """Clips that are each a group of their own."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    return make_clips(list(enumerate(labels)))


def distance(clips: Sequence[Clip], sides: Mapping[str, str]) -> float:
    """Pearson's chi-squared distance of the class counts per side from 70, 15 and 15 %."""
    totals = Counter(clip.label for clip in clips)
    counts = Counter((sides[clip.name], clip.label) for clip in clips)
    return sum(
        (counts[side, label] - share * total) ** 2 / (share * total)
        for side, share in zip(SIDES, SHARES, strict=True)
        for label, total in totals.items()
    )


def can_be_complete(clips: Sequence[Clip], fixed: Mapping[str, str] | None = None) -> bool:
    """Tries every way to put the groups on sides for one that has every class on every side."""
    labels = sorted({clip.label for clip in clips})
    held: dict[str, set[str]] = defaultdict(set)
    settled: dict[str, int] = {}
    for clip in clips:
        held[clip.group].add(clip.label)
        if fixed and clip.name in fixed:
            settled[clip.group] = SIDES.index(fixed[clip.name])
    holds = np.array([[label in members for label in labels] for members in held.values()])
    choices = [[settled[group]] if group in settled else range(len(SIDES)) for group in held]
    ways = np.array(list(itertools.product(*choices)), dtype=np.int8)
    complete = np.ones(len(ways), dtype=bool)
    for side in range(len(SIDES)):
        complete &= ((ways == side).astype(np.int64) @ holds.astype(np.int64) > 0).all(1)
    return bool(complete.any())


members = st.lists(st.tuples(st.integers(0, 14), st.sampled_from("abc")), min_size=1, max_size=60)
few_groups = st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abc")), min_size=1, max_size=30)


# --- what always holds -------------------------------------------------------------------------------


@given(members=members, seed=st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_no_group_is_divided_and_every_clip_has_a_side(members: Members, seed: int) -> None:
    clips = make_clips(members)
    sides = split_clips(clips, seed)
    assert set(sides) == {clip.name for clip in clips}
    assert set(sides.values()) <= set(SIDES)
    of_group: dict[str, set[str]] = defaultdict(set)
    for clip in clips:
        of_group[clip.group].add(sides[clip.name])
    assert all(len(found) == 1 for found in of_group.values())


@given(members=members, seed=st.integers(0, 5), shuffle=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_clips_does_not_matter(members: Members, seed: int, shuffle: random.Random) -> None:
    clips = make_clips(members)
    shuffled = list(clips)
    shuffle.shuffle(shuffled)
    assert split_clips(shuffled, seed) == split_clips(clips, seed)


def test_the_split_is_a_pure_function_of_the_seed() -> None:
    clips = singles({"theft": 20, "normal": 20})
    splits = [tuple(sorted(split_clips(clips, seed).items())) for seed in range(6)]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 (a split that looked at it would show here)
    assert [tuple(sorted(split_clips(clips, seed).items())) for seed in range(6)] == splits
    assert len(set(splits)) == 6


def test_the_split_stays_what_it_was() -> None:
    # Golden: were it to change from one version to the next, clips that a model was tested on would train the next.
    clips = make_clips([(group, "ab"[(group * size) % 2]) for group in range(12) for size in range(1 + group % 4)])
    sides = split_clips(clips, seed=0)
    groups = {side: sorted({int(c.group.split()[1]) for c in clips if sides[c.name] == side}) for side in SIDES}
    assert groups == {"train": [0, 1, 3, 4, 6, 7, 9, 10], "validation": [8, 11], "test": [2, 5]}


def test_no_clips() -> None:
    assert split_clips([], seed=0) == {}


# --- every class on every side -----------------------------------------------------------------------


@given(members=few_groups, seed=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_class_is_on_every_side_where_that_is_possible(members: Members, seed: int) -> None:
    clips = make_clips(members)
    complete = not missing_classes(clips, split_clips(clips, seed))
    assert complete is can_be_complete(clips)


@given(members=few_groups, seed=st.integers(0, 3), sides=st.lists(st.sampled_from(SIDES), min_size=7, max_size=7))
@settings(max_examples=60, deadline=None)
def test_every_class_is_on_every_side_where_the_settled_groups_leave_that_possible(
    members: Members, seed: int, sides: list[str]
) -> None:
    clips = make_clips(members)
    groups = sorted({clip.group for clip in clips})
    settled = dict(zip(groups[::2], sides, strict=False))
    fixed = {clip.name: settled[clip.group] for clip in clips if clip.group in settled}
    complete = not missing_classes(clips, split_clips(clips, seed, fixed))
    assert complete is can_be_complete(clips, fixed)


@given(
    members=st.lists(st.tuples(st.integers(0, 9), st.sampled_from("aaabbc")), min_size=10, max_size=40),
    seed=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_every_class_is_on_every_side_where_possible_among_ten_groups(members: Members, seed: int) -> None:
    # From ten groups on, the sides are found by steps instead of by trying them all.
    clips = make_clips([*((group, "a") for group in range(10)), *members])
    complete = not missing_classes(clips, split_clips(clips, seed))
    assert complete is can_be_complete(clips)


@given(
    sizes=st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40)), min_size=0, max_size=30),
    rare=st.lists(st.integers(1, 30), min_size=12, max_size=12),
    seed=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_three_groups_of_a_class_alone_suffice_among_many(
    sizes: list[tuple[str, int]], rare: list[int], seed: int
) -> None:
    sizes = [*zip("abcd" * 3, rare, strict=True), *sizes]
    clips = make_clips([(group, label) for group, (label, size) in enumerate(sizes) for _ in range(size)])
    assert missing_classes(clips, split_clips(clips, seed)) == []


def test_no_imbalance_is_worse_than_a_missing_class() -> None:
    # Three large days and no more: each side must get one, however uneven that is among 20,000 clips.
    days = {0: 10_000, 1: 9_980, 2: 20}
    clips = make_clips([(day, label) for day, count in days.items() for label in "ab" for _ in range(count // 2)])
    assert missing_classes(clips, split_clips(clips, seed=0)) == []


def test_a_class_that_is_too_rare_is_trained_on_first() -> None:
    # What never was seen in training cannot be recognised; the test side comes next, validation last.
    clips = singles({"normal": 30, "theft": 2})
    assert missing_classes(clips, split_clips(clips, seed=0)) == [("validation", "theft")]
    clips = singles({"normal": 30, "theft": 1})
    assert missing_classes(clips, split_clips(clips, seed=0)) == [("validation", "theft"), ("test", "theft")]
    clips = singles({"normal": 1, "theft": 1})
    assert missing_classes(clips, split_clips(clips, seed=0)) == [
        (side, label) for side in ("validation", "test") for label in ("normal", "theft")
    ]


# --- how even it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counts", [{"theft": 100, "normal": 100}, {"theft": 40, "normal": 160}, {"a": 20, "b": 33, "c": 7}]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_single_clips_come_as_near_to_the_shares_as_whole_clips_can(counts: dict[str, int], seed: int) -> None:
    clips = singles(counts)
    sides = split_clips(clips, seed)
    found = Counter((sides[clip.name], clip.label) for clip in clips)
    for side, share in zip(SIDES, SHARES, strict=True):
        for label, count in counts.items():
            assert abs(found[side, label] - share * count) <= 1


def test_classes_mixed_within_groups_are_balanced_too() -> None:
    rng = np.random.default_rng(0)
    clips = make_clips(
        [(group, "ab"[int(rng.random() < 0.3)]) for group in range(60) for _ in range(rng.integers(1, 8))]
    )
    sides = split_clips(clips, seed=0)
    for label in "ab":
        of_label = [sides[clip.name] for clip in clips if clip.label == label]
        for side, share in zip(SIDES, SHARES, strict=True):
            # A group holds about four clips: three percent of a class of 80 are less than one group.
            assert of_label.count(side) / len(of_label) == pytest.approx(share, abs=0.03)


def stratified_group_k_fold(clips: Sequence[Clip], seed: int) -> dict[str, str]:
    """Twenty folds of scikit-learn's: fourteen to train on, three each to validate and to test on."""
    folds = StratifiedGroupKFold(n_splits=20, shuffle=True, random_state=seed)
    labels, groups = [clip.label for clip in clips], [clip.group for clip in clips]
    sides = {}
    for number, (_, members) in enumerate(folds.split(labels, labels, groups)):
        for member in members:
            sides[clips[member].name] = "train" if number < 14 else "validation" if number < 17 else "test"
    return sides


def test_uneven_groups_are_split_as_evenly_as_by_scikit_learn() -> None:
    ours, theirs = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        clips = make_clips(
            [
                (group, "ab"[int(rng.random() < lean)])
                for group in range(40)
                for lean in [rng.beta(0.5, 1)]  # most groups are nearly of one class
                for _ in range(int(rng.geometric(0.12)))  # a few hold half of all clips
            ]
        )
        ours.append(distance(clips, split_clips(clips, seed)))
        theirs.append(distance(clips, stratified_group_k_fold(clips, seed)))
    assert sum(ours) <= 1.1 * sum(theirs)
    assert max(ours) < 1  # each class's counts are within a clip or two of their shares


# --- a split that was settled before -----------------------------------------------------------------


@given(
    old=members,
    added=st.lists(st.tuples(st.integers(0, 25), st.sampled_from("abcd")), max_size=25),
    seeds=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
@settings(max_examples=80, deadline=None)
def test_added_clips_move_no_others_and_join_their_group(old: Members, added: Members, seeds: tuple[int, int]) -> None:
    first = make_clips(old)
    fixed = split_clips(first, seeds[0])
    clips = [*first, *make_clips(added, prefix="new ")]
    sides = split_clips(clips, seeds[1], fixed)
    assert {clip.name: sides[clip.name] for clip in first} == fixed
    side_of = {clip.group: fixed[clip.name] for clip in first}
    for clip in clips:
        assert sides[clip.name] == side_of.setdefault(clip.group, sides[clip.name])


def test_new_groups_fill_what_the_settled_ones_lack() -> None:
    first = singles({"theft": 20, "normal": 20})
    fixed = dict.fromkeys((clip.name for clip in first), "train")
    added = make_clips([(100 + n, label) for n, label in enumerate(["theft"] * 20 + ["normal"] * 20)], prefix="new ")
    counts = Counter(
        (side, clip.label) for clip in added for side in [split_clips([*first, *added], seed=0, fixed=fixed)[clip.name]]
    )
    # Of 40 a class, 28 belong into training, where 20 are already, and 6 each to the other sides.
    assert counts == {
        ("test", "normal"): 6,
        ("test", "theft"): 6,
        ("train", "normal"): 8,
        ("train", "theft"): 8,
        ("validation", "normal"): 6,
        ("validation", "theft"): 6,
    }


def test_clips_of_the_split_file_that_are_gone_do_not_matter() -> None:
    clips = singles({"theft": 10, "normal": 10})
    fixed = split_clips(clips, seed=0)
    left = clips[::2]
    assert split_clips(left, seed=1, fixed=fixed | {"theft/gone": "test"}) == {
        clip.name: fixed[clip.name] for clip in left
    }


def test_a_split_file_that_divides_a_group_is_refused() -> None:
    clips = make_clips([(0, "a"), (0, "a"), (1, "b")])
    with pytest.raises(DataError, match=r"puts group 'group 0' on test and train;.*Mend the file or the groups"):
        split_clips(clips, seed=0, fixed={clips[0].name: "train", clips[1].name: "test"})
    assert split_clips(clips, seed=0, fixed={clips[0].name: "test", clips[1].name: "test"})[clips[0].name] == "test"


def test_missing_classes_in_order() -> None:
    clips = singles({"b": 2, "a": 1})
    sides = {clips[0].name: "train", clips[1].name: "test", clips[2].name: "test"}
    assert missing_classes(clips, sides) == [("train", "a"), ("validation", "a"), ("validation", "b")]
    assert missing_classes([], {}) == []


# --- split files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_read_split_file(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "clips.csv"
    path.write_text(
        mark + "path,label,group,split\ntheft/größe 1,theft,g,train\ntheft/b,theft,,validation\n"
        "normal/c,normal,,test\nnormal/damaged,normal,,\n",
        encoding="utf-8",
    )
    assert read_split_file(path) == {"theft/größe 1": "train", "theft/b": "validation", "normal/c": "test"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "cannot be read", id="missing"),
        pytest.param(b"", "needs the columns path and split", id="empty"),
        pytest.param(b"path,split\n", "needs the columns path and split", id="header alone"),
        pytest.param(b"path,label\na,b\n", "needs the columns path and split", id="no split"),
        pytest.param(b"name,split\na,train\n", "needs the columns path and split", id="no path"),
        pytest.param(
            b"path,split\na,train\nb,val\n", "split is 'val'; it must be one of train, validation, test", id="side"
        ),
        pytest.param("path,split\nä,train\n".encode("latin-1"), "cannot be read", id="not UTF-8"),
        pytest.param(b'path,split\n"' + b"x" * 200_000, "cannot be read", id="an open quotation mark"),
        pytest.param(b"path,split\na,train\na,test\n", "a ", id="a clip on two sides"),
    ],
)
def test_split_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "clips.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"--split-file .*clips\.csv.*{message}"):
        read_split_file(path)

"""The clip store: what is kept comes back, and nothing that befalls it gives wrong frames."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tillwatch.clip_spec import FrameStep, Reading, Roi
from tillwatch.data import dataset as dataset_module
from tillwatch.data import store as store_module
from tillwatch.data.catalog import Clip, find_clips
from tillwatch.data.dataset import VideoFrameDataset, read_clip
from tillwatch.data.fingerprints import fingerprint_of
from tillwatch.data.loader import evaluation_loader, training_loader
from tillwatch.data.store import KEEP_FREE as KEPT_FREE  # other tests leave nothing free
from tillwatch.data.store import ClipStore, default_store_folder, fingerprint
from tillwatch.data.transforms import eval_transform, train_transform
from tillwatch.errors import ClipError

MakeFrames = Callable[..., Path]
MakeVideo = Callable[..., Path]

CLASSES = ["normal", "theft"]
READING = Reading(num_frames=3, resize=(20, 24))  # 4 kB of frames: read
LARGE = Reading(num_frames=4, resize=(128, 128))  # 197 kB of frames: mapped


@pytest.fixture
def root(tmp_path: Path, make_frames: MakeFrames) -> Path:
    """Three clips of each class, of four frames in files that are all equally long."""
    for number in range(6):
        name = f"{CLASSES[number % 2]}/x{number}"
        make_frames(tmp_path / "data" / name, num_frames=4, suffix=".bmp", height=20, width=24, seed=number)
    return tmp_path / "data"


@pytest.fixture
def clips(root: Path) -> tuple[Clip, ...]:
    return find_clips(root, CLASSES).clips


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the store lies; not there yet."""
    return tmp_path / "cache" / "clips"


def test_a_damaged_fingerprint_is_taken_anew(clips: tuple[Clip, ...], folder: Path) -> None:
    store = a_store(folder)
    taken = fingerprint_of(clips[0], store)
    (entry,) = [path for path in folder.rglob("*") if path.is_file() and b"PK" in path.read_bytes()]
    data = bytearray(entry.read_bytes())
    data[data.index(b"PK") + 60] ^= 1
    entry.write_bytes(data)
    again = fingerprint_of(clips[0], a_store(folder))
    assert taken is not None
    assert again is not None
    assert all(np.array_equal(value, getattr(again, name)) for name, value in vars(taken).items())


def test_an_entry_whose_numbers_are_of_no_kind_is_none(clips: tuple[Clip, ...], folder: Path) -> None:
    store = a_store(folder)
    store.keep(clips[0], READING, read_clip(clips[0], READING))
    (entry,) = [path for path in folder.rglob("*") if path.is_file()]
    entry.write_bytes(entry.read_bytes().replace(b'"|u1"', b'",u1"'))
    assert a_store(folder).find(clips[0], READING) is None
    assert len(a_store(folder).verify()[1]) == 1


def a_store(folder: Path) -> ClipStore:
    """A store as another process would open it; it may use the last byte of the disk."""
    return ClipStore(folder, keep_free=0)


def built(folder: Path, clips: tuple[Clip, ...], reading: Reading = READING) -> ClipStore:
    store = a_store(folder)
    for clip in clips:
        read_through(store, clip, reading)
    assert store.trouble is None
    return store


def read_through(store: ClipStore, clip: Clip, reading: Reading = READING) -> NDArray[np.uint8]:
    """As the data set does it."""
    frames = store.find(clip, reading)
    if frames is None:
        frames = read_clip(clip, reading)
        store.keep(clip, reading, frames)
    return frames


def kept(store: ClipStore, clip: Clip, reading: Reading = READING, derived: str = "") -> NDArray[Any]:
    """What the store has of a clip, which must be something."""
    frames = store.find(clip, reading, derived)
    assert frames is not None
    return frames


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def set_used(store: ClipStore, ages_s: dict[str, float]) -> None:
    """Makes entries of clips, by name, last wanted that many seconds ago."""
    now = time.time()
    for entry in store.entries():
        age = next(age for name, age in ages_s.items() if entry.source.endswith(name))
        os.utime(entry.path, (now - age, now - age))


# --- what is kept comes back -------------------------------------------------------------------------


@pytest.mark.parametrize("reading", [READING, LARGE], ids=["read", "mapped"])
def test_frames_come_back_as_they_were(folder: Path, clips: tuple[Clip, ...], reading: Reading) -> None:
    store = a_store(folder)
    assert store.find(clips[0], reading) is None
    assert not folder.exists()  # looking writes nothing
    frames = read_clip(clips[0], reading)
    store.keep(clips[0], reading, frames)
    for again in (store, a_store(folder)):
        found = kept(again, clips[0], reading)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, frames)
        assert not found.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 0
    assert store.find(clips[1], reading) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps")
def test_frames_are_the_file_mapped_and_no_memory_of_the_process(folder: Path, clips: tuple[Clip, ...]) -> None:
    store = built(folder, clips[:1], LARGE)
    (entry,) = store.entries()
    frames = kept(store, clips[0], LARGE)
    assert int(frames.sum(dtype=np.int64)) > 0  # every page was touched
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    figures = dict(line.split(":", 1) for line in maps.partition(f"{entry.path}\n")[2].splitlines()[:20])
    assert int(figures["Size"].split()[0]) >= frames.nbytes // 1024
    assert figures["Anonymous"].split()[0] == "0"


def test_every_part_of_a_reading_tells_entries_apart(folder: Path, clips: tuple[Clip, ...]) -> None:
    clip = clips[0]
    variants: list[tuple[Clip, Reading, str]] = [
        (clip, READING, ""),
        (clip, replace(READING, num_frames=2), ""),
        (clip, replace(READING, step=FrameStep(every=2)), ""),
        (clip, replace(READING, step=FrameStep(fps=2)), ""),
        (clip, replace(READING, roi=Roi(x=0, y=0, width=0.5, height=0.5)), ""),
        (clip, replace(READING, resize=(24, 20)), ""),
        (clip, replace(READING, resize=None), ""),
        (clip, replace(READING, draft=(40, 48)), ""),
        (replace(clip, frame_step=2), READING, ""),
        (clip, READING, "features"),
        (clip, READING, "other features"),
        (clips[1], READING, ""),
    ]
    store = a_store(folder)
    for number, (of_clip, reading, derived) in enumerate(variants):
        assert store.find(of_clip, reading, derived) is None
        store.keep(of_clip, reading, np.full((number + 1,), number, np.uint8), derived)
    for again in (store, a_store(folder)):
        for number, (of_clip, reading, derived) in enumerate(variants):
            assert kept(again, of_clip, reading, derived).tolist() == [number] * (number + 1)
    assert len(list(store.entries())) == len(variants)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (40, 1024)])
def test_what_is_computed_of_frames_is_kept_too(folder: Path, clips: tuple[Clip, ...], shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    store = a_store(folder)
    store.keep(clips[0], READING, values, "features")
    found = kept(a_store(folder), clips[0], READING, "features")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values)
    assert store.find(clips[0], READING) is None
    assert store.verify() == (1, [])


def test_arrays_that_do_not_lie_in_order(folder: Path, clips: tuple[Clip, ...]) -> None:
    frames = read_clip(clips[0], READING)[::-1, :, ::2].transpose(0, 3, 1, 2)
    store = a_store(folder)
    store.keep(clips[0], READING, frames, "turned")
    np.testing.assert_array_equal(kept(store, clips[0], READING, "turned"), frames)
    assert store.verify() == (1, [])


def test_many_small_entries_may_be_held_at_once(folder: Path, clips: tuple[Clip, ...]) -> None:
    store = a_store(folder)
    for number in range(60):
        store.keep(clips[0], READING, np.full(8, number, np.float32), f"features {number}")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)  # the lowest descriptor that is free, so those below it are all in use
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 20, limits[1]))
    try:
        held = [store.find(clips[0], READING, f"features {number}") for number in range(60)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [None if of_clip is None else of_clip[0] for of_clip in held] == list(range(60))


def test_videos_too(folder: Path, tmp_path: Path, make_video: MakeVideo) -> None:
    for label in CLASSES:
        make_video(tmp_path / "videos" / label / "v.mp4", num_frames=6)
    clip = find_clips(tmp_path / "videos", CLASSES).clips[0]
    assert clip.is_video
    store = a_store(folder)
    frames = read_through(store, clip)
    np.testing.assert_array_equal(kept(a_store(folder), clip), frames)
    make_video(clip.path, num_frames=6, brightness=120)
    changed = read_through(a_store(folder), clip)
    assert not np.array_equal(changed, frames)
    np.testing.assert_array_equal(changed, read_clip(clip, READING))


def test_names_that_are_no_unicode(folder: Path, root: Path, clips: tuple[Clip, ...]) -> None:
    odd = Path(os.fsdecode(os.fsencode(root) + b"/normal/\xff"))
    try:
        clips[0].path.rename(odd)
        (odd / "frame_000000.bmp").rename(Path(os.fsdecode(os.fsencode(odd) + b"/\xfe1.bmp")))
    except OSError:
        pytest.skip("this file system has no such names")
    clip = replace(clips[0], path=odd)
    frames = read_through(a_store(folder), clip)
    np.testing.assert_array_equal(kept(a_store(folder), clip), frames)
    assert [entry.source for entry in a_store(folder).entries()] == [str(odd)]


def test_where_clips_are_kept_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILLWATCH_CACHE", str(tmp_path))
    assert default_store_folder() == tmp_path / "clips"
    monkeypatch.setenv("TILLWATCH_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_store_folder().name == "clips"
    assert default_store_folder().parent.name == "tillwatch"
    assert default_store_folder().is_relative_to(tmp_path)


# --- changed sources ---------------------------------------------------------------------------------


def other_content_of_equal_length(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-60:] = bytes(255 - byte for byte in data[-60:])
    path.write_bytes(data)


def other_content_and_the_time_set_back(path: Path) -> None:
    before = path.stat()
    other_content_of_equal_length(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_an_older_file(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy(path, other)
    other_content_of_equal_length(other)
    long_ago = time.time() - 1e6
    os.utime(other, (long_ago, long_ago))
    other.replace(path)


def another_file_of_the_same_time(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    other_content_and_the_time_set_back(other)
    assert (other.stat().st_size, other.stat().st_mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    other.replace(path)


def one_frame_less(path: Path) -> None:
    path.unlink()


def one_frame_more(path: Path) -> None:
    shutil.copy2(path, path.with_name("frame_000009.bmp"))


def frames_swapped(path: Path) -> None:
    """Two frames change their names; on some file systems that is no change of either file."""
    first = path.with_name("frame_000000.bmp")
    path.rename(path.with_name("aside"))
    first.rename(path)
    path.with_name("aside").rename(first)


@pytest.mark.parametrize(
    "change",
    [
        other_content_of_equal_length,
        other_content_and_the_time_set_back,
        replaced_by_an_older_file,
        another_file_of_the_same_time,
        one_frame_less,
        one_frame_more,
        frames_swapped,
    ],
)
def test_a_changed_source_is_read_again(folder: Path, clips: tuple[Clip, ...], change: Callable[[Path], None]) -> None:
    clip, other = clips[:2]
    store = built(folder, clips[:2])
    before = kept(store, clip).copy()
    time.sleep(0.02)  # longer than two ticks of the clock that stamps files
    change(clip.path / "frame_000001.bmp")
    after = read_clip(clip, READING)
    assert not np.array_equal(after, before)
    later = a_store(folder)
    assert later.find(clip, READING) is None
    np.testing.assert_array_equal(read_through(later, clip), after)
    np.testing.assert_array_equal(kept(a_store(folder), clip), after)
    assert len(list(later.entries())) == 2  # it took the old one's place
    assert a_store(folder).find(other, READING) is not None
    assert later.verify() == (2, [])


def test_what_is_computed_of_old_frames_does_not_pass_for_new(folder: Path, clips: tuple[Clip, ...]) -> None:
    clip = clips[0]
    store = built(folder, (clip,))
    time.sleep(0.02)
    other_content_of_equal_length(clip.path / "frame_000001.bmp")
    assert store.find(clip, READING, "sum") is None  # so that its source is looked at again
    store.keep(clip, READING, read_through(store, clip).sum(axis=(1, 2, 3)), "sum")
    np.testing.assert_array_equal(
        kept(a_store(folder), clip, READING, "sum"), read_clip(clip, READING).sum(axis=(1, 2, 3))
    )


def test_folders_that_were_given_each_others_names_are_told_apart(
    clips: tuple[Clip, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def frame(inode: int) -> Any:  # all else is equal in frames without compression, from one archive
        status = SimpleNamespace(st_size=9000, st_mtime_ns=1, st_ctime_ns=2, st_ino=inode)
        return SimpleNamespace(name="frame_000000.bmp", stat=lambda: status)

    states = []
    for inode in (11, 12, 11):
        monkeypatch.setattr(store_module, "list_frames", lambda path, inode=inode: [frame(inode)])
        states.append(store_module.fingerprint(clips[0]))
    assert states[0] == states[2] != states[1]


def test_a_source_that_changes_while_it_is_decoded(folder: Path, clips: tuple[Clip, ...]) -> None:
    clip, store = clips[0], a_store(folder)
    assert store.find(clip, READING) is None
    decoded = read_clip(clip, READING)
    time.sleep(0.02)
    other_content_of_equal_length(clip.path / "frame_000001.bmp")
    store.keep(clip, READING, decoded)
    np.testing.assert_array_equal(read_through(a_store(folder), clip), read_clip(clip, READING))


def test_two_processes_agree_on_a_source_that_changed_under_them(folder: Path, clips: tuple[Clip, ...]) -> None:
    clip = clips[0]
    early = built(folder, (clip,))
    time.sleep(0.02)
    other_content_of_equal_length(clip.path / "frame_000001.bmp")
    read_through(a_store(folder), clip)
    np.testing.assert_array_equal(kept(early, clip), read_clip(clip, READING))  # and is not built in turns for ever


def test_a_source_is_looked_at_once(folder: Path, clips: tuple[Clip, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    built(folder, clips)
    looked_at: list[str] = []

    def counted(clip: Clip) -> str:
        looked_at.append(clip.name)
        return fingerprint(clip)

    monkeypatch.setattr(store_module, "fingerprint", counted)
    store = a_store(folder)
    for clip in clips * 3:
        kept(store, clip)
    assert sorted(looked_at) == sorted(clip.name for clip in clips)


def test_a_source_that_is_gone(folder: Path, clips: tuple[Clip, ...]) -> None:
    built(folder, clips[:1])
    shutil.rmtree(clips[0].path)
    with pytest.raises(ClipError, match=str(clips[0].path)):
        a_store(folder).find(clips[0], READING)


# --- damage ------------------------------------------------------------------------------------------


def truncated(data: bytes) -> bytes:
    return data[:-1]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def longer(data: bytes) -> bytes:
    return data + b"\0"


def empty(data: bytes) -> bytes:
    return b""


def garbage_head(data: bytes) -> bytes:
    return random.Random(0).randbytes(4096) + data[4096:]


def garbage_behind_the_magic(data: bytes) -> bytes:
    return data[:17] + random.Random(0).randbytes(4079) + data[4096:]


def zeros(data: bytes) -> bytes:
    return bytes(len(data))


def no_object(data: bytes) -> bytes:
    return data[:17] + b"[]\n".ljust(4079) + data[4096:]


@pytest.mark.parametrize("reading", [READING, LARGE], ids=["read", "mapped"])
@pytest.mark.parametrize(
    "damage", [truncated, half, longer, empty, garbage_head, garbage_behind_the_magic, zeros, no_object]
)
def test_an_entry_that_is_not_whole_is_built_anew(
    folder: Path, clips: tuple[Clip, ...], damage: Callable[[bytes], bytes], reading: Reading
) -> None:
    store = built(folder, clips[:2], reading)
    path = next(entry.path for entry in store.entries() if entry.source == str(clips[0].path))
    data = path.read_bytes()
    path.write_bytes(damage(data))
    later = a_store(folder)
    assert later.find(clips[0], reading) is None
    assert sorted(bool(entry.damage) for entry in later.entries()) == [False, True]
    np.testing.assert_array_equal(read_through(later, clips[0], reading), read_clip(clips[0], reading))
    assert path.read_bytes() == data
    # and where nobody wants it, verifying removes it
    path.write_bytes(damage(data))
    count, (damaged,) = later.verify()
    assert count == 2
    assert damaged.path == path
    assert damaged.damage == "its head or its length is wrong"
    assert not path.exists()
    assert later.verify() == (1, [])


def test_a_flipped_bit_of_the_frames_is_found_by_verifying(folder: Path, clips: tuple[Clip, ...]) -> None:
    store = built(folder, clips, LARGE)
    path = next(entry.path for entry in store.entries() if entry.source == str(clips[2].path))
    data = bytearray(path.read_bytes())
    data[random.Random(0).randrange(4096, len(data))] ^= 1
    path.write_bytes(data)
    count, (damaged,) = store.verify()
    assert count == len(clips)
    assert damaged.source == str(clips[2].path)
    assert damaged.damage == "its frames are not the ones that were written"
    assert store.find(clips[2], LARGE) is None
    np.testing.assert_array_equal(read_through(store, clips[2], LARGE), read_clip(clips[2], LARGE))
    assert store.verify() == (len(clips), [])


def test_a_flipped_bit_of_the_head_makes_it_no_entry(folder: Path, clips: tuple[Clip, ...]) -> None:
    store = built(folder, clips[:1])
    ((path, data),) = [(path, path.read_bytes()) for path in files_in(folder)]
    rng = random.Random(0)
    for position in range(data.index(b"\n", 20) + 1):
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        assert store.find(clips[0], READING) is None  # though the frames are not looked at
        count, (damaged,) = store.verify()
        assert (count, damaged.damage) == (1, "its head or its length is wrong")


@pytest.mark.parametrize("looks", [1, 2])
def test_entries_pruned_by_another_process_are_not_damaged(
    folder: Path, clips: tuple[Clip, ...], monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    store = built(folder, clips)
    going = [path for number, path in enumerate(files_in(folder)) if number % 2]
    look, seen = store_module._map, dict.fromkeys(going, 0)

    def pruned_meanwhile(path: Path) -> Any:
        if path in seen:
            seen[path] += 1
            if seen[path] == looks:
                path.unlink()
        return look(path)

    monkeypatch.setattr(store_module, "_map", pruned_meanwhile)
    if looks == 1:
        assert [entry.damage for entry in store.entries()] == ["", "", ""]
    else:
        assert store.verify() == (3, [])
    assert not any(path.exists() for path in going)


# --- listing and pruning -----------------------------------------------------------------------------


def test_entries_say_what_they_are(folder: Path, clips: tuple[Clip, ...]) -> None:
    assert list(a_store(folder).entries()) == []
    assert a_store(folder).prune(0) == []
    assert a_store(folder).verify() == (0, [])
    started = time.time()
    store = built(folder, clips)
    store.keep(clips[0], READING, np.zeros(7, np.float32), "features")
    entries = list(store.entries())
    assert [entry.path for entry in entries] == files_in(folder)
    assert sorted(entry.source for entry in entries) == sorted(str(clip.path) for clip in (*clips, clips[0]))
    assert {entry.derived: entry.bytes for entry in entries} == {"": 4096 + 3 * 20 * 24 * 3, "features": 4096 + 28}
    assert all(entry.bytes == entry.path.stat().st_size for entry in entries)
    assert all(json.loads(entry.reading)["resize"] == [20, 24] for entry in entries)
    assert all(started - 1 < entry.used < time.time() + 1 for entry in entries)
    assert {entry.damage for entry in entries} == {""}


def test_pruning_takes_first_what_was_not_wanted_for_longest(folder: Path, clips: tuple[Clip, ...]) -> None:
    store = built(folder, clips)
    ages = dict(zip(("x0", "x1", "x2", "x3", "x4", "x5"), (500.0, 900.0, 100.0, 800.0, 300.0, 700.0), strict=True))
    set_used(store, ages)
    by_name = {clip.name.rpartition("/")[2]: clip for clip in clips}
    later = a_store(folder)
    kept(later, by_name["x3"])  # so it was wanted just now
    size = next(store.entries()).bytes
    assert later.prune(6 * size) == []
    removed = later.prune(4 * size - 1)
    assert [entry.source.rpartition("/")[2] for entry in removed] == ["x1", "x5", "x0"]
    assert sum(path.stat().st_size for path in files_in(folder)) == 3 * size
    assert [later.find(by_name[name], READING) is None for name in ages] == [True, True, False, False, False, True]
    np.testing.assert_array_equal(read_through(later, by_name["x1"]), read_clip(by_name["x1"], READING))
    assert len(later.prune(0)) == 4
    assert files_in(folder) == []


def test_frames_in_use_outlive_their_entry(folder: Path, clips: tuple[Clip, ...]) -> None:
    store = built(folder, clips[:1], LARGE)
    frames = kept(store, clips[0], LARGE)
    store.prune(0)
    np.testing.assert_array_equal(frames, read_clip(clips[0], LARGE))
    assert store.find(clips[0], LARGE) is None


@pytest.mark.parametrize("by", ["verify", "prune", "keep"])
def test_what_killed_builders_left_is_removed_after_an_hour(folder: Path, clips: tuple[Clip, ...], by: str) -> None:
    built(folder, clips[:2])
    beside = files_in(folder)[0]
    ages = {"old": 3700, "young": 3500, "new": 0}
    parts = {age: beside.with_name(f".{beside.name}.{age}.part") for age in ages}
    for age, part in parts.items():
        part.write_bytes(b"half")
        os.utime(part, (time.time() - ages[age],) * 2)
    store = a_store(folder)
    assert len(list(store.entries())) == 2  # they are no entries
    if by == "verify":
        assert store.verify() == (2, [])
    elif by == "prune":
        assert store.prune(10**9) == []
    else:
        store.keep(clips[2], READING, read_clip(clips[2], READING))
    assert [part.exists() for part in parts.values()] == [False, True, True]
    assert len(list(store.entries())) == (3 if by == "keep" else 2)


# --- disks that take no more -------------------------------------------------------------------------


def assert_decodes_and_says_why(store: ClipStore, root: Path, reason: str) -> None:
    """The data set over this store gives right clips, and `trouble` is one sentence with this reason."""
    plain = VideoFrameDataset(root, CLASSES, 3, eval_transform((20, 24), (16, 16)))
    dataset = VideoFrameDataset(root, CLASSES, 3, eval_transform((20, 24), (16, 16)), store=store)
    for _ in range(2):
        for index in range(len(dataset)):
            assert torch.equal(dataset[index][0], plain[index][0])
    assert store.trouble is not None
    assert reason in store.trouble
    assert str(store.folder) in store.trouble
    assert store.trouble.endswith(".")
    assert "\n" not in store.trouble


def test_the_space_to_leave_free_is_left_free(folder: Path, root: Path) -> None:
    store = ClipStore(folder, keep_free=shutil.disk_usage(root).free + 10**9)
    assert_decodes_and_says_why(store, root, "GB are free on its disk")
    assert files_in(folder) == []


@pytest.mark.parametrize(
    ("total", "free", "keeps"),
    [
        (2 * 10**12, 10**10 + 10**6, True),
        (2 * 10**12, 10**10 + 10**3, False),  # 10 GB
        (2 * 10**9, 2 * 10**8 + 10**6, True),
        (2 * 10**9, 2 * 10**8 + 10**3, False),  # a tenth of a smaller disk
    ],
)
def test_how_much_is_left_free_unless_told(
    folder: Path, clips: tuple[Clip, ...], monkeypatch: pytest.MonkeyPatch, total: int, free: int, keeps: bool
) -> None:
    monkeypatch.setattr("tillwatch.data.store.KEEP_FREE", KEPT_FREE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=total, free=free))
    store = ClipStore(folder)
    read_through(store, clips[0])
    assert (store.find(clips[0], READING) is not None) == keeps
    assert (store.trouble is None) == keeps


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_failing_write_leaves_nothing_half_written(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, full)
        assert_decodes_and_says_why(a_store(folder), root, "No space left on device")
    assert files_in(folder) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, root: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    assert_decodes_and_says_why(a_store(tmp_path / "file" / "clips"), root, "Not a directory")


def test_trouble_reaches_the_batches(tmp_path: Path, root: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    store = a_store(tmp_path / "file")
    dataset = VideoFrameDataset(root, CLASSES, 3, eval_transform((20, 24), (16, 16)), store=store)
    batches = list(evaluation_loader(dataset, 4))
    assert [batch.trouble for batch in batches] == [store.trouble] * 2
    assert store.trouble


ON_A_SMALL_DISK = """
import json, subprocess, sys
from pathlib import Path
import numpy as np
from tillwatch.clip_spec import Reading
from tillwatch.data.dataset import VideoFrameDataset, read_clip
from tillwatch.data.store import ClipStore
from tillwatch.data.transforms import eval_transform

root, disk = map(Path, sys.argv[1:])

def tried(folder, keep_free):
    store = ClipStore(folder, keep_free)
    dataset = VideoFrameDataset(root, ["normal", "theft"], 4, eval_transform((128, 128), (112, 112)), store=store)
    right = [np.array_equal(dataset.read(index), read_clip(dataset.clips[index], dataset.reading))
             for index in [*range(len(dataset))] * 2]
    damaged = ClipStore(folder).verify()[1]
    found = sum(ClipStore(folder).find(clip, dataset.reading) is not None for clip in dataset.clips)
    files = sum(path.is_file() for path in folder.rglob("*"))
    return {"right": all(right), "trouble": store.trouble, "found": found, "files": files, "damaged": len(damaged)}

checked = tried(disk / "a", 0)  # looks at the free space before it writes
filled = tried(disk / "b", -10**12)  # runs into the end of the disk while it writes
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
print(json.dumps([checked, filled, tried(disk / "a", -10**12)]))
"""


def test_a_full_disk_and_a_read_only_one(tmp_path: Path, root: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # Room for three entries of 201 kB in "a", and then for a part of one in "b".
    mount = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", "750k", str(disk)]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        pytest.skip("disks cannot be mounted in a user namespace here")
    command = [*unshare, sys.executable, "-c", ON_A_SMALL_DISK, str(root), str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    checked, filled, read_only = json.loads(done.stdout)
    assert checked.pop("trouble").startswith(f"no more decoded clips are kept in {disk / 'a'} (only 0.0 GB are free")
    assert checked == {"right": True, "found": 3, "files": 3, "damaged": 0}
    assert "(No space left on device), so they are decoded each time" in filled.pop("trouble")
    assert filled == {"right": True, "found": 0, "files": 0, "damaged": 0}
    assert "(Read-only file system)" in read_only.pop("trouble")
    assert read_only == {"right": True, "found": 3, "files": 3, "damaged": 0}


# --- processes ---------------------------------------------------------------------------------------

BUILDER = """
import hashlib, json, sys
from pathlib import Path
from tillwatch.data.dataset import VideoFrameDataset, read_clip
from tillwatch.data.store import ClipStore
from tillwatch.data.transforms import eval_transform

root, folder, task = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
store = ClipStore(folder, keep_free=0)
dataset = VideoFrameDataset(root, ["normal", "theft"], 8, eval_transform((256, 256), (224, 224)), store=store)
if task == "together":  # both have found nothing and decoded all before either writes
    decoded = [(clip, read_clip(clip, dataset.reading)) for clip in dataset.clips
               if store.find(clip, dataset.reading) is None]
print("ready", flush=True)
sys.stdin.readline()
if task == "together":
    for clip, frames in decoded * 3:
        store.keep(clip, dataset.reading, frames)
    digests = [hashlib.sha256(dataset.read(index)).hexdigest() for index in range(len(dataset))]
    print(json.dumps([len(decoded), store.trouble, digests]), flush=True)
while task == "for ever":
    for index in range(len(dataset)):
        dataset.read(index)
    store.prune(0)
"""

BUILT = Reading(num_frames=8, resize=(256, 256), draft=(512, 512))


@pytest.fixture
def start_builder(root: Path, folder: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Returns a function that starts a builder, which waits for a line once it is ready: ``start_builder(task)``."""
    builders: list[subprocess.Popen[str]] = []

    def start(task: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BUILDER, str(root), str(folder), task]
        builder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        builders.append(builder)
        return builder

    yield start
    for builder in builders:
        builder.kill()
        builder.communicate()


def go(*builders: subprocess.Popen[str]) -> None:
    for builder in builders:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "ready\n"
    for builder in builders:
        assert builder.stdin is not None
        builder.stdin.write("go\n")
        builder.stdin.flush()


def wait_for_a_new_file(folder: Path) -> None:
    """Returns once a file is there, under whatever name, that was not there a moment ago."""
    deadline, seen = time.monotonic() + 30, set(folder.rglob("*.*"))
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            now = set(folder.rglob("*.*"))
            if now - seen:
                return
            seen = now
    pytest.fail("the builder writes nothing")


def test_a_kill_at_any_point_leaves_whole_entries(
    folder: Path, clips: tuple[Clip, ...], start_builder: Callable[[str], subprocess.Popen[str]]
) -> None:
    rng, kills, left = random.Random(0), 0, 0
    right = {str(clip.path): read_clip(clip, BUILT) for clip in clips}
    while kills < 3 or (left == 0 and kills < 12):  # until one was hit while it wrote
        builder = start_builder("for ever")
        go(builder)
        wait_for_a_new_file(folder)
        time.sleep(rng.uniform(0, 0.003))
        builder.send_signal(signal.SIGKILL)
        builder.communicate()
        kills += 1
        left = len(list(folder.glob("??/.*.part")))
        store = a_store(folder)
        sources = [entry.source for entry in store.entries()]
        assert store.verify() == (len(sources), [])
        for clip in clips:
            frames = store.find(clip, BUILT)
            assert (frames is not None) == (str(clip.path) in sources)
            if frames is not None:
                np.testing.assert_array_equal(frames, right[str(clip.path)])
    assert left > 0
    store = built(folder, clips, BUILT)
    assert store.verify() == (len(clips), [])
    for clip in clips:
        np.testing.assert_array_equal(kept(a_store(folder), clip, BUILT), right[str(clip.path)])


def test_two_builders_at_once_leave_one_whole_store(
    folder: Path, clips: tuple[Clip, ...], start_builder: Callable[[str], subprocess.Popen[str]]
) -> None:
    right = [hashlib.sha256(read_clip(clip, BUILT).tobytes()).hexdigest() for clip in clips]
    builders = [start_builder("together"), start_builder("together")]
    go(*builders)
    for builder in builders:
        output, _ = builder.communicate(timeout=60)
        assert builder.returncode == 0
        assert json.loads(output) == [len(clips), None, right]
    assert a_store(folder).verify() == (len(clips), [])
    assert len(files_in(folder)) == len(clips)  # and nothing half-written
    for clip in clips:
        np.testing.assert_array_equal(kept(a_store(folder), clip, BUILT), read_clip(clip, BUILT))


# --- data sets and loaders ---------------------------------------------------------------------------


def a_dataset(root: Path, store: ClipStore | None) -> VideoFrameDataset:
    return VideoFrameDataset(root, CLASSES, 3, train_transform((20, 24), (16, 16)), seed=11, store=store)


def batches_of(dataset: VideoFrameDataset, epochs: list[int], **options: Any) -> list[tuple[torch.Tensor, list[int]]]:
    loader, sampler = training_loader(dataset, 3, seed=11, **options)
    batches = []
    for epoch in epochs:
        sampler.start_epoch(epoch)
        for batch in loader:
            assert not batch.skipped
            assert batch.trouble is None
            batches.append((batch.clips(train_transform((20, 24), (16, 16))), batch.indices.tolist()))
    return batches


def assert_same_batches(one: list[tuple[torch.Tensor, list[int]]], other: list[tuple[torch.Tensor, list[int]]]) -> None:
    for (clips, indices), (other_clips, other_indices) in zip(one, other, strict=True):
        assert indices == other_indices
        assert torch.equal(clips, other_clips)


def test_each_clip_is_decoded_once_whatever_the_epochs(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = batches_of(a_dataset(root, None), [0, 1, 2])
    decoded: list[str] = []

    def counted(clip: Clip, reading: Reading) -> NDArray[np.uint8]:
        decoded.append(clip.name)
        return read_clip(clip, reading)

    monkeypatch.setattr(dataset_module, "read_clip", counted)
    dataset = a_dataset(root, a_store(folder))
    assert_same_batches(batches_of(dataset, [0, 1, 2]), plain)
    drawn = {dataset.clips[index].name for _, indices in plain for index in indices}
    assert sorted(decoded) == sorted(drawn)
    decoded.clear()
    assert_same_batches(batches_of(a_dataset(root, a_store(folder)), [0, 1, 2]), plain)
    assert decoded == []


def test_workers_build_the_whole_store_and_then_no_source_is_needed(folder: Path, root: Path) -> None:
    epochs = list(range(4))
    plain = batches_of(a_dataset(root, None), epochs)
    drawn = {index for _, indices in plain for index in indices}
    assert drawn == set(range(6))
    store = a_store(folder)
    dataset = a_dataset(root, store)
    assert_same_batches(batches_of(dataset, epochs, workers=2, start_method="spawn"), plain)
    assert len(list(store.entries())) == 6
    assert store.verify() == (6, [])
    for clip in dataset.clips:
        kept(store, clip, dataset.reading)  # this process has seen the sources, and looks at them no more
    shutil.rmtree(root)
    assert_same_batches(batches_of(dataset, epochs), plain)


def test_a_store_can_be_sent_to_another_process(folder: Path, clips: tuple[Clip, ...]) -> None:
    store, right = built(folder, clips[:1]), read_clip(clips[0], READING)
    store.trouble = "some trouble."
    shutil.rmtree(clips[0].path)
    sent: ClipStore = pickle.loads(pickle.dumps(store))
    assert (sent.folder, sent.keep_free, sent.trouble) == (folder, 0, "some trouble.")
    np.testing.assert_array_equal(kept(sent, clips[0]), right)  # it knows what its sender has seen

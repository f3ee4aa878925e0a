"""The clip store under fault: kills while it is built, two builders at once, changed sources, full and read-only disks.

    python benchmarks/store_faults.py
    python benchmarks/store_faults.py --quick

The builders are processes of their own that run the training loader with two workers; a kill is a SIGKILL to all
three at a random moment. The full disk is a small tmpfs, mounted in a user namespace of its own; where those are not
allowed, that check is left out and says so. Ends with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from table import Row

from tillwatch.data.catalog import Clip
from tillwatch.data.dataset import VideoFrameDataset, read_clip
from tillwatch.data.loader import evaluation_loader, training_loader
from tillwatch.data.store import ClipStore
from tillwatch.data.synthetic import CLASSES, make_camera, render_clip, write_video
from tillwatch.data.transforms import train_transform

LINE = "7"
NUM_FRAMES, RESIZE, CROP = 16, (320, 320), (280, 280)  # large, so that writing takes a good part of the time
ENTRY_BYTES = NUM_FRAMES * RESIZE[0] * RESIZE[1] * 3 + 4096
NO_LIMIT = -(2**50)  # of the space to leave free: the store does not look, and runs into the end of the disk


def write_clips(root: Path, clips: int, suffix: str = ".jpg") -> None:
    """Writes frame folders of rendered clips, half of each class."""
    for number in range(clips):
        label = CLASSES[number % 2]
        folder = root / label / f"clip{number:03d}"
        folder.mkdir(parents=True)
        for t, frame in enumerate(render_clip(make_camera(f"camera{number}", number), label, number)[:NUM_FRAMES]):
            Image.fromarray(frame).save(folder / f"frame_{t:06d}{suffix}")


def open_clips(root: Path, folder: Path, keep_free: int = 0) -> tuple[VideoFrameDataset, ClipStore]:
    """Opens clips over a store as another process would."""
    store = ClipStore(folder, keep_free)
    dataset = VideoFrameDataset(root, sorted(CLASSES), NUM_FRAMES, train_transform(RESIZE, CROP), store=store)
    return dataset, store


@cache
def decoded(clip: Clip, dataset: VideoFrameDataset) -> NDArray[np.uint8]:
    """What decoding gives, for sources that do not change."""
    return read_clip(clip, dataset.reading)


# --- the builders: this file again, in processes of their own ----------------------------------------


def build_for_ever(root: Path, folder: Path) -> None:
    """Draws training batches by two workers until it is killed."""
    dataset, _ = open_clips(root, folder)
    loader, sampler = training_loader(dataset, 4, seed=0, workers=2)
    print("ready", flush=True)
    epoch = 0
    while True:
        sampler.start_epoch(epoch)
        for _ in loader:
            pass
        epoch += 1


def build_once(root: Path, folder: Path) -> None:
    """Reads every clip once by two workers, when told to; prints what it was given."""
    dataset, _ = open_clips(root, folder)
    loader = evaluation_loader(dataset, 2, workers=2)
    print("ready", flush=True)
    sys.stdin.readline()
    batches = list(loader)
    digests = [hashlib.sha256(frames.numpy()).hexdigest() for batch in batches for frames in batch.frames]
    print(json.dumps({"digests": digests, "trouble": [batch.trouble for batch in batches if batch.trouble]}))


def build_on_a_small_disk(root: Path, disk: Path) -> None:
    """Reads every clip twice: where the store sees the disk end, where it does not, and where it may not write."""

    def build(name: str, keep_free: int) -> dict[str, object]:
        dataset, store = open_clips(root, disk / name, keep_free)
        wrong = sum(
            not np.array_equal(dataset.read(index), decoded(clip, plain))
            for _ in range(2)
            for index, clip in enumerate(dataset.clips)
        )
        count, damaged = ClipStore(disk / name).verify()
        files = sum(path.is_file() for path in (disk / name).rglob("*"))
        return {"wrong": wrong, "trouble": store.trouble, "kept": count - len(damaged), "files": files}

    plain, _ = open_clips(root, disk)
    results = [build("checked", 0)]
    shutil.rmtree(disk / "checked")
    results.append(build("filled", NO_LIMIT))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    results.append(build("filled", NO_LIMIT))
    print(json.dumps(results))


BUILDERS: dict[str, Callable[[Path, Path], None]] = {
    "for-ever": build_for_ever,
    "once": build_once,
    "small-disk": build_on_a_small_disk,
}


@contextmanager
def builder(task: str, root: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a builder in a process group of its own and returns when it is ready; kills what is left of it."""
    command = [sys.executable, __file__, "--builder", task, str(root), str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the builder did not start: {' '.join(command)}")
        yield process
    finally:
        kill_group(process)


def kill_group(process: subprocess.Popen[str]) -> None:
    """Sends SIGKILL to a builder and its workers, and waits until they hold their output no more."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


# --- the checks --------------------------------------------------------------------------------------


def wrong_entries(root: Path, folder: Path) -> tuple[int, int, int]:
    """Returns how many entries there are, how many of them verifying finds damaged, and how many decoding gainsays."""
    dataset, store = open_clips(root, folder)
    listed = {entry.source for entry in store.entries()}
    count, damaged = store.verify()
    reference, _ = open_for_reference(root)
    wrong = 0
    for clip in dataset.clips:
        frames = store.find(clip, dataset.reading)
        if frames is None:
            wrong += str(clip.path) in listed and not damaged
        else:
            wrong += not np.array_equal(frames, decoded(clip, reference))
    return count, len(damaged), wrong


@cache
def open_for_reference(root: Path) -> tuple[VideoFrameDataset, ClipStore]:
    """The data set that :func:`decoded` remembers frames of."""
    return open_clips(root, root / "no-store")


def check_kills(work: Path, kills: int, more: int, clips: int, rng: random.Random) -> Row:
    """Kills builders at random moments; before each, a random half of the entries is removed, so there is work.

    If none of the kills hit a builder while it wrote, there are ``more`` at most, until one does. With 0, that none did
    judges nothing.
    """
    root, folder = work / "frames", work / "killed"
    write_clips(root, clips)
    entries = damaged = wrong = half_written = unfinished = killed = 0
    full_build_s = 0.0
    for number in range(kills + more + 1):
        if number > kills and half_written:
            break
        before = parts_in(folder)
        for path in sorted(folder.glob("??/*.clip")):
            if rng.random() < 0.5:
                path.unlink()
        with builder("for-ever", root, folder) as process:
            started = time.perf_counter()
            if number == 0:  # not killed before it is done: how long does building take?
                while len(list(folder.glob("??/*.clip"))) < clips:
                    time.sleep(0.01)
                    if time.perf_counter() - started > 300:
                        raise RuntimeError("the builder does not get done")
                full_build_s = time.perf_counter() - started
                continue
            time.sleep(rng.uniform(0, full_build_s / 2))
            kill_group(process)
        half_written += parts_in(folder) > before
        found = wrong_entries(root, folder)
        killed, unfinished = number, unfinished + (found[0] < clips)
        entries, damaged, wrong = entries + found[0], damaged + found[1], wrong + found[2]
    for part in folder.glob("??/.*.part"):  # as if they had been left an hour ago
        os.utime(part, (time.time() - 4000,) * 2)
    dataset, store = open_clips(root, folder)
    for index in range(clips):
        dataset.read(index)
    whole, *faults = wrong_entries(root, folder)
    complete = whole == clips and faults == [0, 0] and store.trouble is None and parts_in(folder) == 0
    sound = damaged == wrong == 0 and complete
    return Row(
        line=LINE,
        what=f"{killed} kills of a builder with 2 workers, within {full_build_s / 2:.1f} s; {clips} clips",
        ours=f"{entries} entries verified, {damaged} damaged, {wrong} unlike decoding; {half_written} kills left a "
        f"file half-written, {unfinished} came before the store was whole; afterwards {whole} of {clips} built",
        reference="",
        ratio="",
        bar="every entry verifies",
        holds=None if sound and not (half_written or more) else sound and half_written > 0,
    )


def parts_in(folder: Path) -> int:
    """Returns how many half-written files there are."""
    return len(list(folder.glob("??/.*.part")))


def check_two_builders(work: Path, rounds: int) -> Row:
    """Lets two builders with two workers each fill the same empty folder at the same time."""
    root = work / "frames"
    reference, _ = open_for_reference(root)
    right = [hashlib.sha256(decoded(clip, reference).tobytes()).hexdigest() for clip in reference.clips]
    bad, twice, whole = 0, 0, 0
    for number in range(rounds):
        folder = work / f"shared{number}"
        with builder("once", root, folder) as one, builder("once", root, folder) as other:
            for process in (one, other):
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            names = watch_parts(folder, (one, other))
            for process in (one, other):
                output, _ = process.communicate()
                bad += process.returncode != 0 or json.loads(output) != {"digests": right, "trouble": []}
        twice += sum(len(parts) > 1 for parts in names.values())
        files = [path for path in folder.rglob("*") if path.is_file()]
        whole += wrong_entries(root, folder) == (len(right), 0, 0) and len(files) == len(right)
        shutil.rmtree(folder)
    return Row(
        line=LINE,
        what=f"2 builders of 2 workers at once in one empty folder, {rounds} times",
        ours=f"{whole} of {rounds} stores whole and one file a clip; {2 * rounds - bad} of {2 * rounds} builders given "
        f"the right frames; {twice} of {rounds * len(right)} entries seen being written by more than one",
        reference="",
        ratio="",
        bar="one whole store",
        holds=whole == rounds and bad == 0,
    )


def watch_parts(folder: Path, processes: tuple[subprocess.Popen[str], ...]) -> dict[str, set[str]]:
    """Returns the names of half-written files seen while builders run, by the entry that they were to become."""
    names: dict[str, set[str]] = {}
    while any(process.poll() is None for process in processes):
        with suppress(FileNotFoundError):
            for path in folder.glob("??/.*.part"):
                names.setdefault(path.name.split(".")[1], set()).add(path.name)
        time.sleep(0.0005)
    return names


def other_content(path: Path) -> None:
    """Inverts the end of an uncompressed image: as many bytes, other pixels."""
    data = bytearray(path.read_bytes())
    data[-9000:] = bytes(255 - byte for byte in data[-9000:])
    path.write_bytes(data)


def other_content_same_time(path: Path) -> None:
    """The same, and sets the time of change back."""
    before = path.stat()
    other_content(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def older_file(path: Path) -> None:
    """Puts another file of equal length and an older time in its place."""
    other = path.with_name("other")
    shutil.copy(path, other)
    other_content(other)
    os.utime(other, (time.time() - 1e6,) * 2)
    other.replace(path)


def other_video(path: Path) -> None:
    """Encodes another film in its place."""
    write_video(render_clip(make_camera("another", 99), CLASSES[0], 99)[:NUM_FRAMES], path, fps=10)


def check_changed_sources(work: Path) -> Row:
    """Changes sources in four ways; each must be read again, and the store hold it once."""
    root, folder = work / "changing", work / "changed"
    write_clips(root, 6, suffix=".bmp")
    for label in CLASSES:
        film = render_clip(make_camera("film", 50), label, 50)
        write_video(film[:NUM_FRAMES], root / label / "film.mp4", fps=10)
    dataset, _ = open_clips(root, folder)
    before = [np.array(dataset.read(index)) for index in range(len(dataset))]
    time.sleep(0.05)
    frames = [index for index, clip in enumerate(dataset.clips) if not clip.is_video]
    films = [index for index, clip in enumerate(dataset.clips) if clip.is_video]
    changes = {
        frames[0]: other_content,
        frames[1]: other_content_same_time,
        frames[2]: older_file,
        films[0]: other_video,
    }
    for index, change in changes.items():
        path = dataset.clips[index].path
        change(path if dataset.clips[index].is_video else path / "frame_000000.bmp")
    later, store = open_clips(root, folder)
    rebuilt = kept = 0
    for index, clip in enumerate(later.clips):
        found = store.find(clip, later.reading)
        right = read_clip(clip, later.reading)
        if index in changes:
            given = later.read(index)
            rebuilt += found is None and np.array_equal(given, right) and not np.array_equal(given, before[index])
        else:
            kept += found is not None and np.array_equal(found, right)
    verified = ClipStore(folder).verify()
    return Row(
        line=LINE,
        what="sources changed: other bytes of equal length, the same with the time set back, an older file, a film",
        ours=f"{rebuilt} of {len(changes)} read again, {kept} of {len(before) - len(changes)} others kept; "
        f"{verified[0]} entries for {len(before)} clips, {len(verified[1])} damaged",
        reference="",
        ratio="",
        bar="a changed source is rebuilt",
        holds=rebuilt == len(changes) and kept == len(before) - len(changes) and verified == (len(before), []),
    )


def check_small_disk(work: Path) -> list[Row]:
    """Builds on a tmpfs with room for two and a half entries, then on the same one when it may only be read."""
    root, disk = work / "frames", work / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'
    size = f"{(5 * ENTRY_BYTES // 2) // 1024}k"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", size, str(disk)]
    whats = (
        "a disk too small, which the store sees",
        "a disk too small, run into (ENOSPC)",
        "a disk not to be written",
    )
    bar = "right clips; says why; nothing half-written"
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode != 0:
        reason = "not measured: no disk can be mounted in a user namespace here"
        return [Row(line=LINE, what=what, ours=reason, reference="", ratio="", bar=bar, holds=None) for what in whats]
    command = [*inside, sys.executable, __file__, "--builder", "small-disk", str(root), str(disk)]
    results = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    reasons = ("GB are free on its disk", "No space left on device", "Read-only file system")
    rows = []
    for what, reason, result in zip(whats, reasons, results, strict=True):
        says_why = result["trouble"] is not None and reason in result["trouble"]
        rows.append(
            Row(
                line=LINE,
                what=what,
                ours=f"{result['wrong']} wrong clips; {result['kept']} entries whole among {result['files']} files; "
                f"{'says: ' + reason if says_why else 'says ' + str(result['trouble'])}",
                reference="",
                ratio="",
                bar=bar,
                holds=result["wrong"] == 0 and says_why and result["kept"] == result["files"] == 2,
            )
        )
    return rows


def rows(quick: bool, kills: int = 20, seed: int = 0) -> list[Row]:
    """Runs all checks and returns the table's rows."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        return [
            check_kills(work, *((6, 0, 16) if quick else (kills, 40, 32)), random.Random(seed)),
            check_two_builders(work, 1 if quick else 4),
            check_changed_sources(work),
            *check_small_disk(work),
        ]


def main() -> None:
    """Prints a line for each check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer kills and clips")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--builder", nargs=3, metavar=("TASK", "ROOT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.builder:
        task, root, folder = options.builder
        BUILDERS[task](Path(root), Path(folder))
        return
    checks = rows(options.quick, options.kills, options.seed)
    for row in checks:
        verdict = {True: "holds", False: "FAILS", None: "not judged"}[row.holds]
        print(f"{verdict}: {row.what}: {row.ours}")
    sys.exit(any(row.holds is False for row in checks))


if __name__ == "__main__":
    main()

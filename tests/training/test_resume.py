"""A training that is broken off, whatever by, goes on to the weights that it would have had."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from apart import start_apart
from lightning_fabric import Fabric
from torch.nn import functional
from training import broken_off
from training.broken_off import Place, run_apart

from tillwatch.config import RECIPES, TrainConfig
from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.frames import natural_key
from tillwatch.data.sampler import BalancedSampler
from tillwatch.errors import DataError, Interrupted, RunError
from tillwatch.files import sha256_of, write_csv
from tillwatch.training import interrupts, loop
from tillwatch.training.guard import NonFiniteError, StepGuard
from tillwatch.training.loop import resume, train
from tillwatch.training.resume import read_begun
from tillwatch.training.state import find_checkpoints

pytestmark = pytest.mark.timeout(900)  # each starts several processes, on machines however busy

Config = Callable[..., TrainConfig]

# What is promised is promised of fp32; what auto takes depends on how busy the machine is.
SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "group_pattern": r"day\d",
    "checkpoint_minutes": 0.0,
    "precision": "fp32",
}
EPOCHS = 50  # so many that 24 kills, an epoch or so apart, all come before the last
TIMES = ("seconds", "clips_per_s", "data_wait_s")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def learnt(run: Path) -> tuple[str, list[dict[str, str]], bytes]:
    """What must be equal: weights, metrics but for times, and scores."""
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in rows_of(run / "metrics.csv")]
    model = run / "model.pth"
    return sha256_of(model if model.exists() else run / "model.skops"), rows, (run / "predictions.csv").read_bytes()


def files_in(run: Path) -> set[str]:
    return {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}


# Killed, in processes of their own


@pytest.fixture(scope="module")
def uninterrupted(tiny_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert run_apart(broken_off.train, tiny_run[0], run, {**SETTINGS, "baselines": True}) == 0
    return run


def go_on_through(places: list[Place], data: Path, run: Path, settings: dict[str, Any]) -> int:
    """Trains, dying at one place after the other, and to the end; returns how many of the places were come to."""
    for number, place in enumerate(places):
        code = run_apart(broken_off.train, data, run, settings, place)
        if code == 0:
            return number
        assert code == -signal.SIGKILL
    assert run_apart(broken_off.train, data, run, settings) == 0
    return len(places)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_each_part_it_ends_as_if_it_had_not_been(
    workers: int, uninterrupted: Path, tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    places: list[Place] = [("step", 2), ("checkpoint", 30_000), ("validation", 2), ("metrics", 2), ("finish", 3)]
    run = tmp_path / "run"
    settings = {**SETTINGS, "baselines": True, "workers": workers}
    assert go_on_through(places, tiny_run[0], run, settings) == len(places)
    assert learnt(run) == learnt(uninterrupted)
    assert files_in(run) == files_in(uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("workers", "minutes"), [(0, 0.0), (2, 10.0)])
def test_killed_25_times_at_random_it_ends_as_if_it_had_not_been(
    workers: int, minutes: float, tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = {**SETTINGS, "workers": workers, "epochs": EPOCHS, "checkpoint_minutes": minutes}
    whole = tmp_path / "whole" / "run"
    whole.parent.mkdir()
    assert run_apart(broken_off.train, tiny_run[0], whole, settings) == 0
    rng = np.random.default_rng(workers + round(minutes))
    # Without checkpoints inside epochs, a process must be let to the end of one to get anywhere.
    most = {"step": 7, "validation": 5, "checkpoint": 200_000, "metrics": 4}
    places = [(kind, int(rng.integers(1, most[kind] + 1))) for kind in rng.permutation([*most] * 6)]
    run = tmp_path / "run"
    assert go_on_through([*places, ("finish", 2)], tiny_run[0], run, settings) == 25
    assert learnt(run) == learnt(whole)
    assert [row["epoch"] for row in rows_of(run / "metrics.csv")] == [str(epoch) for epoch in range(1, EPOCHS + 1)]


@pytest.mark.parametrize(("signum", "workers"), [(signal.SIGTERM, 2), (signal.SIGINT, 0)])
def test_a_signal_ends_it_in_seconds_with_all_saved(
    signum: int, workers: int, uninterrupted: Path, tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    run, said, when = tmp_path / "run", tmp_path / "said", tmp_path / "when"
    flags = ["--epochs", "3", "--group-pattern", r"day\d", "--workers", str(workers), "--precision", "fp32"]
    tiny = ["--arch", "tinynet", "--weights", "none", "--batch-size", "4", "--lr", "1e-2"]
    words = ["train", str(tiny_run[0]), "--out", str(run), *tiny, *flags]
    act = partial(broken_off.signal_group, signum, when)
    assert run_apart(broken_off.command, words, said, ("step", 2), act) == 128 + signum
    assert time.monotonic() - float(when.read_text()) < 10
    last = said.read_text().splitlines()[-1]
    assert last == (
        "tillwatch: interrupted at epoch 1, step 2; the last good checkpoint is "
        f"checkpoints/epoch-0001-step-000002.ckpt; go on with: tillwatch train --resume {run}"
    )
    assert "Traceback" not in said.read_text()
    assert run_apart(broken_off.command, ["train", "--resume", str(run)], said) == 0
    assert learnt(run) == learnt(uninterrupted)
    # Once more there is nothing to do, and nothing is done, but what a kill in the last moment left.
    left = run / "checkpoints" / "epoch-0003-step-000000.ckpt"
    left.write_bytes(b"")
    assert run_apart(broken_off.command, ["train", "--resume", str(run)], said) == 0
    assert said.read_text() == f"nothing is left to do: the run in {run} is finished.\n"
    assert not left.exists()


def test_a_run_that_is_being_trained_is_nobody_elses(
    uninterrupted: Path, tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = {**SETTINGS, "workers": 1}
    first = start_apart(broken_off.train, tiny_run[0], run, settings, ("step", 2), broken_off.wait_for_ever)
    try:
        deadline = time.monotonic() + 120
        while not find_checkpoints(run / "checkpoints") and time.monotonic() < deadline:
            time.sleep(0.05)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        with pytest.raises(RunError, match="is being trained by another process"):
            resume(run, log=quiet())
        with pytest.raises(RunError, match="is being trained by another process"):
            train(tiny_run[0], run, tiny_config(**SETTINGS, overwrite=True), quiet())
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    finally:
        first.kill()
        first.join()
    # The lock went with the process, though its worker may live some seconds longer.
    assert run_apart(broken_off.train, tiny_run[0], run, settings) == 0
    assert learnt(run) == learnt(uninterrupted)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Computes with one thread, as the processes that are broken off do: with more, sums end in other digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_clip_deleted_midway_is_named_and_every_other_draw_stays(
    tiny_run: tuple[Path, Path], quiet: Any, tmp_path: Path
) -> None:
    """Broken off and gone on with after the deletion, or not: the weights are the same."""
    data, settings = tmp_path / "data", {**SETTINGS, "cache": False}  # kept clips are not missed in the same process
    shutil.copytree(tiny_run[0], data)
    whole, run = tmp_path / "whole" / "run", tmp_path / "run"
    whole.parent.mkdir()
    assert run_apart(broken_off.train, data, run, settings, ("step", 5)) == -signal.SIGKILL  # batch 5 is read twice
    # The clip that is drawn first in that batch.
    paths = sorted((r["path"] for r in rows_of(run / "clips.csv") if r["split"] == "train"), key=natural_key)
    sampler = BalancedSampler([int(path.startswith("theft")) for path in paths], seed=0)
    sampler.start_epoch(1, first=4)
    draws: list[Any] = list(sampler)
    assert draws[0].position == 4
    lost = data / paths[draws[0].index]
    act = partial(shutil.rmtree, lost)
    assert run_apart(broken_off.train, data, whole, settings, ("step", 4), act) == 0
    assert not lost.exists()
    log = quiet()
    resume(run, log=log)
    name = f"{lost.parent.name}/{lost.name}"
    assert f"{name} is gone or damaged since the run began" in log.console.export_text(clear=False)
    assert f"{name} was left out" in log.console.export_text()
    assert learnt(run) == learnt(whole)
    status = {row["path"]: row["status"] for row in rows_of(run / "clips.csv")}
    assert status[name].startswith("skipped: ")
    assert rows_of(run / "clips.csv") == rows_of(whole / "clips.csv")


@pytest.fixture(scope="session")
def own_mounts() -> None:
    if run_apart(broken_off.mounts_of_its_own) != 0:
        pytest.skip("a process may not have mounts of its own here (CAP_SYS_ADMIN)")


@pytest.mark.parametrize(("freed_at", "code"), [(7, 0), (None, 2)])
@pytest.mark.usefixtures("own_mounts")
def test_a_full_disk_costs_no_more_than_the_time_since_the_last_checkpoint(
    freed_at: int | None, code: int, uninterrupted: Path, tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    disk, results = tmp_path / "disk", tmp_path / "results"
    disk.mkdir()
    assert run_apart(broken_off.on_small_disk, tiny_run[0], disk, SETTINGS, freed_at, results) == 0
    assert (results / "code").read_text() == str(code)
    said = (results / "said").read_text()
    assert (
        "note: no checkpoint of epoch 2, step 1 was written (No space left on device); "
        "the last good checkpoint is checkpoints/epoch-0002-step-000000.ckpt." in said
    )
    assert "Traceback" not in said
    if code:
        error = said.splitlines()[-1]
        assert error.startswith("tillwatch: error: the file system refused: [Errno 28] No space left on device")
        assert error.endswith(f"Make room or mend it, then go on with: tillwatch train --resume {disk / 'run'}")
    assert learnt(results / "run") == learnt(uninterrupted)


@pytest.mark.usefixtures("own_mounts")
def test_a_run_made_read_only_midway_keeps_its_last_checkpoint(
    uninterrupted: Path, tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    disk, results = tmp_path / "disk", tmp_path / "results"
    disk.mkdir()
    assert run_apart(broken_off.on_disk_made_read_only, tiny_run[0], disk, SETTINGS, results) == 0
    assert (results / "code").read_text() == "2"
    said = (results / "said").read_text()
    assert "note: no checkpoint of epoch 2, step 1 was written (Read-only file system)" in said
    assert said.splitlines()[-1].startswith("tillwatch: error: the file system refused: [Errno 30] Read-only file")
    assert "Traceback" not in said
    assert learnt(results / "run") == learnt(uninterrupted)


# Broken off by an exception, in this process


class BrokenOffError(Exception):
    pass


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns a function that breaks a training, or what goes on with it, off at a step of its own."""

    def at_step(step: int, action: Callable[[], Any]) -> None:
        original, left = StepGuard.check, [step]

        def check(self: StepGuard, *args: Any) -> list[float]:
            left[0] -= 1
            if left[0] == 0:
                raise BrokenOffError
            return original(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(StepGuard, "check", check)
            with pytest.raises(BrokenOffError):
                action()

    return at_step


VARIANTS: dict[str, dict[str, Any]] = {
    "small clips first": {"epochs": 4, "early_share": 0.5, "early_frames": 1.0, "early_pixels": 0.5},
    "a frozen backbone": {"epochs": 4, "freeze": "backbone"},
    "plateau and patience": {"epochs": 6, "lr": 0.3, "lr_patience": 0, "patience": 2},
    "all clips": {"hold_out": False, "plateau_on": "train", "keep": "last", "epochs": 4},
    "bf16": {"epochs": 3, "precision": "bf16"},
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_way_to_train_goes_on(
    variant: str, tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, broken: Any
) -> None:
    config = tiny_config(**{**SETTINGS, **VARIANTS[variant]})
    data, whole, run = tiny_run[0], tmp_path / "whole", tmp_path / "run"
    train(data, whole, config, quiet())
    broken(2, lambda: train(data, run, config, quiet()))
    for step in (4, 2, 4):
        broken(step, lambda: resume(run, log=quiet()))
    log = quiet()
    resume(run, log=log)
    where = "epoch 2, step 2" if variant == "all clips" else "epoch 3, step 2"  # six steps an epoch there, else three
    assert f"going on from {where}." in log.console.export_text()
    assert learnt(run) == learnt(whole)


def test_the_motion_model_starts_again_and_ends_the_same(
    tiny_run: tuple[Path, Path], quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(arch="motion", group_pattern=r"day\d", baselines=False, num_frames=4, workers=0)
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(tiny_run[0], whole, config, quiet())

    def break_off(*args: Any, **options: Any) -> None:
        raise BrokenOffError

    with monkeypatch.context() as patch:
        patch.setattr("tillwatch.training.motion.fit_trees", break_off)
        with pytest.raises(BrokenOffError):
            train(tiny_run[0], run, config, quiet())
    with monkeypatch.context() as patch:
        patch.setattr("tillwatch.training.finish.evaluate_split", break_off)
        with pytest.raises(BrokenOffError):
            resume(run, log=quiet())
    resume(run, log=quiet())
    assert learnt(run) == learnt(whole)
    assert files_in(run) == files_in(whole)


@pytest.mark.parametrize(
    ("where", "count", "place"),
    [
        ("way there", 8, "epoch 1, step 3"),
        ("way back", 8, "epoch 1, step 3"),
        ("validation", 1, "epoch 1, step 6"),
        ("clip", 2 * 4 + 1, "epoch 1, step 4"),
    ],
)
def test_what_takes_long_after_a_signal_is_left_as_it_was_before(
    where: str,
    count: int,
    place: str,
    tiny_run: tuple[Path, Path],
    tiny_config: Config,
    quiet: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the second part of a step, in a validation batch, or while a clip is read; patience is short here."""
    config = tiny_config(**{**SETTINGS, "accumulate": 2, "batch_size": 2, "workers": 0, "checkpoint_minutes": 10.0})
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(tiny_run[0], whole, config, quiet())
    monkeypatch.setattr(interrupts, "_LONG_S", 0.0)
    owner, name = {
        "way there": (loop, "derive_seed"),
        "way back": (functional, "cross_entropy"),
        "validation": (Fabric, "autocast"),
        "clip": (VideoFrameDataset, "read"),
    }[where]
    original, left, ended = getattr(owner, name), [count], []

    def signalled(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGTERM)
        result = original(*args, **options)
        if left[0] == 0:
            ended.append(name)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        with pytest.raises(Interrupted, match=rf"^interrupted at {place}; the last good checkpoint is"):
            train(tiny_run[0], run, config, quiet())
    assert ended == ([] if where == "clip" else [name])
    resume(run, log=quiet())
    assert learnt(run) == learnt(whole)


def test_what_may_change_does_and_the_rest_is_refused_by_name(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, broken: Any
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(tiny_run[1], weights)
    config = tiny_config(**SETTINGS, weights=str(weights))
    whole, run, data = tmp_path / "whole", tmp_path / "run", tmp_path / "data"
    shutil.copytree(tiny_run[0], data)
    train(data, whole, config, quiet())
    broken(5, lambda: train(data, run, config, quiet()))
    shutil.rmtree(weights)  # not wanted any more
    data.rename(tmp_path / "moved")

    begun = read_begun(run).config
    refusal = r"--batch-size was 4 and is 2, --lr was 0\.01 and is 0\.1\. Only .*--workers may change"
    with pytest.raises(RunError, match=refusal):
        resume(run, replace(begun, lr=0.1, batch_size=2, workers=2), tmp_path / "moved", quiet())
    free = replace(begun, workers=2, checkpoint_minutes=5.0, cache=False, device="cpu")
    resume(run, free, tmp_path / "moved", quiet())
    assert learnt(run) == learnt(whole)
    assert f"data: {tmp_path / 'moved'}\n" in (run / "config.yaml").read_text()
    assert f"weights: {weights}\n" in (run / "config.yaml").read_text()


def test_clips_that_came_or_went_since(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, broken: Any
) -> None:
    data, whole, run = tmp_path / "data", tmp_path / "whole", tmp_path / "run"
    shutil.copytree(tiny_run[0], data)
    config = tiny_config(**SETTINGS)
    train(data, whole, config, quiet())
    broken(5, lambda: train(data, run, config, quiet()))
    shutil.copytree(data / "theft" / "day0_0", data / "theft" / "day9_99")
    for number in range(4):
        (data / "normal" / f"day{number}_{number}").rename(tmp_path / str(number))
    with pytest.raises(DataError, match=r"4 \(normal/day0_0, .*\) of the run's 24 clips are gone"):
        resume(run, log=quiet())
    for number in range(4):
        (tmp_path / str(number)).rename(data / "normal" / f"day{number}_{number}")
    again = tmp_path / "again"
    shutil.copytree(run, again)
    log = quiet()
    resume(run, log=log)
    assert "changed since the run began" not in log.console.export_text(clear=False)
    assert "1 (theft/day9_99) not used: not there when the run began." in log.console.export_text()
    assert learnt(run) == learnt(whole)
    shutil.rmtree(data / "theft" / "day0_0")
    shutil.copytree(data / "theft" / "day1_1", data / "theft" / "day0_0")  # as many frames
    log = quiet()
    resume(again, log=log)
    assert "1 (theft/day0_0) changed since the run began: read as they are now." in log.console.export_text()


def test_labels_that_are_others_since_are_refused(
    labelled_apart: tuple[Path, Callable[..., None]], tiny_config: Config, quiet: Any, tmp_path: Path, broken: Any
) -> None:
    data, label = labelled_apart
    run = tmp_path / "run"
    broken(2, lambda: train(data, run, tiny_config(**{**SETTINGS, "group_pattern": None}), quiet()))
    before = (run / "clips.csv").read_bytes()
    label(theft_day1_1="normal")
    with pytest.raises(DataError, match=r"^1 \(clips/theft_day1_1\) of the run's 24 clips have another label in "):
        resume(run, log=quiet())
    assert (run / "clips.csv").read_bytes() == before
    label()
    assert resume(run, log=quiet()) is not None


@pytest.mark.parametrize("minutes", [0.0, 10.0], ids=["after a checkpoint", "before the first"])
def test_settings_edited_since_are_refused_by_name(
    minutes: float, tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, broken: Any
) -> None:
    """The file that is written with a run is the one that is read: the checkpoint, or the mark, knows better."""
    run = tmp_path / "run"
    config = tiny_config(**{**SETTINGS, "checkpoint_minutes": minutes})
    broken(2, lambda: train(tiny_run[0], run, config, quiet()))
    written = (run / "config.yaml").read_text()
    edits = {"epochs: 3": "epochs: 4", "seed: 0": "seed: 1", "batch_size: 4": "batch_size: auto"}
    edited = written
    for old, new in edits.items():
        assert f"{old}\n" in written
        edited = edited.replace(f"{old}\n", f"{new}\n")
    (run / "config.yaml").write_text(edited + "patience: 2\n")
    refusal = (
        r"config\.yaml is not as this run was begun: --batch-size 4 is now 'auto', --epochs 3 is now 4, --patience "
        r"None is now 2, --seed 0 is now 1\. Put it back, or train anew"
    )
    with pytest.raises(RunError, match=refusal):
        resume(run, log=quiet())
    assert (run / "config.yaml").read_text() == edited + "patience: 2\n"
    (run / "config.yaml").write_text(written.replace(f"checkpoint_minutes: {minutes}\n", "checkpoint_minutes: 3.0\n"))
    if minutes:
        (run / "unfinished").write_bytes(b"")
    log = quiet()
    assert resume(run, log=log) is not None
    doubted = "unfinished is not whole: whether config.yaml is as it was cannot be told; taken as it is." in (
        log.console.export_text()
    )
    assert doubted == bool(minutes)


@pytest.mark.parametrize(
    ("column", "value", "minutes"),
    [("split", "test", 0.0), ("split", "test", 10.0), ("group", "day9", 0.0), ("path", "normal/other", 0.0)],
)
def test_a_table_of_clips_edited_since_is_refused_with_the_clip(
    column: str,
    value: str,
    minutes: float,
    tiny_run: tuple[Path, Path],
    tiny_config: Config,
    quiet: Any,
    tmp_path: Path,
    broken: Any,
) -> None:
    run = tmp_path / "run"
    broken(2, lambda: train(tiny_run[0], run, tiny_config(**{**SETTINGS, "checkpoint_minutes": minutes}), quiet()))
    written = (run / "clips.csv").read_bytes()
    rows = rows_of(run / "clips.csv")
    row = next(row for row in rows if row["split"] == "train")
    named = rf"{row['path']}.* with another label, group or side, or in one of them only; put it back\.$"
    row[column] = value
    write_csv(run / "clips.csv", list(rows[0]), rows)
    with pytest.raises(RunError, match=named):
        resume(run, log=quiet())
    (run / "clips.csv").unlink()
    with pytest.raises(RunError, match=r"clips\.csv is gone; put it back\.$"):
        resume(run, log=quiet())
    (run / "clips.csv").write_bytes(written)
    assert resume(run, log=quiet()) is not None


@pytest.mark.parametrize(
    ("column", "value"),
    [("frames", "many"), ("frames", "0"), ("fps", "fast"), ("fps", "nan"), ("label", ""), ("split", "trian")],
)
def test_a_damaged_table_of_clips_is_refused(
    column: str, value: str, tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, broken: Any
) -> None:
    run = tmp_path / "run"
    broken(2, lambda: train(tiny_run[0], run, tiny_config(**SETTINGS), quiet()))
    rows = rows_of(run / "clips.csv")
    rows[3][column] = value
    write_csv(run / "clips.csv", list(rows[0]), rows)
    with pytest.raises(RunError, match=r"clips\.csv is not the one that this run wrote; put it back\.$"):
        resume(run, log=quiet())


def test_broken_off_before_its_first_file_it_can_be_begun_again(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of an older run, beside a file of the user's: what is advised must be possible."""
    run, config = tmp_path / "run", tiny_config(**SETTINGS)
    shutil.copytree(tiny_run[1], run)
    (run / "notes.txt").write_text("mine")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_write_beginning", full)
        with pytest.raises(
            RunError, match=r"No space left on device\. Make room or mend it, then train again with the"
        ):
            train(tiny_run[0], run, replace(config, overwrite=True), quiet())
    assert {path.name for path in run.iterdir()} == {"notes.txt", "unfinished"}
    with pytest.raises(RunError, match=r"broken off before it began; --overwrite to replace it\.$"):
        train(tiny_run[0], run, config, quiet())
    with pytest.raises(RunError, match=r"has no config\.yaml\. Train anew\.$"):
        resume(run, log=quiet())
    train(tiny_run[0], run, replace(config, overwrite=True), quiet())
    assert (run / "notes.txt").read_text() == "mine"
    assert (run / "evaluation.json").is_file()


def test_a_wrong_gradient_ends_what_goes_on_as_it_ended_the_first(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole, run = tiny_config(**SETTINGS), tmp_path / "whole", tmp_path / "run"
    train(tiny_run[0], whole, config, quiet())
    original = StepGuard.check

    def check(self: StepGuard, losses: Any, inputs: Any, place: str) -> list[float]:
        if place == "epoch 3, step 2":
            self.module.get_parameter("fc.1.bias").grad.fill_(float("nan"))  # type: ignore[union-attr]
        return original(self, losses, inputs, place)

    with monkeypatch.context() as patch:
        patch.setattr(StepGuard, "check", check)
        with pytest.raises(NonFiniteError, match=r"epoch 3, step 2.*best epoch until then are kept") as first:
            train(tiny_run[0], run, config, quiet())
        model = sha256_of(run / "model.pth")
        with pytest.raises(NonFiniteError) as second:
            resume(run, log=quiet())
    assert str(first.value) == str(second.value)
    assert sha256_of(run / "model.pth") == model
    resume(run, log=quiet())  # where the machine was at fault, and is mended
    assert learnt(run) == learnt(whole)


def test_whatever_cannot_be_written_at_the_end_says_how_to_go_on(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole, run = tiny_config(**SETTINGS, baselines=True), tmp_path / "whole", tmp_path / "run"
    train(tiny_run[0], whole, config, quiet())
    make, learnt_all = tempfile.mkstemp, [False]
    before = {"config.yaml", "clips.csv", "audit.json", "metrics.csv"}
    by_report = {"report.html", "model_card.md"}  # a note where they cannot be written: another command writes them
    at_the_end = {path.name for path in whole.iterdir() if path.is_file()} - before - by_report
    assert {"model.pth", "model.json", "predictions.csv", "baselines.json", "evaluation.json"} <= at_the_end
    original = vars(loop)["finish"]

    def finish(*arguments: Any, **options: Any) -> Any:
        learnt_all[0] = True
        return original(*arguments, **options)

    def full(name: str) -> Callable[..., Any]:
        def mkstemp(**options: Any) -> tuple[int, str]:
            if learnt_all[0] and options["prefix"] == f".{name}.":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return make(**options)

        return mkstemp

    start: Callable[[], Any] = partial(train, tiny_run[0], run, config, quiet())
    for name in sorted(at_the_end):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "finish", finish)
            patch.setattr(tempfile, "mkstemp", full(name))
            with pytest.raises(RunError, match=f"No space left.*go on with: tillwatch train --resume {run}$"):
                start()
        start = partial(resume, run, log=quiet())
    resume(run, log=quiet())
    assert learnt(run) == learnt(whole)
    assert files_in(run) == files_in(whole)


def test_a_clock_that_goes_back_does_not_matter(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, broken: Any, monkeypatch: Any
) -> None:
    config, whole, run = tiny_config(**SETTINGS), tmp_path / "whole", tmp_path / "run"
    train(tiny_run[0], whole, config, quiet())
    now = [time.time()]

    def backwards() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setattr(time, "time_ns", lambda: int(backwards() * 1e9))
    broken(5, lambda: train(tiny_run[0], run, config, quiet()))
    _, newer = find_checkpoints(run / "checkpoints")
    os.utime(newer, (1, 1))
    log = quiet()
    resume(run, log=log)
    assert "going on from epoch 2, step 1." in log.console.export_text()
    assert learnt(run) == learnt(whole)
    rows = rows_of(run / "metrics.csv")
    assert all(0 <= float(row[name]) < 300 for row in rows for name in ("seconds", "data_wait_s"))


def test_a_damaged_last_checkpoint_is_passed_over_and_said(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, broken: Any
) -> None:
    config, whole, run = tiny_config(**SETTINGS), tmp_path / "whole", tmp_path / "run"
    train(tiny_run[0], whole, config, quiet())
    broken(6, lambda: train(tiny_run[0], run, config, quiet()))
    before, last = find_checkpoints(run / "checkpoints")
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    (run / "checkpoints" / "best.pth").write_bytes(b"damaged, and never asked")
    log = quiet()
    resume(run, log=log)
    assert f"{last} is damaged: its SHA-256" in log.console.export_text(clear=False)
    assert f"Going on from the one before it, {before.name}." in log.console.export_text()
    assert learnt(run) == learnt(whole)


def test_there_must_be_a_run_to_go_on_with(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, broken: Any
) -> None:
    assert resume(tiny_run[1]) is None
    with pytest.raises(RunError, match="holds no run to go on with"):
        resume(tmp_path)
    run = tmp_path / "run"
    broken(2, lambda: train(tiny_run[0], run, tiny_config(**SETTINGS), quiet()))
    with pytest.raises(RunError, match=r"holds a run that is not finished; go on with: tillwatch train --resume"):
        train(tiny_run[0], run, tiny_config(**SETTINGS), quiet())
    for path in find_checkpoints(run / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match=r"is damaged.*No checkpoint is left"):
        resume(run, log=quiet())


def test_recipes_go_on_too(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    """Recipe fast through the command line: what config.yaml leaves out must not be filled in differently."""
    assert RECIPES["fast"]
    run, said = tmp_path / "run", tmp_path / "said"
    tiny = ["--arch", "tinynet", "--weights", "none", "--batch-size", "4", "--lr", "1e-2", "--workers", "0"]
    words = ["train", str(tiny_run[0]), "--out", str(run), *tiny, "--recipe", "fast", "--epochs", "3", "--crop", "24"]
    words.append("--no-baselines")
    assert run_apart(broken_off.command, words, said, ("step", 5)) == -signal.SIGKILL
    code = run_apart(broken_off.command, ["train", "--resume", str(run), "--dropout", "0.1", "--out", "x"], said)
    assert (code, said.read_text()) == (
        2,
        "tillwatch: error: --resume goes on with a run as it was begun; drop --out, --config and --overwrite.\n",
    )
    assert run_apart(broken_off.command, ["train", "--resume", str(run), "--dropout", "0.1"], said) == 2
    assert "goes on as it was begun: --dropout was 0.5 and is 0.1." in said.read_text()
    assert run_apart(broken_off.command, ["train", "--resume", str(run), "--workers", "1"], said) == 0
    assert "going on from" in said.read_text()

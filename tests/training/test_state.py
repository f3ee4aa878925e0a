"""Checkpoints: whole or not used at all, the last two kept, nothing in them executed; and signals that wait."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric.plugins.precision import Precision
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tillwatch.data.catalog import Skip
from tillwatch.errors import Interrupted, RunError
from tillwatch.files import DigestWriter
from tillwatch.models.architectures import write_tensors
from tillwatch.signals import handler_of
from tillwatch.training.guard import NonFiniteError
from tillwatch.training.interrupts import Interrupts
from tillwatch.training.runlog import EpochMetrics
from tillwatch.training.state import Checkpoints, MadeOf, TrainingState, find_checkpoints, read_checkpoint

ROW = EpochMetrics(
    epoch=1,
    train_loss=0.1,
    val_loss=None,
    val_balanced_accuracy=None,
    lr=1e-3,
    seconds=1.0,
    clips_per_s=2.0,
    data_wait_s=0.5,
)


def make_state(seed: int = 0) -> TrainingState:
    """A state that has gone some steps, each part of it off its beginning."""
    torch.manual_seed(seed)
    learner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    state = TrainingState(
        learner, optimizer, ReduceLROnPlateau(optimizer, patience=0), Precision(), MadeOf(clips=["a", "b"], draws=99)
    )
    step(state, seed + 2)
    return state


def step(state: TrainingState, times: int = 1) -> None:
    for _ in range(times):
        loss = state.learner(torch.arange(12.0).reshape(4, 3)).square().mean()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.progress.step += 1
        state.progress.loss_sum += loss.item()


def same(a: Any, b: Any) -> bool:
    """Whether two records are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def checkpoints(tmp_path: Path, notes: list[str]) -> Checkpoints:
    return Checkpoints(tmp_path, 10.0, notes.append, Interrupts("go on"))


def test_a_state_comes_back_bit_for_bit(checkpoints: Checkpoints, tmp_path: Path) -> None:
    state = make_state()
    state.take_best()
    state.scheduler.step(1.0)
    state.scheduler.step(2.0)  # lowers the rate
    state.progress.metrics.append(ROW)
    state.progress.epoch = 1
    state.progress.skipped["theft/a"] = Skip("theft/a", "torn")
    state.progress.best_loss = 0.1 + 0.2
    step(state)
    checkpoints.save(state)
    other = make_state(seed=5)
    again = Checkpoints(tmp_path, 10.0, lambda note: None, Interrupts(""))
    assert again.read_last() is not None
    again.restore(other)
    assert other.progress == state.progress
    assert same(other.record(), state.record())
    assert other.best is not None
    assert not same(other.best, dict(other.learner.state_dict()))
    for one in (state, other):
        step(one, 3)
    assert same(other.record(), state.record())


def test_it_lasts_through_a_loss_of_power_once_it_is_said_to_be_there(
    checkpoints: Checkpoints, tmp_path: Path, lasting: list[tuple[str, int]]
) -> None:
    state = make_state()
    checkpoints.save(state)
    older = tmp_path / "checkpoints" / "epoch-0001-step-000002.ckpt"
    lasting.clear()
    step(state)
    checkpoints.save(state)
    newer = tmp_path / "checkpoints" / "epoch-0001-step-000003.ckpt"
    assert find_checkpoints(tmp_path / "checkpoints") == [older, newer]
    inode = newer.stat().st_ino
    assert lasting == [("synced", inode), ("renamed", inode), ("synced", newer.parent.stat().st_ino)]


def test_without_a_checkpoint_there_is_nothing_to_restore(checkpoints: Checkpoints) -> None:
    state = make_state()
    before = pickle.dumps(state.progress)
    assert checkpoints.read_last() is None
    checkpoints.restore(state)
    assert pickle.dumps(state.progress) == before


def test_the_last_two_are_kept_in_the_order_of_training(checkpoints: Checkpoints, tmp_path: Path) -> None:
    state = make_state()
    for epoch, number in ((0, 7), (0, 12), (1, 0), (9, 3), (10, 1)):
        state.progress.epoch, state.progress.step = epoch, number
        checkpoints.save(state)
        kept = find_checkpoints(tmp_path / "checkpoints")
        assert len(kept) <= 2
        record = read_checkpoint(kept[-1])
        assert (record["progress"]["epoch"], record["progress"]["step"]) == (epoch, number)
    assert [path.name for path in kept] == ["epoch-0010-step-000003.ckpt", "epoch-0011-step-000001.ckpt"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [path.name for path in kept]


def test_one_that_was_passed_over_is_not_kept_in_the_place_of_a_good_one(
    checkpoints: Checkpoints, tmp_path: Path, notes: list[str]
) -> None:
    state = make_state()
    for number in (5, 9):
        state.progress.step = number
        checkpoints.save(state)
    good, damaged = find_checkpoints(tmp_path / "checkpoints")
    damaged.write_bytes(b"not what was written")
    again = Checkpoints(tmp_path, 10.0, notes.append, Interrupts(""))
    record = again.read_last()
    assert record is not None
    assert record["progress"]["step"] == 5
    assert len(notes) == 1
    assert str(damaged) in notes[0]
    assert f"Going on from the one before it, {good.name}." in notes[0]
    state.progress.step = 6
    again.save(state)
    names = [path.name for path in find_checkpoints(tmp_path / "checkpoints")]
    assert names == ["epoch-0001-step-000005.ckpt", "epoch-0001-step-000006.ckpt"]


@pytest.fixture
def written(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    state = make_state()
    state.take_best()
    checkpoints.save(state)
    return find_checkpoints(tmp_path / "checkpoints")[0]


def test_truncated_at_any_length_it_is_refused(written: Path) -> None:
    whole = written.read_bytes()
    read_checkpoint(written)
    lengths = np.random.default_rng(0).choice(len(whole), 18, replace=False).tolist()
    for length in (0, len(whole) - 1, *lengths):
        written.write_bytes(whole[:length])
        with pytest.raises(RunError, match="is damaged"):
            read_checkpoint(written)
    written.write_bytes(whole + b"\0")
    with pytest.raises(RunError, match="is damaged"):
        read_checkpoint(written)


def test_with_any_byte_flipped_it_is_refused(written: Path) -> None:
    whole = written.read_bytes()
    rng = np.random.default_rng(0)
    places = rng.choice(len(whole), 200, replace=False).tolist()
    for place in (0, len(whole) - 1, *places):
        content = bytearray(whole)
        content[place] ^= int(rng.integers(1, 256))
        written.write_bytes(content)
        with pytest.raises(RunError, match="is damaged"):
            read_checkpoint(written)
    # And all of the 200 at once.
    content = bytearray(whole)
    for place in places:
        content[place] ^= 0xFF
    written.write_bytes(content)
    with pytest.raises(RunError, match="is damaged"):
        read_checkpoint(written)


class Trap:
    """What pickle would run."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.mkdir, (str(self.sprung),)


@pytest.mark.parametrize("archive", [True, False])
def test_nothing_in_it_is_ever_executed(archive: bool, written: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    if archive:
        torch.save({"format": 1, "trap": Trap(sprung)}, tmp_path / "made")
        content = (tmp_path / "made").read_bytes()
    else:
        content = pickle.dumps({"format": 1, "trap": Trap(sprung)}, protocol=2)
    written.write_bytes(content + hashlib.sha256(content).digest())  # whoever forges it forges the digest too
    with pytest.raises(RunError, match="is no checkpoint"):
        read_checkpoint(written)
    assert not sprung.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_forged_with_a_digest_that_fits_it_is_taken_or_refused(written: Path) -> None:
    """The digest proves nothing of whoever can compute it: what then stands there must not end in a traceback."""
    whole = written.read_bytes()[:-32]
    first = whole.index(b"data.pkl") + len(b"data.pkl")
    rng = np.random.default_rng(0)
    refused = 0
    for place in rng.integers(first, first + 1500, 300).tolist():  # the names, types and numbers, as pickle has them
        content = bytearray(whole)
        content[place] = int(rng.integers(256))
        written.write_bytes(content + hashlib.sha256(content).digest())
        again, state = Checkpoints(written.parent.parent, 10.0, lambda note: None, Interrupts("")), make_state()
        try:
            again.read_last()
            again.restore(state)
        except RunError:
            refused += 1
        else:
            step(state)
            state.scheduler.step(1.0)
            if state.best is not None:
                state.load_best()
    assert refused > 30


@pytest.mark.parametrize(
    "forged",
    [{"epoch": 100}, {"epoch": -1}, {"step": 10**6}, {"step": -1}, {"metrics": []}, {"metrics": [{"train_loss": "x"}]}],
)
def test_a_place_that_training_never_comes_to_is_refused(
    forged: dict[str, Any], checkpoints: Checkpoints, tmp_path: Path
) -> None:
    state = make_state()
    state.take_best()
    state.progress.metrics.append(ROW)
    state.progress.epoch = 1
    record = state.record()
    make_state().restore(copy.deepcopy(record))
    if forged.get("metrics"):
        forged = {"metrics": [{**record["progress"]["metrics"][0], **forged["metrics"][0]}]}
    record["progress"].update(forged)
    with pytest.raises(RunError, match="of another network"):
        make_state().restore(record)
    with pytest.raises(RunError, match="of another network"):
        make_state().restore({**state.record(), "best": None})


def test_another_version_or_another_network_is_refused(checkpoints: Checkpoints, written: Path, tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "made")
    content = (tmp_path / "made").read_bytes()
    path = written.with_name("epoch-0099-step-000000.ckpt")
    path.write_bytes(content + hashlib.sha256(content).digest())
    with pytest.raises(RunError, match="no checkpoint of this version"):
        read_checkpoint(path)
    path.unlink()
    other = make_state()
    other.learner = nn.Linear(3, 2)
    assert checkpoints.read_last() is not None
    with pytest.raises(RunError, match="of another network"):
        checkpoints.restore(other)


@pytest.fixture
def full() -> Iterator[Callable[[], None]]:
    """Returns a function that lets this process write no file beyond 2000 bytes, until the test's end."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit ends the process elsewhere")
def test_one_that_cannot_be_written_leaves_the_last_as_it_is(
    checkpoints: Checkpoints, written: Path, notes: list[str], full: Callable[[], None]
) -> None:
    before = written.read_bytes()
    assert len(before) > 2000
    state = make_state(seed=1)
    full()
    checkpoints.save(state)
    checkpoints.save_best(nn.Linear(100, 100))
    last = f"the last good checkpoint is checkpoints/{written.name}"
    assert notes == [
        f"no checkpoint of epoch 1, step 3 was written (File too large); {last}.",
        "checkpoints/best.pth was not written (File too large).",
    ]
    assert [path.name for path in written.parent.iterdir()] == [written.name]
    assert written.read_bytes() == before


def test_inside_an_epoch_it_is_written_when_it_is_time(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, 10.0, lambda note: None, Interrupts(""))
    state = make_state()
    seen = []
    for minute in range(25):
        now[0] = 1000.0 + 60 * minute
        state.progress.step = minute
        checkpoints.between_batches(state)
        seen.append(len(find_checkpoints(tmp_path / "checkpoints")))
    assert seen == [0] * 10 + [1] * 10 + [2] * 5


# Signals


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def test_a_signal_while_tensors_are_written_comes_after_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised inside of torch.save, it would come out as whatever that makes of it."""
    original, left = DigestWriter.write, [3]

    def write(self: DigestWriter, data: Any) -> int:
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGTERM)
        return original(self, data)

    monkeypatch.setattr(DigestWriter, "write", write)
    before, path = signal.getsignal(signal.SIGTERM), tmp_path / "made.pth"
    with Interrupts("go on"), path.open("wb") as file, pytest.raises(Interrupted, match=r"^interrupted; go on$"):
        write_tensors(file, {str(number): torch.ones(1000) for number in range(9)})
    assert left[0] < 0
    assert len(torch.load(path, weights_only=True)) == 9
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_waits_where_it_is_deferred_and_raises_elsewhere(
    signum: int, checkpoints: Checkpoints, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signum)
    interrupts = checkpoints.interrupts
    state = make_state()
    with interrupts:
        with pytest.raises(Interrupted, match=r"^interrupted; go on$"):
            send(signum)
        with pytest.raises(Interrupted) as stopped:
            _go_steps_through(checkpoints, state, signum)
    assert stopped.value.signum == signum
    assert "saving, after the step" in capfd.readouterr().err
    assert read_checkpoint(find_checkpoints(tmp_path / "checkpoints")[0])["progress"]["step"] == 3
    assert signal.getsignal(signum) == before


def _go_steps_through(checkpoints: Checkpoints, state: TrainingState, signum: int) -> None:
    with checkpoints.interrupts.deferred():
        checkpoints.between_batches(state)
        send(signum)
        step(state)  # it is finished
        checkpoints.between_batches(state)
        pytest.fail("went on")


def test_a_second_signal_does_not_wait() -> None:
    with Interrupts("go on") as interrupts, interrupts.deferred():
        send(signal.SIGTERM)
        assert interrupts.asked == signal.SIGTERM
        with pytest.raises(Interrupted):
            send(signal.SIGINT)
        interrupts.asked = None  # or the block's end would obey it


def test_a_signal_that_nobody_asked_for_is_obeyed_at_the_end() -> None:
    with Interrupts("go on") as interrupts, pytest.raises(Interrupted), interrupts.deferred():
        send(signal.SIGTERM)


def _fail_after_a_signal(error: Exception) -> None:
    with Interrupts("go on") as interrupts, interrupts.deferred():
        send(signal.SIGINT)
        raise error


def test_what_a_signal_makes_fail_is_that_signal() -> None:
    with pytest.raises(Interrupted, match="interrupted; go on") as stopped:
        _fail_after_a_signal(RuntimeError("the compiler was ended"))
    assert stopped.value.signum == signal.SIGINT
    with pytest.raises(NonFiniteError, match="became nan"):
        _fail_after_a_signal(NonFiniteError("the loss became nan"))
    with pytest.raises(RuntimeError, match="by itself"), Interrupts("go on") as interrupts, interrupts.deferred():
        raise RuntimeError("by itself")


def _send_two() -> None:
    try:
        send(signal.SIGTERM)
    finally:
        send(signal.SIGINT)  # what is left to do inside is not broken into


def test_a_signal_sent_twice_is_one_also_where_it_is_obeyed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]  # a machine that stands still for a moment must not make the second signal a new one
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    before = {signum: handler_of(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(Interrupted) as stopped, Interrupts("go on", 0.3):
            _send_two()
        send(signal.SIGINT)  # nor outside
        assert stopped.value.signum == signal.SIGTERM
        now[0] += 0.35
        with pytest.raises(KeyboardInterrupt) as later:
            send(signal.SIGINT)
        assert later.type is KeyboardInterrupt
        assert {signum: signal.getsignal(signum) for signum in before} == before
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_what_was_ignored_before_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts("go on", 0.1) as interrupts, interrupts.deferred():
            send(signal.SIGINT)
            assert interrupts.asked is None
        with pytest.raises(Interrupted) as stopped, Interrupts("go on", 0.1):
            send(signal.SIGTERM)
        assert stopped.value.signum == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, handler_of(signal.SIGTERM))

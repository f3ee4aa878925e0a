"""Several processes learn as one would: the same order, the same gradients, the same weights; and end together."""

from __future__ import annotations

import csv
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training import together
from training.together import CASES, run_together, three_sgd_steps

from tillwatch import cli
from tillwatch.config import TrainConfig
from tillwatch.data.sampler import BalancedSampler, Share, StepBatches
from tillwatch.errors import ConfigError, RunError
from tillwatch.files import sha256_of
from tillwatch.training.cross_validation import Folds, cross_validate
from tillwatch.training.devices import Devices
from tillwatch.training.launch import _Member, free_port, launch, standing
from tillwatch.training.loop import resume, train
from tillwatch.training.resume import read_begun
from tillwatch.training.state import find_checkpoints

pytestmark = pytest.mark.timeout(600)  # each starts several processes, on machines however busy

Config = Callable[..., TrainConfig]
MEMBER = Path(__file__).with_name("member.py")
SETTINGS: dict[str, Any] = {"epochs": 2, "group_pattern": r"day\d", "precision": "fp32"}


# Shares


@pytest.mark.parametrize("count", [1, 2, 7, 8, 33])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_of_clips_are_all_of_them_once_in_order(world: int, count: int) -> None:
    shares = [Share(rank=rank, world=world).of_clips(count) for rank in range(world)]
    assert [clip for share in shares for clip in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("world", "parts", "batch_size"), [(1, 1, 4), (1, 3, 4), (2, 1, 5), (2, 2, 4), (3, 2, 7), (2, 1, 99)]
)
def test_parts_of_all_processes_are_the_single_ones_steps(world: int, parts: int, batch_size: int) -> None:
    labels = [0] * 20 + [1] * 13
    orders = []
    for rank in range(world):
        sampler = BalancedSampler(labels, seed=4)
        batches = StepBatches(sampler, batch_size, Share(rank=rank, world=world, parts=parts))
        sampler.start_epoch(2)
        own = list(batches)
        assert len(own) == len(batches) == parts * batches.steps
        assert min(map(len, own)) >= 1
        assert max(map(len, own)) - min(map(len, own)) <= 1
        orders.append([own[first : first + parts] for first in range(0, len(own), parts)])
    whole = BalancedSampler(labels, seed=4)
    whole.start_epoch(2)
    expected: list[Any] = list(whole)
    size = min(batch_size, 33)
    steps = [
        [draw for rank in range(world) for part in orders[rank][step] for draw in part] for step in range(33 // size)
    ]
    assert steps == [expected[first : first + size] for first in range(0, 33 - size + 1, size)]


def test_a_part_without_a_clip_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="2 x 2 parts of 3 draws"):
        StepBatches(BalancedSampler([0, 1] * 4, seed=0), 3, Share(world=2, parts=2))


# Accumulation


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_a_step_in_parts_is_the_step_at_once(parts: int) -> None:
    whole, cut = (three_sgd_steps(Devices(), 7, number) for number in (1, parts))
    assert cut["clips"] == whole["clips"] == 21
    assert cut["loss"] == pytest.approx(whole["loss"], abs=1e-12)
    for name, value in whole["weights"].items():
        assert torch.allclose(cut["weights"][name], value, rtol=0, atol=1e-12), name


def test_a_run_in_parts_records_them_and_learns_what_is_easy(
    frame_root: Path, tmp_path: Path, tiny_config: Config, quiet: Any
) -> None:
    config = tiny_config(epochs=8, batch_size=5, accumulate=2, dropout=0.0)
    evaluation = train(frame_root, tmp_path / "run", config, quiet())
    assert evaluation.metrics.accuracy == 1.0
    assert "accumulate: 2" in (tmp_path / "run/config.yaml").read_text()


def test_more_parts_than_clips_are_refused(frame_root: Path, tmp_path: Path, tiny_config: Config, quiet: Any) -> None:
    with pytest.raises(ConfigError, match=r"a step of 4 clips cannot be cut into 5 parts"):
        train(frame_root, tmp_path / "run", tiny_config(accumulate=5), quiet())
    assert not (tmp_path / "run").exists()


# Two processes


def test_two_processes_take_the_steps_of_one_and_evaluate_each_clip_once(tmp_path: Path) -> None:
    assert run_together(2, together.sgd_and_shards, tmp_path) == [0, 0]
    outcomes = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for number, case in enumerate(CASES):
        alone = three_sgd_steps(Devices(), case[0], 1, case[2])
        for outcome in outcomes:
            assert outcome["sgd"][number]["clips"] == alone["clips"]
            assert outcome["sgd"][number]["loss"] == pytest.approx(alone["loss"], abs=1e-9)
            for name, value in alone["weights"].items():
                assert torch.allclose(outcome["sgd"][number]["weights"][name], value, rtol=0, atol=1e-9), (case, name)
        start = together.Frozen().state_dict()
        assert not torch.allclose(alone["weights"]["fc.weight"], start["fc.weight"], atol=1e-3), "nothing was learnt"
    for count in (1, 2, 7, 8, 33):
        for outcome in outcomes:
            shares = outcome["evaluated"][count]
            assert [clip for share in shares for clip in share] == list(range(count))


def results_of(folder: Path, world: int = 2) -> list[Any]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(world)]


def learnt(run: Path) -> tuple[str, list[list[str]]]:
    """Weights, and metrics but for times."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [[row[name] for name in ("epoch", "train_loss", "val_loss", "lr")] for row in csv.DictReader(file)]
    return sha256_of(run / "model.pth"), rows


@pytest.fixture(scope="module")
def trained(tiny_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, and what each of them left beside it."""
    folder = tmp_path_factory.mktemp("together")
    assert run_together(2, together.train, tiny_run[0], folder / "run", SETTINGS, folder / "results") == [0, 0]
    return folder


def test_two_processes_draw_as_one_and_end_with_equal_weights(
    trained: Path, tiny_run: tuple[Path, Path], tmp_path: Path, tiny_config: Config, quiet: Any
) -> None:
    ranks = results_of(trained / "results")
    first, second = (rank["weights"] for rank in ranks)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    saved = torch.load(trained / "run/model.pth", weights_only=True)
    assert all(torch.equal(first[name], saved[name]) for name in saved)
    with together.watched_draws() as drawn:
        train(tiny_run[0], tmp_path / "alone", tiny_config(**SETTINGS), quiet())
    assert len(drawn) == 2
    for epoch, alone in enumerate(drawn):
        assert [a + b for a, b in zip(ranks[0]["drawn"][epoch], ranks[1]["drawn"][epoch], strict=True)] == alone
    said = (trained / "results/said0").read_text()
    assert "2 processes train as one, each on its share of a step's 4 clips" in said
    assert "batch norm takes each device's statistics of its own clips" in said
    assert (trained / "results/said1").read_text() == ""
    # What is measured on one's share of the clips is measured on all.
    assert {path.name for path in (trained / "run").iterdir()} == {path.name for path in (tmp_path / "alone").iterdir()}


def test_two_machines_of_one_process_are_two_processes(
    trained: Path, tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    codes = run_together(2, together.train, tiny_run[0], tmp_path / "run", SETTINGS, tmp_path / "results", nodes=2)
    assert codes == [0, 0]
    assert learnt(tmp_path / "run") == learnt(trained / "run")
    assert "num_nodes: 2" in (tmp_path / "run/config.yaml").read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_in_either_process_it_goes_on_to_the_same_weights(
    rank: int, trained: Path, tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    run, results = tmp_path / "run", tmp_path / "results"
    settings = {**SETTINGS, "checkpoint_minutes": 0.0}
    codes = run_together(2, together.train, tiny_run[0], run, settings, results, ("step", 5), rank)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] in (2, 3)
    if rank == 1:
        assert (results / "ended0").read_text() == "process 1 of 2 is gone without a word: killed, or its machine is."
    assert find_checkpoints(run / "checkpoints")
    assert run_together(2, together.train, tiny_run[0], run, settings, results) == [0, 0]
    assert "going on from epoch 2, step 1." in (results / "said0").read_text()
    assert learnt(run) == learnt(trained / "run")


def test_a_signal_to_one_stops_both_at_one_step_and_other_devices_may_go_on(
    tiny_run: tuple[Path, Path], tmp_path: Path, quiet: Any
) -> None:
    run, results = tmp_path / "run", tmp_path / "results"
    act = together.terminate
    codes = run_together(2, together.train, tiny_run[0], run, SETTINGS, results, ("step", 2), 1, act)
    assert codes == [3, 3]
    ended = [(results / f"ended{rank}").read_text() for rank in (0, 1)]
    stays = [
        "the last good checkpoint is checkpoints/epoch-0001-step-000002.ckpt",
        "the first process says which checkpoint is the last",
    ]
    then = f"go on with: tillwatch train --resume {run}"
    assert ended == [f"interrupted at epoch 1, step 2; {text}; {then}" for text in stays]
    assert [path.name for path in find_checkpoints(run / "checkpoints")] == ["epoch-0001-step-000002.ckpt"]
    log = quiet()
    evaluation = resume(run, replace(read_begun(run).config, devices=1), log=log)
    text = log.console.export_text()
    assert evaluation is not None
    assert "going on from epoch 1, step 2." in text
    assert (
        "a step was cut into 2 x 1 parts and is taken at once: batch norm takes its statistics of other clips" in text
    )


def test_none_leaves_before_the_first_has_saved(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    """Whoever leaves earlier leaves word of it, and is a process that failed, to torchrun too: they end the first."""
    run, results, act = tmp_path / "run", tmp_path / "results", together.terminate_on_a_slow_disk
    assert run_together(2, together.train, tiny_run[0], run, SETTINGS, results, ("step", 2), 0, act) == [3, 3]
    assert [path.name for path in find_checkpoints(run / "checkpoints")] == ["epoch-0001-step-000002.ckpt"]


def test_what_is_not_finite_in_one_ends_both_in_its_words(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    run, results = tmp_path / "run", tmp_path / "results"
    act = together.find_infinite
    assert run_together(2, together.train, tiny_run[0], run, SETTINGS, results, ("step", 4), 1, act) == [3, 3]
    ended = [(results / f"ended{rank}").read_text() for rank in (0, 1)]
    assert ended[1].startswith("the loss became inf in a step: made up. ")
    assert ended[0].startswith("the loss became inf in a step: made up. The weights of the ")
    assert "best epoch until then are kept" in ended[0]
    assert (run / "model.pth").is_file()


def test_why_one_ends_is_told_by_the_other(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    run, results, act = tmp_path / "run", tmp_path / "results", together.fail_alone
    assert run_together(2, together.train, tiny_run[0], run, SETTINGS, results, ("step", 2), 1, act) == [3, 3]
    ended = [(results / f"ended{rank}").read_text() for rank in (0, 1)]
    assert ended == ["process 1 of 2 ended: its disk is gone.", "its disk is gone."]


@pytest.mark.parametrize("who", [0, 2])
@pytest.mark.parametrize("still_s", [6.0, pytest.param(None, marks=pytest.mark.slow)])
def test_one_that_hangs_ends_the_others_within_a_minute(still_s: float | None, who: int, tmp_path: Path) -> None:
    """Of itself in 25 seconds, which is slow; else sooner. The first one holds the store, which then hangs too."""
    processes = together.start_together(3, together.stop_or_wait, tmp_path, still_s, who)
    others = [process for rank, process in enumerate(processes) if rank != who]
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / f"pid{who}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        stopped_at = time.monotonic()
        for process in others:
            process.join(60)
        assert [process.exitcode for process in others] == [2, 2]
        assert time.monotonic() - stopped_at < 60
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.mark.slow
def test_three_processes_go_on_bit_for_bit_too(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    """Sums of three numbers depend on their order, and DDP changes that of its buckets after the first step."""
    settings = {**SETTINGS, "batch_size": 6, "checkpoint_minutes": 0.0}
    whole, run, results = tmp_path / "whole", tmp_path / "run", tmp_path / "results"
    assert run_together(3, together.train, tiny_run[0], whole, settings, results) == [0, 0, 0]
    codes = run_together(3, together.train, tiny_run[0], run, settings, results, ("step", 3), 2)
    assert codes[2] == -signal.SIGKILL
    assert run_together(3, together.train, tiny_run[0], run, settings, results) == [0, 0, 0]
    assert learnt(run) == learnt(whole)


# The command that starts them


FLAGS = [
    *("--arch", "tinynet", "--weights", "none", "--batch-size", "4", "--lr", "1e-2", "--workers", "0"),
    *("--group-pattern", r"day\d", "--precision", "fp32", "--no-baselines"),
]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_the_command_trains_on_two_devices_and_ends_when_one_dies(
    trained: Path, tiny_run: tuple[Path, Path], tmp_path: Path, environment: dict[str, str]
) -> None:
    run, command = tmp_path / "run", [sys.executable, str(MEMBER), "train"]
    flags = [str(tiny_run[0]), "--out", str(run), "--devices", "2", *FLAGS, "--checkpoint-minutes", "0"]
    # So many epochs that it is killed long before the last.
    words = [*command, *flags, "--epochs", "2000", "--overwrite"]
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as launcher:
        deadline = time.monotonic() + 240
        while not find_checkpoints(run / "checkpoints") and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(child_of_rank(launcher.pid, 1), signal.SIGKILL)
        killed_at = time.monotonic()
        _, error = launcher.communicate(timeout=120)
        assert time.monotonic() - killed_at < 60
    assert launcher.returncode == 128 + signal.SIGKILL
    assert error.splitlines()[-1] == (
        "tillwatch: error: process 1 of 2 was ended by SIGKILL (by the system, if it ran out of memory); go on with: "
        f"tillwatch train --resume {run}"
    )
    assert "Traceback" not in error
    # It goes on with as many, as config.yaml says; told to stop, both stop at one step.
    words = [*command, "--resume", str(run)]
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        before = find_checkpoints(run / "checkpoints")[-1]
        deadline = time.monotonic() + 240
        while find_checkpoints(run / "checkpoints")[-1] <= before and time.monotonic() < deadline:
            time.sleep(0.1)
        launcher.send_signal(signal.SIGTERM)
        output, error = launcher.communicate(timeout=120)
    assert launcher.returncode == 128 + signal.SIGTERM
    assert error.splitlines()[-1].startswith("tillwatch: interrupted at epoch ")
    assert "2 processes train as one" in output
    words = [*command, *flags, "--epochs", "2", "--overwrite"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert learnt(run) == learnt(trained / "run")


def child_of_rank(launcher: int, rank: int) -> int:
    """Returns the process of a rank among those that a launcher started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    wanted = f"RANK={rank}"
    return next(int(pid) for pid in children if wanted in Path(f"/proc/{pid}/environ").read_text().split("\0"))


def test_the_meeting_point_is_a_free_port_that_no_connection_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[range] = []
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        taken, free = held.getsockname()[1], free_port()
        assert 1024 < free < 32768

        def sample(_self: random.Random, ports: range, _count: int) -> list[int]:
            asked.append(ports)
            return [taken, free] if len(asked) == 1 else [taken]

        monkeypatch.setattr(random.SystemRandom, "sample", sample)
        assert free_port() == free
        with pytest.raises(RunError, match="no free port between 20000 and 32000"):
            free_port()
    assert max(asked[0]) < 32768


@pytest.mark.slow
def test_two_machines_by_torchrun(
    trained: Path, tiny_run: tuple[Path, Path], tmp_path: Path, environment: dict[str, str]
) -> None:
    run, port = tmp_path / "run", free_port()
    nodes = []
    for node in (0, 1):
        where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *where, "--node-rank", str(node)]
        words = [*torchrun, str(MEMBER), "train", str(tiny_run[0]), "--out", str(run), "--epochs", "2", *FLAGS]
        nodes.append(subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    said = [node.communicate(timeout=300)[0].decode() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert learnt(run) == learnt(trained / "run")
    assert "num_nodes: 2" in (run / "config.yaml").read_text()
    assert "2 processes on 2 machines train as one" in said[0]
    assert "epoch" not in said[1]


def start(devices: int, script: str, run: Path = Path("run")) -> int:
    return launch(devices, 1, run, [sys.executable, "-c", script])


def test_a_command_starts_its_processes_and_says_where_they_stand(capfd: pytest.CaptureFixture[str]) -> None:
    script = "import os; print(*(os.environ[n] for n in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE')))"
    assert start(3, script) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["0 0 3 3", "1 1 3 3", "2 2 3 3"]


def test_the_last_line_is_the_reason_of_the_first_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    script = """
import os, sys, time
if os.environ["RANK"] == "1":
    print("tillwatch: warning: not it", file=sys.stderr)
    sys.exit("tillwatch: error: what it was")
time.sleep(1)
sys.exit("tillwatch: error: somebody is gone")
"""
    assert start(2, script) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "tillwatch: error: somebody is gone",
        "tillwatch: error: what it was",
    ]


def test_who_does_not_end_with_the_others_is_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tillwatch.training.launch._GRACE_S", 0.2)
    monkeypatch.setattr("tillwatch.training.launch._LAST_S", 0.2)
    (tmp_path / "config.yaml").write_text("")
    script = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1000)
"""
    assert start(2, script, tmp_path) == 128 + signal.SIGKILL
    assert capsys.readouterr().err.splitlines()[-1] == (
        "tillwatch: error: process 1 of 2 was ended by SIGKILL (by the system, if it ran out of memory); go on with: "
        f"tillwatch train --resume {tmp_path}"
    )


def test_a_signal_is_handed_to_the_first_alone(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = f"""
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *args: sys.exit(143))
rank, folder = int(os.environ["RANK"]), pathlib.Path({str(tmp_path)!r})
(folder / str(rank)).write_text("")
if rank == 0:
    while not (folder / "1").exists():
        time.sleep(0.05)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(1000)
time.sleep(1)
"""
    assert start(2, script) == 143
    assert capfd.readouterr().out == ""


def test_a_signal_while_they_are_started_ends_them_all(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    class Slow(_Member):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            begun.append(self.process)
            if len(begun) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            assert self.process.poll() is None  # it is handed on once all are there

    monkeypatch.setattr("tillwatch.training.launch._GRACE_S", 1000.0)  # of who fails unasked
    monkeypatch.setattr("tillwatch.training.launch._ASKED_GRACE_S", 0.2)
    monkeypatch.setattr("tillwatch.training.launch._Member", Slow)
    assert start(2, "import time; time.sleep(1000)") == 128 + signal.SIGTERM
    assert [process.poll() is not None for process in begun] == [True, True]
    assert "process 0 of 2 was ended by SIGTERM" in capfd.readouterr().err


def test_the_first_is_not_hurried_while_it_saves(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Asked to stop, both leave at one step; the second has nothing to save, and is gone long before the first."""
    monkeypatch.setattr("tillwatch.training.launch._ASKED_GRACE_S", 0.1)
    monkeypatch.setattr("tillwatch.training.launch._LAST_S", 0.1)
    script = f"""
import os, pathlib, signal, sys, time
rank, gone = int(os.environ["RANK"]), pathlib.Path({str(tmp_path)!r}) / "gone"
def save(*args):
    signal.signal(signal.SIGTERM, lambda *args: sys.exit("hurried"))
    gone.touch()
    time.sleep(1.5)
    print("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
if rank == 0:
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(1000)
while not gone.exists():
    time.sleep(0.01)
sys.exit(143)
"""
    assert start(2, script) == 143
    assert capfd.readouterr().out == "saved\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--devices", "2", "--num-nodes", "2"], "--num-nodes 2 needs MASTER_ADDR and MASTER_PORT and NODE_RANK"),
        (["--devices", "0"], "--devices is 0; it must be at least 1"),
        (["--sync-batchnorm", "--device", "cpu"], "--sync-batchnorm is for GPUs alone"),
        (["--devices", "2", "--freeze", "backbone"], "--freeze backbone trains its head in seconds, on one device"),
    ],
)
def test_what_several_devices_cannot_be_is_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_run_by_others", lambda run, config: launch(config.devices, config.num_nodes, run))
    with pytest.raises(SystemExit) as exited:
        cli.main(["train", str(tmp_path), "--out", str(tmp_path / "run"), *flags])
    assert exited.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_called_from_python_training_takes_one_device(tmp_path: Path, frame_root: Path, tiny_config: Config) -> None:
    with pytest.raises(RunError, match="2 devices need a process each"):
        train(frame_root, tmp_path / "run", tiny_config(devices=2))


def test_a_cross_validation_takes_one_device(tmp_path: Path, frame_root: Path, tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match="crossval trains its folds on one device"):
        cross_validate(frame_root, tmp_path / "folds", tiny_config(devices=2), Folds(folds=2))


def test_sync_batchnorm_is_refused_where_auto_is_a_cpu(
    tmp_path: Path, frame_root: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tillwatch.training.prepare.choose_device", lambda asked: "cpu")
    with pytest.raises(ConfigError, match="--sync-batchnorm is for GPUs alone"):
        train(frame_root, tmp_path / "run", tiny_config(sync_batchnorm=True))


def test_where_a_process_stands() -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    place = standing(dict(zip(names, ("5", "8", "1", "4"), strict=True)))
    assert place is not None
    assert (place.rank, place.world, place.local_rank, place.local_world, place.nodes) == (5, 8, 1, 4, 2)
    assert standing({}) is None
    assert standing(dict(zip(names, ("0", "1", "0", "1"), strict=True))) is None
    with pytest.raises(ConfigError, match="3 processes are not the same number on each machine"):
        standing(dict(zip(names, ("0", "3", "0", "2"), strict=True)))

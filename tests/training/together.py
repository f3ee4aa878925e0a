"""Processes that train together, forked from one that has imported everything already."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from apart import start_apart
from conftest import TINY, TINY_BACKBONE
from rich.console import Console
from torch import nn
from training import broken_off
from training.broken_off import Place

from tillwatch.config import TrainConfig
from tillwatch.data.loader import balanced_loader
from tillwatch.errors import Interrupted, RunError, TillwatchError
from tillwatch.models.backbones import BACKBONES
from tillwatch.training import loop, peers
from tillwatch.training.devices import Devices, joined
from tillwatch.training.feed import Feed
from tillwatch.training.guard import NonFiniteError, StepGuard
from tillwatch.training.launch import free_port
from tillwatch.training.pausing import Pausing
from tillwatch.training.probe import FeatureBatch, FeatureDataset
from tillwatch.training.runlog import RunLog
from tillwatch.training.state import Checkpoints, Progress, TrainingState


def start_together(world: int, action: Callable[..., None], *arguments: Any, nodes: int = 1) -> list[BaseProcess]:
    """Starts an action of this module in so many processes, on so many "machines"."""
    port = free_port()
    return [start_apart(member, rank, world, world // nodes, port, action, *arguments) for rank in range(world)]


def run_together(world: int, action: Callable[..., None], *arguments: Any, nodes: int = 1) -> list[int]:
    """Runs them until all have ended; returns their exit codes by rank."""
    processes = start_together(world, action, *arguments, nodes=nodes)
    codes = []
    for process in processes:
        process.join(240)
        if process.is_alive():
            process.kill()
            raise TimeoutError("a process did not end")
        assert process.exitcode is not None
        codes.append(process.exitcode)
    return codes


def member(rank: int, world: int, local_world: int, port: int, action: Callable[..., None], *arguments: Any) -> None:
    """One of them: says where it stands as torchrun says it, and does its part."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank % local_world),
        "LOCAL_WORLD_SIZE": str(local_world),
        "GROUP_RANK": str(rank // local_world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    BACKBONES["tinynet"] = TINY_BACKBONE
    action(*arguments)


# What they do


def train(
    data: Path,
    run: Path,
    settings: dict[str, Any],
    results: Path,
    place: Place | None = None,
    at_rank: int = 0,
    act: Callable[[], None] = broken_off.die,
) -> None:
    """Trains, or goes on where there is a run; each leaves its draws, its weights, and what ended it."""
    rank = int(os.environ["RANK"])
    os.environ["TILLWATCH_CACHE"] = str(results / "cache")
    results.mkdir(exist_ok=True)
    if place is not None and rank == at_rank:
        broken_off.at(*place, act)
    weights = watched_weights()
    config = TrainConfig(**{**TINY, **settings})
    try:
        with watched_draws() as drawn, joined(config) as devices, (results / f"said{rank}").open("w") as said:
            log = RunLog(Console(file=said, width=10_000))
            if devices.rank:
                loop.follow(devices)
            elif (run / "config.yaml").exists():
                loop.resume(run, log=log, devices=devices)
            else:
                loop.train(data, run, config, log, devices=devices)
    except (TillwatchError, Interrupted) as error:
        (results / f"ended{rank}").write_text(str(error))
        raise SystemExit(3) from None
    torch.save({"drawn": drawn, "weights": weights}, results / f"rank{rank}.pt")


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def terminate_on_a_slow_disk() -> None:
    peers._TO_NOTICE_S = 0.1
    save = Checkpoints.save

    def slowly(self: Checkpoints, state: TrainingState) -> None:
        time.sleep(4)
        save(self, state)

    Checkpoints.save = slowly  # type: ignore[method-assign]
    terminate()


def find_infinite() -> None:
    raise NonFiniteError("the loss became inf in a step: made up.")


def fail_alone() -> None:
    raise RunError("its disk is gone.")


Draws = list[list[list[int]]]


@contextlib.contextmanager
def watched_draws() -> Iterator[Draws]:
    """Yields a list that gets, epoch by epoch, the clips of each part of each step as this process takes them."""
    drawn: Draws = []
    steps = Feed.steps

    def watched(self: Feed) -> Any:
        drawn.append([])
        for parts in steps(self):
            drawn[-1] += [batch.indices.tolist() for batch in parts]
            yield parts

    Feed.steps = watched  # type: ignore[method-assign]
    try:
        yield drawn
    finally:
        Feed.steps = steps  # type: ignore[method-assign]


def watched_weights() -> dict[str, torch.Tensor]:
    """Returns a mapping that gets the weights that this process's learner has after the last epoch."""
    weights: dict[str, torch.Tensor] = {}
    part = Devices.part

    def watched(self: Devices) -> None:
        weights.update(learners[-1].state_dict())
        part(self)

    learners: list[nn.Module] = []
    fit: Any = loop.fit

    def watched_fit(network: nn.Module, *arguments: Any) -> Any:
        learners.append(network)
        return fit(network, *arguments)

    loop.fit = watched_fit  # type: ignore[assignment]
    Devices.part = watched  # type: ignore[method-assign]
    return weights


class Frozen(nn.Module):
    """A network in float64 with batch norm that keeps its statistics, no dropout, and weights from a seed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Sequential(nn.Conv3d(3, 6, (3, 3, 3)), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 4, (1, 3, 3)))
        self.fc = nn.Linear(4, 2)
        self.double()
        norm = self.stem[1]
        assert isinstance(norm, nn.BatchNorm3d)
        assert norm.running_mean is not None
        norm.running_mean.uniform_(-0.3, 0.3)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.stem(clips).mean((2, 3, 4)))
        return out

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.stem[1].eval()
        return self


def three_sgd_steps(devices: Devices, batch_size: int, parts: int, lost: Sequence[int] = ()) -> dict[str, Any]:
    """Trains three steps of SGD on clips in memory, some of which "cannot be read"; returns weights and mean loss."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(3 * batch_size, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
    labels = [number % 3 % 2 for number in range(len(clips))]
    share = devices.share(parts)

    def collate(items: Sequence[tuple[torch.Tensor, int, int]]) -> FeatureBatch:
        read = [item for item in items if item[2] not in lost]
        features = torch.stack([item[0] for item in read]) if read else torch.empty(0)
        return FeatureBatch(features, torch.tensor([item[1] for item in read], dtype=torch.int64))

    class Numbered(FeatureDataset):
        def __getitem__(self, key: Any) -> Any:
            return *super().__getitem__(key), key.index

    loader, sampler = balanced_loader(Numbered(clips, labels), labels, batch_size, 5, share, collate_fn=collate)
    blank = FeatureBatch(torch.zeros(1, 3, 4, 8, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.int64))
    feed = Feed(loader, sampler, lambda batch, device: batch.features, None, lambda batch, device: batch, blank=blank)
    network = Frozen()
    fabric = devices.fabric("cpu", "32-true")  # Fabric's "64-true" rounds outputs to 32 bits; this leaves all as it is
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.5))
    now = Progress()
    feed.start_epoch(0)
    guard = StepGuard(network, model)
    pausing, log = Pausing(network, lambda: None), RunLog(Console(quiet=True))
    loop.train_epoch(fabric, model, optimizer, guard, feed, 0, now, pausing, log, devices)
    assert now.step == 3
    return {"weights": network.state_dict(), "loss": now.loss_sum / now.clips, "clips": now.clips}


CASES: list[tuple[int, int, tuple[int, ...]]] = [(6, 1, ()), (5, 1, ()), (7, 2, ()), (4, 1, (0, 1, 2, 3, 4, 5))]


def sgd_and_shards(results: Path) -> None:
    """Leaves the outcome of each case of SGD, and which clips each process evaluates."""
    with joined(TrainConfig()) as devices:
        outcome: dict[str, Any] = {"sgd": [three_sgd_steps(devices, *case) for case in CASES], "evaluated": {}}
        for count in (1, 2, 7, 8, 33):
            clips = devices.share().of_clips(count)
            batches = [list(clips)[first : first + 3] for first in range(0, len(clips), 3)]
            rounds = [batch or [] for batch in devices.rounds(batches)]
            outcome["evaluated"][count] = devices.gather([clip for batch in rounds for clip in batch])
            assert len({len(rounds) for rounds in devices.gather(rounds)}) == 1, "they went out of step"
        torch.save(outcome, results / f"rank{devices.rank}.pt")


def stop_or_wait(results: Path, still_s: float | None, who: int) -> None:
    """One process stops without a word, its connections open, while the others wait for its number.

    They notice after still_s seconds; None for as long as they take by themselves.
    """
    if still_s is not None:
        peers._STILL_S = still_s
    with joined(TrainConfig()) as devices:
        devices.sum(1)
        (results / f"pid{devices.rank}").write_text(str(os.getpid()))
        if devices.rank == who:
            os.kill(os.getpid(), signal.SIGSTOP)
        devices.sum(1)

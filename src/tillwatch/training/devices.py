"""The devices that a network learns on: one, or several with a process each, which learn as one would.

Every process has the whole network and takes its share of each step (data/sampler.py). Gradients are summed by Fabric's
DDP; what is decided (when to stop, the learning rate, the best epoch) follows from numbers that all have alike.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from tillwatch.config import TrainConfig
from tillwatch.data.catalog import Skip
from tillwatch.data.sampler import Share
from tillwatch.errors import ConfigError, RunError, TillwatchError, one_line
from tillwatch.models.memory import keep_freed_memory
from tillwatch.models.precision import PrecisionName, lay_out
from tillwatch.models.saved import choose_device
from tillwatch.training.guard import NonFiniteError
from tillwatch.training.interrupts import SAME_WITHIN_S, Interrupts
from tillwatch.training.launch import Standing, refuse_launch, standing
from tillwatch.training.peers import Peers
from tillwatch.training.state import TrainingState

# Fabric announces what prepare has said already, with its reason.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

T = TypeVar("T")

_FABRIC_PRECISION: dict[PrecisionName, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Devices:
    """The processes that train together, one a device, seen from one of them; a single one by default.

    What :meth:`sum`, :meth:`gather`, :meth:`from_first` and :meth:`average_statistics` do, all must do, in one order.

    Args:
        standing: this one's place among them; None if it is alone.
        peers: the others, to be left.

    Attributes:
        rank, world: this one's number, from 0, and how many there are.
    """

    def __init__(self, standing: Standing | None = None, peers: Peers | None = None) -> None:
        self.standing = standing
        self.peers = peers
        self.rank = 0 if standing is None else standing.rank
        self.world = 1 if standing is None else standing.world
        # Plain numbers travel from CPU to CPU: whoever waits for them does not wait for a GPU.
        self._plain: Any = None if standing is None else dist.new_group(backend="gloo")

    def share(self, parts: int = 1) -> Share:
        """Returns what this process takes of every step, in so many parts, and of the clips to evaluate."""
        return Share(rank=self.rank, world=self.world, parts=parts)

    def fabric(self, device: str, precision: Any) -> Fabric:
        """Returns Fabric for these devices, "cpu" or "cuda"; the precision in its words."""
        if self.standing is None:
            return Fabric(accelerator=device, devices=1, precision=precision)
        fabric = Fabric(
            accelerator=device,
            devices=self.standing.local_world,
            num_nodes=self.standing.nodes,
            strategy=_Ddp(),
            precision=precision,
            plugins=[LightningEnvironment()],  # whatever other environment this may look like
        )
        fabric.launch()
        return fabric

    def settled(self, config: TrainConfig) -> TrainConfig:
        """Returns settings with the devices that there are: torchrun may have started other ones than were asked for.

        Raises:
            ConfigError: for what several devices cannot do.
            RunError: if more devices are asked for than there are processes.
        """
        if self.standing is not None:
            return replace(config, devices=self.standing.local_world, num_nodes=self.standing.nodes)
        if config.devices * config.num_nodes > 1:
            raise refuse_launch(config.devices, config.num_nodes)
        return config

    def interrupts(self, go_on: str) -> Interrupts:
        """Returns what takes Ctrl-C and SIGTERM, which may come twice: to the whole group, and handed on."""
        return Interrupts(go_on, same_within_s=SAME_WITHIN_S)

    def summing(self, fabric: Fabric, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Sums gradients over processes in the last part of a step alone: the parts before it add up where they are."""
        return nullcontext() if last or self.world == 1 else fabric.no_backward_sync(model)  # type: ignore[arg-type]

    def part(self) -> None:
        """Ends the training together, once the network has learnt: what follows is the first one's."""
        if self.peers is not None:
            self.gather(None)  # none leaves before all are here
            dist.destroy_process_group()
            self.peers.leave()
            self.world, self.peers = 1, None

    # What all have

    def sum(self, *values: float) -> list[float]:
        """Returns the sums of numbers over all processes, in float64."""
        if self.world == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums, group=self._plain)
        return [float(value) for value in sums]

    def gather(self, value: T) -> list[T]:
        """Returns the value of each process, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._plain)
        return values

    def from_first(self, value: T) -> T:
        """Returns the first process's value; what the others give does not matter."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._plain)
        return values[0]

    def all_skipped(self, parts: Sequence[Any]) -> dict[str, Skip]:
        """Returns the clips that could not be read in a step, by any process, by name."""
        own = {skip.name: skip for batch in parts for skip in batch.skipped}
        if self.world == 1 or not self.sum(len(own))[0]:
            return own
        return {name: skip for one in self.gather(own) for name, skip in one.items()}

    def any_signal(self, asked: int | None) -> int | None:
        """Returns the signal that one of the processes was sent; None if none was."""
        if self.world == 1:
            return asked
        (anyone,) = self.sum(asked is not None)
        return max((signum for signum in self.gather(asked) if signum is not None), default=None) if anyone else None

    def rounds(self, batches: Any) -> Iterator[Any]:
        """Yields batches, and None where others have more than this process has: all are in step."""
        if self.world == 1:
            yield from batches
            return
        own = iter(batches)
        while True:
            batch = next(own, None)
            if not self.sum(batch is not None)[0]:
                return
            yield batch

    @contextmanager
    def together(self) -> Iterator[None]:
        """Makes a loss or gradient that is not finite in one process end all, in its words.

        Raises:
            NonFiniteError: in all of them.
        """
        found: str | None = None
        try:
            yield
        except NonFiniteError as error:
            if self.world == 1:
                raise
            found = str(error)
        if self.world > 1 and self.sum(found is not None)[0]:
            raise NonFiniteError(next(text for text in self.gather(found) if text))

    def share_state(self, state: TrainingState) -> None:
        """Gives all the first one's state."""
        if self.world == 1:
            return
        buffer = io.BytesIO()
        if self.rank == 0:
            torch.save(state.record(), buffer)
        record = self.from_first(buffer.getvalue())
        if self.rank:
            state.restore(torch.load(io.BytesIO(record), map_location="cpu", weights_only=True))

    def average_statistics(self, learner: nn.Module, weight: float) -> None:
        """Makes batch norm's running statistics the mean over all processes.

        Their moving averages are linear, so that this is the moving average of the mean of what each has seen.

        Args:
            learner: in training mode.
            weight: this process's share of the step's clips; those of all sum to 1.
        """
        if self.world == 1:
            return
        statistics = [
            value
            for module in learner.modules()
            if isinstance(module, _BatchNorm) and module.training
            for value in (module.running_mean, module.running_var)
            if value is not None
        ]
        if not statistics:
            return
        flat = torch.cat([value.flatten() for value in statistics]) * weight
        dist.all_reduce(flat)
        for value, mean in zip(statistics, torch.split(flat, [value.numel() for value in statistics]), strict=True):
            value.copy_(mean.view_as(value))


class _Ddp(DDPStrategy):
    """DDP whose sums on a CPU do not depend on how it cuts gradients into buckets, which changes after its first step.

    So a run that goes on sums as one without interruption does.
    """

    def setup_module(self, module: nn.Module) -> DistributedDataParallel:
        # Of parameters with a side of 1 there are two ways to say how they lie in memory.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        wrapped = super().setup_module(module)
        wrapped.broadcast_buffers = False  # average_statistics does better
        if self.root_device.type == "cpu" and dist.get_world_size() > 2:  # two numbers have one sum
            wrapped.register_comm_hook(None, lambda state, bucket: _mean_in_order(bucket.buffer()))
        return wrapped


def _mean_in_order(own: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    """Returns the mean of the gradients of all processes, added in the order of ranks."""
    all_of_them = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(all_of_them, own)
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(torch.stack(all_of_them).sum(0).div_(len(all_of_them)))
    return done


@contextmanager
def joined(config: TrainConfig) -> Iterator[Devices]:
    """Joins the processes that train together, if this is one of several, until the block ends.

    What ends one of them ends the others within a minute.

    Args:
        config: the kind of device, and how many are wanted.

    Raises:
        ConfigError: if this machine has no such devices.
        RunError: if the others do not come, or one of them ends before its part is done.
    """
    place = standing()
    if place is None:
        if config.devices * config.num_nodes > 1:
            raise refuse_launch(config.devices, config.num_nodes)
        yield Devices()
        return
    kind = choose_device(config.device)
    if kind == "cuda":
        if place.local_world > torch.cuda.device_count():
            raise ConfigError(
                f"{place.local_world} devices are wanted, but this machine has {torch.cuda.device_count()} GPUs; give "
                "fewer --devices, or --device cpu."
            )
        torch.cuda.set_device(place.local_rank)
    peers = Peers(place)
    try:
        # Whoever waits for the dead is ended by Peers, long before this.
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
            store=peers.store,
            rank=place.rank,
            world_size=place.world,
            timeout=timedelta(days=7),
        )
        yield Devices(place, peers)
    except BaseException as error:
        lost = peers.why_lost(error) if isinstance(error, RuntimeError) else None
        if lost is None:
            peers.fail(one_line(error) if isinstance(error, TillwatchError | KeyboardInterrupt) else repr(error))
        if kind == "cpu" and dist.is_initialized():
            dist.destroy_process_group()  # whoever waits for this process learns of it now
        peers.leave(last=True)
        if lost is not None:
            raise RunError(lost) from None
        raise
    if dist.is_initialized():  # what was to be trained was trained already
        dist.destroy_process_group()
        peers.leave(last=place.rank == 0)


def set_up(
    learner: nn.Module,
    device: str,
    precision: PrecisionName,
    lr: float,
    *,
    compiled: bool = False,
    devices: Devices | None = None,
) -> tuple[Fabric, nn.Module, Any]:
    """Puts what learns on its device, in its precision and memory layout, with its optimiser.

    Returns:
        Fabric, the learner wrapped for training (the parameters stay its own), and Adam.
    """
    fabric = (devices or Devices()).fabric(device, _FABRIC_PRECISION[precision])
    if device == "cpu":
        keep_freed_memory()
    lay_out(learner, device)
    if compiled:
        learner.compile()
    # One pass over the weights instead of one for each operation.
    adam = torch.optim.Adam(learner.parameters(), lr=lr, fused=True)
    model, optimizer = fabric.setup(learner, adam)
    return fabric, model, optimizer


@contextmanager
def fresh_statistics(learner: nn.Module, *, forget: bool = True) -> Iterator[None]:
    """Lets batch norm forget its running means and take plain ones over the block: clips of another size have others.

    The moving average forgets a tenth a step; over an epoch of twelve steps a quarter of what small clips had is left.
    Within an epoch that is taken up again, nothing is left to ``forget``.
    """
    norms = [module for module in learner.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if forget:
            norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches since
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

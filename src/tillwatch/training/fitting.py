"""How a step's clips are taken so that they fit in memory: settled before training; told plainly where they do not."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from tillwatch.config import TrainConfig
from tillwatch.errors import ConfigError, RunError
from tillwatch.models.motion import ARCH as MOTION
from tillwatch.training.memory import Line, StepSize, estimate, fits, free_bytes, is_out_of_memory, measure
from tillwatch.training.prepare import Job
from tillwatch.training.run_folder import go_on
from tillwatch.training.runlog import RunLog

#: What `--batch-size auto` takes at once, at most: more is hardly faster.
MOST_AT_ONCE = 32
#: And so few clips a step that an epoch has this many steps; but 4 of them anyway.
LEAST_STEPS = 16

_CPU_SHARE = 0.8  # of what is free; the rest is for loading, and for others
#: An estimate of so much of what is free is worth measuring: steps took up to 2.4 times what was estimated.
_LOOK_FROM = 0.3


def settle_batches(job: Job, config: TrainConfig, log: RunLog) -> TrainConfig:
    """Settles ``batch_size`` and ``accumulate`` where they are "auto", and sees to it that each device has clips.

    Args:
        job: clips, device, precision.
        config: settings, with the devices that there are.
        log: gets what came out.

    Returns:
        Settings with numbers in their place.

    Raises:
        ConfigError: if there are fewer clips than parts of a step, or a step does not fit in memory.
    """
    if job.spec.arch == MOTION:
        return config
    world, draws = config.devices * config.num_nodes, len(job.side("train"))
    if config.freeze != "backbone":
        room = _Room(job, config)
        if config.batch_size == "auto":
            config = _with_batch(room, config, world, draws, log)
        elif config.accumulate == "auto":
            config = _with_parts(room, config, world, draws, log)
        else:
            _check(room, config, world, draws)
    step = min(config.step_clips, draws)
    if step < world * config.parts:
        parts = f"{world} x {config.parts}" if world > 1 and config.parts > 1 else str(world * config.parts)
        raise ConfigError(
            f"a step of {step} clips cannot be cut into {parts} parts with a clip each; give a larger --batch-size, or "
            f"fewer {'--devices' if world > 1 else '--accumulate'}."
        )
    if world > 1:
        _say(config, job, step, world, draws, log)
    return config


def _say(config: TrainConfig, job: Job, step: int, world: int, draws: int, log: RunLog) -> None:
    kind = "GPUs" if job.device == "cuda" else "processes"
    machines = f" on {config.num_nodes} machines" if config.num_nodes > 1 else ""
    log.say(f"{world} {kind}{machines} train as one, each on its share of a step's {step} clips")
    log.say(
        "batch norm takes its statistics over all devices"
        if config.sync_batchnorm
        else "batch norm takes each device's statistics of its own clips; the running ones are averaged after each step"
    )
    if draws % step:
        log.say(
            f"each epoch drops the last {draws % step} of its {draws} draws on all devices: they make no whole step"
        )


class _Room:
    """What fits in memory, on one device."""

    def __init__(self, job: Job, config: TrainConfig) -> None:
        prep = job.spec.preprocessing
        self.arch = job.spec.arch
        self.size = StepSize(
            shape=(3, job.spec.num_frames, *prep.crop),
            device=job.device,
            precision=job.precision,
            recomputed=config.checkpoint_activations,
        )
        self.processes = config.devices
        self._measured: Line | None = None

    def free(self, *, swap: bool = False) -> float | None:
        """Bytes of this machine's memory for each of its processes."""
        free = free_bytes(swap=swap)
        return None if free is None else free / self.processes

    def measured(self) -> Line | None:
        """What steps take on the CPU."""
        if self._measured is None and self.free() is not None:
            self._measured = measure(self.arch, self.size)
        return self._measured

    def most(self, candidates: list[int]) -> int | None:
        """Returns the first of the candidates, the largest first, that fits; None if none does."""
        if self.size.device == "cuda":
            return next((clips for clips in candidates if fits(self.arch, self.size, clips)), None)
        line, free = self.measured(), self.free()
        if line is None or free is None:
            raise ConfigError(
                "what fits in memory could not be measured (it can be on GPUs and on Linux, where a step can be tried "
                "in another process); give a number for auto."
            )
        return next((clips for clips in candidates if line.at(clips) <= _CPU_SHARE * free), None)

    def told(self) -> str:
        """Why not even one clip fits."""
        if self.size.device == "cuda":
            return f"one clip does not fit in this GPU's memory ({_gb(torch.cuda.mem_get_info()[0])} free)"
        line, free = self.measured(), self.free()
        assert line is not None
        assert free is not None
        needs = "more memory than there is" if math.isinf(line.at(1)) else f"{_gb(line.at(1))} of memory"
        return f"one clip needs {needs}; {_gb(free)} are free{self.each}"

    @property
    def each(self) -> str:
        return f" for each of {self.processes} processes" if self.processes > 1 else ""


def _with_batch(room: _Room, config: TrainConfig, world: int, draws: int, log: RunLog) -> TrainConfig:
    most = max(4, draws // LEAST_STEPS)
    pieces = world * config.parts
    candidates = [clips for clips in (32, 16, 8, 4, 2, 1) if clips <= MOST_AT_ONCE and clips * pieces <= most] or [1]
    found = room.most(candidates)
    if found is None:
        raise ConfigError(f"{room.told()}; {_less(config)}")
    step = found * pieces
    why = "the most that fit" if found != candidates[0] else f"{LEAST_STEPS} steps an epoch, or {MOST_AT_ONCE} clips"
    cut = f", {found} at once on each device" if pieces > 1 else ""
    log.say(f"batch size {step}{cut} ({why})")
    return replace(config, batch_size=step)


def _with_parts(room: _Room, config: TrainConfig, world: int, draws: int, log: RunLog) -> TrainConfig:
    own = -(-min(config.step_clips, draws) // world)
    candidates = sorted({-(-own // parts) for parts in range(1, own + 1)}, reverse=True)
    if room.size.device == "cuda":  # each is tried
        candidates = candidates[:1] + [clips for clips in candidates[1:] if clips <= own // 2]
    found = room.most(candidates)
    if found is None:
        raise ConfigError(f"{room.told()}; {_less(config)}")
    parts = -(-own // found)
    log.say(f"accumulate {parts}: {found} of a step's {config.step_clips} clips at once on each device")
    return replace(config, accumulate=parts)


def _check(room: _Room, config: TrainConfig, world: int, draws: int) -> None:
    """Refuses a step that a CPU's memory cannot hold: the system would kill whom it likes. A GPU refuses by itself."""
    free = room.free(swap=True)
    if room.size.device == "cuda" or free is None:
        return
    own = -(-min(config.step_clips, draws) // world)
    at_once = -(-own // config.parts)
    if estimate(room.arch, room.size).at(at_once) <= _LOOK_FROM * free:
        return
    line = room.measured()
    if line is None or line.at(at_once) <= free:
        return
    most = line.most(_CPU_SHARE * free)
    if most < 1:
        raise ConfigError(f"{room.told()}; {_less(config)}")
    raise ConfigError(
        f"{at_once} clips at once need {_gb(line.at(at_once))} of memory; {_gb(free)} are free{room.each}; "
        f"{most} fit: say --accumulate {-(-own // most)}, which learns from the same {config.step_clips} a step, or "
        "--accumulate auto."
    )


@contextmanager
def suggesting(network: nn.Module, job: Job, config: TrainConfig, out: Path) -> Iterator[None]:
    """Tells what would fit where a step in the block does not.

    Raises:
        RunError: in place of the error that says that memory was refused.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if job.spec.arch == MOTION or config.freeze == "backbone" or not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what is to be tried again with less
    network.to("cpu")
    at_once, world = config.clips_at_once, config.devices * config.num_nodes
    room = _Room(job, config)
    tried = [clips for clips in (at_once // 2**n for n in range(1, 17)) if clips]
    fit = next((c for c in tried if world > 1 or fits(room.arch, room.size, c)), None)
    device = "this GPU's memory" if job.device == "cuda" else "the memory that this process may have"
    refused = f"{at_once} clips at once do not fit in {device}"
    if fit is None:
        raise RunError(f"{refused}, nor does one; {_less(config)}")
    parts = config.parts * -(-at_once // fit)
    would = "try" if world > 1 else f"{fit} {'does' if fit == 1 else 'do'}: say"
    raise RunError(
        f"{refused}; {would} --accumulate {parts}, which learns from the same {config.step_clips} a step; "
        f"{go_on(out)} --accumulate {parts}"
    )


def _less(config: TrainConfig) -> str:
    also = "" if config.checkpoint_activations else ", or --checkpoint-activations"
    return f"take fewer --num-frames, a smaller --crop{also}."


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"

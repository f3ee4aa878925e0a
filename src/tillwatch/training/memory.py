"""How much memory is free, and how much a training step takes, estimated and measured: no step is tried to the death.

On a GPU a step that does not fit raises an error. On a CPU the system hands out more than it has and then kills whom it
likes; so what a step takes there is measured on one clip and on two, and compared with what is free.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tillwatch.errors import one_line
from tillwatch.models.backbones import build_model
from tillwatch.models.precision import PrecisionName, lay_out
from tillwatch.models.recompute import recompute_activations
from tillwatch.training.devices import set_up

_GPU_SHARE = 0.92  # of its memory; the rest is for what fragments
_STATUS, _CLEAR, _MEMINFO = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_OUT_OF_MEMORY = 9  # exit code of who measures


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """What a training step is done on, but for how many clips.

    Attributes:
        shape: of one clip as the network takes it: (C, T, H, W).
        device: "cpu" or "cuda".
        precision: of training.
        recomputed: whether activations are computed again on the way back.
    """

    shape: tuple[int, ...]
    device: str
    precision: PrecisionName
    recomputed: bool = False


@dataclass(frozen=True)
class Line:
    """Bytes as a function of clips at once, beyond what the process had before."""

    fixed: float
    per_clip: float

    def at(self, clips: int) -> float:
        """Returns the bytes that so many clips take."""
        return self.fixed + clips * self.per_clip

    def most(self, free: float) -> int:
        """Returns how many clips fit into so many bytes, 0 if not one does."""
        return max(0, int((free - self.fixed) / max(self.per_clip, 1.0)))


def free_bytes(*, swap: bool = False) -> int | None:
    """Returns how many bytes this machine, or the container that this is, can still give out; None where nobody tells.

    Args:
        swap: whether those of the swap space count.
    """
    limits = [_of_machine(swap), _of_group(), _of_process()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _of_machine(swap: bool) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        names = ("MemAvailable", "SwapFree") if swap else ("MemAvailable",)
        return sum(int(lines[name].split()[0]) for name in names) * 1024
    except (OSError, ValueError, KeyError):
        return None


def _of_group() -> int | None:
    """What the control group (version 2, else 1) leaves; its cached files can be dropped."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            text = (_GROUP / limit).read_text().strip()
            if text == "max":
                return None
            stat = dict(line.split() for line in ((_GROUP / used).parent / "memory.stat").read_text().splitlines())
            return max(0, int(text) - int((_GROUP / used).read_text()) + int(stat.get(cached, 0)))
        except (OSError, ValueError):
            continue
    return None


def _of_process() -> int | None:
    """What `ulimit -v` leaves."""
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most == resource.RLIM_INFINITY:
            return None
        return max(0, most - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize())
    except (ImportError, OSError, ValueError):
        return None


def estimate(arch: str, size: StepSize) -> Line:
    """Returns what a step takes at the least, without computing anything: gradients, Adam's moments, activations kept.

    What operations need in passing comes on top; what is computed again on the way back instead of kept counts as kept.

    Args:
        arch: of the network.
        size: of a clip.
    """
    with torch.random.fork_rng(), torch.device("meta"):
        shadow = lay_out(build_model(arch, weights=None), size.device).train()
        learning = _of_learning(shadow)
        dtype = torch.float32 if size.precision == "fp32" else torch.bfloat16
        shadow.to(dtype)
        weights = {_storage(parameter) for parameter in shadow.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(value: torch.Tensor) -> torch.Tensor:
            if _storage(value) not in weights:
                kept[_storage(value)] = value
            return value

        clips = torch.empty(1, *size.shape, dtype=dtype).to(memory_format=torch.channels_last_3d)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            shadow(clips)
    return Line(learning, sum(value.untyped_storage().nbytes() for value in kept.values()))


def _storage(value: torch.Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _of_learning(network: nn.Module) -> int:
    """Gradients and Adam's two moments."""
    return 3 * sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)


def measure(arch: str, size: StepSize) -> Line | None:
    """Returns what training steps took on the CPU at their peak; None where that cannot be measured.

    They are done in a process of its own, which has nothing lying about that could be used again, and which the system
    is told to kill first.

    Args:
        arch: of the network.
        size: of a clip.
    """
    if not _CLEAR.exists():
        return None
    words = [sys.executable, "-m", __name__, arch, json.dumps(asdict(size))]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    peaks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not peaks:
        return Line(math.inf, math.inf) if done.returncode in (-signal.SIGKILL, _OUT_OF_MEMORY) else None
    learning = peaks[0]["learning"]
    one = peaks[0]["bytes"] + 2 * learning / 3  # in the first step, Adam's moments are not there yet
    if len(peaks) == 1:  # the second clip was too much
        return Line(0, one)
    per_clip = max(peaks[1]["bytes"] - one, (one - learning) / 2)  # less would be what the allocator had left over
    return Line(max(0, one - per_clip), per_clip)


def _measure_here(arch: str, size: StepSize) -> None:
    """Prints the peak of a step on one clip, then of a step on two."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    step, learning = _stepper(arch, size), estimate(arch, size).fixed
    before = _resident("VmRSS")
    for clips in (1, 2):
        _CLEAR.write_text("5")  # the peak is counted from here on
        try:
            step(clips)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            sys.exit(_OUT_OF_MEMORY)
        print(json.dumps({"learning": learning, "bytes": _resident("VmHWM") - before}), flush=True)


def _resident(name: str) -> int:
    """Returns a line of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def fits(arch: str, size: StepSize, clips: int) -> bool:
    """Tries a step and tells whether it fits: on a GPU with some room to spare; on a CPU, whether memory was refused.

    Args:
        arch: of the network.
        size: of a clip.
        clips: at once.
    """
    on_gpu = size.device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    try:
        step = _stepper(arch, size)
        for _ in range(2):  # from the first on, Adam has its moments
            step(clips)
        return not on_gpu or torch.cuda.max_memory_reserved() <= _GPU_SHARE * free
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        if on_gpu:
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused: by a GPU's allocator, the CPU's, or Python's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in one_line(error)
    )


def _stepper(arch: str, size: StepSize) -> Callable[[int], None]:
    """Returns a function that trains a network of its own one step on so many black clips."""
    with torch.random.fork_rng():
        learner = build_model(arch, weights=None)
    if size.recomputed:
        recompute_activations(learner)
    fabric, model, optimizer = set_up(learner, size.device, size.precision, lr=1e-6)

    def step(clips: int) -> None:
        with torch.random.fork_rng():
            black = torch.zeros(clips, *size.shape, device=fabric.device)
            outputs: Any = model(black.to(memory_format=torch.channels_last_3d))
            optimizer.zero_grad()
            fabric.backward(F.cross_entropy(outputs, torch.zeros(clips, dtype=torch.int64, device=fabric.device)))
            optimizer.step()

    return step


if __name__ == "__main__":
    _measure_here(sys.argv[1], StepSize(**json.loads(sys.argv[2])))

"""Torch, OpenVINO and ONNX Runtime behind one call, and which of them a model folder holds: clips to logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tillwatch.errors import ConfigError, ModelError, one_line
from tillwatch.files import sha256_of

EngineName = Literal["torch", "openvino", "onnx"]
EnginePrecision = Literal["fp32", "int8"]

#: Where exports lie in a model folder, and how their files are named.
EXPORTS = "exports"

#: How fast engines score on a CPU, the fastest first: `tillwatch doctor` measures it.
_FASTEST = (("openvino", "int8"), ("onnx", "int8"), ("openvino", "fp32"), ("onnx", "fp32"), ("torch", "fp32"))
#: How near to what was measured in training, the nearest first.
_NEAREST = (("torch", "fp32"), ("openvino", "fp32"), ("onnx", "fp32"), ("openvino", "int8"), ("onnx", "int8"))

#: The distribution, and module, that each engine is.
PACKAGES = {"torch": "torch", "openvino": "openvino", "onnx": "onnxruntime"}
_MOST_STREAMS = 4  # clips at a time: each takes a hundred megabytes and more


@dataclass(frozen=True, kw_only=True)
class Held:
    """One way in which a model folder can score.

    Attributes:
        engine, precision: what computes, and in what.
        files: of an export, SHA-256 by path below the folder; empty for torch.
        passed: whether it agreed with torch within the tolerance when it was made.
    """

    engine: EngineName
    precision: EnginePrecision
    files: Mapping[str, str]
    passed: bool = True

    @property
    def name(self) -> str:
        """Such as "openvino int8"."""
        return f"{self.engine} {self.precision}"


TORCH = Held(engine="torch", precision="fp32", files={})


class ExportedNetwork(nn.Module):
    """A model in another engine behind the face of a network."""


class OpenVINONetwork(ExportedNetwork):
    """A model in OpenVINO.

    Clips are scored one by one, as many at a time as there are threads, up to four: a score does not depend on what
    else is in the batch. What is not quantised is computed in fp32: unless told, OpenVINO takes bf16 where the CPU
    has it.

    Args:
        path: of the .xml; the .bin lies beside it.

    Raises:
        ModelError: if OpenVINO cannot read it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        import openvino

        threads = torch.get_num_threads()
        streams = min(threads, _MOST_STREAMS)
        try:
            core = openvino.Core()
            model = core.read_model(path)
            shape = model.inputs[0].partial_shape
            shape[0] = 1
            model.reshape(shape)
            compiled = core.compile_model(
                model,
                "CPU",
                {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": streams},
            )
            self._queue: Any = openvino.AsyncInferQueue(compiled, streams)
        except (RuntimeError, IndexError) as error:
            raise ModelError(f"OpenVINO cannot read {path} ({one_line(error)[:160]}); export it again.") from None

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Maps float32 ``(B, C, T, H, W)`` to float32 logits ``(B, num_classes)``."""
        rows: list[NDArray[np.float32] | None] = [None] * len(clips)

        def keep(request: Any, place: int) -> None:
            rows[place] = request.get_output_tensor(0).data[0].copy()

        self._queue.set_callback(keep)
        for place, clip in enumerate(clips):
            self._queue.start_async({0: _as_array(clip)}, place)
        self._queue.wait_all()
        return torch.from_numpy(np.stack(cast(list[NDArray[np.float32]], rows)))


class ONNXNetwork(ExportedNetwork):
    """A model in ONNX Runtime; clips are scored one by one.

    Args:
        path: of the .onnx.

    Raises:
        ModelError: if ONNX Runtime cannot read it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; warnings are of how it optimises
        # Threads that spin between clips would take the cores from decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self._input = self._session.get_inputs()[0].name
        except Exception as error:  # its exceptions have no base of their own
            raise ModelError(f"ONNX Runtime cannot read {path} ({one_line(error)[:160]}); export it again.") from None

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Maps float32 ``(B, C, T, H, W)`` to float32 logits ``(B, num_classes)``."""
        rows = [self._session.run(None, {self._input: _as_array(clip)})[0] for clip in clips]
        return torch.from_numpy(np.concatenate(rows))


def _as_array(clip: torch.Tensor) -> NDArray[np.float32]:
    """Returns a clip ``(C, T, H, W)`` as a batch of one, in the order of its axes."""
    array: NDArray[np.float32] = clip[None].contiguous().cpu().numpy()
    return array


_NETWORKS: dict[str, Callable[[Path], nn.Module]] = {"openvino": OpenVINONetwork, "onnx": ONNXNetwork}


def read_export(folder: Path, held: Held) -> nn.Module:
    """Reads an export, verifying its files against model.json.

    Raises:
        ModelError: if a file is missing, is another than was exported, or cannot be read.
    """
    for name, sha256 in held.files.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{folder} lacks {name}, which its model.json names; export it again.")
        if sha256_of(path) != sha256:
            raise ModelError(f"{path} is not the file that model.json describes (its SHA-256 differs).")
    return _NETWORKS[held.engine](folder / next(iter(held.files)))


def exports_of(record: Mapping[str, Any], where: Path) -> list[Held]:
    """Returns the exports that a model.json names.

    Args:
        record: its content.
        where: the file, for errors.

    Raises:
        ModelError: if they are malformed, or were made of other weights.
    """
    try:
        found = []
        for export in record.get("exports", {}).values():
            files = {str(name): str(sha256) for name, sha256 in export["files"].items()}
            known = export["engine"] in _NETWORKS and export["precision"] in ("fp32", "int8")
            # A name in a file from anywhere must not lead out of the folder.
            if not (known and files and all(Path(name).parts[:-1] == (EXPORTS,) for name in files)):
                raise ValueError(f"{export['engine']} {export['precision']} {list(files)}")
            if export["of"] != record["sha256"]:
                raise ModelError(f"{where}: its exports were made of other weights; run tillwatch export again.")
            held = Held(
                engine=export["engine"],
                precision=export["precision"],
                files=files,
                passed=export["check"]["passed"] is True,
            )
            found.append(held)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{where} is malformed: its exports ({error!r}).") from None
    return found


def choose_engine(
    held: Sequence[Held],
    engine: str | None,
    precision: str | None,
    *,
    folder: Path,
    fastest: bool = False,
    gpu: bool = False,
) -> tuple[Held, tuple[str, ...]]:
    """Chooses how a model scores.

    Args:
        held: what its folder holds.
        engine: "auto" takes the fastest, a name that engine; None what is nearest to training: torch in fp32 where it
            is held.
        precision: "fp32" or "int8"; None takes either.
        folder: of the model, for errors.
        fastest: whether the fastest precision of a named engine is wanted, as with "auto"; else fp32 goes first.
        gpu: whether torch would run on a GPU, where it is the fastest.

    Returns:
        What to take, and sentences on what had to be passed over.

    Raises:
        ConfigError: if nothing that was asked for is held, or can run here.
    """
    if engine not in (None, "auto", *PACKAGES):
        raise ConfigError(f"--engine is {engine!r}; it must be auto, torch, openvino or onnx.")
    if precision not in (None, "fp32", "int8"):
        raise ConfigError(f"--precision is {precision!r}; it must be fp32 or int8.")
    order = list(_FASTEST if fastest or engine == "auto" else _NEAREST)
    if gpu and engine == "auto":
        order.sort(key=lambda pair: pair[0] != "torch")
    wanted = [
        one
        for one in sorted(held, key=lambda one: order.index((one.engine, one.precision)))
        if engine in (None, "auto", one.engine) and precision in (None, one.precision)
    ]
    if not wanted:
        asked = " ".join(word for word in (engine if engine != "auto" else None, precision) if word)
        there = ", ".join(one.name for one in held) or "nothing"
        raise ConfigError(f"{folder} holds no {asked or 'model'}, only {there}; make one with tillwatch export.")
    notes = []
    for one in wanted:
        package = PACKAGES[one.engine]
        if not one.passed and precision != "int8":
            notes.append(f"{one.name} did not pass its check against torch; --precision int8 takes it all the same.")
        elif find_spec(package) is None:
            notes.append(f"{one.name} needs {package}, which is not installed: pip install 'tillwatch[export]'.")
        else:
            if not one.passed:
                notes.append(f"{one.name} did not pass its check against torch: its scores are not the model's.")
            return one, tuple(notes)
    raise ConfigError(f"{folder}: " + " ".join(notes))

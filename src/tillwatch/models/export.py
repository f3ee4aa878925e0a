"""A trained network to ONNX, OpenVINO and int8 files, and what may be lost by it."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tillwatch.clip_spec import ClipSpec
from tillwatch.errors import ConfigError, ModelError, one_line
from tillwatch.models import motion
from tillwatch.models.engines import EngineName, EnginePrecision
from tillwatch.models.folded import fold, unfold

#: What a network without rounding may differ from torch, in any class's probability of any clip.
FP32_TOLERANCE = 1e-4
#: What int8 may cost: AUROC, and the mean difference of the event probability.
INT8_AUROC_LOSS, INT8_MEAN_DIFFERENCE = 0.01, 0.02
#: Clips that int8 is calibrated on, at most.
CALIBRATION_CLIPS = 100

_NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
_LARGEST_BATCH = 1024

Quantize = Callable[[Any, Callable[[NDArray[np.float32]], Any]], Any]


def check_exportable(spec: ClipSpec, to: EngineName, precision: EnginePrecision) -> None:
    """Refuses what cannot be exported, before any work.

    Raises:
        ConfigError: for a model that is no network, or packages that are missing.
    """
    if spec.arch == motion.ARCH:
        raise ConfigError("the motion model has no export: it is no network, but trees on optical flow.")
    needed = (*_NEEDED[to], *(["nncf"] if precision == "int8" else []))
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ConfigError(f"export needs {', '.join(missing)}; install it with: pip install 'tillwatch[export]'.")


def export_network(
    network: nn.Module,
    spec: ClipSpec,
    folder: Path,
    to: EngineName,
    precision: EnginePrecision = "fp32",
    calibration: Sequence[Any] = (),
    prepare: Callable[[Any], NDArray[np.float32]] = lambda clip: clip,
) -> list[Path]:
    """Writes a network for another engine.

    Its input ``clips`` is float32 ``(batch, C, T, H, W)``, transformed as the spec says, its output ``logits`` float32
    ``(batch, num_classes)``; the batch may have any size.

    Args:
        network: trained; it is left as it is.
        spec: its contract.
        folder: where the files go; must exist.
        to: "onnx" or "openvino".
        precision: "fp32", or "int8" for weights and activations of eight bits (NNCF's post-training quantisation).
        calibration: for int8, clips that show the ranges of activations; gone through twice.
        prepare: turns one of them into the network's input, float32 ``(1, C, T, H, W)``.

    Returns:
        The files, the one to open first.

    Raises:
        ModelError: if the network cannot be exported.
    """
    path = folder / f"{to}-{precision}.onnx"
    if to == "onnx" and precision == "fp32":
        # ONNX Runtime is faster at convolutions in two dimensions, as torch is on a CPU.
        _write_onnx(network, spec, path, folded=True)
        return [path]
    whole = folder / "network.onnx"
    # OpenVINO is faster in three, and NNCF finds only weights that are used as they are stored.
    _write_onnx(network, spec, whole, folded=False)
    try:
        with _unseen():
            quantize = partial(_quantized, calibration=calibration, prepare=prepare)
            if to == "onnx":
                _quantize_onnx(whole, path, quantize)
                return [path]
            return _write_openvino(whole, folder / f"{to}-{precision}.xml", quantize if precision == "int8" else None)
    except Exception as error:  # whatever these libraries raise
        raise ModelError(f"{spec.arch} cannot be exported to {to} {precision} ({one_line(error)[:200]}).") from None
    finally:
        whole.unlink()


def _write_onnx(network: nn.Module, spec: ClipSpec, path: Path, *, folded: bool) -> None:
    network = deepcopy(network).cpu().eval()
    network = fold(network) if folded else unfold(network)
    example = torch.zeros(2, 3, spec.num_frames, *spec.preprocessing.crop)  # a batch of one would be taken for fixed
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    try:
        with _unseen():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                input_names=["clips"],
                output_names=["logits"],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=False)
    except Exception as error:  # whatever the exporter runs into
        raise ModelError(f"{spec.arch} cannot be exported to ONNX ({one_line(error)[:200]}).") from None


def _write_openvino(source: Path, path: Path, quantize: Quantize | None) -> list[Path]:
    import openvino

    # read_model and no convert_model: that one reports its use to its makers.
    model = openvino.Core().read_model(source)
    openvino.save_model(model if quantize is None else quantize(model, lambda clip: clip), path, compress_to_fp16=False)
    return [path, path.with_suffix(".bin")]


def _quantize_onnx(source: Path, path: Path, quantize: Quantize) -> None:
    import onnx

    onnx.save(quantize(onnx.load(source), lambda clip: {"clips": clip}), path)


def _quantized(
    model: Any,
    feed: Callable[[NDArray[np.float32]], Any],
    *,
    calibration: Sequence[Any],
    prepare: Callable[[Any], NDArray[np.float32]],
) -> Any:
    """Quantises a model of OpenVINO or ONNX; ``feed`` turns a clip into what its engine is given."""
    with _no_telemetry():
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    dataset = nncf.Dataset(calibration, lambda clip: feed(prepare(clip)))
    # Ranges that hold all that was seen: NNCF's own, means over clips, cut off what few clips show, as an event.
    ranges = AdvancedQuantizationParameters(activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX)
    return nncf.quantize(
        model,
        dataset,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        advanced_parameters=ranges,
    )


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """Keeps NNCF from reporting its use to its makers: it decides when it is imported."""
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before


@contextmanager
def _unseen() -> Iterator[None]:
    """Swallows the progress bars and warnings of libraries, which are of their insides."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield

"""Engines: each agrees with torch, which of them is taken, and that files are what model.json says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tillwatch.errors import ConfigError, ModelError
from tillwatch.evaluation.evaluate import Scores
from tillwatch.evaluation.exporting import compare_scores, export_run
from tillwatch.models import engines
from tillwatch.models.engines import TORCH, EngineName, Held, choose_engine
from tillwatch.models.saved import load_model, write_operating_point

for _package in ("nncf", "onnx", "onnxruntime", "onnxscript", "openvino"):
    pytest.importorskip(_package, reason="the extra export is not installed")

OPENVINO = Held(engine="openvino", precision="fp32", files={"exports/a.xml": "0"})
OPENVINO_INT8 = Held(engine="openvino", precision="int8", files={"exports/b.xml": "0"})
ONNX = Held(engine="onnx", precision="fp32", files={"exports/c.onnx": "0"})
FAILED = Held(engine="openvino", precision="int8", files={"exports/b.xml": "0"}, passed=False)


@pytest.fixture(scope="module")
def exported(tiny_run: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the tiny model in every engine; int8 is forced in, whatever its check said."""
    out = tmp_path_factory.mktemp("exported") / "model"
    for to in ("openvino", "onnx"):
        name: EngineName = "openvino" if to == "openvino" else "onnx"
        export_run(tiny_run[1], name, out=out)
        export_run(tiny_run[1], name, out=out, int8=True, force=True)
    return out


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "model")


def test_every_engine_agrees_with_torch_in_fp32_on_batches_of_any_size(
    exported: Path, tiny_run: tuple[Path, Path]
) -> None:
    ours = load_model(tiny_run[1], device="cpu")
    size = (3, ours.spec.num_frames, *ours.spec.preprocessing.crop)
    for name in ("openvino", "onnx"):
        theirs = load_model(exported, engine=name, precision="fp32")
        assert theirs.held.name == f"{name} fp32"
        for batch in (1, 3, 8):
            clips = torch.randn(batch, *size, generator=torch.Generator().manual_seed(batch))
            assert np.abs(theirs.probabilities(clips) - ours.probabilities(clips)).max() < 1e-4


def test_int8_is_near_torch_and_differs_from_it(exported: Path, tiny_run: tuple[Path, Path]) -> None:
    clip = tiny_run[0] / "theft" / "day0_0"
    ours = load_model(tiny_run[1], device="cpu").predict(clip).event_probability
    for name in ("openvino", "onnx"):
        theirs = load_model(exported, engine=name, precision="int8").predict(clip).event_probability
        assert 0 < abs(theirs - ours) < 0.1


def test_a_files_own_batch_is_dynamic(exported: Path) -> None:
    import onnxruntime
    import openvino

    assert openvino.Core().read_model(exported / "exports" / "openvino-fp32.xml").inputs[0].partial_shape[0].is_dynamic
    session = onnxruntime.InferenceSession(exported / "exports" / "onnx-fp32.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"clips": np.zeros((5, 3, 4, 24, 24), np.float32)})[0].shape == (5, 2)


def test_a_score_does_not_depend_on_the_rest_of_the_batch(exported: Path) -> None:
    clips = torch.randn(5, 3, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    for name in ("openvino", "onnx"):
        model = load_model(exported, engine=name, precision="fp32")
        one_by_one = np.concatenate([model.probabilities(clip[None]) for clip in clips])
        assert (model.probabilities(clips) == one_by_one).all()


def test_an_export_keeps_the_contract_temperature_and_operating_point(
    exported: Path, tiny_run: tuple[Path, Path]
) -> None:
    ours, theirs = load_model(tiny_run[1], device="cpu"), load_model(exported)
    assert (theirs.spec, theirs.temperature, theirs.operating_point, theirs.sha256) == (
        ours.spec,
        ours.temperature,
        ours.operating_point,
        ours.sha256,
    )
    check = json.loads((exported / "model.json").read_text(encoding="utf-8"))["exports"]["openvino-fp32"]["check"]
    assert check["passed"] is True
    assert check["side"] == "validation"
    assert check["clips"] > 0
    assert check["max_difference"] < 1e-4


@pytest.mark.parametrize(
    ("held", "engine", "precision", "options", "chosen"),
    [
        ([TORCH, ONNX, OPENVINO, OPENVINO_INT8], "auto", None, {}, "openvino int8"),
        ([TORCH, ONNX, OPENVINO, OPENVINO_INT8], "auto", "fp32", {}, "openvino fp32"),
        ([TORCH, ONNX, OPENVINO, FAILED], "auto", None, {}, "openvino fp32"),
        ([TORCH, FAILED], "auto", None, {}, "torch fp32"),
        ([TORCH, OPENVINO_INT8], "auto", None, {"gpu": True}, "torch fp32"),
        ([TORCH, ONNX, OPENVINO_INT8], None, None, {}, "torch fp32"),
        ([OPENVINO_INT8, ONNX], None, None, {}, "onnx fp32"),
        ([OPENVINO_INT8], None, None, {}, "openvino int8"),
        ([OPENVINO, OPENVINO_INT8], "openvino", None, {}, "openvino fp32"),
        ([OPENVINO, OPENVINO_INT8], "openvino", None, {"fastest": True}, "openvino int8"),
        ([OPENVINO, FAILED], "openvino", "int8", {}, "openvino int8"),
    ],
)
def test_which_engine_is_taken(
    held: list[Held], engine: str | None, precision: str | None, options: dict[str, bool], chosen: str
) -> None:
    assert choose_engine(held, engine, precision, folder=Path("m"), **options)[0].name == chosen


@pytest.mark.parametrize(
    ("held", "engine", "precision", "message"),
    [
        ([TORCH], "openvino", None, "m holds no openvino, only torch fp32; make one with tillwatch export"),
        ([OPENVINO], "torch", None, "holds no torch"),
        ([TORCH, OPENVINO], "auto", "int8", "holds no int8"),
        ([FAILED], None, None, "did not pass its check against torch; --precision int8 takes it"),
        ([TORCH], "tensorrt", None, "must be auto, torch, openvino or onnx"),
        ([TORCH], None, "bf16", "must be fp32 or int8"),
    ],
)
def test_what_is_not_held_is_refused(held: list[Held], engine: Any, precision: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_engine(held, engine, precision, folder=Path("m"))


def test_an_engine_that_is_not_installed_is_passed_over_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "openvino" else True)
    held, notes = choose_engine([TORCH, ONNX, OPENVINO], "auto", None, folder=Path("m"))
    assert held.name == "onnx fp32"
    assert "openvino fp32 needs openvino, which is not installed" in notes[0]
    with pytest.raises(ConfigError, match=r"pip install 'tillwatch\[export\]'"):
        choose_engine([TORCH, OPENVINO], "openvino", None, folder=Path("m"))


def test_any_changed_byte_of_an_export_is_noticed(copy: Path) -> None:
    for name, engine in (("openvino-fp32.bin", "openvino"), ("onnx-fp32.onnx", "onnx")):
        path = copy / "exports" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(ModelError, match=r"not the file that model\.json describes"):
            load_model(copy, engine=engine, precision="fp32")
        path.unlink()
        with pytest.raises(ModelError, match=f"lacks exports/{name}"):
            load_model(copy, engine=engine, precision="fp32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"of": "0" * 64}, "made of other weights"),
        ({"files": {"../../x.xml": "0"}}, "malformed"),
        ({"files": {}}, "malformed"),
        ({"engine": "tensorrt"}, "malformed"),
        ({"check": None}, "malformed"),
    ],
)
def test_damaged_records_of_exports_are_refused(copy: Path, change: dict[str, Any], message: str) -> None:
    record = json.loads((copy / "model.json").read_text(encoding="utf-8"))
    record["exports"]["onnx-fp32"].update(change)
    (copy / "model.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        load_model(copy)


def test_a_new_operating_point_leaves_exports_alone(copy: Path) -> None:
    from tillwatch.models.saved import OperatingPoint

    write_operating_point(copy, OperatingPoint(threshold=0.9, unit="incident", source="test"))
    model = load_model(copy, engine="auto", precision="fp32")
    assert model.held.name == "openvino fp32"
    assert model.operating_point.threshold == 0.9


def test_a_threshold_of_incidents_chosen_with_an_export_outlives_the_next_export(
    copy: Path, tiny_run: tuple[Path, Path]
) -> None:
    from tillwatch.models.saved import OperatingPoint

    of_run = load_model(tiny_run[1]).operating_point
    for unit, kept in (("incident", True), ("clip", False)):
        chosen = OperatingPoint(threshold=0.9, unit=unit, source="test")
        write_operating_point(copy, chosen)
        export_run(tiny_run[1], "onnx", out=copy)
        assert load_model(copy).operating_point == (chosen if kept else of_run)


def scores_of(probabilities: list[float]) -> Scores:
    event = np.array(probabilities)
    labels = np.arange(len(event)) % 2
    return Scores(
        clips=(None,) * len(event),  # type: ignore[arg-type]  # only counted
        labels=labels.astype(np.int64),
        probabilities=np.stack([1 - event, event], axis=1),
        skipped=(),
    )


@pytest.mark.parametrize(
    ("precision", "theirs", "passed"),
    [
        ("fp32", [0.1, 0.8, 0.4, 0.60009], True),
        ("fp32", [0.1, 0.8, 0.4, 0.6002], False),
        ("int8", [0.12, 0.82, 0.38, 0.58], True),
        ("int8", [0.13, 0.83, 0.37, 0.57], False),
        ("int8", [0.1, 0.8, 0.4, 0.6], True),
    ],
)
def test_the_tolerance_is_on_both_sides_of_what_is_stated(
    precision: Any, theirs: list[float], passed: bool, tiny_run: tuple[Path, Path]
) -> None:
    model = load_model(tiny_run[1], device="cpu")
    differences = compare_scores(model, scores_of([0.1, 0.8, 0.4, 0.6]), scores_of(theirs), "validation", precision)
    assert differences.passed is passed


def test_an_int8_that_ranks_worse_is_refused_though_its_scores_are_near(tiny_run: tuple[Path, Path]) -> None:
    model = load_model(tiny_run[1], device="cpu")
    ours, theirs = scores_of([0.49, 0.50, 0.1, 0.9]), scores_of([0.505, 0.50, 0.1, 0.9])
    assert not compare_scores(model, ours, theirs, "validation", "int8").passed

"""What TensorBoard, MLflow and Weights & Biases wrote of a run that was killed, read back from their own files."""

from __future__ import annotations

import csv
import os
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from training import broken_off
from training.broken_off import run_apart

from tillwatch.config import TrainConfig
from tillwatch.errors import ConfigError
from tillwatch.training import tracking
from tillwatch.training.loop import train
from tillwatch.training.runlog import COLUMNS

pytestmark = pytest.mark.timeout(600)

SETTINGS: dict[str, Any] = {"epochs": 3, "group_pattern": r"day\d", "precision": "fp32", "checkpoint_minutes": 0.0}
#: Name of a metric to (step, value) as they were written, in order.
Written = Mapping[str, list[tuple[int, float]]]


def in_tensorboard(run: Path) -> Written:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    written: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((run / "tensorboard").iterdir()):  # every event, also what TensorBoard itself would pass over
        for content in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(content)
            for value in event.summary.value:
                if value.tag in (*COLUMNS, *FIGURES):
                    number = value.tensor.float_val[0] if value.HasField("tensor") else value.simple_value
                    written.setdefault(value.tag, []).append((event.step, number))
    return written


def in_mlflow(run: Path) -> Written:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tillwatch")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == run.name
    assert found.data.params["lr"] == "0.01"
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }


def in_wandb(run: Path) -> Written:
    """Reads what `wandb sync` would send: LevelDB's log format, in each folder of the run."""
    import json

    from wandb.proto.wandb_internal_pb2 import Record

    written: dict[str, list[tuple[int, float]]] = {}
    for path in run.glob("wandb/offline-run-*/*.wandb"):
        for content in records(path.read_bytes()):
            record = Record.FromString(content)
            values = {(item.key or "/".join(item.nested_key)): item.value_json for item in record.history.item}
            for name in set(values) & set(COLUMNS):
                written.setdefault(name, []).append((int(values["_step"]), json.loads(values[name])))
            for item in record.summary.update:
                name = item.key or "/".join(item.nested_key)
                if name in FIGURES:
                    written[name] = [(0, json.loads(item.value_json))]
    return written


def records(content: bytes) -> Iterator[bytes]:
    """Yields the records of a LevelDB log after W&B's head of 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        if not kind:
            return
        parts = (b"" if kind in (1, 2) else parts) + content[at + 7 : at + 7 + length]
        if kind in (1, 4):  # whole, or the last part
            yield parts
        at += 7 + length


FIGURES = ("test_accuracy", "test_balanced_accuracy", "test_event_auroc")
READERS: dict[str, Callable[[Path], Written]] = {"tensorboard": in_tensorboard, "mlflow": in_mlflow, "wandb": in_wandb}


@pytest.mark.filterwarnings("ignore")  # the clients warn of themselves
@pytest.mark.parametrize("name", READERS)
def test_each_is_told_of_every_epoch_once_though_the_training_was_killed(
    name: str, tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    for package in tracking._PACKAGES[name]:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'tillwatch[logs]'")
    run = tmp_path / "run"
    settings = {**SETTINGS, "log": (name,)}
    # In the second epoch, and before the third one's checkpoint, when it has been told of that.
    for place in (("step", 6), ("finish", 1)):
        assert run_apart(broken_off.train, tiny_run[0], run, settings, place) == -signal.SIGKILL
    assert run_apart(broken_off.train, tiny_run[0], run, settings) == 0
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    written = READERS[name](run)
    assert set(written) == {*COLUMNS, *FIGURES} - {"epoch"}
    for column in set(COLUMNS) - {"epoch", "seconds", "clips_per_s", "data_wait_s"}:
        assert [step for step, _ in written[column]] == [1, 2, 3]
        assert [value for _, value in written[column]] == pytest.approx([float(row[column]) for row in rows])
    assert all(len(written[figure]) == 1 for figure in FIGURES)


def test_what_is_not_installed_is_one_line_with_the_command(
    tiny_run: tuple[Path, Path], tiny_config: Any, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    refusal = r"^--log tensorboard,wandb needs wandb, not installed here: pip install 'tillwatch\[logs\]'$"
    with pytest.raises(ConfigError, match=refusal):
        train(tiny_run[0], tmp_path / "run", tiny_config(log=("tensorboard", "wandb")), quiet())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("names", [("tensorbord",), ("mlflow", "mlflow")])
def test_what_cannot_be_logged_to_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"--log is .*; it must be some of tensorboard, mlflow, wandb, each once"):
        TrainConfig(log=names)


def test_one_that_fails_is_noted_once_and_ends_nothing(
    tiny_run: tuple[Path, Path], tiny_config: Any, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, so_far: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(tracking.TensorBoard, "write", fail)
    log = quiet()
    train(tiny_run[0], tmp_path / "run", tiny_config(epochs=2, group_pattern=r"day\d", log=("tensorboard",)), log)
    said = log.console.export_text()
    assert said.count("note: tensorboard could not be told ([Errno 28] No space left on device)") == 1
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_database_lies_where_it_should_or_is_refused(tmp_path: Path) -> None:
    assert tracking._sqlite_address(tmp_path / "mlflow.db") == f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(ConfigError, match=r"cannot hold the \? of .*set MLFLOW_TRACKING_URI"):
        tracking._sqlite_address(tmp_path / "what?x=1" / "mlflow.db")

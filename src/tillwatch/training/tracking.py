"""TensorBoard, MLflow and Weights & Biases: each is told of every epoch once, whatever breaks a training off."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from tillwatch.config import TrainConfig
from tillwatch.errors import ConfigError, Interrupted, one_line
from tillwatch.evaluation.evaluate import Evaluation
from tillwatch.files import write_json
from tillwatch.training.runlog import EpochMetrics, RunLog, Tracker

#: What a run folder keeps to find its runs of other programs again.
TRACKING_JSON = "tracking.json"
PROJECT = "tillwatch"


def check_trackers(names: Sequence[str]) -> None:
    """Refuses what cannot be logged to, before any work.

    Raises:
        ConfigError: naming the packages that are not installed, and the command that installs them.
    """
    missing = [package for name in names for package in _PACKAGES[name] if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"--log {','.join(names)} needs {', '.join(missing)}, not installed here: pip install 'tillwatch[logs]'"
        )


class Tracking:
    """Keeps those that ``--log`` names told of a run, while its block lasts.

    None of them stops a training: where one fails, a note says so once, and metrics.csv has it all.

    Args:
        log: what tells them of each epoch.
    """

    def __init__(self, log: RunLog) -> None:
        self.log = log

    def __enter__(self) -> Tracking:
        return self

    def begin(self, run: Path, config: TrainConfig) -> None:
        """Opens them for a run that begins or goes on."""
        self.log.trackers = []
        for name in config.log or ():
            try:
                self.log.trackers.append(_BUILDERS[name](run, _settings(config)))
            except Exception as error:  # whatever a server or a client runs into, hours of training matter more
                self.log.note(f"nothing is logged to {name} ({one_line(error)[:300]}); metrics.csv has it all.")

    def end(self, evaluation: Evaluation) -> Evaluation:
        """Tells them how good the model is, and returns just that."""
        figures = {
            f"{evaluation.split}_{name}": float(value)
            for name in ("accuracy", "balanced_accuracy", "event_auroc")
            if (value := getattr(evaluation.metrics, name)) is not None
        }
        for tracker in self.log.trackers:
            self.log.tell(tracker, partial(tracker.end, figures))
        return evaluation

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _where: TracebackType | None
    ) -> None:
        status = "finished" if error is None else "killed" if isinstance(error, Interrupted) else "failed"
        for tracker in self.log.trackers:
            self.log.tell(tracker, partial(tracker.close, status))
        self.log.trackers = []


class TensorBoard:
    """Event files in RUN/tensorboard, through Fabric's logger; a run that goes on writes them anew, whole."""

    name = "tensorboard"

    def __init__(self, run: Path, settings: Mapping[str, str]) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        # What was told of epochs after the last checkpoint would stand there twice.
        for path in (run / self.name).glob("events.out.tfevents.*"):
            path.unlink()
        self._logger = TensorBoardLogger(run, name=self.name, version="")
        self._logger.experiment.add_text("settings", "\n".join(f"    {key}: {text}" for key, text in settings.items()))
        self._written = 0

    def write(self, so_far: Sequence[EpochMetrics]) -> None:
        """Writes the epochs that are new, through to the disk."""
        for epoch in so_far[self._written :]:
            self._logger.log_metrics(_values(epoch), step=epoch.epoch)
        self._written = len(so_far)
        self._logger.save()

    def end(self, figures: Mapping[str, float]) -> None:
        """Writes the figures of the test at the last epoch."""
        self._logger.log_metrics(dict(figures), step=self._written)

    def close(self, status: str) -> None:
        """Closes the file."""
        self._logger.finalize(status)


class MLflow:
    """A run of MLflow, found again by its id: what its history lacks is added.

    It is kept where ``$MLFLOW_TRACKING_URI`` says, else in mlflow.db beside the run folder; the experiment is
    ``$MLFLOW_EXPERIMENT_NAME``, else tillwatch.
    """

    name = "mlflow"

    def __init__(self, run: Path, settings: Mapping[str, str]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # the client reports its use to its makers
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # training waits meanwhile
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        import mlflow

        for chatty in ("mlflow", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or _sqlite_address(run.resolve().parent / "mlflow.db")
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        kept = _kept(run)
        if kept.get("mlflow_uri") == uri:
            self._id = str(kept["mlflow"])
            self._client.update_run(self._id, status="RUNNING")
        else:
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
            found = self._client.get_experiment_by_name(experiment)
            experiment_id = self._client.create_experiment(experiment) if found is None else found.experiment_id
            self._id = self._client.create_run(experiment_id, run_name=run.resolve().name).info.run_id
            _keep(run, mlflow=self._id, mlflow_uri=uri)
            self._client.set_tag(self._id, "tillwatch.run", str(run.resolve()))
            for key, text in settings.items():
                self._client.log_param(self._id, key, text)
        self._written = {metric.step for metric in self._client.get_metric_history(self._id, "train_loss")}
        self._last = 0

    def write(self, so_far: Sequence[EpochMetrics]) -> None:
        """Adds the epochs that its history lacks."""
        for epoch in so_far:
            if epoch.epoch not in self._written:
                self._log(_values(epoch), epoch.epoch)
                self._written.add(epoch.epoch)
        self._last = len(so_far)

    def end(self, figures: Mapping[str, float]) -> None:
        """Adds the figures of the test at the last epoch, unless a run that was killed after it did."""
        if not any(self._client.get_metric_history(self._id, name) for name in figures):
            self._log(figures, self._last)

    def close(self, status: str) -> None:
        """Says how the run ended."""
        self._client.set_terminated(self._id, status.upper())

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in values.items()])


class WeightsAndBiases:
    """A run of Weights & Biases below RUN/wandb; nothing leaves the machine unless ``$WANDB_MODE`` is online.

    Offline, a run that goes on is written anew, whole, under the same id: what a killed process had not yet written is
    lost with it. Online, what the server lacks is added. The project is ``$WANDB_PROJECT``, else tillwatch.
    """

    name = "wandb"

    def __init__(self, run: Path, settings: Mapping[str, str]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        run_id = str(_kept(run).get("wandb") or uuid.uuid4().hex[:8])
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        if mode == "offline":
            for folder in run.glob(f"wandb/offline-run-*-{run_id}"):
                shutil.rmtree(folder)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.resolve().name,
            id=run_id,
            resume="allow",
            mode=mode,
            dir=str(run),
            config=dict(settings),
            # Standard output, git and the machine's load are not ours to tell; what it prints, we say.
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )
        self._written = max(0, self._run.starting_step - 1)
        _keep(run, wandb=run_id)

    def write(self, so_far: Sequence[EpochMetrics]) -> None:
        """Writes the epochs that are new."""
        for epoch in so_far[self._written :]:
            self._run.log(_values(epoch), step=epoch.epoch)
            self._written = epoch.epoch

    def end(self, figures: Mapping[str, float]) -> None:
        """Sets the figures of the test in the run's summary."""
        self._run.summary.update(dict(figures))

    def close(self, status: str) -> None:
        """Ends the run."""
        self._run.finish(exit_code=0 if status == "finished" else 1)


_BUILDERS: dict[str, Callable[[Path, Mapping[str, str]], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}

_PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}


def _settings(config: TrainConfig) -> dict[str, str]:
    """Returns what is set, as text."""
    return {key: str(value) for key, value in asdict(config).items() if value is not None}


def _values(epoch: EpochMetrics) -> dict[str, float]:
    return {key: value for key, value in asdict(epoch).items() if key != "epoch" and value is not None}


def _kept(run: Path) -> dict[str, Any]:
    try:
        record = json.loads((run / TRACKING_JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _keep(run: Path, **values: str) -> None:
    write_json(run / TRACKING_JSON, {**_kept(run), **values})


def _sqlite_address(path: Path) -> str:
    """Returns a database's address for SQLAlchemy.

    Raises:
        ConfigError: if its path has a "?", which would begin the options of an address.
    """
    if "?" in str(path):
        raise ConfigError(f"the address of a database cannot hold the ? of {path}; set MLFLOW_TRACKING_URI")
    return f"sqlite:///{path}"

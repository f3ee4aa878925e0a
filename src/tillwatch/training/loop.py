"""The training loop: prepare, fit epoch by epoch, finish."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tillwatch.clip_spec import ClipSpec
from tillwatch.config import TrainConfig, to_yaml
from tillwatch.data.catalog import CLIPS_CSV, Skip
from tillwatch.data.sampler import derive_seed
from tillwatch.errors import DataError
from tillwatch.evaluation.audit_report import AUDIT_JSON
from tillwatch.evaluation.evaluate import Evaluation
from tillwatch.evaluation.metrics import balanced_accuracy
from tillwatch.files import write_json, write_text
from tillwatch.models.architectures import save_state_dict
from tillwatch.models.backbones import KINETICS, build_model
from tillwatch.models.memory import keep_freed_memory
from tillwatch.models.motion import ARCH as MOTION
from tillwatch.models.motion import MotionNetwork
from tillwatch.models.precision import PrecisionName, lay_out
from tillwatch.models.saved import OperatingPoint, read_classes, save_model
from tillwatch.training.feed import Feed, clip_feed
from tillwatch.training.finish import finish
from tillwatch.training.guard import NonFiniteError, StepGuard
from tillwatch.training.motion import fit_motion
from tillwatch.training.prepare import Job, on_split, paths_read, prepare, resolved, with_hours
from tillwatch.training.probe import head_on_features
from tillwatch.training.run_folder import check_run_folder, claim_run_folder, write_clips
from tillwatch.training.runlog import EpochMetrics, RunLog

BEST = "checkpoints/best.pth"

# Fabric announces what prepare has said already, with its reason.
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)

# Streams of random numbers that must not meet.
_INIT, _STEP = 1, 2

_FABRIC_PRECISION: dict[PrecisionName, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def train(
    data: Path,
    out: Path,
    config: TrainConfig,
    log: RunLog | None = None,
    *,
    divide_groups: bool = False,
    prepared: Job | None = None,
    calibrated: tuple[float, OperatingPoint] | None = None,
    pictures: bool = True,
) -> Evaluation:
    """Trains a classifier on class folders of clips and writes a run folder.

    Args:
        data: class folders of frame folders or videos.
        out: the run folder; must not exist unless ``config.overwrite`` and it holds a run.
        config: how.
        log: where to say what happens.
        divide_groups: follow ``config.split_file`` even where it divides a group, to show what that leaks.
        prepared: from the same data and settings; only divided anew. None prepares everything.
        calibrated: temperature and operating point, if they are known, as of out-of-fold scores.
        pictures: whether the report shows clips.

    Returns:
        The evaluation on the test clips, or on the training clips if nothing was held out.

    Raises:
        TillwatchError: before anything is written, if settings, data, weights or ``out`` cannot be used.
    """
    log = log or RunLog()
    check_run_folder(out, config.overwrite, reads=paths_read(data, config))
    config = with_hours(config, log)
    if prepared is None:
        job = prepare(data, config, log, divide_groups=divide_groups)
    else:
        job = on_split(prepared, config, log, divide_groups=divide_groups)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, _INIT))
        network = MotionNetwork() if job.spec.arch == MOTION else _build(config, job, log)
        claim_run_folder(out)
        write_text(out / "config.yaml", to_yaml(resolved(config, job), data.resolve(), out))
        write_clips(out / CLIPS_CSV, job)
        write_json(out / AUDIT_JSON, job.audit.to_json())
        try:
            if isinstance(network, MotionNetwork):
                skipped = fit_motion(network, job, config, out, log)
            elif config.freeze == "backbone":
                head, feed, skipped = head_on_features(network, job, config, log)
                skipped |= fit(network, head, feed, job, config, out, log)
            else:
                skipped = fit(network, network, clip_feed(job, config), job, config, out, log)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} {_keep_last_good(out, network, job.spec)}") from None
    for skip in skipped.values():
        log.note(f"{skip.name} was left out: {skip.reason}.")
    if skipped:
        write_clips(out / CLIPS_CSV, job, skipped)
    return finish(network, job, config, out, log, calibrated=calibrated, pictures=pictures)


def _build(config: TrainConfig, job: Job, log: RunLog) -> nn.Module:
    return build_model(
        job.spec.arch,
        len(job.spec.classes),
        config.dropout,
        None if config.weights == "none" else config.weights,
        keep_head=_keeps_head(config.weights, job.spec, log),
    )


def fit(
    network: nn.Module, learner: nn.Module, feed: Feed, job: Job, config: TrainConfig, out: Path, log: RunLog
) -> dict[str, Skip]:
    """Trains a network, in place; the loop, top to bottom.

    Args:
        network: the whole of it, which is saved.
        learner: the part of it that learns and is fed: itself, or its head.
        feed: batches for the learner.
        job: clips, spec, device.
        config: optimiser, epochs, seeds.
        out: the run folder; gets metrics.csv and checkpoints/best.pth as it goes.
        log: where to say what happens.

    Returns:
        The clips that turned out unreadable, by name.

    Raises:
        NonFiniteError: if a loss or a gradient stops being finite.
    """
    fabric, model, optimizer = set_up(learner, job.device, job.precision, config.lr, compiled=config.compile)
    guard = StepGuard(learner, model, scaled=job.precision == "fp16")
    skipped: dict[str, Skip] = {}
    (out / "checkpoints").mkdir(exist_ok=True)

    for epoch in range(config.epochs):
        feed.start_epoch(epoch)
        if epoch in (0, feed.early_epochs):  # what was reached at another size is no measure for this one
            scheduler, best_loss, best_epoch = _plateau(optimizer, config), float("inf"), epoch
        started, lr = time.perf_counter(), optimizer.param_groups[0]["lr"]
        grown = epoch == feed.early_epochs > 0
        with fresh_statistics(learner) if grown else nullcontext():
            trained = train_epoch(fabric, model, optimizer, guard, feed, config.seed, epoch, skipped, log)
        train_seconds = time.perf_counter() - started
        validated = None if feed.validation is None else validate(model, feed, fabric.device, skipped)

        followed = trained.loss if validated is None or config.plateau_on == "train" else validated.loss
        scheduler.step(followed)
        watched = followed if validated is None else validated.loss
        if best := watched < best_loss:
            best_loss, best_epoch = watched, epoch
            save_state_dict(out / BEST, network)
        metrics = EpochMetrics(
            epoch=epoch + 1,
            train_loss=trained.loss,
            val_loss=None if validated is None else validated.loss,
            val_balanced_accuracy=None if validated is None else validated.balanced_accuracy,
            lr=lr,
            seconds=time.perf_counter() - started,
            clips_per_s=trained.clips / train_seconds,
            data_wait_s=trained.data_wait_s,
        )
        log.epoch(out, metrics, config.epochs, best)
        if not math.isfinite(watched):
            raise NonFiniteError(f"the validation loss became {watched} in epoch {epoch + 1}.")
        if config.patience is not None and epoch - best_epoch >= config.patience:
            log.say(f"stopped: no better validation loss for {config.patience} epochs")
            break

    if config.keep == "best":
        network.load_state_dict(torch.load(out / BEST, weights_only=True))
    return skipped


def set_up(
    learner: nn.Module, device: str, precision: PrecisionName, lr: float, *, compiled: bool = False
) -> tuple[Fabric, nn.Module, Any]:
    """Puts what learns on its device, in its precision and memory layout, with its optimiser.

    Returns:
        Fabric, the learner wrapped for training (the parameters stay its own), and Adam.
    """
    fabric = Fabric(accelerator=device, devices=1, precision=_FABRIC_PRECISION[precision])
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
def fresh_statistics(learner: nn.Module) -> Iterator[None]:
    """Lets batch norm forget its running means and take plain ones over the block: clips of another size have others.

    The moving average forgets a tenth a step; over an epoch of twelve steps a quarter of what small clips had is left.
    """
    norms = [
        module for module in learner.modules() if isinstance(module, nn.BatchNorm3d) and module.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches since
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _plateau(optimizer: Any, config: TrainConfig) -> ReduceLROnPlateau:
    for group in optimizer.param_groups:
        group["lr"] = config.lr
    return ReduceLROnPlateau(optimizer, mode="min", factor=0.1, patience=config.lr_patience)


@dataclass(frozen=True)
class _Trained:
    loss: float
    clips: int
    data_wait_s: float


@dataclass(frozen=True)
class _Validated:
    loss: float
    balanced_accuracy: float


def train_epoch(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    guard: StepGuard,
    feed: Feed,
    seed: int,
    epoch: int,
    skipped: dict[str, Skip],
    log: RunLog,
) -> _Trained:
    """One pass of balanced draws; unreadable clips are added to ``skipped``."""
    model.train()
    total, count, data_wait_s = 0.0, 0, 0.0
    waiting_since = time.perf_counter()
    with log.progress(f"epoch {epoch + 1}") as on_step:
        for step, batch in enumerate(feed.training):
            data_wait_s += time.perf_counter() - waiting_since
            skipped.update({skip.name: skip for skip in batch.skipped})
            log.note_once(batch.trouble)
            if len(batch.labels):
                # Dropout draws from the global generator: seeded by place, a step repeats whatever came before.
                torch.manual_seed(derive_seed(seed, _STEP, epoch, step))
                inputs = feed.training_inputs(batch, fabric.device)
                loss = F.cross_entropy(model(inputs), batch.labels.to(fabric.device))
                optimizer.zero_grad()
                fabric.backward(loss)
                value = guard.check(loss, inputs, f"epoch {epoch + 1}, step {step + 1}")
                optimizer.step()
                total, count = total + value * len(batch.labels), count + len(batch.labels)
            on_step(step + 1, len(feed.training))
            waiting_since = time.perf_counter()
    if not count:
        raise DataError("not one training clip could be read.")
    return _Trained(total / count, count, data_wait_s)


@torch.inference_mode()
def validate(model: nn.Module, feed: Feed, device: torch.device, skipped: dict[str, Skip]) -> _Validated:
    """Mean cross entropy and balanced accuracy, each clip once, in the precision of training."""
    model.eval()
    logits, labels = [], []
    for batch in feed.validation or ():
        skipped.update({skip.name: skip for skip in batch.skipped})
        if len(batch.labels):
            logits.append(model(feed.validation_inputs(batch, device)).float().cpu())
            labels.append(batch.labels)
    if not labels:
        raise DataError("not one validation clip could be read.")
    all_logits, all_labels = torch.cat(logits), torch.cat(labels)
    loss = F.cross_entropy(all_logits, all_labels).item()
    num_classes = all_logits.shape[1]
    pairs = all_labels * num_classes + all_logits.argmax(1)
    confusion = torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    return _Validated(loss, balanced_accuracy(confusion.numpy()))


def _keep_last_good(out: Path, network: nn.Module, spec: ClipSpec) -> str:
    """Makes the best epoch's weights the run's model, and says so."""
    if not (out / BEST).is_file():
        return "No epoch was finished, so there is no model. Try a lower --lr, or --precision fp32."
    network.load_state_dict(torch.load(out / BEST, weights_only=True))
    save_model(out, network, spec)
    return (
        f"The weights of the best epoch until then are kept as {out / 'model.pth'}. "
        "Try a lower --lr, or --precision fp32."
    )


def _keeps_head(weights: str, spec: ClipSpec, log: RunLog) -> bool:
    """Whether the last layer of other weights may be kept: only if its outputs are known to be the same classes."""
    if weights in (KINETICS, "none"):
        return False
    folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    same = read_classes(folder) == spec.classes
    log.say(f"starting from {weights}, with {'its last layer' if same else 'a new last layer'}")
    return same

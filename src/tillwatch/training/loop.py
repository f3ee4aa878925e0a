"""The training loop: prepare or take up again, fit epoch by epoch, finish."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
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
from tillwatch.evaluation.runs import UNFINISHED
from tillwatch.files import write_json, write_text
from tillwatch.models.backbones import KINETICS, build_model, digest_around
from tillwatch.models.motion import ARCH as MOTION
from tillwatch.models.motion import MotionNetwork
from tillwatch.models.recompute import recompute_activations
from tillwatch.models.saved import read_classes, save_model
from tillwatch.training.devices import Devices, fresh_statistics, set_up
from tillwatch.training.feed import Feed, clip_feed
from tillwatch.training.finish import finish
from tillwatch.training.fitting import settle_batches, suggesting
from tillwatch.training.guard import NonFiniteError, StepGuard
from tillwatch.training.motion import fit_motion
from tillwatch.training.out_of_fold import Judged
from tillwatch.training.pausing import Pausing
from tillwatch.training.prepare import Job, on_split, paths_read, prepare, resolved, with_hours
from tillwatch.training.probe import head_on_features
from tillwatch.training.recorded import read_recorded
from tillwatch.training.resume import as_begun, read_begun, refuse_changes, refuse_edits, settings_learnt
from tillwatch.training.run_folder import (
    check_run_folder,
    go_on,
    hold_run_folder,
    is_finished,
    mark_begun,
    read_mark,
    remove_checkpoints,
    write_clips,
)
from tillwatch.training.runlog import EpochMetrics, NoLog, RunLog
from tillwatch.training.state import Beginning, Checkpoints, MadeOf, Progress, TrainingState, beginning_of
from tillwatch.training.tracking import Tracking

# Streams of random numbers that must not meet.
_INIT, _STEP = 1, 2


def train(
    data: Path,
    out: Path,
    config: TrainConfig,
    log: RunLog | None = None,
    *,
    divide_groups: bool = False,
    prepared: Job | None = None,
    judged: Judged | None = None,
    pictures: bool = True,
    devices: Devices | None = None,
) -> Evaluation:
    """Trains a classifier on class folders of clips and writes a run folder.

    Args:
        data: class folders of frame folders or videos.
        out: the run folder; must not exist unless ``config.overwrite`` and it holds a run.
        config: how.
        log: where to say what happens.
        divide_groups: follow ``config.split_file`` even where it divides a group, to show what that leaks.
        prepared: from the same data and settings; only divided anew. None prepares everything.
        judged: what a cross-validation says of a model trained on all clips.
        pictures: whether the report shows clips.
        devices: those that this process, the first of them, trains with; the others :func:`follow`. None for one.

    Returns:
        The evaluation on the test clips, or on the training clips if nothing was held out.

    Raises:
        TillwatchError: before anything is written, if settings, data, weights or ``out`` cannot be used.
        Interrupted: on SIGTERM or Ctrl-C, with the run saved; :func:`resume` goes on.
    """
    log, devices = log or RunLog(), devices or Devices()
    check_run_folder(out, config.overwrite, reads=paths_read(data, config))
    config = with_hours(devices.settled(config), log)
    if prepared is None:
        job = prepare(data, config, log, divide_groups=divide_groups)
    else:
        job = on_split(prepared, config, log, divide_groups=divide_groups)
    network = _build(config, job, log)
    config = settle_batches(job, config, log)
    with hold_run_folder(out, begin=True), devices.interrupts(go_on(out)) as interrupts, Tracking(log) as tracking:
        checkpoints = Checkpoints(out, config.checkpoint_minutes, log.note, interrupts, asked=devices.any_signal)
        checkpoints.begun = _write_beginning(out, data, config, job)
        tracking.begin(out, resolved(config, job))
        _learn(network, job, config, out, checkpoints, log, devices)
        return tracking.end(finish(network, job, config, out, log, judged=judged, pictures=pictures))


def resume(
    run: Path,
    config: TrainConfig | None = None,
    data: Path | None = None,
    log: RunLog | None = None,
    *,
    divide_groups: bool = False,
    prepared: Job | None = None,
    judged: Judged | None = None,
    pictures: bool = True,
    devices: Devices | None = None,
) -> Evaluation | None:
    """Goes on with a run that was broken off, to the weights that it would have had.

    Args:
        run: the run folder.
        config: that of its config.yaml, but for what may change (``RESUME_MAY_CHANGE``); None for just that.
        data: its data folder, if that has moved.
        log, divide_groups, prepared, judged, pictures, devices: as :func:`train` takes them.

    Returns:
        As :func:`train`; None if the run is finished already.

    Raises:
        TillwatchError: if there is no run to go on with, another process trains it, settings differ that may not, or
            its checkpoints or its data cannot be used.
        Interrupted: as :func:`train`.
    """
    log, devices = log or RunLog(), devices or Devices()
    if is_finished(run):
        remove_checkpoints(run)  # of one that was killed while it removed them
        devices.from_first(None)
        return None
    with hold_run_folder(run, begin=False), devices.interrupts(go_on(run)) as interrupts, Tracking(log) as tracking:
        begun = read_begun(run)
        data, config = data or begun.data, devices.settled(as_begun(begun.config, config))
        refuse_changes(run, begun.config, config if prepared is None else resolved(config, prepared))
        checkpoints = Checkpoints(run, config.checkpoint_minutes, log.note, interrupts, asked=devices.any_signal)
        last = checkpoints.read_last()
        checkpoints.begun = read_mark(run) if last is None else beginning_of(last)
        if not checkpoints.begun.clips:
            log.note(
                f"{run / UNFINISHED} is not whole: whether config.yaml is as it was cannot be told; taken as it is."
            )
        else:
            refuse_edits(run, checkpoints.begun.settings, begun.config)
        recorded = read_recorded(run, checkpoints.begun.clips)
        # A checkpoint has weights of its own: those that the run began with may be gone.
        settings = config if last is None or config.freeze != "none" else replace(config, weights="none")
        del last  # as large as four models; the checkpoints hand it on
        if prepared is None:
            job = prepare(data, settings, log, recorded=recorded)
        else:
            job = on_split(prepared, settings, log, divide_groups=divide_groups)
        network = _build(settings, job, log)
        config = settle_batches(job, config, log)
        settings = replace(settings, batch_size=config.batch_size, accumulate=config.accumulate)
        checkpoints.begun = _write_beginning(run, data, config, job)
        tracking.begin(run, resolved(config, job))
        _learn(network, job, settings, run, checkpoints, log, devices)
        return tracking.end(finish(network, job, settings, run, log, judged=judged, pictures=pictures))


def follow(devices: Devices) -> None:
    """Trains with the first process, which alone reads and writes the run folder and says what happens.

    Raises:
        RunError: if the first process, or another, ends before training does.
        Interrupted: with the first.
    """
    told = devices.from_first(None)
    if told is None:
        return
    job, config, out = told
    with devices.interrupts(go_on(out)) as interrupts:
        log = NoLog()
        network = _build(replace(config, weights="none"), job, log)  # the first one's weights are everyone's
        checkpoints = Checkpoints(out, math.inf, log.note, interrupts, writes=False, asked=devices.any_signal)
        _learn(network, job, config, out, checkpoints, log, devices)


def _write_beginning(out: Path, data: Path, config: TrainConfig, job: Job) -> Beginning:
    """Writes what a run is made of; that config.yaml is there says that there is something to go on with."""
    config = resolved(config, job)
    write_text(out / "config.yaml", to_yaml(config, data.resolve(), out))
    if job.audit is not None:
        write_json(out / AUDIT_JSON, job.audit.to_json())
        write_clips(out / CLIPS_CSV, job)
    clips = {clip.name: (clip.label, clip.group, job.sides[clip.name]) for clip in job.catalog.clips}
    begun = Beginning(settings=settings_learnt(config), clips=clips)
    mark_begun(out, begun)
    return begun


def _learn(
    network: nn.Module,
    job: Job,
    config: TrainConfig,
    out: Path,
    checkpoints: Checkpoints,
    log: RunLog,
    devices: Devices,
) -> None:
    """Trains a network, in place, each kind in its way, and writes down the clips that were lost."""
    if devices.rank == 0:
        devices.from_first((job, config, out))
    with torch.random.fork_rng(), suggesting(network, job, config, out):
        if isinstance(network, MotionNetwork):
            skipped = fit_motion(network, job, config, out, log)
        elif config.freeze == "backbone":
            head, feed, skipped = head_on_features(network, job, config, log)
            skipped |= fit(network, head, feed, job, config, out, checkpoints, log, devices)
        else:
            feed = clip_feed(job, config, devices.share(config.parts))
            skipped = fit(network, network, feed, job, config, out, checkpoints, log, devices)
    devices.part()
    if devices.rank:
        return
    for skip in skipped.values():
        log.note(f"{skip.name} was left out: {skip.reason}.")
    if skipped:
        write_clips(out / CLIPS_CSV, job, skipped)


def learn_apart(job: Job, config: TrainConfig, folder: Path, checkpoints: Checkpoints, log: RunLog) -> None:
    """Trains as :func:`train` does and goes no further: there is no model and no test, only what the log was told.

    Args:
        job: clips, spec, device; clips of a side "test" are not asked for.
        config: how.
        folder: gets metrics.csv.
        checkpoints: where the state is saved.
        log: is told of each epoch; may end it by an exception.
    """
    alone = Devices()
    config = alone.settled(config)
    _learn(_build(config, job, log), job, settle_batches(job, config, log), folder, checkpoints, log, alone)


def _build(config: TrainConfig, job: Job, log: RunLog) -> nn.Module:
    if job.spec.arch == MOTION:
        return MotionNetwork()
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, _INIT))
        return build_model(
            job.spec.arch,
            len(job.spec.classes),
            config.dropout,
            None if config.weights == "none" else config.weights,
            keep_head=_keeps_head(config.weights, job.spec, log),
        )


def fit(
    network: nn.Module,
    learner: nn.Module,
    feed: Feed,
    job: Job,
    config: TrainConfig,
    out: Path,
    checkpoints: Checkpoints,
    log: RunLog,
    devices: Devices,
) -> dict[str, Skip]:
    """Trains a network, in place; the loop, top to bottom.

    Args:
        network: the whole of it, which is saved.
        learner: the part of it that learns and is fed: itself, or its head.
        feed: batches for the learner.
        job: clips, spec, device.
        config: optimiser, epochs, seeds.
        out: the run folder; gets metrics.csv and checkpoints/best.pth as it goes.
        checkpoints: where the state is saved; the last that was read is where training goes on.
        log: where to say what happens.
        devices: those that learn together.

    Returns:
        The clips that turned out unreadable, by name.

    Raises:
        NonFiniteError: if a loss or a gradient stops being finite.
        Interrupted: on a signal, with the state saved.
    """
    if config.sync_batchnorm:
        learner = nn.SyncBatchNorm.convert_sync_batchnorm(learner)  # type: ignore[no-untyped-call]
    if config.checkpoint_activations:
        recompute_activations(learner)
    fabric, model, optimizer = set_up(
        learner, job.device, job.precision, config.lr, compiled=config.compile, devices=devices
    )
    guard = StepGuard(learner, model, scaled=job.precision == "fp16")
    clips = [clip.name for clip in job.catalog.clips]
    frozen = "" if learner is network else digest_around(network, learner)
    made_of = MadeOf(clips=clips, draws=len(feed.sampler), frozen=frozen)
    cut = feed.batches.share.in_words
    state = TrainingState(learner, optimizer, _plateau(optimizer, config), fabric.strategy.precision, made_of, cut)
    checkpoints.restore(state)
    devices.share_state(state)
    now = state.progress
    alone = devices.world == 1 and not config.compile
    pausing = Pausing(learner, partial(checkpoints.between_batches, state), checkpoints.interrupts if alone else None)
    log.write_metrics(out, now.metrics)
    with checkpoints.interrupts.deferred(), _last_good(out, network, job.spec, state, devices), pausing.watching():
        while now.epoch < config.epochs and not now.stopped:
            feed.start_epoch(now.epoch, now.step)
            if now.step == 0 and now.epoch in (0, feed.early_epochs):
                # What was reached at another size is no measure for this one.
                state.scheduler, now.best_loss, now.best_epoch = _plateau(optimizer, config), math.inf, now.epoch
            lr, grown = optimizer.param_groups[0]["lr"], now.epoch == feed.early_epochs > 0
            with fresh_statistics(learner, forget=now.step == 0) if grown else nullcontext():
                train_epoch(fabric, model, optimizer, guard, feed, config.seed, now, pausing, log, devices)
            started = time.perf_counter()
            validated = None if feed.validation is None else validate(learner, feed, fabric, devices, now, pausing)

            trained = now.loss_sum / now.clips
            followed = trained if validated is None or config.plateau_on == "train" else validated.loss
            state.scheduler.step(followed)
            watched = followed if validated is None else validated.loss
            if best := watched < now.best_loss:
                now.best_loss, now.best_epoch = watched, now.epoch
                state.take_best()
                checkpoints.save_best(network)
            metrics = EpochMetrics(
                epoch=now.epoch + 1,
                train_loss=trained,
                val_loss=None if validated is None else validated.loss,
                val_balanced_accuracy=None if validated is None else validated.balanced_accuracy,
                lr=lr,
                seconds=now.seconds + time.perf_counter() - started,
                clips_per_s=now.clips / now.seconds,
                data_wait_s=now.data_wait_s,
            )
            now.metrics.append(metrics)
            log.epoch(out, now.metrics, config.epochs, best)
            if not math.isfinite(watched):
                raise NonFiniteError(f"the validation loss became {watched} in epoch {now.epoch + 1}.")
            patience = config.patience if now.epoch >= feed.early_epochs else None  # small clips are only a start
            now.stopped = patience is not None and now.epoch - now.best_epoch >= patience
            now.next_epoch()
            checkpoints.save(state)
    if now.stopped:
        log.say(f"stopped: no better validation loss for {config.patience} epochs")
    if config.keep == "best":
        state.load_best()
    return now.skipped


def _plateau(optimizer: Any, config: TrainConfig) -> ReduceLROnPlateau:
    for group in optimizer.param_groups:
        group["lr"] = config.lr
    return ReduceLROnPlateau(optimizer, mode="min", factor=0.1, patience=config.lr_patience)


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
    now: Progress,
    pausing: Pausing,
    log: RunLog,
    devices: Devices,
) -> None:
    """One pass of balanced draws, or what is left of it; ``now`` counts; after each step it may pause."""
    model.train()
    since = time.perf_counter()
    with log.progress(f"epoch {now.epoch + 1}") as on_step:
        for parts in pausing.each(feed.steps()):
            now.data_wait_s += time.perf_counter() - since
            now.skipped.update(devices.all_skipped(parts))
            log.note_once(next((batch.trouble for batch in parts if batch.trouble), None))
            counts = [len(batch.labels) for batch in parts]
            (clips,) = devices.sum(sum(counts))
            if clips:
                losses: list[torch.Tensor] = []
                optimizer.zero_grad()
                with pausing.step():
                    for number, count in enumerate(counts):
                        # Where nothing could be read, a blank at no weight: others wait for this part's gradients.
                        batch = parts[number] if count else feed.blank
                        # Dropout draws from the global generator: seeded by place, a step repeats whatever came before.
                        torch.manual_seed(derive_seed(seed, _STEP, now.epoch, now.step, *feed.piece(number)))
                        with devices.summing(fabric, model, last=number == len(parts) - 1):
                            loss = F.cross_entropy(
                                model(feed.training_inputs(batch, fabric.device)), batch.labels.to(fabric.device)
                            )
                            weight = count * devices.world / clips  # DDP takes the mean over processes
                            fabric.backward(loss if weight == 1 else loss * weight)
                        losses.append(loss.detach())
                with devices.together():
                    where = f"epoch {now.epoch + 1}, step {now.step + 1}"
                    values = guard.check(losses, partial(feed.inputs_of, parts, fabric.device), where)
                optimizer.step()
                devices.average_statistics(guard.module, sum(counts) / clips)
                (loss_sum,) = devices.sum(sum(value * count for value, count in zip(values, counts, strict=True)))
                now.loss_sum, now.clips = now.loss_sum + loss_sum, now.clips + int(clips)
            now.step, now.seconds = now.step + 1, now.seconds + time.perf_counter() - since
            on_step(now.step, feed.batches.steps)
            since = time.perf_counter()
            pausing.pause()
    if not now.clips:
        raise DataError("not one training clip could be read.")


@torch.inference_mode()
def validate(
    learner: nn.Module, feed: Feed, fabric: Fabric, devices: Devices, now: Progress, pausing: Pausing
) -> _Validated:
    """Mean cross entropy and balanced accuracy, each clip once, in the precision of training; pauses likewise."""
    learner.eval()
    logits, labels, skipped = [], [], dict[str, Skip]()
    for batch in pausing.each(devices.rounds(feed.validation)):
        if batch is not None:
            skipped.update({skip.name: skip for skip in batch.skipped})
        if batch is not None and len(batch.labels):
            with pausing.step(), fabric.autocast():
                logits.append(learner(feed.validation_inputs(batch, fabric.device)).float().cpu())
            labels.append(batch.labels)
        pausing.pause()
    everyone = devices.gather((logits, labels, skipped))
    all_labels = [part for _, of_one, _ in everyone for part in of_one]
    for _, _, of_one in everyone:
        now.skipped.update(of_one)
    if not all_labels:
        raise DataError("not one validation clip could be read.")
    all_logits = torch.cat([part for of_one, _, _ in everyone for part in of_one])
    return devices.from_first(_measured(all_logits, torch.cat(all_labels)))  # what follows from it is decided once


def _measured(logits: torch.Tensor, labels: torch.Tensor) -> _Validated:
    loss = F.cross_entropy(logits, labels).item()
    num_classes = logits.shape[1]
    pairs = labels * num_classes + logits.argmax(1)
    confusion = torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    return _Validated(loss, balanced_accuracy(confusion.numpy()))


@contextmanager
def _last_good(out: Path, network: nn.Module, spec: ClipSpec, state: TrainingState, devices: Devices) -> Iterator[None]:
    """Makes the best epoch's weights the run's model if the block ends in what is not finite, and says so."""
    try:
        yield
    except NonFiniteError as error:
        kept = "No epoch was finished, so there is no model."
        if state.best is not None:
            state.load_best()
            if devices.rank == 0:
                save_model(out, network, spec)
            kept = f"The weights of the best epoch until then are kept as {out / 'model.pth'}."
        raise NonFiniteError(f"{error} {kept} Try a lower --lr, or --precision fp32.") from None


def _keeps_head(weights: str, spec: ClipSpec, log: RunLog) -> bool:
    """Whether the last layer of other weights may be kept: only if its outputs are known to be the same classes."""
    if weights in (KINETICS, "none"):
        return False
    folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    same = read_classes(folder) == spec.classes
    log.say(f"starting from {weights}, with {'its last layer' if same else 'a new last layer'}")
    return same

"""Clips to a run folder: set up, fit, validate, save, evaluate."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from tillwatch.clip_spec import ClipSpec, FrameStep, Lengths, Preprocessing, Size, choose_event
from tillwatch.config import TrainConfig, read_yaml, to_yaml
from tillwatch.data.catalog import CLIPS_CSV, Catalog, Clip, Search, Skip, look_into, search_folder, too_many_skipped
from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.loader import evaluation_loader, training_loader
from tillwatch.data.provenance import EXTRACTION_JSON, Extraction, read_extraction
from tillwatch.data.sampler import BalancedSampler, derive_seed
from tillwatch.data.splits import missing_classes, read_split_file, split_clips
from tillwatch.data.transforms import train_transform
from tillwatch.errors import ConfigError, DataError, RunError, TillwatchError, one_line
from tillwatch.evaluation.evaluate import Evaluation, evaluate_split
from tillwatch.evaluation.metrics import balanced_accuracy
from tillwatch.files import read_csv, write_csv, write_text
from tillwatch.models.backbones import KINETICS, backbone, build_model, check_input_size, fetch_kinetics
from tillwatch.models.folded import fold
from tillwatch.models.saved import (
    Classifier,
    choose_device,
    eval_transform_of,
    read_classes,
    save_model,
    save_state_dict,
    true_fp32,
)
from tillwatch.training.runlog import EpochMetrics, RunLog

RUN_FILES = (
    "classification_report.txt",
    "clips.csv",
    "config.yaml",
    "evaluation.json",
    "metrics.csv",
    "model.json",
    "model.pth",
    "predictions.csv",
)
RUN_FOLDERS = ("checkpoints", "evaluations")
CLIPS_COLUMNS = ("path", "label", "group", "split", "frames", "fps", "seconds", "status")

# Streams of random numbers that must not meet.
_INIT, _STEP = 1, 2


@dataclass(frozen=True, kw_only=True)
class Job:
    """What training is made of, settled before the first step.

    Attributes:
        spec: the contract.
        catalog: what the data folder holds.
        sides: the side of each clip by name.
        device, precision: where and how, "cpu" or "cuda", "fp32" or "bf16".
        workers: processes that read clips.
    """

    spec: ClipSpec
    catalog: Catalog
    sides: dict[str, str]
    device: str
    precision: Literal["fp32", "bf16"]
    workers: int

    def side(self, name: str) -> list[Clip]:
        """Returns the clips of one side."""
        return [clip for clip in self.catalog.clips if self.sides[clip.name] == name]


def train(data: Path, out: Path, config: TrainConfig, log: RunLog | None = None) -> Evaluation:
    """Trains a classifier on class folders of clips and writes a run folder.

    Args:
        data: class folders of frame folders or videos.
        out: the run folder; must not exist unless ``config.overwrite`` and it holds a run.
        config: how.
        log: where to say what happens.

    Returns:
        The evaluation on the test clips, or on the training clips if nothing was held out.

    Raises:
        TillwatchError: before anything is written, if settings, data, weights or ``out`` cannot be used.
    """
    log = log or RunLog()
    check_run_folder(out, config.overwrite, reads=_paths_read(data, config))
    job = prepare(data, config, log)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, _INIT))
        network = build_model(
            job.spec.arch,
            len(job.spec.classes),
            config.dropout,
            None if config.weights == "none" else config.weights,
            keep_head=_keeps_head(config.weights, job.spec, log),
        )
        claim_run_folder(out)
        write_text(out / "config.yaml", to_yaml(_resolved(config, job), data.resolve(), out))
        _write_clips(out / CLIPS_CSV, job)
        network, skipped = fit(network, job, config, out, log)
    for skip in skipped.values():
        log.note(f"{skip.name} was left out: {skip.reason}.")
    if skipped:
        _write_clips(out / CLIPS_CSV, job, skipped)
    sha256 = save_model(out, network, job.spec)
    if config.save_as is not None:
        save_state_dict(out / config.save_as, network)
    classifier = Classifier(network, job.spec, sha256=sha256, device=job.device)
    with log.progress("evaluating") as on_batch:
        return evaluate_split(
            out,
            classifier,
            job.catalog.clips,
            job.sides,
            "test" if config.hold_out else "train",
            batch_size=config.batch_size,
            workers=job.workers,
            on_batch=on_batch,
        )


def fit(network: nn.Module, job: Job, config: TrainConfig, out: Path, log: RunLog) -> tuple[nn.Module, dict[str, Skip]]:
    """Trains a network; the loop, top to bottom.

    Args:
        network: as built.
        job: clips, spec, device.
        config: optimiser, epochs, seeds.
        out: the run folder; gets metrics.csv and checkpoints/best.pth as it goes.
        log: where to say what happens.

    Returns:
        The network with the weights that are kept, and the clips that turned out unreadable, by name.

    Raises:
        RunError: if the loss stops being finite.
    """
    fabric, model, optimizer = set_up(network, job.device, job.precision, config.lr)
    scheduler = ReduceLROnPlateau(optimizer, mode="min", factor=0.1, patience=config.lr_patience)
    train_loader, sampler, val_loader = make_loaders(job, config)
    best_loss, best_epoch, skipped = float("inf"), 0, dict[str, Skip]()
    (out / "checkpoints").mkdir(exist_ok=True)

    for epoch in range(config.epochs):
        started, lr = time.perf_counter(), optimizer.param_groups[0]["lr"]
        sampler.start_epoch(epoch)
        trained = train_epoch(fabric, model, optimizer, train_loader, config.seed, epoch, skipped, log)
        train_seconds = time.perf_counter() - started
        validated = None if val_loader is None else validate(network, val_loader, fabric.device, skipped)

        followed = trained.loss if validated is None or config.plateau_on == "train" else validated.loss
        scheduler.step(followed)
        watched = followed if validated is None else validated.loss
        if best := watched < best_loss:
            best_loss, best_epoch = watched, epoch
            save_state_dict(out / "checkpoints" / "best.pth", network)
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
            raise RunError(f"the validation loss became {watched} in epoch {epoch + 1}; try a lower --lr.")
        if config.patience is not None and epoch - best_epoch >= config.patience:
            log.say(f"stopped: no better validation loss for {config.patience} epochs")
            break

    if config.keep == "best":
        network.load_state_dict(torch.load(out / "checkpoints" / "best.pth", weights_only=True))
    return network, skipped


def set_up(network: nn.Module, device: str, precision: str, lr: float) -> tuple[Fabric, nn.Module, Any]:
    """Puts a network on its device, in its precision and memory layout, with its optimiser.

    Returns:
        Fabric, the network wrapped for training (the parameters stay those of ``network``), and Adam.
    """
    fabric = Fabric(accelerator=device, devices=1, precision="32-true" if precision == "fp32" else "bf16-mixed")
    if precision == "bf16" and device == "cpu":
        # In three dimensions, PyTorch's bf16 convolutions on a CPU are slow and have given garbage gradients.
        network = fold(network).to(memory_format=torch.channels_last_3d)
    model, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), lr=lr))
    return fabric, model, optimizer


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
    loader: DataLoader[Any],
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
        for step, batch in enumerate(loader):
            data_wait_s += time.perf_counter() - waiting_since
            skipped.update({skip.name: skip for skip in batch.skipped})
            if len(batch.labels):
                # Dropout draws from the global generator: seeded by place, a step repeats whatever came before.
                torch.manual_seed(derive_seed(seed, _STEP, epoch, step))
                logits = model(batch.clips.to(fabric.device))
                loss = F.cross_entropy(logits, batch.labels.to(fabric.device))
                optimizer.zero_grad()
                fabric.backward(loss)
                optimizer.step()
                value = loss.item()  # a CPU-GPU sync point
                if not torch.isfinite(loss):
                    raise RunError(
                        f"the loss became {value} in epoch {epoch + 1}, step {step + 1}; "
                        "try a lower --lr, or --precision fp32."
                    )
                total, count = total + value * len(batch.labels), count + len(batch.labels)
            on_step(step + 1, len(loader))
            waiting_since = time.perf_counter()
    if not count:
        raise DataError("not one training clip could be read.")
    return _Trained(total / count, count, data_wait_s)


@torch.inference_mode()
def validate(network: nn.Module, loader: DataLoader[Any], device: torch.device, skipped: dict[str, Skip]) -> _Validated:
    """Mean cross entropy and balanced accuracy, each clip once, in fp32."""
    network.eval()
    logits, labels = [], []
    for batch in loader:
        skipped.update({skip.name: skip for skip in batch.skipped})
        if len(batch.labels):
            with true_fp32(device):
                logits.append(network(batch.clips.to(device)).float().cpu())
            labels.append(batch.labels)
    if not labels:
        raise DataError("not one validation clip could be read.")
    all_logits, all_labels = torch.cat(logits), torch.cat(labels)
    loss = F.cross_entropy(all_logits, all_labels).item()
    num_classes = all_logits.shape[1]
    pairs = all_labels * num_classes + all_logits.argmax(1)
    confusion = torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    return _Validated(loss, balanced_accuracy(confusion.numpy()))


def make_loaders(job: Job, config: TrainConfig) -> tuple[DataLoader[Any], BalancedSampler, DataLoader[Any] | None]:
    """Returns the training loader with its sampler, and the validation loader if clips were held out."""
    spec, prep = job.spec, job.spec.preprocessing

    def dataset(side: str, transform: Any) -> VideoFrameDataset:
        return VideoFrameDataset(
            ".",
            spec.classes,
            spec.num_frames,
            transform,
            step=spec.step,
            roi=spec.roi,
            seed=config.seed,
            clips=job.side(side),
        )

    pin_memory = job.device == "cuda"
    augmented = dataset("train", train_transform(prep.resize, prep.crop, prep.mean, prep.std))
    train_loader, sampler = training_loader(
        augmented, config.batch_size, seed=config.seed, workers=job.workers, pin_memory=pin_memory
    )
    if not config.hold_out:
        return train_loader, sampler, None
    plain = dataset("validation", eval_transform_of(prep))
    val_loader = evaluation_loader(plain, config.batch_size, workers=job.workers, pin_memory=pin_memory)
    return train_loader, sampler, val_loader


def prepare(data: Path, config: TrainConfig, log: RunLog) -> Job:
    """Settles everything that can fail before the first step, the cheapest first.

    Raises:
        ConfigError, DataError, ModelError: if settings, data or weights cannot be used.
    """
    num_frames, resize, crop = _sizes(config)
    check_input_size(config.arch, num_frames, crop)
    device = choose_device(config.device)
    precision = _choose_precision(config.precision, device)
    search = search_folder(data, config.classes)
    if len(search.classes) < 2:
        raise DataError(
            f"{data} has one class only, {search.classes[0]}; a classifier needs clips of something else too, "
            "in a second class folder."
        )
    event = choose_event(search.classes, config.event)
    if config.weights == KINETICS:
        fetch_kinetics(config.arch)
    elif config.weights != "none" and not Path(config.weights).exists():
        raise ConfigError(f"--weights is {config.weights!r}; it must be {KINETICS}, none, or a path that exists.")

    extraction = read_extraction(data)
    step = _choose_step(config, search, extraction, log)
    catalog = look_into(
        search, num_frames=num_frames, step=step, short=config.short, group_pattern=config.group_pattern
    )
    for note in catalog.notes:
        log.note(note)
    for skip in (*catalog.skipped, *catalog.too_short):
        log.note(f"{skip.name} left out: {skip.reason}.")
    if refusal := too_many_skipped(catalog, config.max_skipped):
        raise DataError(refusal)
    for label, count in catalog.class_counts.items():
        if not count:
            raise DataError(f"no clip of {label!r} can be used; each was left out for the reason given above.")
    sides = _split(catalog, config, log)
    known = backbone(config.arch)
    learnt_from = [clip for clip in catalog.clips if sides[clip.name] == "train"]
    spec = ClipSpec(
        arch=config.arch,
        classes=catalog.classes,
        event=event,
        num_frames=num_frames,
        step=step,
        roi=None if extraction is None else extraction.roi,
        preprocessing=Preprocessing(
            resize=resize,
            crop=crop,
            mean=known.mean if config.normalize else None,
            std=known.std if config.normalize else None,
        ),
        clip_seconds=Lengths.of([s for clip in learnt_from if (s := clip.seconds) is not None]),
        clip_frames=Lengths.of([clip.stepped_frames for clip in learnt_from]),
    )
    counts = ", ".join(f"{name} {count}" for name, count in catalog.class_counts.items())
    groups = len({clip.group for clip in catalog.clips})
    log.say(f"{len(catalog.clips)} clips in {groups} groups: {counts}; the event is {', '.join(event)}")
    log.say(f"{config.arch} on {device} in {precision}, {num_frames} x {crop[0]} x {crop[1]}, {step}")
    workers = max(0, min(4, (os.cpu_count() or 1) - 1)) if config.workers is None else config.workers
    return Job(spec=spec, catalog=catalog, sides=sides, device=device, precision=precision, workers=workers)


def check_run_folder(out: Path, overwrite: bool, reads: Sequence[Path] = ()) -> None:
    """Refuses a run folder that holds something already, or that lies where its own training reads.

    Args:
        out: the run folder.
        overwrite: whether an older run in it may be replaced.
        reads: files and folders that training reads, the data folder first.

    Raises:
        RunError: unless it is absent or empty, or ``overwrite`` and it holds a run.
    """
    place = out.resolve()
    if reads and reads[0].resolve() in place.parents:
        raise RunError(f"{out} lies inside the data folder {reads[0]}; give another --out.")
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise RunError(f"{out} is not a folder; give another --out.")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise RunError(f"{out} exists already; give another --out, or --overwrite to replace the run in it.")
    for path in reads:
        if place in (path.resolve(), *path.resolve().parents):
            raise RunError(f"{out} holds {path}, which this training reads; give another --out.")
    if not _holds_run(out):
        raise RunError(f"{out} holds files but no run, so --overwrite does not touch it; give another --out.")


def claim_run_folder(out: Path) -> None:
    """Makes the run folder, and removes the files of an older run; other files in it are left alone.

    Raises:
        RunError: if it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
        for name in RUN_FILES:
            (out / name).unlink(missing_ok=True)
        for name in RUN_FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror or one_line(error)}); give another --out.") from None


def _holds_run(out: Path) -> bool:
    """Whether a folder has what every run has from its first epoch on."""
    try:
        config = read_yaml(out / "config.yaml")
        return {"data", "out", "arch"} <= set(config) and "split" in read_csv(out / CLIPS_CSV)[0]
    except (TillwatchError, OSError, ValueError, IndexError):
        return False


def _keeps_head(weights: str, spec: ClipSpec, log: RunLog) -> bool:
    """Whether the last layer of other weights may be kept: only if its outputs are known to be the same classes."""
    if weights in (KINETICS, "none"):
        return False
    folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    same = read_classes(folder) == spec.classes
    log.say(f"starting from {weights}, with {'its last layer' if same else 'a new last layer'}")
    return same


def _paths_read(data: Path, config: TrainConfig) -> list[Path]:
    paths = [data] if config.split_file is None else [data, config.split_file]
    return paths if config.weights in (KINETICS, "none") else [*paths, Path(config.weights)]


def _sizes(config: TrainConfig) -> tuple[int, Size, Size]:
    """Returns frames, resize and crop, the network's own where nothing else is said."""
    known = backbone(config.arch)
    resize, crop = config.resize or known.resize, config.crop or known.crop
    if crop > resize:
        raise ConfigError(
            f"--crop {crop} is larger than --resize {resize}; {config.arch} takes {known.resize} and {known.crop} "
            "unless told: give both."
        )
    return config.num_frames or known.num_frames, (resize, resize), (crop, crop)


def _choose_precision(precision: str, device: str) -> Literal["fp32", "bf16"]:
    if precision == "auto":
        return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if precision == "bf16" else "fp32"


def _choose_step(config: TrainConfig, search: Search, extraction: Extraction | None, log: RunLog) -> FrameStep:
    """What was asked for; else what the frames were extracted with; else every frame."""
    if config.every is not None or config.fps is not None:
        return FrameStep(every=config.every or 1, fps=config.fps)
    if extraction is not None:
        return extraction.step
    if not all(found.is_video for found in search.found):
        log.note(
            f"no {EXTRACTION_JSON} in {search.root}: frames are taken to be every frame of their videos. If they are "
            "every 5th, say --every 5, so that videos are later read likewise."
        )
    return FrameStep()


def _split(catalog: Catalog, config: TrainConfig, log: RunLog) -> dict[str, str]:
    """Returns the side of each clip, and says what the split lacks."""
    if not config.hold_out:
        log.note("all clips are trained on and nothing is held out, so the report will be no estimate of anything.")
        return {clip.name: "train" for clip in catalog.clips}
    fixed = None if config.split_file is None else read_split_file(config.split_file)
    sides = split_clips(catalog.clips, config.seed, fixed)
    if fixed is not None:
        added = sum(clip.name not in fixed for clip in catalog.clips)
        gone = len(fixed.keys() - {clip.name for clip in catalog.clips})
        if added == len(catalog.clips):
            raise DataError(f"--split-file {config.split_file} names none of the clips here; it is of other data.")
        log.say(f"split as in {config.split_file}; {added} clips are not in it, {gone} of its clips are not here")
    lacking = missing_classes(catalog.clips, sides)
    unusable = [(side, label) for side, label in lacking if side != "test"]
    if unusable:
        side, label = unusable[0]
        if fixed is not None:
            raise DataError(f"--split-file {config.split_file} leaves no clip of {label!r} for {side}.")
        groups = len({clip.group for clip in catalog.clips if clip.label == label})
        raise DataError(
            f"no clip of {label!r} is left for {side}: its clips fall into {groups} groups, and a group is never "
            "divided; at least 3 groups of each class are needed, or --recipe original, which holds nothing out."
        )
    for _, label in lacking:
        log.note(f"no clip of {label!r} is among the test clips, so nothing can be said of it.")
    counts = Counter(sides.values())
    log.say(", ".join(f"{side} {counts[side]}" for side in ("train", "validation", "test")) + " clips")
    return sides


def _resolved(config: TrainConfig, job: Job) -> TrainConfig:
    """Fills in what was left to be chosen, so that config.yaml repeats the run elsewhere."""
    spec = job.spec
    return replace(
        config,
        classes=spec.classes,
        event=spec.event,
        num_frames=spec.num_frames,
        every=spec.step.every if spec.step.fps is None else None,
        fps=spec.step.fps,
        resize=spec.preprocessing.resize[0],
        crop=spec.preprocessing.crop[0],
        precision=job.precision,
        weights=config.weights if config.weights in (KINETICS, "none") else str(Path(config.weights).resolve()),
        split_file=None if config.split_file is None else config.split_file.resolve(),
    )


def _write_clips(path: Path, job: Job, skipped: dict[str, Skip] | None = None) -> None:
    rows: list[dict[str, Any]] = []
    for clip in job.catalog.clips:
        short = clip.stepped_frames < job.spec.num_frames
        status = f"short: {clip.stepped_frames} frames, repeated" if short else "ok"
        if skipped and clip.name in skipped:
            status = f"skipped: {skipped[clip.name].reason}"
        rows.append(
            {
                "path": clip.name,
                "label": clip.label,
                "group": clip.group,
                "split": job.sides[clip.name],
                "frames": clip.num_frames,
                "fps": None if clip.fps is None else f"{clip.fps:g}",
                "seconds": None if clip.seconds is None else f"{clip.seconds:.3f}",
                "status": status,
            }
        )
    left_out: Sequence[Skip] = (*job.catalog.skipped, *job.catalog.too_short)
    rows += [
        {"path": skip.name, "label": skip.name.split("/")[0], "status": f"skipped: {skip.reason}"} for skip in left_out
    ]
    write_csv(path, CLIPS_COLUMNS, sorted(rows, key=lambda row: str(row["path"])))

"""The training loop: fit, epoch by epoch, then save and evaluate."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from tillwatch.clip_spec import ClipSpec
from tillwatch.config import TrainConfig, to_yaml
from tillwatch.data.catalog import CLIPS_CSV, Skip
from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.loader import evaluation_loader, training_loader
from tillwatch.data.sampler import BalancedSampler, derive_seed
from tillwatch.data.transforms import train_transform
from tillwatch.errors import DataError, RunError
from tillwatch.evaluation.evaluate import Evaluation, evaluate_split
from tillwatch.evaluation.metrics import balanced_accuracy
from tillwatch.files import write_text
from tillwatch.models.backbones import KINETICS, build_model
from tillwatch.models.folded import fold
from tillwatch.models.saved import (
    Classifier,
    eval_transform_of,
    read_classes,
    save_model,
    save_state_dict,
    true_fp32,
)
from tillwatch.training.prepare import Job, paths_read, prepare, resolved
from tillwatch.training.run_folder import check_run_folder, claim_run_folder, write_clips
from tillwatch.training.runlog import EpochMetrics, RunLog

# Streams of random numbers that must not meet.
_INIT, _STEP = 1, 2


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
    check_run_folder(out, config.overwrite, reads=paths_read(data, config))
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
        write_text(out / "config.yaml", to_yaml(resolved(config, job), data.resolve(), out))
        write_clips(out / CLIPS_CSV, job)
        network, skipped = fit(network, job, config, out, log)
    for skip in skipped.values():
        log.note(f"{skip.name} was left out: {skip.reason}.")
    if skipped:
        write_clips(out / CLIPS_CSV, job, skipped)
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


def _keeps_head(weights: str, spec: ClipSpec, log: RunLog) -> bool:
    """Whether the last layer of other weights may be kept: only if its outputs are known to be the same classes."""
    if weights in (KINETICS, "none"):
        return False
    folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    same = read_classes(folder) == spec.classes
    log.say(f"starting from {weights}, with {'its last layer' if same else 'a new last layer'}")
    return same

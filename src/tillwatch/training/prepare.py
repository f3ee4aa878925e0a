"""Settings, data and weights to a Job: everything that can fail before the first step, the cheapest first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from tillwatch.clip_spec import ClipSpec, FrameStep, Lengths, Preprocessing, Size, choose_event
from tillwatch.config import TrainConfig, default_workers
from tillwatch.data.catalog import Catalog, Clip, Search, look_into, search_folder, too_many_skipped
from tillwatch.data.provenance import EXTRACTION_JSON, Extraction, read_extraction
from tillwatch.data.splits import missing_classes, read_split_file, split_clips
from tillwatch.errors import ConfigError, DataError
from tillwatch.models.backbones import KINETICS, backbone, check_input_size, fetch_kinetics
from tillwatch.models.saved import choose_device
from tillwatch.training.runlog import RunLog


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
    workers = default_workers() if config.workers is None else config.workers
    return Job(spec=spec, catalog=catalog, sides=sides, device=device, precision=precision, workers=workers)


def resolved(config: TrainConfig, job: Job) -> TrainConfig:
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


def paths_read(data: Path, config: TrainConfig) -> list[Path]:
    """Returns the files and folders that a training reads, the data folder first."""
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

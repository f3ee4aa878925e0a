"""Settings, data and weights to a Job: everything that can fail before the first step, the cheapest first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tillwatch.clip_spec import ClipSpec, FrameStep, Lengths, Preprocessing, Size, choose_event, draft_for
from tillwatch.config import NO_SYNC_ON_CPU, TrainConfig, default_workers
from tillwatch.data.catalog import OWN_GROUPS, Catalog, Clip, Search, look_into, search_folder, too_many_skipped
from tillwatch.data.fingerprints import bytes_of
from tillwatch.data.footage import measure_footage
from tillwatch.data.provenance import EXTRACTION_JSON, Extraction, read_extraction
from tillwatch.data.splits import missing_classes, n_groups, read_split_file, split_clips
from tillwatch.data.store import ClipStore, store_folder
from tillwatch.errors import ConfigError, DataError
from tillwatch.evaluation.audit_report import AuditReport
from tillwatch.models.architectures import architecture, check_input_size
from tillwatch.models.backbones import KINETICS, fetch_kinetics
from tillwatch.models.motion import ARCH as MOTION
from tillwatch.models.precision import Precision, PrecisionName, check_compiler, choose_precision
from tillwatch.models.saved import choose_device
from tillwatch.training.auditing import Audited, audit_catalog, check_groups
from tillwatch.training.recorded import Recorded
from tillwatch.training.runlog import RunLog
from tillwatch.training.tracking import check_trackers


@dataclass(frozen=True, kw_only=True)
class Early:
    """The first epochs, on fewer frames and pixels.

    Attributes:
        epochs: how many.
        num_frames, crop: of each clip; (height, width) in pixels.
    """

    epochs: int
    num_frames: int
    crop: Size


@dataclass(frozen=True, kw_only=True)
class Job:
    """What training is made of, settled before the first step.

    Attributes:
        spec: the contract.
        catalog: what the data folder holds.
        sides: the side of each clip by name.
        sizes: the bytes of each clip's files by name, as :func:`~tillwatch.data.fingerprints.bytes_of` has them; of
            those that are gone, what they had when the run began.
        device, precision: where and how, "cpu" or "cuda", "fp32", "bf16" or "fp16".
        workers: processes that read clips.
        store: keeps decoded clips; None decodes them each time.
        audit: what the audit says of the clips, written as audit.json; None if the run has that already.
        early: what the first epochs train on instead; None if all train on the full size.
    """

    spec: ClipSpec
    catalog: Catalog
    sides: dict[str, str]
    sizes: Mapping[str, str]
    device: str
    precision: PrecisionName
    workers: int
    audit: AuditReport | None
    store: ClipStore | None = None
    early: Early | None = None

    def side(self, name: str) -> list[Clip]:
        """Returns the clips of one side."""
        return [clip for clip in self.catalog.clips if self.sides[clip.name] == name]


def prepare(
    data: Path,
    config: TrainConfig,
    log: RunLog,
    *,
    split: bool = True,
    divide_groups: bool = False,
    recorded: Recorded | None = None,
) -> Job:
    """Settles everything that can fail before the first step, the cheapest first.

    Args:
        data, config, log: as training takes them.
        split: False leaves every clip for training, and the dividing to :func:`on_split`.
        divide_groups: follow the split file even where it divides a group, to show what that leaks.
        recorded: clips, groups and sides of the run that goes on; then nothing is audited or divided anew.

    Raises:
        ConfigError, DataError, ModelError: if settings, data or weights cannot be used.
    """
    config = settled(config)
    check_trackers(config.log or ())
    num_frames, resize, crop = _sizes(config)
    check_input_size(config.arch, num_frames, crop)
    early = _early(config, num_frames, crop)
    device = choose_device(config.device)
    if config.sync_batchnorm and device == "cpu":
        raise ConfigError(NO_SYNC_ON_CPU)
    precision = _precision(config, device)
    if config.freeze == "backbone" and config.weights == "none":
        log.note("--freeze backbone with --weights none freezes random weights; give weights that know something.")
    if config.compile:
        check_compiler()
    search = search_folder(data, config.classes)
    if len(search.classes) < 2:
        raise DataError(
            f"{data} has one class only, {search.classes[0]}; a classifier needs clips of something else too, "
            "in a second class folder."
        )
    event = choose_event(search.classes, config.event)
    check_groups(search, config)
    store = ClipStore(store_folder(config.cache_folder, data)) if config.cache else None
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
        if note != OWN_GROUPS:
            log.note(note)
    for skip in (*catalog.skipped, *catalog.too_short):
        log.note(f"{skip.name} left out: {skip.reason}.")
    if refusal := too_many_skipped(catalog, config.max_skipped):
        raise DataError(refusal)
    for label, count in catalog.class_counts.items():
        if not count:
            raise DataError(f"no clip of {label!r} can be used; each was left out for the reason given above.")
    sizes = bytes_of(catalog.clips)
    audit: AuditReport | None = None
    if recorded is not None:
        sizes = recorded.sizes | sizes
        catalog, sides = recorded.restore(catalog, sizes, data, step, config.max_skipped, log.note)
    else:
        audited = _audit(catalog, event, config, num_frames, store, log)
        if config.hold_out and not divide_groups:
            claim = audited.report.claim
            log.say(f"what the score can claim: {claim.can} What it cannot: {claim.cannot}")
        catalog, audit = audited.catalog, audited.report
        sides = _split(catalog, config, log, divide_groups) if split else {clip.name: "train" for clip in catalog.clips}
    known = architecture(config.arch)
    clip_seconds, clip_frames = _lengths(catalog, sides)
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
            draft=draft_for(resize),
        ),
        clip_seconds=clip_seconds,
        clip_frames=clip_frames,
    )
    counts = ", ".join(f"{name} {count}" for name, count in catalog.class_counts.items())
    groups = len({clip.group for clip in catalog.clips})
    log.say(f"{len(catalog.clips)} clips in {groups} groups: {counts}; the event is {', '.join(event)}")
    log.say(f"{config.arch} on {device}, {num_frames} x {crop[0]} x {crop[1]}, {step}")
    log.say(f"precision {precision.name}: {precision.why}")
    if early is not None:
        log.say(f"the first {early.epochs} epochs on {early.num_frames} x {early.crop[0]} x {early.crop[1]}")
    if store is not None:
        gigabytes = len(catalog.clips) * num_frames * resize[0] * resize[1] * 3 / 1e9
        log.say(f"decoded clips are kept in {store.folder}, up to {gigabytes:.1f} GB (tillwatch cache; --no-cache)")
    return Job(
        spec=spec,
        catalog=catalog,
        sides=sides,
        sizes=sizes,
        device=device,
        precision=precision.name,
        workers=default_workers() if config.workers is None else config.workers,
        audit=audit,
        store=store,
        early=early,
    )


def on_split(job: Job, config: TrainConfig, log: RunLog, *, divide_groups: bool = False) -> Job:
    """Returns a job with its clips divided anew; they are not looked at again, nor is anything said of them.

    Args:
        job: prepared from the same data and settings, but for split, seed and epochs.
        config, log, divide_groups: as :func:`prepare` takes them.

    Raises:
        DataError: if a side is left without a class.
    """
    sides = _split(job.catalog, config, log, divide_groups)
    clip_seconds, clip_frames = _lengths(job.catalog, sides)
    return replace(
        job,
        sides=sides,
        spec=replace(job.spec, clip_seconds=clip_seconds, clip_frames=clip_frames),
        early=_early(settled(config), job.spec.num_frames, job.spec.preprocessing.crop),
    )


def resolved(config: TrainConfig, job: Job) -> TrainConfig:
    """Fills in what was left to be chosen, so that config.yaml repeats the run elsewhere."""
    config, spec = settled(config), job.spec
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
        cache_folder=None if config.cache_folder is None else config.cache_folder.resolve(),
    )


def with_hours(config: TrainConfig, log: RunLog) -> TrainConfig:
    """Measures ``normal_footage``, if it is given, and puts its hours in its place, so that a repeat needs it no more.

    Raises:
        DataError: if it holds no video whose length can be told.
    """
    if config.normal_footage is None:
        return config
    footage = measure_footage(config.normal_footage)
    for skip in footage.skipped:
        log.note(f"footage {skip.name} left out: {skip.reason}.")
    log.say(f"normal footage: {footage.hours:.4g} h in {footage.videos} videos")
    return replace(config, normal_hours=footage.hours, normal_footage=None)


def settled(config: TrainConfig) -> TrainConfig:
    """Settles what the motion model leaves open: it starts from nothing, on the CPU, on whole frames.

    Raises:
        ConfigError: if it is asked for what only networks have.
    """
    if config.arch != MOTION:
        return config
    for said, name in (
        (config.weights not in (KINETICS, "none"), "--weights"),
        (config.freeze != "none", "--freeze"),
        (config.compile, "--compile"),
        (bool(config.early_share), "--early-share, or --recipe fast"),
        (config.precision not in ("auto", "fp32"), f"--precision {config.precision}"),
        (config.device == "cuda", "--device cuda"),
        (config.save_as is not None, "--save-as"),
        (config.devices * config.num_nodes > 1, "--devices and --num-nodes"),
        (config.batch_size == "auto", "--batch-size auto"),
        (config.accumulate != 1, "--accumulate"),
        (config.checkpoint_activations, "--checkpoint-activations"),
    ):
        if said:
            raise ConfigError(f"--arch {MOTION} is trees and no network, so it has no use for {name}; drop it.")
    if config.crop is not None and config.resize not in (None, config.crop):
        raise ConfigError(f"--arch {MOTION} looks at whole frames; drop --crop {config.crop}, or give no --resize.")
    size = config.resize or config.crop
    return replace(config, weights="none", device="cpu", normalize=False, resize=size, crop=size)


def paths_read(data: Path, config: TrainConfig) -> list[Path]:
    """Returns the files and folders that a training reads, the data folder first."""
    paths = [data] if config.split_file is None else [data, config.split_file]
    return paths if config.weights in (KINETICS, "none") else [*paths, Path(config.weights)]


def _sizes(config: TrainConfig) -> tuple[int, Size, Size]:
    """Returns frames, resize and crop, the network's own where nothing else is said."""
    known = architecture(config.arch)
    resize, crop = config.resize or known.resize, config.crop or known.crop
    if crop > resize:
        raise ConfigError(
            f"--crop {crop} is larger than --resize {resize}; {config.arch} takes {known.resize} and {known.crop} "
            "unless told: give both."
        )
    return config.num_frames or known.num_frames, (resize, resize), (crop, crop)


def _precision(config: TrainConfig, device: str) -> Precision:
    if config.arch == MOTION:
        return Precision("fp32", "flow and trees are computed by OpenCV and scikit-learn")
    if config.freeze == "backbone" and config.precision == "auto":
        return Precision("fp32", "as scores are: the backbone is run once")
    return choose_precision(config.precision, device, config.arch)


def _early(config: TrainConfig, num_frames: int, crop: Size) -> Early | None:
    """Returns what ``--early-share`` asks for, at sizes that the network can take."""
    if not config.early_share:
        return None
    known = architecture(config.arch)
    if known.fixed:
        raise ConfigError(f"{config.arch} takes clips of one size only; drop --early-share, or --recipe fast.")
    if not config.early_epochs:
        return None
    frames = max(known.min_frames, min(2, num_frames), round(num_frames * config.early_frames))
    side = max(known.min_crop, round(crop[0] * config.early_pixels))
    check_input_size(config.arch, frames, (side, side))
    return Early(
        epochs=config.early_epochs, num_frames=min(frames, num_frames), crop=(min(side, crop[0]), min(side, crop[1]))
    )


def _lengths(catalog: Catalog, sides: Mapping[str, str]) -> tuple[Lengths | None, Lengths | None]:
    """Returns how long the clips to learn from are, in seconds and in frames."""
    learnt_from = [clip for clip in catalog.clips if sides[clip.name] == "train"]
    seconds = Lengths.of([s for clip in learnt_from if (s := clip.seconds) is not None])
    return seconds, Lengths.of([clip.stepped_frames for clip in learnt_from])


def _audit(
    catalog: Catalog, event: tuple[str, ...], config: TrainConfig, num_frames: int, store: ClipStore | None, log: RunLog
) -> Audited:
    """Audits the clips before the split, and says what it found of copies, groups and cues."""
    with log.progress("looking for copies and scenes") as on_clip:
        audited = audit_catalog(catalog, event, config, num_frames=num_frames, store=store, on_clip=on_clip)
    for note in audited.notes:
        log.note(note)
    report = audited.report
    for finding in report.findings:
        if finding.severity == "problem" and finding.kind != "damaged":
            log.note(finding.text)
    kinds = Counter(finding.kind for finding in report.findings)
    found = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "nothing to say"
    log.say(f"audit of {report.clips} clips in {audited.seconds:.1f} s: {found} (audit.json)")
    return audited


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


def _split(catalog: Catalog, config: TrainConfig, log: RunLog, divide_groups: bool) -> dict[str, str]:
    """Returns the side of each clip, and says what the split lacks."""
    if not config.hold_out:
        log.note("all clips are trained on and nothing is held out, so the report will be no estimate of anything.")
        return {clip.name: "train" for clip in catalog.clips}
    fixed = None if config.split_file is None else read_split_file(config.split_file)
    clips = [replace(clip, group=clip.name) for clip in catalog.clips] if divide_groups else catalog.clips
    sides = split_clips(clips, config.seed, fixed)
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
            f"no clip of {label!r} is left for {side}: its clips fall into {n_groups(groups)}, and a group is never "
            "divided; at least 3 groups of each class are needed, or --recipe original, which holds nothing out."
        )
    for _, label in lacking:
        log.note(f"no clip of {label!r} is among the test clips, so nothing can be said of it.")
    counts = Counter(sides.values())
    log.say(", ".join(f"{side} {counts[side]}" for side in ("train", "validation", "test")) + " clips")
    return sides

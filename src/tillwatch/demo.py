"""The whole main job on rendered till videos: extract, train, evaluate on unseen cameras, predict."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tillwatch.clip_spec import FrameStep
from tillwatch.config import TrainConfig
from tillwatch.data.extraction import extract
from tillwatch.data.provenance import Extraction
from tillwatch.data.synthetic import CLASSES, THEFT, Camera, make_camera, render_clip, write_video
from tillwatch.errors import RunError, one_line
from tillwatch.evaluation.evaluate import Evaluation
from tillwatch.files import write_csv
from tillwatch.models.saved import load_model
from tillwatch.training.loop import train
from tillwatch.training.runlog import RunLog

#: Cameras of each side; every one of them films CLIPS_PER_CAMERA clips, half of each class.
CAMERAS = {"train": 24, "validation": 4, "test": 15}
CLIPS_PER_CAMERA = 8

#: Smaller and faster than the default, so that two cores need minutes; a real task wants the default.
DEMO_SETTINGS: dict[str, Any] = {
    "num_frames": 8,
    "resize": 56,
    "crop": 48,
    "batch_size": 8,
    "epochs": 6,
    "lr": 5e-4,
}


@dataclass(frozen=True, kw_only=True)
class DemoVideos:
    """Where the rendered videos lie, the split by camera, and one video that is in neither."""

    folder: Path
    split_file: Path
    unseen: Path


def render_videos(out: Path, seed: int) -> DemoVideos:
    """Writes the demo's videos: ``videos/<class>/<camera>_<number>.mp4``, clips.csv and split.csv.

    Args:
        out: an existing folder.
        seed: of cameras and films.
    """
    videos = out / "videos"
    for label in CLASSES:
        (videos / label).mkdir(parents=True)
    rows, number = [], 0
    sides = [side for side, count in CAMERAS.items() for _ in range(count)]
    camera: Camera | None = None
    for camera_number, side in enumerate(sides):
        camera = make_camera(f"camera{camera_number:02d}", _mix(seed, camera_number))
        for number in range(CLIPS_PER_CAMERA):
            label = CLASSES[number % 2]
            name = f"{label}/{camera.name}_{number:02d}"
            film = render_clip(camera, label, _mix(seed, camera_number, number + 1))
            write_video(film, videos / f"{name}.mp4")
            rows.append({"path": f"{name}.mp4", "label": label, "group": camera.name, "split": side})
    assert camera is not None
    write_csv(videos / "clips.csv", ("path", "label", "group", "split"), rows)
    split_rows = [{"path": row["path"].removesuffix(".mp4"), "split": row["split"]} for row in rows]
    write_csv(out / "split.csv", ("path", "split"), split_rows)
    unseen = out / "unseen.mp4"
    write_video(render_clip(camera, THEFT, _mix(seed, len(sides), number)), unseen)
    return DemoVideos(folder=videos, split_file=out / "split.csv", unseen=unseen)


def extract_frames(videos: DemoVideos, dst: Path, log: RunLog) -> None:
    """Extracts every frame of the rendered videos."""
    with log.progress("extracting") as on_clip:
        settings = Extraction(step=FrameStep())
        extract(videos.folder, dst, settings, workers=os.cpu_count() or 1, on_clip=on_clip)


def run_demo(out: Path, seed: int = 0, overwrite: bool = False, log: RunLog | None = None) -> Evaluation:
    """Runs the main job end to end and says where everything is.

    Args:
        out: a folder for videos, frames and the run.
        seed: of the videos and of training.
        overwrite: replace an older demo in ``out``.
        log: where to say what happens.

    Returns:
        The evaluation on the cameras that were never trained on.

    Raises:
        RunError: if ``out`` holds something else or cannot be written.
    """
    log = log or RunLog()
    _claim(out, overwrite)
    started = time.perf_counter()
    clips = sum(CAMERAS.values()) * CLIPS_PER_CAMERA
    log.say(f"1. rendering {clips} till-camera videos, {sum(CAMERAS.values())} cameras: {out / 'videos'}")
    videos = render_videos(out, seed)
    log.say("   a theft is a deposit played backwards: both hold the same frames, and only their order differs")

    log.say(f"2. extracting their frames: {out / 'frames'}")
    extract_frames(videos, out / "frames", log)

    log.say(
        f"3. training r2plus1d_18 from nothing on {CAMERAS['train']} cameras; "
        f"{CAMERAS['validation']} validate, {CAMERAS['test']} are kept for the test"
    )
    log.say(f"   set for two cores, not for quality: {', '.join(f'{k} {v}' for k, v in DEMO_SETTINGS.items())}")
    # Nothing is kept in the user's cache folder: what the demo makes stays in its own.
    own: dict[str, Any] = {"weights": "none", "split_file": videos.split_file, "seed": seed, "cache": False}
    config = TrainConfig(classes=CLASSES, **own, **DEMO_SETTINGS)
    evaluation = train(out / "frames", out / "run", config, log)

    log.say(f"4. measured on {len(evaluation.scores.clips)} clips of the cameras never trained on:")
    log.say(f"\n{evaluation.metrics.report_text}")
    log.say(f"   held-out accuracy {evaluation.metrics.accuracy:.3f}, AUROC {evaluation.metrics.event_auroc:.3f}")

    log.say(f"5. one more video, a theft seen by a test camera: {videos.unseen}")
    prediction = load_model(out / "run").predict(videos.unseen)
    scores = ", ".join(f"{name} {p:.3f}" for name, p in prediction.probabilities.items())
    log.say(f"   predicted {prediction.predicted} ({scores})")
    log.say(f"\ndone in {time.perf_counter() - started:.0f} s.\n\n{_next_steps(out)}")
    return evaluation


def _next_steps(out: Path) -> str:
    return f"""Where everything is:
  {out / "videos"}  the videos, one folder for each class, with clips.csv naming their cameras
  {out / "frames"}  their frames
  {out / "run"}  the model (model.pth, model.json), its figures (evaluation.json,
      report.html to read), every score (predictions.csv) and the split (clips.csv)

What the figures mean: recall is the share of thefts found, precision the share of alarms that are right.
They hold for rendered scenes. Your own videos are harder; their figures are the ones that count.

With your own videos, in folders named after their classes (my_videos/cashlifting, my_videos/normal):
  tillwatch extract my_videos my_frames
  tillwatch train my_frames --out my_run
  tillwatch predict my_run some_video.mp4"""


def _claim(out: Path, overwrite: bool) -> None:
    parts = [out / name for name in ("videos", "frames", "run", "split.csv", "unseen.mp4")]
    try:
        if out.exists() and any(out.iterdir()):
            if not overwrite:
                raise RunError(f"{out} exists already; give another --out, or --overwrite to replace the demo in it.")
            if not (out / "split.csv").is_file():
                raise RunError(f"{out} holds files but no demo, so --overwrite does not touch it; give another --out.")
            for part in parts:
                if part.is_dir():
                    shutil.rmtree(part)
                else:
                    part.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out} cannot be written ({error.strerror or one_line(error)}); give another --out.") from None


def _mix(*numbers: int) -> int:
    """Returns one seed for a tuple of small numbers; different tuples get different seeds."""
    mixed = 0
    for number in numbers:
        mixed = mixed * 1000 + number
    return mixed

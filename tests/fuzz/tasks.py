"""What is done with damaged files, as users' data come to Tillwatch. Each returns "read", or the reason why not."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from conftest import TINY
from fuzz.mutations import damaged, damaged_json, damaged_yaml
from fuzz.watched import Task

from tillwatch import cli
from tillwatch.clip_spec import Reading
from tillwatch.config import TrainConfig, read_yaml, to_yaml
from tillwatch.data.catalog import find_clips
from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.fingerprints import fingerprint_of
from tillwatch.data.loader import evaluation_loader
from tillwatch.data.store import ClipStore
from tillwatch.data.transforms import train_transform
from tillwatch.detection.sampling import Sampler
from tillwatch.detection.windows import Grid
from tillwatch.errors import DataError
from tillwatch.training import loop

_FRAMES = 4


def faults(folder: Path) -> Task:
    """What a watcher must notice."""
    kept: list[bytes] = []

    def task(number: int) -> str:
        if (folder / str(number)).exists():
            raise AssertionError("it is done twice")
        (folder / str(number)).touch()
        if number == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        while number == 2:
            pass
        if number == 3:
            time.sleep(600)
        if number == 4:
            warnings.warn("said to nobody", UserWarning, stacklevel=1)
        if number > 20:
            kept.append(b"x" * 2_000_000)
        return "read"

    return task


def images(folder: Path, seed: int, kinds: Sequence[tuple[str, bytes]]) -> Task:
    """Damaged images, each the only frame of a clip beside a whole one."""
    others = [content for _, content in kinds]
    whole = folder / "data" / "normal" / "whole"
    whole.mkdir(parents=True, exist_ok=True)
    (whole / kinds[0][0]).write_bytes(kinds[0][1])

    def task(number: int) -> str:
        rng = np.random.default_rng([seed, number])
        clip = folder / "data" / "theft" / f"clip{number}"
        clip.mkdir(parents=True)
        name, content = kinds[number % len(kinds)]
        (clip / name).write_bytes(damaged(content, others, rng))
        try:
            return _as_data(folder, clip)
        finally:
            shutil.rmtree(clip.parent)

    return task


def videos(folder: Path, seed: int, kinds: Sequence[tuple[str, bytes]]) -> Task:
    """Damaged videos, each a clip beside a whole one, and then footage to scan."""
    others = [content for _, content in kinds]
    whole = folder / "data" / "normal" / "whole.mp4"
    whole.parent.mkdir(parents=True, exist_ok=True)
    whole.write_bytes(kinds[0][1])

    def task(number: int) -> str:
        rng = np.random.default_rng([seed, number])
        name, content = kinds[number % len(kinds)]
        clip = folder / "data" / "theft" / f"clip{number}_{name}"
        clip.parent.mkdir(parents=True)
        clip.write_bytes(damaged(content, others, rng))
        try:
            return f"{_as_data(folder, clip)}; {_as_footage(clip)}"
        finally:
            shutil.rmtree(clip.parent)

    return task


def _as_data(folder: Path, damaged_clip: Path) -> str:
    """Finds it and reads it twice, the second time from the store, and a batch of it, as training and audit do."""
    catalog = find_clips(folder / "data", num_frames=_FRAMES)
    names = [clip.name for clip in catalog.clips]
    skipped = {skip.name: skip.reason for skip in catalog.skipped}
    name = damaged_clip.relative_to(folder / "data").as_posix()
    assert any(other.startswith("normal/whole") for other in names), "a whole clip was lost"
    assert (name in names) != (name in skipped), "it is neither there nor named as skipped"
    if name in skipped:
        assert skipped[name].strip()
        return "skipped by the catalog"
    store = ClipStore(folder / "cache")
    dataset = VideoFrameDataset(
        folder, catalog.classes, _FRAMES, train_transform((28, 28), (24, 24)), clips=catalog.clips, store=store
    )
    fingerprint_of(catalog.clips[names.index(name)])
    read = [_read(dataset, names.index(name)) for _ in range(2)]
    lost = {skip.name: skip.reason for batch in evaluation_loader(dataset, 2) for skip in batch.skipped}
    assert (read[0] is None) == (read[1] is None) == (name in lost), "it can be read at times"
    assert read[0] is None or np.array_equal(read[0], read[1]), "the store keeps something else"
    assert store.trouble is None, store.trouble
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return "read" if read[0] is not None else "named in its batch"


def _read(dataset: VideoFrameDataset, index: int) -> Any:
    try:
        frames = dataset.read(index)
    except DataError as error:
        _named(dataset.clips[index].path, error)
        return None
    assert frames.shape == (_FRAMES, 28, 28, 3)
    assert frames.dtype == np.uint8
    return np.array(frames)


def _named(path: Path, error: DataError) -> None:
    """Asserts that an error tells which file it is about."""
    assert path.name in str(error), "it is not named"


def _as_footage(path: Path) -> str:
    """Reads its windows of half a second, as scan does."""
    grid = Grid(length=Fraction(1, 2), stride=Fraction(1, 4))
    sampler = Sampler(path, {"all": None}, grid, Reading(num_frames=_FRAMES, resize=(28, 28)), threads=2)
    count = 0
    try:
        for shown in sampler.read():
            assert shown.frames.shape == (_FRAMES, 28, 28, 3)
            count += 1
    except DataError as error:
        _named(path, error)
        return "left out of a scan"
    return f"{'part ' if sampler.notes else ''}scanned"


def configurations(folder: Path, seed: int, data: Path) -> Task:
    """Damaged configuration files, each given to ``train``."""
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    os.environ["TILLWATCH_CACHE"] = str(folder / "cache")
    options: dict[str, Any] = {"epochs": 1, "num_frames": _FRAMES, "group_pattern": r"day\d", "precision": "fp32"}
    config = TrainConfig(**{**TINY, **options})
    # Without places to write to: a damaged one would be made.
    values = {name: value for name, value in _settings(config, folder).items() if name not in ("data", "out")}
    others = [
        b"epochs: 1\nlr: 0.01\n",
        b"classes: [theft, normal]\nevent: theft\n",
        b"{data: [a, {b: c}]}",
        b"&a *a | > \t- ? !!",
    ]
    fit: Callable[..., Any] = loop.fit

    def shortly(network: Any, learner: Any, feed: Any, job: Any, config: TrainConfig, *rest: Any) -> Any:
        return fit(network, learner, feed, job, replace(config, epochs=min(config.epochs, 2)), *rest)

    vars(loop)["fit"] = shortly

    def task(number: int) -> str:
        path, run = folder / f"config{number}.yaml", folder / f"run{number}"
        path.write_bytes(damaged_yaml(values, others, np.random.default_rng([seed, number])))
        code, said = _command(["train", str(data), "--out", str(run), "--config", str(path)])
        began = "--resume" in said or "Try a lower --lr" in said  # a rate of 1e300 shows in training alone
        assert code == 0 or began or not run.exists(), f"{said} and yet there is a run"
        if code == 0:
            assert (run / "report.html").is_file()
        shutil.rmtree(run, ignore_errors=True)
        path.unlink()
        return said or "a valid run"

    return task


def models(folder: Path, seed: int, run: Path, clip: Path) -> Task:
    """Damaged model.json files, each used to predict and to scan."""
    record = json.loads((run / "model.json").read_text())
    copied = folder / "model"
    shutil.copytree(run, copied)
    others = [(run / "model.json").read_bytes(), b'{"classes": {"a": [1, 2]}}', b"[[[[[[NaN]]]]]]"]

    def task(number: int) -> str:
        content = damaged_json(record, others, np.random.default_rng([seed, number]))
        (copied / "model.json").write_bytes(content)
        predicted = _command(["predict", str(copied), str(clip), "--json"])
        scan = folder / f"scan{number}"
        scanned = _command(["scan", str(copied), str(clip), "--out", str(scan), "--window", "0.5"])
        assert scanned[0] == 0 or not scan.exists(), f"{scanned[1]} and yet there is a scan"
        shutil.rmtree(scan, ignore_errors=True)
        return f"{predicted[1] or 'predicted'}; {scanned[1] or 'scanned'}"

    return task


def _settings(config: TrainConfig, folder: Path) -> dict[str, Any]:
    path = folder / "whole.yaml"
    path.write_text(to_yaml(config, folder, folder))
    return dict(read_yaml(path))


def _command(words: list[str]) -> tuple[int, str]:
    """Runs the command line: its exit code and, if that is 2, the line that it says."""
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        try:
            cli.main(words)
        except SystemExit as exited:
            code = int(exited.code or 0)
    if code == 0:
        return 0, ""
    lines = errors.getvalue().splitlines()
    assert code == 2, f"exit code {code}"
    assert len([line for line in lines if line.startswith("tillwatch: error: ")]) == 1, errors.getvalue()
    assert all(line.startswith("tillwatch: ") for line in lines), errors.getvalue()
    assert len(lines[-1]) < 3100, "nobody reads so long a line"
    return 2, lines[-1].removeprefix("tillwatch: error: ")

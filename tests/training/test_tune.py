"""A search of settings: on validation alone, killed and shared, ended by settings that train as they were found."""

from __future__ import annotations

import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apart import start_apart
from PIL import Image
from training import broken_off
from training.broken_off import run_apart

from tillwatch.config import TrainConfig, read_yaml
from tillwatch.data.dataset import VideoFrameDataset
from tillwatch.data.splits import read_split_file
from tillwatch.errors import ConfigError, RunError
from tillwatch.files import read_csv
from tillwatch.locks import release
from tillwatch.training import tune as tuning
from tillwatch.training.loop import train
from tillwatch.training.resume import read_begun
from tillwatch.training.runlog import EpochMetrics
from tillwatch.training.search_space import DEFAULT, Choice, Range, parse_space
from tillwatch.training.tune import tune

pytestmark = pytest.mark.timeout(600)

Config = Callable[..., TrainConfig]
OPTIONS: dict[str, Any] = {"epochs": 3, "group_pattern": r"day\d", "precision": "fp32", "baselines": False}


@pytest.fixture(scope="module")
def searched(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("searched") / "out"
    tune(tiny_run[0], out, tiny_config(**OPTIONS), 4, ["lr=1e-4..1e-1", "dropout=0,0.5"], quiet())
    return out


def test_the_best_settings_train_to_the_loss_that_was_found(
    searched: Path, tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path
) -> None:
    found = tune(tiny_run[0], searched, tiny_config(**OPTIONS), 4, ["lr=1e-4..1e-1", "dropout=0,0.5"], quiet())
    rows = read_csv(searched / "trials.csv")
    assert [row["state"] in ("complete", "pruned") for row in rows] == [True] * 4
    assert (float(rows[0]["lr"]), float(rows[0]["dropout"])) == (0.01, 0.5), "the first is as given"
    losses = {float(row["val_loss"]): row for row in rows if row["val_loss"] and row["state"] == "complete"}
    best = losses[min(losses)]
    assert found.params == {"lr": pytest.approx(float(best["lr"])), "dropout": float(best["dropout"])}
    assert found.best == int(best["trial"])
    words = shlex.split(found.command)
    assert words == ["tillwatch", "train", "--config", str(searched / "best.yaml"), "--out", str(searched / "best")]
    config = read_begun_from(searched / "best.yaml")
    train(Path(str(read_yaml(searched / "best.yaml")["data"])), tmp_path / "run", config, quiet())
    trained = read_csv(tmp_path / "run" / "metrics.csv")
    assert min(float(row["val_loss"]) for row in trained) == pytest.approx(found.val_loss, rel=1e-7)
    sides = {row["path"]: row["split"] for row in read_csv(tmp_path / "run" / "clips.csv")}
    assert sides == read_split_file(searched / "split.csv")


def read_begun_from(path: Path) -> TrainConfig:
    folder = path.parent / "as a run"
    folder.mkdir()
    shutil.copy(path, folder / "config.yaml")
    return read_begun(folder).config


def test_test_clips_are_not_read_and_what_they_show_moves_nothing(
    searched: Path,
    tiny_run: tuple[Path, Path],
    tiny_config: Config,
    quiet: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_run[0], data)
    sides = read_split_file(searched / "split.csv")
    tested = {name for name, side in sides.items() if side == "test"}
    rng = np.random.default_rng(0)
    for name in tested:
        for path in (data / name).iterdir():
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(path)
    read: set[str] = set()
    original = VideoFrameDataset.read

    def spy(self: VideoFrameDataset, index: int) -> Any:
        read.add(self.clips[index].name)
        return original(self, index)

    monkeypatch.setattr(VideoFrameDataset, "read", spy)
    tune(data, tmp_path / "out", tiny_config(**OPTIONS), 4, ["lr=1e-4..1e-1", "dropout=0,0.5"], quiet())
    assert read_csv(tmp_path / "out" / "trials.csv") == read_csv(searched / "trials.csv")
    assert read == set(sides) - tested
    # So does what validates, or this shows nothing.
    for name in (name for name, side in sides.items() if side == "validation"):
        for path in (data / name).iterdir():
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(path)
    tune(data, tmp_path / "other", tiny_config(**OPTIONS), 1, ["lr=1e-4..1e-1", "dropout=0,0.5"], quiet())
    before, after = (read_csv(out / "trials.csv")[0] for out in (searched, tmp_path / "other"))
    assert before["val_loss"] != after["val_loss"]


def test_a_trial_that_was_killed_is_done_again_with_the_same_settings(
    tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_apart(broken_off.search, tiny_run[0], whole, 4) == 0
    assert run_apart(broken_off.search, tiny_run[0], broken, 4, ("step", 14)) == -signal.SIGKILL
    assert run_apart(broken_off.search, tiny_run[0], broken, 4) == 0
    rows = {out: read_csv(out / "trials.csv") for out in (whole, broken)}
    assert [row["state"] for row in rows[broken]].count("fail") == 1
    done = [[(row["lr"], row["val_loss"]) for row in rows[out] if row["state"] != "fail"] for out in (whole, broken)]
    assert len(done[1]) == 4
    assert done[0][:2] == done[1][:2]


class KilledError(BaseException):
    """Ends a search as a kill does, but for what its process holds."""


@pytest.mark.parametrize("moment", ["before it chose", "while it was given up", "while its settings were kept"])
def test_wherever_a_trial_is_killed_its_settings_are_not_lost(
    moment: str,
    tiny_run: tuple[Path, Path],
    tiny_config: Config,
    quiet: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first trial's are the given ones."""
    import optuna

    out = tmp_path / "out"
    arguments = tiny_run[0], out, tiny_config(**{**OPTIONS, "epochs": 1}), 1, ["lr=1e-4..1e-1", "dropout=0,0.5"]

    def killed(*arguments: Any, **options: Any) -> None:
        for path in list(tuning._held):
            release(tuning._held.pop(path))
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "suggest", killed)
        with pytest.raises(KilledError):
            tune(*arguments, quiet())
    if moment != "before it chose":
        owner, name = (optuna.Study, "tell") if moment == "while it was given up" else (tuning, "_do_again")
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            with pytest.raises(KilledError):
                tune(*arguments, quiet())
    assert tune(*arguments, quiet()).trials == 1
    rows = read_csv(out / "trials.csv")
    assert [row["state"] for row in rows] == ["fail", "complete"]
    assert (float(rows[1]["lr"]), float(rows[1]["dropout"])) == (0.01, 0.5)


def test_several_processes_share_the_trials(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    both = [start_apart(broken_off.search, tiny_run[0], tmp_path / "out", 6) for _ in range(2)]
    for process in both:
        process.join(300)
    assert [process.exitcode for process in both] == [0, 0]
    rows = read_csv(tmp_path / "out" / "trials.csv")
    assert sorted(int(row["trial"]) for row in rows) == list(range(6))
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    assert len({row["lr"] for row in rows}) == 6


def test_a_signal_ends_it_and_the_trial_is_done_again(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    said = tmp_path / "said"
    words = ["tune", str(tiny_run[0]), "--out", str(tmp_path / "out"), "--trials", "1", "--epochs", "1"]
    tiny = ["--arch", "tinynet", "--weights", "none", "--workers", "0", "--precision", "fp32"]
    words += ["--group-pattern", r"day\d"]
    act = partial(broken_off.signal_group, signal.SIGTERM, tmp_path / "when")
    assert run_apart(broken_off.command, [*words, *tiny], said, ("step", 2), act) == 128 + signal.SIGTERM
    assert said.read_text().splitlines()[-1] == (
        "tillwatch: interrupted at epoch 1, step 2; this trial is done again; the same tillwatch tune goes on"
    )
    assert run_apart(broken_off.command, [*words, *tiny], said) == 0
    lines = said.read_text().splitlines()
    assert lines[-1].startswith("train with it: tillwatch train --config ")
    rows = read_csv(tmp_path / "out" / "trials.csv")
    assert rows[0]["state"] == "fail"
    assert rows[1]["lr"] == rows[0]["lr"]


def test_what_is_worse_than_the_median_is_broken_off(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0

    def learn(job: Any, config: Any, folder: Path, checkpoints: Any, log: Any) -> None:
        nonlocal taken
        taken += 1
        assert "test" not in job.sides.values()
        level = 0.5 if taken < 6 else 0.9
        so_far: list[EpochMetrics] = []
        for epoch in range(1, 11):
            row = EpochMetrics(
                epoch=epoch,
                train_loss=1.0,
                val_loss=level - epoch / 100,
                val_balanced_accuracy=0.5,
                lr=1e-3,
                seconds=1.0,
                clips_per_s=1.0,
                data_wait_s=0.0,
            )
            so_far.append(row)
            log.epoch(folder, so_far, 10, False)

    monkeypatch.setattr(tuning, "learn_apart", learn)
    log = quiet()
    found = tune(tiny_run[0], tmp_path / "out", tiny_config(**OPTIONS), 6, [], log)
    assert (found.trials, found.pruned, found.best) == (6, 1, 0)
    assert found.val_loss == pytest.approx(0.4)
    assert "broken off after epoch 2, worse than the median" in log.console.export_text()
    assert read_csv(tmp_path / "out" / "trials.csv")[5]["epochs"] == "2"


def test_a_search_of_corrected_labels_is_another(
    labelled_apart: tuple[Path, Callable[..., None]], tiny_config: Config, quiet: Any, tmp_path: Path
) -> None:
    data, label = labelled_apart
    tune(data, tmp_path / "out", tiny_config(epochs=1), 1, ["dropout=0,0.5"], quiet())
    label(theft_day1_1="normal")
    with pytest.raises(RunError, match=r"begun with other labels of 1 \(clips/theft_day1_1\)"):
        tune(data, tmp_path / "out", tiny_config(epochs=1), 2, ["dropout=0,0.5"], quiet())


@contextmanager
def no_more_than(size: int) -> Iterator[None]:
    """Lets SQLite's database grow to so many bytes, as a full disk does."""
    import sqlalchemy

    def limit(connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {size // 4096}")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", limit)
    try:
        yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", limit)


def test_a_search_goes_on_as_it_was_begun(
    searched: Path, tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any
) -> None:
    search = ["lr=1e-4..1e-1", "dropout=0,0.5"]
    config = tiny_config(**OPTIONS)
    with pytest.raises(RunError, match=r"begun with other settings: --batch-size 4 is now 2"):
        tune(tiny_run[0], searched, replace(config, batch_size=2), 9, search, quiet())
    with pytest.raises(RunError, match=r"begun with other settings: --search"):
        tune(tiny_run[0], searched, config, 9, [search[0]], quiet())
    with pytest.raises(RunError, match="exists already"):
        tune(tiny_run[0], tiny_run[1], config, 9, search, quiet())


def test_whatever_its_folder_is_called_a_search_lies_in_it(
    tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path
) -> None:
    """In an address of SQLAlchemy's, what follows a question mark would be options."""
    for name in ("what?x=1", "what?x=2", "50% # of: it"):
        found = tune(tiny_run[0], tmp_path / name, tiny_config(epochs=1), 1, ["dropout=0,0.5"], quiet())
        assert (found.trials, found.best) == (1, 0)
        assert (tmp_path / name / "study.db").is_file()
        assert (tmp_path / name / "trials" / "0000" / "metrics.csv").is_file()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("fault", ["full", "damaged"])
def test_a_database_that_cannot_be_used_is_told_in_a_line(
    fault: str, tiny_run: tuple[Path, Path], tiny_config: Config, quiet: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = tiny_run[0], out, tiny_config(epochs=1), 3, ["dropout=0,0.5"]
    if fault == "full":
        with no_more_than(40 << 10), pytest.raises(RunError, match=r"study\.db .*the same tillwatch"):
            tune(*arguments, quiet())
        assert tune(*arguments, quiet()).trials == 3, "once there is room, it goes on"
    else:
        out.mkdir()
        (out / ".lock").touch()
        (out / "study.db").write_bytes(b"no database at all" * 100)
        with pytest.raises(
            RunError, match=r"study\.db cannot be read or written \(.*file is not a database.*Make room"
        ):
            tune(*arguments, quiet())


@pytest.mark.parametrize(
    ("options", "trials", "message"),
    [
        ({}, 0, "--trials is 0"),
        ({"arch": "motion"}, 3, "--arch motion has no setting"),
        ({"hold_out": False, "plateau_on": "train", "keep": "last"}, 3, "--no-hold-out leaves no validation clips"),
        ({"overwrite": True}, 3, "replaces nothing"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    options: dict[str, Any], trials: int, message: str, tiny_run: tuple[Path, Path], tiny_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(tiny_run[0], tmp_path / "out", tiny_config(**options), trials)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "must be NAME=LOW..HIGH"),
        ("dropuot=0..0.5", "must be NAME=LOW..HIGH .*Did you mean 'dropout'"),
        ("lr=a..2", "could not convert"),
        ("lr=2..1", "low end is not below"),
        ("lr=1..2..3", "too many values"),
        ("lr=", "could not convert"),
        ("lr=nan,1", "nan is not a number"),
        ("lr=1,1", "stands there twice"),
        ("batch_size=1.5,2", "1.5 is not a whole number"),
        ("dropout=0..1", r"--search dropout tries 1: --dropout is 1.0"),
        ("lr=-1..1", "--search lr tries -1: --lr is -1.0"),
    ],
)
def test_a_search_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_space([text], TrainConfig())


def test_what_is_searched() -> None:
    assert parse_space([], TrainConfig()) is DEFAULT
    space = parse_space(["lr=1e-5..1e-2", "--batch-size=2,8", "dropout=0.1..0.4"], TrainConfig())
    assert space == {"lr": Range(1e-5, 1e-2), "batch_size": Choice((2, 8)), "dropout": Range(0.1, 0.4)}
    assert [str(values) for values in space.values()] == ["1e-05..0.01 (by its logarithm)", "2,8", "0.1..0.4"]


def test_optuna_must_be_there(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^tillwatch tune needs optuna: pip install 'tillwatch\[tune\]'.$"):
        tune(tmp_path, tmp_path / "out", tiny_config(), 3)

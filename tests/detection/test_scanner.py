"""tillwatch scan, run for real: what it writes, what a kill costs, and that predict agrees."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tillwatch.cli import main
from tillwatch.clip_spec import UNREACHED, ClipSpec, Lengths, Preprocessing, Roi
from tillwatch.data.playback import timing_of_packets
from tillwatch.detection import batches, sampling, scanner
from tillwatch.detection.batches import _read_ahead
from tillwatch.detection.journal import JOURNAL
from tillwatch.detection.scanner import choose_grid, length_note
from tillwatch.detection.windows import seconds_exactly
from tillwatch.errors import ClipError, ConfigError
from tillwatch.locks import lock, open_held, release
from tillwatch.models.motion import NUM_FEATURES, MotionNetwork, fit_trees
from tillwatch.models.saved import Classifier, OperatingPoint, load_model, save_model, write_operating_point

MakeFootage = Callable[..., Path]
CutLosslessly = Callable[..., Path]
Scan = Callable[..., tuple[int, str, str]]

FILES = {"incidents.csv", "incidents.jsonl", "journal.jsonl", "scan.json", "scores.csv", "timeline.html"}
GRID = ("--window", "1.1", "--stride", "0.5")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES - {"journal.jsonl"}}


@pytest.mark.parametrize(
    ("name", "created", "told"),
    [
        ("door.mp4", "2026-03-01T08:15:00Z", "2026-03-01T08:15:02"),
        ("door_20260302_1000.mp4", "2026-03-01T08:15:00Z", "2026-03-02T10:00:02"),
        ("door.mp4", "1970-01-01T00:00:07Z", ""),  # a clock that was never set
    ],
)
def test_the_wall_clock_is_the_names_else_the_files_own_in_utc(
    name: str, created: str, told: str, tmp_path: Path, make_footage: MakeFootage, scan: Scan
) -> None:
    plain = make_footage(tmp_path / "plain.mp4", range(125), bright=range(50, 80))
    path = tmp_path / name
    with av.open(str(plain)) as container, av.open(str(path), "w") as dated:
        dated.metadata["creation_time"] = created
        stream = dated.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = stream
                dated.mux(packet)
    assert scan(path, "--out", tmp_path / "scan", *GRID, "--threshold", 0.5)[0] == 0
    (incident,) = rows(tmp_path / "scan" / "incidents.csv")
    assert incident["start_time"][:19] == told
    assert incident["start_time"].endswith("+00:00") == (told.startswith("2026-03-01"))
    page = (tmp_path / "scan" / "timeline.html").read_text()
    assert ("2026-03-01 08:15:00 UTC" in page) == told.startswith("2026-03-01")


def test_a_scan_finds_the_event_and_writes_what_it_found(footage: Path, tmp_path: Path, scan: Scan) -> None:
    code, out, err = scan(footage, "--out", tmp_path / "scan", *GRID, "--threshold", 0.5)
    assert (code, err) == (0, "")
    assert {entry.name for entry in (tmp_path / "scan").iterdir()} == FILES
    scores = rows(tmp_path / "scan" / "scores.csv")
    first = [row for row in scores if row["file"] == "till2_20260301_0815.mp4"]
    assert [int(row["window"]) for row in first] == list(range(9))
    assert {row["frames"] for row in first[:-1]} <= {"27", "28"}
    bright = [float(row["event_score"]) for row in first]
    assert max(bright) == max(bright[3:6]) > 0.5 > bright[0]
    (incident,) = rows(tmp_path / "scan" / "incidents.csv")
    assert (incident["camera"], incident["region"], incident["class"]) == ("till2", "whole", "theft")
    assert float(incident["start_s"]) < 2.6 < float(incident["end_s"])
    assert incident["start_time"].startswith("2026-03-01T08:15:0")
    record = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert record["hours"] == pytest.approx((5 + 2.4) / 3600)
    assert incident["model_sha256"] == record["model"]["sha256"] != ""
    page = (tmp_path / "scan" / "timeline.html").read_text()
    assert "till2_20260301_0815.mp4" in page
    assert page.count('class="incident"') == 1
    # Under the strip of 5 s: 1.25 s, 2.5 s and 3.75 s are told to the nearest tenth.
    assert "<span>00:00:01.2</span><span>00:00:02.5</span><span>00:00:03.8</span><span>00:00:05.0</span>" in page
    assert "1 incident in 7.4 s of 2 files" in out


# Frames' ticks, seconds a tick, nominal rate.
RECORDINGS: dict[str, tuple[list[int], Fraction, Fraction]] = {
    "10": (list(range(30)), Fraction(1, 10), Fraction(10)),
    "23.976": ([1001 * n for n in range(72)], Fraction(1, 24_000), Fraction(24_000, 1001)),
    "25": (list(range(75)), Fraction(1, 25), Fraction(25)),
    "29.97": ([1001 * n for n in range(90)], Fraction(1, 30_000), Fraction(30_000, 1001)),
    "30": (list(range(90)), Fraction(1, 30), Fraction(30)),
    "variable": (np.cumsum(np.random.default_rng(5).integers(10, 90, 70)).tolist(), Fraction(1, 1000), Fraction(20)),
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_predict_gives_a_window_the_score_that_scan_wrote(
    name: str,
    tiny_run: tuple[Path, Path],
    tmp_path: Path,
    scan: Scan,
    make_footage: MakeFootage,
    cut_losslessly: CutLosslessly,
) -> None:
    ticks, time_base, rate = RECORDINGS[name]
    bright = range(len(ticks) * 2 // 5, len(ticks) * 2 // 3)
    path = make_footage(tmp_path / "a.mp4", ticks, time_base, rate, bright=bright)
    assert scan(path, "--out", tmp_path / "scan", *GRID)[0] == 0
    classifier = load_model(tiny_run[1], device="cpu")
    scores = rows(tmp_path / "scan" / "scores.csv")
    written = [float(row["event_score"]) for row in scores]
    assert max(written) - min(written) > 0.1  # a wrong window would be noticed
    for row in scores:
        start, end = Fraction(row["start_s"]), Fraction(row["end_s"])
        inside = [n for n, tick in enumerate(ticks) if start <= (tick - ticks[0]) * time_base < end]
        clip = cut_losslessly(path, inside[0], inside[-1] + 1, tmp_path / "clip.mp4")
        assert classifier.predict(clip).event_probability == pytest.approx(float(row["event_score"]), abs=1e-6)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_scan_that_was_killed_goes_on_to_the_same_result(
    after: int, footage: Path, tmp_path: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_SIZE", 4)
    regions = ("--roi", "left=0,0,0.5,1", "--roi", "right=0.5,0,0.5,1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert scan(footage, "--out", whole, *GRID, *regions)[0] == 0
    probabilities = Classifier.probabilities
    scored: list[int] = []

    def dying(self: Classifier, clips: torch.Tensor) -> Any:
        if len(scored) == after:
            raise Killed
        scored.append(len(clips))
        return probabilities(self, clips)

    model = str(json.loads((whole / "scan.json").read_text())["model"]["path"])
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "probabilities", dying)
        with pytest.raises(Killed):
            main(["scan", model, str(footage), "--out", str(killed), *GRID, *regions])
    with (killed / "journal.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"scored": [[0, "left", 1')  # a line that the kill cut off
    assert not (killed / "scores.csv").exists()
    done: list[int] = []

    def counting(self: Classifier, clips: torch.Tensor) -> Any:
        done.append(len(clips))
        return probabilities(self, clips)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "probabilities", counting)
        assert scan(footage, "--out", killed, *GRID, *regions)[0] == 0
    assert results(killed) == results(whole)
    assert [*scored, *done] == [4, 4, 4, 4, 4, 4, 2]  # nothing twice, and batches run on across files


def test_a_finished_scan_gets_another_threshold_without_being_read_again(
    footage: Path, tmp_path: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scan(footage, "--out", tmp_path / "scan", *GRID, "--threshold", 0.5)[0] == 0
    monkeypatch.setattr(batches, "Sampler", None)
    code, out, _ = scan(footage, "--out", tmp_path / "scan", *GRID, "--threshold", 1)
    assert code == 0
    assert "0 incidents" in out
    assert rows(tmp_path / "scan" / "incidents.csv") == []
    assert "None: no window reached the threshold." in (tmp_path / "scan" / "timeline.html").read_text()


def test_another_scan_is_not_overwritten_unasked(
    footage: Path, tmp_path: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scan(footage, "--out", tmp_path / "scan", *GRID)[0] == 0
    before = results(tmp_path / "scan")
    code, _, err = scan(footage, "--out", tmp_path / "scan", "--window", 1)
    assert code == 2
    assert "holds a scan with another window or stride; use another --out, or add --overwrite" in err
    (first, *_) = footage.iterdir()
    assert "another set of files or regions" in scan(first, "--out", tmp_path / "scan", *GRID)[2]
    os.utime(first, (0, 0))
    assert "holds a scan with another state of its files;" in scan(footage, "--out", tmp_path / "scan", *GRID)[2]
    monkeypatch.setattr(scanner, "READING", 0)
    assert "way of reading frames and state of its files;" in scan(footage, "--out", tmp_path / "scan", *GRID)[2]
    assert results(tmp_path / "scan") == before
    assert scan(footage, "--out", tmp_path / "scan", "--window", 1, "--overwrite")[0] == 0
    assert results(tmp_path / "scan") != before


def test_two_scans_never_write_one_folder(footage: Path, tmp_path: Path, scan: Scan) -> None:
    assert scan(footage, "--out", tmp_path / "scan", *GRID)[0] == 0
    before = results(tmp_path / "scan")
    descriptor = open_held(tmp_path / "scan" / JOURNAL, os.O_RDWR)
    lock(descriptor, wait=False)
    try:
        for more in ((), ("--overwrite",)):
            code, _, err = scan(footage, "--out", tmp_path / "scan", *GRID, *more)
            assert code == 2
            assert "another process scans into" in err
    finally:
        release(descriptor)
    assert results(tmp_path / "scan") == before
    assert scan(footage, "--out", tmp_path / "scan", *GRID, "--overwrite")[0] == 0
    assert results(tmp_path / "scan") == before


def test_what_cannot_be_read_is_named_while_the_others_go_on(
    tmp_path: Path, scan: Scan, make_footage: MakeFootage
) -> None:
    make_footage(tmp_path / "f" / "b.mp4", range(40))
    (tmp_path / "f" / "a.mp4").touch()
    (tmp_path / "f" / "c.mp4").write_text("no video")
    for _ in range(2):  # and named again when the finished scan is asked for
        code, out, err = scan(tmp_path / "f", "--out", tmp_path / "scan", *GRID)
        assert code == 3
        assert err.splitlines()[0] == "tillwatch: warning: a.mp4 left out: the file is empty."
        assert err.splitlines()[1].startswith("tillwatch: warning: c.mp4 left out: cannot be read as a video (")
        assert len(err.splitlines()) == 2
        assert "2 files left out" in out
    record = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert [entry["file"] for entry in record["left_out"]] == ["a.mp4", "c.mp4"]
    assert "the file is empty" in (tmp_path / "scan" / "timeline.html").read_text()


def test_a_file_that_did_not_open_is_tried_again(
    tmp_path: Path, scan: Scan, make_footage: MakeFootage, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "f"
    for name in ("a.mp4", "b.mp4"):
        make_footage(folder / name, range(40))
    with monkeypatch.context() as while_the_share_is_gone:

        def gone(path: Path) -> Any:
            if path.name == "a.mp4":
                raise ClipError(f"{path}: cannot be read (Stale file handle).")
            return timing_of_packets(path)

        while_the_share_is_gone.setattr(sampling, "timing_of_packets", gone)
        assert scan(folder, "--out", tmp_path / "scan", *GRID)[0] == 3
    assert scan(folder, "--out", tmp_path / "scan", *GRID)[::2] == (0, "")
    assert scan(folder, "--out", tmp_path / "whole", *GRID)[0] == 0
    assert results(tmp_path / "scan") == results(tmp_path / "whole")


def test_nothing_that_can_be_read_is_an_error(tmp_path: Path, scan: Scan) -> None:
    (tmp_path / "a.mp4").touch()
    code, _, err = scan(tmp_path / "a.mp4", "--out", tmp_path / "scan", *GRID)
    assert code == 2
    assert err.splitlines()[-1].endswith("none of 1 files could be scanned: a.mp4: the file is empty.")
    assert not (tmp_path / "scan").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "say it with --window SECONDS"),  # the tiny clips were frame folders without a rate
        (["--window", "0"], "--window is 0"),
        (["--window", "1", "--stride", "2"], "--stride is 2"),
        (["--window", "nan"], "--window is nan; it must be a number of seconds"),
        ([*GRID, "--threshold", "0"], "--threshold is 0"),
        ([*GRID, "--threshold", "1.01"], "--threshold is 1.01"),
        ([*GRID, "--smoothing", "2"], "--smoothing is 2"),
        ([*GRID, "--roi", "0,0,1,1"], "--roi is '0,0,1,1'"),
        ([*GRID, "--roi", "a=0,0,1,1", "--cameras", "c.yaml"], "--roi and --cameras exclude each other"),
        ([*GRID, "--cameras", "nowhere.yaml"], "--cameras nowhere.yaml cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    flags: list[str], message: str, footage: Path, tmp_path: Path, scan: Scan
) -> None:
    code, _, err = scan(footage, "--out", tmp_path / "scan", *flags)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "scan").exists()


@pytest.mark.parametrize(("make", "message"), [(Path.touch, "is a file"), (Path.mkdir, "is not empty")])
def test_a_folder_of_something_else_is_left_alone(
    make: Callable[[Path], Any], message: str, footage: Path, tmp_path: Path, scan: Scan
) -> None:
    make(tmp_path / "mine")
    if (tmp_path / "mine").is_dir():
        (tmp_path / "mine" / "thesis.txt").touch()
    code, _, err = scan(footage, "--out", tmp_path / "mine", *GRID, "--overwrite")
    assert code == 2
    assert message in err


@pytest.mark.parametrize(("threshold", "found"), [(0.0, "2 incidents"), (UNREACHED, "0 incidents")])
def test_a_model_whose_clips_left_no_threshold_between_scans_all_the_same(
    threshold: float, found: str, footage: Path, tiny_run: tuple[Path, Path], tmp_path: Path, scan: Scan
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.json", "model.pth"):
        shutil.copy(tiny_run[1] / name, model)
    write_operating_point(model, OperatingPoint(threshold=threshold, source="clips"))
    for _ in range(2):  # the second reads what the first wrote
        code, out, _ = scan(footage, "--out", tmp_path / "scan", *GRID, model=model)
        assert code == 0
        assert out.splitlines()[-1].startswith(found)


def test_a_threshold_chosen_on_clips_is_warned_of(footage: Path, tmp_path: Path, scan: Scan) -> None:
    out = scan(footage, "--out", tmp_path / "scan", *GRID)[1].replace("\n", " ")
    assert "was chosen on clips, and is none for incidents" in out
    assert "chosen on clips" not in scan(footage, "--out", tmp_path / "scan", *GRID, "--threshold", "0.5")[1]


def test_a_threshold_is_chosen_on_incidents_and_hours(
    footage: Path, tmp_path: Path, scan: Scan, tiny_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("model.json", "model.pth"):
        (run / name).write_bytes((tiny_run[1] / name).read_bytes())
    truth = tmp_path / "truth.csv"
    truth.write_text("file,start,end\ntill2_20260301_0815,2,3.2\n")

    def calibrate(*flags: object) -> tuple[int, str, str]:
        arguments = [run, footage, "--truth", truth, "--out", tmp_path / "scan", *GRID, *flags]
        with pytest.raises(SystemExit) as exited:
            main(["calibrate", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(str(exited.value.code)), captured.out.replace("\n", " "), captured.err

    before = json.loads((run / "model.json").read_text())
    code, out, err = calibrate("--max-false-alarms-per-hour", 0)
    assert (code, err) == (0, "")
    assert "1 of 1 events found, 0 false alarms" in out
    record = json.loads((run / "model.json").read_text())
    assert record["operating_point"]["unit"] == "incident"
    assert {**record, "operating_point": before["operating_point"]} == before
    code, out, _ = scan(footage, "--out", tmp_path / "scan", *GRID, model=run)
    assert code == 0
    assert "chosen on clips" not in out
    (incident,) = rows(tmp_path / "scan" / "incidents.csv")
    assert float(incident["threshold"]) == record["operating_point"]["threshold"]
    assert incident["operating_point"].startswith("at most 0 false alarms an hour, chosen on incidents in ")
    assert "was chosen with" not in out
    out = scan(footage, "--out", tmp_path / "other", *GRID, "--smoothing", 3, "--gate", "auto", model=run)[1]
    assert "was chosen with --smoothing 1 (now 3), --gate off (now auto), and may" in " ".join(out.split())
    with pytest.raises(SystemExit):
        main(["predict", str(run), str(next(footage.iterdir())), "--device", "cpu"])
    assert "was chosen on incidents in footage, and is none for clips" in capsys.readouterr().err
    for flags, message in (
        (("--min-recall", 2), "--min-recall is 2"),
        (("--max-false-alarms-per-hour", -1), "--max-false-alarms-per-hour is -1"),
        (("--max-false-alarms-per-hour", 1, "--min-recall", 0.5), "exclude each other"),
    ):
        code, _, err = calibrate(*flags)
        assert code == 2
        assert message in err
    truth.write_text("file,start,end\nnowhere.mp4,2,3.2\n")
    assert "names the file 'nowhere.mp4', which is not there" in calibrate()[2]
    assert json.loads((run / "model.json").read_text()) == record


def test_the_motion_model_scans_by_the_same_path(
    tmp_path: Path, scan: Scan, make_footage: MakeFootage, cut_losslessly: CutLosslessly
) -> None:
    rng = np.random.default_rng(0)
    trees = fit_trees(rng.random((24, NUM_FEATURES), np.float32), np.arange(24) % 2)
    spec = ClipSpec(
        arch="motion",
        classes=("theft", "normal"),
        event=("theft",),
        num_frames=6,
        roi=Roi(x=0.25, y=0, width=0.75, height=1),
        preprocessing=Preprocessing(resize=(32, 32), crop=(32, 32), mean=None, std=None),
        clip_seconds=Lengths(median=1.2, min=1.0, max=1.5),
    )
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", MotionNetwork(trees), spec)
    path = make_footage(tmp_path / "a.mp4", range(75))
    assert scan(path, "--out", tmp_path / "scan", model=tmp_path / "model")[0] == 0
    scores = rows(tmp_path / "scan" / "scores.csv")
    assert [row["start_s"] for row in scores] == ["0.000000", "0.600000", "1.200000", "1.800000"]
    assert {row["region"] for row in scores} == {"trained"}
    clip = cut_losslessly(path, 15, 45, tmp_path / "clip.mp4")
    predicted = load_model(tmp_path / "model", device="cpu").predict(clip).event_probability
    assert predicted == pytest.approx(float(scores[1]["event_score"]), abs=1e-6)


def test_windows_are_as_long_as_the_training_clips_unless_told() -> None:
    spec = ClipSpec(
        arch="tinynet",
        classes=("theft", "normal"),
        event=("theft",),
        num_frames=4,
        preprocessing=Preprocessing(resize=(28, 28), crop=(24, 24), mean=None, std=None),
        clip_seconds=Lengths(median=6.4, min=5, max=8),
    )
    grid = choose_grid(spec)
    assert (grid.length, grid.stride) == (Fraction("6.4"), Fraction("3.2"))
    assert length_note(spec, grid.length) is None
    told = choose_grid(spec, window=20, stride=1.5)
    assert (told.length, told.stride) == (Fraction(20), Fraction("1.5"))
    note = length_note(spec, seconds_exactly(20))
    assert note is not None
    assert "windows last 20 s, training clips lasted 5 to 8" in note
    with pytest.raises(ConfigError):
        choose_grid(spec, window=0)
    third = choose_grid(replace(spec, clip_seconds=Lengths(median=6 + 1 / 3, min=5, max=8)))
    assert (third.length, third.stride) == (Fraction("6.333"), Fraction("3.1665")), "as scores.csv can tell them"


def test_what_goes_wrong_while_reading_ahead_is_raised_where_it_is_read() -> None:
    def items() -> Any:
        yield 1
        raise OSError("the disk has gone")

    reading = _read_ahead(items(), 4)
    assert next(reading) == 1
    with pytest.raises(OSError, match="the disk has gone"):
        next(reading)


def test_reading_ahead_stops_with_its_reader() -> None:
    begun: list[int] = []

    def items() -> Any:
        for number in range(1000):
            begun.append(number)
            yield number

    reading = _read_ahead(items(), 3)
    assert [next(reading), next(reading)] == [0, 1]
    reading.close()
    assert len(begun) < 10


def test_what_was_freed_is_given_back_every_few_batches(
    footage: Path, tmp_path: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(batches, "BATCH_SIZE", 2)
    monkeypatch.setattr(batches, "give_back_freed_memory", lambda: given.append(1))
    code, _, _ = scan(footage, "--out", tmp_path / "scan", *GRID)
    scored = len(rows(tmp_path / "scan" / "scores.csv"))
    assert code == 0
    assert scored >= 8
    assert 1 <= len(given) <= scored // 4  # at least every eighth window, at most every batch

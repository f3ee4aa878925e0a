"""A scan's files: written, read back, and scored from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tillwatch.cli import main
from tillwatch.clip_spec import Roi
from tillwatch.detection.incidents import Rule
from tillwatch.detection.results import (
    Recording,
    Scan,
    WindowScore,
    read_alarms,
    read_events,
    read_scan,
    score_tables,
    timecode,
    with_known_files,
    write_scan,
)
from tillwatch.detection.scoring import TrueEvent
from tillwatch.detection.timeline import write_timeline
from tillwatch.errors import DataError
from tillwatch.files import read_csv


def scan_of(scores: dict[str, list[float]], **told: Any) -> Scan:
    """Two-second windows every second of files that are 10 s long."""
    recordings = tuple(
        Recording(
            file=file,
            camera="till2",
            seconds=10.0,
            started=datetime(2026, 3, 1, 8, 15) if "0815" in file else None,
            regions={"whole": None},
            scores=[
                WindowScore(
                    region="whole",
                    number=number,
                    start_s=float(number),
                    end_s=number + 2.0,
                    frames=20,
                    probabilities=(p, round(1 - p, 8)),
                )
                for number, p in enumerate(of_file)
            ],
        )
        for file, of_file in scores.items()
    )
    values: dict[str, Any] = {
        "model": {"path": "run", "arch": "tinynet", "sha256": "abc"},
        "classes": ("theft", "normal"),
        "event": ("theft",),
        "window_s": 2.0,
        "stride_s": 1.0,
        "rule": Rule(threshold=0.5),
        "rule_source": "--threshold",
        "recordings": recordings,
        "left_out": {},
    }
    return Scan(**(values | told))


SCORES = {"a_20260301_0815.mp4": [0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.75], "b.mp4": [0.1] * 9}


def test_what_is_written_of_an_incident(tmp_path: Path) -> None:
    write_scan(tmp_path, scan_of(SCORES))
    first, second = read_csv(tmp_path / "incidents.csv")
    assert first == {
        "camera": "till2",
        "file": "a_20260301_0815.mp4",
        "region": "whole",
        "class": "theft",
        "start_s": "1.0",
        "end_s": "3.0",
        "start_timecode": "00:00:01.000",
        "end_timecode": "00:00:03.000",
        "start_time": "2026-03-01T08:15:01.000",
        "end_time": "2026-03-01T08:15:03.000",
        "alert_s": "3.0",
        "peak": "0.9",
        "peak_s": "2.0",
        "mean": "0.9",
        "windows": "1",
        "threshold": "0.5",
        "operating_point": "--threshold",
        "model_sha256": "abc",
    }
    assert (second["start_s"], second["end_s"]) == ("8.0", "10.0")
    lines = [json.loads(line) for line in (tmp_path / "incidents.jsonl").read_text().splitlines()]
    assert {key: "" if value is None else str(value) for key, value in lines[0].items()} == first
    rows = read_csv(tmp_path / "scores.csv")
    assert len(rows) == 18
    assert (rows[1]["window"], rows[1]["start_s"], rows[1]["event_score"]) == ("1", "1.000000", "0.90000000")
    assert (rows[1]["p_theft"], rows[1]["p_normal"]) == ("0.90000000", "0.10000000")


def test_hours_are_of_footage_without_its_gaps() -> None:
    scan = scan_of({"a.mp4": [0.1] * 9, "b.mp4": [0.1] * 5})
    one, other = scan.recordings
    assert scan.hours == pytest.approx(20 / 3600)
    assert replace(scan, recordings=(one, replace(other, pauses_s=4.0))).hours == pytest.approx(16 / 3600)


def test_no_wall_clock_where_the_name_tells_none(tmp_path: Path) -> None:
    write_scan(tmp_path, scan_of({"b.mp4": [0.9]}))
    (row,) = read_csv(tmp_path / "incidents.csv")
    assert (row["start_time"], row["end_time"]) == ("", "")


def test_an_incident_ends_with_the_recording(tmp_path: Path) -> None:
    write_scan(tmp_path, scan_of({"b.mp4": [0.1] * 9 + [0.9]}))  # the window from 9 to 11 of 10 s
    (row,) = read_csv(tmp_path / "incidents.csv")
    assert (row["end_s"], row["alert_s"]) == ("10.0", "10.0")


def test_a_scan_is_read_back_as_it_was(tmp_path: Path) -> None:
    roi = Roi(x=0, y=0.25, width=0.5, height=0.5)
    scan = scan_of(SCORES, left_out={"c.mp4": "the file is empty"})
    first = scan.recordings[0]
    scan = scan_of({}, recordings=(Recording(**{**vars(first), "regions": {"whole": roi}}), scan.recordings[1]))
    found = write_scan(tmp_path, scan)
    again = read_scan(tmp_path)
    assert again is not None
    assert again.incidents() == found
    assert again.recordings[0].regions == {"whole": roi}
    assert again.recordings[0].started == datetime(2026, 3, 1, 8, 15)
    assert again.hours == pytest.approx(20 / 3600)
    assert read_scan(tmp_path.parent / "nowhere") is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "scan.json").write_text("{"),
        lambda folder: (folder / "scan.json").write_text("{}"),
        lambda folder: (folder / "scores.csv").unlink(),
        lambda folder: (folder / "scores.csv").write_text((folder / "scores.csv").read_text()[:-200]),
    ],
)
def test_a_damaged_scan_is_a_line(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    write_scan(tmp_path, scan_of(SCORES))
    spoil(tmp_path)
    with pytest.raises(DataError, match=r"holds a damaged scan .*; scan again"):
        read_scan(tmp_path)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "00:00:00.000"),
        (3723.4, "01:02:03.400"),
        (59.9996, "00:01:00.000"),
        (360_000, "100:00:00.000"),
        (-1.32, "-00:00:01.320"),  # a clip may begin before the recording's first picture
        (5.2075, "00:00:05.207"),  # as round(5.2075, 3), which the column beside it holds
    ],
)
def test_timecodes(seconds: float, expected: str) -> None:
    assert timecode(seconds) == expected


def truth(folder: Path, text: str) -> Path:
    path = folder / "truth.csv"
    path.write_text(text)
    return path


def test_events_in_seconds_and_as_timecodes(tmp_path: Path) -> None:
    path = truth(tmp_path, "file,start,end,label\na.mp4,754.5,12:40,theft\na.mp4,1:02:03.5,3724,\n")
    assert read_events(path) == [
        TrueEvent(file="a.mp4", start_s=754.5, end_s=760, label="theft"),
        TrueEvent(file="a.mp4", start_s=3723.5, end_s=3724),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,start\na.mp4,1\n", "it lacks end"),
        ("", "it lacks file"),
        ("file,start,end\na.mp4,soon,2\n", "start of 'a.mp4' is 'soon'"),
        ("file,start,end\na.mp4,1:75,200\n", "start of 'a.mp4' is '1:75'"),
        ("file,start,end\na.mp4,5,2\n", "from 5 to 2 lasts no time"),
        (f"file,start,end\na.mp4,{'9' * 400}:00:00,2\n", "start of 'a.mp4' is '999"),
    ],
)
def test_a_table_of_events_that_cannot_be_read_is_a_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_events(truth(tmp_path, text))


def test_files_may_be_named_by_their_last_part() -> None:
    files = ["monday/a.mp4", "tuesday/b.avi", "tuesday/a.mp4"]
    event = TrueEvent(file="b", start_s=0, end_s=1)
    assert with_known_files([event], files, "truth")[0].file == "tuesday/b.avi"
    with pytest.raises(DataError, match=r"truth names the file 'a\.mp4', and there are monday/a\.mp4, tuesday/a\.mp4"):
        with_known_files([TrueEvent(file="a.mp4", start_s=0, end_s=1)], files, "truth")
    with pytest.raises(DataError, match="'c', which is not there"):
        with_known_files([TrueEvent(file="c", start_s=0, end_s=1)], files, "truth")


def test_scored_beside_its_scan_the_curve_is_the_rules_own(tmp_path: Path) -> None:
    write_scan(tmp_path, scan_of(SCORES, left_out={"c.mp4": "the file is empty"}))
    path = truth(tmp_path, "file,start,end\na_20260301_0815,1.5,2.5\nb.mp4,1,2\nc.mp4,1,2\n")
    found, notes = score_tables(tmp_path / "incidents.csv", path)
    assert (found.events, found.found, found.false_alarms) == (2, 1, 1)
    assert found.alarms is not None
    assert found.alarms.hours == pytest.approx(20 / 3600)
    # Under the scan's own threshold too: at 0.1 everything is one incident a file.
    assert [(point.threshold, point.recall, point.false_alarms) for point in found.curve] == [
        (0.9, 0.5, 0),
        (0.75, 0.5, 1),
        (0.1, 1.0, 0),
    ]
    assert notes == ["1 events lie in files that the scan left out, 1 (c.mp4): they do not count."]


def test_the_whole_picture_is_no_region_and_regions_that_nobody_looked_at_are_named(tmp_path: Path) -> None:
    done = scan_of(SCORES)
    write_scan(tmp_path, done)
    path = truth(tmp_path, "file,start,end,region\na_20260301_0815,1.5,2.5,till1\n")
    found, notes = score_tables(tmp_path / "incidents.csv", path)
    assert (found.found, notes) == (1, [])
    till = {"till1": Roi(x=0, y=0, width=0.5, height=1)}
    looked = [
        replace(one, regions=till, scores=[replace(score, region="till1") for score in one.scores])
        for one in done.recordings
    ]
    write_scan(tmp_path, replace(done, recordings=tuple(looked)))
    assert score_tables(tmp_path / "incidents.csv", path)[1] == []
    path.write_text("file,start,end,region\na_20260301_0815,1.5,2.5,Till1\nb.mp4,1,2,\n")
    found, notes = score_tables(tmp_path / "incidents.csv", path)
    assert found.found == 0
    assert notes == ["1 events lie in regions that were not scanned, 1 (Till1), but till1: they count as missed."]


def test_any_programs_incidents_are_scored(tmp_path: Path) -> None:
    (tmp_path / "theirs.csv").write_text("file,start_s,end_s\na.mp4,1,3\n")
    assert read_alarms(tmp_path / "theirs.csv")[0].alert_s is None
    path = truth(tmp_path, "file,start,end\na.mp4,2,3\nb.mp4,2,3\n")
    found, notes = score_tables(tmp_path / "theirs.csv", path, hours=2)
    assert (found.recall, found.false_alarms, found.curve) == (0.5, 0, ())
    assert found.delay_median_s == 1  # to the incident's end, where nothing tells the alert
    assert "no incident lies in 1 (b.mp4)" in notes[0]


def test_score_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scan(tmp_path, scan_of(SCORES))
    path = truth(tmp_path, "file,start,end\nb.mp4,1,2\n")
    with pytest.raises(SystemExit) as exited:
        main(["score", str(tmp_path), str(path)])
    assert exited.value.code == 0
    text = capsys.readouterr().out
    assert "recall 0.000: 0 of 1 events found" in text
    assert "false alarms per camera-hour 360 (2 in 0.00556 h" in text
    assert "missed: b.mp4" in text
    with pytest.raises(SystemExit):
        main(["score", str(tmp_path / "incidents.csv"), str(path), "--hours", "4", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["alarms"]["per_hour"] == 0.5
    assert "overlap in time" in record["matching"]


@pytest.mark.parametrize("flags", [["--hours", "0"], ["--hours", "nan"], ["--tolerance", "-1"]])
def test_score_refuses_what_means_nothing(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["score", str(tmp_path / "incidents.csv"), str(tmp_path / "truth.csv"), *flags])
    assert exited.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_times_below_a_strip_are_those_of_its_quarters(tmp_path: Path) -> None:
    for seconds, expected in ((6.0, "01.5"), (10.0, "02.5"), (3600.0, "00:15:00<")):
        (one, *_) = scan_of(SCORES).recordings
        done = scan_of({}, recordings=(replace(one, seconds=seconds),))
        assert expected in write_timeline(tmp_path, done, []).read_text()

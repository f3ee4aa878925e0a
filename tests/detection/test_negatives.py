"""tillwatch scan --collect-negatives, run for real: which false alarms become which clips."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from tillwatch.data.catalog import find_clips
from tillwatch.data.video import decode_video, probe_video, read_video
from tillwatch.detection.incidents import Rule
from tillwatch.detection.negatives import worst_false_alarms
from tillwatch.detection.results import Recording, WindowScore
from tillwatch.detection.results import Scan as ScanResult
from tillwatch.detection.scoring import TrueEvent
from tillwatch.models.saved import load_model

MakeFootage = Callable[..., Path]
Scan = Callable[..., tuple[int, str, str]]

GRID = ("--window", "1", "--stride", "0.5", "--threshold", "0.5")


def rows(folder: Path, name: str = "clips.csv") -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def two_bright(tmp_path: Path, make_footage: MakeFootage) -> Path:
    """Two days of one till, each with something that the tiny network takes for the event, 3 s long."""
    make_footage(tmp_path / "f" / "till2_20260301_0815.mp4", range(150), bright=range(50, 125))
    make_footage(tmp_path / "f" / "till2_20260302_0815.mp4", range(150), bright=range(25, 100))
    return tmp_path / "f"


def test_false_alarms_become_clips_of_the_normal_class_and_events_do_not(
    two_bright: Path, tmp_path: Path, scan: Scan, tiny_run: tuple[Path, Path]
) -> None:
    (tmp_path / "truth.csv").write_text("file,start,end\ntill2_20260301_0815,2,5\n")
    told = ("--collect-negatives", tmp_path / "clips", "--truth", tmp_path / "truth.csv")
    code, out, err = scan(two_bright, "--out", tmp_path / "scan", *GRID, *told)
    assert (code, err) == (0, "")
    assert "1 of 1 false alarms were added" in out
    (row,) = rows(tmp_path / "clips")
    assert (row["label"], row["group"]) == ("normal", "till2 2026-03-02")
    assert Path(row["source"]) == two_bright / "till2_20260302_0815.mp4"
    (_, incident) = rows(tmp_path / "scan", "incidents.csv")
    assert (float(row["start_s"]) + float(row["end_s"])) / 2 == float(incident["peak_s"])
    clip = tmp_path / "clips" / row["path"]
    assert probe_video(clip).num_frames == 25
    # The clip shows what the model mistook: it does so again.
    assert load_model(tiny_run[1], device="cpu").predict(clip).event_probability > 0.5
    catalog = find_clips(tmp_path / "clips", classes=["normal"])
    assert [clip.group for clip in catalog.clips] == ["till2 2026-03-02"]


def test_clips_are_added_to_those_that_are_there_and_none_twice(two_bright: Path, tmp_path: Path, scan: Scan) -> None:
    clips = tmp_path / "clips"
    (clips / "theft").mkdir(parents=True)
    (clips / "theft" / "a.mp4").touch()
    (clips / "clips.csv").write_text("path,label,group,comment\ntheft/a.mp4,theft,day1,mine\n")
    told = (two_bright, "--out", tmp_path / "scan", *GRID, "--collect-negatives", clips, "--no-events")
    code, out, _ = scan(*told, "--max-negatives", 1)
    assert code == 0
    assert "1 of 2 false alarms were added" in out
    peaks = {row["file"]: float(row["peak"]) for row in rows(tmp_path / "scan", "incidents.csv")}
    worst = max(peaks, key=lambda file: peaks[file])
    assert [Path(row["source"]).name for row in rows(clips) if row["label"] == "normal"] == [worst]
    code, out, _ = scan(*told)
    assert "1 of 2 false alarms were added" in out
    assert "1 were there already" in out
    found = rows(clips)
    assert len(found) == 3
    assert [row["comment"] for row in found if row["path"] == "theft/a.mp4"] == ["mine"]
    before = (clips / "clips.csv").read_bytes()
    assert "0 of 2 false alarms were added" in scan(*told)[1]
    assert (clips / "clips.csv").read_bytes() == before


def test_a_region_that_was_scanned_is_cut_out(two_bright: Path, tmp_path: Path, scan: Scan) -> None:
    path = two_bright / "till2_20260301_0815.mp4"
    regions = ("--roi", "left=0,0,0.5,1", "--roi", "right=0.5,0,0.5,1")
    told = ("--collect-negatives", tmp_path / "clips", "--no-events")
    assert scan(path, "--out", tmp_path / "scan", *GRID, *regions, *told)[0] == 0
    found = rows(tmp_path / "clips")
    assert len({row["path"] for row in found}) == len(found) == 2
    for row in found:
        clip = read_video(tmp_path / "clips" / row["path"], 4)
        assert clip.shape == (4, 48, 32, 3)
        left = 0 if "_left" in row["path"] else 32
        first = round(float(row["start_s"]) * 25)
        original = [frame.to_ndarray(format="rgb24") for frame in decode_video(path)][first]
        part = original[:, left : left + 32].astype(int)
        assert abs(clip[0].astype(int) - part).mean() < 12  # noise, coded once more; other noise is 27 away


def scan_of(*starts: float, peaks: tuple[float, ...], regions: tuple[str, ...]) -> ScanResult:
    scores = [
        WindowScore(
            region=region, number=int(start), start_s=start, end_s=start + 1, frames=25, probabilities=(p, 1 - p)
        )
        for start, p, region in zip(starts, peaks, regions, strict=True)
    ]
    recording = Recording(
        file="a.mp4", camera="c", seconds=100, started=None, regions={"l": None, "r": None}, scores=scores
    )
    return ScanResult(
        model={},
        classes=("theft", "normal"),
        event=("theft",),
        window_s=1,
        stride_s=1,
        rule=Rule(threshold=0.5),
        rule_source="",
        recordings=(recording,),
        left_out={},
    )


def test_the_worst_come_first_and_what_is_near_an_event_is_left_alone() -> None:
    scan = scan_of(10, 20, 30, 45, 20.5, peaks=(0.7, 0.9, 0.6, 0.8, 0.95), regions=("l", "l", "l", "l", "r"))
    events = [
        TrueEvent(file="a.mp4", start_s=10.5, end_s=12),  # found
        TrueEvent(file="a.mp4", start_s=34, end_s=36),  # 3 s behind the third
        TrueEvent(file="b.mp4", start_s=45, end_s=46),  # elsewhere
    ]
    false, near = worst_false_alarms(scan, events)
    assert [incident.start_s for _, incident in false] == [20, 45]
    assert near == 1
    # At the same time in another region, the event may be seen in part.
    false, near = worst_false_alarms(scan, [TrueEvent(file="a.mp4", start_s=45, end_s=46, region="r")])
    assert 45 not in [incident.start_s for _, incident in false]
    assert near == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--collect-negatives", "n"], "--collect-negatives needs --truth TRUTH.csv"),
        (["--no-events"], "go with --collect-negatives"),
        (["--collect-negatives", "n", "--truth", "t.csv", "--no-events"], "--truth and --no-events exclude each other"),
        (["--collect-negatives", "n", "--truth", "nowhere.csv"], "nowhere.csv: cannot be read"),
        (["--collect-negatives", "n", "--no-events", "--max-negatives", "0"], "--max-negatives is 0"),
        (["--collect-negatives", "n", "--no-events", "--negatives-class", "theft"], "--negatives-class is 'theft'"),
        (["--collect-negatives", "mine", "--no-events"], "is not empty and holds no clips.csv"),
        (["--collect-negatives", "frames", "--no-events"], "holds extracted frames"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_scanned(
    flags: list[str], message: str, two_bright: Path, tmp_path: Path, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, name in (("mine", "thesis.txt"), ("frames", "extraction.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    code, _, err = scan(two_bright, "--out", tmp_path / "scan", *GRID, *flags)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "scan").exists()

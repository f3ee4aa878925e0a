"""Footage and a list of times to class folders of clips."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tillwatch.cli import main
from tillwatch.data.catalog import find_clips
from tillwatch.data.video import decode_video, probe_video, read_video
from tillwatch.detection import cutting
from tillwatch.detection.cameras import Source
from tillwatch.detection.cutting import Cut, CutSettings, plan_cuts
from tillwatch.detection.encoding import H264File
from tillwatch.detection.scoring import TrueEvent
from tillwatch.errors import ConfigError

MakeFootage = Callable[..., Path]
RunCut = Callable[..., tuple[int, str, str]]

HEAD = "file,start,end,label\n"


def event(start: float, end: float, file: str = "a.mp4", label: str = "theft") -> TrueEvent:
    return TrueEvent(file=file, start_s=start, end_s=end, label=label)


@pytest.fixture
def run_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> RunCut:
    """Cuts: ``run_cut(footage, "text of the table", dst, ...)`` gives (exit code, out, err)."""

    def run(footage: Path, table: str, dst: Path, *flags: object) -> tuple[int, str, str]:
        (tmp_path / "events.csv").write_text(table)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main(["cut", str(footage), str(tmp_path / "events.csv"), str(dst), *map(str, flags)])
        captured = capsys.readouterr()
        return int(str(exited.value.code)), captured.out, captured.err

    return run


def rows(dst: Path) -> list[dict[str, str]]:
    with (dst / "clips.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_events_and_normal_clips_of_like_length_are_cut_into_class_folders(
    tmp_path: Path, make_footage: MakeFootage, run_cut: RunCut
) -> None:
    make_footage(tmp_path / "f" / "till2_20260301_0815.mp4", range(250), bright=range(50, 80))
    make_footage(tmp_path / "f" / "till2_20260302_0815.mp4", range(250), bright=range(100, 125))
    table = HEAD + "till2_20260301_0815,2,3.2,theft\ntill2_20260302_0815,0:04,5,theft\n"
    code, out, err = run_cut(tmp_path / "f", table, tmp_path / "clips", "--margin", 1)
    assert (code, err) == (0, "")
    assert "clips cut: 2 of theft, 2 of normal" in out
    found = rows(tmp_path / "clips")
    assert [row["label"] for row in found] == ["normal", "normal", "theft", "theft"]
    assert {row["group"] for row in found} == {"till2 2026-03-01", "till2 2026-03-02"}
    assert not [entry for entry in (tmp_path / "clips").rglob("*") if entry.name.startswith(".")]
    theft = tmp_path / "clips" / "theft" / "till2_20260301_0815_00002000.mp4"
    assert probe_video(theft).num_frames == 30
    brightness = [frame.to_ndarray(format="gray").mean() for frame in decode_video(theft)]
    assert min(brightness) > 120  # all of the event, and nothing else
    for row in found[:2]:
        clip = tmp_path / "clips" / row["path"]
        assert max(frame.to_ndarray(format="gray").mean() for frame in decode_video(clip)) < 100
    lengths = sorted(probe_video(tmp_path / "clips" / row["path"]).num_frames for row in found)
    assert lengths == pytest.approx([25, 25, 30, 30], abs=1)
    catalog = find_clips(tmp_path / "clips")
    assert catalog.class_counts == {"normal": 2, "theft": 2}
    assert {clip.group for clip in catalog.clips} == {"till2 2026-03-01", "till2 2026-03-02"}


def test_a_clip_keeps_the_times_of_its_frames(tmp_path: Path, make_footage: MakeFootage, run_cut: RunCut) -> None:
    ticks = np.cumsum(np.random.default_rng(1).integers(15, 90, 60)).tolist()
    path = make_footage(tmp_path / "a.mp4", ticks, Fraction(1, 1000), 20)
    assert run_cut(path, HEAD + "a.mp4,0.5,1.5,theft\n", tmp_path / "clips", "--normals-per-event", 0)[0] == 0
    (row,) = rows(tmp_path / "clips")
    inside = [tick for tick in ticks if 500 <= tick - ticks[0] < 1500]
    with av.open(str(tmp_path / "clips" / row["path"])) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
    assert times == pytest.approx([(tick - inside[0]) / 1000 for tick in inside], abs=1e-3)


def test_a_turned_recording_gives_upright_clips(
    tmp_path: Path, make_turned_footage: MakeFootage, run_cut: RunCut
) -> None:
    path = make_turned_footage(tmp_path / "a.mp4", range(50))
    assert run_cut(path, HEAD + "a.mp4,0.4,1.2,theft\n", tmp_path / "clips", "--normals-per-event", 0)[0] == 0
    (row,) = rows(tmp_path / "clips")
    clip, original = read_video(tmp_path / "clips" / row["path"], 20), read_video(path, 50)[10:30]
    assert clip.shape == original.shape == (20, 64, 48, 3)
    assert np.abs(clip.astype(int) - original).mean() < 12  # noise, coded once more; other noise is 27 away


@settings(deadline=None)
@given(
    starts=st.lists(st.floats(0, 100), min_size=1, max_size=6),
    lengths=st.lists(st.floats(0.5, 8), min_size=6, max_size=6),
    per_event=st.integers(0, 3),
    margin=st.floats(0, 6),
    seed=st.integers(0, 99),
)
def test_normal_clips_lie_apart_from_events_and_each_other(
    starts: list[float], lengths: list[float], per_event: int, margin: float, seed: int
) -> None:
    events = [
        event(start, start + length, file="ab"[number % 2])
        for number, (start, length) in enumerate(zip(starts, lengths, strict=False))
    ]
    of = CutSettings(normals_per_event=per_event, margin_s=margin, seed=seed)
    cuts, missing = plan_cuts(events, {"a": 120.0, "b": 90.0}, of)
    normal = [one for one in cuts if one.label == "normal"]
    assert len(cuts) == len(events) + len(normal)
    assert len(normal) + missing == per_event * len(events)
    for one in normal:
        assert 0 <= one.start_s < one.end_s <= {"a": 120.0, "b": 90.0}[one.file] + 1e-9
        for other in events:
            if one.file == other.file:
                assert one.end_s <= other.start_s - margin + 1e-6 or one.start_s >= other.end_s + margin - 1e-6
        for twin in normal:
            if twin is not one and one.file == twin.file:
                assert one.end_s <= twin.start_s + 1e-6 or twin.end_s <= one.start_s + 1e-6
    assert plan_cuts(events, {"a": 120.0, "b": 90.0}, of) == (cuts, missing)


def test_without_room_beside_an_event_another_file_is_taken() -> None:
    cuts, missing = plan_cuts([event(1, 9)], {"a.mp4": 10.0, "b.mp4": 60.0}, CutSettings(margin_s=1))
    assert (cuts[1].file, cuts[1].label, missing) == ("b.mp4", "normal", 0)
    assert cuts[1].end_s - cuts[1].start_s == pytest.approx(8)
    assert plan_cuts([event(1, 9)], {"a.mp4": 10.0}, CutSettings(margin_s=1))[1] == 1


def test_what_cannot_be_cut_is_named(tmp_path: Path, make_footage: MakeFootage, run_cut: RunCut) -> None:
    make_footage(tmp_path / "f" / "a.mp4", range(50))
    (tmp_path / "f" / "b.mp4").touch()
    table = HEAD + "a.mp4,0.5,1,theft\na.mp4,50,60,theft\nb.mp4,1,2,theft\n"
    code, out, err = run_cut(tmp_path / "f", table, tmp_path / "clips", "--margin", 0)
    assert code == 3
    assert "b.mp4 left out: the file is empty." in err
    assert "a.mp4 left out: no frame between 50 and 60 s." in err
    assert "there was no room for 1 normal clips" in err
    assert "1 of theft, 1 of normal" in out


@pytest.mark.parametrize(
    ("table", "flags", "message"),
    [
        (HEAD, [], "holds no event"),
        ("file,start,end\na.mp4,0,1\n", [], "has no label; give --label"),
        (HEAD + "a.mp4,0,1,normal\n", [], "'normal' cannot be the class of an event"),
        (HEAD + "a.mp4,0,1,../up\n", [], "'../up' cannot be the class"),
        (HEAD + "c.mp4,0,1,theft\n", [], "names the file 'c.mp4', which is not there"),
        (HEAD + "a.mp4,0,1,theft\n", ["--margin", "-1"], "--margin is -1"),
        (HEAD + "a.mp4,0,1,theft\n", ["--normals-per-event", "-1"], "--normals-per-event is -1"),
        (HEAD + "a.mp4,0,1,theft\n", ["--normal", "a,b"], "--normal is 'a,b'"),
        (HEAD + "a.mp4,9,10,theft\n", ["--normals-per-event", "0"], "no clip could be cut: a.mp4: no frame between"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    table: str, flags: list[str], message: str, tmp_path: Path, make_footage: MakeFootage, run_cut: RunCut
) -> None:
    path = make_footage(tmp_path / "a.mp4", range(10))
    code, _, err = run_cut(path, table, tmp_path / "clips", *flags)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "clips").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, make_footage: MakeFootage, run_cut: RunCut) -> None:
    path = make_footage(tmp_path / "a.mp4", range(10))
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "mine.txt").touch()
    code, _, err = run_cut(path, HEAD + "a.mp4,0,0.2,theft\n", tmp_path / "clips")
    assert code == 2
    assert "is not empty" in err


def test_a_clip_that_was_interrupted_is_not_left_behind(
    tmp_path: Path, make_footage: MakeFootage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_footage(tmp_path / "a.mp4", range(50))
    add = H264File.add

    def failing(self: Any, *arguments: Any) -> None:
        if self.frames == 10:
            raise KeyboardInterrupt
        add(self, *arguments)

    monkeypatch.setattr(H264File, "add", failing)
    (tmp_path / "events.csv").write_text(HEAD + "a.mp4,0,2,theft\n")
    with pytest.raises(KeyboardInterrupt):
        cutting.cut(path, tmp_path / "events.csv", tmp_path / "clips", CutSettings())
    assert [entry.name for entry in (tmp_path / "clips").rglob("*") if entry.is_file()] == []


@pytest.mark.parametrize(("codec", "matrix", "full"), [("libx264", 1, False), ("libx264", 1, True), ("mjpeg", 5, True)])
def test_a_clip_has_the_colours_of_the_recording(
    codec: str, matrix: int, full: bool, tmp_path: Path, make_flat_footage: MakeFootage, run_cut: RunCut
) -> None:
    path = make_flat_footage(tmp_path / "a.mkv", codec, matrix, full)
    assert run_cut(path, HEAD + "a.mkv,0,0.4,theft\n", tmp_path / "clips", "--normals-per-event", 0)[0] == 0
    (clip,) = (tmp_path / "clips" / "theft").iterdir()
    expected, shown = read_video(path, 4).astype(int), read_video(clip, 4).astype(int)
    assert np.abs(expected - shown).max() <= 3  # a matrix or a range taken for another moves them by 12 and more


@pytest.mark.parametrize("label", ["", ".hidden", "a/b", "a,b", " a"])
def test_a_class_that_names_no_folder_is_refused(label: str) -> None:
    with pytest.raises(ConfigError, match="--label is"):
        CutSettings(label=label)


def test_clips_of_one_name_are_all_kept(tmp_path: Path, make_footage: MakeFootage, run_cut: RunCut) -> None:
    for name in ("a_b.mp4", "a/b.mp4", "a_b.mkv"):
        make_footage(tmp_path / "f" / name, range(75))
    table = HEAD + "a/b.mp4,1,2,theft\na_b.mp4,1,2,theft\na_b.mkv,1,2,theft\na_b.mp4,1,2.6,theft\n"
    code, out, err = run_cut(tmp_path / "f", table, tmp_path / "clips", "--normals-per-event", 0)
    assert (code, err) == (0, "")
    assert "clips cut: 4 of theft" in out
    found = rows(tmp_path / "clips")
    assert len({row["path"] for row in found}) == 4
    frames = {(row["group"], row["end_s"]): probe_video(tmp_path / "clips" / row["path"]).num_frames for row in found}
    one = {("a/b.mp4", "2.000"): 25, ("a_b.mp4", "2.000"): 25, ("a_b.mkv", "2.000"): 25}
    assert frames == {**one, ("a_b.mp4", "2.600"): 40}


def test_an_event_ends_with_its_file_and_is_cut_once(
    tmp_path: Path, make_footage: MakeFootage, run_cut: RunCut
) -> None:
    path = make_footage(tmp_path / "a.mp4", range(75))
    table = HEAD + "a.mp4,2,9,theft\na.mp4,1,3.2,theft\na.mp4,0.2,0.6,theft\na.mp4,0:00.2,0.6,theft\n"
    code, out, err = run_cut(path, table, tmp_path / "clips", "--normals-per-event", 0)
    assert code == 0
    assert "clips cut: 3 of theft" in out
    assert "a.mp4: the theft from 2 to 9 s ends with the file, which lasts 3.0 s" in err
    assert "the theft from 0.2 to 0.6 s is in the table more than once and was cut once" in err
    assert "from 1 to" not in err  # a time that was rounded up
    assert sorted(row["end_s"] for row in rows(tmp_path / "clips")) == ["0.600", "3.000", "3.000"]


def test_a_cut_that_is_terminated_leaves_nothing(
    tmp_path: Path, make_footage: MakeFootage, run_cut: RunCut, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_footage(tmp_path / "a.mp4", range(75))
    finish = H264File.finish

    def terminated(self: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(self)

    monkeypatch.setattr(H264File, "finish", terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert run_cut(path, HEAD + "a.mp4,0,1,theft\na.mp4,2,3,theft\n", tmp_path / "clips")[0] == 143
    assert not (tmp_path / "clips").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_event_is_cut_where_a_clock_has_started_again(
    tmp_path: Path, make_footage: MakeFootage, run_cut: RunCut
) -> None:
    piece = make_footage(tmp_path / "piece.ts", range(60))
    (tmp_path / "both.ts").write_bytes(2 * piece.read_bytes())
    table = HEAD + "both.ts,2,3,theft\n"  # the first of both ends at 2.4
    code, _, err = run_cut(tmp_path / "both.ts", table, tmp_path / "clips", "--normals-per-event", 0)
    assert (code, err) == (0, "")
    (row,) = rows(tmp_path / "clips")
    assert probe_video(tmp_path / "clips" / row["path"]).num_frames == pytest.approx(25, abs=2)


def test_a_cut_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, make_footage: MakeFootage, run_cut: RunCut, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_footage(tmp_path / "a.mp4", range(75))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cutting, "write_csv", full)
    for there in (False, True):
        if there:
            (tmp_path / "clips").mkdir()
        code, _, err = run_cut(path, HEAD + "a.mp4,1,2,theft\n", tmp_path / "clips", "--normals-per-event", 0)
        assert code == 2
        assert "cannot be written (No space left on device)" in err
        assert (tmp_path / "clips").exists() == there
        assert not list(tmp_path.glob("clips/*"))


def test_quoted_names_of_columns_are_read(tmp_path: Path, make_footage: MakeFootage, run_cut: RunCut) -> None:
    path = make_footage(tmp_path / "a.mp4", range(75))
    table = '"file","start","end","label"\n"a.mp4","1","2","theft"\n'
    assert run_cut(path, table, tmp_path / "clips", "--normals-per-event", 0)[0] == 0
    assert "it lacks end" in run_cut(path, '"file","start","until"\n"a.mp4","1","2"\n', tmp_path / "other")[2]


def test_a_clip_that_is_there_keeps_its_path_and_another_of_its_name_gets_one(tmp_path: Path) -> None:
    mp4, avi = (Source(path=tmp_path / f"x.{end}", file=f"x.{end}", camera="x", regions={}) for end in ("mp4", "avi"))
    one = Cut(file="x.mp4", start_s=1, end_s=2, label="normal", region="till")
    there = {"normal/x_00001000_till.mp4": one.row(mp4, "normal/x_00001000_till.mp4")}
    assert one.path(mp4, there) == "normal/x_00001000_till.mp4"
    assert one.path(avi, there) == replace(one, end_s=3).path(mp4, there) == "normal/x_00001000_till_2.mp4"
    assert replace(one, region="door").path(mp4, there) == "normal/x_00001000_door.mp4"

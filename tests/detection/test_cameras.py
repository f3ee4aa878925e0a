"""What is scanned: files, cameras and regions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tillwatch.clip_spec import Roi
from tillwatch.detection.cameras import camera_of, find_sources, flat_name, idle_cameras, parse_regions, read_cameras
from tillwatch.errors import ConfigError, DataError

WHOLE = {"whole": None}
LEFT = Roi(x=0, y=0, width=0.5, height=1)


@pytest.mark.parametrize(
    ("file", "camera"),
    [
        ("till2_20260301_0815.mp4", "till2"),
        ("NVR_ch1_main_20260301081500_20260301082000.dav", "NVR_ch1_main"),
        ("20260301_0815.mp4", "given"),
        ("entrance/20260301_0815.mp4", "entrance"),
        ("shop/till1/2026-03-01_08-15-00.mkv", "shop/till1"),
        ("2026-03-01/till1_08.mp4", "till1_08"),
        ("clip.mp4", "clip"),
    ],
)
def test_the_camera_that_a_name_tells(file: str, camera: str) -> None:
    assert camera_of(file, "given") == camera


def test_files_and_folders_in_natural_order_each_once(tmp_path: Path) -> None:
    for name in ("f/a10.mp4", "f/a9.mp4", "f/below/b.avi", "f/notes.txt", "f/.hidden.mp4", "single.xyz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_sources([tmp_path / "single.xyz", tmp_path / "f", tmp_path / "f" / "a9.mp4"], WHOLE)
    assert [source.file for source in found] == ["single.xyz", "a9.mp4", "a10.mp4", "below/b.avi"]
    assert found[3].camera == "below/b"


def test_equal_names_of_two_folders_are_told_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").touch()
    found = find_sources([tmp_path / "x", tmp_path / "y"], WHOLE)
    assert len({source.file for source in found}) == 2


@pytest.mark.parametrize(("name", "message"), [("nowhere", "does not exist"), ("empty", "holds no video")])
def test_nothing_to_scan_is_a_line(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        find_sources([tmp_path / name], WHOLE)


def test_the_name_of_what_is_made_of_a_recording_is_flat_and_short() -> None:
    assert flat_name("gate/till2_0815.mp4") == "gate_till2_0815"
    assert flat_name("/mnt/a.b.ts") == "mnt_a.b"
    assert flat_name("ä" * 120 + ".mp4") == "ä" * 75
    assert flat_name("a" + "ä" * 120 + ".mp4") == "a" + "ä" * 74  # never half a letter


def test_regions_by_name() -> None:
    assert parse_regions(["till1=0,0,0.5,1", "till-2=0.5,0,0.5,1"]) == {
        "till1": LEFT,
        "till-2": Roi(x=0.5, y=0, width=0.5, height=1),
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["0,0,1,1"], "NAME=x,y,width,height"),
        (["a=0,0,1"], "four fractions"),
        (["a=0,0,2,1"], "inside it"),
        (["a+b=0,0,1,1"], "named 'a\\+b'"),
        (["=0,0,1,1"], "named ''"),
        (["a=0,0,1,1", "a=0,0,1,1"], "'a' twice"),
    ],
)
def test_a_region_that_is_none_is_a_line(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_regions(texts)


def test_cameras_take_files_by_pattern(tmp_path: Path) -> None:
    yaml = tmp_path / "cameras.yaml"
    yaml.write_text(
        "entrance:\n  files: ['e_*', 'gate/*']\n  regions:\n    door: 0,0,0.5,1\nstore:\n  files: 's_*'\n",
    )
    for name in ("f/e_1.mp4", "f/gate/x.mp4", "f/s_1.mp4", "f/other.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {
        source.file: (source.camera, dict(source.regions))
        for source in find_sources([tmp_path / "f"], WHOLE, read_cameras(yaml))
    }
    assert found == {
        "e_1.mp4": ("entrance", {"door": LEFT}),
        "gate/x.mp4": ("entrance", {"door": LEFT}),
        "s_1.mp4": ("store", WHOLE),
        "other.mp4": ("other", WHOLE),
    }


def test_cameras_that_take_no_file_are_told(tmp_path: Path) -> None:
    yaml = tmp_path / "cameras.yaml"
    yaml.write_text("till:\n  files: till_*\nagain:\n  files: till_1*\ntypo:\n  files: tlil_*\n")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "till_1.mp4").touch()
    cameras = read_cameras(yaml)
    assert idle_cameras(cameras, find_sources([tmp_path / "f"], WHOLE, cameras)) == ["again", "typo"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold a line NAME:"),
        ("- a\n", "must hold a line NAME:"),
        ("a: [\n", "cannot be read"),
        ("a:\n  regions: {}\n", "must hold files"),
        ("a:\n  files: x\n  rois: {}\n", "and nothing else"),
        ("a:\n  files: 3\n", "files must be a pattern"),
        ("a:\n  files: x\n  regions: [1]\n", "regions must be lines"),
        ("a:\n  files: x\n  regions:\n    door: 0,0,3,1\n", "a region is"),
        ("a:\n  files: x\n  regions:\n    'd,r': 0,0,1,1\n", "named 'd,r'"),
    ],
)
def test_cameras_that_cannot_be_read_are_a_line(text: str, message: str, tmp_path: Path) -> None:
    yaml = tmp_path / "cameras.yaml"
    yaml.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_cameras(yaml)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("--cameras") == 1


def test_cameras_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_cameras(tmp_path / "nowhere.yaml")

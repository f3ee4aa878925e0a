"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tillwatch.files import read_csv, readable, replacing, shell_word, write_csv, write_json, write_text


def test_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail_midway() -> None:
        with replacing(path) as file:
            file.write("half of the new")
            file.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_is_synced_before_it_takes_its_place(
    tmp_path: Path, lasting: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    fsync = os.fsync

    def measured(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", measured)
    path = tmp_path / "a.txt"
    write_text(path, "x" * 10)
    inode = path.stat().st_ino
    assert lasting == [("synced", inode), ("renamed", inode)]
    assert sizes == [10], "all of it had left the program's own memory"


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "x")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~mask


def test_csv_comes_back_as_it_was(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"a": 'x, "y"\nz', "b": None}, {"a": "ü", "b": 1.5}]
    write_csv(tmp_path / "t.csv", ("a", "b"), rows)
    assert read_csv(tmp_path / "t.csv") == [{"a": 'x, "y"\nz', "b": ""}, {"a": "ü", "b": "1.5"}]
    with pytest.raises(ValueError, match="fields not in fieldnames"):
        write_csv(tmp_path / "t.csv", ("a",), rows)


def test_byte_order_mark_of_a_spreadsheet_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfpath,label\r\na,b\r\n")
    assert read_csv(tmp_path / "t.csv") == [{"path": "a", "label": "b"}]


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "word"), [("a/run", "a/run"), ("my run", "'my run'"), ("-run", "./-run"), ("- run", "'./- run'")]
)
def test_a_path_told_is_one_word_of_a_shell_and_no_option(path: str, word: str) -> None:
    assert shell_word(Path(path)) == word


def test_names_that_are_no_unicode_can_be_told() -> None:
    assert readable("é") == "é"
    assert readable(os.fsdecode(b"a\xff")) == r"a\xff"

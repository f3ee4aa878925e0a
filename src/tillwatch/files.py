"""Files written whole or not at all: beside their place under another name, then renamed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a new file that takes ``path``'s place when the block ends well, and vanishes otherwise.

    Args:
        path: the file to write or replace; its folder must exist.
        mode: ``"w"`` for UTF-8 text, ``"wb"`` for bytes.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    aside = Path(name)
    try:
        encoding, newline = (None, None) if "b" in mode else ("utf-8", "")
        with os.fdopen(descriptor, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def shell_word(path: Path) -> str:
    """Returns a path as a shell takes it for one word, and a command for no option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def readable(name: str) -> str:
    r"""Returns a file's name with its bytes that are not UTF-8 as ``\xff``: the same text if there are none."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_page(path: Path) -> bool:
    """Whether a file is a page of HTML, or empty: what another page may take the place of."""
    with path.open("rb") as file:
        head = file.read(512).strip().lower()
    return not head or head.startswith((b"<!doctype html", b"<html"))


def sha256_of(path: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DigestWriter:
    """A file that is written through, with the SHA-256 of what went.

    A failure is kept until :meth:`close` raises it: torch.save would turn it into another, or end the process.

    Args:
        file: open for writing bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes bytes; returns how many they are."""
        size = memoryview(data).nbytes
        if self._failure is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._failure = error
            self._digest.update(data)
        return size

    def flush(self) -> None:
        """Does nothing: whoever opened the file flushes it."""

    def close(self) -> bytes:
        """Returns the digest, 32 bytes; the file stays open.

        Raises:
            OSError: that one of the writes met.
        """
        if self._failure is not None:
            raise self._failure
        return self._digest.digest()


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last through a loss of power, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(folder: Path) -> None:
    """Removes what a killed process left half-written in a folder; nobody else may be writing there.

    Raises:
        OSError: if one cannot be removed.
    """
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path, data: Any) -> None:
    """Writes indented JSON. NaN is refused: it is no JSON."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows under a header; None becomes an empty field, unknown columns are an error."""
    with replacing(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def to_nobody(stream: IO[str]) -> None:
    """Sends what is still written to a stream of this process nowhere: who read it has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def misspelt_column(columns: Iterable[str], known: Container[str]) -> str | None:
    """Says which column differs from a known one in capitals alone, and would be ignored; None if none does."""
    wrong = next((name for name in columns if name not in known and name.lower() in known), None)
    return None if wrong is None else f"it has a column {wrong!r}; write {wrong.lower()!r}, or it would be ignored."


def read_csv(path: Path, *, surplus_ok: bool = True) -> list[dict[str, str]]:
    """Reads rows under a header, with or without a byte order mark, as text.

    Args:
        path: the file.
        surplus_ok: whether fields beyond the header's are dropped; refused otherwise.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no CSV in UTF-8, has a column twice, or surplus fields.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file)
            rows = []
            header = [name.strip() for name in reader.fieldnames or ()]
            if twice := [name for place, name in enumerate(header) if name and name in header[:place]]:
                raise ValueError(f"its header has the column {twice[0]!r} twice")
            for row in reader:
                if None in row and not surplus_ok:
                    raise ValueError(f"line {reader.line_num} has more fields than the header")
                rows.append(
                    {name.strip(): _field(name.strip(), value) for name, value in row.items() if name is not None}
                )
            return rows
        except csv.Error as error:
            raise ValueError(str(error)) from None


def read_csv_header(path: Path) -> list[str]:
    """Reads the names of a table's columns, as :func:`read_csv` has them.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no CSV in UTF-8.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            return [name.strip() for name in next(csv.reader(file), [])]
        except csv.Error as error:
            raise ValueError(str(error)) from None


def _field(name: str, value: str | None) -> str:
    """Spaces around a field mean nothing, except in the names of files."""
    return (value or "") if name in ("path", "source") else (value or "").strip()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

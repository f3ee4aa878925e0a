"""What a scan has done so far, line by line, so that one that was killed goes on to the same result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tillwatch.detection.results import WindowScore
from tillwatch.errors import RunError
from tillwatch.locks import open_held, release, take

JOURNAL = "journal.jsonl"


@dataclass
class Progress:
    """What is known of one file.

    Attributes:
        scores: of the windows scored or gated so far, in order.
        ended: seconds, gaps, pauses and notes, once it was read to its end.
        left_out: why it was not; None if it was, or is not finished.
    """

    scores: list[WindowScore] = field(default_factory=list)
    ended: Mapping[str, Any] | None = None
    left_out: str | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing of it is left to do; a file that did not open is tried again: its disk may be back."""
        return self.ended is not None or (self.left_out is not None and bool(self.scores))


class Journal:
    """A file of lines: first what is scanned and how, then what was done.

    A line counts once its newline is written; what a kill cut off is written again. Until it is closed, no other
    process can open it.

    Args:
        folder: the scan's.
        head: what is scanned and how, in JSON's types. A journal with another head is another scan.
        num_files: how many are scanned.
        anew: whether what it holds is thrown away.

    Attributes:
        files: what is known of each, by its place among the sources.

    Raises:
        RunError: if the folder holds another scan, another process writes it, or it cannot be written.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any], num_files: int, *, anew: bool = False) -> None:
        self.files = [Progress() for _ in range(num_files)]
        path = folder / JOURNAL
        with ExitStack() as held:
            try:
                descriptor = open_held(path, os.O_RDWR | os.O_CREAT)
                held.callback(release, descriptor)
                take(descriptor, path)
                if anew:
                    os.truncate(path, 0)
                lines = _whole_lines(path)
                if lines:
                    self._take(lines, head, folder)
                self._file = held.enter_context(path.open("a", encoding="utf-8"))
                if not lines:
                    self._write({"head": head})
            except BlockingIOError:
                raise RunError(f"another process scans into {folder}; wait for it, or give another --out.") from None
            except OSError as error:
                raise RunError(f"{folder} cannot be written ({error.strerror}).") from None
            self._held = held.pop_all()

    @property
    def windows(self) -> int:
        """How many windows are scored, of all files."""
        return sum(len(file.scores) for file in self.files)

    def scored(self, scores: Sequence[tuple[int, WindowScore]]) -> None:
        """Notes the scores of one batch and the windows gated among them, each with the place of its file."""
        rows = [[file, s.region, s.number, s.start_s, s.end_s, s.frames, list(s.probabilities)] for file, s in scores]
        self._write({"scored": rows})
        for file, score in scores:
            self.files[file].scores.append(score)

    def ended(self, file: int, seconds: float, gaps: int, pauses_s: float, notes: Sequence[str]) -> None:
        """Notes that a file was read to its end."""
        self._note(file, {"seconds": seconds, "gaps": gaps, "pauses_s": pauses_s, "notes": list(notes)})

    def left_out(self, file: int, reason: str) -> None:
        """Notes that a file cannot be scanned."""
        self._note(file, {"left_out": reason})

    def close(self) -> None:
        """Closes the file, and lets others have it."""
        self._held.close()

    def _note(self, file: int, what: dict[str, Any]) -> None:
        self._write({"file": file, **what})
        self._remember({"file": file, **what})

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _take(self, lines: Sequence[str], head: Mapping[str, Any], folder: Path) -> None:
        try:
            records = [json.loads(line) for line in lines]
            before = records[0]["head"]
            if before == json.loads(json.dumps(head)):
                for record in records[1:]:
                    self._remember(record)
        except (ValueError, KeyError, TypeError, IndexError):
            raise RunError(f"{folder / JOURNAL} is damaged; scan into another --out, or add --overwrite.") from None
        differing = [key for key in head if before.get(key) != json.loads(json.dumps(head[key]))]
        if differing:
            raise RunError(
                f"{folder} holds a scan with another {' and '.join(differing)}; use another --out, or add --overwrite."
            )

    def _remember(self, record: Mapping[str, Any]) -> None:
        for file, region, number, start_s, end_s, frames, probabilities in record.get("scored", ()):
            self.files[file].scores.append(
                WindowScore(
                    region=region,
                    number=number,
                    start_s=start_s,
                    end_s=end_s,
                    frames=frames,
                    probabilities=tuple(probabilities),
                )
            )
        if "left_out" in record:
            self.files[record["file"]].left_out = record["left_out"]
        elif "seconds" in record:
            progress = self.files[record["file"]]
            pauses = {"pauses_s": record.get("pauses_s", 0.0)}  # an earlier version did not look for them
            progress.ended = {key: record[key] for key in ("seconds", "gaps", "notes")} | pauses
            progress.left_out = None


def _whole_lines(path: Path) -> list[str]:
    """Returns a journal's whole lines, and cuts off what a kill left half-written."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return whole.decode("utf-8", errors="replace").split("\n")[:-1]

"""A run folder needs no Tillwatch: torch, torchvision, Pillow and NumPy rebuild the model and its scores."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tillwatch.training.loop import train

README = Path(__file__).parent.parent / "README.md"


def readme_example() -> str:
    """The example as it stands in the README: what is promised there is what runs here."""
    blocks: list[str] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if "load_state_dict" in block)


def test_example_uses_nothing_of_ours() -> None:
    imported = set(re.findall(r"^(?:import|from) (\w+)", readme_example(), re.MULTILINE))
    assert imported == {"csv", "json", "pathlib", "sys", "numpy", "torch", "torchvision", "PIL"}


@pytest.mark.parametrize("normalize", [True, False])
def test_example_reproduces_predictions_csv(
    tmp_path: Path, frame_root: Path, tiny_config: Any, quiet: Any, normalize: bool
) -> None:
    sizes = {"num_frames": 4, "resize": 28, "crop": 24}
    train(frame_root, tmp_path / "run", tiny_config(arch="r2plus1d_18", normalize=normalize, **sizes), quiet())
    script = tmp_path / "plain.py"
    script.write_text(readme_example(), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(tmp_path / "run"), str(frame_root)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    printed = [line.split() for line in done.stdout.splitlines()]
    with (tmp_path / "run" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(printed) == 4
    for row, (path, *scores) in zip(rows, printed, strict=True):
        assert path == row["path"]
        assert [float(score) for score in scores] == pytest.approx(
            [float(row["p_normal"]), float(row["p_theft"])], abs=1e-4
        )

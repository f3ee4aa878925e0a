"""A run folder needs no Tillwatch: torch, torchvision, Pillow and NumPy rebuild the model and its scores."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tillwatch.clip_spec import Preprocessing, draft_for
from tillwatch.data.frames import read_frames
from tillwatch.data.transforms import KINETICS_MEAN, KINETICS_STD
from tillwatch.models.saved import transform_of
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
def test_example_preprocesses_as_we_do(tmp_path: Path, normalize: bool) -> None:
    """Frames large enough to be decoded at a quarter of their scale, and so rough that this shows."""
    frame = np.random.default_rng(0).integers(0, 256, (240, 260, 3), dtype=np.uint8)
    path = tmp_path / "frame.jpg"
    Image.fromarray(frame).save(path, quality=95)
    mean, std = (KINETICS_MEAN, KINETICS_STD) if normalize else (None, None)
    prep = Preprocessing(resize=(28, 30), crop=(24, 24), mean=mean, std=std, draft=draft_for((28, 30)))
    function = re.search(r"^def preprocess.*?^    return image$", readme_example(), re.DOTALL | re.MULTILINE)
    assert function is not None
    names: dict[str, Any] = {"spec": {"steps": prep.to_steps()}, "Image": Image, "np": np}
    exec(function.group(), names)
    transform = transform_of(prep)
    frames = read_frames([path], prep.resize, prep.draft)
    ours = transform.batch(torch.from_numpy(frames)[None], [transform.place()])[0, :, 0].permute(1, 2, 0)
    np.testing.assert_allclose(names["preprocess"](path), ours.numpy(), atol=1e-6)


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
            [float(row["p_normal"]), float(row["p_theft"])], abs=1e-5
        )

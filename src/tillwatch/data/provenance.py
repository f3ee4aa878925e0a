"""extraction.json: how the frames of a data folder were taken from videos."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tillwatch.clip_spec import FrameStep, Roi
from tillwatch.data.video import READING
from tillwatch.errors import ConfigError, DataError, one_line

EXTRACTION_JSON = "extraction.json"


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How frames were taken from videos; kept beside them as extraction.json.

    Attributes:
        step: which frames of a source are kept.
        short_side: longest allowed short side in pixels; larger frames are shrunk to it.
        quality: JPEG quality, 1 to 95.
        roi: what is cut out of each frame; None for all of it.
        reading: how frames are converted (:data:`tillwatch.data.video.READING`): one folder holds those of one way,
            lest the class that was extracted later be told by its brightness.
    """

    step: FrameStep
    short_side: int = 256
    quality: int = 92
    roi: Roi | None = None
    reading: int = READING

    def __post_init__(self) -> None:
        if self.short_side < 16:
            raise ConfigError(f"--short-side is {self.short_side}; it must be at least 16 pixels.")
        if not 1 <= self.quality <= 95:
            raise ConfigError(f"--quality is {self.quality}; it must be between 1 and 95.")


def read_extraction(root: Path) -> Extraction | None:
    """Returns how the frames below ``root`` were extracted; None if no extraction.json says.

    Raises:
        DataError: if the file is damaged.
    """
    path = root / EXTRACTION_JSON
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Extraction(
            step=FrameStep(**data["step"]),
            short_side=int(data["short_side"]),
            quality=int(data["quality"]),
            roi=None if data["roi"] is None else Roi(**data["roi"]),
            reading=int(data.get("reading", 1)),  # nobody wrote down the first
        )
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(f"{path} is damaged ({one_line(error)}); extract again into another folder.") from None


def check_region(root: Path, roi: Roi | None) -> None:
    """Refuses frames that were cut to another region than a model was trained on.

    Args:
        root: the folder that holds the class folders; without extraction.json nothing is known and nothing refused.
        roi: the region that the model's spec names.

    Raises:
        DataError: if the regions differ.
    """
    extraction = read_extraction(root)
    if extraction is not None and extraction.roi != roi:
        theirs, ours = extraction.roi or "the whole picture", roi or "the whole picture"
        raise DataError(
            f"the frames in {root} show another region ({theirs}) than those the model was trained on ({ours}); "
            "extract them with the same --roi, or give the videos."
        )

"""Frame folders: which files are frames, in which order, and reading some of them."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tillwatch.clip_spec import Size
from tillwatch.errors import ClipError, one_line

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})

_JPEG_SUFFIXES = {".jpg", ".jpeg", ".jpe"}


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Returns a sort key under which ``frame_10`` comes after ``frame_9``."""
    parts = re.split(r"(\d+)", name)
    # Digits sort before letters, and numbers by value; the text itself settles 07 against 7.
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part)


def is_frame_file(path: Path) -> bool:
    """Whether a file's name is that of an image; hidden files are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_frames(folder: Path) -> list[Path]:
    """Returns a folder's images in natural order.

    Raises:
        ClipError: if the folder cannot be listed.
    """
    try:
        found = [entry for entry in folder.iterdir() if is_frame_file(entry)]
    except OSError as error:
        raise ClipError(f"{folder}: cannot be listed ({error.strerror}).") from None
    return sorted(found, key=lambda path: natural_key(path.name))


def check_frames(paths: Sequence[Path]) -> None:
    """Looks for damage without decoding: unreadable headers, cut-off JPEGs, frames of two sizes.

    Raises:
        ClipError: naming the file and what is wrong with it.
    """
    first: tuple[Path, Size] | None = None
    for path in paths:
        try:
            with _odd_metadata_is_no_concern(), Image.open(path) as image:
                size = image.height, image.width
                if image.mode.startswith(("I", "F")):
                    raise ClipError(f"{path}: {image.mode} images have more than 8 bits a channel; convert them first.")
                if path.suffix.lower() in _JPEG_SUFFIXES and not _ends_like_a_jpeg(path):
                    image.load()  # raises where pixels are missing; a lost end marker alone does no harm
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ClipError(f"{path}: not a readable image ({_reason(error)}).") from None
        if first is None:
            first = path, size
        elif size != first[1]:
            raise ClipError(
                f"{path.parent}: frames of two sizes, {first[0].name} has {first[1][1]}x{first[1][0]} pixels, "
                f"{path.name} has {size[1]}x{size[0]}."
            )


def read_frames(paths: Sequence[Path], resize: Size | None = None, draft: Size | None = None) -> NDArray[np.uint8]:
    """Decodes images and stacks them.

    Args:
        paths: the frames, in the order wanted; one may stand there several times.
        resize: (height, width) that each is squeezed to, None to leave them as they are.
        draft: JPEGs are decoded at the smallest of libjpeg's scales (1, 1/2, 1/4, 1/8) that leaves at least this
            (height, width); None decodes them whole.

    Returns:
        uint8 ``(T, H, W, 3)``, RGB.

    Raises:
        ClipError: if one cannot be read, or their sizes differ and ``resize`` is None.
    """
    decoded: dict[Path, NDArray[np.uint8]] = {}
    for path in paths:
        if path not in decoded:
            decoded[path] = _read_frame(path, resize, draft)
    frames = [decoded[path] for path in paths]
    if len({frame.shape for frame in frames}) > 1:
        raise ClipError(f"{paths[0].parent}: frames of two sizes.")
    return np.stack(frames)


def resize_frame(image: Image.Image, resize: Size | None) -> Image.Image:
    """Squeezes an image to (height, width) by Pillow's bilinear filter, which averages when shrinking.

    A video's frames go through :func:`tillwatch.data.video.squeezed_parts`: the same filter, faster.
    """
    if resize is None or (image.height, image.width) == resize:
        return image
    return image.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)


def _read_frame(path: Path, resize: Size | None, draft: Size | None) -> NDArray[np.uint8]:
    try:
        with _odd_metadata_is_no_concern(), Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ClipError(f"{path}: {image.mode} images have more than 8 bits a channel; convert them first.")
            if draft is not None:
                image.draft(None, (draft[1], draft[0]))  # does nothing to what is no JPEG
            return np.asarray(resize_frame(image.convert("RGB"), resize))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ClipError(f"{path}: not a readable image ({_reason(error)}).") from None


class _Quiet:
    """Keeps Pillow from warning, in any number of threads; where two meet, Python's own way leaves a wrong state."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = warnings.catch_warnings()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._before.__exit__(None, None, None)


_odd_metadata_is_no_concern = _Quiet()


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Pillow quotes the whole path again; the reader has it already.
    return re.sub(r" file '.*'", "", one_line(error)).replace("cannot identify image", "no image format known")


def _ends_like_a_jpeg(path: Path) -> bool:
    """Whether the end-of-image marker stands in the last kilobyte (some cameras pad after it)."""
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 1024))
        return b"\xff\xd9" in file.read()

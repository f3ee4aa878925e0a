"""What is said of a frame, drawn: a panel below the picture, and regions in it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from tillwatch.clip_spec import Roi

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]  # red, green, blue

_GROUND, _TRACK, _INK, _QUIET = (22, 32, 44), (60, 74, 92), (238, 242, 246), (160, 173, 189)
_NARROWEST = 320  # pixels of width that the panel's text needs
_TEXT_SHARE, _TEXT_LEAST, _TEXT_MOST, _TEXT_TINIEST = 1 / 26, 13, 40, 8  # of the picture's height; in pixels
_HERSHEY = 28.0  # pixels of a line in OpenCV's old font, which knows ASCII alone
_WEIGHT = 500  # of 100 (thin) to 900: thin strokes vanish in compression
_FONT = cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None  # OpenCV 5 brings one for every script


def with_panel(
    picture: Picture, *, label: str, score: float | None, threshold: float, times: Sequence[str], colour: Colour
) -> Picture:
    """Returns a picture with a panel below it: label, score and time in words, and the score as a bar.

    Args:
        picture: uint8 ``(H, W, 3)``, RGB.
        label: class of the incident.
        score: of this moment, 0 to 1; None leaves the bar empty.
        threshold: marked on the bar.
        times: to be told; where there is no room, the last of them alone.
        colour: of the bar.

    Returns:
        uint8 ``(H', W', 3)``, both even, the picture unchanged in its upper left corner.
    """
    height, width = picture.shape[:2]
    size = round(min(_TEXT_MOST, max(_TEXT_LEAST, height * _TEXT_SHARE)))
    gap, bar = size // 2, max(6, size // 2)
    across = max(_NARROWEST, width + width % 2)
    panel = 3 * gap + size + bar
    canvas = np.full((height + panel + (height + panel) % 2, across, 3), _GROUND, np.uint8)
    canvas[:height, :width] = picture
    told = "no window" if score is None else f"{score:.2f}"
    rows = [
        (f"{label}  {told}, alarm from {threshold:.2f}", "  ".join(times)),
        (f"{label}  {told}, alarm from {threshold:.2f}", times[-1]),
        (f"{label}  {told}", times[-1]),
    ]
    room = across - 4 * gap
    # Digits are not equally wide: the choice is made by the widest, or it would change from frame to frame.
    left, right = next((row for row in rows if _text_width(_widest("".join(row)), size) <= room), rows[-1])
    while size > _TEXT_TINIEST and _text_width(_widest(left + right), size) > room:
        size -= 1
    baseline = height + gap + round(0.8 * size)
    _write(canvas, left, gap, baseline, _INK, size)
    begin = across - gap - _text_width(_widest(right), size)
    canvas[height : height + gap + size + gap // 2, begin - gap // 2 :] = _GROUND  # a long label ends before the time
    _write(canvas, right, begin, baseline, _QUIET, size)
    top = height + panel - gap - bar
    length = across - 2 * gap
    canvas[top : top + bar, gap : gap + length] = _TRACK
    canvas[top : top + bar, gap : gap + round(length * (score or 0.0))] = colour
    mark = min(across - gap - 2, gap + round(length * threshold))
    canvas[top - 2 : top + bar + 2, mark : mark + 2] = _INK
    return canvas


def draw_region(picture: Picture, region: Roi, name: str, colour: Colour) -> None:
    """Draws a region's outline and its name into a picture, uint8 ``(H, W, 3)``."""
    height, width = picture.shape[:2]
    left, top, right, bottom = region.box(height, width)
    line = max(1, round(height / 240))
    cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), colour, line)
    size = round(min(_TEXT_MOST, max(_TEXT_LEAST, height * _TEXT_SHARE * 0.8)))
    inside = picture[top + line : bottom - line, left + line : right - line]
    sign = inside[: round(1.4 * size), : _text_width(name, size) + size]
    if sign.shape[0] > size:
        sign[:] = _GROUND
        _write(inside, name, size // 2, size, colour, size)


def _widest(text: str) -> str:
    return re.sub(r"\d", "0", text)


def _text_width(text: str, size: int) -> int:
    if not text:
        return 0
    if _FONT is None:
        return int(cv2.getTextSize(_plain(text), cv2.FONT_HERSHEY_SIMPLEX, size / _HERSHEY, 1)[0][0])
    return int(cv2.getTextSize((0, 0), text, (0, 0), _FONT, size, _WEIGHT)[2])


def _write(picture: Picture, text: str, left: int, baseline: int, colour: Colour, size: int) -> None:
    if _FONT is None:
        cv2.putText(
            picture, _plain(text), (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, size / _HERSHEY, colour, 1, cv2.LINE_AA
        )
    else:
        cv2.putText(picture, text, (left, baseline), colour, _FONT, size, _WEIGHT)


def _plain(text: str) -> str:
    """Returns a text in the letters that OpenCV's old font has: accents go, other scripts become question marks."""
    apart = unicodedata.normalize("NFKD", text)
    return "".join(c for c in apart if not unicodedata.combining(c)).encode("ascii", "replace").decode()

"""Parts of a picture made unrecognisable: all outside regions, or what moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tillwatch.clip_spec import Roi

Blur = Literal["none", "outside-roi", "people"]
Picture = NDArray[np.uint8]

#: What a kind of blur does not promise, for whoever is handed the copy.
CAVEATS: dict[Blur, str] = {
    "none": "nothing is blurred",
    "outside-roi": "what lies outside the regions is blurred; people inside them can be recognised",
    "people": (
        "what moves is taken for people and blurred; whoever stands still, or looks like what is behind, is not, "
        "so this is no guarantee that nobody can be recognised"
    ),
}

_BLOCKS = 32  # that the longer side is left with: a head that fills a tenth of the picture becomes three of them
_LOOKED_AT = (320, 180)  # width and height in pixels at which movement is looked for
_REACH = 0.025  # of the width, around what moves
_SPECK = 8  # pixels of that picture: what is smaller is noise
_DEVIATIONS, _NOISE = 5.0, 3.0  # standard deviations that are a difference; none is taken for less grey levels
_HELD_S = 0.6  # that a place stays blurred after movement, for people stop for a moment
_USUAL = 0.5  # of the frames show a place as it is without people


def blurred(picture: Picture, where: NDArray[np.bool_]) -> Picture:
    """Returns a copy of a picture that shows ``where`` as no more than 32 blocks on the longer side would.

    Args:
        picture: uint8 ``(H, W, 3)``.
        where: ``(H, W)``.
    """
    height, width = where.shape
    scale = _BLOCKS / max(height, width)
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    coarse = cv2.resize(cv2.resize(picture, small, interpolation=cv2.INTER_AREA), (width, height))
    return np.where(where[..., None], coarse, picture).astype(np.uint8)


def outside(regions: Sequence[Roi], height: int, width: int) -> NDArray[np.bool_]:
    """Returns where no region lies, ``(height, width)``."""
    where = np.ones((height, width), np.bool_)
    for region in regions:
        left, top, right, bottom = region.box(height, width)
        where[top:bottom, left:right] = False
    return where


class Movement:
    """Tells where a picture differs from what that place shows most of the time, by a mixture of Gaussians (MOG2).

    All frames are learnt from before any is asked for, so that the first can be told from what comes later. What
    differs is filled to its convex hull, part by part, widened, and held for a moment.
    """

    def __init__(self) -> None:
        self._model = cv2.createBackgroundSubtractorMOG2(varThreshold=_DEVIATIONS**2, detectShadows=False)
        self._model.setVarMin(_NOISE**2)
        self._model.setBackgroundRatio(_USUAL)
        self._learnt = 0
        self._moved: dict[float, NDArray[np.uint8]] = {}

    def learn(self, picture: Picture) -> None:
        """Looks at a frame, uint8 ``(H, W, 3)``; each counts as much as any other."""
        self._learnt += 1
        self._model.apply(_small(picture), learningRate=1 / self._learnt)

    def where(self, picture: Picture, now_s: float) -> NDArray[np.bool_]:
        """Returns where something moves or has moved a moment ago, ``(H, W)``; frames must come in time."""
        height, width = picture.shape[:2]
        _, labels, figures, _ = cv2.connectedComponentsWithStats(self._model.apply(_small(picture), learningRate=0))
        large = figures[:, cv2.CC_STAT_AREA] >= _SPECK
        large[0] = False  # what does not move
        moving = large[labels].astype(np.uint8)
        outlines, _ = cv2.findContours(moving, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        for outline in outlines:
            cv2.drawContours(moving, [cv2.convexHull(outline)], -1, 1, cv2.FILLED)
        reach = 2 * round(_REACH * _LOOKED_AT[0]) + 1
        wide = cv2.dilate(moving, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))).astype(np.uint8)
        self._moved = {then: seen for then, seen in self._moved.items() if now_s - then <= _HELD_S}
        self._moved[now_s] = wide
        held = np.stack(list(self._moved.values())).max(axis=0)
        return np.asarray(cv2.resize(held, (width, height)) > 0)


def _small(picture: Picture) -> Picture:
    return cv2.resize(picture, _LOOKED_AT, interpolation=cv2.INTER_AREA).astype(np.uint8)

"""Which clips show one scene: the same camera and background, whatever moves before it and however bright it is."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from tillwatch.data.fingerprints import Fingerprint

#: Mean likeness within a scene, at least. Of backgrounds that have nothing in common, one pair in 1,000 exceeds 0.31.
SAME_SCENE = 0.4

_SIGMA = 1 / 8  # of the picture's side: what is larger is light, not scene


def local_contrast(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns a picture less its blurred self, by its local deviation: what is left when light and gain are gone.

    Args:
        picture: float32 ``(H, W)``, grey levels.
    """
    sigma = _SIGMA * picture.shape[0]
    high = picture - cv2.GaussianBlur(picture, (0, 0), sigma)
    deviation = np.sqrt(cv2.GaussianBlur(high * high, (0, 0), sigma))
    contrast: NDArray[np.float32] = (high / (deviation + 4)).astype(np.float32)
    return contrast


def unit_rows(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns rows with mean 0 and length 1, so that their products are correlations; even rows become 0."""
    centred = rows - rows.mean(-1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=-1, keepdims=True) + 1e-6
    units: NDArray[np.float32] = (centred / lengths).astype(np.float32)
    return units


def scene_likeness(prints: Sequence[Fingerprint]) -> NDArray[np.float32]:
    """Returns how alike the clips' backgrounds are, correlations of local contrast: float32 ``(N, N)``."""
    described = unit_rows(np.stack([local_contrast(taken.background).ravel() for taken in prints]))
    likeness: NDArray[np.float32] = described @ described.T
    return likeness


def find_scenes(likeness: NDArray[np.float32]) -> list[int]:
    """Returns a number for each clip, the same for clips of one scene (clusters by average linkage)."""
    if len(likeness) < 2:
        return [0] * len(likeness)
    distance = np.clip(1 - (likeness + likeness.T) / 2, 0, 2).astype(np.float64)
    np.fill_diagonal(distance, 0)
    found: list[int] = fcluster(linkage(squareform(distance, checks=False), "average"), 1 - SAME_SCENE, "distance")
    return [int(number) for number in found]

"""Whether nothing moves in a window, told from its frames alone: when in doubt, something does. Pure arithmetic."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4  # pixels each way whose mean is looked at: noise falls to a quarter, a small hand stays
_NOISE = 6.0  # times the noise that a change must pass to be none of it; of 50,000 blocks of noise none does
_LEAST = np.array([2.5, 3.0, 3.0], np.float32)  # levels of brightness and colours that no codec's coding passes
_MOST = 5.0  # levels above which noise is not told from a hand
_FLICKER = 3.0  # levels by which the whole picture may change with the light or the camera's gain
# RGB to brightness and two colours (ITU-R BT.601, full range), as codecs have them: what one spares in colours, which
# it keeps at half the width and height, is up to twice as much in red or blue.
_LUMA_CHROMA = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)


def is_still(frames: NDArray[np.uint8]) -> bool:
    """Whether nothing moves.

    Brightness and both colours (Y, Cb, Cr) of each block of 4 x 4 pixels are held against their own median over time,
    so that what creeps is seen as well as what jumps. What the whole picture does at once, up to 3 levels, is taken
    off: flicker is no motion. The noise of each is the median absolute deviation of all blocks, which a hand in a few
    of them does not change. A window is still if no block is ever off by more than six times that, at least 2.5 levels
    of brightness or 3 of colour and at most 5: in a picture so noisy that this tells nothing, no window is still.

    Args:
        frames: uint8 ``(T, H, W, 3)``, as small as the model reads them.
    """
    if (frames == frames[:1]).all():
        return len(frames) > 1
    height, width = frames.shape[1:3]
    pixels = np.outer(_sums_of_blocks(np.ones(height, np.uint8), 0), _sums_of_blocks(np.ones(width, np.uint8), 0))
    sums = _sums_of_blocks(_sums_of_blocks(frames, 1), 2)
    blocks = (sums / pixels[:, :, None]).astype(np.float32) @ _LUMA_CHROMA.T  # (T, H / 4, W / 4, 3)
    off = blocks - np.median(blocks, axis=0)
    at_once = np.median(off, axis=(1, 2), keepdims=True)
    off = np.abs(off - np.clip(at_once, -_FLICKER, _FLICKER))
    noise = 1.4826 * np.median(off, axis=(0, 1, 2))
    return bool((off.max((0, 1, 2)) <= np.clip(_NOISE * noise, _LEAST, _MOST)).all())


def _sums_of_blocks(values: NDArray[np.unsignedinteger], axis: int) -> NDArray[np.uint16]:
    """Adds up every four along an axis; the last may be fewer. A tenth of the time of ``np.add.reduceat``."""
    values = np.moveaxis(values, axis, 0)
    sums = values[::_BLOCK].astype(np.uint16)  # of 4 x 4 bytes at most
    for place in range(1, _BLOCK):
        part = values[place::_BLOCK]
        sums[: len(part)] += part
    return np.moveaxis(sums, 0, axis)

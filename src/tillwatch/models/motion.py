"""How things move, without a network: statistics of dense optical flow into an ensemble of trees, kept with skops."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tillwatch.clip_spec import Triple
from tillwatch.errors import ModelError, one_line
from tillwatch.files import replacing
from tillwatch.threads import thread_pool

# scikit-learn and skops take as long to import as torchvision, and a network needs neither: they wait for the trees.
if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesClassifier

ARCH = "motion"

#: All that a file of ours may name; whatever else it names, it is refused before anything in it is made.
TRUSTED = (
    "builtins.dict",
    "builtins.list",
    "builtins.str",
    "builtins.tuple",
    "numpy.int64",
    "numpy.ndarray",
    "sklearn.ensemble._forest.ExtraTreesClassifier",
    "sklearn.tree._classes.ExtraTreeClassifier",
    "sklearn.tree._tree.Tree",
)

# What may make them: no call of a function, no look-up of an attribute.
_LOADERS = ("DictNode", "JsonNode", "ListNode", "NdArrayNode", "ObjectNode", "TreeNode", "TupleNode", "TypeNode")

#: Length of what motion_features returns.
NUM_FEATURES = 167

_PERCENTILES = (50, 75, 90, 95, 99)
_ORIENTATIONS = 8
_CELLS = 8
_LIVELIEST = 8
_STILL = 1e-3  # pixels a frame: less is noise
_TREES = 300


@dataclass(frozen=True, kw_only=True)
class Motion:
    """What the motion model takes, in the words of :class:`~tillwatch.models.backbones.Backbone`."""

    num_frames: int = 32
    resize: int = 128
    crop: int = 128
    min_frames: int = 3
    min_crop: int = 16
    fixed: bool = False
    mean: Triple | None = None
    std: Triple | None = None


MOTION = Motion()


def motion_features(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describes how a clip moves: how fast, how suddenly, how unevenly, which way. A mirrored clip moves alike.

    Of the dense optical flow (Kroeger et al., 2016) between neighbouring frames, less each frame's median, which is the
    camera's own; its differences in time (how suddenly) and in space (how unevenly).

    Args:
        frames: uint8 ``(T, H, W, 3)``, RGB, at least 3 of them.

    Returns:
        float32 ``(F,)``, finite; F does not depend on the frames.
    """
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in np.ascontiguousarray(frames)])
    flow = _flow(grey)
    speed = np.hypot(flow[..., 0], flow[..., 1])
    sudden = np.diff(flow, axis=0)
    uneven = np.stack(list(np.gradient(flow, axis=(1, 2))))
    kinds = speed, np.hypot(sudden[..., 0], sudden[..., 1]), np.sqrt((uneven**2).sum((0, -1)))
    # Relative to the mean speed: how fast things go in pixels tells one camera from another, and misleads on the next.
    relative = [_over_time(_spread(values)) / (speed.mean() + _STILL) for values in kinds]
    features = np.concatenate([*relative, _directions(flow, speed), _steadiness(flow, speed)])
    return features.astype(np.float32)


def _flow(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the flow in pixels from each frame to the next, uint8 ``(T, H, W)`` to float32 ``(T - 1, H, W, 2)``."""
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    start = np.zeros((*grey.shape[1:], 2), np.float32)
    flow = np.stack([method.calc(*pair, start.copy()) for pair in pairwise(grey)])
    own: NDArray[np.float32] = flow - np.median(flow, axis=(1, 2), keepdims=True)
    return own


def _spread(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean, deviation and percentiles of each frame: ``(T, H, W)`` to ``(T, 7)``."""
    flat = values.reshape(len(values), -1)
    columns = [flat.mean(1), flat.std(1), *np.percentile(flat, _PERCENTILES, axis=1)]
    return np.stack(columns, axis=1).astype(np.float32)


def _over_time(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean, deviation, maximum and deciles over time: ``(T, K)`` to ``(6 K,)``."""
    deciles = np.percentile(rows, (10, 50, 90), axis=0)
    return np.concatenate([rows.mean(0), rows.std(0), rows.max(0), *deciles]).astype(np.float32)


def _directions(flow: NDArray[np.float32], speed: NDArray[np.float32]) -> NDArray[np.float32]:
    """Which way things move, left and right alike, and how many ways at once."""
    angle = np.arctan2(flow[..., 1], np.abs(flow[..., 0])) / np.pi + 0.5  # 0 up, 0.5 sideways, 1 down
    place = np.minimum((angle * _ORIENTATIONS).astype(int), _ORIENTATIONS - 1)
    place += _ORIENTATIONS * np.arange(len(flow))[:, None, None]
    moved = np.bincount(place.ravel(), speed.ravel(), len(flow) * _ORIENTATIONS).reshape(len(flow), _ORIENTATIONS)
    shares = moved / (moved.sum(1, keepdims=True) + _STILL)
    entropy = -(shares * np.log(shares + _STILL)).sum(1, keepdims=True)
    pixels = speed[0].size
    return np.concatenate([_over_time(entropy), shares.mean(0), shares.std(0), moved.mean(0) / pixels])


def _steadiness(flow: NDArray[np.float32], speed: NDArray[np.float32]) -> NDArray[np.float32]:
    """How steady each cell moves: 1 where all goes one way for the whole clip, near 0 where it goes to and fro."""
    flows, speeds = _cells(flow), _cells(speed[..., None])[..., 0]
    travelled = speeds.mean(0).ravel()
    steady = np.linalg.norm(flows.mean(0), axis=-1).ravel() / (travelled + _STILL)
    liveliest = np.sort(steady[np.argsort(-travelled, kind="stable")[:_LIVELIEST]])
    weighted = (steady * travelled).sum() / (travelled.sum() + _STILL)
    return np.concatenate([[weighted, steady.mean(), steady.std()], liveliest]).astype(np.float32)


def _cells(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over 8 x 8 cells: ``(T, H, W, C)`` to ``(T, 8, 8, C)``."""
    return np.stack([cv2.resize(frame, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA) for frame in values]).reshape(
        len(values), _CELLS, _CELLS, -1
    )


def fit_trees(features: NDArray[np.float32], labels: NDArray[np.int64], seed: int = 0) -> ExtraTreesClassifier:
    """Fits extremely randomised trees (Geurts et al., 2006); the same seed gives the same trees.

    Args:
        features: float32 ``(N, F)``.
        labels: int64 ``(N,)``; every class occurs, so that outputs are in label order.
        seed: of the trees.
    """
    from sklearn.ensemble import ExtraTreesClassifier

    trees = ExtraTreesClassifier(
        _TREES, min_samples_leaf=2, class_weight="balanced", random_state=seed % 2**32, n_jobs=-1
    )
    trees.fit(features, labels)
    return trees.set_params(n_jobs=None)  # in parallel, sums come out in another order each time


class MotionNetwork(nn.Module):
    """The trees behind the face of a network: transformed clips in, log probabilities out.

    Attributes:
        trees: None until they are fitted.
    """

    def __init__(self, trees: ExtraTreesClassifier | None = None) -> None:
        super().__init__()
        self.trees = trees

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Maps float32 ``(B, 3, T, H, W)`` in [0, 1], not normalised, to float64 ``(B, num_classes)``."""
        frames = clips.permute(0, 2, 3, 4, 1).mul(255).round().to(torch.uint8).cpu().numpy()  # the bytes, exactly
        with thread_pool() as pool:  # OpenCV lets go of the interpreter
            features = np.stack(list(pool.map(motion_features, frames)))
        return torch.from_numpy(self.log_probabilities(features)).to(clips.device)

    def log_probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores float32 ``(N, F)`` of :func:`motion_features`: float64 ``(N, num_classes)``, finite."""
        if self.trees is None:
            raise TypeError("the trees are not fitted")
        # Trees agree to the last one; a share of 0 would be an infinite logit. One more vote, divided alike.
        shares = self.trees.predict_proba(features)
        logs: NDArray[np.float64] = np.log((shares * _TREES + 1 / shares.shape[1]) / (_TREES + 1))
        return logs


def save_trees(path: Path, network: nn.Module) -> None:
    """Writes the trees of a motion network with skops; equal trees make equal bytes."""
    if not isinstance(network, MotionNetwork) or network.trees is None:
        raise TypeError("only a fitted motion network has trees to save")
    import skops.io

    with replacing(path, "wb") as file:
        file.write(_canonical(skops.io.dumps(network.trees)))


def load_trees(path: Path, num_classes: int) -> MotionNetwork:
    """Reads what :func:`save_trees` wrote; nothing but the types in :data:`TRUSTED` is ever made.

    Raises:
        ModelError: if the file is damaged, names another type, or holds trees that cannot be walked.
    """
    import skops.io

    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            named = set(_types(json.loads(archive.read("schema.json"))))
        if foreign := sorted(named - {*TRUSTED, *(f"loader {loader}" for loader in _LOADERS)}):
            raise ModelError(
                f"{path} is refused: it names {foreign[0]}, which no motion model needs, and which may do harm."
            )
        trees = skops.io.loads(data, trusted=list(TRUSTED))
        _check_trees(trees, num_classes)
    except ModelError:
        raise
    except Exception as error:  # skops and zipfile raise nearly anything on damaged files
        raise ModelError(f"{path} is damaged, or holds no motion model ({one_line(error)[:120]}).") from None
    return MotionNetwork(trees)


def _types(node: Any) -> Iterator[str]:
    """Yields the types that a skops schema names."""
    if isinstance(node, dict):
        if not node.keys().isdisjoint(("__class__", "__module__", "__loader__")):
            yield f"{node.get('__module__')}.{node.get('__class__')}"
            yield f"loader {node.get('__loader__')}"
        node = list(node.values())
    for value in node if isinstance(node, list) else ():
        yield from _types(value)


def _check_trees(trees: Any, num_classes: int) -> None:
    """Refuses trees whose nodes point outside: scikit-learn follows them without looking."""
    from sklearn.ensemble import ExtraTreesClassifier

    if not isinstance(trees, ExtraTreesClassifier) or list(trees.classes_) != list(range(num_classes)):
        raise ValueError(f"no ExtraTreesClassifier of {num_classes} classes")
    for one in trees.estimators_:
        tree = one.tree_
        left, right, feature = tree.children_left, tree.children_right, tree.feature
        inner = np.flatnonzero(left != -1)
        # Children come after their parents, so that a walk ends.
        sound = all(((inner < child[inner]) & (child[inner] < tree.node_count)).all() for child in (left, right))
        if not (sound and ((feature[inner] >= 0) & (feature[inner] < NUM_FEATURES)).all()):
            raise ValueError("a tree whose nodes point outside of it")
        if (tree.n_features, tree.value.shape) != (NUM_FEATURES, (tree.node_count, 1, num_classes)):
            raise ValueError("a tree of another shape")
    if trees.n_features_in_ != NUM_FEATURES:
        raise ValueError(f"trees of {trees.n_features_in_} features, not {NUM_FEATURES}")


def _canonical(data: bytes) -> bytes:
    """Numbers a skops archive's parts in their order; skops names them by place in memory, and stamps the time."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as given, zipfile.ZipFile(out, "w") as written:
        schema = given.read("schema.json").decode()
        found = re.findall(r'"__id__": (\d+)|"(\d+)\.npy"', schema)
        numbers = {old: str(new) for new, old in enumerate(dict.fromkeys(a or b for a, b in found))}
        schema = re.sub(r'"__id__": (\d+)', lambda m: f'"__id__": {numbers[m[1]]}', schema)
        schema = re.sub(r'"(\d+)\.npy"', lambda m: f'"{numbers[m[1]]}.npy"', schema)
        parts = {
            f"{numbers[name.removesuffix('.npy')]}.npy": name for name in given.namelist() if name.endswith(".npy")
        }
        for new in sorted(parts, key=lambda name: int(name.removesuffix(".npy"))):
            written.writestr(zipfile.ZipInfo(new), given.read(parts[new]), zipfile.ZIP_DEFLATED)
        written.writestr(zipfile.ZipInfo("schema.json"), schema, zipfile.ZIP_DEFLATED)
    return out.getvalue()

"""The motion model: what its features see, that its trees are kept whole, and that no foreign file gets in."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

from tillwatch.errors import ModelError
from tillwatch.models import motion
from tillwatch.models.motion import NUM_FEATURES, MotionNetwork, fit_trees, load_trees, motion_features, save_trees


def texture(seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random picture: uint8 ``(64, 64, 3)``."""
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    return coarse.repeat(4, 0).repeat(4, 1)


def pasted(lefts: list[int], background: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """A patch at these places, from frame to frame."""
    frames = np.repeat((texture() // 4 if background is None else background)[None], len(lefts), 0).copy()
    for frame, left in zip(frames, lefts, strict=True):
        frame[20:44, left : left + 20] = texture(7)[:24, :20]
    return frames


@pytest.fixture(scope="module")
def fitted() -> MotionNetwork:
    rng = np.random.default_rng(0)
    features = rng.random((40, NUM_FEATURES)).astype(np.float32)
    return MotionNetwork(fit_trees(features, np.arange(40) % 2, seed=3))


@pytest.fixture
def saved(fitted: MotionNetwork, tmp_path: Path) -> Path:
    save_trees(tmp_path / "model.skops", fitted)
    return tmp_path / "model.skops"


def test_features_are_finite_of_one_length_and_repeat_bit_for_bit() -> None:
    for frames in (np.zeros((3, 16, 16, 3), np.uint8), pasted([4, 8, 12, 16, 20]), pasted([8] * 4)):
        features = motion_features(frames)
        assert features.dtype == np.float32
        assert features.shape == (NUM_FEATURES,)
        assert np.isfinite(features).all()
        assert (features == motion_features(frames)).all()


def test_features_tell_steady_motion_from_to_and_fro() -> None:
    steady, fro = motion_features(pasted([4, 8, 12, 16, 20, 24])), motion_features(pasted([12, 16, 12, 16, 12, 16]))
    weighted = NUM_FEATURES - 11  # the first of the eleven figures of steadiness
    assert steady[weighted] > 0.8
    assert fro[weighted] < 0.4


def test_a_pan_of_the_camera_is_no_motion() -> None:
    wide = np.concatenate([texture(1), texture(2)], axis=1)
    pan = np.stack([wide[:, 2 * t : 2 * t + 64] for t in range(6)])
    grey = pan.mean(-1).astype(np.uint8)
    inner = np.s_[:, 16:48, 16:48]
    assert np.abs(motion._flow(grey)[inner]).mean() < 0.3
    still = pasted([4, 8, 12, 16, 20, 24])
    assert np.abs(motion._flow(still.mean(-1).astype(np.uint8))[:, 24:40, 4:44]).max() > 2


def test_the_network_scores_clips_as_its_trees_score_their_features(fitted: MotionNetwork) -> None:
    frames = np.stack([pasted([4, 8, 12, 16]), pasted([20, 8, 20, 8])])
    clips = torch.from_numpy(frames.transpose(0, 4, 1, 2, 3)).float() / 255
    assert fitted.trees is not None
    by_hand = fitted.trees.predict_proba(np.stack([motion_features(clip) for clip in frames]))
    logs = fitted(clips)
    assert logs.exp().sum(1).tolist() == pytest.approx([1, 1])
    assert logs.exp().numpy() == pytest.approx(by_hand, abs=2 / 300)
    assert fitted.log_probabilities(np.zeros((1, NUM_FEATURES), np.float32)).max() < 0


def test_what_is_saved_is_what_is_loaded(fitted: MotionNetwork, saved: Path) -> None:
    features = np.random.default_rng(1).random((30, NUM_FEATURES)).astype(np.float32)
    loaded = load_trees(saved, 2)
    np.testing.assert_array_equal(loaded.log_probabilities(features), fitted.log_probabilities(features))


def test_the_same_seed_makes_the_same_file_in_another_process_and_another_seed_does_not(
    fitted: MotionNetwork, tmp_path: Path
) -> None:
    code = (
        "import sys, numpy as np, pathlib; from tillwatch.models.motion import *\n"
        "rng = np.random.default_rng(0); junk = [object() for _ in range(int(sys.argv[3]))]\n"
        "x = rng.random((40, NUM_FEATURES)).astype(np.float32)\n"
        "save_trees(pathlib.Path(sys.argv[1]), MotionNetwork(fit_trees(x, np.arange(40) % 2, int(sys.argv[2]))))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other"), "3", "9999"], check=True)
    save_trees(tmp_path / "own", fitted)
    features = np.random.default_rng(0).random((40, NUM_FEATURES)).astype(np.float32)
    save_trees(tmp_path / "seed", MotionNetwork(fit_trees(features, np.arange(40) % 2, seed=4)))
    assert (tmp_path / "other").read_bytes() == (tmp_path / "own").read_bytes()
    assert (tmp_path / "seed").read_bytes() != (tmp_path / "own").read_bytes()


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], bytes]:
    """Returns a function that changes a file's schema."""

    def edit(path: Path) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(path) as given, zipfile.ZipFile(out, "w") as written:
            for name in given.namelist():
                content = given.read(name)
                if name == "schema.json":
                    schema = json.loads(content)
                    change(schema)
                    content = json.dumps(schema).encode()
                written.writestr(name, content)
        return out.getvalue()

    return edit


def call(schema: dict[str, Any]) -> None:
    """Hides a call of os.system where a harmless setting stood."""
    schema["content"]["content"]["n_jobs"] = {
        "__class__": "system",
        "__module__": "os",
        "__loader__": "FunctionNode",
        "content": "system",
        "__id__": 1,
    }


def disguised(schema: dict[str, Any]) -> None:
    """Names a trusted type, made by a loader that ours never use."""
    schema["content"]["content"]["n_jobs"] |= {"__loader__": "OperatorFuncNode"}


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (edited(call), r"names (loader FunctionNode|os\.system)"),
        (edited(disguised), "names loader OperatorFuncNode"),
        (lambda path: skops.io.dumps(RandomForestClassifier(2).fit(np.eye(4), [0, 1, 0, 1])), "RandomForestClassifier"),
        (lambda path: b"no archive", "damaged"),
        (lambda path: path.read_bytes()[:-400], "damaged"),
        (lambda path: skops.io.dumps({"a": "b"}), "no ExtraTreesClassifier of 2 classes"),
    ],
)
def test_foreign_files_are_refused_before_anything_in_them_is_made(
    saved: Path, forge: Callable[[Path], bytes], message: str
) -> None:
    saved.write_bytes(forge(saved))
    with pytest.raises(ModelError, match=message):
        load_trees(saved, 2)


def test_trees_whose_nodes_point_outside_are_refused(fitted: MotionNetwork, saved: Path) -> None:
    load_trees(saved, 2)
    for field, value in (("left_child", 10**6), ("left_child", 0), ("feature", NUM_FEATURES), ("feature", -7)):
        trees = skops.io.loads(skops.io.dumps(fitted.trees), trusted=list(motion.TRUSTED))
        state = trees.estimators_[5].tree_.__getstate__()
        state["nodes"] = state["nodes"].copy()
        state["nodes"][field][0] = value
        trees.estimators_[5].tree_.__setstate__(state)
        with pytest.raises(ValueError, match="point outside"):
            motion._check_trees(trees, 2)


def test_trees_of_other_classes_are_refused(saved: Path) -> None:
    with pytest.raises(ModelError, match="of 3 classes"):
        load_trees(saved, 3)

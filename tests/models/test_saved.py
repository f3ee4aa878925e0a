"""Model folders: written, verified, read; predictions on every kind of input; a bare .pth."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tillwatch.clip_spec import ClipSpec, FrameStep, Lengths, Preprocessing, Roi
from tillwatch.data.frames import read_frames
from tillwatch.data.video import decode_video, to_image
from tillwatch.errors import ClipError, ConfigError, ModelError
from tillwatch.models.backbones import build_model
from tillwatch.models.saved import Classifier, OperatingPoint, Told, load_model, save_model, true_fp32
from tillwatch.training.loop import train


def make_spec(**options: Any) -> ClipSpec:
    preprocessing = Preprocessing(resize=(28, 28), crop=(24, 24), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    values: dict[str, Any] = {
        "arch": "tinynet",
        "classes": ("b", "a", "none"),
        "event": ("a", "b"),
        "num_frames": 4,
        "preprocessing": preprocessing,
    }
    return ClipSpec(**{**values, **options})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(
        folder,
        build_model("tinynet", 3, weights=None),
        make_spec(),
        temperature=2.0,
        operating_point=OperatingPoint(threshold=0.7, unit="clip", source="test"),
    )
    return folder


def test_what_is_saved_is_what_is_loaded(model: Path) -> None:
    loaded = load_model(model)
    assert loaded.spec == make_spec()
    assert loaded.temperature == 2.0
    assert loaded.operating_point == OperatingPoint(threshold=0.7, unit="clip", source="test")
    assert not loaded.network.training


def test_equal_weights_have_equal_hashes_whatever_the_folder(tmp_path: Path) -> None:
    network = build_model("tinynet", 3, weights=None)
    hashes = set()
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
        hashes.add(save_model(tmp_path / name, network, make_spec()))
    assert len(hashes) == 1


def test_any_changed_byte_of_the_weights_is_noticed(model: Path) -> None:
    weights = model / "model.pth"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(ModelError, match=r"not the file that model\.json describes"):
        load_model(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("classes"), "lacks 'classes'"),
        (lambda record: record.update(format=99), "has format 99; this version of Tillwatch reads format 1"),
        (lambda record: record.update(event=["c"]), "malformed"),
        (lambda record: record["steps"].reverse(), "steps are not ones that this version"),
        (lambda record: record["steps"][1].update(filter="bicubic"), "steps are not ones that this version"),
        (lambda record: record.update(classes=["b", "a"], event=["a"]), "not those of a tinynet with 2 classes"),
        (lambda record: record.update(arch="lenet"), "must be one of"),
        (lambda record: record.pop("temperature"), "malformed"),
        (lambda record: record["operating_point"].update(holds_for={"--window": 10**400}), "malformed"),
        (lambda record: record["operating_point"].update(holds_for={"--window": None}), "malformed"),
    ],
)
def test_damaged_model_json_is_refused(model: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    record = json.loads((model / "model.json").read_text(encoding="utf-8"))
    change(record)
    (model / "model.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        load_model(model)


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00"])
def test_model_json_that_is_no_json_object_is_refused(model: Path, content: str) -> None:
    (model / "model.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match="damaged"):
        load_model(model)


def test_missing_files_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no model\.json"):
        load_model(tmp_path / "empty")
    (model / "model.pth").unlink()
    with pytest.raises(ModelError, match=r"holds no model\.pth"):
        load_model(model)


def test_scores_on_a_gpu_are_computed_in_true_fp32_and_settings_restored() -> None:
    cudnn: Any = torch.backends.cudnn
    before = (cudnn.conv.fp32_precision, cudnn.enabled)
    with true_fp32(torch.device("cuda")):
        assert cudnn.conv.fp32_precision == "ieee"
        assert cudnn.enabled == before[1]
    assert (cudnn.conv.fp32_precision, cudnn.enabled) == before


def test_probabilities_are_softmax_of_logits_over_temperature(model: Path) -> None:
    loaded = load_model(model)
    clips = torch.randn(2, 3, 4, 24, 24)
    with torch.no_grad():
        logits = loaded.network(clips).double().numpy()
    expected = np.exp(logits / 2.0) / np.exp(logits / 2.0).sum(1, keepdims=True)
    np.testing.assert_allclose(loaded.probabilities(clips), expected, atol=1e-12)


def test_event_is_the_sum_of_its_classes_held_against_the_operating_point(model: Path) -> None:
    loaded = load_model(model)
    certain = loaded.prediction(np.array([0.3, 0.45, 0.25]))
    assert certain.predicted == "a"
    assert certain.probabilities == {"b": 0.3, "a": 0.45, "none": 0.25}
    assert certain.event_probability == pytest.approx(0.75)
    assert certain.is_event
    assert not loaded.prediction(np.array([0.3, 0.35, 0.35])).is_event, "0.65 is under the threshold of 0.7"


def test_frame_folder_video_and_array_of_the_same_frames_score_alike(
    model: Path, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    loaded = load_model(model)
    video = make_video(tmp_path / "clip.mp4", num_frames=9)
    frames = np.stack([np.asarray(to_image(frame)) for frame in decode_video(video)])
    (tmp_path / "clip").mkdir()
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{t}.png")  # lossless
    scores = [loaded.predict(source).event_probability for source in (video, str(tmp_path / "clip"), frames)]
    # Each its own arithmetic: FFmpeg's, Pillow's and torch's.
    assert scores[2] == pytest.approx(scores[1], abs=1e-4)  # a level apart
    assert scores[0] == pytest.approx(scores[2], abs=2e-4)  # two, and no level darker


def test_step_and_region_apply_to_videos(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    roi = Roi(x=0.25, y=0.5, width=0.5, height=0.5)
    spec = make_spec(step=FrameStep(every=3), roi=roi)
    loaded = Classifier(build_model("tinynet", 3, weights=None), spec)
    video = make_video(tmp_path / "clip.mp4", num_frames=20)
    wanted = np.stack([np.asarray(to_image(frame, roi)) for frame in decode_video(video)])[::3]
    assert loaded.predict(video) == loaded.predict(wanted)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 3, 28, 28), np.uint8),
        np.zeros((4, 28, 28, 3), np.float32),
        np.zeros((28, 28, 3), np.uint8),
        np.zeros((0, 28, 28, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind_are_refused(model: Path, array: Any) -> None:
    with pytest.raises(ClipError, match=r"must be uint8 \(T, H, W, 3\)"):
        load_model(model).predict(array)


@pytest.mark.parametrize(("num_frames", "warned"), [(4, True), (5, False), (40, False), (41, True)])
def test_clips_far_outside_the_lengths_of_training_are_scored_with_a_warning(num_frames: int, warned: bool) -> None:
    spec = make_spec(clip_frames=Lengths(median=15, min=10, max=20))
    loaded = Classifier(build_model("tinynet", 3, weights=None), spec)
    prediction = loaded.predict(np.zeros((num_frames, 30, 30, 3), np.uint8))
    assert bool(prediction.warnings) == warned


def test_length_is_held_against_seconds_where_both_are_known(tmp_path: Path, make_video: Callable[..., Path]) -> None:
    seconds, frames = Lengths(median=2, min=1, max=3), Lengths(median=1, min=1, max=1)
    loaded = Classifier(build_model("tinynet", 3, weights=None), make_spec(clip_seconds=seconds, clip_frames=frames))
    assert not loaded.predict(make_video(tmp_path / "two_seconds.mp4", num_frames=20, fps=10)).warnings
    warning = loaded.predict(make_video(tmp_path / "eight.mp4", num_frames=80, fps=10)).warnings[0]
    assert "lasts 8 s, training clips lasted 1 to 3" in warning


def test_predict_agrees_with_predictions_csv(tiny_run: tuple[Path, Path]) -> None:
    data, run = tiny_run
    loaded = load_model(run)
    with (run / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        prediction = loaded.predict(data / row["path"])
        assert prediction.predicted == row["predicted"]
        # Batches of another size add up in another order; more than rounding would be another preprocessing.
        assert prediction.probabilities["theft"] == pytest.approx(float(row["p_theft"]), abs=1e-6)


def test_bare_state_dict_needs_network_and_classes_and_says_what_is_assumed(tiny_run: tuple[Path, Path]) -> None:
    data, run = tiny_run
    clip = data / "theft" / "day0_0"
    with pytest.raises(ConfigError, match="--arch and --classes"):
        load_model(run / "model.pth")
    bare = load_model(run / "model.pth", told=Told(arch="tinynet", classes=["normal", "theft"]))
    assert "outputs are normal, theft in this order" in bare.assumptions[0]
    assert bare.spec.event == ("theft",)
    assert bare.predict(clip).probabilities == load_model(run).predict(clip).probabilities
    with pytest.raises(ModelError, match="not those of a tinynet with 3 classes"):
        load_model(run / "model.pth", told=Told(arch="tinynet", classes=["a", "b", "normal"]))
    with pytest.raises(ConfigError, match="says itself"):
        load_model(run, told=Told(arch="tinynet"))


def test_bare_state_dict_scores_as_its_run_when_told_how_it_was_trained(
    tmp_path: Path, frame_root: Path, tiny_config: Any, quiet: Any
) -> None:
    """The way of docs/usage.md for the weights of the original recipe, whose preprocessing is not the default."""
    recipe = {"every": 2, "normalize": False, "hold_out": False, "plateau_on": "train", "keep": "last"}
    run = tmp_path / "run"
    sizes: dict[str, Any] = {"resize": 34, "crop": 26, "num_frames": 5}
    train(frame_root, run, tiny_config(save_as="w.pth", **recipe, **sizes), quiet())
    told = Told(arch="tinynet", classes=["normal", "theft"], every=2, normalize=False, **sizes)
    bare, whole = load_model(run / "w.pth", told=told), load_model(run)
    assert bare.spec.preprocessing == whole.spec.preprocessing
    assert (bare.spec.step, bare.spec.num_frames) == (whole.spec.step, whole.spec.num_frames)
    clip = frame_root / "theft" / "clip0"
    assert bare.predict(clip).probabilities == whole.predict(clip).probabilities
    assert "5 frames, every 2 of the source, 34x34 cropped to 26x26, not normalised" in bare.assumptions[0]


@pytest.mark.parametrize("wrong", [{"num_frames": 0}, {"crop": 50}, {"every": 0}, {"resize": -1}, {"num_frames": 2}])
def test_impossible_words_of_a_bare_state_dict_are_refused(tiny_run: tuple[Path, Path], wrong: Any) -> None:
    with pytest.raises(ConfigError, match="--"):
        load_model(tiny_run[1] / "model.pth", told=Told(arch="tinynet", classes=["normal", "theft"], **wrong))


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), "warm"])
def test_senseless_temperatures_are_refused(model: Path, temperature: Any) -> None:
    record = json.loads((model / "model.json").read_text(encoding="utf-8"))
    (model / "model.json").write_text(json.dumps({**record, "temperature": temperature}), encoding="utf-8")
    with pytest.raises(ModelError, match="malformed"):
        load_model(model)


def test_scores_that_are_not_finite_are_an_error_and_no_prediction(model: Path) -> None:
    with pytest.raises(ModelError, match="not finite"):
        load_model(model).prediction(np.array([np.nan, 0.5, 0.5]))


def test_model_folder_alone_is_enough(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = tiny_run
    for name in ("model.pth", "model.json"):
        shutil.copy(run / name, tmp_path)
    clip = data / "normal" / "day1_1"
    assert load_model(tmp_path).predict(clip) == load_model(run).predict(clip)


def test_frames_read_for_prediction_are_resized_like_those_of_training(
    tmp_path: Path, make_frames: Callable[..., Path]
) -> None:
    folder = make_frames(tmp_path / "clip", num_frames=4, height=90, width=70)
    by_hand = [
        np.asarray(Image.open(path).convert("RGB").resize((28, 28), Image.Resampling.BILINEAR))
        for path in sorted(folder.iterdir())
    ]
    np.testing.assert_array_equal(read_frames(sorted(folder.iterdir()), (28, 28)), np.stack(by_hand))

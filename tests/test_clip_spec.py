from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tillwatch.clip_spec import (
    ClipSpec,
    FrameStep,
    Lengths,
    Preprocessing,
    Roi,
    choose_event,
    draft_for,
    event_scores,
    frame_indices,
    seconds_of,
)
from tillwatch.errors import ConfigError, DataError, ModelError

MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


# --- frame_indices -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_available", "num_frames", "expected"),
    [
        pytest.param(3, 8, [0, 0, 0, 0, 1, 1, 1, 2], id="fewer available than wanted: frames repeat"),
        pytest.param(2, 5, [0, 0, 0, 0, 1], id="two frames for five"),
        pytest.param(6, 6, [0, 1, 2, 3, 4, 5], id="as many as wanted: each once"),
        pytest.param(32, 32, list(range(32)), id="32 of 32"),
        pytest.param(10, 4, [0, 3, 6, 9], id="more: even spread"),
        pytest.param(12, 5, [0, 2, 5, 8, 11], id="more: fractions are cut off"),
        pytest.param(100, 2, [0, 99], id="first and last"),
        pytest.param(1, 4, [0, 0, 0, 0], id="a single frame available"),
        pytest.param(9, 1, [0], id="a single frame wanted"),
        pytest.param(1, 1, [0], id="one of one"),
    ],
)
def test_frame_indices_table(num_available: int, num_frames: int, expected: list[int]) -> None:
    indices = frame_indices(num_available, num_frames)
    assert indices.tolist() == expected
    assert indices.dtype == np.int64


@given(num_available=st.integers(1, 20_000), num_frames=st.integers(2, 64))
@settings(max_examples=200, deadline=None)
def test_frame_indices_are_spread_evenly_from_the_first_to_the_last_frame(num_available: int, num_frames: int) -> None:
    indices = frame_indices(num_available, num_frames).tolist()
    assert (indices[0], indices[-1], len(indices)) == (0, num_available - 1, num_frames)
    for place, index in enumerate(indices):
        exact = Fraction(place * (num_available - 1), num_frames - 1)
        # Cut off, and where the exact place is a whole number, floating point may fall just short of it.
        assert exact - 1 <= index <= exact


@pytest.mark.parametrize(("num_available", "num_frames"), [(0, 4), (4, 0), (-1, 1)])
def test_frame_indices_refuses_numbers_below_one(num_available: int, num_frames: int) -> None:
    with pytest.raises(ValueError, match=f"{num_frames} of {num_available} frames"):
        frame_indices(num_available, num_frames)


# --- FrameStep ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "source_fps", "expected"),
    [
        (FrameStep(), None, 1),
        (FrameStep(), 25.0, 1),
        (FrameStep(every=5), None, 5),
        (FrameStep(every=5), 30.0, 5),
        (FrameStep(fps=8), 25.0, 3),
        (FrameStep(fps=8), 30000 / 1001, 4),
        (FrameStep(fps=8), 8.0, 1),
        (FrameStep(fps=8), 5.0, 1),  # a slower source gives all its frames
        (FrameStep(fps=0.5), 25.0, 50),
    ],
)
def test_step_through_a_source(step: FrameStep, source_fps: float | None, expected: int) -> None:
    assert step.of_source(source_fps) == expected


def test_a_rate_cannot_be_kept_for_a_source_of_unknown_rate() -> None:
    with pytest.raises(DataError, match="frame rate is unknown"):
        FrameStep(fps=8).of_source(None)


@pytest.mark.parametrize(
    ("step", "stored_every", "stored_fps", "expected"),
    [
        pytest.param(FrameStep(), 1, 25.0, 1, id="all of all"),
        pytest.param(FrameStep(every=5), None, None, 1, id="unknown: the stored frames are the wanted ones"),
        pytest.param(FrameStep(fps=8), None, None, 1, id="unknown, with a rate"),
        pytest.param(FrameStep(every=5), 5, 5.0, 1, id="stored as wanted"),
        pytest.param(FrameStep(every=10), 5, None, 2, id="every second of those stored"),
        pytest.param(FrameStep(every=6), 1, 25.0, 6, id="all stored"),
        pytest.param(FrameStep(fps=8), 1, 25.0, 3, id="rate, all stored"),
        pytest.param(FrameStep(fps=4), 3, 25 / 3, 2, id="rate of the source, not of the stored frames"),
    ],
)
def test_step_through_stored_frames(
    step: FrameStep, stored_every: int | None, stored_fps: float | None, expected: int
) -> None:
    assert step.of_stored(stored_every, stored_fps) == expected


@pytest.mark.parametrize(
    ("step", "stored_every", "stored_fps", "message"),
    [
        (FrameStep(every=3), 2, 12.5, r"every 3\. frame of the source is wanted, but every 2\. was extracted"),
        (FrameStep(every=1), 5, 5.0, r"every 1\. frame of the source is wanted, but every 5\. was extracted"),
        (FrameStep(fps=25), 5, 5.0, r"every 1\. frame of the source is wanted, but every 5\."),
        (FrameStep(fps=8), 2, None, "frame rate is unknown"),
    ],
)
def test_wanted_frames_that_were_not_stored(
    step: FrameStep, stored_every: int, stored_fps: float | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        step.of_stored(stored_every, stored_fps)


@given(
    every=st.integers(1, 12),
    stored_every=st.integers(1, 12),
    num_source=st.integers(1, 60),
)
@settings(max_examples=100, deadline=None)
def test_stored_frames_and_source_give_the_same_frames(every: int, stored_every: int, num_source: int) -> None:
    source = list(range(num_source))
    stored = source[::stored_every]
    step = FrameStep(every=every)
    if every % stored_every:
        with pytest.raises(DataError):
            step.of_stored(stored_every, None)
    else:
        assert stored[:: step.of_stored(stored_every, None)] == source[:: step.of_source(None)]


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"every": -2},
        {"fps": 0.0},
        {"fps": -8.0},
        {"fps": float("nan")},
        {"fps": float("inf")},
        {"every": 2, "fps": 8.0},
    ],
)
def test_senseless_steps_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"--every|--fps"):
        FrameStep(**options)


# --- Roi ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,0,1,1", (0.0, 0.0, 1.0, 1.0)),
        ("0.25,0.5,0.5,0.5", (0.25, 0.5, 0.5, 0.5)),
        (" 0.25, 0.5, 0.5, 0.5 ", (0.25, 0.5, 0.5, 0.5)),
        ("0.7,0.1,0.3,0.9", (0.7, 0.1, 0.3, 0.9)),
    ],
)
def test_parse_roi(text: str, expected: tuple[float, float, float, float]) -> None:
    roi = Roi.parse(text)
    assert (roi.x, roi.y, roi.width, roi.height) == expected
    assert Roi.parse(str(roi)) == roi


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0,0,1",
        "0,0,1,1,1",
        "left,0,1,1",
        "-0.1,0,1,1",
        "0,-0.1,1,1",
        "0.6,0,0.5,1",
        "0,0.6,1,0.5",
        "0,0,0,1",
        "0,0,1,0",
        "0,0,-0.5,1",
        "nan,0,1,1",
        "0,0,nan,1",
        "0,0,inf,1",
        "1,0,0.5,1",
        "25,50,50,50",
    ],
)
def test_roi_outside_the_frame_or_malformed_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--roi is .*0\.25,0\.5,0\.5,0\.5"):
        Roi.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,0,1,1", (0, 0, 48, 40)),
        ("0.25,0.5,0.5,0.5", (12, 20, 36, 40)),
        ("0.5,0,0.5,0.25", (24, 0, 48, 10)),
        ("0.999,0.999,0.001,0.001", (47, 39, 48, 40)),  # never less than a pixel, never outside
        ("0,0,0.001,0.001", (0, 0, 1, 1)),
    ],
)
def test_roi_in_pixels(text: str, expected: tuple[int, int, int, int]) -> None:
    assert Roi.parse(text).box(height=40, width=48) == expected


@given(
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
)
@settings(max_examples=150, deadline=None)
def test_roi_is_never_empty_and_never_outside(corners: list[float], height: int, width: int) -> None:
    (x0, x1), (y0, y1) = sorted(corners[:2]), sorted(corners[2:])
    if x1 - x0 <= 0 or y1 - y0 <= 0:
        return
    left, top, right, bottom = Roi(x=x0, y=y0, width=x1 - x0, height=y1 - y0).box(height, width)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


# --- Preprocessing -----------------------------------------------------------------------------------


def test_preprocessing_steps_as_written() -> None:
    preprocessing = Preprocessing(resize=(72, 80), crop=(64, 66), mean=MEAN, std=STD)
    assert preprocessing.to_steps() == [
        {"step": "decode", "colour": "RGB", "dtype": "uint8"},
        {"step": "resize", "height": 72, "width": 80, "method": "PIL.Image.resize", "filter": "bilinear"},
        {"step": "center_crop", "height": 64, "width": 66},
        {"step": "scale", "divide_by": 255},
        {"step": "normalize", "mean": list(MEAN), "std": list(STD)},
    ]


@pytest.mark.parametrize("normalized", [True, False])
def test_preprocessing_round_trip(normalized: bool) -> None:
    mean, std = (MEAN, STD) if normalized else (None, None)
    preprocessing = Preprocessing(resize=(72, 80), crop=(64, 66), mean=mean, std=std)
    steps = json.loads(json.dumps(preprocessing.to_steps()))
    assert len(steps) == (5 if normalized else 4)
    assert Preprocessing.from_steps(steps) == preprocessing


def good_steps() -> list[dict[str, Any]]:
    return Preprocessing(resize=(72, 80), crop=(64, 66), mean=MEAN, std=STD).to_steps()


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([], id="none"),
        pytest.param(None, id="null"),
        pytest.param(["resize", "center_crop"], id="names alone"),
        pytest.param(good_steps()[1:], id="without decode"),
        pytest.param([s for s in good_steps() if s["step"] != "resize"], id="without resize"),
        pytest.param([s for s in good_steps() if s["step"] != "scale"], id="without scale"),
        pytest.param(good_steps()[::-1], id="in another order"),
        pytest.param([*good_steps(), {"step": "grayscale"}], id="an unknown step"),
        pytest.param([*good_steps(), good_steps()[1]], id="resized twice"),
        pytest.param([s | {"colour": "BGR"} if s["step"] == "decode" else s for s in good_steps()], id="BGR"),
        pytest.param([s | {"filter": "nearest"} if s["step"] == "resize" else s for s in good_steps()], id="filter"),
        pytest.param([s | {"antialias": False} if s["step"] == "resize" else s for s in good_steps()], id="extra key"),
        pytest.param([s | {"divide_by": 1} if s["step"] == "scale" else s for s in good_steps()], id="other scale"),
        pytest.param([s | {"height": "tall"} if s["step"] == "resize" else s for s in good_steps()], id="no number"),
        pytest.param([s | {"height": 72.5} if s["step"] == "resize" else s for s in good_steps()], id="half a pixel"),
        pytest.param([s | {"mean": [0.5]} if s["step"] == "normalize" else s for s in good_steps()], id="one mean"),
        pytest.param(
            [s | {"height": 200} if s["step"] == "center_crop" else s for s in good_steps()], id="crop>resize"
        ),
    ],
)
def test_preprocessing_that_is_not_carried_out_is_refused(steps: Any) -> None:
    with pytest.raises(ModelError, match=r"model\.json: its preprocessing steps"):
        Preprocessing.from_steps(steps)


# --- ClipSpec ----------------------------------------------------------------------------------------


def full_spec() -> ClipSpec:
    return ClipSpec(
        arch="r2plus1d_18",
        classes=("normal", "diebstahl größer", "theft"),
        event=("diebstahl größer", "theft"),
        num_frames=16,
        step=FrameStep(fps=8),
        roi=Roi(x=0.25, y=0.5, width=0.5, height=0.5),
        preprocessing=Preprocessing(resize=(72, 80), crop=(64, 66), mean=MEAN, std=STD),
        clip_seconds=Lengths(median=2.5, min=1.0, max=9.25),
        clip_frames=Lengths(median=20, min=8, max=74),
    )


def bare_spec() -> ClipSpec:
    return ClipSpec(
        arch="s3d",
        classes=("a", "b"),
        event=("b",),
        num_frames=1,
        preprocessing=Preprocessing(resize=(32, 32), crop=(32, 32), mean=None, std=None),
    )


@pytest.mark.parametrize("spec", [full_spec(), bare_spec()], ids=["full", "bare"])
def test_spec_survives_json(spec: ClipSpec) -> None:
    text = json.dumps(spec.to_json(), allow_nan=False)
    assert ClipSpec.from_json(json.loads(text)) == spec


def test_event_indices_follow_the_order_of_the_outputs() -> None:
    assert full_spec().event_indices == (1, 2)
    assert bare_spec().event_indices == (1,)


def test_event_scores_are_sums_without_the_noise_of_their_last_digit() -> None:
    scores = np.array([[[0.7, 0.1, 0.2], [0.6, 0.2, 0.2]], [[0.1, 0.2, 0.7], [0.0, 0.0, 1.0]]])
    assert event_scores(scores, (0, 1)).tolist() == [[0.8, 0.8], [0.3, 0.0]]
    assert event_scores(scores, (1,)).tolist() == scores[..., 1].tolist()
    small = np.array([[1e-20, 1e-20], [1e-20, 1.1e-20], [1e-320, 0.0]])  # still told apart
    assert event_scores(np.array([0.33333334, 0.33333334, 0.33333334, 0.0]), (0, 1, 2)) == 1.0
    assert (np.diff(event_scores(small, (0, 1))) != 0).all()
    assert event_scores(small, (0, 1)) == pytest.approx([2e-20, 2.1e-20, 0], rel=1e-13)


@pytest.mark.parametrize("key", sorted(full_spec().to_json()))
def test_a_spec_that_lacks_a_key_says_which(key: str) -> None:
    data = full_spec().to_json()
    del data[key]
    with pytest.raises(ModelError, match=rf"model\.json lacks '{key}'"):
        ClipSpec.from_json(data)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"classes": None}, id="classes null"),
        pytest.param({"classes": []}, id="no classes"),
        pytest.param({"classes": ["theft", "theft", "normal"], "event": ["theft"]}, id="a class twice"),
        pytest.param({"classes": "ab", "event": ["a"]}, id="classes a string"),
        pytest.param({"event": []}, id="no event"),
        pytest.param({"event": ["fire"]}, id="event not a class"),
        pytest.param({"num_frames": "many"}, id="frames no number"),
        pytest.param({"num_frames": None}, id="frames null"),
        pytest.param({"num_frames": 0}, id="no frames"),
        pytest.param({"num_frames": 8.5}, id="half a frame"),
        pytest.param({"step": {"every": 0, "fps": None}}, id="step 0"),
        pytest.param({"step": {"every": 2.5, "fps": None}}, id="step 2.5"),
        pytest.param({"step": {"every": "2", "fps": None}}, id="step a string"),
        pytest.param({"step": {"every": 1, "fps": None, "stride": 2}}, id="unknown step key"),
        pytest.param({"step": None}, id="step null"),
        pytest.param({"roi": {"x": 0.5, "y": 0, "width": 0.6, "height": 1}}, id="roi outside"),
        pytest.param({"roi": "0,0,1,1"}, id="roi a string"),
        pytest.param({"steps": []}, id="no preprocessing"),
        pytest.param({"steps": None}, id="preprocessing null"),
        pytest.param({"clip_seconds": {"median": 1.0}}, id="lengths incomplete"),
        pytest.param({"clip_frames": [1, 2, 3]}, id="lengths a list"),
    ],
)
def test_a_malformed_spec_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"model\.json"):
        ClipSpec.from_json(full_spec().to_json() | change)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_json_that_is_no_object_is_refused(data: Any) -> None:
    with pytest.raises(ModelError, match=r"model\.json is malformed"):
        ClipSpec.from_json(data)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([2.0], Lengths(median=2.0, min=2.0, max=2.0)),
        ([4, 1, 2], Lengths(median=2.0, min=1.0, max=4.0)),
        ([1, 2, 3, 10 / 3], Lengths(median=2.5, min=1.0, max=3.333)),
    ],
)
def test_lengths(values: list[float], expected: Lengths | None) -> None:
    assert Lengths.of(values) == expected


@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"),
    [
        (50, 25, 2.0),
        (30, Fraction(30000, 1001), 1.001),
        (5, None, None),
        (5, 0, None),
    ],
)
def test_seconds_of(num_frames: int, fps: float | Fraction | None, expected: float | None) -> None:
    assert seconds_of(num_frames, fps) == expected


# --- choose_event ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "wanted", "expected"),
    [
        (["cashlifting", "normal"], None, ("cashlifting",)),
        (["normal", "cashlifting"], None, ("cashlifting",)),
        (["fight", "noFight"], None, ("fight",)),
        (["Theft", "Non-Theft"], None, ("Theft",)),
        (["theft", "Background", "NEGATIVE", "other", "none"], None, ("theft",)),
        (["b_theft", "normal", "a_theft"], None, ("b_theft", "a_theft")),
        (["fall", "fight"], ["fall"], ("fall",)),
        (["c", "b", "a"], ["a", "c"], ("c", "a")),  # in the order of the outputs, not of the request
        (["normal", "theft"], ["normal"], ("normal",)),  # what is asked for wins over the names
    ],
)
def test_choose_event(classes: list[str], wanted: list[str] | None, expected: tuple[str, ...]) -> None:
    assert choose_event(classes, wanted) == expected


@pytest.mark.parametrize(
    ("classes", "wanted", "message"),
    [
        (["fall", "fight"], None, r"which of the classes fall, fight .* --event"),
        (["normal", "none"], None, r"which of the classes normal, none .* --event"),
        (["fall", "normal"], ["fal"], "'fal'.*fall, normal"),
        (["fall", "normal"], ["fall", "normal"], "leave at least one out"),
        (["fall", "normal"], [], "leave at least one out"),
    ],
)
def test_an_event_that_is_not_settled_is_refused(classes: list[str], wanted: list[str] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_event(classes, wanted)


def test_reduced_decoding_is_named_in_the_steps_and_older_models_keep_decoding_whole() -> None:
    new = Preprocessing(resize=(128, 128), crop=(112, 112), mean=None, std=None, draft=draft_for((128, 128)))
    decode = new.to_steps()[0]
    assert decode["jpeg_draft"] == {"height": 256, "width": 256, "method": "PIL.Image.draft"}
    assert Preprocessing.from_steps(new.to_steps()) == new
    old = [{key: value for key, value in decode.items() if key != "jpeg_draft"}, *new.to_steps()[1:]]
    assert Preprocessing.from_steps(old).draft is None
    for wrong in ({"height": 256}, {"height": 256, "width": 256, "method": "guess"}, 256, {"height": "x", "width": 2}):
        with pytest.raises(ModelError, match="preprocessing steps"):
            Preprocessing.from_steps([{**decode, "jpeg_draft": wrong}, *new.to_steps()[1:]])

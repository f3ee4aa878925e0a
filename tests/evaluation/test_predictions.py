"""Tables of predictions: read, and refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tillwatch.errors import DataError
from tillwatch.evaluation.numbers import readable, readable_hours
from tillwatch.evaluation.predictions import read_predictions
from tillwatch.evaluation.summary import Footage, summarize

HEAD = "path,label,p_theft,p_normal\n"
GOOD = "a,theft,0.9,0.1\nb,normal,0.25,0.75\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "predictions.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_what_is_there(tmp_path: Path) -> None:
    found = read_predictions(
        written(tmp_path, "path,label,group,split,p_theft,p_normal\na,theft,g,test,0.9,0.1\nb,normal,,test,0,1\n")
    )
    assert found.names == ("a", "b")
    assert found.classes == ("theft", "normal")
    assert found.labels.tolist() == [0, 1]
    assert found.groups == ("g", "b"), "a clip without a group is one of its own"
    assert found.splits == ("test", "test")
    assert found.probabilities.tolist() == [[0.9, 0.1], [0.0, 1.0]]
    assert read_predictions(written(tmp_path, HEAD + GOOD)).splits == ("", "")


def test_scores_of_three_digits_may_be_off_by_half_a_digit_a_class(tmp_path: Path) -> None:
    text = "path,label,p_a,p_b,p_c\n" + "x,a,0.879,0.079,0.041\ny,b,0.3335,0.334,0.334\n"
    assert read_predictions(written(tmp_path, text)).names == ("x", "y")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no predictions"),
        (HEAD, "holds no predictions"),
        ("path,p_a,p_b\nx,0,1\n", "lacks the column 'label'"),
        ("path,label,p_theft\na,theft,1\n", "has 1 column p_<class>"),
        (HEAD + GOOD + " ,theft,1,0\n", "1 of 3 rows have no path, the first is line 4"),
        (HEAD + GOOD + "c,theft,0.9,0.1,0.5\n", "line 4 has more fields than the header"),
        (HEAD + "a,thef,0.9,0.1\n", "no column p_thef. Did you mean 'theft'"),
        (HEAD + GOOD + "c,theft,nan,0.1\n", "1 of 3 clips have scores that are not finite, the first is 'c'"),
        (HEAD + GOOD + "c,theft,,0.1\n", "not finite"),
        (HEAD + GOOD + "c,theft,high,0.1\n", "p_theft of 'c' is 'high'; it must be a number"),
        (HEAD + GOOD + "c,theft,0.9,0.9\n", "do not sum to 1, the first is 'c': 0.9, 0.9"),
        (HEAD + GOOD + "c,theft,0.9,0.098\n", "do not sum to 1, the first is 'c': 0.9, 0.098"),
        (HEAD + GOOD + "./a,theft,0.9,0.1\n", "'a' stands in 2 rows"),
        (HEAD + GOOD + "c,theft,1.5,-0.5\n", "a score outside 0 to 1"),
        (HEAD + GOOD + "a,theft,0.9,0.1\n", "'a' stands in 2 rows"),
        (HEAD + "a,theft,0.9,0.1\nb,theft,0.9,0.1\n", "all 2 clips are of the class 'theft'"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        read_predictions(written(tmp_path, text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "predictions.csv" in str(caught.value)


def test_two_clips_and_one_group_are_summarised_with_words_instead_of_intervals() -> None:
    two = summarize(np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]]), ["all", "all"], [0], 0.5)
    assert all(figure.interval is None for figure in two.figures.values())
    assert any("into 1 group," in sentence and "tillwatch crossval" in sentence for sentence in two.sentences)
    assert any("1 event clips are too few" in sentence for sentence in two.sentences)
    alone = summarize(np.array([0, 0]), np.array([[0.9, 0.1], [0.2, 0.8]]), ["a", "b"], [0], 0.5)
    assert alone.figures["event_auroc"].value is None
    assert alone.calibration is None


def test_figures_without_an_interval_are_named_and_no_others() -> None:
    random = np.random.default_rng(0)
    groups = [f"g{place % 20}" for place in range(200)]
    event = np.array([place % 20 < 5 for place in range(200)])
    scores = np.clip(0.35 + 0.3 * event + random.normal(0, 0.2, 200), 0, 1)
    found = summarize(np.where(event, 0, 1), np.stack([scores, 1 - scores], 1), groups, [0], 0.5)
    without = {name for name, figure in found.figures.items() if figure.interval is None}
    assert without == set(found.figures) - {"accuracy"}, "precision too rests on events, of 5 groups"
    (sentence,) = found.sentences
    assert sentence.startswith(
        "no interval of balanced accuracy, AUROC, average precision, recall, precision, F1: the event clips, on which "
        "they rest, fall into 5 groups"
    )
    spread = summarize(
        np.arange(200) % 2, np.stack([scores, 1 - scores], 1), [f"g{k // 10}" for k in range(200)], [0], 0.5
    )
    assert all(figure.interval is not None for figure in spread.figures.values())
    assert spread.sentences == ()


def test_alarms_a_day_stand_in_the_summary_where_the_prevalence_is_told() -> None:
    labels, scores = np.arange(40) % 2, np.linspace(0, 1, 40)
    told = Footage(normal_hours=2.0, hours_told=True, clip_hours=0.01, prevalence=0.01)
    summary = summarize(labels, np.stack([scores, 1 - scores], 1), [str(i) for i in range(40)], [0], 0.5, told)
    day = summary.alarms_a_day  # 20 normal clips in 2 h: 240 a day
    assert day is not None
    assert day.true + day.false == pytest.approx(240 * (0.01 * 0.5 + 0.99 * 0.5))
    assert day.true_share == pytest.approx(0.01)
    alarms = summary.at_point.alarms
    assert alarms is not None
    assert day.false == pytest.approx(0.99 * 24 * alarms.per_hour), "one account"
    text = " ".join(summary.lines(0.5))
    assert "10 false alarms in 2 h" in text
    none = summarize(labels, np.stack([labels == 0, labels == 1], 1).astype(float), ["a"] * 40, [0], 0.5, told)
    assert "0 false alarms in 2 h of normal footage: 0 an hour (at most 1.5, 95 %)" in " ".join(none.lines(0.5))
    assert "120 alarms, 1.2 of them true and 119 false (57 to 218, 95 %): 0.546 to 2.06 % of all alarms" in text
    assert "the 2 h of normal footage are taken on trust, the normal clips last 36 s" in text
    assert "at least" in " ".join(none.lines(0.5)), "no false alarm is no certainty"
    own = summarize(labels, np.stack([scores, 1 - scores], 1), ["a"] * 40, [0], 0.5, Footage(normal_hours=0.01))
    assert any("the rest of the day looks like these clips" in sentence for sentence in own.sentences)


def test_numbers_are_read_without_exponents() -> None:
    numbers = {
        11508.0: "11,500",
        0.0: "0",
        6.0: "6",
        0.0012345: "0.00123",
        1.5e-7: "0.00000015",
        999.9: "1,000",
        14.04: "14",
    }
    assert {value: readable(value) for value in numbers} == numbers


def test_times_are_told_in_the_unit_that_suits_them() -> None:
    times = {
        30.0: "30 h",
        1.0: "1 h",
        0.999: "59.9 min",
        0.0347: "2.08 min",
        1 / 60: "1 min",
        0.002: "7.2 s",
        0.0: "0 s",
    }
    assert {hours: readable_hours(hours) for hours in times} == times

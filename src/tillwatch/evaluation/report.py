"""What was evaluated to report.html: one file that asks for nothing, for a shop manager above and an engineer below."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tillwatch.data.splits import n_groups
from tillwatch.errors import RunError, one_line
from tillwatch.evaluation import plots
from tillwatch.evaluation.curves import Step, pr_curve, roc_curve, threshold_steps
from tillwatch.evaluation.evaluated import GIVEN, Evaluated, Told, read_evaluated
from tillwatch.evaluation.exposure import CROSS_VALIDATION
from tillwatch.evaluation.findings import parts, pooled, rivals, summary_of, verdict
from tillwatch.evaluation.intervals import MIN_GROUPS
from tillwatch.evaluation.numbers import readable, readable_hours
from tillwatch.evaluation.operating_point import Alarms, false_alarms_per_hour
from tillwatch.evaluation.paired import Rival
from tillwatch.evaluation.summary import Summary
from tillwatch.files import shell_word, write_text

REPORT_HTML = "report.html"

#: Stands where there is no number.
NONE = "\u2013"

#: The explorer's slider has this many steps from 0 to 1.
SLIDER_STEPS = 200

_PARTS_AT_MOST = 40

_NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "event_auroc": "AUROC of the event",
    "event_average_precision": "Average precision of the event",
    "recall": "Recall of the event",
    "precision": "Precision of the event",
    "f1": "F1 of the event",
}

_TONES = {
    "good": "Measured, with intervals",
    "unsure": "Not settled by these clips",
    "bad": "Do not rely on it as it stands",
}

_SECTIONS = {
    "claim": "Claim",
    "verdict": "Verdict",
    "figures": "Figures",
    "baselines": "Baselines",
    "curves": "Curves",
    "explorer": "Threshold",
    "confusion": "Confusion",
    "groups": "Groups",
    "clips": "Clips",
    "learning": "Learning",
    "audit": "Audit",
    "repeat": "Repeat it",
}


def render_report(found: Evaluated, strips: Sequence[Any] = (), looked_note: str | None = None) -> str:
    """Renders the page; the same input gives the same bytes.

    Args:
        found: what was evaluated.
        strips: pictures of clips, :class:`tillwatch.evaluation.filmstrips.Strip`.
        looked_note: why no picture shows where the network looked.
    """
    summary, compared = summary_of(found), rivals(found)
    script = _packaged("report.js").strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = {
        "title": found.source.resolve().name,
        "kind": found.kind,
        "style": Markup(_packaged("report.css")),
        "script": Markup(script),
        "script_sha256": digest,
        "summary": summary,
        "point": summary.at_point,
        "threshold": found.threshold,
        "at_which": _at_which(found),
        "event": " or ".join(found.event),
        "repeats": found.repeats,
        "notes": found.notes,
        "verdict": verdict(found, summary, compared),
        "tone_words": _TONES,
        "learnt_from": found.exposure.learnt_from,
        "figures": [(_NAMES[name], figure) for name, figure in summary.figures.items()],
        **_claim(found),
        **_compared(summary, compared),
        **_curves(found, summary),
        **_explorer(found, summary),
        **_confusion(found, summary),
        **_by_group(found),
        **_pictures(found, strips, looked_note),
        **_learning(found),
        **_repeat(found),
        "audit": _audit(found.audit) if found.exposure.own_clips else None,
        "own_clips": found.exposure.own_clips,
        "skipped": found.record.get("skipped") or (),
    }
    learnt = page["losses"] is not None
    page["sections"] = [(key, name) for key, name in _SECTIONS.items() if learnt or key != "learning"]
    return _environment().from_string(_packaged("report.html.j2")).render(page)


def _environment() -> Environment:
    # Names of clips and classes come from whoever made the files: everything is escaped that is not Markup.
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {
        "decimals": lambda value, digits: f"{value:.{digits}f}",
        "plusminus": lambda value: f"{value:+.3f}",
        "capfirst": lambda text: text[:1].upper() + text[1:],
    }
    return made


def _packaged(name: str) -> str:
    return (files("tillwatch.evaluation") / "templates" / name).read_text(encoding="utf-8")


def _claim(found: Evaluated) -> dict[str, Any]:
    groups = len(set(found.groups))
    told_apart = "1 group was" if groups == 1 else f"{groups} groups were"
    claim = claim_of(found)
    scored = f"{len(found.names)} clips in {n_groups(groups)}"
    times = f", {found.repeats} times each" if found.repeats > 1 else ""
    what = _what_they_are(found)
    return {
        "facts": f"{scored}{times}{f' ({what})' if what else ''}. The event: {' or '.join(found.event)}.",
        "claim": claim if any(claim.values()) else None,
        "no_claim": (
            ""
            if found.exposure.own_clips
            else "These are other clips than the run's own, and its audit did not look at them: tillwatch audit tells "
            "of their folder what such a score can claim. "
        )
        + (
            "A score holds for clips that come about as these did: the same cameras, rooms and people, unless groups "
            f"keep them apart. Here {told_apart} told apart; "
            + (
                "whether a group is a camera, a day or a single clip is for whoever named them to say."
                if found.groups_told
                else "nobody named them, so most are a single clip each."
            )
            + (" All clips are of one group: nothing here says how the model does on another." if groups == 1 else "")
        ),
    }


def _what_they_are(found: Evaluated) -> str:
    """Says what the model had to do with the clips, for the brackets behind their number."""
    exposure = found.exposure
    if exposure.groups_divided:
        return "groups divided between training and test"
    if exposure.learnt_from == len(found.names):
        return "the model learnt from them"
    if exposure.chosen_on == len(found.names):
        return "the best epoch, the temperature or the operating point was chosen on them"
    parts = ["" if exposure.own_clips else "other clips than the run's own"]
    if exposure.learnt_from:
        parts.append(f"the model learnt from {exposure.learnt_from} of them")
    if exposure.chosen_on:
        parts.append(f"choices were made on {exposure.chosen_on} of them")
    if not any(parts):
        parts = [
            {
                "test": "held out of training",
                "out of fold": "each scored by a model that had seen neither it nor its group",
            }.get(found.split, "")
        ]
    return "; ".join(part for part in parts if part)


def claim_of(found: Evaluated) -> dict[str, str]:
    """Returns what a score of these clips can claim, and what not; empty where nothing is known of that."""
    exposure = found.exposure
    why = None
    if exposure.groups_divided:
        why = "groups were divided, clips of one were learnt from and tested, so these figures leak"
    if exposure.learnt_from:
        why = f"the model learnt from {exposure.learnt_from} of these {exposure.clips} clips"
    elif exposure.chosen_on:
        why = (
            f"epoch, temperature or operating point were chosen on {exposure.chosen_on} of these {exposure.clips} clips"
        )
    if why is not None:
        return {"can": "", "cannot": f"How the model does on any other clips: {why}."}
    # The run's audit is of the run's clips, and of no others.
    claim = (found.audit.get("claim") or found.record.get("claim")) if exposure.own_clips else None
    told = claim if isinstance(claim, Mapping) else {}
    return {name: str(told.get(name) or "") for name in ("can", "cannot")}


def _audit(audit: Mapping[str, Any]) -> dict[str, Any] | None:
    """Takes what is there of audit.json, every part of which may be absent."""
    if not audit:
        return None
    classes, groups = audit.get("classes"), audit.get("groups")
    findings = [one for one in audit.get("findings") or () if isinstance(one, Mapping)]
    cues = [one for one in audit.get("cues") or () if isinstance(one, Mapping)]
    return {
        "classes": classes if isinstance(classes, Mapping) else {},
        "groups": groups.get("count") if isinstance(groups, Mapping) else None,
        "how": str(groups.get("how") or "") if isinstance(groups, Mapping) else "",
        "findings": [
            {
                "severity": str(one.get("severity") or "note"),
                "text": str(one.get("text") or ""),
                # Most findings name their clips in words already.
                "clips": [name for name in map(str, one.get("clips") or ()) if name not in str(one.get("text") or "")],
            }
            for one in findings
        ],
        "cues": [{name: one.get(name) for name in ("cue", "auroc", "low", "high", "flagged")} for one in cues],
    }


def _compared(summary: Summary, compared: Sequence[Rival]) -> dict[str, Any]:
    name = "balanced_accuracy"
    rows = [("this model", summary.figures[name]), *((rival.name, rival.figures[name]) for rival in compared)]
    told = "; ".join(f"{who} {figure}" for who, figure in rows)
    return {"rivals": compared, "forest": plots.forest_plot(rows, f"Balanced accuracy with intervals: {told}")}


def _curves(found: Evaluated, summary: Summary) -> dict[str, Any]:
    # No bands where they would speak of other groups.
    groups = ("",) * len(found.groups) if found.exposure.learnt_from else found.groups
    roc = roc_curve(found.is_event, found.event_scores, groups)
    pr = pr_curve(found.is_event, found.event_scores, groups)
    if roc is None or pr is None:
        return {"roc": None, "pr": None, "band_note": ""}
    point, auroc = summary.at_point, summary.figures["event_auroc"]
    rate, recall = point.false_alarms / point.others, point.recall or 0.0
    right = None if point.precision is None else (recall, point.precision)
    chance = str(point.events / (point.events + point.others))
    average = summary.figures["event_average_precision"]
    return {
        "roc": plots.curve_plot(
            roc, "false positive rate", "recall", f"ROC curve, area {auroc}", (rate, recall), "diagonal"
        ),
        "pr": plots.curve_plot(
            pr, "recall", "precision", f"Precision-recall curve, average precision {average}", right, chance
        ),
        "band_note": _band_note(pr.band)
        if roc.band
        else "No bands: the model learnt from these clips."
        if found.exposure.learnt_from
        else f"No bands: the events must fall into {MIN_GROUPS} groups or more.",
    }


def _band_note(of_precision: Sequence[object]) -> str:
    if of_precision:
        return (
            "The bands are 95 % intervals by group, of recall and of precision at each threshold by itself; that of "
            f"precision begins where alarms fall into {MIN_GROUPS} groups."
        )
    return (
        "The band is the 95 % interval by group of recall at each threshold by itself; precision has none: alarms and "
        f"the clips without the event must fall into {MIN_GROUPS} groups or more for it."
    )


def _explorer(found: Evaluated, summary: Summary) -> dict[str, Any]:
    is_event, scores = pooled(found)
    thresholds = [step / SLIDER_STEPS for step in range(SLIDER_STEPS + 1)]
    events, others = summary.at_point.events, summary.at_point.others
    rows = [
        _explorer_row(step, events, others, found)
        for step in threshold_steps(is_event, scores, [*thresholds, found.threshold])
    ]
    names = ("threshold", "recall", "found", "precision", "alarms", "false", "others", "rate", "bounds")
    alarms = summary.at_point.alarms
    return {
        "explorer": {"rows": rows[:-1], "point": rows[-1]},
        "at_point": dict(zip(names, rows[-1][1:], strict=True)),
        "rate": None if alarms is None else _rate(alarms),
        "point_source": found.point_source,
        "point_note": _point_note(found),
        "score_plot": plots.score_plot(
            is_event,
            scores,
            (" or ".join(found.event), "everything else"),
            f"How many clips have which event probability; the operating point lies at {found.threshold:.4f}",
            found.threshold,
        ),
    }


def _at_which(found: Evaluated) -> str:
    """Says at which threshold recall and precision stand."""
    if found.own_thresholds is None:
        return f"the operating point, {found.threshold:.4f}"
    low, high = float(found.own_thresholds.min()), float(found.own_thresholds.max())
    return f"each fold's own operating point, {low:.4f} to {high:.4f}, chosen on its validation clips"


def _point_note(found: Evaluated) -> str:
    """Says whether the operating point had seen the clips that it is measured on."""
    exposure, source = found.exposure, found.point_source
    same = ("out-of-fold" in source and exposure.own_clips) or ("validation" in source and exposure.chosen_on)
    if same:
        note = "It was chosen on these very clips, or some of them, so what it does here flatters."
        if found.own_thresholds is not None:
            note += " The figures above do not: there each fold has its own threshold, chosen without its test clips."
        return note
    if source == GIVEN:
        return "Whether these clips had a part in choosing it is for whoever gave it to say."
    return "None of these clips had a part in that." if "validation" in source and not exposure.doubt else ""


def _explorer_row(step: Step, events: int, others: int, found: Evaluated) -> list[Any]:
    """Returns a threshold and what the explorer writes for it, so that the page has nothing to compute."""
    alarms = step.found + step.false_alarms
    rate, bounds = NONE, "hours of normal footage not known" if others else "no normal clips"
    if found.exposure.learnt_from:
        bounds = "not of clips that the model learnt from"
    if found.normal_hours and others:
        rate, bounds = _rate(false_alarms_per_hour(step.false_alarms / found.repeats, found.normal_hours))
    return [
        step.threshold,
        f"{step.threshold:.4f}",
        f"{step.found / events:.3f}" if events else NONE,
        f"{step.found} of {events} events",
        f"{step.found / alarms:.3f}" if alarms else NONE,
        f"{step.found} of {alarms} alarms" if alarms else "no alarm",
        f"{step.false_alarms}",
        f"of {others} other clips",
        rate,
        bounds,
    ]


def _rate(alarms: Alarms) -> tuple[str, str]:
    """Returns false alarms an hour, and their bounds."""
    return readable(alarms.per_hour), f"{alarms.bounds}, in {readable_hours(alarms.hours)}"


def _confusion(found: Evaluated, summary: Summary) -> dict[str, Any]:
    counts = np.zeros((len(found.classes),) * 2, dtype=int)
    for one in found.probabilities.argmax(-1):
        np.add.at(counts, (found.labels, one), 1)
    rows = []
    for place, name in enumerate(found.classes):
        total = int(counts[place].sum())
        cells = [(int(n), n / total if total else 0.0, column == place) for column, n in enumerate(counts[place])]
        rows.append((name, cells))
    told = summary.calibration
    return {
        "classes": found.classes,
        "confusion": rows,
        "reliability": None if told is None else plots.reliability_plot(told, f"Reliability, ECE {told.ece:.3f}"),
    }


def _by_group(found: Evaluated) -> dict[str, Any]:
    by_part = []
    for what, names in (("camera", found.cameras), ("group", found.groups)):
        several = what == "group" or len(set(names)) > 1
        if names and all(names) and several and len(set(names)) < len(found.names):
            rows = parts(found, names)
            by_part.append((what, rows[:_PARTS_AT_MOST], max(0, len(rows) - _PARTS_AT_MOST)))
    groups, own = len(set(found.groups)), len(set(found.groups)) == len(found.names)
    note = f"{n_groups(groups)}. One that does far worse than the rest is where to look first."
    if groups == 1:
        note = f"All clips are of one group, {found.groups[0]}: how figures differ between groups cannot be seen."
    elif own:
        note = "Each clip is a group of its own, as nothing says what belongs together: intervals may be too narrow."
    return {
        "group_note": note,
        "by_part": by_part,
        "folds": found.record.get("folds") or () if found.kind in ("crossval", "final") else (),
        "repeat_rows": found.record.get("repeats") or () if found.kind in ("crossval", "final") else (),
    }


def _pictures(found: Evaluated, strips: Sequence[Any], looked_note: str | None) -> dict[str, Any]:
    mistakes = [strip for strip in strips if strip.shown.what != "found"]
    hits = [strip for strip in strips if strip.shown.what == "found"]
    note = (
        " Under it, coloured: what spoke most for the class that the network named (Grad-CAM), coarse as its last map."
        if any(strip.looked for strip in strips)
        else ""
    )
    note = f"Each strip shows frames from a clip's start to its end.{note}"
    if not strips:
        note = (
            "A table of predictions brings no clips, so there are no pictures here."
            if found.kind == "table"
            else "The cross-validation's own report shows its clips; this model learnt from them."
            if found.kind == "final"
            else "No pictures: the clips could not be read when this was written, or there is none to show."
        )
    elif not mistakes:
        note += " No clip was on the wrong side of the operating point."
    return {
        "strips": [("Mistakes, the furthest off first", mistakes), ("Events found most surely", hits)],
        "strips_note": note,
        "looked_note": looked_note,
    }


def _learning(found: Evaluated) -> dict[str, Any]:
    if not found.epochs or "train_loss" not in found.epochs[0]:
        return {"losses": None, "accuracies": None}
    columns = {
        name: [_number(row.get(name)) for row in found.epochs]
        for name in ("train_loss", "val_loss", "val_balanced_accuracy")
    }
    lines = {"training": columns["train_loss"], "validation": columns["val_loss"]}
    validated = any(value is not None for value in columns["val_loss"])
    last = f"Loss over {len(found.epochs)} epochs; in the last, training {found.epochs[-1]['train_loss']}"
    return {
        "losses": plots.learning_plot(lines, "loss", last),
        "accuracies": plots.learning_plot(
            {"validation": columns["val_balanced_accuracy"]},
            "balanced accuracy",
            f"Balanced accuracy on the validation clips over {len(found.epochs)} epochs",
            top=1.0,
        )
        if validated
        else None,
    }


def _repeat(found: Evaluated) -> dict[str, Any]:
    return {
        "commands": commands_of(found),
        "identity": [(name, value) for name, value in _identity(found) if value],
        "settings": [
            (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
            for name, value in found.settings.items()
        ],
    }


def commands_of(found: Evaluated) -> list[tuple[str, str]]:
    """Returns what each command does, and the command, quoted for a shell."""
    place, settings = shell_word(found.source), found.settings
    told = found.told
    flags = "" if told.event is None else f" --event {shlex.quote(','.join(told.event))}"
    flags += "" if told.threshold is None else f" --threshold {told.threshold!r}"
    flags += "" if told.normal_hours is None else f" --normal-hours {told.normal_hours!r}"
    again = ("This page again:", f"tillwatch report {place}{flags}")
    if found.kind == "table":
        return [again]
    if found.kind in ("crossval", "final"):
        data = shell_word(Path(str(settings.get("data", "DATA"))))
        drawn = settings if found.kind == "crossval" else found.record[CROSS_VALIDATION]
        flags = "".join(f" --{name} {drawn[name]}" for name in ("folds", "repeats", "grouping") if name in drawn)
        flags += " --final" if found.kind == "final" else ""
        note = "The same folds again; other settings than the defaults stand below:"
        return [(note, f"tillwatch crossval {data} --out again{flags}"), again]
    run = found.source.parent.parent if found.kind == "evaluation" else found.source
    run_name = shell_word(run)
    config = shell_word(run / "config.yaml")
    return [
        ("Train again, the same on the same machine's CPU:", f"tillwatch train --config {config} --out again"),
        ("Measure again:", f"tillwatch evaluate {run_name}"),
        again,
    ]


def model_point(found: Evaluated) -> tuple[float, str]:
    """Returns the model's operating point and how it came about; that of a final model is not its folds'."""
    point = found.model.get("operating_point")
    if found.kind == "final" and isinstance(point, Mapping):
        return float(point["threshold"]), str(point["source"])
    return found.threshold, found.point_source


def _identity(found: Evaluated) -> list[tuple[str, str]]:
    table = found.source if found.source.is_file() else found.source / "predictions.csv"
    versions = found.model.get("versions")
    hashed = hashlib.sha256(table.read_bytes()).hexdigest() if table.is_file() else ""
    temperature = found.record.get("temperature", found.model.get("temperature"))
    threshold, source = model_point(found)
    return [
        ("Model", str(found.model.get("arch", ""))),
        ("SHA-256 of the weights", str(found.record.get("model_sha256") or found.model.get("sha256", ""))),
        ("SHA-256 of predictions.csv", hashed),
        ("Temperature", "" if temperature is None else f"{temperature:.4g}"),
        ("Operating point", f"{threshold:.6g} ({source})"),
        (
            "Trained with",
            ", ".join(f"{name} {v}" for name, v in versions.items()) if isinstance(versions, Mapping) else "",
        ),
        ("This page by", f"tillwatch {version('tillwatch')}"),
    ]


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def report_table(source: Path, out: Path | None = None, told: Told | None = None) -> Path:
    """Writes the report of a table of predictions, which has neither clips nor model; needs no torch.

    Raises:
        TillwatchError: if there is nothing to report, or it cannot be written.
    """
    page = out or report_path(source)
    write_report(page, read_evaluated(source, told))
    return page


def write_report(page: Path, found: Evaluated, strips: Sequence[Any] = (), looked_note: str | None = None) -> None:
    """Writes the page; arguments as :func:`render_report`.

    Raises:
        RunError: if it cannot be written.
    """
    try:
        write_text(page, render_report(found, strips, looked_note))
    except OSError as error:
        raise RunError(f"{page} cannot be written ({error.strerror or one_line(error)}); give another --out.") from None


def report_path(source: Path) -> Path:
    """Returns where a report goes unless told: into the folder, or beside a table under its name."""
    return source / REPORT_HTML if source.is_dir() else source.with_name(f"{source.stem}.{REPORT_HTML}")

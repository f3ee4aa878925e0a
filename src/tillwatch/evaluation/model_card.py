"""model_card.md: what a model is for, what it is not for, and what it was measured to do, in Hugging Face's form."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from tillwatch.evaluation.evaluated import Evaluated
from tillwatch.evaluation.findings import rivals, summary_of, verdict
from tillwatch.evaluation.report import claim_of, model_point
from tillwatch.evaluation.summary import Summary

MODEL_CARD = "model_card.md"

# Names of the Hub for the figures that it knows.
_METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "balanced accuracy"),
    "event_auroc": ("roc_auc", "AUROC of the event"),
    "event_average_precision": ("average_precision", "average precision of the event"),
    "recall": ("recall", "recall of the event at the operating point"),
    "precision": ("precision", "precision of the event at the operating point"),
    "f1": ("f1", "F1 of the event at the operating point"),
}


def render_model_card(found: Evaluated) -> str:
    """Renders the card of a run's model from the figures of its report.

    Nothing is said that the run does not hold: no licence is named, as that is for whoever owns the clips to decide.
    """
    summary, compared = summary_of(found), rivals(found)
    template = (files("tillwatch.evaluation") / "templates" / "model_card.md.j2").read_text(encoding="utf-8")
    # Markdown passes HTML on: names are escaped for both.
    made = Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["plain"] = _plain
    return made.from_string(template).render(
        front=yaml.safe_dump(_front_matter(found, summary), sort_keys=False, allow_unicode=True),
        name=found.source.resolve().name,
        found=found,
        model=found.model,
        event=" or ".join(found.event),
        figures=[(_METRICS[name][1], str(figure)) for name, figure in summary.figures.items()],
        rivals=compared,
        summary=summary,
        verdict=verdict(found, summary, compared),
        counts=[(name, int((found.labels == place).sum())) for place, name in enumerate(found.classes)],
        groups=len(set(found.groups)),
        trained=sum(row.get("split") == "train" for row in found.clips.values()),
        resnet=found.model.get("arch") in ("r2plus1d_18", "r3d_18", "mc3_18"),
        claim=claim_of(found),
        point=model_point(found),
    )


def _front_matter(found: Evaluated, summary: Summary) -> dict[str, Any]:
    out_of_fold = ", out of fold" if found.kind == "final" else ""
    metrics = [
        {"type": kind, "name": f"{name}{out_of_fold}", "value": round(figure.value, 4)}
        for (kind, name), figure in ((_METRICS[key], figure) for key, figure in summary.figures.items())
        if figure.value is not None
    ]
    by = "" if found.kind != "final" else ", by the models of a cross-validation's folds"
    result = {
        "task": {"type": "video-classification", "name": "Video classification"},
        "dataset": {"type": "private", "name": f"the clips that the model's owner labelled{by}", "split": found.split},
        "metrics": metrics,
    }
    # Whoever reads figures by machine takes them for what the model does on others.
    index = [] if found.exposure.learnt_from else [{"name": found.source.resolve().name, "results": [result]}]
    return {
        "library_name": "tillwatch",
        "pipeline_tag": "video-classification",
        "tags": ["video-classification", "cctv", "pytorch", "torchvision", str(found.model.get("arch", ""))],
    } | ({"model-index": index} if index else {})


def _plain(text: object) -> str:
    """Takes the meaning out of what Markdown or HTML would read as its own."""
    told = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "\\`*_[]|#!":
        told = told.replace(sign, f"\\{sign}")
    return told

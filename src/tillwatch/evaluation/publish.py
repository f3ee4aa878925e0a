"""Figures in a folder to report.html and model_card.md, with pictures where clips can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from tillwatch.clip_spec import FrameStep
from tillwatch.data.catalog import Clip, look_into, search_folder
from tillwatch.errors import ClipError, TillwatchError, one_line
from tillwatch.evaluation.evaluated import Evaluated, Told, read_evaluated
from tillwatch.evaluation.filmstrips import Shown, Strip, choose_shown, filmstrips
from tillwatch.evaluation.model_card import MODEL_CARD, render_model_card
from tillwatch.evaluation.predictions import read_rows
from tillwatch.evaluation.report import report_path, write_report
from tillwatch.files import write_text
from tillwatch.models.saved import Classifier, load_model


def publish(
    source: Path,
    *,
    out: Path | None = None,
    told: Told | None = None,
    classifier: Classifier | None = None,
    clips: Iterable[Clip] | None = None,
    note: Callable[[str], None] = lambda line: None,
    pictures: bool = True,
) -> Path:
    """Writes the report of a run, a cross-validation, an evaluation or a table; for a run, its model card too.

    Args:
        source: as :func:`tillwatch.evaluation.evaluated.read_evaluated` takes it.
        out: where the page goes; into the folder, or beside the table, unless given.
        told: what the user says beside it; such a page leaves the run's model card alone.
        classifier: the model, if it is at hand; read from the run otherwise.
        clips: those that were scored, if they are at hand; looked for where the run found them otherwise.
        note: told what could not be drawn.
        pictures: whether clips are shown.

    Returns:
        The page.

    Raises:
        TillwatchError: if there is nothing to report, or it cannot be written.
    """
    found = read_evaluated(source, told)
    strips, looked_note = _draw(found, classifier, clips, note) if pictures else ([], None)
    page = out or report_path(source)
    write_report(page, found, strips, looked_note)
    if found.kind in ("run", "final") and out is None and told in (None, Told()):
        write_text(source / MODEL_CARD, render_model_card(found))
    return page


def publish_or_say_why(
    source: Path,
    note: Callable[[str], None],
    *,
    classifier: Classifier | None = None,
    clips: Iterable[Clip] | None = None,
    pictures: bool = True,
) -> None:
    """Writes the report after a training or an evaluation, neither of which is lost if that fails."""
    try:
        publish(source, classifier=classifier, clips=clips, note=note, pictures=pictures)
    except Exception as error:  # whatever it is, hours of training matter more
        note(f"no report.html was written ({one_line(error)}); tillwatch report {source} tries again.")


def _draw(
    found: Evaluated, classifier: Classifier | None, clips: Iterable[Clip] | None, note: Callable[[str], None]
) -> tuple[list[Strip], str | None]:
    """Draws the filmstrips; a page without them is better than no page."""
    shown = choose_shown(found)
    if found.kind in ("table", "final") or not shown:
        return [], None
    try:
        clips = _find(found, shown) if clips is None else clips
        by_name = {clip.name: clip for clip in clips}

        def clip_of(one: Shown) -> Clip:
            if one.name not in by_name:
                raise ClipError("the clip is not there any more")
            return by_name[one.name]

        return filmstrips(shown, clip_of, _models(found, classifier))
    except Exception as error:  # whatever a picture runs into, the figures stand
        note(f"the report has no pictures ({one_line(error)}).")
        return [], None


def _find(found: Evaluated, shown: list[Shown]) -> list[Clip]:
    """Looks for the clips to show where the run found them, and opens no others."""
    names = {one.name for one in shown}
    search = search_folder(Path(found.settings["data"]), found.classes, absent_ok=True)
    search = replace(search, found=[one for one in search.found if one.name in names])
    step = FrameStep(every=found.settings.get("every") or 1, fps=found.settings.get("fps"))
    return list(look_into(search, num_frames=1, step=step).clips) if search.found else []


def _models(found: Evaluated, classifier: Classifier | None) -> Callable[[Shown], Classifier | None]:
    """Returns which model scored a clip: the run's one, or its fold's."""
    if classifier is not None or found.kind != "crossval":
        only = classifier or _load(found.source if found.kind == "run" else found.source.parent.parent)
        return lambda one: only
    folds = {(row.get("repeat", "1"), row["path"]): row["fold"] for row in _fold_rows(found)}
    per_repeat = int(found.settings.get("folds", 1))
    load = lru_cache(maxsize=1)(_load)

    def of_fold(one: Shown) -> Classifier | None:
        fold = folds.get((str(one.repeat + 1), one.name))
        return None if fold is None else load(found.source / "folds" / str(one.repeat * per_repeat + int(fold)))

    return of_fold


def _fold_rows(found: Evaluated) -> list[dict[str, str]]:
    return [row for row in read_rows(found.source / "predictions.csv") if row.get("fold")]


def _load(folder: Path) -> Classifier | None:
    try:
        return load_model(folder, device="cpu")
    except TillwatchError:
        return None

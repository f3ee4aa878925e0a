"""The temperature and the operating point of a trained network, from its validation clips alone."""

from __future__ import annotations

import numpy as np

from tillwatch.clip_spec import event_scores
from tillwatch.config import TrainConfig
from tillwatch.errors import DataError, one_line
from tillwatch.evaluation.calibration import apply_temperature, fit_temperature, logs
from tillwatch.evaluation.evaluate import normal_hours, score_clips
from tillwatch.evaluation.operating_point import choose_threshold
from tillwatch.models.saved import Classifier, OperatingPoint
from tillwatch.training.prepare import Job
from tillwatch.training.runlog import RunLog


def calibrate(classifier: Classifier, job: Job, config: TrainConfig, log: RunLog) -> tuple[float, OperatingPoint]:
    """Fits the temperature and chooses the operating point on the validation clips; the test clips are not touched.

    Args:
        classifier: at temperature 1.
        job: clips and their sides.
        config: what the operating point is chosen by.
        log: gets how both came about.

    Returns:
        The temperature and the operating point; 1 and the default where nothing was held out.
    """
    clips = job.side("validation")
    if not clips:
        return 1.0, OperatingPoint()
    with log.progress("calibrating") as on_batch:
        scores = score_clips(
            classifier,
            clips,
            batch_size=config.clips_at_once,
            workers=job.workers,
            store=job.store,
            on_batch=on_batch,
        )
    temperature = fit_temperature(logs(scores.probabilities), scores.labels)
    log.say(f"temperature {temperature.value:.3g}, {temperature.source}")
    events = job.spec.event_indices
    try:
        choice = choose_threshold(
            event_scores(apply_temperature(scores.probabilities, temperature.value), events),
            np.isin(scores.labels, list(events)),
            max_false_alarms_per_hour=config.max_false_alarms_per_hour,
            min_recall=config.min_recall,
            hours=normal_hours(scores.clips, job.catalog.clips, job.spec.event, config.normal_hours),
        )
    except DataError as error:
        log.note(f"{one_line(error)} The default is kept.")
        return temperature.value, OperatingPoint()
    log.say(f"operating point {choice.threshold:.4f}: {choice.source}")
    return temperature.value, OperatingPoint(threshold=choice.threshold, unit="clip", source=choice.source)

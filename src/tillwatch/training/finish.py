"""What follows the last epoch: the model saved, and measured on the clips held out."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tillwatch.config import TrainConfig
from tillwatch.evaluation.evaluate import Evaluation, evaluate_split
from tillwatch.evaluation.publish import publish_or_say_why
from tillwatch.evaluation.summary import Footage
from tillwatch.models.architectures import save_state_dict
from tillwatch.models.saved import Classifier, save_model
from tillwatch.training.calibrate import calibrate
from tillwatch.training.compare import compare_with_baselines
from tillwatch.training.out_of_fold import Judged, write_figures
from tillwatch.training.prepare import Job
from tillwatch.training.runlog import RunLog


def finish(
    network: nn.Module,
    job: Job,
    config: TrainConfig,
    out: Path,
    log: RunLog,
    *,
    judged: Judged | None = None,
    pictures: bool = True,
) -> Evaluation:
    """Saves a trained network as a run's model and evaluates it.

    Args:
        network: trained.
        job: clips, spec, device.
        config: batch size, another name for the weights.
        out: the run folder.
        log: where to say what happens.
        judged: by a cross-validation, whose figures are then the run's; from the validation clips otherwise.
        pictures: whether the report shows clips; drawing them takes up to a minute.

    Returns:
        The evaluation on the test clips, or on the training clips if nothing was held out: below ``evaluations``
        where a cross-validation's figures are the run's.
    """
    if judged is not None:
        temperature, point = judged.temperature, judged.point
    else:
        temperature, point = calibrate(Classifier(network, job.spec, device=job.device), job, config, log)
    sha256 = save_model(out, network, job.spec, temperature=temperature, operating_point=point)
    if config.save_as is not None:
        save_state_dict(out / config.save_as, network)
    classifier = Classifier(
        network, job.spec, temperature=temperature, operating_point=point, sha256=sha256, device=job.device
    )
    with log.progress("evaluating") as on_batch:
        evaluation = evaluate_split(
            out if judged is None else out / "evaluations" / "train",
            classifier,
            job.catalog.clips,
            job.sides,
            "test" if config.hold_out else "train",
            footage=Footage(normal_hours=config.normal_hours, prevalence=config.prevalence),
            batch_size=config.clips_at_once,
            workers=job.workers,
            store=job.store,
            on_batch=on_batch,
        )
    if judged is not None:
        write_figures(out, judged, sha256)
    if config.hold_out and config.baselines:
        compare_with_baselines(out, classifier, job, evaluation, log)
    publish_or_say_why(out, log.note, classifier=classifier, clips=evaluation.scores.clips, pictures=pictures)
    return evaluation

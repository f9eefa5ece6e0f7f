"""What the loop does now and then besides training; the averaged weights are used where an average is kept."""

from __future__ import annotations

from omnitrunk.engine import checkpoint
from omnitrunk.engine.build import Run
from omnitrunk.engine.evaluate import evaluate, model_features, probe, table, write_scores
from omnitrunk.engine.log import RunLog
from omnitrunk.engine.show import draw_sheet


def draw_samples(run: Run, log: RunLog, step: int) -> None:
    """A sheet of reconstructions to samples/ and TensorBoard."""
    with run.optimizer.averaged_weights():
        sheet = draw_sheet(run.config, run.model, run.world.device)
    log.write_sheet(step, sheet)


def evaluate_trained(run: Run, log: RunLog, step: int) -> None:
    """The k-NN accuracy of the encoder as it is after `step` steps."""
    config, device = run.config, run.world.device
    features = model_features(run.model, config.evaluate.modality, device, config.run.precision)
    with run.optimizer.averaged_weights():
        scores = probe(config, {"trained": features}, device)
    log.write_evaluation(step, {"knn": scores["trained"]})


def evaluate_fully(run: Run, log: RunLog) -> None:
    """The comparison of the finished encoder with a random one and with pixels; JSON next to the last checkpoint."""
    with run.optimizer.averaged_weights():
        scores = evaluate(run.config, run.model, run.world.device)
    log.write_evaluation(run.config.run.steps, {"knn": scores["trained"]})
    log.say(table(scores, run.config))
    write_scores(checkpoint.find(run.folder), scores, run.config)

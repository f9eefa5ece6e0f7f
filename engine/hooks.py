"""What the loop does now and then besides training; the averaged weights are used where an average is kept."""

from __future__ import annotations

from omnitrunk.engine import checkpoint
from omnitrunk.engine.build import Run
from omnitrunk.engine.drawing.show import draw_sheet
from omnitrunk.engine.evaluate import briefly, evaluate, evaluate_briefly, table, write_scores
from omnitrunk.engine.log import RunLog


def draw_samples(run: Run, log: RunLog, step: int) -> None:
    """A sheet of reconstructions to samples/ and TensorBoard."""
    with run.optimizer.averaged_weights():
        sheet = draw_sheet(run.config, run.model, run.world.device)
    log.write_sheet(step, sheet)


def evaluate_trained(run: Run, log: RunLog, step: int) -> None:
    """The accuracy of the model as it is after `step` steps."""
    with run.optimizer.averaged_weights():
        log.write_evaluation(step, evaluate_briefly(run.config, run.model, run.world.device))


def evaluate_fully(run: Run, log: RunLog) -> None:
    """The full evaluation of the finished model; JSON next to the last checkpoint."""
    with run.optimizer.averaged_weights():
        scores = evaluate(run.config, run.model, run.world.device)
    log.write_evaluation(run.config.run.steps, briefly(scores))
    log.say(table(scores, run.config))
    write_scores(checkpoint.find(run.folder), scores, run.config)

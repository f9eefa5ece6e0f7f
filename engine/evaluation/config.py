"""The section `evaluate` of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from omnitrunk.models import OmnivoreConfig

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig

ARROW = "->"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How a trained model is measured: by its answers where it has any, by neighbors in its features, by retrieval."""

    every: int = 0
    """Steps between evaluations of the model, and a full one at the end; 0 never evaluates."""
    modality: str = ""
    """The input that the k-NN probe computes features from, or rgbd for pictures with depth. Empty takes the first of
    an encoder; a model with heads is probed only where one is named."""
    neighbors: int = 5
    """Samples of the train split that vote on each sample of the val split."""
    vote: Literal["count", "weighted"] = "count"
    """Each neighbor has one vote; or exp(similarity / 0.07) of them, as Wu et al. 2018 weigh them."""
    pool: Literal["mean", "tokens"] = "mean"
    """What is compared by the probe: the mean over a sample's tokens; or all of them side by side, which keeps the
    places that they have in a picture, as the raw input does. The latter come before the final norm, which makes them
    equally long."""
    stage: int = -1
    """Stage of the trunk, counted from 0, whose map gives the features of probe and retrieval; -1 takes what the heads
    see. Only models with stages have a choice."""
    retrieval: tuple[str, ...] = ()
    """Pairs such as "depth->rgb": for each sample of the val split in one modality, the nearest in another."""

    def __post_init__(self) -> None:
        """Refuse what no run could use."""
        for name, known in (("pool", ("mean", "tokens")), ("vote", ("count", "weighted"))):
            if getattr(self, name) not in known:
                raise ValueError(f"evaluate.{name} = {getattr(self, name)!r} must be {' or '.join(known)}")
        if self.every < 0 or self.neighbors < 1:
            raise ValueError(
                f"evaluate.every = {self.every} must be 0 or more and evaluate.neighbors = {self.neighbors} 1 or more"
            )
        for pair in self.retrieval:
            query, arrow, gallery = pair.partition(ARROW)
            if not (query and arrow and gallery) or query == gallery:
                raise ValueError(f'evaluate.retrieval has {pair!r}: name two modalities, such as "depth->rgb"')

    @property
    def pairs(self) -> dict[str, tuple[str, str]]:
        """The pairs of `retrieval`: as they are written -> modality of the queries, modality of the gallery."""
        return {pair: tuple(pair.split(ARROW, 1)) for pair in self.retrieval}


def check_stage(model_config: object, stage: int) -> None:
    """ValueError unless the trunk of a model has that stage, or none is asked for."""
    count = len(getattr(model_config, "depths", ()))
    if stage == -1 or 0 <= stage < count:
        return
    there = f"this model has the stages 0 to {count - 1}" if count else "this model has no stages"
    raise ValueError(f"evaluate.stage = {stage}: {there}; use -1 for what comes out of it")


def idle_evaluation(config: RunConfig) -> dict[str, str]:
    """Every field of the section that changes nothing for the model of a run, with the reason."""
    if isinstance(config.model, OmnivoreConfig):
        reason = "evaluate.modality is empty: there is no k-NN probe"
        idle = {} if config.evaluate.modality else dict.fromkeys(("neighbors", "vote", "pool"), reason)
        return idle | ({"stage": reason} if idle and not config.evaluate.retrieval else {})
    if hasattr(config.model, "encoder_config"):
        return dict.fromkeys(
            ("modality", "neighbors", "vote", "pool", "stage", "retrieval"), "the model is measured by its answers"
        )
    return {}

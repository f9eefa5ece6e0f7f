"""What training does to the samples and the trunk of an Omnivore (Girdhar et al. 2022, sections 3.3 and B): options."""

from __future__ import annotations

from dataclasses import dataclass, field

from omnitrunk.models.checks import check_mixing, check_rate


@dataclass(frozen=True, kw_only=True)
class OmnivoreTraining:
    """The part of an Omnivore's configuration that has no influence on what its weights compute in evaluation."""

    head_dropout: dict[str, float] = field(default_factory=dict)
    """Data set -> share of the features that its head does not see in training."""
    drop_path: float = 0.0
    """Drop probability of the last block's branches; it rises linearly from 0 over the depth."""
    label_smoothing: float = 0.0
    """Share of the probability that the target spreads over all classes."""
    mixup: float = 0.0
    """A of Beta(a, a), the shares in which two samples are mixed, depth with its picture; 0 mixes none."""
    cutmix: float = 0.0
    """The same for samples that get a box of another; with mixup too, half of them do."""
    mixed: float = 1.0
    """Share of the samples that mixup and cutmix change."""
    erase: dict[str, float] = field(default_factory=dict)
    """Data set -> probability that a rectangle of a sample becomes black, in all frames, and far away in depth."""
    erased_depth: float = 0.0
    """Depth of the rectangle: 0 as stored; disparity 0 is (0.01 / 75 - mean) / std, so -1.4124 as released."""
    rgb_drop: float = 0.0
    """Pictures with depth: probability that the picture is blank, the mean color, and only depth is left."""
    trunk_lr_scale: float = 1.0
    """Factor on the learning rate of everything but the heads: below 1, what was learned before moves less."""
    recompute: bool = False
    """Keep only what lies between blocks and compute the rest again in the backward pass: less memory, more time."""

    def check_training(self, *, depth: bool) -> None:
        """Refuse what cannot be done, each with one line; `depth` says whether there are samples with depth."""
        for name in ("drop_path", "label_smoothing", "rgb_drop"):
            check_rate(name, getattr(self, name))
        check_mixing(self)
        if self.rgb_drop and not depth:
            raise ValueError(f"rgb_drop = {self.rgb_drop} leaves nothing to see without rgbd_sets; set it to 0")
        if self.trunk_lr_scale <= 0:
            raise ValueError(f"trunk_lr_scale = {self.trunk_lr_scale} must be above 0; 1 trains all alike")

    @property
    def mixes(self) -> bool:
        """Whether training mixes pairs of samples."""
        return self.mixup > 0 or self.cutmix > 0

    def lr_scale(self, name: str) -> float:
        """Factor on a parameter's learning rate."""
        return 1.0 if name.startswith("heads.") else self.trunk_lr_scale

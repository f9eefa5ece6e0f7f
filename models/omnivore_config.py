"""The configuration of an Omnivore (Girdhar et al. 2022), and of the models that it becomes with fewer data sets.

On pictures alone, with windows and patches of one frame, it is a Swin; on clips alone, a Video Swin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from omnitrunk.models.checks import check_least, check_rate, pair
from omnitrunk.models.initialize import NORMS, Rules, by_inputs, normal, zeros
from omnitrunk.models.layers.merging import merged
from omnitrunk.models.layers.window_block import Triple
from omnitrunk.models.omnivore_training import OmnivoreTraining
from omnitrunk.models.parameter_groups import is_matrix

PRESETS: dict[str, dict[str, Any]] = {
    "t": {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "window": (8, 7, 7), "drop_path": 0.2},
    "s": {"width": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24), "window": (8, 7, 7), "drop_path": 0.3},
    "b": {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "window": (16, 7, 7), "drop_path": 0.3},
    "l": {"width": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48), "window": (8, 7, 7), "drop_path": 0.3},
}
"""Sizes of the released models by name: Swin-T, S, B and L."""
PAPER_DROP_PATH = {"t": 0.1, "s": 0.2}
"""Where the paper has another rate than the released code."""
RELEASED_SETS: dict[str, dict[str, Any]] = {
    "video_sets": {"video": 400},
    "rgbd_sets": {"rgbd": 19},
    "head_dropout": {"video": 0.5},
}
"""What the released models know besides ImageNet-1K: Kinetics-400 and SUN RGB-D."""
TAKEN = frozenset(dir(nn.ModuleDict()))
"""What no head can be called, because the module that holds the heads has it already."""


def _faint(name: str, parameters: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Normal with standard deviation 0.01."""
    return 0.5 * normal(name, parameters, generator)


OMNIVORE: Rules = (
    (r"\.bias_table$", normal),
    *NORMS,
    (r"^tokenizers\.\w+\.(weight|bias)$", by_inputs),
    (r"^heads\.\w+\.weight$", _faint),
    (r"\.weight$", normal),
    (r"\.bias$", zeros),
)
"""Initial values as the released trainer draws them; the tokenizers, convolutions there, stay at PyTorch's default."""


@dataclass(frozen=True, kw_only=True)
class OmnivoreConfig(OmnivoreTraining):
    """Sizes of the trunk, and a linear head for each data set; the defaults are a Swin-T sized one on ImageNet-1K."""

    system: Literal["omnivore"] = "omnivore"
    """Name of the system, by which a recipe chooses it."""
    faithful: bool = False
    """Reproduce the released code exactly (docs/faithful.md): the biases of windows that a small map clips."""
    image_sets: dict[str, int] = field(default_factory=lambda: {"image": 1000})
    """Data sets of pictures, modality rgb: name -> how many classes its head tells apart."""
    video_sets: dict[str, int] = field(default_factory=dict)
    """The same for clips, modality video."""
    rgbd_sets: dict[str, int] = field(default_factory=dict)
    """The same for pictures with depth, modalities rgb and depth."""
    image_size: int | tuple[int, int] = 224
    """Pixels of pictures and frames, one number for a square or (height, width). Any other size fits the weights."""
    frames: int = 16
    """Frames of a clip; any other number fits the weights."""
    patch: Triple = (2, 4, 4)
    """Frames, rows and columns of a patch."""
    width: int = 96
    """Width of the first stage; each of the others has twice that of the one before."""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """Blocks of each stage."""
    heads: tuple[int, ...] = (3, 6, 12, 24)
    """Attention heads of each stage."""
    window: Triple = (8, 7, 7)
    """Tokens of a window along time, height and width."""
    mlp_ratio: float = 4.0
    """Hidden width of every MLP, as a multiple of its width."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built, each with one line that says what to change."""
        self._check_sizes()
        self._check_stages()
        self._check_sets()
        self.check_training(depth=bool(self.rgbd_sets))

    def _check_sizes(self) -> None:
        check_least(self, {"frames": 1, "width": 1})
        check_least(self, {"mlp_ratio": 1 / self.width})
        for name in ("patch", "window"):
            if len(getattr(self, name)) != 3 or min(getattr(self, name)) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be 3 numbers, 1 or more: time, height and width")
        if min(self.image_shape) < 1:
            raise ValueError(f"image_size = {self.image_size} is too small; use 1 or more")

    def _check_stages(self) -> None:
        if len(self.depths) != len(self.heads) or min(self.depths, default=0) < 1:
            raise ValueError(f"depths = {self.depths} and heads = {self.heads} must name 1 or more for every stage")
        for stage, heads in enumerate(self.heads):
            if heads < 1 or (self.width << stage) % heads:
                raise ValueError(
                    f"heads = {self.heads}: {heads} does not divide {self.width << stage}, the width of stage {stage}; "
                    "change width or heads"
                )

    def _check_sets(self) -> None:
        if not self.classes:
            raise ValueError("image_sets, video_sets and rgbd_sets are all empty; name a data set and its classes")
        if len(self.classes) < len(self.image_sets) + len(self.video_sets) + len(self.rgbd_sets):
            raise ValueError("image_sets, video_sets and rgbd_sets share a name; give every data set its own")
        for name, classes in self.classes.items():
            if not name.isidentifier() or classes < 1:
                raise ValueError(
                    f"the data set {name!r} with {classes} classes needs a Python name and 1 class or more"
                )
            if name in TAKEN:
                raise ValueError(f"the data set {name!r} has a name that PyTorch's modules use themselves; rename it")
        for field_name in ("head_dropout", "erase"):
            for name, rate in getattr(self, field_name).items():
                if name not in self.classes:
                    known = ", ".join(self.classes)
                    raise ValueError(f"{field_name} names {name!r}, which is no data set; choose from {known}")
                check_rate(f"{field_name}.{name}", rate)

    drawn: ClassVar[bool] = False
    """Whether there are reconstructions to draw."""

    @property
    def initial_values(self) -> Rules:
        """How the parameters are drawn; see models.initialize."""
        return OMNIVORE

    @property
    def classes(self) -> dict[str, int]:
        """Data set -> its classes, in the order of the heads."""
        return {**self.image_sets, **self.video_sets, **self.rgbd_sets}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Modalities that the model takes."""
        wanted = {
            "rgb": bool(self.image_sets or self.rgbd_sets),
            "video": bool(self.video_sets),
            "depth": bool(self.rgbd_sets),
        }
        return tuple(name for name, there in wanted.items() if there)

    @property
    def data_sets(self) -> dict[str, tuple[str, ...]]:
        """Data set -> the modalities of its samples."""
        kinds = ((self.image_sets, ("rgb",)), (self.video_sets, ("video",)), (self.rgbd_sets, ("rgb", "depth")))
        return {name: modalities for names, modalities in kinds for name in names}

    @property
    def reads(self) -> tuple[str, ...]:
        """Modalities that the data must hold, of all data sets together."""
        return self.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the losses: the data sets."""
        return tuple(self.classes)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of pictures and frames in pixels."""
        return pair(self.image_size)

    @property
    def features(self) -> int:
        """Width of the last stage, which the heads see."""
        return self.width << (len(self.depths) - 1)

    @property
    def blocks(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    def pixels(self, dataset: str) -> tuple[int, int, int]:
        """Frames, height and width of a sample of a data set."""
        return (self.frames if dataset in self.video_sets else 1, *self.image_shape)

    def maps(self, dataset: str) -> list[Triple]:
        """Tokens along time, height and width of a sample of a data set, stage by stage."""
        size = tuple(-(-extent // side) for extent, side in zip(self.pixels(dataset), self.patch, strict=True))
        found = [size]
        for _ in self.depths[1:]:
            found.append(merged(found[-1]))
        return found

    @property
    def total_tokens(self) -> int:
        """Tokens of the first map, of the data set that has most."""
        return max(map(self.visible, self.classes))

    def visible(self, dataset: str) -> int:
        """Tokens of the first map of a sample of a data set; all of them are seen."""
        return prod(self.maps(dataset)[0])

    @property
    def keep(self) -> int:
        """All of them are seen."""
        return self.total_tokens

    def idle(self) -> dict[str, str]:
        """Fields without effect -> why."""
        if any(self.erase.get(name) for name in self.rgbd_sets):
            return {}
        return {"erased_depth": "erase names no data set of rgbd_sets"}

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to a parameter."""
        return is_matrix(name)


def preset(size: Literal["t", "s", "b", "l"], *, paper: bool = False, **changes: Any) -> OmnivoreConfig:
    """An Omnivore of a released size, with the released heads and clips of 32 frames.

    `paper` takes the paper's rate of drop path where the released code has another; `changes` are other fields.
    """
    if size not in PRESETS:
        raise ValueError(f"no Omnivore has the size {size!r}; choose one of {', '.join(PRESETS)}")
    printed = {"drop_path": PAPER_DROP_PATH.get(size, PRESETS[size]["drop_path"])} if paper else {}
    return OmnivoreConfig(**{**RELEASED_SETS, "frames": 32, **PRESETS[size], **printed, **changes})

"""The configuration of a segmenter: the trunk of an Omnivore, and UPerNet on its maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from omnitrunk.models.checks import check_divides, check_least, check_rate
from omnitrunk.models.field_types import check_values
from omnitrunk.models.initialize import NORMS, Rules, normal, zeros
from omnitrunk.models.modality import find_modality
from omnitrunk.models.omnivore_config import OMNIVORE, OmnivoreConfig
from omnitrunk.models.parameter_groups import is_matrix

MAP = "semseg"
"""The modality that is found."""


def _by_outputs_kept(name: str, parameters: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Normal with variance 2 / inputs, which ReLU keeps (He et al. 2015, section 2.2)."""
    shape = parameters[name].shape
    return torch.randn(shape, generator=generator) * (2 / prod(shape[1:])) ** 0.5


def _faint(name: str, parameters: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """Normal with standard deviation 0.01."""
    return 0.5 * normal(name, parameters, generator)


@dataclass(frozen=True, kw_only=True)
class OmnivoreSegmenterConfig:
    """Tells the classes of pixels apart, at a quarter of the pictures' resolution; defaults are those of NYUv2."""

    system: Literal["omnivore_segmenter"] = "omnivore_segmenter"
    """Name of the system, by which a recipe chooses it."""
    faithful: bool = False
    """Passed on to the encoder: reproduce the released code exactly (docs/faithful.md)."""
    encoder: dict[str, Any] = field(
        default_factory=lambda: {"system": "omnivore", "image_sets": {}, "rgbd_sets": {"rgbd": 19}}
    )
    """The [model] section of the Omnivore: its sizes, and the pixels that are seen here. With rgbd_sets pictures come
    with depth. What is about heads and how they are trained is not used."""
    classes: int = 40
    """Classes of pixels. The label 255 stands for none: such pixels are neither learned nor scored."""
    head_width: int = 512
    """Channels of the head."""
    pools: tuple[int, ...] = (1, 2, 3, 6)
    """Cells, along each axis, of the grids over which the last map is averaged."""
    drop_path: float = 0.3
    """Drop probability of the last block's branches; it rises linearly from 0 over the depth."""

    initial_values: ClassVar[Rules] = (
        *NORMS,
        (r"^head\.classifier\.weight$", _faint),
        (r"^head\..*\.bias$", zeros),
        (r"^head\.", _by_outputs_kept),
        *OMNIVORE,
    )
    """How the parameters are drawn, where no checkpoint gives them; see models.initialize."""
    drawn: ClassVar[bool] = True
    """The maps that are found can be drawn."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built, each with one line that says what to change."""
        if (found := self.encoder.get("system")) != OmnivoreConfig.system:
            raise ValueError(f"encoder.system = {found!r} has no maps to segment; set it to {OmnivoreConfig.system!r}")
        check_values("encoder", OmnivoreConfig, self.encoder)
        check_least(self, {"classes": 1, "head_width": 1})
        check_rate("drop_path", self.drop_path)
        if not self.pools or min(self.pools) < 1:
            raise ValueError(f"pools = {self.pools} must name one grid or more, of 1 cell or more")
        self._check_encoder()

    def _check_encoder(self) -> None:
        stride, encoder = find_modality(MAP).stride, self.encoder_config
        if not encoder.image_sets and not encoder.rgbd_sets:
            raise ValueError("encoder.image_sets and encoder.rgbd_sets are empty, but pictures are segmented; name one")
        if encoder.patch[1:] != (stride, stride):
            raise ValueError(
                f"encoder.patch = {encoder.patch}, but maps of classes have a value for {stride} x {stride} pixels; "
                f"set it to {(encoder.patch[0], stride, stride)}"
            )
        check_divides("encoder.image_size", encoder.image_shape, (stride, stride))

    @property
    def encoder_config(self) -> OmnivoreConfig:
        """The configuration of the Omnivore."""
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in self.encoder.items()}
        return OmnivoreConfig(**{"faithful": self.faithful} | values)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Modalities that the model sees."""
        return ("rgb", "depth") if self.encoder_config.rgbd_sets else ("rgb",)

    @property
    def reads(self) -> tuple[str, ...]:
        """Modalities that a batch must hold."""
        return (*self.inputs, MAP)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The name of the loss."""
        return (MAP,)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of pictures in pixels."""
        return self.encoder_config.image_shape

    @property
    def pictures(self) -> str:
        """A data set of the Omnivore whose samples are pictures."""
        encoder = self.encoder_config
        return next(iter({**encoder.image_sets, **encoder.rgbd_sets}))

    @property
    def maps(self) -> list[tuple[int, int]]:
        """Tokens down and across of a picture, stage by stage."""
        return [size[1:] for size in self.encoder_config.maps(self.pictures)]

    @property
    def widths(self) -> list[int]:
        """Width of each stage."""
        encoder = self.encoder_config
        return [encoder.width << stage for stage in range(len(encoder.depths))]

    @property
    def total_tokens(self) -> int:
        """Tokens of the first map."""
        return prod(self.maps[0])

    @property
    def keep(self) -> int:
        """All of them are seen."""
        return self.total_tokens

    @property
    def head_values(self) -> int:
        """Numbers of a picture that the head keeps for its backward pass: around every norm, and what it joins."""
        areas = [prod(size) for size in self.maps]
        per_level = sum(areas[:-1]) * 8 + areas[-1] * (3 + len(self.pools))
        return self.head_width * (per_level + areas[0] * (len(areas) + 3)) + areas[0] * self.classes

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to a parameter."""
        return is_matrix(name)

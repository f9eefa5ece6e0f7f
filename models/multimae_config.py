"""The configuration of a MultiMAE: one frozen dataclass, checked when it is made, and the sizes that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from omnitrunk.models.checks import check_divides, check_heads, check_least, check_rate, pair
from omnitrunk.models.initialize import MULTIMAE, Rules
from omnitrunk.models.modality import find_modality
from omnitrunk.models.parameter_groups import is_matrix


@dataclass(frozen=True, kw_only=True)
class MultiMAEConfig:
    """Sizes and choices of a MultiMAE (Bachmann et al. 2022); the defaults are those of the published base model."""

    system: Literal["multimae"] = "multimae"
    """Name of the system, by which a recipe chooses it."""
    faithful: bool = False
    """Reproduce the released code exactly, oddities included (docs/faithful.md); default is the corrected behavior."""
    inputs: tuple[str, ...] = ("rgb", "depth", "semseg")
    """Modalities that are tokenized, in the order of the token sequence."""
    outputs: tuple[str, ...] = ("rgb", "depth", "semseg", "norm_rgb")
    """Modalities that are reconstructed, each by a decoder of its own."""
    image_size: int | tuple[int, int] = 224
    """Pixels of the image, one number for a square or (height, width)."""
    patch_size: int = 16
    """Image pixels for each side of a patch; maps of a lower resolution use proportionally fewer of their own."""
    position_size: int | tuple[int, int] | None = None
    """Faithful only: image size that the stored position tables belong to; None is the release's fixed 224."""
    width: int = 768
    """Width D of the trunk."""
    depth: int = 12
    """Blocks of the trunk."""
    heads: int = 12
    """Attention heads of the trunk."""
    mlp_ratio: float = 4.0
    """Hidden width of every MLP, trunk and decoders, as a multiple of its width."""
    global_tokens: int = 1
    """Learned tokens G that join every sequence at its end."""
    decoder_width: int = 256
    """Width d of the decoders."""
    decoder_depth: int = 2
    """Self-attention blocks of each decoder, after its cross-attention."""
    decoder_heads: int = 8
    """Attention heads of the decoders."""
    keep: int = 98
    """Visible tokens K of each sample, over all inputs together."""
    alphas: dict[str, float] | float = 1.0
    """Dirichlet concentration of each input's share of the visible tokens; one number for all, or by name (else 1)."""
    sample_tasks_uniformly: bool = False
    """First choose, uniformly, one of the non-empty sets of inputs for each sample; only these share the tokens."""
    semseg_classes: int = 133
    """Classes of every class map."""
    class_embedding_width: int = 64
    """Width E of the learned vector that stands for a class in the input."""
    drop_path: float = 0.0
    """Drop probability of the last block's branches; it rises linearly from 0 over the depth of the trunk."""
    standardize_depth: bool = True
    """Give depth (every modality with robust standardization) mean 0 and variance 1 by its middle 80 % of pixels."""
    loss_on_unmasked: bool = False
    """Score all positions, visible ones included."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy losses."""
    task_balancer: Literal["none", "uncertainty"] = "none"
    """Total loss: the plain sum, or the sum weighted by learned uncertainties (Kendall et al. 2018)."""
    fp32_outputs: tuple[str, ...] = ("semseg",)
    """Outputs whose decoders run in float32 also under autocast."""

    initial_values: ClassVar[Rules] = MULTIMAE
    """How the parameters are drawn; see models.initialize."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built, each with one line that says what to change."""
        self._check_modalities()
        self._check_sizes()
        self._check_sampling()
        self._check_rates()

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return pair(self.image_size)

    @property
    def total_tokens(self) -> int:
        """Tokens N of all inputs."""
        return sum(self.tokens(name) for name in self.inputs)

    @property
    def visible_length(self) -> int:
        """Length K + G of the trunk's sequences in training."""
        return self.keep + self.global_tokens

    @property
    def concentrations(self) -> tuple[float, ...]:
        """Dirichlet concentration of each input. Faithful: a table's values are taken by position, not by name."""
        if not isinstance(self.alphas, dict):
            return (float(self.alphas),) * len(self.inputs)
        if self.faithful:
            return tuple(self.alphas.values())
        return tuple(self.alphas.get(name, 1.0) for name in self.inputs)

    @property
    def reads(self) -> tuple[str, ...]:
        """Modalities that a batch must hold."""
        return tuple(dict.fromkeys(find_modality(name).data for name in (*self.inputs, *self.outputs)))

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to a parameter. Faithful: to all, as in the release's pre-training."""
        return self.faithful or is_matrix(name)

    def map_shape(self, name: str) -> tuple[int, int]:
        """Height and width of a modality's own map."""
        stride = find_modality(name).stride
        height, width = self.image_shape
        return height // stride, width // stride

    def patch(self, name: str) -> int:
        """Side of a patch in pixels of the modality's own map."""
        return max(1, self.patch_size // find_modality(name).stride)

    def grid(self, name: str) -> tuple[int, int]:
        """Rows and columns of a modality's patches."""
        return self._grid_of(name, self.image_shape)

    def position_grid(self, name: str) -> tuple[int, int]:
        """Rows and columns of the stored position table; other than the grid itself in faithful mode only."""
        return self._grid_of(name, pair(self.position_size or 224) if self.faithful else self.image_shape)

    def tokens(self, name: str) -> int:
        """Patches n of one modality."""
        rows, columns = self.grid(name)
        return rows * columns

    def patch_values(self, name: str) -> int:
        """Values P that a decoder predicts for one patch: pixels times channels, or pixels times classes."""
        modality = find_modality(name)
        return self.patch(name) ** 2 * (self.semseg_classes if modality.kind == "classes" else modality.channels)

    def masked_like(self, output: str) -> str | None:
        """The input whose mask an output shares; None for an output-only modality, which has no mask."""
        source = find_modality(output).data
        return source if source in self.inputs else None

    def _grid_of(self, name: str, image: tuple[int, int]) -> tuple[int, int]:
        unit = find_modality(name).stride * self.patch(name)
        return image[0] // unit, image[1] // unit

    def _check_modalities(self) -> None:
        for field in ("inputs", "outputs"):
            names = getattr(self, field)
            if not names or len(set(names)) != len(names):
                raise ValueError(f"{field} = {names} must name at least one modality, each one once")
        for name in (*self.inputs, *self.outputs, *self.fp32_outputs):
            if find_modality(name).kind not in ("pixels", "classes"):
                raise ValueError(f"multimae takes images and class maps, not {name!r}; take it out or choose a system")
        for name in self.inputs:
            if (source := find_modality(name).source) is not None:
                raise ValueError(f"{name!r} is an output made from {source!r}; put {source!r} among the inputs instead")

    def _check_sizes(self) -> None:
        check_heads("width", self.width, "heads", self.heads)
        check_heads("decoder_width", self.decoder_width, "decoder_heads", self.decoder_heads)
        smallest = {"patch_size": 1, "depth": 0, "global_tokens": 0, "decoder_depth": 0, "semseg_classes": 1}
        check_least(self, {**smallest, "class_embedding_width": 1, "mlp_ratio": 1 / self.decoder_width})
        if self.position_size is not None and not self.faithful:
            raise ValueError("position_size has no effect by default; set faithful = true or leave it out")
        for name in (*self.inputs, *self.outputs):
            self._check_image(name, "image_size", self.image_shape)
            if self.faithful:
                self._check_image(name, "position_size", pair(self.position_size or 224))

    def _check_image(self, name: str, field: str, image: tuple[int, int]) -> None:
        unit = find_modality(name).stride * self.patch(name)
        check_divides(field, image, (unit, unit), f"{name} patches")

    def _check_sampling(self) -> None:
        if not 1 <= self.keep <= self.total_tokens:
            raise ValueError(f"keep = {self.keep} must lie in 1..{self.total_tokens}, the tokens of {self.inputs}")
        alphas = self.alphas if isinstance(self.alphas, dict) else {}
        if unknown := [name for name in alphas if name not in self.inputs]:
            raise ValueError(f"alphas names {unknown[0]!r}, which is no input; name only {', '.join(self.inputs)}")
        if self.faithful and alphas and len(alphas) != len(self.inputs):
            raise ValueError(f"faithful alphas are taken by position; give all of {', '.join(self.inputs)}")
        if any(alpha <= 0 for alpha in self.concentrations):
            raise ValueError(
                f"alphas = {self.alphas} must be above 0; small values favor one input, large ones balance"
            )

    def _check_rates(self) -> None:
        for field in ("drop_path", "label_smoothing"):
            check_rate(field, getattr(self, field))

"""The tokenizer of OmniMAE: cubes of clips, and pictures as clips that stand still (Girdhar et al. 2023, section 3.1).

B batch, K tokens asked for, t frames of a cube, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from omnitrunk.kernels.patch_project import patch_project
from omnitrunk.models.masking.token_plan import flat_rows
from omnitrunk.models.tokenizers.patches import PatchTokenizer


class RepeatedTokenizer(PatchTokenizer):
    """A linear projection of cubes; a picture is repeated t times, and has the positions of the first cubes of a clip.

    The frames of a repeated picture are the same, so their weights are added up and the picture is projected once:
    `flops` is that of clips.
    """

    def prepare(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The pixels, "rgb" (B, H, W, C) or "video" (B, T, H, W, C), uint8 or floating and normalized.

        ValueError unless there is one of them, of the right size.
        """
        given = [name for name in ("rgb", "video") if name in tensors]
        if len(given) != 1:
            raise ValueError(f"the batch has {' and '.join(given) or 'neither rgb nor video'}; give one of the two")
        found, shape = tuple(tensors[given[0]].shape[1:-1]), self.shape[given == ["rgb"] :]
        if found != shape:
            raise ValueError(f"{given[0]} is {found}; the model takes {shape}: change the model's sizes or resize")
        return {given[0]: tensors[given[0]]}

    def forward(self, sample: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Tokens (B, K, D) of the patches int64 (B, K)."""
        ((name, pixels),) = sample.items()
        weight, patch, position = self.weight, self.patch, self.position
        if name == "rgb":
            weight, patch = weight.unflatten(1, (patch[0], -1)).sum(1), patch[1:]
            position = position[: len(position) * self.patch[0] // self.shape[0]]
        tokens = patch_project(
            pixels,
            weight,
            self.bias,
            flat_rows(index, len(position)),
            patch=patch,
            position=position,
            mean=self.modality.mean,
            std=self.modality.std,
        )
        return tokens.unflatten(0, index.shape)

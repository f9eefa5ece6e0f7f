"""What one step of training receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from omnitrunk.models.masking.mask_plan import MaskPlan


@dataclass
class Batch:
    """B samples as they were decoded, labels, and which tokens the model may see."""

    tensors: dict[str, torch.Tensor]
    """rgb uint8 (B, H, W, 3); depth float32 (B, H, W, 1), stored / 65536; semseg uint8 (B, H/s, W/s), class ids;
    video uint8 (B, T, H, W, 3); audio float32 (B, S), full scale 1, and audio_length int64 (B,), the samples before its
    padding; points float32 (B, P, 3), and parts int64 (B, P) where data.parts asks for them."""
    labels: torch.Tensor
    """int64 (B,): number of the class."""
    positions: np.ndarray
    """int64 (B,): the place of each sample in the run, the key of everything random about it. Stays on the host."""
    plan: MaskPlan | None = None
    """Which tokens are visible; None where nothing is masked."""
    replaced: np.ndarray | None = None
    """bool (B,): True for a stand-in of an unreadable sample; None where no sample can be unreadable."""
    share: float = 1.0
    """Of a micro-batch: its share of the samples that its data set has in the step."""
    weight: float = 1.0
    """The share of that data set in the samples of the step."""
    last: bool = True
    """Whether the step ends with it."""

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """What a model is given: the tensors, and "label"."""
        return {**self.tensors, "label": self.labels}

    def __len__(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`; copies to a GPU go through pinned memory and do not wait."""
        device = torch.device(device)
        return Batch(
            tensors={name: _move(tensor, device) for name, tensor in self.tensors.items()},
            labels=_move(self.labels, device),
            positions=self.positions,
            plan=None if self.plan is None else self.plan.to(device),
            replaced=self.replaced,
            share=self.share,
            weight=self.weight,
            last=self.last,
        )

    def split(self, parts: int) -> list[Batch]:
        """`parts` micro-batches of equal size, as views.

        A plan numbers the tokens of one whole batch, so plans are made after the split.
        """
        assert self.plan is None, "split a batch before its plan is made"
        if parts < 1 or len(self) % parts:
            raise ValueError(
                f"a batch of {len(self)} samples per rank does not split into {parts} equal micro-batches: "
                "set data.batch to a multiple of ranks x micro-batches"
            )
        rows = len(self) // parts
        cuts = [slice(start, start + rows) for start in range(0, len(self), rows)]
        return [
            Batch(
                tensors={name: tensor[cut] for name, tensor in self.tensors.items()},
                labels=self.labels[cut],
                positions=self.positions[cut],
                replaced=None if self.replaced is None else self.replaced[cut],
                share=1 / parts,
                last=cut is cuts[-1],
            )
            for cut in cuts
        ]


def _move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

"""The tokenizer of point clouds: groups of neighbors around spread-out centers, each seen by a small PointNet.

Pang et al. 2022 (Point-MAE), section 3.1; Qi et al. 2017 (PointNet). B batch, N points of a cloud, G groups, k points
of a group, K groups asked for, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.kernels.farthest_point_sample import farthest_point_sample
from omnitrunk.kernels.knn import group_points
from omnitrunk.kernels.linear import linear
from omnitrunk.kernels.mlp import mlp
from omnitrunk.models.layers.batch_norm import BatchNorm
from omnitrunk.models.layers.blocks import Linear
from omnitrunk.models.masking.token_plan import flat_rows

AXES = 3
POSITION_WIDTH = 128
"""Hidden width of the positions."""


class PointTokenizer(nn.Module):
    """Groups of points to tokens; a position is added by CenterPositions, not here.

    The order of points within a group does not matter. Batch normalization takes its statistics over all groups, masked
    ones included; what comes after the last of it is computed for the groups asked for only.
    """

    def __init__(
        self, width: int, *, points: int, groups: int, group_size: int, pointnet2: bool, nearest_first: bool
    ) -> None:
        """`points` N, `groups` G, `group_size` k.

        `pointnet2` samples centers as pointnet2_ops does. `nearest_first` numbers groups by their distance from the
        first, which is around the first point of the cloud.
        """
        super().__init__()
        self.points, self.groups, self.group_size = points, groups, group_size
        self.pointnet2, self.nearest_first = pointnet2, nearest_first
        self.fc1 = Linear(AXES, 128)
        self.norm1 = BatchNorm(128)
        self.fc2 = Linear(128, 256)
        self.fc3 = Linear(512, 512)
        self.norm2 = BatchNorm(512)
        self.fc4 = Linear(512, width)

    def prepare(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Points (B, N, 3), "centers" (B, G, 3), and "groups" (B, G, k, 3), relative to their centers.

        ValueError where the batch has no points of that number.
        """
        if "points" not in tensors:
            raise ValueError("the batch has no 'points'; add them to the data or choose another system")
        points = tensors["points"]
        if (found := tuple(points.shape[1:])) != (self.points, AXES):
            raise ValueError(
                f"points are {found}; the model takes {(self.points, AXES)}: set data.points and model.points alike"
            )
        index = farthest_point_sample(points, self.groups, pointnet2=self.pointnet2)
        centers = points.take_along_dim(index[..., None], 1)
        if self.nearest_first:
            order = (centers - centers[:, :1]).square().sum(-1).argsort(dim=1, stable=True)
            centers = centers.take_along_dim(order[..., None], 1)
        return {"points": points, "centers": centers, "groups": group_points(points, centers, self.group_size)}

    def forward(self, sample: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Tokens (B, K, D) of the groups int64 (B, K)."""
        groups, asked = sample["groups"].flatten(0, 1), flat_rows(index, self.groups)
        if not self.norm1.uses_batch:  # groups do not see each other
            groups, asked = groups.index_select(0, asked), None
        local = self.fc2(functional.relu(self.norm1(self.fc1(groups)), inplace=True))
        mixed = functional.relu(self.norm2(self._mix(local), asked), inplace=True)
        return self.fc4(mixed).max(dim=1).values.unflatten(0, index.shape)

    def flops(self, samples: int, rows: int) -> int:
        """Matrix arithmetic of a training step's forward pass, `rows` groups of all `samples` together going on."""
        half = self.fc3.weight.numel() // 2
        group = self.group_size * (self.fc1.weight.numel() + self.fc2.weight.numel() + half) + half
        return 2 * (samples * self.groups * group + rows * self.group_size * self.fc4.weight.numel())

    def _mix(self, local: Tensor) -> Tensor:
        """Points (S, k, 256) joined with the maximum over their group, through one layer: (S, k, 512).

        The maximum is the same for all points of a group, and so is its share of the product: it is computed once.
        """
        weight, bias = self.fc3.weight_and_bias()
        for_group, for_points = (half.contiguous() for half in weight.chunk(2, dim=1))  # products of views are slow
        return linear(local, for_points) + linear(local.max(dim=1, keepdim=True).values, for_group, bias)


class CenterPositions(nn.Module):
    """A small MLP of the center of a group, added to the stream before every block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(AXES, POSITION_WIDTH)
        self.fc2 = Linear(POSITION_WIDTH, width)

    def forward(self, sample: Mapping[str, Tensor], index: Tensor) -> Tensor:
        """Groups int64 (B, K) -> their positions (B, K, D)."""
        centers = sample["centers"].take_along_dim(index[..., None], 1)
        return mlp(centers, *self.fc1.weight_and_bias(), *self.fc2.weight_and_bias())

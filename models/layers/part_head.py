"""The head of part segmentation: features of groups to logits of every point (models.part_segmenter).

The published head joins vectors and multiplies the whole with one matrix. Where a part of such a vector is the same for
all points of a cloud, or interpolated from a few centers, its share of the product is computed once a cloud, or at
the centers: the product is linear, so the sum is the same.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.kernels.linear import linear
from omnitrunk.models.layers.batch_norm import BatchNorm
from omnitrunk.models.layers.blocks import Linear
from omnitrunk.models.layers.dropout import dropout
from omnitrunk.models.layers.normed_linear import NormedLinear
from omnitrunk.models.layers.propagation import interpolate_features, interpolation_weights

AXES, CLASS_WIDTH = 3, 64
LEAK = 0.2
"""Slope of the class features' LeakyReLU below 0."""


class PartHead(nn.Module):
    """F = taps * D features of every group, the coordinates of points and the class of the shape -> P logits."""

    def __init__(self, width: int, taps: int, *, classes: int, parts: int, point_width: int, rate: float) -> None:
        super().__init__()
        features, self.rate = taps * width, rate
        leaky = partial(functional.leaky_relu, negative_slope=LEAK)
        self.label = NormedLinear(classes, CLASS_WIDTH, bias=False, act=leaky)
        self.propagate1 = Linear(AXES + features, 4 * width)
        self.propagate_norm1 = BatchNorm(4 * width)
        self.propagate2 = NormedLinear(4 * width, point_width, act=functional.relu)
        self.fc1 = Linear(point_width + 2 * features + CLASS_WIDTH, point_width // 2)
        self.norm1 = BatchNorm(point_width // 2)
        self.fc2 = NormedLinear(point_width // 2, point_width // 4, act=functional.relu)
        self.fc3 = Linear(point_width // 4, parts)
        self.classes, self.features, self.point_width = classes, features, point_width

    def forward(
        self, features: Tensor, points: Tensor, centers: Tensor, label: Tensor, keys: Tensor | None = None
    ) -> Tensor:
        """Features (B, G, F), points (B, N, 3), centers (B, G, 3), labels (B,), dropout keys (1, B) -> (B, N, P)."""
        own = self._propagated(features, points, centers)
        whole = self._of_the_cloud(features, label)
        weight, bias = self.fc1.weight_and_bias()
        for_point, for_cloud = _columns(weight, self.point_width)
        hidden = linear(own, for_point) + linear(whole, for_cloud, bias)
        hidden = functional.relu(self.norm1(hidden))
        return self.fc3(self.fc2(dropout(hidden, self.rate, None if keys is None else keys[0])))

    def flops(self, points: int, groups: int) -> int:
        """Matrix arithmetic of a cloud, forward."""
        hidden, own = self.propagate_norm1.weight.numel(), self.norm1.weight.numel() * self.point_width
        each = (AXES + groups) * hidden + self.propagate2.linear.weight.numel() + own
        each += self.fc2.linear.weight.numel() + self.fc3.weight.numel()
        at_centers, once = hidden * self.features, self.fc1.weight.numel() - own + self.label.linear.weight.numel()
        return 2 * (points * each + groups * at_centers + once)

    def _propagated(self, features: Tensor, points: Tensor, centers: Tensor) -> Tensor:
        """What every point knows of the groups near it, (B, N, point_width)."""
        weight, bias = self.propagate1.weight_and_bias()
        for_axes, for_features = _columns(weight, AXES)
        weights = interpolation_weights(points, centers)
        hidden = interpolate_features(weights, linear(features, for_features)) + linear(points, for_axes, bias)
        return self.propagate2(functional.relu(self.propagate_norm1(hidden)))

    def _of_the_cloud(self, features: Tensor, label: Tensor) -> Tensor:
        """Maximum and mean over the groups, and features of the class: (B, 1, 2 F + 64)."""
        one_hot = functional.one_hot(label, self.classes).to(features.dtype).unsqueeze(1)
        greatest, mean = features.amax(dim=1, keepdim=True), features.mean(dim=1, keepdim=True)
        return torch.cat([greatest, mean, self.label(one_hot).to(features.dtype)], dim=2)


def _columns(weight: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The first columns of a weight, and the others; copies, as products of views are slow."""
    return weight[:, :first].contiguous(), weight[:, first:].contiguous()

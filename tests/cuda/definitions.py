"""What the point-cloud kernels compute, cloud by cloud in plain PyTorch, rounded operation by operation as they do."""

from __future__ import annotations

import torch


def squared_distance(p, q):
    x, y, z = (p - q).unbind(-1)
    return (x * x + y * y) + z * z


def farthest_point_sample(points, count, start=0, pointnet2=False):
    nearest = torch.full((len(points),), torch.inf)
    nearest[~points.isfinite().all(1)] = -1
    if pointnet2:
        nearest[squared_distance(points, torch.zeros(3)) <= torch.tensor(1e-3)] = -1
    picks = [start]
    while len(picks) < count:
        nearest = torch.fmin(nearest, squared_distance(points, points[picks[-1]]))
        picks.append((nearest == nearest.max()).nonzero()[0].item())
    return torch.tensor(picks[:count])


def nearest_neighbors(points, queries, k):
    distance, index = squared_distance(points, queries[:, None]).sort(dim=1, stable=True)
    index = index[:, :k]
    return index, distance[:, :k], points[index] - queries[:, None]


def chamfer(a, b, root=False):
    distance = squared_distance(a[:, None], b)
    (to_b, match_a), (to_a, match_b) = distance.min(1), distance.min(0)
    loss = sum((d.double().sqrt() / 2 if root else d.double()).mean() for d in (to_b, to_a))
    weight_a, weight_b = weights(to_b, root), weights(to_a, root)
    return (
        loss.float(),
        gradient(a, b, match_a, match_b, weight_a, weight_b),
        gradient(b, a, match_b, match_a, weight_b, weight_a),
    )


def weights(distance, root):
    size = torch.full_like(distance, len(distance))
    if not root:
        return torch.full_like(distance, 2) / size
    # PyTorch's square root in float32 may be off by a bit, and 0.5 / x is rounded twice.
    return torch.full_like(distance, 0.5) / (size * distance.double().sqrt().float())


def gradient(points, others, match, match_back, weight, weight_back):
    """The term of the own match first, then those of the others in order: additions one after another."""
    total = weight[:, None] * (points - others[match])
    for other, chosen in enumerate(match_back.tolist()):
        total[chosen] += weight_back[other] * (points[chosen] - others[other])
    return total

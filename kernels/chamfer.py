"""chamfer: how far two sets of points are from each other, every point measured to its nearest on the other side.

    loss = (1 / n) sum_i f(min_j |a_i - b_j|^2) + (1 / m) sum_j f(min_i |a_i - b_j|^2)

for sets of n and m points, with f(d) = d for norm "l2" and f(d) = sqrt(d) / 2 for "l1". Over sets of equal sizes, the
mean of the result is the loss of Point-MAE: "l2" its cdl2, "l1" its cdl1, half included and nothing added under the
root. Squared distances are those of knn; the lowest index wins among equals.
Backward, through the nearest points, with g(d) = 2 for "l2" and g(d) = 1 / (2 sqrt(d)) for "l1", J(i) the nearest of
a_i and I(j) that of b_j:

    da_i = g(d_i) (a_i - b_J(i)) / n + sum over j with I(j) = i, in order, of g(d_j) (a_i - b_j) / m

and db_j alike: the same bits every time. At a distance of exactly 0 "l1" has no derivative, and gives NaN.
A coordinate that is NaN makes the loss NaN; one that is infinite makes it infinite or NaN.
Sources: Fan et al. 2017, section 4.2; Pang et al. 2022 (Point-MAE), section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from omnitrunk.kernels import cuda, native_points
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.knn import check_pairs, checked_offsets, clouds_of, fewest, refuses, squared_distance

NORMS = ("l2", "l1")


def cost(sets: int, points_a: int, points_b: int, *, backward: bool = False) -> Cost:
    """Least work for `sets` pairs of sets in float32: forward, or backward where the nearest points are known.

    Points are read once and gradients written once. Forward takes 8 FLOP for every pair of points, whose distance
    serves both sides; backward takes 3 for a difference, 3 to scale it, and 6 to add it to two gradients.
    """
    points = points_a + points_b
    if backward:
        return Cost(bytes=24 * sets * points, flop=12 * sets * points)
    return Cost(bytes=sets * (12 * points + 4), flop=8 * sets * points_a * points_b)


def _term(a: Tensor, b: Tensor, match: Tensor, root: bool) -> Tensor:
    """The mean (B,) over a (B, N, 3) of f of the squared distances to b[match]."""
    distance = squared_distance(a, b.take_along_dim(match[..., None], 1))
    return (distance.sqrt() / 2 if root else distance).mean(1)


def _batch(a: Tensor, b: Tensor, root: bool) -> Tensor:
    with torch.no_grad():
        distance = squared_distance(a[:, :, None], b[:, None])
        match_a, match_b = distance.argmin(2), distance.argmin(1)
    return _term(a, b, match_a, root) + _term(b, a, match_b, root)


def reference(a: Tensor, b: Tensor, offsets_a: Tensor | None, offsets_b: Tensor | None, root: bool) -> Tensor:
    """The definition; see the module's text. `root` is norm "l1"."""
    if offsets_a is None and offsets_b is None:
        return _batch(a, b, root)
    pairs = zip(clouds_of(a, offsets_a), clouds_of(b, offsets_b), strict=True)
    return torch.cat([a.flatten()[:0], *(_batch(one[None], other[None], root) for one, other in pairs)])


OPERATION = Operation("chamfer", reference)

Launcher = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, bool, bool], tuple[Tensor, Tensor, Tensor]]
"""(a, b, offsets_a, offsets_b, root, gradients) -> loss (B,), and the gradients of every set's loss where asked for."""


class _Chamfer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        offsets_a: Tensor | None,
        offsets_b: Tensor | None,
        root: bool,
        launch: Launcher,
    ) -> Tensor:
        loss, grad_a, grad_b = launch(a, b, offsets_a, offsets_b, root, True)
        ctx.save_for_backward(grad_a, grad_b, offsets_a, offsets_b)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_a, grad_b, offsets_a, offsets_b = ctx.saved_tensors
        needs_a, needs_b, *_ = ctx.needs_input_grad
        scaled_a = _scaled(grad_a, grad, offsets_a) if needs_a else None
        return scaled_a, _scaled(grad_b, grad, offsets_b) if needs_b else None, None, None, None, None


def _scaled(gradient: Tensor, of_sets: Tensor, offsets: Tensor | None) -> Tensor:
    if offsets is None:
        return gradient * of_sets[:, None, None]
    # The size is given so that a GPU does not have to tell.
    return gradient * of_sets.repeat_interleave(offsets.diff(), output_size=len(gradient))[:, None]


def serving(launch: Launcher) -> Callable[..., Tensor]:
    """A backend out of a launcher that computes loss and gradients at once: backward only scales them."""

    def run(a: Tensor, b: Tensor, offsets_a: Tensor | None, offsets_b: Tensor | None, root: bool) -> Tensor:
        a, b = a.contiguous(), b.contiguous()
        if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
            return _Chamfer.apply(a, b, offsets_a, offsets_b, root, launch)
        return launch(a, b, offsets_a, offsets_b, root, False)[0]

    return run


OPERATION.backend(
    "cuda",
    devices=("cuda",),
    why="both directions and the gradients without a matrix of distances",
    missing=cuda.missing_reason,
    refuses=refuses,
)(serving(cuda.cuda_chamfer))
OPERATION.backend(
    "cpu",
    devices=("cpu",),
    why="both directions and the gradients without a matrix of distances",
    missing=native_points.missing_reason,
    refuses=refuses,
)(serving(native_points.native_chamfer))


def chamfer(
    a: Tensor,
    b: Tensor,
    *,
    norm: str = "l2",
    cu_seqlens_a: Tensor | None = None,
    cu_seqlens_b: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Chamfer distance of every pair of sets, differentiable in both.

    a (B, N, 3) or, with cu_seqlens_a (B + 1,), (total, 3), and b alike and independently; `norm` "l2" or "l1", see the
    module's text -> (B,) float32, or float64 where a or b is. Half precision is computed in float32. Raises ValueError
    where shapes do not fit or a set is empty; on a GPU, where cu_seqlens are not looked at, an empty set gives NaN.
    """
    if norm not in NORMS:
        raise ValueError(f"chamfer has no norm {norm!r}; choose one of {', '.join(NORMS)}")
    if not (a.is_floating_point() and b.is_floating_point()) or a.device != b.device:
        given = f"{a.dtype} on {a.device} and {b.dtype} on {b.device}"
        raise ValueError(f"chamfer takes floating points on one device, not {given}: use points.to()")
    offsets_a, offsets_b = checked_offsets("a", a, cu_seqlens_a), checked_offsets("b", b, cu_seqlens_b)
    check_pairs(a, offsets_a, b, offsets_b)
    if 0 in (fewest(a, offsets_a), fewest(b, offsets_b)):
        raise ValueError("chamfer needs at least one point in every set: leave pairs with an empty set out")
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return OPERATION.run(backend, a.to(wide), b.to(wide), offsets_a, offsets_b, norm == "l1")

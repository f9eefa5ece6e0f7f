"""Bottom floor: a small set of operations, each with a definition, a cost and fast backends.

`use("reference")` runs the definitions, `explain()` says which backend serves each operation, and why.
"""

from omnitrunk.kernels.adamw import adamw_
from omnitrunk.kernels.attention import attention
from omnitrunk.kernels.chamfer import chamfer
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import explain, use
from omnitrunk.kernels.farthest_point_sample import farthest_point_sample
from omnitrunk.kernels.gather_tokens import gather_tokens
from omnitrunk.kernels.knn import group_points, knn
from omnitrunk.kernels.layer_norm import layer_norm
from omnitrunk.kernels.linear import linear
from omnitrunk.kernels.linear_cross_entropy import linear_cross_entropy
from omnitrunk.kernels.masked_patch_loss import masked_patch_loss
from omnitrunk.kernels.mlp import mlp
from omnitrunk.kernels.patch_project import patch_project
from omnitrunk.kernels.pathway_linear import combine_weights, pathway_linear
from omnitrunk.kernels.sample_mask import sample_mask
from omnitrunk.kernels.scatter_tokens import scatter_tokens
from omnitrunk.kernels.window_attention import window_attention

__all__ = [
    "Cost",
    "adamw_",
    "attention",
    "chamfer",
    "combine_weights",
    "explain",
    "farthest_point_sample",
    "gather_tokens",
    "group_points",
    "knn",
    "layer_norm",
    "linear",
    "linear_cross_entropy",
    "masked_patch_loss",
    "mlp",
    "patch_project",
    "pathway_linear",
    "sample_mask",
    "scatter_tokens",
    "use",
    "window_attention",
]

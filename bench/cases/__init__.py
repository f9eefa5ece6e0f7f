"""The cases of every operation: name -> function of (device, quick) that lists them."""

from omnitrunk.bench.cases import attention, loss, mlp, norm, optimizer, patches, pathway, points, tokens, windows

CASES = {
    "attention": attention.cases,
    "layer_norm": norm.cases,
    "mlp": mlp.mlp_cases,
    "linear": mlp.linear_cases,
    "linear_cross_entropy": loss.cross_entropy_cases,
    "patch_project": patches.project_cases,
    "gather_patches": patches.gather_cases,
    "gather_tokens": tokens.gather_cases,
    "scatter_tokens": tokens.scatter_cases,
    "sample_mask": tokens.mask_cases,
    "masked_patch_loss": loss.masked_cases,
    "pathway_linear": pathway.cases,
    "adamw_": optimizer.cases,
    "farthest_point_sample": points.sample_cases,
    "knn": points.neighbor_cases,
    "group_points": points.group_cases,
    "chamfer": points.chamfer_cases,
    "window_attention": windows.cases,
}

from __future__ import annotations

import numpy as np
import torch

from omnitrunk.engine.drawing.clouds import DOT, PAPER, SIZE, cloud_panel, draw_cloud


def test_a_point_is_a_dot_above_a_lower_one():
    high, low = (draw_cloud(torch.tensor([[0.0, y, 0.0]])) for y in (0.7, -0.7))
    rows = [np.flatnonzero((picture != PAPER).any(axis=(1, 2))) for picture in (high, low)]
    assert high.shape == (SIZE, SIZE, 3) and all(len(found) == DOT for found in rows)
    assert rows[0].max() < SIZE / 2 < rows[1].min()


def test_what_is_outside_of_the_picture_is_left_out():
    assert (draw_cloud(torch.tensor([[9.0, 0.0, 0.0], [0.0, -9.0, 0.0]])) == PAPER).all()


def test_a_perfect_prediction_looks_like_the_target(seed):
    generator = torch.Generator().manual_seed(seed)
    centers, groups = (0.5 * torch.rand(2, 6, *shape, 3, generator=generator) for shape in ((), (4,)))
    points = (centers.unsqueeze(2) + groups).flatten(1, 2)
    mask = torch.tensor([[True, False] * 3, [False, True] * 3])
    found = torch.where(mask[..., None], groups.flatten(2), torch.nan)
    panel = cloud_panel("points", {"points": points, "centers": centers, "groups": groups}, found, mask)
    pictures = panel.pictures
    assert list(pictures) == ["input", "masked", "prediction", "target"]
    assert np.array_equal(pictures["prediction"], pictures["target"])
    assert np.array_equal(pictures["input"], pictures["target"])
    assert (pictures["masked"] != PAPER).sum() < (pictures["target"] != PAPER).sum()

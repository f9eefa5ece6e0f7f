from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from omnitrunk.models import PartSegmenter
from omnitrunk.models.layers.part_head import PartHead
from tests.models.small import lively
from tests.models.small_autoencoders import assert_same_loss_and_gradients
from tests.models.small_point_tuning import labeled_clouds, slow_part_logits, small_segmenter


@pytest.mark.parametrize("changes", [{}, {"part_counts": (1, 1, 4), "point_width": 8}])
def test_loss_and_gradients_equal_the_slow_computation(changes, seed):
    config = small_segmenter(**changes)
    model, batch = lively(PartSegmenter(config, seed), seed).double(), labeled_clouds(config, 4, seed)
    losses = model(batch, model.plan(seed, np.arange(4)))
    logits = slow_part_logits(model, batch)
    expected = functional.nll_loss(logits.log_softmax(2).flatten(0, 1), batch["parts"].flatten())
    assert set(losses) == {"parts", "loss"}
    assert_same_loss_and_gradients(model, losses["loss"], expected)


def test_answers_are_parts_of_the_class(seed):
    config = small_segmenter()
    model, batch = PartSegmenter(config, seed), labeled_clouds(config, 6, seed)
    batch["points"] = batch["points"].float()
    with torch.no_grad():
        found, logits = model.segment(batch), model.logits(batch)
    assert found.shape == batch["parts"].shape
    for shape, label in enumerate(batch["label"].tolist()):
        first, end = config.first_parts[label : label + 2]
        assert torch.equal(found[shape], first + logits[shape, :, first:end].argmax(dim=1))


def test_the_class_of_the_shape_is_used(seed):
    config = small_segmenter()
    model, batch = PartSegmenter(config, seed), labeled_clouds(config, 2, seed)
    batch["points"] = batch["points"].float()
    with torch.no_grad():
        one, other = (model.logits(batch | {"label": torch.full((2,), label)}) for label in (0, 1))
    assert (one - other).abs().max() > 1e-4


def test_points_may_come_in_any_order(seed):
    config = small_segmenter()
    model, batch = PartSegmenter(config, seed).double(), labeled_clouds(config, 2, seed)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(config.encoder_config.points - 1)])
    with torch.no_grad():
        shuffled = batch | {"points": batch["points"][:, order]}
        torch.testing.assert_close(model.logits(shuffled), model.logits(batch)[:, order])


def test_gradients_of_the_head(seed):
    generator = torch.Generator().manual_seed(seed)
    head = PartHead(4, 3, classes=2, parts=3, point_width=8, rate=0.4).double()
    for parameter in head.parameters():
        torch.nn.init.uniform_(parameter, -1, 1, generator=generator)
    points, centers = (torch.randn(2, count, 3, dtype=torch.float64, generator=generator) for count in (6, 4))
    features = torch.randn(2, 4, 12, dtype=torch.float64, generator=generator, requires_grad=True)
    keys, label = torch.tensor([[seed, seed + 5]]), torch.tensor([1, 0])
    assert torch.autograd.gradcheck(lambda x: head(x, points, centers, label, keys), features)


def test_the_count_of_arithmetic_is_that_of_the_products(seed):
    config = small_segmenter()
    model = PartSegmenter(config, seed)
    width, wide, groups, points = 24, 16, 10, 60
    each = 3 * 4 * width + groups * 4 * width + 4 * width * wide + wide * wide // 2 + 8 * 4 + 4 * 6
    at_centers, once = 3 * width * 4 * width, (2 * 3 * width + 64) * 8 + 3 * 64
    assert model.head.flops(points, groups) == 2 * (points * each + groups * at_centers + once)


def test_it_learns_which_side_a_point_is_on(seed):
    config = small_segmenter(part_counts=(2, 2))
    model = PartSegmenter(config, seed)
    optimizer, losses = torch.optim.AdamW(model.parameter_groups(0.05), lr=5e-3), []
    for step in range(60):
        generator = torch.Generator().manual_seed(seed + step)
        points = torch.randn(8, config.encoder_config.points, 3, generator=generator)
        label = torch.randint(0, 2, (8,), generator=generator)
        side = points.take_along_dim(label[:, None, None], 2).squeeze(2) > 0  # of the first class by x, else by y
        batch = {"points": points, "label": label, "parts": 2 * label[:, None] + side}
        loss = model(batch, model.plan(seed, np.arange(8 * step, 8 * step + 8)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])

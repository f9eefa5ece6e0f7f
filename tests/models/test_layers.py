from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from omnitrunk.models.layers.blocks import Attention, Block, LayerNorm, Linear, QkvLinear
from omnitrunk.models.layers.trunk import Trunk


def filled(module, seed):
    """The module with random parameters, in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return module.double()


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain_block(block, x, scales=(1.0, 1.0)):
    """A block in torch's own words, (B, N, D) -> (B, N, D)."""
    heads, width = block.attn.heads, x.shape[-1]
    y = functional.layer_norm(x, (width,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
    q, k, v = functional.linear(y, *block.attn.qkv.weight_and_bias()).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = x + scales[0] * functional.linear(mixed, block.attn.proj.weight, block.attn.proj.bias)
    y = functional.layer_norm(x, (width,), block.norm2.weight, block.norm2.bias, block.norm2.eps)
    hidden = functional.gelu(functional.linear(y, block.mlp.fc1.weight, block.mlp.fc1.bias))
    return x + scales[1] * functional.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)


def small_trunk(seed, **changes):
    return filled(Trunk(**{"width": 12, "depth": 3, "heads": 3, "mlp_ratio": 2.0, **changes}), seed)


def test_linear_has_a_bias_unless_told(seed):
    assert Linear(3, 2, bias=False).bias is None
    layer, x = filled(Linear(3, 2, bias=False), seed), draw(seed, 4, 3)
    torch.testing.assert_close(layer(x), x @ layer.weight.T)


def test_queries_and_values_have_a_bias_and_keys_have_none(seed):
    layer, x = filled(QkvLinear(8, "qv"), seed), draw(seed, 2, 5, 8)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "q_bias", "v_bias"]
    assert "k_bias" not in layer.state_dict()
    expected = x @ layer.weight.T
    expected[..., :8] += layer.q_bias
    expected[..., 16:] += layer.v_bias
    torch.testing.assert_close(layer(x), expected)


def test_a_bias_of_the_keys_changes_nothing(seed):
    split, whole, x = filled(Attention(12, 3, "qv"), seed), filled(Attention(12, 3), seed), draw(seed, 2, 5, 12)
    whole.load_state_dict({**split.state_dict(), "qkv.bias": split.qkv.weight_and_bias()[1]}, strict=False)
    with torch.no_grad():
        whole.qkv.bias[12:24] = draw(seed + 1, 12)
    torch.testing.assert_close(split(x), whole(x))


@pytest.mark.parametrize("bias", ["qkv", "qv", "none"])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_trunk_is_its_blocks_in_a_row(bias, eps, seed):
    trunk, x = small_trunk(seed, bias=bias, eps=eps), draw(seed, 2, 5, 12)
    expected = x
    for block in trunk:
        expected = plain_block(block, expected)
    torch.testing.assert_close(trunk(x), expected)


def test_every_weight_is_asked_for_by_its_one_accessor(seed, monkeypatch):
    trunk, x = small_trunk(seed, bias="qv"), draw(seed, 2, 5, 12)
    asked = set()

    def double(layer):
        asked.add(layer)
        return 2 * layer.weight, layer.bias

    before = trunk(x)
    monkeypatch.setattr(Linear, "weight_and_bias", double)
    doubled = trunk(x)
    assert asked == {layer for layer in trunk.modules() if isinstance(layer, Linear)}
    assert not torch.allclose(before, doubled)
    monkeypatch.undo()
    with torch.no_grad():
        for layer in asked:
            layer.weight.mul_(2)
    torch.testing.assert_close(trunk(x), doubled)


def test_position_joins_the_stream_before_every_block(seed):
    trunk, x, position = small_trunk(seed), draw(seed, 2, 5, 12), draw(seed + 1, 2, 5, 12)
    expected = x
    for block in trunk:
        expected = plain_block(block, expected + position)
    torch.testing.assert_close(trunk(x, position=position), expected)


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_rows_and_norm_are_taken_from_the_whole(depth, normed, dropped, seed):
    trunk, x = small_trunk(seed, depth=depth), draw(seed, 3, 5, 12)
    scales = draw(seed + 1, 2 * depth, 3) if dropped else None
    norm = filled(LayerNorm(12, 1e-3), seed + 2) if normed else None
    rows = torch.randperm(15, generator=torch.Generator().manual_seed(seed))[:6]
    expected = x
    for number, block in enumerate(trunk):
        factors = (1.0, 1.0) if scales is None else scales[2 * number : 2 * number + 2, :, None, None]
        expected = plain_block(block, expected, factors)
    if normed:
        expected = functional.layer_norm(expected, (12,), norm.weight, norm.bias, 1e-3)
    torch.testing.assert_close(trunk(x, scales, norm=norm), expected)
    torch.testing.assert_close(trunk(x, scales, norm=norm, rows=rows), expected.flatten(0, 1)[rows])


def test_gradients_of_rows_reach_every_parameter_and_token(seed):
    trunk, x = small_trunk(seed, bias="qv"), draw(seed, 2, 4, 12).requires_grad_()
    rows, target = torch.tensor([6, 1]), draw(seed + 1, 2, 12)
    wanted = [x, *trunk.parameters()]
    ours = torch.autograd.grad((trunk(x, rows=rows) * target).sum(), wanted)
    y = x
    for block in trunk:
        y = plain_block(block, y)
    expected = torch.autograd.grad((y.flatten(0, 1)[rows] * target).sum(), wanted)
    torch.testing.assert_close(ours, expected)


def test_flops_of_a_block_count_its_products():
    block = Block(12, 3, 2.0)
    assert block.flops(2, 5, 10) == 2 * 10 * 12 * 36 + 4 * 2 * 25 * 12 + 2 * 10 * (144 + 2 * 288)

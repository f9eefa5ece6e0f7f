from __future__ import annotations

import pytest
import torch

from omnitrunk.models.layers.trunk import Trunk
from omnitrunk.models.pathway import PathwayConfig, join, joined_layers, merge, scales


def trunk(seed, **sizes):
    sizes = {"width": 32, "depth": 3, "heads": 4, "mlp_ratio": 2.0} | sizes
    blocks, generator = Trunk(**sizes), torch.Generator().manual_seed(seed)
    for parameter in blocks.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return blocks


def joined(seed, config, count=1, **sizes):
    target, auxiliaries = trunk(seed, **sizes), [trunk(seed + 1 + i, **sizes) for i in range(count)]
    join(target, [auxiliary.state_dict() for auxiliary in auxiliaries], config)
    return target, auxiliaries


def plain_weights(target, auxiliaries, factor, partner=lambda block: block):
    """The effective weights by the formula, as a plain state dict."""
    state = {name: value for name, value in target.state_dict().items() if ".pathway." not in name}
    for name in state:
        if name.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight")):
            block, rest = name.split(".", 1)
            total = sum(auxiliary.state_dict()[f"{partner(int(block))}.{rest}"] for auxiliary in auxiliaries)
            state[name] = state[name] + factor * total
    return state


def test_lambda_zero_is_the_plain_model_bit_for_bit(seed):
    target, _ = joined(seed, PathwayConfig())
    x = torch.randn(2, 5, 32)
    assert torch.equal(target(x), trunk(seed)(x))


@pytest.mark.parametrize("bias", ["qkv", "qv", "none"])
@pytest.mark.parametrize("order", ["normal", "reversed"])
def test_outputs_are_those_of_the_summed_weights(seed, order, bias):
    target, auxiliaries = joined(seed, PathwayConfig(scale=0.4, order=order), count=2, bias=bias)
    plain = trunk(seed, bias=bias)
    partner = (lambda block: 2 - block) if order == "reversed" else (lambda block: block)
    plain.load_state_dict(plain_weights(target, auxiliaries, 0.4, partner))
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(target(x), plain(x))


def test_the_gradients_follow_from_that_of_the_sum(seed):
    target, auxiliaries = joined(seed, PathwayConfig(scale=0.4))
    plain = trunk(seed)
    plain.load_state_dict(plain_weights(target, auxiliaries, 0.4))
    x, dy = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    (target(x) * dy).sum().backward()
    (plain(x) * dy).sum().backward()
    for name, layer in joined_layers(target).items():
        gradient, pathway = plain.get_submodule(name).weight.grad, layer.pathway
        torch.testing.assert_close(layer.weight.grad, gradient, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(pathway.auxiliaries[0].grad, 0.4 * layer.weight.grad)
        expected = (layer.weight.grad.double() * pathway.auxiliaries[0].double()).sum().float()
        torch.testing.assert_close(pathway.scales[0].grad[0], expected, rtol=1e-4, atol=1e-4)


def test_on_the_first_step_only_the_scales_feel_the_auxiliary(seed):
    target, _ = joined(seed, PathwayConfig())
    target(torch.randn(2, 5, 32)).square().sum().backward()
    assert len(joined_layers(target)) == 12
    for layer in joined_layers(target).values():
        assert layer.pathway.auxiliaries[0].grad.abs().max() == 0
        assert layer.pathway.scales[0].grad.abs() > 0


def test_folding_gives_a_plain_model_with_the_same_outputs(seed):
    target, _ = joined(seed, PathwayConfig(scale=-0.3), count=2)
    plain = trunk(seed + 9)
    plain.load_state_dict(merge(target.state_dict()), strict=True)
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(plain(x), target(x), rtol=1e-6, atol=1e-6)
    with pytest.raises(RuntimeError, match="pathway"):
        plain.load_state_dict(target.state_dict())


def test_layers_can_be_chosen_and_parts_frozen(seed):
    config = PathwayConfig(layers=("fc1",), scale=0.5, train_auxiliaries=False)
    target, _ = joined(seed, config)
    assert list(scales(target)) == ["0.mlp.fc1", "1.mlp.fc1", "2.mlp.fc1"]
    assert all(value == [0.5] for value in scales(target).values())
    target(torch.randn(2, 5, 32)).sum().backward()
    pathway = target[0].mlp.fc1.pathway
    assert pathway.auxiliaries[0].grad is None and pathway.scales[0].grad is not None


def test_a_model_that_does_not_fit_is_refused(seed):
    target, state = trunk(seed), trunk(seed).state_dict()
    with pytest.raises(ValueError, match="auxiliary 1 has 2 blocks, the model 3"):
        join(target, [state, trunk(seed, depth=2).state_dict()], PathwayConfig())
    with pytest.raises(ValueError, match="use models of one width"):
        join(target, [trunk(seed, width=64).state_dict()], PathwayConfig())
    with pytest.raises(ValueError, match=r"has no 0\.mlp\.fc2\.weight"):
        join(target, [{name: value for name, value in state.items() if "fc2" not in name}], PathwayConfig())
    with pytest.raises(ValueError, match="choose from qkv, proj, fc1, fc2"):
        PathwayConfig(layers=("fc3",))
    with pytest.raises(ValueError, match="each one once"):
        PathwayConfig(layers=("fc1", "fc1"))

from __future__ import annotations

import math

import pytest
import torch

from omnitrunk.bench import plain_windows
from omnitrunk.kernels import window_attention
from omnitrunk.kernels.window_attention import OPERATION, cost, cpu, cut
from omnitrunk.kernels.window_attention.windows import index_map, inverse_map, patterns, relative_index, strangers

from .compare import assert_agree, leaves, outputs_and_gradients, poisoned

BACKENDS = ["cpu", "sdpa", "reference"]
CASES = {
    "whole windows, shifted": ((4, 6, 6), (2, 3, 3), (1, 1, 1)),
    "not shifted": ((2, 6, 3), (2, 3, 3), (0, 0, 0)),
    "padded": ((2, 5, 7), (2, 3, 4), (0, 0, 0)),
    "padded on every axis and shifted": ((3, 5, 7), (2, 3, 3), (1, 1, 2)),
    "shifted on one axis": ((3, 4, 4), (2, 2, 4), (0, 1, 0)),
    "an image": ((1, 7, 7), (4, 3, 3), (2, 1, 1)),
    "clipped in height and width": ((5, 2, 3), (2, 4, 4), (1, 2, 2)),
    "clipped and padded": ((2, 3, 9), (4, 4, 4), (2, 2, 2)),
    "one window": ((2, 3, 3), (2, 3, 3), (1, 1, 1)),
    "one token": ((1, 1, 1), (2, 2, 2), (1, 1, 1)),
}


def random_tensors(size, window, batch=2, heads=2, width=4):
    rows = math.prod(2 * extent - 1 for extent in window)
    return torch.randn(batch, *size, 3, heads, width), torch.randn(rows, heads), torch.randn(3, heads, width)


def run(window, shift, backend="auto", **options):
    return lambda qkv, table, padding=None: window_attention(
        qkv, table, window=window, shift=shift, padding=padding, backend=backend, **options
    )


def textbook(window, shift, scale=0.5, attention="eager"):
    return lambda qkv, table, padding=None: plain_windows.window_attention(
        qkv, table, window, shift, scale, padding, attention
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("attention", plain_windows.ATTENTIONS)
def test_definition_matches_the_textbook(name, attention, seed):
    torch.manual_seed(seed)
    size, window, shift = CASES[name]
    tensors = [tensor.double() for tensor in random_tensors(size, window)]
    got = outputs_and_gradients(run(window, shift, "reference"), *tensors)
    expected = outputs_and_gradients(textbook(window, shift, attention=attention), *tensors)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["cpu", "sdpa"])
@pytest.mark.parametrize("name", CASES)
def test_backends_match_the_definition(backend, name, seed, monkeypatch):
    torch.manual_seed(seed)
    size, window, shift = CASES[name]
    tensors = random_tensors(size, window)
    poisoned(monkeypatch)
    for faithful in (True, False):
        fast, slow = (run(window, shift, which, faithful=faithful) for which in (backend, "reference"))
        assert_agree(fast, slow, *tensors)


@pytest.mark.parametrize("budget", [1, 2000, 20000])
@pytest.mark.parametrize("width", [4, 16])
def test_cpu_in_pieces_of_any_size(budget, width, seed, monkeypatch):
    """Down to single heads of single windows, with weights kept for the backward pass or computed again."""
    torch.manual_seed(seed)
    monkeypatch.setattr(cpu, "SCORE_BYTES", budget)
    tensors = random_tensors((3, 5, 7), (2, 3, 3), heads=3, width=width)
    assert_agree(run((2, 3, 3), (1, 1, 1), "cpu"), run((2, 3, 3), (1, 1, 1), "reference"), *tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_some_gradients(backend, seed):
    torch.manual_seed(seed)
    tensors = random_tensors((2, 5, 4), (2, 3, 3))
    whole = outputs_and_gradients(run((2, 3, 3), (0, 1, 1), backend), *tensors)
    for place in range(3):
        inputs = leaves(*tensors)
        for other in {0, 1, 2} - {place}:
            inputs[other].requires_grad_(False)
        output = run((2, 3, 3), (0, 1, 1), backend)(*inputs)
        direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        (gradient,) = torch.autograd.grad(output, inputs[place], direction.float())
        torch.testing.assert_close(gradient, whole[1 + place])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spread", [1e-3, 30.0])
def test_small_and_large_values(backend, spread, seed):
    torch.manual_seed(seed)
    qkv, table, padding = random_tensors((2, 5, 4), (2, 3, 3))
    # Multiples of 1/8 make the scores exact, so that rounding cannot decide which key wins.
    qkv, padding = ((8 * tensor).round() / 8 * spread for tensor in (qkv, padding))
    tolerance = 1e-5 if spread < 1 else 1e-3
    assert_agree(run((2, 3, 3), (0, 1, 1), backend), run((2, 3, 3), (0, 1, 1), "reference"), qkv, table, padding,
                 tolerance=tolerance)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_a_scale_of_the_callers_and_no_padding(backend, seed):
    torch.manual_seed(seed)
    qkv, table, _ = random_tensors((2, 5, 4), (2, 3, 3))

    def permuted(qkv, table):
        out = run((2, 3, 3), (0, 1, 1), backend, scale=0.3)(qkv.permute(1, 2, 3, 4, 0, 6, 5), table.t())
        return out.transpose(1, 3)

    def expected(qkv, table):
        return textbook((2, 3, 3), (0, 1, 1), 0.3)(qkv.permute(1, 2, 3, 4, 0, 6, 5), table.t()).transpose(1, 3)

    assert_agree(permuted, expected, qkv.permute(4, 0, 1, 2, 3, 6, 5).contiguous(), table.t().contiguous())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clipped_window_has_the_biases_of_its_own_offsets_unless_faithful(backend, seed):
    torch.manual_seed(seed)
    size, window = (2, 3, 2), (2, 5, 4)
    qkv, table, _ = random_tensors(size, window)
    grid = table.view(3, 9, 7, 2)[:, 2:7, 2:5]
    expected = plain_windows.window_attention(qkv, grid.reshape(-1, 2), size, (0, 0, 0), 0.5)
    corrected, faithful = (run(window, (0, 0, 0), backend, faithful=faithful)(qkv, table) for faithful in (False, True))
    torch.testing.assert_close(corrected, expected, rtol=1e-4, atol=1e-5)
    assert (faithful - expected).abs().max() > 1e-3


def test_an_image_only_trains_the_biases_within_one_frame(seed):
    torch.manual_seed(seed)
    qkv, table, padding = random_tensors((1, 5, 6), (3, 3, 3))
    _, _, gradient, _ = outputs_and_gradients(run((3, 3, 3), (1, 1, 1)), qkv, table, padding)
    trained = gradient.view(5, 25, 2).ne(0).any(-1)
    assert trained[2].all() and not trained[[0, 1, 3, 4]].any()


def test_gradcheck_of_the_definition(seed):
    torch.manual_seed(seed)
    tensors = [tensor.double().requires_grad_() for tensor in random_tensors((2, 3, 4), (2, 2, 3), 1, 2, 2)]
    assert torch.autograd.gradcheck(run((2, 2, 3), (1, 1, 1), "reference"), tensors)


@pytest.mark.parametrize("name", CASES)
def test_every_token_has_one_place(name):
    windows = cut(*CASES[name])
    index, tokens = index_map(windows), math.prod(windows.size)
    assert index.shape == (windows.number, windows.tokens)
    assert torch.equal(index[index < tokens].sort().values, torch.arange(tokens))
    assert windows.padded == bool((index == tokens).any())
    assert torch.equal(index.flatten()[inverse_map(index, tokens)], torch.arange(tokens))


@pytest.mark.parametrize("name", CASES)
def test_at_most_8_patterns_make_the_mask(name):
    windows = cut(*CASES[name])
    found = torch.tensor(patterns(windows))
    assert len(found.unique()) <= 8
    padded = tuple(a * b for a, b in zip(windows.counts, windows.window, strict=True))
    mask = plain_windows.shift_mask(padded, windows.window, windows.shift)
    assert torch.equal(strangers(windows, found), mask.ne(0).expand(len(found), -1, -1))


def test_the_index_of_biases_is_that_of_checkpoints():
    index = relative_index(cut((16, 56, 56), (8, 7, 7), (4, 3, 3)))
    assert index.shape == (392, 392)
    assert index[0].tolist() == plain_windows.relative_index((8, 7, 7))[0].tolist()
    assert index[-1, 0] == 2534 and index[0, -1] == 0 and index[5, 5] == 1267


@pytest.mark.parametrize("shape", [(0, 2, 4, 4, 3, 2, 4), (2, 0, 4, 4, 3, 2, 4), (2, 2, 4, 4, 3, 0, 4)])
def test_without_samples_frames_or_heads(shape):
    qkv, table = torch.zeros(shape, requires_grad=True), torch.zeros(3 * 5 * 5, shape[5], requires_grad=True)
    out = window_attention(qkv, table, window=(2, 3, 3))
    out.sum().backward()
    assert out.shape == (*shape[:4], *shape[5:])
    assert qkv.grad.shape == qkv.shape and table.grad.eq(0).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"qkv": torch.zeros(2, 2, 4, 4, 24)}, "qkv"),
        ({"window": (3, 3)}, "3 integers"),
        ({"window": (2, 0, 3)}, "shift"),
        ({"shift": (0, 3, 0)}, r"\[0, window\)"),
        ({"bias_table": torch.zeros(9, 2)}, r"\(75, 2\)"),
        ({"padding": torch.zeros(24)}, r"\(3, 2, 4\)"),
        ({"backend": "flash"}, "no backend"),
    ],
)
def test_mistakes_are_named(change, message):
    call = {"qkv": torch.zeros(2, 2, 4, 4, 3, 2, 4), "bias_table": torch.zeros(75, 2), "window": (2, 3, 3)} | change
    with pytest.raises(ValueError, match=message) as caught:
        window_attention(call.pop("qkv"), call.pop("bias_table"), **call)
    assert "\n" not in str(caught.value)


def test_under_autocast_products_are_narrow_and_gradients_are_not(seed):
    torch.manual_seed(seed)
    tensors = leaves(*random_tensors((2, 5, 4), (2, 3, 3)))
    with torch.autocast("cpu", torch.bfloat16):
        out = run((2, 3, 3), (0, 1, 1))(*tensors)
    assert OPERATION.explain(*tensors, cut((2, 5, 4), (2, 3, 3), (0, 1, 1)), 0.5).backend == "cpu"
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_one_graph(backend, seed):
    torch.manual_seed(seed)
    tensors = random_tensors((2, 5, 4), (2, 3, 3))
    call = run((2, 3, 3), (0, 1, 1), backend)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    results = zip(*(outputs_and_gradients(way, *tensors) for way in (compiled, call)), strict=True)
    for ours, theirs in results:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("keep", [True, False])
def test_launchers_are_sound_operators(keep, seed):
    torch.manual_seed(seed)
    tensors, call = random_tensors((2, 5, 4), (2, 3, 3)), ([2, 3, 3], [0, 1, 1], True, 0.5)
    operators = torch.ops.omnitrunk
    _, kept = operators.window_attention_cpu_forward(*tensors, *call, keep)
    torch.library.opcheck(operators.window_attention_cpu_forward.default, (*tensors, *call, keep))
    grad = torch.randn(2, 2, 5, 4, 2, 4)
    torch.library.opcheck(operators.window_attention_cpu_backward.default, (grad, kept, *tensors, *call))


def test_cost_of_the_windows_of_an_image():
    windows = cut((1, 56, 56), (8, 7, 7), (0, 3, 3))
    forward, backward = (cost(windows, 4, heads=3, head_width=32, backward=way) for way in (False, True))
    pairs = 4 * 64 * 49 * 49 * 3
    assert forward.flop == 4 * pairs * 32 and backward.flop == 10 * pairs * 32
    assert forward.exps == pairs and forward.bytes == 4 * 4 * 56 * 56 * 96 * 2

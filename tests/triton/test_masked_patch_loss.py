from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels import gpu
from omnitrunk.kernels.masked_patch_loss import masked_patch_loss, triton_kernels  # noqa: F401  registers operators
from tests.triton.compare import assert_matches, error, random, strided

# The interpreter computes with numpy, which warns about the lanes past the end; their results are masked.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
COLORS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def patches(seed, count, total, device):
    """Indices of patches and weights, one of several being 0."""
    index = torch.randperm(total, generator=generator(seed))[:count].to(device)
    # Not too small: gradients in float16 would fall among its subnormal numbers, which have few digits.
    weight = (0.5 + 0.5 * torch.rand(count, generator=generator(seed + 1))).to(device)
    weight[count // 2 :][1:2] = 0
    return index, weight


def both(target, index, weight, **options):
    """Ours, and the definition in float64 on exactly the same numbers."""
    wide = target.double() if target.is_floating_point() else target

    def ours(pred):
        return masked_patch_loss(pred, target, index, weight, **options, backend="triton")

    def definition(pred):
        return masked_patch_loss(pred, wide, index, weight.double(), **options, backend="reference")

    return ours, definition


def values(seed, count, width, dtype, device, scale=1.0):
    return [random(seed + 2, count, width, dtype=dtype, device=device, scale=scale)]


@pytest.mark.parametrize("loss", ["mse", "l1"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("patch", "count"), [(2, 1), (4, 17), (7, 3), (8, 2), (14, 1)])
def test_bytes(seed, dtype, device, loss, standardize, patch, count):
    target = torch.randint(0, 256, (3, 2 * patch, 4 * patch, 3), dtype=torch.uint8, generator=generator(seed))
    index, weight = patches(seed, count, 24, device)
    options = {"patch": patch, "loss": loss, "standardize": standardize, **COLORS}
    calls = both(target.to(device), index, weight, **options)
    assert_matches(*calls, values(seed, count, 3 * patch**2, dtype, device))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("layout", ["channels last", "channels first", "cut out"])
@pytest.mark.parametrize("standardize", [False, True])
def test_floating_pixels_in_any_layout(seed, device, channels, layout, standardize):
    shape = (2, channels, 8, 12) if layout == "channels first" else (2, 11, 14, channels)
    target = random(seed, *shape, device=device, scale=3.0)
    target = target.permute(0, 2, 3, 1) if layout == "channels first" else target[:, 2:10, 1:13]
    target = target.contiguous() if layout == "channels last" else target
    index, weight = patches(seed, 9, 12, device)
    calls = both(target, index, weight, patch=4, loss="mse", standardize=standardize)
    assert_matches(*calls, values(seed, 9, 16 * channels, torch.float32, device))


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_small_and_large_values(seed, device, scale):
    target = random(seed, 2, 8, 8, 1, device=device, scale=scale)
    index, weight = patches(seed, 5, 8, device)
    calls = both(target, index, weight, patch=4, loss="mse", standardize=True)
    assert_matches(*calls, values(seed, 5, 16, torch.float32, device, scale), tolerance=3e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [2, 11, 133])
@pytest.mark.parametrize(("labels", "ignored"), [(torch.uint8, 255), (torch.int64, -100)], ids=str)
def test_cross_entropy(seed, dtype, device, smoothing, classes, labels, ignored):
    target = torch.randint(0, classes, (2, 4, 6), generator=generator(seed)).to(labels)
    target[torch.rand(target.shape, generator=generator(seed)) < 0.2] = ignored
    index, weight = patches(seed, 5, 12, device)
    options = {"patch": 2, "loss": "cross_entropy", "label_smoothing": smoothing, "ignore_index": ignored}
    calls = both(strided(target.to(device)), index, weight, **options)
    assert_matches(*calls, values(seed, 5, 4 * classes, dtype, device, scale=3.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_class_leaves_nothing_to_learn(seed, device, smoothing):
    (pred,) = values(seed, 3, 4, torch.float32, device)
    index, weight = patches(seed, 3, 4, device)
    target = torch.zeros(1, 4, 4, dtype=torch.uint8, device=device)
    options = {"patch": 2, "loss": "cross_entropy", "label_smoothing": smoothing, "backend": "triton"}
    loss = masked_patch_loss(pred.requires_grad_(), target, index, weight, **options)
    loss.backward()
    assert loss.abs() < 1e-6 and pred.grad.abs().max() < 1e-6


def test_cross_entropy_of_huge_logits_is_finite(device):
    pred = torch.tensor([[1e4, -1e4, 0.0], [-3e38, 0.0, 1.0]], device=device, requires_grad=True)
    index, weight = torch.tensor([0, 1], device=device), torch.tensor([1.0, 0.0], device=device)
    target = torch.tensor([[[1, 0]]], device=device)
    loss = masked_patch_loss(pred, target, index, weight, patch=1, loss="cross_entropy", backend="triton")
    loss.backward()
    assert loss.item() == 2e4 and pred.grad[0].tolist() == [1, -1, 0]


def constant(device, dtype=torch.float32):
    """A prediction of ones for two patches of zeros, with weights of 1."""
    pred = torch.ones(2, 4, dtype=dtype, device=device, requires_grad=True)
    target = torch.zeros(1, 2, 4, 1, device=device)
    return pred, target, torch.tensor([0, 1], device=device), torch.ones(2, device=device)


@pytest.mark.parametrize("above", [1.0, -3.5, 0.0])
def test_the_gradient_above_is_read_from_the_device(device, dtype, above):
    pred, *others = constant(device, dtype)
    loss = masked_patch_loss(pred, *others, patch=2, loss="mse", backend="triton")
    loss.backward(torch.tensor(above, device=device))
    assert loss.item() == 2 and pred.grad.dtype == dtype and pred.grad.eq(above / 2).all()


def test_tiny_weights_survive_in_half_precision_under_a_scaled_loss(seed, device):
    index, weight = patches(seed, 6, 8, device)
    target = random(seed, 2, 8, 8, 1, device=device)
    ours, definition = both(target, index, weight * 1e-7, patch=4, loss="mse")
    inputs = values(seed, 6, 16, torch.float16, device)
    assert_matches(lambda p: ours(p) * 65536, lambda p: definition(p) * 65536, inputs)


def test_a_second_backward_pass_is_refused(device):
    pred, *others = constant(device)
    loss = masked_patch_loss(pred, *others, patch=2, loss="mse", backend="triton")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="hands out its gradient once"):
        loss.backward()


def test_without_gradients_none_is_written(device, monkeypatch):
    new, made = gpu.new, []

    def counted(shape, dtype, device):
        made.append(tuple(shape))
        return new(shape, dtype, device)

    monkeypatch.setattr(gpu, "new", counted)
    pred, *others = constant(device)
    with torch.no_grad():
        loss = masked_patch_loss(pred, *others, patch=2, loss="l1", backend="triton")
    assert loss.item() == 2 and not loss.requires_grad and made[0] == (0, 4)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_no_masked_patch_gives_a_zero_with_a_graph(device, loss):
    pred, target, *_ = constant(device)
    target = target[..., 0].long() if loss == "cross_entropy" else target
    nothing = torch.zeros(0, dtype=torch.int64, device=device), torch.ones(0, device=device)
    value = masked_patch_loss(pred[:0], target, *nothing, patch=2, loss=loss, backend="triton")
    value.backward()
    assert value == 0 and pred.grad.eq(0).all()


def test_prediction_and_target_are_left_alone(device):
    pred, target, *others = constant(device)
    masked_patch_loss(pred, target, *others, patch=2, loss="mse", standardize=True, backend="triton").backward()
    assert pred.eq(1).all() and target.eq(0).all()


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("outside", [-1, 2, 2**40])
def test_a_patch_that_there_is_not_makes_the_loss_nan(device, loss, outside):
    pred, target, index, weight = constant(device)
    index[1] = outside
    target = target[..., 0].long() if loss == "cross_entropy" else target
    assert masked_patch_loss(pred, target, index, weight, patch=2, loss=loss, backend="triton").isnan()


@pytest.mark.parametrize("label", [-1, 3, 2**32])
def test_a_class_that_there_is_not_makes_the_loss_nan(device, label):
    index, weight = torch.tensor([0], device=device), torch.ones(1, device=device)
    target = torch.tensor([[[label]]], device=device)
    pred = torch.ones(1, 3, device=device)
    assert masked_patch_loss(pred, target, index, weight, patch=1, loss="cross_entropy", backend="triton").isnan()


def test_offsets_beyond_two_to_the_31(seed, device):
    target = torch.empty(3, 2**15, 2**15, 1, dtype=torch.uint8, device=device)  # memory is taken where it is touched
    target[-1, -4:, -4:] = torch.randint(0, 256, (4, 4, 1), dtype=torch.uint8, generator=generator(seed)).to(device)
    index, weight = torch.tensor([3 * 2**26 - 1], device=device), torch.ones(1, device=device)
    calls = both(target, index, weight, patch=4, loss="mse")
    assert_matches(*calls, values(seed, 1, 16, torch.float32, device))


def test_two_runs_give_the_same_bits(seed, device):
    target = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8, generator=generator(seed)).to(device)
    index, weight = patches(seed, 31, 48, device)
    (pred,) = values(seed, 31, 48, torch.float32, device)
    losses = [both(target, index, weight, patch=4, loss="mse", standardize=True)[0](pred) for _ in range(2)]
    assert torch.equal(*losses)


def test_launchers_are_sound_operators(device):
    pred, target, index, weight = constant(device)
    pred = pred.detach()
    calls = {
        "pixel_loss": (pred, target, index, weight, 2, True, True, 1e-6, [], [], True, False),
        "class_loss": (pred, target[..., 0].long(), index, weight, 2, 0.1, -100, True, False),
        "scale_gradient_": (pred.clone(), torch.tensor(2.0, device=device), None, 4),
    }
    for name, arguments in calls.items():
        operator = getattr(torch.ops.omnitrunk, name).default
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("loss", ["l1", "cross_entropy"])
def test_is_one_graph(seed, device, loss):
    target = torch.randint(0, 3, (2, 4, 6), generator=generator(seed)).to(device)
    target = target if loss == "cross_entropy" else target.float().unsqueeze(3)
    index, weight = patches(seed, 5, 12, device)
    ours, definition = both(target, index, weight, patch=2, loss=loss)
    compiled = torch.compile(lambda p: 3 * ours(p), fullgraph=True, backend="aot_eager")
    width = 12 if loss == "cross_entropy" else 4
    assert_matches(compiled, lambda p: 3 * definition(p), values(seed, 5, width, torch.float32, device))
    torch.compiler.reset()


def test_float64_is_left_to_others(device):
    pred, *others = constant(device, torch.float64)
    with pytest.raises(ValueError, match="float64"):
        masked_patch_loss(pred, *others, patch=2, loss="mse", backend="triton")
    assert error(masked_patch_loss(pred, *others, patch=2, loss="mse"), torch.tensor(2.0).double()) < 1e-12

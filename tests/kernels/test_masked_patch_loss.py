from __future__ import annotations

import pytest
import torch

from omnitrunk.kernels import masked_patch_loss
from omnitrunk.kernels.masked_patch_loss import cost

from .compare import assert_agree, poisoned

BACKENDS = ["torch", "reference"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def patch_of(target, flat, patch):
    across = target.shape[2] // patch
    image, cell = divmod(flat, target.shape[1] // patch * across)
    top, left = cell // across * patch, cell % across * patch
    return target[image, top : top + patch, left : left + patch]


def pixel_loss_by_loop(pred, target, index, weight, patch, loss, standardize):
    """target (B, H, W, C) float64, already normalized."""
    total = pred.sum() * 0
    for row, flat in enumerate(index.tolist()):
        wanted = patch_of(target, flat, patch).reshape(-1)
        if standardize:
            centered = wanted - wanted.sum() / len(wanted)
            wanted = centered / (centered.square().sum() / (len(wanted) - 1) + 1e-6) ** 0.5
        error = pred[row] - wanted
        total = total + weight[row] * (error**2 if loss == "mse" else error.abs()).sum() / len(wanted)
    return total


def class_loss_by_loop(pred, target, index, weight, patch, smoothing, ignore_index):
    """One pixel after the other; q is the target distribution with label smoothing."""
    total = pred.sum() * 0
    for row, flat in enumerate(index.tolist()):
        classes = patch_of(target, flat, patch).reshape(-1).tolist()
        for logits, wanted in zip(pred[row].unflatten(0, (patch * patch, -1)), classes, strict=True):
            if wanted != ignore_index:
                q = torch.full_like(logits, smoothing / len(logits))
                q[wanted] += 1 - smoothing
                log_p = logits - logits.logsumexp(0)
                total = total - weight[row] * (q * log_p).sum() / len(classes)
    return total


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", ["mse", "l1"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("count", "patch"), [(1, 4), (9, 2), (5, 4)])
def test_bytes(backend, loss, standardize, count, patch, seed, monkeypatch):
    torch.manual_seed(seed)
    target = torch.randint(0, 256, (3, 8, 12, 3), dtype=torch.uint8)
    index = torch.randperm(3 * 96 // patch**2)[:count]
    pred, weight = torch.randn(count, 3 * patch * patch), torch.rand(count)
    options = {"patch": patch, "loss": loss, "standardize": standardize}
    normalized = (target.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    poisoned(monkeypatch)
    assert_agree(
        lambda p: masked_patch_loss(p, target, index, weight, **options, mean=MEAN, std=STD, backend=backend),
        lambda p: pixel_loss_by_loop(p, normalized, index, weight.double(), patch, loss, standardize),
        pred,
        tolerance=2e-5,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_floating_strided_target_with_a_constant_patch(backend, seed):
    torch.manual_seed(seed)
    target = torch.randn(2, 1, 6, 6).permute(0, 2, 3, 1)
    target[0, :3, :3] = 0.5
    index, weight, pred = torch.tensor([0, 7, 2]), torch.rand(3), torch.randn(3, 9)
    assert_agree(
        lambda p: masked_patch_loss(p, target, index, weight, patch=3, loss="mse", standardize=True, backend=backend),
        lambda p: pixel_loss_by_loop(p, target.double(), index, weight.double(), 3, "mse", True),
        pred,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "ignored"), [(torch.uint8, 255), (torch.int64, -100)])
@pytest.mark.parametrize("classes", [1, 2, 11])
def test_cross_entropy(backend, smoothing, dtype, ignored, classes, seed, monkeypatch):
    torch.manual_seed(seed)
    target = torch.randint(0, classes, (2, 4, 6)).to(dtype)
    target[torch.rand(target.shape) < 0.2] = ignored
    index, weight = torch.randperm(12)[:7], torch.rand(7)
    pred = torch.randn(7, 4 * classes) * 3
    options = {"patch": 2, "loss": "cross_entropy", "label_smoothing": smoothing, "ignore_index": ignored}
    poisoned(monkeypatch)
    assert_agree(
        lambda p: masked_patch_loss(p, target, index, weight, **options, backend=backend),
        lambda p: class_loss_by_loop(p, target, index, weight.double(), 2, smoothing, ignored),
        pred,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_cross_entropy_of_huge_logits_is_finite(backend):
    pred = torch.tensor([[1e4, -1e4, 0.0], [-3e38, 0.0, 1.0]], requires_grad=True)
    target = torch.tensor([[[1, 0]]])
    options = {"patch": 1, "loss": "cross_entropy", "backend": backend}
    loss = masked_patch_loss(pred, target, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), **options)
    loss.backward()
    assert loss.item() == 2e4 and pred.grad[0].tolist() == [1, -1, 0]


@pytest.mark.parametrize("loss", ["mse", "l1", "cross_entropy"])
def test_all_patches_ignored_or_weighted_zero_give_zero(loss):
    pred = torch.randn(2, 4, requires_grad=True)
    target = torch.full((1, 2, 4), -100) if loss == "cross_entropy" else torch.ones(1, 2, 4, 1)
    value = masked_patch_loss(pred, target, torch.tensor([0, 1]), torch.zeros(2), patch=2, loss=loss)
    value.backward()
    assert value == 0 and pred.grad.eq(0).all()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_no_masked_patch_gives_a_zero_with_a_graph(backend, loss):
    source = torch.randn(3, 12, requires_grad=True)
    target = torch.zeros(1, 4, 4, dtype=torch.int64) if loss == "cross_entropy" else torch.zeros(1, 4, 4, 3)
    nothing = torch.zeros(0, dtype=torch.int64)
    value = masked_patch_loss(source[:0], target, nothing, torch.ones(0), patch=2, loss=loss, backend=backend)
    value.backward()
    assert value == 0 and torch.equal(source.grad, torch.zeros(3, 12))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_loss_is_float32_or_wider(backend, dtype, seed):
    torch.manual_seed(seed)
    pred = torch.randn(2, 4, dtype=dtype, requires_grad=True)
    target, index, weight = torch.randn(1, 2, 4, 1), torch.tensor([1, 0]), torch.rand(2)
    loss = masked_patch_loss(pred, target, index, weight, patch=2, loss="mse", backend=backend)
    loss.backward()
    expected = pixel_loss_by_loop(pred.detach().double(), target.double(), index, weight.double(), 2, "mse", False)
    assert loss.dtype == torch.promote_types(dtype, torch.float32) and pred.grad.dtype == dtype
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", ["mse", "l1", "cross_entropy"])
def test_gradcheck_of_the_definition(loss, seed):
    torch.manual_seed(seed)
    target = torch.randint(0, 2, (1, 4, 4)) if loss == "cross_entropy" else torch.randn(1, 4, 4, 2)
    pred, weight = torch.randn(3, 8, dtype=torch.float64, requires_grad=True), torch.rand(3).double()
    options = {"patch": 2, "loss": loss, "label_smoothing": 0.1, "backend": "reference"}
    index = torch.tensor([3, 0, 1])

    def call(pred):
        return masked_patch_loss(pred, target.double() if loss != "cross_entropy" else target, index, weight, **options)

    assert torch.autograd.gradcheck(call, (pred,))


def test_the_scale_of_the_gradient_above_is_honoured(seed):
    torch.manual_seed(seed)
    pred, target = torch.randn(1, 4), torch.randn(1, 2, 2, 1)

    def gradient(backend):
        leaf = pred.clone().requires_grad_()
        index, weight = torch.tensor([0]), torch.ones(1)
        loss = masked_patch_loss(leaf, target, index, weight, patch=2, loss="mse", backend=backend)
        (loss * -3.5).backward()
        return leaf.grad

    torch.testing.assert_close(gradient("torch"), gradient("reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiny_weights_survive_in_half_precision_under_a_scaled_loss(backend, seed):
    torch.manual_seed(seed)
    pred, target, weight = torch.randn(2, 4).half(), torch.randn(1, 2, 4, 1), torch.rand(2) * 1e-7
    leaf, index = pred.clone().requires_grad_(), torch.tensor([1, 0])
    (masked_patch_loss(leaf, target, index, weight, patch=2, loss="mse", backend=backend) * 65536).backward()
    wide = pred.double().requires_grad_()
    (pixel_loss_by_loop(wide, target.double(), index, weight.double(), 2, "mse", False) * 65536).backward()
    assert leaf.grad.dtype == torch.float16
    assert (leaf.grad.double() - wide.grad).norm() < 2e-3 * wide.grad.norm()


def test_a_second_backward_pass_is_refused_clearly():
    pred = torch.ones(1, 4, requires_grad=True)
    loss = masked_patch_loss(pred, torch.zeros(1, 2, 2, 1), torch.tensor([0]), torch.ones(1), patch=2, loss="mse")
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="hands out its gradient once"):
        loss.backward()


def test_prediction_and_target_are_left_alone(seed):
    torch.manual_seed(seed)
    pred, target = torch.randn(2, 4, requires_grad=True), torch.randn(1, 2, 4, 1)
    kept = pred.detach().clone(), target.clone()
    masked_patch_loss(
        pred, target, torch.tensor([0, 1]), torch.ones(2), patch=2, loss="l1", standardize=True
    ).backward()
    assert torch.equal(pred.detach(), kept[0]) and torch.equal(target, kept[1])


def test_refuses_what_does_not_fit():
    pred, target, index = torch.ones(1, 12), torch.zeros(1, 4, 4, 3), torch.tensor([0])
    with pytest.raises(ValueError, match="mse, l1, cross_entropy"):
        masked_patch_loss(pred, target, index, torch.ones(1), patch=2, loss="huber")
    with pytest.raises(ValueError, match="2 weights"):
        masked_patch_loss(pred, target, index, torch.ones(2), patch=2, loss="mse")
    with pytest.raises(ValueError, match="11 values do not fit"):
        masked_patch_loss(pred[:, :11], target, index, torch.ones(1), patch=2, loss="mse")
    for wrong, match in [
        ({"target": target[..., 0]}, r"\(B, H, W, C\)"),
        ({"target": target, "loss": "cross_entropy"}, r"\(B, h, w\)"),
        ({"target": target[:, :3]}, "multiples of 2"),
        ({"target": target.int()}, "uint8 or floating"),
        ({"target": target.byte(), "mean": (0.5,)}, "one for each channel"),
        ({"target": target, "index": index.int()}, "must be int64"),
    ]:
        call = {"index": index, "loss": "mse"} | wrong
        with pytest.raises(ValueError, match=match):
            masked_patch_loss(pred, weight=torch.ones(1), patch=2, **call)


def test_cost_reads_predictions_once_and_writes_their_gradient():
    assert cost(10, 48, bytes_per_element=4).bytes == 10 * 48 * 9
    assert cost(10, 48, exps=1).exps == 480

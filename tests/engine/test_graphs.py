"""A step from a CUDA graph is the eager step: on a GPU, and on CPUs with a stand-in that replays what was recorded."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

from omnitrunk.engine import train as loop
from omnitrunk.engine.adamw import AdamW
from omnitrunk.engine.data import Batch
from omnitrunk.engine.distributed import World
from omnitrunk.engine.graphs import CapturedGradients, overwrite, tensors_of
from omnitrunk.engine.optimizer import OptimizerConfig
from omnitrunk.engine.step import compute_gradients, dry_step, train_step
from omnitrunk.kernels import use
from omnitrunk.models import MultiMAE, MultiMAEConfig
from tests.engine.recording import Graph, Recording

SIZES = {
    "inputs": ("rgb",), "outputs": ("rgb", "norm_rgb"), "image_size": 32, "patch_size": 8, "width": 16, "depth": 2,
    "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "keep": 5, "drop_path": 0.3,
}  # fmt: skip
on_gpu = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
)


@pytest.fixture
def recording(monkeypatch):
    """Graphs are recorded on the CPU, of definitions in plain PyTorch: native code would escape the recording."""
    graphs = []

    def make():
        graphs.append(Graph())
        return graphs[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", make)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    with use("reference"):
        yield graphs


def batches_of(model, seed, count, device="cpu", samples=4):
    generator = np.random.default_rng(seed)
    for number in range(count):
        positions = number * samples + np.arange(samples)
        pixels = torch.from_numpy(generator.integers(0, 256, (samples, 32, 32, 3), dtype=np.uint8))
        labels = torch.zeros(samples, dtype=torch.int64)
        batch = Batch(tensors={"rgb": pixels}, labels=labels, positions=positions, plan=model.plan(seed, positions))
        yield batch.to(device)


def lent(batches):
    """As the loader gives them: the memory of a batch is taken back when the next one is asked for."""
    for batch in batches:
        yield batch
        for tensor in tensors_of([batch.tensors, batch.plan]):
            tensor.zero_()


def train(seed, gradients, device="cpu", *, steps=4, accumulate=2, precision="fp32", **changes):
    """Losses and norms of every step, and the weights in the end."""
    model = MultiMAE(MultiMAEConfig(**{**SIZES, **changes}), seed).to(device)
    optimizer = AdamW(model.parameter_groups(0.05), OptimizerConfig(lr=1e-2, clip=0.5, ema_decay=0.9))
    world = World(rank=0, size=1, device=torch.device(device))
    first, *batches = batches_of(model, seed, 1 + steps * accumulate, device)
    dry_step(model, optimizer, first, precision=precision, world=world)
    parts = [
        dataclasses.replace(batch, share=1 / accumulate, last=number % accumulate == accumulate - 1)
        for number, batch in enumerate(batches)
    ]
    stream, history = lent(parts), []
    options = {"precision": precision, "world": world, "gradients": gradients}
    for step in range(steps):
        outcome = train_step(model, optimizer, stream, lr=1e-2 / (1 + step), **options)
        history.append(torch.stack([*outcome.losses.values(), outcome.grad_norm.float()]).clone())
    return torch.stack(history).cpu(), torch.cat([parameter.detach().flatten().cpu() for parameter in optimizer.params])


@pytest.mark.parametrize("changes", [{}, {"keep": 16}, {"loss_on_unmasked": True}, {"fp32_outputs": ("rgb",)}], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replays_give_the_eager_steps(recording, seed, precision, changes):
    changes = {**changes, "precision": precision}
    expected = train(seed, compute_gradients, **changes)
    results = train(seed, CapturedGradients(), **changes)
    assert [graph.replays for graph in recording] == [4]
    for result, truth in zip(results, expected, strict=True):
        assert torch.equal(result, truth)
    assert len(results[0].unique(dim=0)) == 4 or changes.get("keep") == 16, "the steps were all alike"


@pytest.mark.parametrize("device", [on_gpu])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_replays_the_eager_steps(seed, device, precision):
    """Losses and norms; weights whose gradient is nothing but rounding may go either way."""
    expected, _ = train(seed, compute_gradients, device, precision=precision)
    results, _ = train(seed, CapturedGradients(), device, precision=precision)
    torch.testing.assert_close(results, expected, rtol=1e-3 if precision == "fp32" else 2e-2, atol=1e-5)


def test_the_recording_leaves_other_threads_alone(recording, monkeypatch, seed):
    modes = []

    class Noted(Recording):
        def __init__(self, graph, capture_error_mode="global"):
            super().__init__(graph)
            modes.append(capture_error_mode)

    monkeypatch.setattr(torch.cuda, "graph", Noted)
    train(seed, CapturedGradients(), steps=1)
    assert modes == ["thread_local"]


def test_a_step_that_waits_for_the_device_is_noticed(recording):
    """The stand-in itself: it finds waits, and puts back what recording changed."""
    x, graph = torch.ones(3), Graph()
    with pytest.raises(AssertionError, match="waits"), Recording(graph):
        float(x.sum())
    with Recording(graph):
        x.add_(1)
        y = x * 2
    assert x.tolist() == [1, 1, 1]
    graph.replay()
    assert x.tolist() == [2, 2, 2] and y.tolist() == [4, 4, 4]


def test_numbers_of_python_are_frozen(recording):
    """The stand-in would show a step that reads anything but its memory."""
    graph, scale, x = Graph(), 2.0, torch.ones(1)
    with Recording(graph):
        y = x * scale
    scale = 3.0
    graph.replay()
    assert y.item() == 2.0


def test_a_batch_is_copied_into_the_memory_of_another(seed):
    model = MultiMAE(MultiMAEConfig(**SIZES), seed)
    place, source = batches_of(model, seed, 2)
    before = [tensor.data_ptr() for tensor in tensors_of([place.tensors, place.plan])]
    overwrite(place, source)
    for tensor, address, truth in zip(
        tensors_of([place.tensors, place.plan]), before, tensors_of([source.tensors, source.plan]), strict=True
    ):
        assert tensor.data_ptr() == address and torch.equal(tensor, truth)


def test_another_shape_is_refused(seed):
    model = MultiMAE(MultiMAEConfig(**{**SIZES, "inputs": ("rgb", "depth")}), seed)
    plans = [model.plan(seed, np.arange(4) + start) for start in (0, 4)]
    batches = [Batch(tensors={}, labels=torch.zeros(4), positions=np.arange(4), plan=plan) for plan in plans]
    shorter = replace(batches[0], plan=replace(plans[0], visible={k: v[1:] for k, v in plans[0].visible.items()}))
    with pytest.raises(ValueError, match=r"run\.cuda_graph needs batches of one shape.*set it to false"):
        overwrite(batches[0], shorter)


def test_the_loop_takes_the_graph_on_a_gpu_only(tmp_path, monkeypatch, capsys):
    from tests.engine.tiny import tiny

    model = {**SIZES, "image_size": 32}
    config = tiny(tmp_path / "run", steps=2, run={"cuda_graph": True}, model=model, checkpoint={"every": 0})
    monkeypatch.setattr(loop, "CapturedGradients", lambda: pytest.fail("a graph on a CPU"))
    assert loop.train(config) == 0
    assert "run.cuda_graph has no effect: the run is on a CPU" in capsys.readouterr().out


def test_what_a_graph_cannot_hold_is_refused(tmp_path):
    from omnitrunk.engine.build import build
    from tests.engine.tiny import tiny

    with pytest.raises(ValueError, match=r"run\.cuda_graph = true needs batches of one shape"):
        tiny(tmp_path / "run", run={"cuda_graph": True})
    config = tiny(tmp_path / "run", run={"cuda_graph": True}, model=SIZES)
    with pytest.raises(ValueError, match="serves one process, not 2"):
        build(config, World(rank=0, size=2, device=torch.device("cpu")))

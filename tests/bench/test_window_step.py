"""The textbook Swin computes what Omnivore computes, and their steps and memory are reported."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from omnitrunk.bench import window_step
from omnitrunk.bench.plain_swin import PlainSwin, PlainSwinConfig, from_omnivore
from omnitrunk.models import Omnivore, OmnivoreConfig

SIZES = {"width": 8, "depths": (2, 1, 2), "heads": (1, 2, 4), "window": (4, 3, 3), "patch": (2, 4, 4)}


def filled(model):
    """Larger values than at the start of training, so that biases, masks and norms show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_().mul_(0.4)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
# Even and odd maps, windows that are padded, clipped (the last stage) and shifted in space and time; odd pixels.
@pytest.mark.parametrize("size", [(1, 32, 32), (1, 37, 46), (12, 24, 40), (11, 20, 29)])
def test_the_textbook_agrees_in_float64_with_all_gradients(size, attention, seed):
    torch.manual_seed(seed)
    sets = {"image_sets": {"some": 7}} if size[0] == 1 else {"image_sets": {}, "video_sets": {"some": 7}}
    ours = filled(Omnivore(OmnivoreConfig(faithful=True, **SIZES, **sets)).double())
    config = PlainSwinConfig(classes=7, attention=attention, **SIZES)
    plain = PlainSwin(config).double()
    plain.load_state_dict(from_omnivore(ours.state_dict(), config, "some"))
    pixels, labels = torch.randn(2, *size, 3, dtype=torch.float64), torch.randint(0, 7, (2,))
    batch = {"rgb": pixels[:, 0]} if size[0] == 1 else {"video": pixels}
    clips = pixels.permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(plain(clips), ours.logits(batch))
    cross_entropy(plain(clips), labels).backward()
    ours({**batch, "label": labels}, ours.plan(0, np.arange(2)))["loss"].backward()
    expected = from_omnivore({name: value.grad for name, value in ours.named_parameters()}, config, "some")
    found = {name: value.grad for name, value in plain.named_parameters()}
    for name in found:
        torch.testing.assert_close(found[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("case", ["tiny picture", "tiny clip"])
def test_all_ways_have_the_same_loss_and_gradients(case):
    results = {}
    for way in window_step.WAYS:
        model, loss_of = window_step.build(way, case)
        loss = loss_of()
        loss.backward()
        head = model.heads[window_step.HEAD] if way == window_step.OURS else model.head
        results[way] = loss.detach(), head.weight.grad
    for result in results.values():
        torch.testing.assert_close(result, results[window_step.OURS], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", ["tiny picture", "tiny clip"])
def test_ours_takes_less_memory(case):
    memory = {way: window_step.contender(way, case, 1)()["memory"] for way in window_step.WAYS}
    assert 0 < memory[window_step.OURS] < min(memory[way] for way in window_step.TEXTBOOKS)


def test_times_and_memory_are_reported(tmp_path, capsys):
    arguments = ["--quick", "--cases", "clip", "--json", str(tmp_path / "rows.jsonl")]
    assert window_step.main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["contender"] for row in rows} == set(window_step.WAYS)
    assert {row["benchmark"] for row in rows} == {"window step, tiny clip"}
    assert all(0 < row["least"] <= row["median"] and row["peak_bytes"] > 0 for row in rows)
    assert "MB at most" in capsys.readouterr().out

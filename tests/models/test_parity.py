"""The parity runner passes on the recorded fixtures, and a small error anywhere makes it fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional

from omnitrunk.models.layers import blocks
from tests.parity.__main__ import main
from tests.parity.multimae.statistics import surprise
from tests.parity.report import Report

FIXTURES = Path(__file__).parents[1] / "fixtures" / "multimae"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of one case under another name."""
    for kind in ("weights", "io", "grads"):
        shutil.copy(FIXTURES / f"case_b_{kind}.safetensors", tmp_path / f"renamed_{kind}.safetensors")
    return tmp_path


def change(path: Path, key: str, amount: float) -> None:
    """Add to the first element of a tensor in a file."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors[key].view(-1)[0] += amount
    save_file(tensors, path, metadata)


def test_everything_recorded_is_reproduced(capsys):
    assert main(["multimae", str(FIXTURES)]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("0 MISS")
    for expected in ("ids_restore", "mask.semseg", "encoder_block2_out", "dec.norm_rgb.xattn_out", "pred.depth"):
        assert expected in printed
    for expected in (
        "gradnorm.global_tokens",
        "train.losses.total",
        "ce_smooth.grad_masked",
        "hist.rgb",
        "schedule[3]",
    ):
        assert expected in printed
    assert "labels.in (fine-tuning): not covered yet" in printed


def test_one_case_is_reproduced_in_float32(folder, capsys):
    assert main(["multimae", str(folder), "--float32"]) == 0
    assert "renamed " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("weights", "encoder.1.attn.qkv.weight"),
        ("weights", "output_adapters.semseg.out_proj.bias"),
        ("weights", "input_adapters.depth.pos_emb"),
        ("io", "sampler.shuffle_noise"),
        ("grads", "gradnorm.output_adapters.rgb.mask_token"),
    ],
)
def test_a_changed_number_is_a_miss(folder, kind, key, capsys):
    change(folder / f"renamed_{kind}.safetensors", key, 1.0 if "noise" in key else 0.001)
    assert main(["multimae", str(folder)]) == 1
    assert "MISS" in capsys.readouterr().out


def test_another_activation_is_a_miss(folder, monkeypatch, capsys):
    def tanh_mlp(x, w1, b1, w2, b2):
        hidden = functional.gelu(functional.linear(x, w1, b1), approximate="tanh")
        return functional.linear(hidden, w2, b2)

    monkeypatch.setattr(blocks, "mlp", tanh_mlp)
    assert main(["multimae", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "encoder_block0_out" in printed
    assert "MISS" in printed


def test_a_case_without_gradients_is_compared_and_one_without_weights_fails(folder, capsys):
    (folder / "renamed_grads.safetensors").unlink()
    assert main(["multimae", str(folder)]) == 0
    (folder / "renamed_weights.safetensors").unlink()
    assert main(["multimae", str(folder)]) == 1
    assert "renamed lacks renamed_weights.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"not a tensor", {"stranger": torch.zeros(1)}])
def test_a_folder_with_nothing_to_compare_is_one_readable_line(tmp_path, content, capsys):
    path = tmp_path / "file.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file(content, path)
    assert main(["multimae", str(tmp_path)]) == 1
    assert main(["multimae", str(tmp_path / "absent")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)


def test_nan_and_wrong_shapes_never_pass():
    report = Report()
    report.close("case", "nan", torch.tensor([float("nan")]), torch.zeros(1), 1.0)
    report.close("case", "shape", torch.zeros(2), torch.zeros(1), 1.0)
    report.close_to_largest("case", "small", torch.tensor([1.1e-6]), torch.tensor([1e-6]), 1e-2)
    report.equal("case", "integers", torch.tensor([1, 2]), torch.tensor([1, 3]))
    assert len(report.misses) == 4


def test_surprise_tells_equal_from_shifted_distributions(seed):
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(20_000, generator=generator) * 10 + 50 for _ in range(3)]
    first, second, shifted = (torch.bincount(x.round().long().clamp(0, 100), minlength=101) for x in draws)
    shifted = shifted.roll(2)
    assert surprise(first, second) < 7
    assert surprise(first, shifted) > 7

"""The parity runner on recorded cases: it passes, and a small error anywhere makes it fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.models.test_parity import change
from tests.parity.__main__ import main

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def recorded(system, tmp_path) -> Path:
    """A copy of the recorded cases of a system."""
    if not (FIXTURES / system).is_dir():
        pytest.skip(f"needs the recorded cases in tests/fixtures/{system}")
    return Path(shutil.copytree(FIXTURES / system, tmp_path / system))


@pytest.mark.parametrize(
    ("system", "rows"),
    [
        ("mae", ["latent", "decoder_pre_norm", "loss.raw_pix", "gradnorm.norm_pix.mask_token", "ids_restore", "lr"]),
        (
            "videomae",
            ["encoder_out", "target", "loss_f64", "grad.mask_token", "__total_norm", "win8x14x14", "gradnorm.fc_norm"],
        ),
        ("audiomae", ["encoder_out", "loss_f64", "grad.mask_token", "logits"]),
        ("pointmae", ["fps_idx", "knn_idx", "pred_points_train", "grad_pred_cdl1", "logits_eval"]),
        (
            "m2pt",
            ["logits_merged", "grad_cross_modal_scale_f64", "groups of parameters", "vit_a step 7"],
        ),
    ],
)
def test_everything_recorded_is_reproduced(system, rows, recorded, capsys):
    assert main([system, str(recorded)]) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("0 MISS") and all(row in printed for row in rows)
    assert main([system, str(recorded), "--float32"]) == 0


@pytest.mark.parametrize(
    ("system", "file", "key"),
    [
        ("mae", "mae_a_weights", "decoder_pos_embed"),
        ("mae", "mae_a_io", "latent"),
        ("mae", "mae_a_grads", "gradnorm.raw_pix.cls_token"),
        ("mae", "mae_posembed", "pos_embed_16_4x4_cls"),
        ("videomae", "videomae_a_weights", "encoder.blocks.0.attn.q_bias"),
        ("videomae", "videomae_a_io", "patches_all"),
        ("videomae", "videomae_a_grads", "mask_token"),
        ("videomae", "videomae_a_finetune", "fc_norm.weight"),
        ("audiomae", "audiomae_a_2d_weights", "mask_token"),
        ("audiomae", "audiomae_a_2d_io", "encoder_out"),
        ("audiomae", "audiomae_a_finetune", "head.weight"),
        ("pointmae", "pointmae_a_weights", "mask_token"),
        ("pointmae", "pointmae_a_classify", "cls_pos"),
        ("pointmae", "front_end_a", "scale_translate_out"),
        ("m2pt", "linear_a", "grad_aux_weight"),
        ("m2pt", "vit_a_weights", "blocks.1.mlp.fc2.aux_weight"),
        ("m2pt", "vit_a_trace_end", "head.weight"),
    ],
)
def test_a_changed_number_is_a_miss(system, file, key, recorded, capsys):
    change(recorded / f"{file}.safetensors", key, 0.001)
    assert main([system, str(recorded)]) == 1
    assert "MISS" in capsys.readouterr().out


@pytest.mark.parametrize("system", ["mae", "videomae"])
def test_a_case_without_weights_fails_and_one_without_gradients_is_compared(system, recorded, capsys):
    (recorded / f"{system}_a_grads.safetensors").unlink()
    assert main([system, str(recorded)]) == 0
    (recorded / f"{system}_a_weights.safetensors").unlink()
    assert main([system, str(recorded)]) == 1
    assert f"lacks {system}_a_weights.safetensors" in capsys.readouterr().out

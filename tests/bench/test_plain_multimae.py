"""The plain peer: against stored numbers of the published code, and by itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from omnitrunk.bench import plain_masking
from omnitrunk.bench.plain_layers import ATTENTIONS, resized_positions, sincos_table
from omnitrunk.bench.plain_masking import Selection
from omnitrunk.bench.plain_multimae import PlainConfig, PlainMultiMAE, normalize, standardize_depth

FIXTURES = Path(__file__).parents[1] / "fixtures" / "multimae"
CASES = ("case_a", "case_b")
NOT_RECORDED = {"case_a": {"pred.rgb"}, "case_b": {"pred.norm_rgb"}}
"""Large predictions that the fixtures lack; the losses, which are compared as well, are made of them."""


def fixture(name: str) -> dict[str, torch.Tensor]:
    path = FIXTURES / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"needs the stored numbers of the published code, {path}")
    return load_file(path)


def case_config(case: str, attention: str = "eager") -> PlainConfig:
    fixture(f"{case}_io")
    with safe_open(FIXTURES / f"{case}_io.safetensors", "pt") as file:
        stored = json.loads(file.metadata()["config"])
    return PlainConfig(
        inputs=tuple(stored["in_domains"]),
        outputs=(*stored["out_domains"], "norm_rgb"),
        image_size=tuple(stored["image"]),
        patch=stored["patch"],
        classes=stored["classes"],
        class_width=stored["dim_class_emb"],
        width=stored["dim"],
        depth=stored["depth"],
        heads=stored["heads"],
        global_tokens=stored["global_tokens"],
        decoder_width=stored["dec_dim"],
        decoder_depth=stored["dec_depth"],
        decoder_heads=stored["dec_heads"],
        keep=stored["num_encoded_tokens"],
        attention=attention,
    )


def case_model(case: str, attention: str = "eager") -> PlainMultiMAE:
    """The model in float64 with the stored weights, every one of which must have its place."""
    model = PlainMultiMAE(case_config(case, attention))
    model.load_state_dict(fixture(f"{case}_weights"))
    return model.double()


def case_inputs(case: str) -> tuple[dict[str, torch.Tensor], Selection]:
    stored = fixture(f"{case}_io")
    inputs = case_config(case).inputs
    images = {task: stored[f"input.{task}"] for task in ("rgb", "depth", "semseg")}
    images = {task: image.double() if image.is_floating_point() else image for task, image in images.items()}
    masks = {task: stored[f"mask.{task}"] for task in inputs}
    return images, Selection(ids_keep=stored["ids_keep"], ids_restore=stored["ids_restore"], masks=masks)


def record(model: PlainMultiMAE) -> dict[str, torch.Tensor]:
    """Fills, during the next forward pass, with the tensors that the published code was asked for."""
    seen = {}

    def keep(module, name, *, entering=False):
        def hook(_module, inputs, output):
            seen[name] = (inputs[0] if entering else output).detach()

        module.register_forward_hook(hook)

    for task, adapter in model.input_adapters.items():
        keep(adapter, f"tokens.{task}")
    keep(model.encoder[0], "encoder_in", entering=True)
    keep(model.encoder, "encoder_out")
    for index, block in enumerate(model.encoder):
        keep(block, f"encoder_block{index}_out")
    for task, decoder in model.output_adapters.items():
        keep(decoder.query_norm, f"dec.{task}.queries", entering=True)
        keep(decoder.context_norm, f"dec.{task}.context", entering=True)
        keep(decoder.decoder, f"dec.{task}.xattn_out")
        keep(decoder.out_proj, f"dec.{task}.transformer_out", entering=True)
        keep(decoder, f"pred.{task}")
    return seen


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_stage_matches_the_published_code(case, attention):
    model, stored = case_model(case, attention), fixture(f"{case}_io")
    seen = record(model)
    model(*case_inputs(case))
    stages = {name for name in stored if name.split(".")[0] in ("tokens", "dec", "pred") or name.startswith("encoder")}
    assert stages == set(seen) - NOT_RECORDED[case]
    for name in stages:
        value = seen[name]
        torch.testing.assert_close(value, stored[name].double(), rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_losses_match_the_published_code(case):
    model, stored = case_model(case), fixture(f"{case}_io")
    images, selection = case_inputs(case)
    predictions = model(images, selection)
    losses = model.losses(predictions, images, selection.masks)
    everywhere = model.losses(predictions, images, {})
    for task in model.config.outputs:
        assert losses[task].item() == pytest.approx(stored[f"loss.{task}"].item(), rel=1e-9)
        assert everywhere[task].item() == pytest.approx(stored[f"loss_unmasked_option.{task}"].item(), rel=1e-9)
    assert losses["loss"].item() == pytest.approx(stored["loss.total"].item(), rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_gradients_match_the_published_code(case):
    model, stored = case_model(case), fixture(f"{case}_grads")
    images, selection = case_inputs(case)
    model.losses(model(images, selection), images, selection.masks)["loss"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    norms = {name.removeprefix("gradnorm."): value for name, value in stored.items() if name.startswith("gradnorm.")}
    assert set(norms) == set(gradients)
    for name, norm in norms.items():
        assert gradients[name].norm().item() == pytest.approx(norm.item(), rel=1e-7), name
        if f"grad.{name}" in stored:
            torch.testing.assert_close(gradients[name], stored[f"grad.{name}"].double(), rtol=1e-6, atol=1e-6)


def test_six_steps_of_training_match_the_published_code():
    model, stored = case_model("case_a"), fixture("case_a_grads")
    images, selection = case_inputs("case_a")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05)
    for number, lr in enumerate(stored["train.lr"].tolist()):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        losses = model.losses(model(images, selection), images, selection.masks)
        losses["loss"].backward()
        values = [losses[name].item() for name in ("depth", "norm_rgb", "rgb", "semseg", "loss")]
        assert values == pytest.approx(stored["train.losses"].view(6, 5)[number].tolist(), rel=1e-9)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values()])
        assert norm.item() == pytest.approx(stored["train.grad_norm"][number].item(), rel=1e-7)
        optimizer.step()
    for name, parameter in parameters.items():
        expected = stored[f"train.final_param_norm.{name}"].item()
        assert parameter.norm().item() == pytest.approx(expected, rel=1e-7), name


def test_position_tables_match_the_published_code():
    """Square and not, and resampled both ways."""
    for name, stored in fixture("posemb").items():
        rows, columns, width, *resampled = re.fullmatch(r"pos_(\d+)x(\d+)_d(\d+)(?:_(\w+)_(\d+)x(\d+))?", name).groups()
        table = sincos_table(int(width), (int(rows), int(columns)))
        if resampled[0]:
            mode, grid = resampled[0], (int(resampled[1]), int(resampled[2]))
            table = resized_positions(table, grid, mode).transpose(1, 2).unflatten(2, grid)
        torch.testing.assert_close(table, stored, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_depth_is_standardized_as_in_the_published_code():
    stored = fixture("preproc")
    torch.testing.assert_close(standardize_depth(stored["depth.in"]), stored["depth.pretrain_standardised"])


@pytest.mark.parametrize("case", CASES)
def test_masks_follow_from_noise_as_in_the_published_code(case):
    stored, config = fixture(f"{case}_io"), case_config(case)
    noise = {task: stored[f"sampler.noise.{task}"] for task in config.inputs}
    counts, shuffle_noise = stored["sampler.samples_per_task"], stored["sampler.shuffle_noise"]
    selection = plain_masking.select(counts, noise, shuffle_noise, config.keep)
    assert torch.equal(selection.ids_keep, stored["ids_keep"])
    assert torch.equal(selection.ids_restore, stored["ids_restore"])
    assert all(torch.equal(selection.masks[task], stored[f"mask.{task}"]) for task in config.inputs)


def test_drawn_masks_keep_exactly_what_was_asked(seed):
    torch.manual_seed(seed)
    sizes = {"rgb": 6, "depth": 9, "semseg": 4}
    selection = plain_masking.sample(50, sizes, 7, dict.fromkeys(sizes, 1.0))
    mask = torch.cat(list(selection.masks.values()), dim=1)
    assert [selection.masks[task].shape[1] for task in sizes] == list(sizes.values())
    assert (mask == 0).sum(1).tolist() == [7] * 50
    assert (mask.gather(1, selection.ids_keep) == 0).all()
    assert torch.equal(selection.ids_restore.sort(dim=1).values, torch.arange(19).expand(50, -1))


def test_decoded_batches_are_normalized(seed):
    rng = np.random.default_rng(seed)
    depth = torch.from_numpy(rng.random((2, 10, 10, 1)).astype(np.float32))
    rgb = torch.from_numpy(rng.integers(0, 256, (2, 10, 10, 3), dtype=np.uint8))
    classes = torch.from_numpy(rng.integers(0, 5, (2, 5, 5), dtype=np.uint8))
    images = normalize({"rgb": rgb, "depth": depth, "semseg": classes})
    expected = (rgb[1, 3, 4, 2].item() / 255 - 0.406) / 0.225
    assert images["rgb"][1, 2, 3, 4].item() == pytest.approx(expected, abs=1e-5)
    middle = np.sort(depth[0].numpy().astype(np.float64).ravel())[10:90]
    expected = (depth[0].numpy().transpose(2, 0, 1) - middle.mean()) / np.sqrt(middle.var(ddof=1) + 1e-6)
    np.testing.assert_allclose(images["depth"][0].numpy(), expected, atol=1e-5)
    assert images["semseg"].dtype == torch.int64 and torch.equal(images["semseg"], classes.long())


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="multiple of patch"):
        PlainConfig(image_size=(224, 230))
    with pytest.raises(ValueError, match="eager, sdpa"):
        PlainConfig(attention="flash")

"""The recorded files of AudioMAE: pretraining cases with both decoders, a classifier, and the front end.

A recording does not say how many heads trunk and global decoder have. The numbers that reproduce what it recorded best
are taken, among the divisors of the width; with any others hardly a digit agrees.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels.patches import gather_patches
from omnitrunk.models import MaskedAutoencoder, TokenPlan, make_token_plan
from omnitrunk.models.audiomae import AudioMAEConfig
from omnitrunk.models.augmentation.mixing import Mixing, mix_sounds
from omnitrunk.models.masking import policies
from omnitrunk.models.masking.token_plan import all_tokens, flat_rows
from omnitrunk.models.objectives import STANDARDIZE_EPSILON
from omnitrunk.models.tokenizers.filter_bank import FilterBank
from tests.parity import autoencoder
from tests.parity.folder import Check, Recorded
from tests.parity.recorder import Recorder
from tests.parity.report import Precision, Report

MARKS = {"weights": "decoder_pred.weight", "io": "spectrogram", "grads": "__total_norm"}
# The recorded run was a float32 one: its own rounding is what remains between it and float64. The gradients of the
# local decoder, cosines of heads of width 2 through 16 blocks, are off by as much in our own float32.
FORWARD, LOSS = 1e-5, 1e-6
GRADIENT = {"global": 1e-5, "local": 5e-4}
WITHOUT_EFFECT = "meta_mlp.fc2.bias"
# Of logarithms the worst are those of bands with hardly any energy, of which the mix has more: two float32
# implementations were 4.1e-4 apart. The mean says how close all others are.
LOGARITHMS = {"fbank1": 1e-3, "fbank1_kaldi_native": 1e-3, "fbank_mix": 2e-3}
MEAN_LOGARITHM = 3e-5
DROPPED = 0.2
"""Of times and of bands, in the recorded fine-tuning."""
MEAN, STD = -4.2677393, 4.5689974


def find(files: list[Recorded]) -> list[Check]:
    """Every comparison that `files` allow."""
    checks = [
        Check(files=tuple(file.name for file in group.values()), run=partial(_compare_group, prefix, group))
        for prefix, group in autoencoder.cases(files, MARKS).items()
    ]
    front_ends = [file for file in files if "fbank1" in file.content]
    checks += [Check(files=(file.name,), run=partial(_compare_front_end, file)) for file in front_ends]
    tuned = [file for file in files if "fc_norm.weight" in file.content]
    return checks + [Check(files=(file.name,), run=partial(_compare_fine_tuned, file, files)) for file in tuned]


def model_config(io: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> AudioMAEConfig:
    """Sizes as the shapes tell them; a single head where they do not, for now."""
    width, _, patch, _ = weights["patch_embed.proj.weight"].shape
    frames, mels = io["spectrogram"].shape[2:]
    taus = weights.get("decoder_blocks.0.attn.tau")
    masks = {"mask": "time_frequency"} if "noise_t" in io else {"mask_ratio": io["mask"].double().mean().item() - 1e-9}
    return AudioMAEConfig(
        faithful=True,
        frames=frames,
        mels=mels,
        patch_size=patch,
        width=width,
        depth=_count(weights, "blocks"),
        heads=1,
        mlp_ratio=weights["blocks.0.mlp.fc1.weight"].shape[0] / width,
        decoder="global" if taus is None else "local",
        decoder_width=weights["decoder_embed.weight"].shape[0],
        decoder_depth=_count(weights, "decoder_blocks"),
        decoder_heads=1 if taus is None else len(taus),
        **masks,
    )


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.split(".")[1] for key in weights if key.startswith(f"{prefix}.")})


def _compare_group(prefix: str, group: dict[str, Recorded], report: Report, precision: Precision) -> None:
    autoencoder.check_complete(prefix, group)
    io, weights = group["io"].content, group["weights"].content
    config = model_config(io, weights)
    tensors = {"audio": io["spectrogram"][:, 0].to(precision.dtype)}
    plan = recorded_plan(config, io)
    _compare_masks(prefix, plan, io, report)
    config = with_heads(config, weights, tensors, plan, io, precision)
    fresh, model = MaskedAutoencoder(config), autoencoder.loaded(config, weights, precision.dtype)
    for name in ("tokenizer.position", "decoder.position"):
        report.close(prefix, name, fresh.get_buffer(name), model.get_buffer(name), 1e-6)
    with torch.no_grad():
        ours = intermediates(model, tensors, plan)
    for key in sorted(io.keys() & ours.keys()):
        report.close(prefix, key, ours[key], io[key], max(FORWARD, precision.forward))
    loss = model(tensors, plan)["loss"]
    report.close_to_largest(prefix, "loss", loss, io["loss"], max(LOSS, precision.loss))
    report.close_to_largest(prefix, "loss_f64", loss, io["loss_f64"], max(LOSS, precision.loss))
    recorded = group["grads"].content if "grads" in group else {}
    _compare_gradients(prefix, autoencoder.gradients(model, tensors, plan), model, recorded, report, precision)
    known = {"spectrogram", "mask", "ids_restore", "loss", "loss_f64", "noise", "noise_t", "noise_f"}
    for key in sorted(io.keys() - ours.keys() - known):
        report.not_covered(prefix, key)


def recorded_plan(config: AudioMAEConfig, io: Mapping[str, Tensor]) -> TokenPlan:
    """The plan that our policy makes of the recorded noise."""
    noises = [io[key].numpy() for key in ("noise", "noise_t", "noise_f") if key in io]
    with mock.patch.object(policies, "uniform", side_effect=noises):
        keep = config.visible_tokens(0, np.arange(len(io["mask"])))
    return make_token_plan(keep, config.total_tokens)


def _compare_masks(prefix: str, plan: TokenPlan, io: Mapping[str, Tensor], report: Report) -> None:
    report.equal(prefix, "mask", plan.mask.long(), io["mask"].long())
    kept = io["ids_restore"].argsort(dim=1)[:, : plan.keep.shape[1]]
    report.equal(prefix, "kept tokens in their order", plan.keep, kept)


def with_heads(
    config: AudioMAEConfig,
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    plan: TokenPlan,
    io: Mapping[str, Tensor],
    precision: Precision,
) -> AudioMAEConfig:
    """The configuration with the numbers of heads that come closest to the recording; local decoders say theirs."""

    def compute(tried: AudioMAEConfig) -> dict[str, Tensor]:
        return intermediates(autoencoder.loaded(tried, weights, precision.dtype), tensors, plan)

    sought = {"heads": (config.width, "encoder_out")}
    if config.decoder == "global":
        sought["decoder_heads"] = (config.decoder_width, "pred")
    return autoencoder.with_heads(config, sought, io, compute)


def intermediates(model: MaskedAutoencoder, tensors: Mapping[str, Tensor], plan: TokenPlan) -> dict[str, Tensor]:
    """Our tensors under the recorded keys."""
    spectrograms, config = model.prepare(tensors)["audio"], model.config
    everything = all_tokens(len(spectrograms), config.total_tokens, spectrograms.device)
    index = flat_rows(everything, config.total_tokens)
    rows = gather_patches(spectrograms, index, config.patch_size, dtype=spectrograms.dtype)
    variance, mean = torch.var_mean(rows, dim=1, keepdim=True)
    with Recorder(model) as recorder:
        prediction = model.predict(tensors, plan)["norm_audio"]
    return {
        "encoder_out": recorder.outputs["blocks"],
        "pred": prediction,
        "target": ((rows - mean) / (variance + STANDARDIZE_EPSILON).sqrt()).unflatten(0, everything.shape),
    }


def _compare_gradients(
    prefix: str,
    ours: Mapping[str, Tensor],
    model: MaskedAutoencoder,
    recorded: Mapping[str, Tensor],
    report: Report,
    precision: Precision,
) -> None:
    """A bias that all keys of a query share has no effect: its gradient is rounding, on both sides."""
    tolerance = max(GRADIENT[model.config.decoder], precision.gradient)
    total = torch.stack([parameter.grad.double().norm() for parameter in model.parameters()]).norm()
    for key, expected in sorted(recorded.items()):
        kind, _, name = key.partition(".")
        if kind == "__total_norm":
            report.close_to_largest(prefix, key, total, expected, tolerance)
        elif name.endswith(WITHOUT_EFFECT):
            report.close(prefix, key, ours[name].double().norm() / total, expected / total, 1e-6)
        else:
            value = ours[name].double().norm() if kind == "gradnorm" else ours[name]
            report.close_to_largest(prefix, key, value, expected, tolerance)


def _compare_front_end(file: Recorded, report: Report, precision: Precision) -> None:
    """Filter bank, triangles, model input, and a mix of two waveforms."""
    known = file.content
    frames, mels = known["model_input"].shape[1:]
    sizes = {"sample_rate": 16_000, "frames": frames, "mels": mels, "padding": 0.0}
    raw, standardized = (FilterBank(**sizes, mean=mean, std=std) for mean, std in ((0.0, 0.5), (MEAN, STD)))
    first, second = (known[f"waveform{number}"].to(precision.dtype) for number in (1, 2))
    first_bank, mixed = raw(first)[0], _mixed(first, second, known["mix_lambda"].item())
    report.close_to_largest(file.name, "mel_filterbank", raw.triangles[:-1].T, known["mel_filterbank"], 3e-5)
    report.close(file.name, "model_input", standardized(first), known["model_input"], LOGARITHMS["fbank1"] / (2 * STD))
    report.close(file.name, "mixed_waveform_head", mixed[:, :64], known["mixed_waveform_head"], 1e-6)
    for key, ours in (("fbank1", first_bank), ("fbank1_kaldi_native", first_bank), ("fbank_mix", raw(mixed)[0])):
        error = (ours[: len(known[key])] - known[key]).abs()
        report.add(file.name, key, error.max(), LOGARITHMS[key])
        report.add(file.name, f"{key}, mean of errors", error.mean(), MEAN_LOGARITHM)


def _mixed(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Two waveforms (1, S) as fine-tuning mixes them, the second padded to the first; then without their mean."""
    lengths = torch.tensor([first.shape[1], second.shape[1]])
    waves = torch.cat([first, functional.pad(second, (0, first.shape[1] - second.shape[1]))])
    shares = torch.tensor([share, 1 - share])
    mixing = Mixing(partner=torch.tensor([1, 0]), share=shares, weight=shares, box=None)
    mixed = mix_sounds({"audio": waves, "audio_length": lengths}, mixing)[:1]
    return mixed - mixed.mean()


def _compare_fine_tuned(file: Recorded, files: list[Recorded], report: Report, precision: Precision) -> None:
    """A classifier of several labels at once, made of the encoder of the case with masks over time and frequency.

    The plan is what our policy makes of the recorded noise.
    """
    recorded, config, weights = file.content, *_encoder_of(file, files, precision)
    tensors = {"audio": recorded["spectrogram"][:, 0].to(precision.dtype)}
    own = ("blocks.", "patch_embed.", "cls_token", "pos_embed")
    encoder = {key: value for key, value in weights.items() if key.startswith(own)}
    options = {"drop_times": DROPPED, "drop_bands": DROPPED}
    model = autoencoder.fine_tuned(config, encoder, recorded, precision.dtype, **options)
    tolerance = max(FORWARD, precision.forward)
    report.close(file.name, "logits_nomask", model.logits(tensors), recorded["logits_nomask"], tolerance)
    with mock.patch.object(policies, "uniform", side_effect=[recorded[key].numpy() for key in ("noise_t", "noise_f")]):
        plan = model.plan(0, np.arange(len(recorded["label"])))
    logits = model.training_logits(tensors, plan)
    report.close(file.name, "logits_masked", logits, recorded["logits_masked"], tolerance)
    loss = functional.binary_cross_entropy_with_logits(logits, recorded["label"].to(logits.dtype))
    report.close_to_largest(file.name, "bce_loss_masked", loss, recorded["bce_loss_masked"], max(LOSS, precision.loss))
    tolerance = max(GRADIENT["global"], precision.gradient)
    autoencoder.compare_gradient_norms(file.name, model, loss, recorded, report, tolerance)


def _encoder_of(
    file: Recorded, files: list[Recorded], precision: Precision
) -> tuple[AudioMAEConfig, dict[str, Tensor]]:
    """Configuration and weights of the case that a classifier was made of: the one whose masks are of its kind."""
    for group in autoencoder.cases(files, MARKS).values():
        if {"io", "weights"} <= group.keys() and "noise_t" in group["io"].content:
            io, weights = group["io"].content, group["weights"].content
            config, tensors = model_config(io, weights), {"audio": io["spectrogram"][:, 0].to(precision.dtype)}
            return with_heads(config, weights, tensors, recorded_plan(config, io), io, precision), weights
    raise ValueError(f"{file.name} needs the case that its encoder is of; give the folder that holds it too")

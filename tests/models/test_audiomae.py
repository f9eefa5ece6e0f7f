from __future__ import annotations

import numpy as np
import pytest
import torch

from omnitrunk.models import MaskedAutoencoder, find_system, make_token_plan
from omnitrunk.models.audiomae import AudioMAEConfig
from omnitrunk.models.masking.policies import time_frequency_tokens
from omnitrunk.models.official.state_dicts import from_official, layout, to_official
from omnitrunk.models.tokenizers.filter_bank import FilterBank
from tests.models.slow_audiomae import slow_audiomae_loss
from tests.models.small_audiomae import small_audiomae, spectrograms, waveforms
from tests.models.small_autoencoders import assert_same_loss_and_gradients, double_autoencoder

CASES = {
    "default": {},
    "faithful": {"faithful": True},
    "times and bands": {"mask": "time_frequency"},
    "global decoder": {"decoder": "global"},
    "faithful global decoder of a grid without windows": {
        "faithful": True, "decoder": "global", "frames": 20, "mels": 24, "mask": "time_frequency",
    },
    "logarithms as they are": {"standardize_targets": False, "decoder_depth": 1, "mlp_ratio": 3.0},
    "no blocks": {"depth": 0, "decoder_depth": 0},
}  # fmt: skip
BOTH = [small_audiomae(), small_audiomae(decoder="global", faithful=True)]


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_loss_and_gradients_equal_the_slow_computation(changes, seed):
    config = small_audiomae(**{"frames": 32, "mels": 16, "decoder_depth": 2, **changes})
    model, batch = double_autoencoder(config, seed), spectrograms(config, 2, seed)
    plan = model.plan(seed, np.arange(2))
    losses = model(batch, plan)
    assert set(losses) == {config.outputs[0], "loss"}
    assert_same_loss_and_gradients(model, losses["loss"], slow_audiomae_loss(model, batch["audio"], plan.keep))


@pytest.mark.parametrize(("decoder", "total"), [("local", 136.99e6), ("global", 111.66e6)])
def test_defaults_are_the_published_base_model(decoder, total):
    config = AudioMAEConfig(decoder=decoder, decoder_depth=16 if decoder == "local" else 8)
    assert (config.grid, config.keep) == ((64, 8), 102)
    assert AudioMAEConfig(mask="time_frequency").keep == 19 * 5
    shapes = {part.official: part.shape for part in layout(config)}
    assert len(shapes) == (430 if decoder == "local" else 12 * 12 + 8 * 12 + 14)
    assert shapes["pos_embed"] == (1, 513, 768) and shapes["patch_embed.proj.weight"] == (768, 1, 16, 16)
    numbers = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    assert sum(numbers.values()) == pytest.approx(total, abs=0.01e6)


def test_released_tables_are_those_of_the_transposed_grid():
    ours, theirs = (AudioMAEConfig(faithful=faithful).position_table(768) for faithful in (False, True))
    assert (ours == theirs).all(dim=1).nonzero().flatten().tolist() == list(range(8))
    nearest = (ours[20] - ours).square().sum(1).argsort()[1:5]
    assert set(nearest.tolist()) == {19, 21, 12, 28}


@pytest.mark.parametrize("faithful", [False, True])
def test_waveforms_become_standardized_spectrograms(faithful, seed):
    config = small_audiomae(faithful=faithful, sample_rate=8000)
    model, batch = MaskedAutoencoder(config, seed).double(), waveforms(3, 3900, seed)
    bank = FilterBank(
        sample_rate=8000, frames=48, mels=32, mean=-6.0, std=3.0, **({"padding": 0.0} if faithful else {})
    ).double()
    expected = bank(batch["audio"], batch["audio_length"])
    assert (expected[:, -1] == (1.0 if faithful else bank.padding + 6) / (1 if faithful else 6)).all()
    found = model.prepare(batch)["audio"]
    assert found.shape == (3, 48, 32, 1)
    torch.testing.assert_close(found[..., 0], expected)
    plan = model.plan(seed, np.arange(3))
    for audio in (expected, expected[..., None]):
        torch.testing.assert_close(model({"audio": audio}, plan), model(batch, plan))
    assert model.features(batch).shape == (3, 24)


def test_masks_of_times_and_bands_hide_whole_ones(seed):
    config = small_audiomae(mask="time_frequency", time_ratio=0.5, frequency_ratio=0.3)
    mask = MaskedAutoencoder(config, seed).plan(seed, np.arange(40)).mask.unflatten(1, (12, 8))
    times, bands = ~mask.all(dim=2), ~mask.all(dim=1)
    assert (times.sum(1) == 6).all() and (bands.sum(1) == 5).all()
    assert torch.equal(mask, ~(times[:, :, None] & bands[:, None, :]))


def test_times_and_bands_are_drawn_apart_evenly_and_by_position(seed):
    rows = time_frequency_tokens((6, 4), (3, 1), seed=seed, positions=np.arange(6000))
    assert rows.dtype == np.int64 and np.array_equal(rows, np.sort(rows))
    deviation = (6000 * 0.125 * 0.875) ** 0.5
    assert np.abs(np.bincount(rows.ravel(), minlength=24) - 750).max() < 5 * deviation
    again = time_frequency_tokens((6, 4), (3, 1), seed=seed, positions=np.array([77, 3]))
    assert np.array_equal(again, rows[[77, 3]])
    assert not np.array_equal(time_frequency_tokens((6, 4), (3, 1), seed=seed + 1, positions=np.arange(6000)), rows)


@pytest.mark.parametrize("config", BOTH, ids=["local", "global"])
def test_predictions_of_masked_patches_are_what_the_loss_sees(config, seed):
    model, batch = double_autoencoder(config, seed), spectrograms(config, 2, seed)
    plan = model.plan(seed, np.arange(2))
    prediction, sample = model.predict(batch, plan)["norm_audio"], model.prepare(batch)
    assert prediction.shape == (2, 96, 16) and prediction.isfinite().all()
    scored = model.decoder(model.encode_tokens(sample, plan.keep, norm=model.norm), sample, plan)
    torch.testing.assert_close(scored, prediction[plan.mask])
    ascending = make_token_plan(plan.keep.sort(dim=1).values, config.total_tokens)
    torch.testing.assert_close(model(batch, plan), model(batch, ascending), rtol=1e-9, atol=1e-9)


def test_class_and_mask_token_decay_only_when_faithful(seed):
    def decayed(faithful):
        groups = MaskedAutoencoder(small_audiomae(faithful=faithful), seed).parameter_groups(0.05)
        assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
        return set(groups[0]["names"])

    assert decayed(True) - decayed(False) == {"class_token", "decoder.mask_token"}
    assert "decoder.blocks.1.attn.offset_bias.fc1.weight" in decayed(False)
    assert "decoder.blocks.1.attn.temperature" not in decayed(True)


def test_temperatures_start_at_one(seed):
    blocks = MaskedAutoencoder(small_audiomae(), seed).decoder.blocks
    assert [block.attn.shift for block in blocks] == [0, 2, 0]
    assert all((block.attn.temperature == 1).all() for block in blocks)


def random_state(config, seed):
    generator = torch.Generator().manual_seed(seed)
    state = {part.official: torch.randn(part.shape, generator=generator) for part in layout(config)}
    for name in ("pos_embed", "decoder_pos_embed"):
        state[name][:, 0] = 0
    return state


@pytest.mark.parametrize("config", BOTH, ids=["local", "global"])
def test_released_state_dicts_go_in_and_out(config, seed):
    assert find_system("audiomae").config is type(config)
    official = random_state(config, seed)
    ours = from_official(official, config)
    MaskedAutoencoder(config).load_state_dict(ours)
    back = to_official(ours, config)
    assert back.keys() == official.keys() and all(torch.equal(back[name], official[name]) for name in official)
    state = MaskedAutoencoder(config, seed).state_dict()
    again = from_official(to_official(state, config), config)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)


def test_tables_of_another_grid_are_refused_and_not_resampled(seed):
    config = small_audiomae()
    official = random_state(config, seed)
    square = {**official, "pos_embed": torch.zeros(1, 1 + 81, 24)}
    with pytest.raises(ValueError, match=r"pos_embed has the shape \(1, 82, 24\), not \(1, 97, 24\)"):
        from_official(square, config)
    official["decoder_pos_embed"][0, 0, 3] = 0.1
    with pytest.raises(ValueError, match="decoder_pos_embed moves the class token"):
        from_official(official, config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 50}, r"frames and mels = \(50, 32\) does not divide into patches of 4 pixels; try \(48, 32\)"),
        ({"frames": 40}, r'\(10, 8\) patches do not divide .* multiples of 16, or set decoder = "global"'),
        ({"decoder_drop_path": 0.1}, "decoder_drop_path = 0.1: a local decoder has none; set it to 0"),
        ({"std": 0.0}, r"std = 0.0 must be above 0; 0.5 leaves values as they are"),
        ({"sample_rate": 50}, "sample_rate = 50 is too small"),
        ({"time_ratio": 1.5}, "time_ratio = 1.5 must lie in 0..1"),
        ({"mask_ratio": 0.999}, "mask_ratio = 0.999 leaves 0 of 96"),
        ({"mask": "time_frequency", "time_ratio": 0.99}, "time_ratio = 0.99 and frequency_ratio = 0.3 leave 0 of 96"),
        (
            {"mask": "time_frequency", "time_ratio": 0.0, "frequency_ratio": 0.0},
            "leave 96 of 96 tokens visible; choose ratios that leave and mask at least one",
        ),
    ],
)
def test_mistakes_are_one_line_with_the_fix(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        small_audiomae(**changes)
    assert "\n" not in str(error.value)


def test_a_batch_that_does_not_fit_is_refused(seed):
    model = MaskedAutoencoder(small_audiomae(), seed)
    with pytest.raises(ValueError, match="the batch has no 'audio'"):
        model.prepare({"rgb": torch.zeros(2, 32, 32, 3)})
    with pytest.raises(ValueError, match=r"audio is \(40, 32\); the model takes \(48, 32\)"):
        model.prepare({"audio": torch.zeros(2, 40, 32)})
    with pytest.raises(ValueError, match=r"audio is torch.int16; divide by its full scale"):
        model.prepare({"audio": torch.zeros(2, 8000, dtype=torch.int16)})

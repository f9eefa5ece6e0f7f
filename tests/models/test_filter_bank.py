from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from omnitrunk.models.tokenizers.filter_bank import SILENCE, FilterBank, mel_triangles
from tests.models.slow_audiomae import slow_log_mel
from tests.models.small_audiomae import waveforms

RATE = 16_000


def bank(frames, mels=20, rate=RATE, **changes):
    return FilterBank(**{"sample_rate": rate, "frames": frames, "mels": mels, "mean": 0.0, "std": 0.5, **changes})


@pytest.mark.parametrize(("rate", "frames"), [(16_000, 9), (8_000, 7), (11_025, 6)])
def test_logarithms_are_those_computed_frame_by_frame(rate, frames, seed):
    wave = waveforms(1, 6 * rate // 100 + rate // 40, seed)["audio"]
    found = bank(frames, rate=rate).double()(wave)
    expected = slow_log_mel(wave[0].numpy(), rate, 20, frames, SILENCE)
    assert found.dtype == torch.float64 and found.shape == (1, frames, 20)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-5, atol=1e-5)
    single = bank(frames, rate=rate)(wave.float())
    np.testing.assert_allclose(single[0].numpy(), expected, rtol=1e-4, atol=1e-3)


def test_every_recording_of_a_batch_is_heard_to_its_own_end(seed):
    batch = waveforms(4, 2000, seed)
    lengths = torch.tensor([1999, 1200, 399, 0])
    found = bank(9).double()(batch["audio"], lengths)
    for row, (wave, length) in enumerate(zip(batch["audio"], lengths.tolist(), strict=True)):
        expected = slow_log_mel(wave[:length].numpy(), RATE, 20, 9, SILENCE)
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-5, atol=1e-5)
    assert (found[2:] == SILENCE).all()


def test_a_long_recording_is_cut(seed):
    wave = waveforms(1, 3000, seed)["audio"]
    torch.testing.assert_close(bank(3).double()(wave), bank(40).double()(wave)[:, :3])


def test_a_constant_is_not_heard(seed):
    wave = waveforms(1, 2000, seed)["audio"]
    torch.testing.assert_close(bank(8).double()(wave + 0.7), bank(8).double()(wave))
    torch.testing.assert_close(bank(8)((wave + 0.7).float()), bank(8)(wave.float()), rtol=1e-4, atol=1e-3)


def test_padding_is_silence_unless_told_otherwise_and_is_standardized_with_the_rest(seed):
    silence = torch.zeros(1, 1200)
    assert (bank(8)(silence) == SILENCE).all() and math.isclose(SILENCE, -15.9424, abs_tol=1e-4)
    faithful = bank(8, mean=-4.0, std=3.0, padding=0.0)(silence)[0]
    torch.testing.assert_close(faithful[:6], torch.full((6, 20), (SILENCE + 4) / 6))
    torch.testing.assert_close(faithful[6:], torch.full((2, 20), 4 / 6))


def test_autocast_does_not_reach_it(seed):
    batch = {name: tensor.float() for name, tensor in waveforms(2, 1600, seed).items()}
    expected = bank(8)(batch["audio"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = bank(8)(batch["audio"])
    assert torch.equal(found, expected)


def test_bands_overlap_by_half_and_one_of_the_published_128_is_empty():
    triangles = mel_triangles(128, 512, RATE)
    assert triangles.shape == (257, 128) and not triangles[-1].any()
    assert (triangles.sum(0) == 0).nonzero().flatten().tolist() == [3]
    inner = triangles[5:248].sum(1)
    torch.testing.assert_close(inner, torch.ones_like(inner))


def test_it_holds_nothing_that_a_checkpoint_would_store():
    assert not bank(8).state_dict() and not list(bank(8).parameters())

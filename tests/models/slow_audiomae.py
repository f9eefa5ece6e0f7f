"""AudioMAE again, literally: one sample, one token and one pair of tokens at a time, in float64.

Nothing comes from omnitrunk.kernels or omnitrunk.models.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from tests.models.slow import affine, cut, mlp, norm
from tests.models.slow_autoencoder import blocks, tokenize


def slow_audiomae_loss(model, spectrograms, keep):
    config, weights = model.config, dict(model.named_parameters())
    errors = []
    for spectrogram, ids in zip(spectrograms, keep.tolist(), strict=True):
        patches = cut(spectrogram, config.patch_size)
        tokens = tokenize(weights, patches, positions(config, config.width))
        encoded = blocks(weights, "blocks.", torch.stack([weights["class_token"], *tokens[ids]]), config.heads)
        embedded = affine(weights, "decoder.embed", norm(weights, "norm", encoded))
        places = [weights["decoder.mask_token"]] * len(patches)
        for token, place in zip(embedded[1:], ids, strict=True):
            places[place] = token
        places = torch.stack(places) + positions(config, config.decoder_width)
        if config.decoder == "local":
            decoded = slow_local_blocks(weights, "decoder.blocks.", places, config)
        else:
            joined = torch.cat([embedded[:1], places])
            decoded = blocks(weights, "decoder.blocks.", joined, config.decoder_heads)[1:]
        predicted = affine(weights, "decoder.out", norm(weights, "decoder.norm", decoded))
        for place in set(range(len(patches))) - set(ids):
            target = patches[place].flatten()
            if config.standardize_targets:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append((predicted[place] - target).square().mean())
    return torch.stack(errors).mean()


def positions(config, dim):
    """Faithful: of the grid with its axes swapped, read in the order of tokens."""
    times, bands = config.grid
    columns = times if config.faithful else bands
    rows = []
    for token in range(times * bands):
        angles = [
            [place * 10000 ** (-j / (dim // 4)) for j in range(dim // 4)]
            for place in (token % columns, token // columns)
        ]
        rows.append([wave(angle) for part in angles for wave in (math.sin, math.cos) for angle in part])
    return torch.tensor(rows).double()


def slow_local_blocks(weights, prefix, x, config):
    for number in range(config.decoder_depth):
        own = f"{prefix}{number}."
        mixed = slow_local_attention(weights, f"{own}attn.", x, config.grid, config.decoder_heads, 2 * (number % 2))
        x = x + norm(weights, f"{own}norm1", affine(weights, f"{own}attn.proj", mixed))
        x = x + norm(weights, f"{own}norm2", mlp(weights, f"{own}mlp.", x))
    return x


def slow_local_attention(weights, prefix, x, grid, heads, shift):
    """Token by token; windows of 4 x 4, or of the whole side where that is no longer, and then not shifted."""
    times, bands = grid
    shift = shift if times > 4 else 0
    q, k, v = (part.unflatten(1, (heads, -1)) for part in affine(weights, f"{prefix}qkv", x).chunk(3, dim=1))
    rows = []
    for query in range(times * bands):
        mixed = []
        keys = [
            key
            for key in range(times * bands)
            if window(query, bands, times, shift) == window(key, bands, times, shift)
        ]
        for head in range(heads):
            scores = [
                score(weights, prefix, q[query, head], k[key, head], head)
                + offset_bias(
                    weights, prefix, query // bands - key // bands, query % bands - key % bands, head, times, shift
                )
                for key in keys
            ]
            strange = [-100.0 * ((query // bands < shift) != (key // bands < shift)) for key in keys]
            share = (torch.stack(scores) + torch.tensor(strange).double()).softmax(0)
            mixed.append(share @ v[keys, head])
        rows.append(torch.cat(mixed))
    return torch.stack(rows)


def window(token, bands, times, shift):
    return (token // bands - shift) % times // 4, token % bands // 4


def score(weights, prefix, q, k, head):
    return q @ k / (q.norm() * k.norm()) / weights[f"{prefix}temperature"][head].clamp(min=0.01)


def offset_bias(weights, prefix, down, across, head, times, shift):
    """Offsets count inside of the shifted window, where the two ends of the recording can meet."""
    down = (down + 3) % times - 3 if shift else down
    offset = torch.tensor([math.copysign(math.log(1 + abs(step)), step) for step in (down, across)]).double()
    hidden = (weights[f"{prefix}offset_bias.fc1.weight"] @ offset + weights[f"{prefix}offset_bias.fc1.bias"]).relu()
    return (weights[f"{prefix}offset_bias.fc2.weight"] @ hidden + weights[f"{prefix}offset_bias.fc2.bias"])[head]


def slow_log_mel(wave, rate, mels, frames, padding):
    """Logarithms (T, F) of one waveform, numpy float64, all of it real."""
    wave = wave - wave.mean() if len(wave) else wave
    length, step = int(rate * 0.025), int(rate * 0.01)
    points = 2 ** math.ceil(math.log2(length))
    rows = np.full((frames, mels), padding)
    for number in range(frames):
        frame = wave[number * step : number * step + length]
        if len(frame) < length:
            break
        frame = frame - frame.mean()
        frame = np.array([now - 0.97 * frame[max(place - 1, 0)] for place, now in enumerate(frame)])
        frame = frame * [0.5 - 0.5 * math.cos(2 * math.pi * place / (length - 1)) for place in range(length)]
        power = np.abs(np.fft.fft(np.pad(frame, (0, points - length)))) ** 2
        for band in range(mels):
            energy = sum(triangle(band, mels, bin * rate / points, rate) * power[bin] for bin in range(points // 2))
            rows[number, band] = math.log(max(energy, 2.0**-23))
    return rows


def triangle(band, mels, hertz, rate):
    low, high, at = (1127 * math.log(1 + value / 700) for value in (20, rate / 2, hertz))
    half = (high - low) / (mels + 1)
    return max(0.0, 1 - abs(at - (low + (band + 1) * half)) / half)

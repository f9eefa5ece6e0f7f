from __future__ import annotations

import logging
import struct
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

from omnitrunk.engine.data import DataConfig, Loader, evaluation_batches
from omnitrunk.engine.data.cursor import Cursor
from omnitrunk.engine.data.decode.audio import random_offsets
from omnitrunk.engine.data.formats.flac import frames_crc
from omnitrunk.engine.data.sample import Sound
from omnitrunk.engine.data.verify.audio import verify_audio
from omnitrunk.engine.data.verify.images import BadFile
from tests.engine.data_files import check_resume, encode_audio, same_batch, take_batches, write_modality

pytest.importorskip("nvidia.dali", reason='needs NVIDIA DALI: pip install "omnitrunk[data]"')
pytest.importorskip("av", reason='needs PyAV: pip install "omnitrunk[world]"')

RATE = 8000
SAMPLES = 1000
COUNTS = [300, 999, 1000, 1001, 1500, 4000, 700, 2500]
"""Lengths of the recordings, shorter and longer than a waveform."""


@pytest.fixture(scope="module")
def waves():
    rng = np.random.default_rng(int.from_bytes(b"waves", "little") % 2**32)
    return [rng.integers(-20000, 20000, count, dtype=np.int16) for count in COUNTS]


@pytest.fixture(scope="module")
def config(tmp_path_factory, waves):
    root = tmp_path_factory.mktemp("sounds")
    for split in ("train", "val"):
        write_modality(root, split, "audio", ".flac", [encode_audio(wave, RATE) for wave in waves])
    return DataConfig(root=str(root), batch=8, seconds=SAMPLES / RATE, sample_rate=RATE, threads=2)


def wav(samples):
    """A WAV file of 16-bit samples at 8 kHz, by hand."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16)
    body = b"WAVE" + form + struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def expected(wave, start):
    piece = np.zeros(SAMPLES, np.float32)
    piece[: len(wave[start : start + SAMPLES])] = wave[start : start + SAMPLES] / np.float32(32768)
    return piece


def test_waveforms_are_the_stored_samples_from_a_random_start(config, waves, seed):
    starts = []
    for batch in take_batches(5, config, "audio", seed):
        assert batch.tensors["audio"].dtype == torch.float32
        order = Cursor(len(waves), seed, 8).samples_at(batch.positions)
        room = np.maximum(np.array(COUNTS)[order] - SAMPLES, 0)
        offsets = random_offsets(room, batch.positions, seed=seed)
        for row, sample in enumerate(order):
            assert np.array_equal(batch.tensors["audio"][row], expected(waves[sample], offsets[row]))
        assert batch.tensors["audio_length"].tolist() == np.minimum(np.array(COUNTS)[order], SAMPLES).tolist()
        assert batch.labels.tolist() == (order * 2 // len(waves)).tolist()
        starts += offsets[room > 0].tolist()
    assert len(set(starts)) > 10


def test_starts_cover_their_range_evenly(seed):
    offsets = random_offsets(np.full(6000, 9), np.arange(6000), seed=seed)
    assert np.abs(np.bincount(offsets, minlength=10) / 6000 - 0.1).max() < 0.02


def test_evaluation_hears_the_middle_of_every_recording_once(config, waves):
    batches = list(evaluation_batches(config, "val", ("audio",), 5))
    assert [len(batch) for batch in batches] == [5, 3]
    for batch in batches:
        for wave, place in zip(batch.tensors["audio"], batch.positions, strict=True):
            assert np.array_equal(wave, expected(waves[place], max(COUNTS[place] - SAMPLES, 0) // 2))


def test_a_run_is_the_same_when_resumed_on_other_threads_and_over_ranks(config, seed):
    check_resume(config, "audio", seed)


def test_channels_are_averaged_and_rates_converted(tmp_path, seed):
    """A 200 Hz tone, louder on the left, comes out as one at any rate and loudness in between."""
    time = np.arange(22050) / 22050
    tone = 10000 * np.sin(2 * np.pi * 200 * time)
    stereo = np.stack([tone, tone / 2], axis=1).astype(np.int16).ravel()
    data = encode_audio(stereo, 22050, "pcm_s16le", "wav", layout="stereo")
    write_modality(tmp_path, "train", "audio", ".wav", [data] * 2)
    config = DataConfig(root=str(tmp_path), batch=2, seconds=1.0, sample_rate=16000)
    batch = take_batches(1, config, "audio", seed)[0]
    truth = 7500 / 32768 * np.sin(2 * np.pi * 200 * np.arange(16000) / 16000)
    assert batch.tensors["audio_length"].tolist() == [16000, 16000]
    assert np.abs(batch.tensors["audio"][0].numpy() - truth)[100:-100].max() < 2e-3


@pytest.mark.parametrize("rate", [11025, 22050, 44100, 48000])
@pytest.mark.parametrize("codec", ["flac", "pcm_s16le"])
def test_a_recording_at_another_rate_is_as_long_as_it_should_be(rate, codec, tmp_path, seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1000, 5000))
    data = encode_audio(
        rng.integers(-9000, 9000, count, dtype=np.int16), rate, codec, "flac" if codec == "flac" else "wav"
    )
    write_modality(tmp_path, "train", "audio", ".wav", [data])
    config = DataConfig(root=str(tmp_path), batch=1, seconds=1.0, sample_rate=16000)
    length = int(take_batches(1, config, "audio", seed)[0].tensors["audio_length"])
    assert abs(length - count * 16000 / rate) < 1


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("flac", "flac"),
        ("pcm_s16le", "wav"),
        ("pcm_u8", "wav"),
        ("pcm_s24le", "wav"),
        ("pcm_f32le", "wav"),
        ("pcm_mulaw", "wav"),
    ],
)
def test_headers_tell_length_and_rate(codec, container, seed):
    count = int(np.random.default_rng(seed).integers(500, 9000))
    wave = np.zeros(2 * count, np.int16)
    assert verify_audio(encode_audio(wave, 44100, codec, container, layout="stereo")) == Sound(count, 44100)


def test_ogg_opus_is_read_and_decoded(tmp_path, seed):
    wave = (8000 * np.sin(np.arange(48000) / 20)).astype(np.int16)
    data = encode_audio(wave, 48000, "libopus", "ogg")
    found = verify_audio(data)
    assert found.rate == 48000 and abs(found.samples - 48000) < 1000
    write_modality(tmp_path, "train", "audio", ".ogg", [data])
    config = DataConfig(root=str(tmp_path), batch=1, seconds=0.5, sample_rate=48000, bad_fraction=0.0)
    piece = take_batches(1, config, "audio", seed)[0].tensors["audio"][0]
    assert abs(float(piece.square().mean().sqrt()) - 8000 / 32768 / 2**0.5) < 0.02


@pytest.mark.parametrize("codec", ["pcm_s16le", "libopus"])
def test_a_file_cut_anywhere_is_found(codec):
    data = encode_audio(np.arange(4800, dtype=np.int16), 48000, codec, "wav" if codec == "pcm_s16le" else "ogg")
    verify_audio(data)
    for length in [*range(0, len(data), 1 + len(data) // 300), len(data) - 1]:
        with pytest.raises(BadFile):
            verify_audio(data[:length])


@pytest.mark.parametrize("count", [1, 4608, 700_001])
def test_a_cut_flac_is_found(count, seed):
    """700,001 samples are frames enough for numbers of two bytes."""
    wave = np.random.default_rng(seed).integers(-300, 300, count, dtype=np.int16)
    data = encode_audio(wave, 16000)
    assert verify_audio(data) == Sound(count, 16000)
    last = data.rindex(b"\xff\xf8")  # the header of the last frame, or noise that looks like one
    for length in (0, 3, 20, 60, 100, last // 3, last // 2, last, last + 1, len(data) - 1):
        with pytest.raises(BadFile):
            verify_audio(data[:length])


def crc16(data):
    register = 0
    for byte in data:
        register ^= byte << 8
        for _ in range(8):
            register = (register << 1 ^ 0x8005 if register & 0x8000 else register << 1) & 0xFFFF
    return register


@pytest.mark.parametrize("count", [0, 1, 2, 3, 255, 1000])
def test_the_checksum_of_frames_is_that_of_a_bit_by_bit_division(count, seed):
    data = np.random.default_rng(seed).bytes(count)
    assert frames_crc(data) == crc16(data)


def test_a_flac_frame_changed_in_one_bit_is_found(seed):
    rng = np.random.default_rng(seed)
    data = encode_audio(rng.integers(-300, 300, 10_000, dtype=np.int16), 16000)
    first = data.index(b"\xff\xf8")
    for bit in rng.integers(8 * first, 8 * len(data), 300):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadFile):
            verify_audio(bytes(changed))


def test_a_flac_of_unknown_length_is_refused_with_the_way_out():
    data = bytearray(encode_audio(np.zeros(5000, np.int16), 16000))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    with pytest.raises(BadFile, match="unknown length, a live recording: ffmpeg -i IN -c:a flac"):
        verify_audio(bytes(data))


def test_an_ogg_file_changed_in_one_bit_is_found(seed):
    data = encode_audio(np.arange(4800, dtype=np.int16), 48000, "libopus", "ogg")
    for bit in np.random.default_rng(seed).permutation(8 * len(data))[:500]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadFile):
            verify_audio(bytes(changed))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"ID3\x03" + bytes(40), "not a WAV, FLAC or Ogg file: it begins with 49 44 33 03"),
        (b"RIFF" + struct.pack("<I", 4) + b"WAVE", "no samples after a format"),
        (b"fLaC", "truncated"),
        (encode_audio(np.zeros(2000, np.int16), 8000, "adpcm_ms", "wav"), "WAV format 0x0002: ffmpeg -i IN"),
        (wav(b""), "0 samples at 8000 Hz"),
    ],
)
def test_other_files_are_named_for_what_they_are(data, reason):
    with pytest.raises(BadFile, match=reason):
        verify_audio(data)


def test_damage_raises_nothing_but_bad_file(seed):
    rng = np.random.default_rng(seed)
    wave = rng.integers(-9000, 9000, 500, dtype=np.int16)
    whole = [encode_audio(wave, 48000, *kind) for kind in (("flac", "flac"), ("pcm_s16le", "wav"), ("libopus", "ogg"))]
    for _ in range(600):
        data = bytearray(whole[rng.integers(len(whole))])
        for at in rng.integers(0, min(len(data), 120), 5):
            data[at] = rng.integers(256)
        with suppress(BadFile):
            assert verify_audio(bytes(data)).samples > 0


def undecodable(data):
    """The same FLAC file of one frame, its checksum right and its sample format one that there is not."""
    damaged = bytearray(data)
    at = data.index(b"\xff\xf8")
    stop = at + 6 + {6: 1, 7: 2}.get(damaged[at + 2] >> 4, 0)
    damaged[stop:-2] = b"\xff" * (len(data) - 2 - stop)
    damaged[-2:] = crc16(damaged[at:-2]).to_bytes(2, "big")
    return bytes(damaged)


def test_bad_recordings_are_replaced_counted_and_named(tmp_path, waves, seed, caplog):
    contents = [encode_audio(waves[i % len(waves)], RATE) for i in range(24)]
    contents[0] = contents[0][:-30]
    contents[3] = b""
    contents[4] = encode_audio(waves[4], RATE, "pcm_s16le", "wav")[:-100]
    contents[8] = b"\x00" * 500
    contents[16] = undecodable(contents[16])
    paths = write_modality(tmp_path, "train", "audio", ".flac", contents)
    reasons = {0: "FLAC", 3: "empty", 4: "truncated", 8: "not a WAV", 16: "does not decode"}
    config = DataConfig(root=str(tmp_path), batch=8, seconds=0.1, sample_rate=RATE, bad_fraction=0.6, threads=2)
    with caplog.at_level(logging.WARNING), Loader(config, ("audio",), seed=seed) as loader:
        batches = [next(loader) for _ in range(9)]
        assert loader.replaced >= 2 * len(reasons)
        named = dict(loader.faults.named)
    assert named.keys() == {str(paths[i]) for i in reasons}
    for i, reason in reasons.items():
        assert reason in named[str(paths[i])]
    again = take_batches(9, config, "audio", seed)
    assert all(same_batch(a, b) for a, b in zip(batches, again, strict=True))


def test_random_waveforms_look_like_those_of_files(config, seed):
    noise = take_batches(1, replace(config, source="random"), "audio", seed)[0].tensors
    real = take_batches(1, config, "audio", seed)[0].tensors
    for name in ("audio", "audio_length"):
        assert (noise[name].dtype, noise[name].shape) == (real[name].dtype, real[name].shape)
    assert noise["audio"].abs().max() <= 1 and noise["audio_length"].tolist() == [SAMPLES] * 8

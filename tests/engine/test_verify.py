from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from omnitrunk.engine.data.verify.images import BadFile, palette_to_grey, verify
from tests.engine.data_files import build_png, chunks, encode, palette_png, sample_files, smooth, undecodable_jpeg


@pytest.fixture
def rng(seed):
    return np.random.default_rng(seed)


def jpeg_variants(rng, height, width):
    picture = smooth(rng, height, width, 3)
    plain = encode(picture, "JPEG")
    return {
        "plain": plain,
        "progressive": encode(picture, "JPEG", progressive=True),
        "restarts": encode(picture, "JPEG", restart_marker_blocks=2),
        "grey": encode(picture[..., 0], "JPEG"),
        "cmyk": encode(Image.fromarray(picture).convert("CMYK"), "JPEG"),
        "header with end marker": encode(picture, "JPEG", comment=b"\xff\xd9"),
        "fill bytes": plain[:2] + b"\xff\xff\xff" + plain[2:],
        "zero padding": plain + bytes(37),
        "trailer": plain + b"made by a camera",
    }


@pytest.mark.parametrize("name", jpeg_variants(np.random.default_rng(0), 16, 16))
def test_whole_jpeg_files_give_their_size(rng, name):
    height, width = rng.integers(20, 120, 2).tolist()
    assert verify(jpeg_variants(rng, height, width)[name], "rgb") == (height, width)


@pytest.mark.parametrize("name", ["plain", "progressive", "restarts", "header with end marker"])
def test_a_jpeg_cut_anywhere_is_found(rng, name):
    data = jpeg_variants(rng, 40, 30)[name]
    for length in range(len(data)):
        with pytest.raises(BadFile):
            verify(data[:length], "rgb")


@pytest.mark.parametrize("modality", ["depth", "semseg"])
def test_a_png_cut_anywhere_or_changed_in_one_bit_is_found(rng, modality):
    data = sample_files(rng, 24, 20)[modality]
    assert verify(data, modality) == (24, 20)
    for length in range(len(data)):
        with pytest.raises(BadFile):
            verify(data[:length], modality)
    for bit in rng.permutation(8 * len(data))[:2000]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadFile):
            verify(bytes(changed), modality)


def test_damage_raises_nothing_but_bad_file(rng):
    whole = list(jpeg_variants(rng, 24, 24).values())
    for _ in range(500):
        data = bytearray(whole[rng.integers(len(whole))])
        for at in rng.integers(0, min(len(data), 700), 5):
            data[at] = rng.integers(256)
        try:
            height, width = verify(bytes(data), "rgb")
            assert 0 < height < 65536 and 0 < width < 65536
        except BadFile:
            pass


@pytest.mark.parametrize(
    ("kind", "picture", "reason"),
    [
        ("depth", np.zeros((4, 4), np.uint8), "16-bit grey PNG; this one has 8 bits, color type 0"),
        ("depth", np.zeros((4, 4, 3), np.uint8), "16-bit grey PNG; this one has 8 bits, color type 2"),
        ("semseg", np.zeros((4, 4), np.uint16), "8-bit grey or palette PNG; this one has 16 bits"),
        ("semseg", np.zeros((4, 4, 4), np.uint8), "8-bit grey or palette PNG; this one has 8 bits, color type 6"),
        ("semseg", Image.new("P", (4, 4)), "8-bit grey or palette PNG; this one has 1 bits, color type 3"),
    ],
)
def test_pixel_formats_that_hold_no_depth_or_ids_are_refused(kind, picture, reason):
    with pytest.raises(BadFile, match=reason):
        verify(encode(picture), kind)


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (b"", "rgb", "empty file"),
        (b"<html>", "rgb", "not a JPEG or PNG file: it begins with 3c 68 74 6d"),
        (encode(np.zeros((4, 4, 3), np.uint8), "JPEG"), "depth", "not a PNG file"),
        (b"\x89PNG\r\n\x1a\n", "rgb", "truncated"),
        (build_png([chunks(encode(np.zeros((4, 4), np.uint8)))[0], (b"IEND", b"")]), "rgb", "no pixel data"),
    ],
)
def test_other_files_are_named_for_what_they_are(data, kind, reason):
    with pytest.raises(BadFile, match=reason):
        verify(data, kind)


def test_rgb_takes_png_of_any_color_type(rng):
    picture = Image.fromarray(smooth(rng, 12, 34, 3))
    for mode in ("RGB", "RGBA", "L", "P"):
        assert verify(encode(picture.convert(mode)), "rgb") == (12, 34)


def test_palette_files_are_relabelled_to_the_ids_they_store(rng):
    ids = rng.integers(0, 256, (21, 33), dtype=np.uint8)
    colored = palette_png(ids, rng.integers(0, 256, (256, 3), dtype=np.uint8))
    grey = palette_to_grey(colored)
    assert verify(colored, "semseg") == verify(grey, "semseg") == (21, 33)
    decoded = Image.open(io.BytesIO(grey))
    assert decoded.mode == "L" and np.array_equal(np.asarray(decoded), ids)
    assert palette_to_grey(grey) is grey


def test_files_for_the_decoder_to_find_pass_the_checks(rng):
    """The other tests rely on files that pass here and fail in the decoder."""
    assert verify(undecodable_jpeg(sample_files(rng)["rgb"]), "rgb") == (48, 64)

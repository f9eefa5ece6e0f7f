from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from omnitrunk.engine.data import Batch
from omnitrunk.engine.drawing.colors import class_colors, oklch_to_srgb, scale_colors
from omnitrunk.engine.drawing.sheet import Panel, compose
from omnitrunk.engine.drawing.show import HIDDEN, draw_sheet, reconstruct, rows_of
from omnitrunk.models import MultiMAE
from tests.engine.data_files import write_folder
from tests.engine.tiny import needs_dali, tiny


def batch_of(config, model, seed, count=3):
    rng = np.random.default_rng(seed)
    size, positions = config.data.size, np.arange(count)
    tensors = {
        "rgb": torch.from_numpy(rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)),
        "depth": torch.from_numpy(rng.random((count, size, size, 1), dtype=np.float32)),
        "semseg": torch.from_numpy(rng.integers(0, 9, (count, size // 4, size // 4), dtype=np.uint8)),
    }
    return Batch(tensors, torch.zeros(count, dtype=torch.int64), positions, model.plan(seed, positions))


def panels_of(config, seed, answers=None):
    model = MultiMAE(config.model, seed)
    batch = batch_of(config, model, seed)
    if answers:
        model.predict = lambda tensors, plan: answers(model, batch)
    return batch, model, {panel.name: panel.pictures for panel in reconstruct(model, batch, "fp32")}


def test_visible_patches_are_the_input_and_hidden_ones_are_grey(seed):
    config = tiny("x", model={"keep": 20})
    batch, _, panels = panels_of(config, seed)
    hidden = batch.plan.mask[:, :16].reshape(3, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2).numpy()
    rgb = batch.tensors["rgb"].numpy()
    assert hidden.any() and not hidden.all()
    for name in ("rgb", "norm_rgb"):
        assert np.array_equal(panels[name]["input"], rgb) and np.array_equal(panels[name]["target"], rgb)
        assert np.array_equal(panels[name]["masked"][~hidden], rgb[~hidden])
        assert (panels[name]["masked"][hidden] == HIDDEN).all()
        assert np.array_equal(panels[name]["prediction"][~hidden], rgb[~hidden])
        assert not np.array_equal(panels[name]["prediction"][hidden], rgb[hidden])


def perfect(model, batch):
    """What a model would have to predict, by the definition of its losses."""
    config, maps = model.config, model.prepare(batch.tensors)
    mean, std = (torch.tensor(values) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def rows(image, patch):
        tiles = image.unflatten(1, (-1, patch)).unflatten(3, (-1, patch)).transpose(2, 3)
        return tiles.flatten(3).flatten(1, 2)

    rgb = rows((maps["rgb"] / 255 - mean) / std, 8)
    variance, center = torch.var_mean(rgb, dim=2, keepdim=True)
    classes = torch.nn.functional.one_hot(maps["semseg"].long(), config.semseg_classes).float()
    return {
        "rgb": rgb,
        "depth": rows(maps["depth"], 8),
        "semseg": rows(classes, 2),
        "norm_rgb": (rgb - center) / (variance + 1e-6).sqrt(),
    }


def test_a_perfect_prediction_looks_like_the_target(seed):
    _, _, panels = panels_of(tiny("x"), seed, perfect)
    assert set(panels) == {"rgb", "depth", "semseg", "norm_rgb"}
    for name, pictures in panels.items():
        difference = np.abs(pictures["prediction"].astype(int) - pictures["target"])
        assert difference.max() <= (0 if name == "semseg" else 1), name


def test_an_output_that_is_no_input_is_hidden_everywhere(seed):
    config = tiny("x", model={"inputs": ["rgb"], "outputs": ["depth"]})
    _, _, panels = panels_of(config, seed)
    assert (panels["depth"]["masked"] == HIDDEN).all()


@needs_dali
def test_the_sheet_has_a_row_per_sample_and_a_block_per_output(tmp_path, seed):
    write_folder(tmp_path / "data", "val", 6, np.random.default_rng(seed), height=40, width=56)
    config = tiny(tmp_path, data={"source": "folder", "root": str(tmp_path / "data")})
    model = MultiMAE(config.model, seed)
    sheet, again = (draw_sheet(config, model, torch.device("cpu"), samples=2) for _ in range(2))
    taller = draw_sheet(config, model, torch.device("cpu"), samples=5)
    assert isinstance(sheet, Image.Image) and np.array_equal(sheet, again)
    assert taller.width == sheet.width and taller.height - sheet.height == 3 * 116
    panels = reconstruct(model, batch_of(config, model, seed), "fp32")
    assert compose(panels[:1]).width < compose(panels[:2]).width
    named, numbered = compose(panels, ["a class with a name"] * 9), compose(panels)
    assert not np.array_equal(named, numbered)


def test_a_sheet_has_no_more_rows_than_the_split_has_samples(tmp_path, seed):
    write_folder(tmp_path / "data", "val", 4, np.random.default_rng(seed), height=40, width=56)
    config = tiny(tmp_path, data={"source": "folder", "root": str(tmp_path / "data")})
    assert [rows_of(config, asked) for asked in (None, 1, 4)] == [4, 1, 4]
    assert rows_of(tiny(tmp_path), None) == 6 and rows_of(tiny(tmp_path), 64) == 64
    with pytest.raises(ValueError, match=r"--samples 5 is more than the 4 samples of .*val"):
        rows_of(config, 5)


def lightness(colors):
    """OKLab lightness of uint8 sRGB, from the inverse of the transform's matrices."""
    linear = np.where(colors / 255 <= 0.04045, colors / 255 / 12.92, ((colors / 255 + 0.055) / 1.055) ** 2.4)
    to_lms = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                       [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
    return np.cbrt(linear @ to_lms.T) @ np.array([0.2104542553, 0.7936177850, -0.0040720468])


def test_the_scale_rises_evenly_in_lightness():
    steps = np.diff(lightness(scale_colors(np.linspace(0, 1, 33))))
    assert steps.min() > 0 and steps.max() < 1.6 * steps.mean()
    assert np.array_equal(scale_colors(np.array([-1.0, np.nan])), scale_colors(np.array([0.0, 0.0])))


def test_greys_are_grey():
    grey = oklch_to_srgb(np.array([0.0, 0.5, 1.0]), np.array([0.0]), np.array([1.0])).astype(int)
    assert (np.ptp(grey, axis=1) <= 1).all() and grey[0].max() == 0 and grey[2].min() == 255


def test_classes_keep_their_color_and_differ():
    colors = class_colors(14)
    assert np.array_equal(colors[:5], class_colors(5))
    apart = np.abs(colors[:, None].astype(int) - colors[None]).sum(axis=2) + 999 * np.eye(14, dtype=int)
    assert apart.min() > 30


def test_names_of_many_classes_take_several_lines():
    pictures = {"target": np.zeros((1, 8, 8, 3), np.uint8)}
    names = [f"a class called {number}" for number in range(20)]
    few, many = (compose([Panel(name="x", pictures=pictures, classes=tuple(range(n)))], names) for n in (2, 20))
    assert many.width == few.width and many.height >= few.height + 4 * 24
    right = np.asarray(many)[:, -10:]
    assert (right == right[0, 0]).all(), "nothing is cut off at the edge"

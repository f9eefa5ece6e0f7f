"""Fine-tuning with all that changes samples: it resumes exactly, and micro-batches are the batch."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load

from omnitrunk.engine.check import check
from omnitrunk.engine.train import train
from tests.engine.test_stages import MODELS, same_when_interrupted, stage
from tests.engine.tiny import weights_of

AUGMENTED = {
    "mae": {"mixup": 0.8, "cutmix": 1.0, "erase": 0.25},
    "videomae": {"mixup": 0.8, "cutmix": 1.0, "erase": 0.25},
    "audiomae": {"mixup": 10.0, "mixed": 0.5, "mask_frames": 8, "mask_mels": 8, "drop_times": 0.5, "drop_bands": 0.2},
}


def fine_tuning(path, system, **sections):
    model = {"system": "classifier", "encoder": MODELS[system], "classes": 10, "label_smoothing": 0.1}
    return stage(path, model | AUGMENTED[system], **sections)


@pytest.mark.parametrize("system", AUGMENTED)
def test_augmented_training_resumes_exactly(system, tmp_path, monkeypatch):
    whole, cut = (fine_tuning(tmp_path / name, system) for name in ("whole", "cut"))
    same_when_interrupted(monkeypatch, whole, cut)


@pytest.mark.parametrize("system", AUGMENTED)
def test_micro_batches_are_the_batch(system, tmp_path):
    runs = [fine_tuning(tmp_path / str(n), system, optimizer={"lr": 1e-3, "accumulate": n}) for n in (1, 2)]
    for config in runs:
        assert train(config) == 0
    whole, parts = (load(weights_of(config)) for config in runs)
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, atol=2e-4, err_msg=name)


def test_a_pair_that_is_torn_apart_is_one_line(tmp_path):
    config = fine_tuning(tmp_path / "run", "mae", data={"batch": 6}, optimizer={"accumulate": 2})
    for refuse in (train, check):
        with pytest.raises(ValueError, match=r"tears pairs that mixup and cutmix mix: use a multiple of 4$"):
            refuse(config)
    assert not (tmp_path / "run").exists()

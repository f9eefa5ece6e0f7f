"""What a run over several data sets refuses, in one line and without leaving a loader open."""

from __future__ import annotations

import json
import threading

import pytest

from omnitrunk.engine import checkpoint, folder
from omnitrunk.engine.build import build
from omnitrunk.engine.train import train
from tests.engine.test_mixture import ALONE, joint


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch" and thread.is_alive()]


def test_another_mode_of_the_batches_is_named_and_closes_the_loaders(tmp_path):
    assert train(joint(tmp_path / "run", steps=2)) == 0
    changed = joint(tmp_path / "run", steps=4, mixture={"batches": "mixed"})
    said = r'was trained with mixture\.batches = "separate", not "mixed": set it back, use another run\.folder'
    with pytest.raises(ValueError, match=said):
        build(changed, ALONE)
    assert not readers(), "a loader was left open"


def test_other_files_are_named_by_their_data_set(tmp_path):
    assert train(joint(tmp_path / "run", steps=2)) == 0
    path = checkpoint.find(tmp_path / "run") / "state.json"
    state = json.loads(path.read_text())
    state["fingerprint"]["clip"] = "0123456789abcdef"
    path.write_text(json.dumps(state))
    said = r"other data: fingerprint 0123456789ab, but mixture\.sets\.clip\.root =  has random; bring the data back"
    with pytest.raises(ValueError, match=said):
        build(joint(tmp_path / "run", steps=4), ALONE)
    assert not readers(), "a loader was left open"


def test_a_folder_that_cannot_be_written_closes_the_loaders(tmp_path, monkeypatch):
    def refuse(_config):
        raise PermissionError(13, "Permission denied", str(tmp_path / "run"))

    monkeypatch.setattr(folder, "prepare", refuse)
    with pytest.raises(PermissionError):
        build(joint(tmp_path / "run"), ALONE)
    assert not readers(), "a loader was left open"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch": "x"}, "batch: expected a whole number, got x"),
        ({"source": "zip"}, "source: expected one of folder, list, shards, random, got zip"),
        ({"crop_area": 3}, "crop_area: expected a list, got 3"),
        ({"flip": 3}, "flip: expected true or false, got 3"),
    ],
)
def test_a_field_of_a_wrong_type_is_told_without_python(tmp_path, fields, said):
    with pytest.raises(ValueError) as caught:
        joint(tmp_path / "run", mixture={"sets": {"image": fields, "clip": {}, "scene": {}}})
    assert str(caught.value) == f"mixture.sets.image: {said}"

from __future__ import annotations

import dataclasses

import pytest

from omnitrunk.models import SYSTEMS, find_system
from tests.models.small import small_config
from tests.models.small_autoencoders import small_mae, small_videomae

CONFIGS = {"multimae": small_config(), "mae": small_mae(), "videomae": small_videomae()}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_system_is_found_by_the_name_in_its_configuration(name, seed):
    config, system = CONFIGS[name], find_system(name)
    assert isinstance(config, system.config) and config.system == name
    model = system.model(config, seed)
    assert model.config is config
    assert {part.ours for part in system.layout(config)} == set(model.state_dict())


@pytest.mark.parametrize("name", SYSTEMS)
def test_configurations_are_frozen_with_a_default_for_everything(name):
    config = SYSTEMS[name].config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 1
    assert config.inputs and config.outputs
    masks = name != "omnivore" and not hasattr(config, "encoder_config")
    assert config.keep < config.total_tokens or not masks


def test_an_unknown_system_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown system 'video_mae'; did you mean 'videomae'"):
        find_system("video_mae")

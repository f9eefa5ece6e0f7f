from __future__ import annotations

from omnitrunk.models import MultiMAE
from tests.models.small import small_config


def groups_of(seed, **changes):
    model = MultiMAE(small_config(task_balancer="uncertainty", **changes), seed)
    return model, model.parameter_groups(0.05)


def test_matrices_decay_and_nothing_else(seed):
    model, groups = groups_of(seed)
    named = dict(model.named_parameters())
    assert sorted(name for group in groups for name in group["names"]) == sorted(named)
    for group in groups:
        assert [named[name] for name in group["names"]] == list(group["params"])
    decayed, spared = (group["names"] for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert all(name.endswith(".weight") and named[name].dim() == 2 for name in decayed)
    assert {"context.weight", "tokenizers.semseg.weight", "decoders.norm_rgb.out.weight"} <= set(decayed)
    tokens = {"global_tokens", "balancer", "tokenizers.semseg.class_embedding", "decoders.rgb.task_embedding"}
    assert tokens <= set(spared)
    matrices = [name for name in spared if named[name].dim() == 2]
    assert all(name.endswith(("_embedding",)) for name in matrices)


def test_faithful_decays_everything(seed):
    model, groups = groups_of(seed, faithful=True, position_size=32)
    assert len(groups) == 1 and groups[0]["weight_decay"] == 0.05
    assert groups[0]["names"] == [name for name, _ in model.named_parameters()]

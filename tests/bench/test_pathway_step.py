"""The cost of joining a trunk: all three ways train the same model, and their steps and memory are reported."""

from __future__ import annotations

import json

import pytest
import torch

from omnitrunk.bench import pathway_step
from omnitrunk.models.pathway import joined_layers


@pytest.mark.parametrize("way", pathway_step.WAYS)
def test_every_way_builds_what_it_says(way):
    layers = joined_layers(pathway_step.build(way, "tiny"))
    assert len(layers) == (8 if "joined" in way else 0)


def test_the_engine_computes_what_the_definition_says():
    models = [pathway_step.build(way, "tiny") for way in (pathway_step.ENGINE, pathway_step.DEFINITION)]
    batch = {"rgb": torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)}
    ours, theirs = (model.logits(batch) for model in models)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    plain = pathway_step.build(pathway_step.PLAIN, "tiny").logits(batch)
    assert not torch.allclose(ours, plain, rtol=1e-3)


def test_steps_and_memory_are_reported(tmp_path, capsys):
    assert pathway_step.main(["--quick", "--threads", "1", "--json", str(tmp_path / "rows.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["contender"] for row in rows} == set(pathway_step.WAYS)
    memory = {row["contender"]: row["peak_bytes"] for row in rows}
    assert memory[pathway_step.PLAIN] < memory[pathway_step.ENGINE]
    assert pathway_step.BOTH in capsys.readouterr().out

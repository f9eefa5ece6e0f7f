"""`omnitrunk bench step`: engine and peer do the same work, and a trial run."""

from __future__ import annotations

import json

import numpy as np
import pytest

from omnitrunk.bench import step
from omnitrunk.bench.plain_masking import Selection
from omnitrunk.bench.plain_multimae import PlainMultiMAE, normalize
from omnitrunk.bench.sizes import SIZES, random_batch
from omnitrunk.models import MultiMAE
from omnitrunk.models.official.state_dicts import to_official


def test_engine_and_peer_do_the_same_step(seed):
    """Same weights, same visible tokens, same batch: same losses. So the times compare like with like."""
    size = SIZES["tiny"]
    engine = MultiMAE(step.engine_config(size.model), seed)
    plan = engine.plan(seed, np.arange(size.batch))
    plain = PlainMultiMAE(size.model)
    plain.load_state_dict(to_official(engine.state_dict(), engine.config))
    batch = random_batch(size, seed)
    images = normalize(batch)
    ids_shuffle = plan.mask.int().argsort(dim=1, stable=True)
    tokens = size.model.grid[0] * size.model.grid[1]
    masks = dict(zip(size.model.inputs, plan.mask.long().split(tokens, dim=1), strict=True))
    kept = ids_shuffle[:, : size.model.keep]
    selection = Selection(ids_keep=kept, ids_restore=ids_shuffle.argsort(dim=1), masks=masks)
    expected = plain.losses(plain(images, selection), images, masks)
    for name, loss in engine(batch, plan).items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4), name


def test_a_quick_step_writes_complete_rows(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert step.main(["--quick", "--attention", "eager", "--threads", "1", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    table = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"omnitrunk", "engine"} & {row["contender"] for row in table}
    for row in table:
        assert row["p10"] <= row["median"] <= row["p90"] and row["speedup_median"] > 0
        assert row["threads"] == 1 and row["device"] and row["commit"] and row["command"]
        assert f"| {row['benchmark']} | {row['contender']} | {row['part']} |" in printed
    assert "floor" in printed.lower()

"""Interleaved timing: who takes a turn when, ratios inside a round, rows, files of rows."""

from __future__ import annotations

import json
import math
import time

import pytest

from omnitrunk.bench import harness


def test_contenders_take_turns_and_warmup_is_dropped():
    calls = []

    def contender(name):
        def run():
            calls.append(name)
            return {"total": float(len(calls))}

        return run

    samples = harness.interleave({"a": contender("a"), "b": contender("b")}, rounds=2, warmup=1)
    assert calls == list("ababab")
    assert samples == {"a": {0: {"total": 3.0}, 1: {"total": 5.0}}, "b": {0: {"total": 4.0}, 1: {"total": 6.0}}}


def test_slow_contenders_sit_out_rounds(monkeypatch):
    """Seconds a turn: 10 rounds of 2 fit into a budget of 20, those of 2.1 do not, and the slowest gets three turns."""
    clock = [0.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])

    def contender(seconds):
        def run():
            clock[0] += seconds
            return {"total": seconds}

        return run

    costs = {"slowest": 99.0, "quick": 2.0, "slow": 2.1}
    samples = harness.interleave({name: contender(cost) for name, cost in costs.items()}, rounds=10, budget=20.0)
    rounds = {name: list(turns) for name, turns in samples.items()}
    assert rounds == {"slowest": [0, 4, 8], "quick": list(range(10)), "slow": [0, 2, 4, 6, 8]}
    assert harness.paired_ratios(samples["slowest"], samples["quick"], "total") == [49.5] * 3
    assert harness.paired_ratios(samples["quick"], samples["slowest"], "total") == [2 / 99] * 3


@pytest.mark.parametrize("rounds, longest", [(1, 1), (4, 1), (5, 2), (10, 4), (20, 8)])
def test_everyone_gets_three_turns(rounds, longest):
    assert harness.stride(1.0, rounds, math.inf) == 1
    assert harness.stride(1.0, rounds, 0.0) == longest


def test_only_the_settled_call_is_timed():
    sleeps = iter([0.05, 0.05, 0.0])
    assert harness.timed(lambda: time.sleep(next(sleeps)), settle=2)()["wall"] < 0.05
    assert next(sleeps, None) is None


def test_no_rounds_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        harness.interleave({}, rounds=0)


def test_spread_interpolates():
    assert harness.spread([4.0, 1.0, 3.0, 2.0]) == pytest.approx({"median": 2.5, "p10": 1.3, "p90": 3.7})


def test_ratios_are_formed_inside_a_round():
    """The machine slows down tenfold in mid-run: the ratio of each round is 2, whatever the medians say."""
    times = {"slow": [2.0, 2.0, 20.0], "fast": [1.0, 1.0, 10.0]}
    samples = {name: {i: {"total": value} for i, value in enumerate(values)} for name, values in times.items()}
    assert harness.paired_ratios(samples["slow"], samples["fast"], "total") == [2.0, 2.0, 2.0]
    first, second = harness.rows("case", samples, {"commit": "abc"})
    assert first["speedup_median"] == 1.0 and first["median"] == 2.0 and first["turns"] == 3
    assert second["speedup_median"] == second["speedup_p10"] == second["speedup_p90"] == 2.0
    assert second["baseline"] == "slow" and second["commit"] == "abc" and second["unit"] == "s"


def test_a_part_that_the_baseline_lacks_has_no_ratio():
    table = harness.rows("case", {"a": {0: {"total": 1.0}}, "b": {0: {"extra": 2.0, "total": 4.0}}}, {})
    by_part = {(row["contender"], row["part"]): row for row in table}
    assert "speedup_median" not in by_part["b", "extra"]
    assert by_part["b", "total"]["speedup_median"] == 0.25
    assert "| case | b | total | 4000.00 [4000.00-4000.00] | 0.25 [0.25-0.25] |" in harness.markdown(table)


def test_json_lines_are_added_to_what_is_there(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    harness.append_json(path, [{"a": 1}])
    harness.append_json(path, [{"b": 2}, {"c": 3}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert list(path.parent.iterdir()) == [path]


def test_rows_that_are_measured_again_are_replaced(tmp_path):
    path = tmp_path / "rows.jsonl"
    old = [{"case": 1, "device": "x", "time": 5}, {"case": 1, "device": "y", "time": 6}, {"other": 7}]
    harness.append_json(path, old)
    new = [{"case": 1, "device": "x", "time": 8}, {"case": 1, "device": "x", "time": 9}]
    harness.replace_json(path, new, ("case", "device"))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [*old[1:], *new]

"""What a run says of a folder that is finished, and what starting afresh leaves alone."""

from __future__ import annotations

from omnitrunk.engine import durable
from omnitrunk.engine.checkpoint import complete
from omnitrunk.engine.train import train
from tests.engine.tiny import tiny


def test_overwriting_spares_what_somebody_put_between_checkpoints_and_samples(tmp_path):
    run = tmp_path / "run"
    assert train(tiny(run, steps=2)) == 0
    kept = [run / "checkpoints" / name for name in ("best", "step-00000002-copy")] + [run / "samples" / "step-mine.png"]
    gone = [run / "checkpoints" / ".step-00000009.aside", run / "samples" / "step-00000002.png"]
    for path in (*kept, *gone):
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if path.parent.name == "checkpoints" else path.write_text("mine")
    assert train(tiny(run, steps=1, optimizer={"warmup_steps": 0}, run={"overwrite": True})) == 0
    assert all(path.exists() for path in kept) and not any(path.exists() for path in gone)
    assert [path.name for path in complete(run)] == ["step-00000001"]


def test_overwriting_leaves_no_empty_folder(tmp_path):
    run = tmp_path / "run"
    assert train(tiny(run, steps=2)) == 0
    (run / "samples").mkdir()
    durable.aside(run / "samples" / "step-00000002.png").write_text("cut short")
    assert train(tiny(run, steps=2, run={"overwrite": True})) == 0
    assert not (run / "samples").exists()


def test_a_finished_run_says_how_far_it_came_and_what_it_has_not_seen(tmp_path, capsys):
    assert train(tiny(tmp_path / "run", steps=4)) == 0
    capsys.readouterr()
    assert train(tiny(tmp_path / "run", steps=3, optimizer={"lr": 2e-3})) == 0
    changes = "run.steps 4 -> 3, optimizer.lr 0.001 -> 0.002"
    said = f"run is finished, 4 steps; changed since and not trained: {changes}; --run.overwrite true starts afresh\n"
    assert capsys.readouterr().out.endswith(said)

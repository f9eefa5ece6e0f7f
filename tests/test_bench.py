"""The measuring stand: its arithmetic, the plain peer against stored numbers of the published code, trial runs."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from omnitrunk.bench import harness, kernels, machine, plain_masking, step, stopwatch
from omnitrunk.bench.case import OURS
from omnitrunk.bench.cases import CASES as OPERATIONS
from omnitrunk.bench.flops import step_flops
from omnitrunk.bench.plain_layers import ATTENTIONS, resized_positions, sincos_table
from omnitrunk.bench.plain_masking import Selection
from omnitrunk.bench.plain_multimae import PlainConfig, PlainMultiMAE, normalize, standardize_depth
from omnitrunk.bench.sizes import SIZES, random_batch
from omnitrunk.bench.worker import Worker
from omnitrunk.models import MultiMAE
from omnitrunk.models.official.state_dicts import to_official

FIXTURES = Path(__file__).parent / "fixtures" / "multimae"
CASES = ("case_a", "case_b")


# The harness


def test_contenders_take_turns_and_warmup_is_dropped():
    calls = []

    def contender(name):
        def run():
            calls.append(name)
            return {"total": float(len(calls))}

        return run

    samples = harness.interleave({"a": contender("a"), "b": contender("b")}, rounds=2, warmup=1)
    assert calls == list("ababab")
    assert samples == {"a": [{"total": 3.0}, {"total": 5.0}], "b": [{"total": 4.0}, {"total": 6.0}]}


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
    slow, fast = [2.0, 2.0, 20.0], [1.0, 1.0, 10.0]
    assert harness.paired_ratios(slow, fast) == [2.0, 2.0, 2.0]
    samples = {"slow": [{"total": value} for value in slow], "fast": [{"total": value} for value in fast]}
    first, second = harness.rows("case", samples, {"commit": "abc"})
    assert first["speedup_median"] == 1.0 and first["median"] == 2.0 and first["rounds"] == 3
    assert second["speedup_median"] == second["speedup_p10"] == second["speedup_p90"] == 2.0
    assert second["baseline"] == "slow" and second["commit"] == "abc" and second["unit"] == "s"


def test_a_part_that_the_baseline_lacks_has_no_ratio():
    table = harness.rows("case", {"a": [{"total": 1.0}], "b": [{"extra": 2.0, "total": 4.0}]}, {})
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


def test_every_row_says_where_it_comes_from():
    context = machine.context(3, machine.Neighbors())
    assert context["threads"] == 3 and context["torch"] == torch.__version__
    assert {"command", "device", "commit", "triton", "python", "cores_of_others"} <= set(context)


def test_own_work_is_not_a_neighbors(monkeypatch):
    """Of three busy seconds in ten, this process and its children had two."""
    readings = iter([(0.0, 5.0, 1.0), (10.0, 8.0, 3.0)])
    monkeypatch.setattr(machine.Neighbors, "_readings", staticmethod(lambda: next(readings)))
    cores = machine.Neighbors().cores()
    assert cores == pytest.approx(0.1)
    assert machine.disturbance({"cores_of_others": cores}) == "other processes took 0.10 cores meanwhile"


def test_rates_are_positive():
    assert all(rate > 1e6 for rate in machine.matmul_rates(0.05, sizes=(64,)).values())
    assert machine.memory_bandwidth(0.01, megabytes=1) > 1e6


# Workers


def echo(value, threads):
    """A contender that tells its process, its thread setting and what it was built with."""
    return lambda: {
        "process": os.getpid(), "value": value, "threads": int(os.environ["OMP_NUM_THREADS"]) == threads
    }  # fmt: skip


def failing_build():
    """Stands for a contender whose model cannot be built."""
    raise ValueError("no such size")


def failing_run():
    """A contender that fails when it is run."""
    return lambda: {"total": 1 / 0}


def test_workers_are_processes_of_their_own(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with Worker(echo, 1.0, 1, threads=1) as first, Worker(echo, 2.0, 3, threads=3) as second:
        answers = first(), second(), first()
    assert [answer["value"] for answer in answers] == [1.0, 2.0, 1.0]
    assert answers[0]["process"] == answers[2]["process"] not in (answers[1]["process"], os.getpid())
    assert all(answer["threads"] for answer in answers)
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_worker_tells_why_it_failed():
    with pytest.raises(RuntimeError, match="no such size"):
        Worker(failing_build, threads=1)
    with Worker(failing_run, threads=1) as worker, pytest.raises(RuntimeError, match="ZeroDivisionError"):
        worker()


# The plain peer against the published code


def fixture(name: str) -> dict[str, torch.Tensor]:
    path = FIXTURES / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"needs the stored numbers of the published code, {path}")
    return load_file(path)


def case_config(case: str, attention: str = "eager") -> PlainConfig:
    fixture(f"{case}_io")
    with safe_open(FIXTURES / f"{case}_io.safetensors", "pt") as file:
        stored = json.loads(file.metadata()["config"])
    return PlainConfig(
        inputs=tuple(stored["in_domains"]),
        outputs=(*stored["out_domains"], "norm_rgb"),
        image_size=tuple(stored["image"]),
        patch=stored["patch"],
        classes=stored["classes"],
        class_width=stored["dim_class_emb"],
        width=stored["dim"],
        depth=stored["depth"],
        heads=stored["heads"],
        global_tokens=stored["global_tokens"],
        decoder_width=stored["dec_dim"],
        decoder_depth=stored["dec_depth"],
        decoder_heads=stored["dec_heads"],
        keep=stored["num_encoded_tokens"],
        attention=attention,
    )


def case_model(case: str, attention: str = "eager") -> PlainMultiMAE:
    """The model in float64 with the stored weights, every one of which must have its place."""
    model = PlainMultiMAE(case_config(case, attention))
    model.load_state_dict(fixture(f"{case}_weights"))
    return model.double()


def case_inputs(case: str) -> tuple[dict[str, torch.Tensor], Selection]:
    stored = fixture(f"{case}_io")
    inputs = case_config(case).inputs
    images = {task: stored[f"input.{task}"] for task in ("rgb", "depth", "semseg")}
    images = {task: image.double() if image.is_floating_point() else image for task, image in images.items()}
    masks = {task: stored[f"mask.{task}"] for task in inputs}
    return images, Selection(ids_keep=stored["ids_keep"], ids_restore=stored["ids_restore"], masks=masks)


def record(model: PlainMultiMAE) -> dict[str, torch.Tensor]:
    """Fills, during the next forward pass, with the tensors that the published code was asked for."""
    seen = {}

    def keep(module, name, *, entering=False):
        def hook(_module, inputs, output):
            seen[name] = (inputs[0] if entering else output).detach()

        module.register_forward_hook(hook)

    for task, adapter in model.input_adapters.items():
        keep(adapter, f"tokens.{task}")
    keep(model.encoder[0], "encoder_in", entering=True)
    keep(model.encoder, "encoder_out")
    for index, block in enumerate(model.encoder):
        keep(block, f"encoder_block{index}_out")
    for task, decoder in model.output_adapters.items():
        keep(decoder.query_norm, f"dec.{task}.queries", entering=True)
        keep(decoder.context_norm, f"dec.{task}.context", entering=True)
        keep(decoder.decoder, f"dec.{task}.xattn_out")
        keep(decoder.out_proj, f"dec.{task}.transformer_out", entering=True)
        keep(decoder, f"pred.{task}")
    return seen


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_stage_matches_the_published_code(case, attention):
    model, stored = case_model(case, attention), fixture(f"{case}_io")
    seen = record(model)
    model(*case_inputs(case))
    stages = {name for name in stored if name.split(".")[0] in ("tokens", "dec", "pred") or name.startswith("encoder")}
    assert stages == set(seen)
    for name, value in seen.items():
        torch.testing.assert_close(value, stored[name].double(), rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_losses_match_the_published_code(case):
    model, stored = case_model(case), fixture(f"{case}_io")
    images, selection = case_inputs(case)
    predictions = model(images, selection)
    losses = model.losses(predictions, images, selection.masks)
    everywhere = model.losses(predictions, images, {})
    for task in model.config.outputs:
        assert losses[task].item() == pytest.approx(stored[f"loss.{task}"].item(), rel=1e-9)
        assert everywhere[task].item() == pytest.approx(stored[f"loss_unmasked_option.{task}"].item(), rel=1e-9)
    assert losses["loss"].item() == pytest.approx(stored["loss.total"].item(), rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_gradients_match_the_published_code(case):
    model, stored = case_model(case), fixture(f"{case}_grads")
    images, selection = case_inputs(case)
    model.losses(model(images, selection), images, selection.masks)["loss"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    norms = {name.removeprefix("gradnorm."): value for name, value in stored.items() if name.startswith("gradnorm.")}
    assert set(norms) == set(gradients)
    for name, norm in norms.items():
        assert gradients[name].norm().item() == pytest.approx(norm.item(), rel=1e-7), name
        if f"grad.{name}" in stored:
            torch.testing.assert_close(gradients[name], stored[f"grad.{name}"].double(), rtol=1e-6, atol=1e-6)


def test_six_steps_of_training_match_the_published_code():
    model, stored = case_model("case_a"), fixture("case_a_grads")
    images, selection = case_inputs("case_a")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05)
    for number, lr in enumerate(stored["train.lr"].tolist()):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        losses = model.losses(model(images, selection), images, selection.masks)
        losses["loss"].backward()
        values = [losses[name].item() for name in ("depth", "norm_rgb", "rgb", "semseg", "loss")]
        assert values == pytest.approx(stored["train.losses"].view(6, 5)[number].tolist(), rel=1e-9)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values()])
        assert norm.item() == pytest.approx(stored["train.grad_norm"][number].item(), rel=1e-7)
        optimizer.step()
    for name, parameter in parameters.items():
        expected = stored[f"train.final_param_norm.{name}"].item()
        assert parameter.norm().item() == pytest.approx(expected, rel=1e-7), name


def test_position_tables_match_the_published_code():
    """Square and not, and resampled both ways."""
    for name, stored in fixture("posemb").items():
        rows, columns, width, *resampled = re.fullmatch(r"pos_(\d+)x(\d+)_d(\d+)(?:_(\w+)_(\d+)x(\d+))?", name).groups()
        table = sincos_table(int(width), (int(rows), int(columns)))
        if resampled[0]:
            mode, grid = resampled[0], (int(resampled[1]), int(resampled[2]))
            table = resized_positions(table, grid, mode).transpose(1, 2).unflatten(2, grid)
        torch.testing.assert_close(table, stored, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_depth_is_standardized_as_in_the_published_code():
    stored = fixture("preproc")
    torch.testing.assert_close(standardize_depth(stored["depth.in"]), stored["depth.pretrain_standardised"])


@pytest.mark.parametrize("case", CASES)
def test_masks_follow_from_noise_as_in_the_published_code(case):
    stored, config = fixture(f"{case}_io"), case_config(case)
    noise = {task: stored[f"sampler.noise.{task}"] for task in config.inputs}
    counts, shuffle_noise = stored["sampler.samples_per_task"], stored["sampler.shuffle_noise"]
    selection = plain_masking.select(counts, noise, shuffle_noise, config.keep)
    assert torch.equal(selection.ids_keep, stored["ids_keep"])
    assert torch.equal(selection.ids_restore, stored["ids_restore"])
    assert all(torch.equal(selection.masks[task], stored[f"mask.{task}"]) for task in config.inputs)


# The plain peer by itself


def test_drawn_masks_keep_exactly_what_was_asked(seed):
    torch.manual_seed(seed)
    sizes = {"rgb": 6, "depth": 9, "semseg": 4}
    selection = plain_masking.sample(50, sizes, 7, dict.fromkeys(sizes, 1.0))
    mask = torch.cat(list(selection.masks.values()), dim=1)
    assert [selection.masks[task].shape[1] for task in sizes] == list(sizes.values())
    assert (mask == 0).sum(1).tolist() == [7] * 50
    assert (mask.gather(1, selection.ids_keep) == 0).all()
    assert torch.equal(selection.ids_restore.sort(dim=1).values, torch.arange(19).expand(50, -1))


def test_decoded_batches_are_normalized(seed):
    rng = np.random.default_rng(seed)
    depth = torch.from_numpy(rng.random((2, 10, 10, 1)).astype(np.float32))
    rgb = torch.from_numpy(rng.integers(0, 256, (2, 10, 10, 3), dtype=np.uint8))
    classes = torch.from_numpy(rng.integers(0, 5, (2, 5, 5), dtype=np.uint8))
    images = normalize({"rgb": rgb, "depth": depth, "semseg": classes})
    expected = (rgb[1, 3, 4, 2].item() / 255 - 0.406) / 0.225
    assert images["rgb"][1, 2, 3, 4].item() == pytest.approx(expected, abs=1e-5)
    middle = np.sort(depth[0].numpy().astype(np.float64).ravel())[10:90]
    expected = (depth[0].numpy().transpose(2, 0, 1) - middle.mean()) / np.sqrt(middle.var(ddof=1) + 1e-6)
    np.testing.assert_allclose(images["depth"][0].numpy(), expected, atol=1e-5)
    assert images["semseg"].dtype == torch.int64 and torch.equal(images["semseg"], classes.long())


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="multiple of patch"):
        PlainConfig(image_size=(224, 230))
    with pytest.raises(ValueError, match="eager, sdpa"):
        PlainConfig(attention="flash")


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_flops_are_those_of_the_model(depth):
    """Counted on the model itself, forward and backward, as torch counts them."""
    config = replace(SIZES["tiny"].model, decoder_depth=depth)
    size = replace(SIZES["tiny"], model=config)
    model, images = PlainMultiMAE(config), normalize(random_batch(size, 0))
    with FlopCounterMode(display=False) as forward:
        predictions = model(images, model.draw_selection(size.batch))
    with FlopCounterMode(display=False) as backward:
        sum(prediction.sum() for prediction in predictions.values()).backward()
    flops = step_flops(config, least=False)
    assert flops.forward * size.batch == forward.get_total_flops()
    assert flops.backward * size.batch == backward.get_total_flops()
    assert step_flops(config, least=True).step < flops.step


def test_base_is_the_published_size():
    """22.34 GFLOP a sample and 97,917,072 trainable parameters."""
    assert step_flops(PlainConfig(), least=False).forward == pytest.approx(22.34e9, rel=5e-4)
    with torch.device("meta"):
        model = PlainMultiMAE(PlainConfig())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 97_917_072


def test_only_kept_patches_need_projecting():
    flops = [step_flops(SIZES["demo"].model, least=least).projection for least in (False, True)]
    assert flops[1] == pytest.approx(flops[0] * 32 / 192)


# Engine and peer side by side


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


@pytest.mark.parametrize("operation", OPERATIONS)
def test_contenders_of_an_operation_agree(operation, capsys):
    """All contenders of the quick cases run, forward and backward, and none is far from the definition."""
    rates = {"bytes_per_s": 1e10, "flop_per_s": 1e11, "exps_per_s": 1e9}
    for case in OPERATIONS[operation]("cpu", True):
        rows = kernels.measure(case, "cpu", rates, 1)
        assert {row["contender"] for row in rows} == set(case.contenders) and OURS in case.contenders
        both = ["backward", "forward + backward"] if case.backward else []
        assert {row["direction"] for row in rows} == {"forward", *both}
        for row in rows:
            assert row["error"] is None or row["error"] < 1e-4 or "without" in row["contender"], row
            assert row["floor"] > 0 and row["peak_bytes"] >= 0


def test_peak_memory_counts_what_lives_together():
    def run(x):
        first = x + 1
        second = first + 1
        del first
        return second + 1

    x = torch.zeros(250_000)
    assert stopwatch.peak_bytes(run, (x,), [], "cpu") == pytest.approx(2e6, rel=0.01)


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


def test_a_quick_run_prints_a_table_and_writes_rows_and_picture(tmp_path, capsys):
    rows, picture = tmp_path / "rows.jsonl", tmp_path / "roofline.png"
    options = ["--quick", "--op", "sample_mask", "layer_norm", "--threads", "1", "--cpu"]
    assert kernels.main([*options, "--json", str(rows), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        assert row["p10"] <= row["median"] <= row["p90"] and row["commit"] and row["command"] and row["device"]
    assert "| layer_norm | ViT-B: 3200 x 768 | float32 | backward |" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")

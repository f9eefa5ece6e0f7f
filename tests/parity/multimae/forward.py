"""One recorded forward pass: every intermediate tensor, taken from our modules by hooks, predictions and losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from omnitrunk.models import MaskPlan, MultiMAE
from tests.parity.multimae.layout import to_image
from tests.parity.recorder import Recorder
from tests.parity.report import Report

if TYPE_CHECKING:
    from tests.parity.multimae.case import Case


def compare(case: Case, report: Report) -> set[str]:
    """Rows for all recorded tensors of the forward pass; returns the keys that were compared or used."""
    ours = intermediates(case) | losses(case)
    for key in sorted(case.io.keys() & ours.keys()):
        if key.startswith("loss"):
            report.close_to_largest(case.name, key, ours[key], case.io[key], case.precision.loss)
        else:
            report.close(case.name, key, ours[key], case.io[key], case.precision.forward)
    return ours.keys() | {key for key in case.io if key.startswith("input.")}


@torch.no_grad()
def intermediates(case: Case) -> dict[str, Tensor]:
    """Our tensors under the recorded keys."""
    model, batch = case.model(), case.batch()
    plan = case.plan(model.config)
    with Recorder(model) as recorder:
        predictions = model.predict(batch, plan)
    found = tokens(model, batch) | encoder(recorder, len(model.blocks))
    for output, rows in predictions.items():
        found |= decoder(recorder, model, output, plan)
        height, width = model.config.map_shape(output)
        channels = model.config.patch_values(output) // model.config.patch(output) ** 2
        found[f"pred.{output}"] = to_image(rows, channels, (height, width))
    return found


@torch.no_grad()
def losses(case: Case) -> dict[str, Tensor]:
    """The losses of the plan, and those over all positions, each (1,)."""
    found = {}
    for prefix, option in (("loss", False), ("loss_unmasked_option", True)):
        model = case.model(loss_on_unmasked=option)
        values = model(case.batch(), case.plan(model.config))
        values["total"] = values.pop("loss")
        found |= {f"{prefix}.{output}": value.reshape(1) for output, value in values.items()}
    return found


def tokens(model: MultiMAE, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tokens of every input, visible or not, (B, n, D)."""
    found = {}
    for name, tokenizer in model.tokenizers.items():
        index = torch.arange(len(batch[name]) * model.config.tokens(name))
        found[f"tokens.{name}"] = tokenizer(batch[name], index).unflatten(0, (len(batch[name]), -1))
    return found


def encoder(recorder: Recorder, depth: int) -> dict[str, Tensor]:
    """The trunk's sequences (B, K + G, D); a block's residual stream is its stream plus the branch it holds back."""
    found = {"encoder_in": recorder.inputs["blocks"][0], "encoder_out": recorder.outputs["blocks"]}
    for number in range(depth):
        stream, branch = recorder.outputs[f"blocks.{number}"]
        found[f"encoder_block{number}_out"] = stream + branch
    return found


def decoder(recorder: Recorder, model: MultiMAE, output: str, plan: MaskPlan) -> dict[str, Tensor]:
    """What enters a decoder's norms, and what leaves its cross-attention and its blocks."""
    name = f"decoders.{output}"
    return {
        f"dec.{output}.queries": queries(recorder.inputs[f"{name}.query_norm"][0], model, output, plan),
        f"dec.{output}.context": recorder.inputs[f"{name}.context_norm"][0],
        f"dec.{output}.xattn_out": recorder.outputs[f"{name}.cross"],
        f"dec.{output}.transformer_out": recorder.inputs[f"{name}.out"][0],
    }


def queries(rows: Tensor, model: MultiMAE, output: str, plan: MaskPlan) -> Tensor:
    """The full grid (B, n, d) of queries; our decoder norms the visible ones, then one set (n, d) of masked ones."""
    masked = rows[-model.config.tokens(output) :]
    full = masked.repeat(len(plan.ids_keep), 1)
    if source := model.config.masked_like(output):
        full[plan.visible[source]] = rows[: -len(masked)]
    return full.unflatten(0, (-1, len(masked)))

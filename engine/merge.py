"""`omnitrunk merge`: folds joined layers into one weight each, so that a plain model gives the same outputs.

W + sum of lambda W' is computed in float32 or wider and rounded once (models.pathway.merge). Names of the auxiliary
models, a hash of their weights as they were folded, and the final scales go into the file's metadata.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor, uint8

from omnitrunk.engine.weights import Kind, Weights, open_weights, write_weights
from omnitrunk.models import pathway

SCALE = re.compile(r"^(?P<layer>.+)\.pathway\.scales\.(?P<number>\d+)$")


def merge(source: Path, output: Path, kind: Kind = "auto") -> str:
    """Fold the joined layers of a run, a checkpoint or a file of ours into `output`; returns what to say about it.

    Raises ValueError, in one line, where nothing is joined or nothing can be read.
    """
    if output.suffix != ".safetensors":
        raise ValueError(f"{output} must end in .safetensors, which has room for what was folded")
    weights = open_weights(source, kind)
    scales = _scales(weights.tensors)
    if not scales:
        raise ValueError(f"{source} has no joined layers: there is nothing to fold, its weights are plain already")
    metadata = {"omnitrunk": "omnitrunk", "source": f"{weights.path}: {weights.origin}"}
    if weights.config is not None:
        metadata["config"] = json.dumps({name: part for name, part in weights.config.items() if name != "pathway"})
    auxiliaries = [_auxiliary(weights, number, layers) for number, layers in scales.items()]
    write_weights(output, pathway.merge(weights.tensors), metadata | {"auxiliaries": json.dumps(auxiliaries)})
    lines = [f"{weights.path}: {weights.origin}"]
    for auxiliary in auxiliaries:
        values = auxiliary["scales"].values()
        lines.append(
            f"folded {len(values)} layers of {auxiliary['name']}, lambda {min(values):.3g} to {max(values):.3g}, "
            f"mean {fmean(values):.3g}"
        )
    return "\n".join([*lines, f"written to {output}"])


def _scales(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, float]]:
    """The scale of every joined layer, for each auxiliary model."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for name, value in tensors.items():
        if match := SCALE.match(name):
            found[int(match["number"])][match["layer"]] = value.item()
    return dict(sorted(found.items()))


def _auxiliary(weights: Weights, number: int, scales: Mapping[str, float]) -> dict[str, Any]:
    """Name, hash over the folded weights in the order of their names, and scales of an auxiliary model."""
    names = ((weights.config or {}).get("pathway") or {}).get("auxiliaries") or ()
    digest = hashlib.sha256()
    for layer in sorted(scales):
        tensor = weights.tensors[f"{layer}.pathway.auxiliaries.{number}"]
        digest.update(tensor.cpu().contiguous().view(uint8).numpy())
    name = names[number] if number < len(names) else f"auxiliary {number}"
    return {"name": name, "sha256": digest.hexdigest(), "scales": dict(scales)}

"""Retrieval across modalities: for a sample in one modality, the nearest samples of another, by cosine of features.

Girdhar et al. 2022, section 4.3. Nothing is trained for it, and no pair of modalities was ever shown to the model
together, so what is found lies in the shared weights. Two things count as found: the same sample, which is known by its
class and the name of its file without suffix; and, that one left out, a sample of the same class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from omnitrunk.engine.data import SampleIndex, open_index
from omnitrunk.engine.evaluation.features import model_features
from omnitrunk.engine.evaluation.ranking import average_precisions, chance_average_precision, first_hits, ranks
from omnitrunk.engine.evaluation.samples import collect, find_data
from omnitrunk.models import build_model

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig

ROWS = 1024
"""Queries compared at a time: bounds the memory of the table of similarities."""
WITHIN = (1, 5, 10)
"""Places that recall is counted up to."""
COLUMNS = (*(f"recall@{places}" for places in WITHIN), "mean rank", "class@1", "class mAP")
CHANCE = "/chance"
"""Ends the name of a figure of a random order."""
UNTRAINED = "/untrained"
"""Ends the name of a figure of the model at its random start."""
BRIEF = ("/recall@1", "/class@1")
"""Ends of the names of the figures that belong into the log of a run."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The val split in one modality."""

    features: Tensor
    """float32 (samples, D), of length 1."""
    samples: np.ndarray
    """str (samples,): CLASS/STEM of each."""
    classes: np.ndarray
    """str (samples,)."""
    positions: np.ndarray
    """int64 (samples,): their places in the index of the split."""


def retrieve(config: RunConfig, model: nn.Module, device: torch.device, *, brief: bool) -> dict[str, float]:
    """ "PAIR/FIGURE" of each pair of evaluate.retrieval, and "PAIR/FIGURE/chance" of a random order; see `figures`.

    Unless it is `brief`, "PAIR/FIGURE/untrained" says what the same model finds at its random start: a clip and a
    picture of one scene have the same colors, and look alike to any network.
    """
    models = {"": model}
    if not brief:
        models[UNTRAINED] = build_model(config.model, config.run.seed).to(device)
    return {
        f"{pair}/{figure}{which}": value
        for which, sides in read_sides(config, models, device).items()
        for pair, (query, gallery) in config.evaluate.pairs.items()
        for figure, value in figures(sides[query], sides[gallery], pair).items()
        if not which or not figure.endswith(CHANCE)
    }


def read_sides(config: RunConfig, models: Mapping[str, nn.Module], device: torch.device) -> dict[str, dict[str, Side]]:
    """The val split in every modality that a pair names, as each of the models sees it."""
    names = dict.fromkeys(name for pair in config.evaluate.pairs.values() for name in pair)
    sides = {name: _read_side(config, models, device, name) for name in names}
    return {which: {name: side[which] for name, side in sides.items()} for which in models}


def _read_side(config: RunConfig, models: Mapping[str, nn.Module], device: torch.device, name: str) -> dict[str, Side]:
    data, modalities = find_data(config, name)
    spaces = {
        which: model_features(model, modalities, device, config.run.precision, config.evaluate)
        for which, model in models.items()
    }
    found = collect(data, data.val_split, modalities, spaces, device)
    index = open_index(data, data.val_split, modalities)
    classes = np.array(index.classes)[found.labels.cpu().numpy()]
    stems = [_stem(index, position, modalities[0]) for position in found.positions.tolist()]
    samples = np.array([f"{label}/{stem}" for label, stem in zip(classes, stems, strict=True)])
    return {
        which: Side(
            features=functional.normalize(vectors, dim=1),
            samples=samples,
            classes=classes,
            positions=found.positions,
        )
        for which, vectors in found.values.items()
    }


def _stem(index: SampleIndex, position: int, modality: str) -> str:
    """The file's name without suffix; members of archives may name their modality before it."""
    return Path(index.path(position, modality).rpartition(":")[2]).stem.removesuffix(f".{modality}")


def figures(query: Side, gallery: Side, pair: str) -> dict[str, float]:
    """What is found of queries in a gallery; each figure is followed by that of a random order, "FIGURE/chance".

    Of the same sample recall@1, @5 and @10, and its mean rank, 1 being best, over the queries whose sample is in the
    gallery; of the same class, class@1, how often the nearest other sample is of it, and class mAP of the others. Those
    of which there is nothing in the gallery are left out; ValueError where that is all.
    """
    own, (labels, theirs) = _places(query.samples, gallery.samples), _numbers(query.classes, gallery.classes)
    paired = own >= 0
    same_class, others = np.bincount(theirs, minlength=labels.max() + 1)[labels] - paired, len(theirs) - paired
    known = same_class > 0
    if not paired.any() and not known.any():
        raise ValueError(
            f"evaluate.retrieval {pair}: the val splits share no sample and no class, so nothing can be found; "
            "use data sets with the same class names"
        )
    rank, first, precision = _search(query.features, gallery.features, own, labels, theirs)
    found = {}
    if paired.any():
        found |= _sample_figures(rank[paired], len(theirs))
    if known.any():
        found |= {
            "class@1": first[known].mean().item(),
            "class@1/chance": (same_class[known] / others[known]).mean().item(),
            "class mAP": precision[known].mean().item(),
            "class mAP/chance": chance_average_precision(same_class[known], others[known]).mean().item(),
        }
    return found


def _search(
    query: Tensor, gallery: Tensor, own: np.ndarray, labels: np.ndarray, theirs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64 (Q,) each: rank of the own sample; of the others, if the first is of the class, and average precision.

    They mean nothing where there is no own sample, or no other of the class.
    """
    places, classes, of_gallery = (torch.from_numpy(values).to(query.device) for values in (own, labels, theirs))
    columns = torch.arange(len(gallery), device=query.device)
    blocks = []
    for rows in torch.arange(len(query), device=query.device).split(ROWS):
        similarity, itself = query[rows] @ gallery.T, places[rows, None] == columns
        rank = ranks(similarity, places[rows].clamp(min=0))
        relevant = (classes[rows, None] == of_gallery) & ~itself
        similarity = similarity.masked_fill(itself, -torch.inf)
        found = first_hits(similarity, relevant), average_precisions(similarity, relevant)
        blocks.append(torch.stack([rank, *found]))
    return tuple(torch.cat(blocks, dim=1).cpu().numpy())


def _sample_figures(rank: np.ndarray, gallery: int) -> dict[str, float]:
    found = {}
    for places in WITHIN:
        found[f"recall@{places}"] = (rank <= places).mean().item()
        found[f"recall@{places}{CHANCE}"] = min(1.0, places / gallery)
    return {**found, "mean rank": rank.mean().item(), f"mean rank{CHANCE}": (gallery + 1) / 2}


def _places(wanted: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """int64: where each of the wanted samples is in the gallery, or -1; ValueError where two there have one name."""
    places: dict[str, int] = {}
    for place, name in enumerate(gallery.tolist()):
        if places.setdefault(name, place) != place:
            raise ValueError(f"evaluate.retrieval: two val samples are called {name}; give their files other names")
    return np.array([places.get(name, -1) for name in wanted.tolist()], dtype=np.int64)


def _numbers(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class names of both sides as numbers that agree."""
    numbers = np.unique(np.concatenate([query, gallery]), return_inverse=True)[1]
    return numbers[: len(query)], numbers[len(query) :]


def table(scores: Mapping[str, float], pairs: Iterable[str]) -> str:
    """The figures of all pairs as text; below each those of the untrained model and of a random order."""
    lines = ["retrieval", f"  {'':18}" + "".join(f"{column:>11}" for column in COLUMNS)]
    for pair in pairs:
        for label, end in ((pair, ""), ("  untrained", UNTRAINED), ("  by chance", CHANCE)):
            cells = (_cell(column, scores.get(f"{pair}/{column}{end}")) for column in COLUMNS)
            lines.append(f"  {label:18}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if column == "mean rank" else f"{100 * value:.2f}%"

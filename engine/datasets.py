"""The data sets of a run: where the samples of each come from, and what they consist of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from omnitrunk.engine.data import DataConfig
from omnitrunk.engine.messages import one_line
from omnitrunk.models import ClassifierConfig, OmnivoreConfig, PointClassifierConfig

if TYPE_CHECKING:
    from omnitrunk.engine.config import RunConfig

ONLY = "data"
"""What the data set of a model is called that knows no data sets by name."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One of them."""

    name: str
    """As the model knows it."""
    data: DataConfig
    modalities: tuple[str, ...]
    """What each sample consists of."""
    section: str
    """Where its fields stand in the configuration: "data", or "mixture.sets.NAME"."""

    @property
    def prefix(self) -> str:
        """What begins a line about it: nothing where it is the only one."""
        return "" if self.section == "data" else f"{self.name}: "


def data_sets(config: RunConfig) -> dict[str, DataSet]:
    """All data sets of a run by name, in the order of the model's heads; without a mixture it is one alone.

    ValueError where model and mixture do not name the same ones, or a field is none of [data].
    """
    known: Mapping[str, tuple[str, ...]] = getattr(config.model, "data_sets", None) or {ONLY: config.model.reads}
    given = config.mixture.sets
    if len(known) == 1 and not given:
        ((name, modalities),) = known.items()
        return {name: DataSet(name=name, data=config.data, modalities=modalities, section="data")}
    if unknown := set(given) - set(known):
        raise ValueError(f"mixture.sets.{min(unknown)} is no data set of the model; it has {', '.join(known)}")
    if missing := [name for name in known if name not in given]:
        raise ValueError(
            f"the model has the data sets {', '.join(known)}, but there is no [mixture.sets.{missing[0]}]: add it, "
            "with the fields of [data] that are different there, or take the data set out of the model"
        )
    return {
        name: DataSet(
            name=name, data=_changed(config.data, name, given[name]), modalities=kinds, section=f"mixture.sets.{name}"
        )
        for name, kinds in known.items()
    }


def dataset_name(config: RunConfig, one: DataSet) -> str | None:
    """The name by which the model knows a data set; None where it knows none by name."""
    return one.name if getattr(config.model, "data_sets", None) else None


def micro_batches(config: RunConfig, one: DataSet) -> int:
    """Parts that a batch of the data set is cut into on every process."""
    return config.mixture.accumulate.get(one.name, config.optimizer.accumulate)


def batches_of_each(config: RunConfig, rows: Mapping[str, int]) -> dict[str, int]:
    """Batches of each data set in an epoch of the run, at least one; `rows` are those of one pass over each."""
    passes = config.mixture.repeat
    return {
        name: max(1, int(passes.get(name, 1) * rows[name] / one.data.batch)) for name, one in data_sets(config).items()
    }


def check_head(config: RunConfig, one: DataSet, labels: int) -> None:
    """ValueError where a data set has more labels than its head tells apart."""
    if not isinstance(config.model, (ClassifierConfig, PointClassifierConfig, OmnivoreConfig)):
        return
    known = config.model.classes
    head = known[one.name] if isinstance(known, Mapping) else known
    if labels > head:
        raise ValueError(
            f"{one.data.root} has labels up to {labels - 1}, but the head "
            f"{f'of {one.name} ' if one.section != 'data' else ''}tells {head} classes apart: give the model {labels}"
        )


def _changed(data: DataConfig, name: str, changes: Mapping[str, Any]) -> DataConfig:
    """The section [data] with other values for some of its fields, of the types that they have there."""
    from jsonargparse import ArgumentError, ArgumentParser

    known = [item.name for item in fields(DataConfig)]
    if unknown := [field for field in changes if field not in known]:
        raise ValueError(f"mixture.sets.{name}.{unknown[0]} is no field of [data]; it has {', '.join(known)}")
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(DataConfig)
    values = {field: getattr(data, field) for field in known} | dict(changes)
    try:
        return DataConfig(**parser.parse_object(values).as_dict())
    except ArgumentError as error:
        raise ValueError(f"mixture.sets.{name}: {one_line(error)}") from error
    except ValueError as error:
        raise ValueError(str(error).replace("data.", f"mixture.sets.{name}.", 1)) from error

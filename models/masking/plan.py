"""What all plans of a batch have in common: made on the host as tensors, sent to the device as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

AnyPlan = TypeVar("AnyPlan", bound="Plan")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Base of dataclasses whose fields are tensors, dicts of tensors, plans, or values that stay as they are."""

    def to(self: AnyPlan, device: torch.device | str, *, non_blocking: bool = True) -> AnyPlan:
        """The plan on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: AnyPlan) -> AnyPlan:
        """The plan in page-locked memory, from which copies to a GPU do not wait."""
        return self._map(Tensor.pin_memory)

    def _map(self: AnyPlan, change: Callable[[Tensor], Tensor]) -> AnyPlan:
        changed: dict[int, Tensor] = {}  # fields may share a tensor; it is moved once

        def apply(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: apply(tensor) for name, tensor in value.items()}
            if isinstance(value, Plan):
                return value._map(change)
            if not isinstance(value, Tensor):
                return value
            if id(value) not in changed:
                changed[id(value)] = change(value)
            return changed[id(value)]

        return type(self)(**{field.name: apply(getattr(self, field.name)) for field in fields(self)})

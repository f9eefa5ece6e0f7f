"""The optimizer: its settings, and what every kind of update has in common. The kinds: engine.adamw and engine.sgd."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The kind of update, the phases of its learning rate, and how much data one step averages over."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019), or stochastic gradient descent with momentum."""
    lr: float = 1e-4
    """Peak learning rate, as it is used: nothing is scaled behind your back (papers often give it per 256 samples)."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    weight_decay: float = 0.05
    """Decay per step relative to the learning rate, on the parameters that the model says decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW: decay of the running first and second moment."""
    eps: float = 1e-8
    """AdamW: added to the root of the second moment."""
    momentum: float = 0.9
    """SGD: decay of the running sum of gradients."""
    warmup_steps: int = 0
    """Steps from warmup_lr up to lr."""
    warmup_lr: float = 0.0
    """Learning rate of the first step of the warm-up."""
    cooldown_steps: int = 0
    """Steps at the end, in which the learning rate goes straight from min_lr to final_lr."""
    final_lr: float = 0.0
    """Learning rate at the end of the cool-down."""
    clip: float = 0.0
    """Longest allowed gradient, as a norm over all parameters; 0 never clips."""
    ema_decay: float = 0.0
    """Decay of the running average of the weights; 0 keeps no average."""
    accumulate: int = 1
    """Micro-batches that data.batch is cut into on every process; changes memory, not the result. Except for point
    clouds: batch normalization, in their tokenizer and heads, takes its statistics over one micro-batch."""

    def __post_init__(self) -> None:
        if not (0 <= self.min_lr <= self.lr and self.lr > 0):
            raise ValueError(f"optimizer.min_lr = {self.min_lr} must lie between 0 and a positive lr, here {self.lr}")
        if self.kind not in ("adamw", "sgd"):
            raise ValueError(f"optimizer.kind = {self.kind!r} must be adamw or sgd")
        if not all(0 <= value < 1 for value in (*self.betas, self.momentum, self.ema_decay)):
            raise ValueError(
                f"optimizer.betas {self.betas}, momentum {self.momentum} and ema_decay {self.ema_decay} must lie in "
                "[0, 1)"
            )
        if self.accumulate < 1:
            raise ValueError(f"optimizer.accumulate = {self.accumulate} must be 1 or more")
        for name in ("eps", "weight_decay", "clip", "warmup_steps", "warmup_lr", "cooldown_steps", "final_lr"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} = {getattr(self, name)} must not be negative")


class Optimizer(ABC):
    """Parameters as lists, the averages of their weights, and a state by name; a subclass updates them."""

    def __init__(self, groups: Sequence[dict[str, Any]], config: OptimizerConfig) -> None:
        """`groups` are `model.parameter_groups(weight_decay)`: dicts with params, names, weight_decay and lr_scale.

        A group without an lr_scale has 1.
        """
        self._config = config
        self.names: list[str] = [name for group in groups for name in group["names"]]
        self.params: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        self._decays = [group["weight_decay"] for group in groups for _ in group["params"]]
        self._lr_scales = [group.get("lr_scale", 1.0) for group in groups for _ in group["params"]]
        self.ema = [p.detach().float().clone() for p in self.params] if config.ema_decay else None

    @abstractmethod
    def update(self, lr: float) -> tuple[Tensor, Tensor]:
        """Apply the gradients in `.grad`: (norm before the clip, 1 where it was not finite and nothing changed).

        Parameters without a gradient rest: neither they nor what is kept of them change, and they do not decay. Only
        their averages go on towards them.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """What is kept from update to update, by name; the averages excepted."""

    def clear_gradients(self) -> None:
        """Give the gradients' memory back; the next backward pass writes instead of adding."""
        for parameter in self.params:
            parameter.grad = None

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the model's parameters are the averaged ones; nothing is copied, and nothing changes without any."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def averaged(self, model: nn.Module) -> dict[str, Tensor] | None:
        """The state dict of `model` with the averaged weights in place of the current ones; None without an average."""
        if self.ema is None:
            return None
        return model.state_dict() | dict(zip(self.names, self.ema, strict=True))

    def load_state_dict(self, state: dict[str, Tensor], average: dict[str, Tensor] | None) -> None:
        """Take over `state_dict()` and the weights of `averaged()`, by name.

        An average that is asked for now and was not kept before starts from the weights the model has at this moment.
        """
        for name, value in self.state_dict().items():
            if name not in state:
                raise ValueError(
                    f"the optimizer has no {name} there: set optimizer.kind back, or use another run.folder"
                )
            value.copy_(state[name])
        for name, parameter, value in zip(self.names, self.params, self.ema or [], strict=False):
            value.copy_(parameter.detach() if average is None else average[name])

    def _average(self, places: Sequence[int], skipped: Tensor) -> None:
        """Move the averages at some places towards the parameters, by nothing where the update was skipped."""
        if not self.ema or not places:
            return
        averages = at(places, self.ema)
        change = torch._foreach_sub([parameter.detach() for parameter in at(places, self.params)], averages)
        torch._foreach_mul_(change, (1 - self._config.ema_decay) * skipped.logical_not().float())
        torch._foreach_add_(averages, change)

    def _swap(self) -> None:
        for place, parameter in enumerate(self.params if self.ema else ()):
            parameter.data, self.ema[place] = self.ema[place], parameter.data


def at(places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """The values at some places."""
    return [values[place] for place in places]


def gradient_norm(grads: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, a tensor without dimensions on their device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))

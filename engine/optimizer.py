"""The optimizer: its settings, what every kind of update has in common, and AdamW.

AdamW works on plain lists of tensors, with the average of the weights (EMA) and the clip inside the same pass; the
other kind is in engine.sgd.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from omnitrunk.engine.pairing import PairedLayer
from omnitrunk.kernels import adamw_
from omnitrunk.kernels.adamw import Pathway


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

        Parameters without a gradient rest: neither they nor what is kept of them change, and they do not decay.
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

    def _swap(self) -> None:
        for place, parameter in enumerate(self.params if self.ema else ()):
            parameter.data, self.ema[place] = self.ema[place], parameter.data


class AdamW(Optimizer):
    """The state of the optimizer: float32 moments, weight averages and a count of updates, all on the device."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], config: OptimizerConfig, pathways: Sequence[PairedLayer] = ()
    ) -> None:
        """`groups` are those of Optimizer, `pathways` are what engine.pairing makes of joined layers."""
        super().__init__(groups, config)
        self._paired = list(pathways)
        self._pathways = self._placed(self.params)
        self._derived = {place for pathway in self._pathways for place in pathway.derived()}
        self.exp_avg = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.params]
        self.exp_avg_sq = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.params]
        self.step = torch.zeros((), dtype=torch.float32, device=self.params[0].device)

    def update(self, lr: float) -> tuple[Tensor, Tensor]:
        """Apply the gradients in `.grad`: (norm before the clip, 1 where it was not finite and nothing changed).

        Parameters without a gradient rest: neither they nor their moments and averages change, and they do not decay.
        The count of updates is that of the run, so one that begins late starts with smaller steps, as in a warm-up.
        """
        moving = [place for place, param in enumerate(self.params) if param.grad is not None or place in self._derived]
        params = at(moving, self.params)
        result = adamw_(
            [parameter.detach() for parameter in params],
            [parameter.grad for parameter in params],
            at(moving, self.exp_avg),
            at(moving, self.exp_avg_sq),
            self.step,
            lr=lr,
            betas=self._config.betas,
            eps=self._config.eps,
            weight_decay=at(moving, self._decays),
            lr_scale=at(moving, self._lr_scales),
            max_norm=self._config.clip or None,
            emas=at(moving, self.ema) if self.ema else None,
            ema_decay=self._config.ema_decay,
            pathways=self._pathways if len(moving) == len(self.params) else self._placed(params),
        )
        for layer in self._paired:
            layer.updated()
        return result

    def state_dict(self) -> dict[str, Tensor]:
        """Moments under "exp_avg.NAME" and "exp_avg_sq.NAME", and "step"."""
        moments = {f"exp_avg.{name}": value for name, value in zip(self.names, self.exp_avg, strict=True)}
        squares = {f"exp_avg_sq.{name}": value for name, value in zip(self.names, self.exp_avg_sq, strict=True)}
        return moments | squares | {"step": self.step}

    def _placed(self, params: Sequence[nn.Parameter]) -> list[Pathway]:
        """The pathways, with the places that their parameters have in a list."""
        places = {id(parameter): place for place, parameter in enumerate(params)}
        return [layer.placed(places) for layer in self._paired]


def at(places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """The values at some places."""
    return [values[place] for place in places]

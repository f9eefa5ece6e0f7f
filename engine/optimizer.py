"""AdamW over plain lists of tensors, with the average of the weights (EMA) and the clip inside the same pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnitrunk.engine.pairing import PairedLayer
from omnitrunk.kernels import adamw_


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) with warm-up and cosine, and how much data one step averages over."""

    lr: float = 1e-4
    """Peak learning rate, as it is used: nothing is scaled behind your back (papers often give it per 256 samples)."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    weight_decay: float = 0.05
    """Decay per step relative to the learning rate, on the parameters that the model says decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    warmup_steps: int = 0
    """Steps from a learning rate of 0 up to lr."""
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
        if not all(0 <= value < 1 for value in (*self.betas, self.ema_decay)):
            raise ValueError(f"optimizer.betas {self.betas} and ema_decay {self.ema_decay} must lie in [0, 1)")
        if self.accumulate < 1:
            raise ValueError(f"optimizer.accumulate = {self.accumulate} must be 1 or more")
        for name in ("eps", "weight_decay", "clip", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} = {getattr(self, name)} must not be negative")


class AdamW:
    """The state of the optimizer: float32 moments, weight averages and a count of updates, all on the device."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], config: OptimizerConfig, pathways: Sequence[PairedLayer] = ()
    ) -> None:
        """`groups` are `model.parameter_groups(weight_decay)`: dicts with params, names, weight_decay and lr_scale.

        A group without an lr_scale has 1. `pathways` are what engine.pairing makes of joined layers.
        """
        self._config = config
        self.names: list[str] = [name for group in groups for name in group["names"]]
        self.params: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        self._decays = [group["weight_decay"] for group in groups for _ in group["params"]]
        self._lr_scales = [group.get("lr_scale", 1.0) for group in groups for _ in group["params"]]
        places = {id(parameter): place for place, parameter in enumerate(self.params)}
        self._paired = list(pathways)
        self._pathways = [layer.placed(places) for layer in self._paired]
        self._derived = {place for pathway in self._pathways for place in pathway.derived()}
        self.exp_avg = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.params]
        self.exp_avg_sq = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self.params]
        self.step = torch.zeros((), dtype=torch.float32, device=self.params[0].device)
        self.ema = [p.detach().float().clone() for p in self.params] if config.ema_decay else None

    def update(self, lr: float) -> tuple[Tensor, Tensor]:
        """Apply the gradients in `.grad`: (norm before the clip, 1 where it was not finite and nothing changed)."""
        result = adamw_(
            [parameter.detach() for parameter in self.params],
            [self._gradient(place) for place in range(len(self.params))],
            self.exp_avg,
            self.exp_avg_sq,
            self.step,
            lr=lr,
            betas=self._config.betas,
            eps=self._config.eps,
            weight_decay=self._decays,
            lr_scale=self._lr_scales,
            max_norm=self._config.clip or None,
            emas=self.ema,
            ema_decay=self._config.ema_decay,
            pathways=self._pathways,
        )
        for layer in self._paired:
            layer.updated()
        return result

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

    def state_dict(self) -> dict[str, Tensor]:
        """Moments under "exp_avg.NAME" and "exp_avg_sq.NAME", and "step"."""
        moments = {f"exp_avg.{name}": value for name, value in zip(self.names, self.exp_avg, strict=True)}
        squares = {f"exp_avg_sq.{name}": value for name, value in zip(self.names, self.exp_avg_sq, strict=True)}
        return moments | squares | {"step": self.step}

    def load_state_dict(self, state: dict[str, Tensor], average: dict[str, Tensor] | None) -> None:
        """Take over `state_dict()` and the weights of `averaged()`, by name.

        An average that is asked for now and was not kept before starts from the weights the model has at this moment.
        """
        for name, value in self.state_dict().items():
            value.copy_(state[name])
        for name, parameter, value in zip(self.names, self.params, self.ema or [], strict=False):
            value.copy_(parameter.detach() if average is None else average[name])

    def _gradient(self, place: int) -> Tensor | None:
        """The gradient of a parameter; None where a pathway derives it, 0 where the loss does not depend on it."""
        gradient = self.params[place].grad
        if gradient is None and place not in self._derived:
            return torch.zeros_like(self.params[place])
        return gradient

    def _swap(self) -> None:
        for place, parameter in enumerate(self.params if self.ema else ()):
            parameter.data, self.ema[place] = self.ema[place], parameter.data

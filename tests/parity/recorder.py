"""What passes through a model's modules, seen by hooks."""

from __future__ import annotations

from typing import Any

from torch import nn


class Recorder:
    """Arguments and result of every call of a model's modules while the context lasts, by the module's name."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.inputs: dict[str, tuple[Any, ...]] = {}
        self.outputs: dict[str, Any] = {}

    def __enter__(self) -> Recorder:
        self.handles = [
            module.register_forward_hook(self._hook(name)) for name, module in self.model.named_modules() if name
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def keep(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.inputs[name], self.outputs[name] = inputs, output

        return keep

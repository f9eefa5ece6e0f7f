"""A stand-in for CUDA graphs on a CPU: operations are recorded, and replayed on the memory that they were recorded on.

As on a GPU, recording runs nothing for good: what was written to memory from outside is put back. As on a GPU, a replay
reads the numbers that are in memory now, and whatever Python decided while recording stays as it was.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero")
"""Operations that make the host wait for the device."""


class Recording(TorchDispatchMode):
    """In place of torch.cuda.graph: records what happens inside into a Graph."""

    def __init__(self, graph, capture_error_mode="global"):
        super().__init__()
        self.graph, self.mode = graph, capture_error_mode
        self.own, self.before = set(), {}

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        options = options or {}
        name = operation._schema.name.split("::")[1]
        assert name not in WAITS, f"{name} waits for the device, which a graph cannot"
        names = [argument.name for argument in operation._schema.arguments]
        written = [
            value
            for argument, value in zip(operation._schema.arguments, arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ] + [options[name] for name in names if name in options and name == "out"]
        for tensor in tree_leaves(written):
            if tensor.untyped_storage().data_ptr() not in self.own:
                self.before.setdefault(id(tensor), (tensor, tensor.clone()))
        result = operation(*arguments, **options)
        if not operation.is_view:
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor) and not any(tensor is other for other in tree_leaves(arguments)):
                    self.own.add(tensor.untyped_storage().data_ptr())
        self.graph.calls.append((operation, arguments, options, result))
        return result

    def __exit__(self, *error):
        super().__exit__(*error)
        for tensor, value in self.before.values():
            tensor.copy_(value)


class Graph:
    """In place of torch.cuda.CUDAGraph."""

    def __init__(self):
        self.calls, self.replays = [], 0

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for operation, arguments, options, result in self.calls:
            if operation.is_view:
                continue
            for place, value in zip(tree_leaves(result), tree_leaves(operation(*arguments, **options)), strict=True):
                if isinstance(place, torch.Tensor) and place is not value:
                    assert place.shape == value.shape, f"{operation}: {place.shape}, then {value.shape}"
                    place.copy_(value)

from __future__ import annotations

import dataclasses
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec

import pytest
import torch

from omnitrunk.kernels import peers
from omnitrunk.kernels.dispatch import OPERATIONS

from . import stand_ins


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(distribution, version, {file: text}) installs a stand-in; STAND_INS is in its reach.

    Libraries that are really installed are out of sight.
    """
    for name in stand_ins.loaded():
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)

    def find(name):
        return PathFinder.find_spec(name, [str(tmp_path)]) if name in stand_ins.LIBRARIES else find_spec(name)

    monkeypatch.setattr(peers, "find_spec", find)
    stand_ins.CALLED.clear()

    def put(distribution, version, files):
        information = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        for file, text in files.items():
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"from {stand_ins.__name__} import STAND_INS\n{text}\n")
        stand_ins.forget()

    stand_ins.forget()
    yield put
    for name in stand_ins.loaded():
        del sys.modules[name]
    stand_ins.forget()


@pytest.fixture
def on_gpu(monkeypatch):
    """on_gpu(major, minor): as if such a GPU were there, and the backends of libraries ran on CPU tensors too."""

    def pretend(major, minor=0):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (major, minor))
        stand_ins.forget()

    for operation in OPERATIONS.values():
        for name in {"flash_attn", "cudnn", "varlen", "xformers", "apex"} & set(operation.backends):
            anywhere = dataclasses.replace(operation.backends[name], devices=("cpu", "cuda"))
            monkeypatch.setitem(operation.backends, name, anywhere)
    yield pretend
    stand_ins.forget()

"""Libraries by others that can serve an operation: whether they are there, which version, whether they load.

All of them are optional. None is imported together with this package: whether a library is installed is read from its
files. Only where a GPU could use it is it imported, once, and a failure (it was built for another torch, say) is a
reason to pass it over like any other.
"""

from __future__ import annotations

import functools
import importlib.metadata
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec

import torch

NO_GPU = "needs an NVIDIA GPU"


@dataclass(frozen=True, kw_only=True)
class Package:
    """A library: how pip and import call it, how to get it, what serves whom, and on which GPUs.

    `distribution` carries the version; all `modules` must be importable. `oldest` and `newest` are the first numbers of
    the compute capabilities served. `note` says what else may go by that name.
    """

    name: str
    distribution: str
    modules: tuple[str, ...]
    install: str
    serves: str
    oldest: int = 8
    newest: int | None = None
    note: str = ""


FLASH_ATTN_4 = Package(
    name="flash_attn 4",
    distribution="flash-attn-4",
    modules=("flash_attn.cute",),
    install="pip install omnitrunk[flash]",
    serves="attention in half precision, heads up to 128 wide",
    oldest=9,
    newest=11,
)
FLASH_ATTN_3 = Package(
    name="flash_attn 3",
    distribution="flash-attn-3",
    modules=("flash_attn_interface",),
    install="build the folder hopper of github.com/Dao-AILab/flash-attention",
    serves="attention in half precision, heads up to 256 wide",
    oldest=9,
    newest=9,
)
FLASH_ATTN_2 = Package(
    name="flash_attn 2",
    distribution="flash-attn",
    modules=("flash_attn.flash_attn_interface",),
    install="pip install flash-attn --no-build-isolation",
    serves="attention in half precision, heads up to 256 wide",
)
CUDNN = Package(
    name="cudnn",
    distribution="torch",
    modules=("torch.backends.cudnn",),
    install="install a torch that is built for CUDA",
    serves="attention in half precision, sequences of one length",
)
VARLEN = Package(
    name="varlen",
    distribution="torch",
    modules=("torch.nn.attention.varlen",),
    install="pip install 'torch>=2.11'",
    serves="attention in half precision, ragged sequences",
)
XFORMERS = Package(
    name="xformers",
    distribution="xformers",
    modules=("xformers.ops.fmha",),
    install="pip install omnitrunk[xformers]",
    serves="attention in half precision",
)
APEX_NORM = Package(
    name="apex (norm)",
    distribution="apex",
    modules=("apex.normalization.fused_layer_norm", "fused_layer_norm_cuda"),
    install="APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation omnitrunk[apex]",
    serves="layer_norm without a residual",
    note="apex on PyPI is another project, not NVIDIA's",
)
APEX_ADAM = Package(
    name="apex (adam)",
    distribution="apex",
    modules=("apex.optimizers", "apex.multi_tensor_apply", "amp_C"),
    install=APEX_NORM.install,
    serves="adamw_ on float32 tensors, where named",
    note=APEX_NORM.note,
)
KNOWN = (FLASH_ATTN_4, FLASH_ATTN_3, FLASH_ATTN_2, CUDNN, VARLEN, XFORMERS, APEX_NORM, APEX_ADAM)


@functools.cache
def installed(module: str) -> bool:
    """Whether a module can be found. Unlike find_spec, this imports no parent of a submodule."""
    top, *inner = module.split(".")
    spec = find_spec(top)
    for name in inner:
        if spec is None or spec.submodule_search_locations is None:
            return False
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    return spec is not None


@functools.cache
def version(distribution: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def absent(package: Package) -> str | None:
    """What is not installed of a package and how to get it, in one line, or None."""
    lacking = next((module for module in package.modules if not installed(module)), None)
    if lacking is None:
        return None
    top = package.modules[0].partition(".")[0]
    if installed(top) and package.note:
        found = f"the {top} installed here ({version(top) or 'of unknown version'}) has no {lacking}"
        return f"{found}, and {package.note}: pip uninstall {top}; {package.install}"
    return f"{package.distribution} is not installed: {package.install}"


@functools.cache
def missing(package: Package) -> str | None:
    """Why a package cannot be used on this machine, in one line, or None."""
    return absent(package) or _gpu_missing(package) or _import_error(package)


def _gpu_missing(package: Package) -> str | None:
    if not torch.cuda.is_available():
        return NO_GPU
    major, minor = torch.cuda.get_device_capability()
    if major < package.oldest:
        return f"needs a GPU of compute capability {package.oldest}.0 or newer, not {major}.{minor}"
    if package.newest is not None and major > package.newest:
        return f"knows GPUs up to compute capability {package.newest}.x, not {major}.{minor}"
    return None


def _import_error(package: Package) -> str | None:
    try:
        for module in package.modules:
            import_module(module)
    except Exception as error:  # whatever a library raises while it loads, it cannot be used
        text = " ".join(f"{type(error).__name__}: {error}".split())
        found = f"{package.distribution} {version(package.distribution)}"
        return f"{found} does not load beside torch {torch.__version__}: {text}"
    return None

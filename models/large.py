"""Networks of many GB: built without memory, then filled tensor by tensor on their device.

A network of 13 billion weights that is first initialised in float32 needs 53 GB and minutes; here
its parameters exist on torch's `meta` device only, until each is replaced by the tensor of a
checkpoint (or of a seed), converted and on its way to the device alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from data.errors import UsageError
from models.shards import TensorFiles
from models.weights import Weights, misfits

__all__ = ["DtypeOf", "build_empty", "fill_from", "fill_uniform", "spread"]

M = TypeVar("M", bound=nn.Module)

DtypeOf = torch.dtype | Callable[[str], torch.dtype]
"""One type of numbers for all parameters, or one for each name."""


class _ParametersOnMeta(TorchFunctionMode):
    """`torch.empty`, of which layers make their weights, gives tensors without memory. Everything
    else is real: tables that are computed when a module is made (angles of rotary positions) are
    in no checkpoint.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See torch."""
        given = dict(kwargs or {})
        if func is torch.empty:
            given["device"] = "meta"
        return func(*args, **given)


def build_empty(make: Callable[[], M]) -> M:
    """The network that `make` makes, in evaluation mode, its large parameters without memory.

    Nothing is initialised and no random state is moved. `fill_from` or `fill_uniform` must follow.
    """
    with torch.random.fork_rng(devices=[]), _ParametersOnMeta():
        net = make()
    return net.eval().requires_grad_(False)


def fill_from(
    net: nn.Module,
    files: TensorFiles,
    what: str,
    *,
    dtype: DtypeOf,
    device: str | torch.device = "cpu",
    layout: str = "",
    threads: int = 4,
) -> Weights:
    """Fill `net` strictly from tensors under its own names, and move it to the device.

    Args:
        net: of `build_empty`; filled in place.
        files: one tensor for each of its names, no other.
        what: the network, for messages.
        dtype: of the parameters; buffers keep theirs.
        device: of parameters and buffers.
        layout: naming convention of the checkpoint, for reports.
        threads: that read and convert.

    Returns:
        Where the weights come from. `sha256` is empty: hashing tens of GB as the network holds
        them takes longer than loading them; recipes hash the files.

    Raises:
        UsageError: missing, left-over or misshapen tensors (nothing is filled then), or numbers
            that are not finite in `dtype`.
    """
    own = net.state_dict()
    for name, first in _tied(net).items():
        # Of tied tensors a checkpoint may hold one or all.
        if (name in files) != (first in files):
            files = _also(files, *((first, name) if name in files else (name, first)))
        elif name in files and not torch.equal(files[name], files[first]):
            raise UsageError(
                f"'{files.source}' holds other numbers for {name} than for {first}, and by its "
                f"config.json they are one ({what}); the config.json is of another model"
            )
    problems = misfits(own, files)
    if problems:
        raise UsageError(
            f"'{files.source}' does not fit {what}; {'; '.join(problems)}. Nothing was loaded: a "
            "part of these weights would be random. Give the whole folder of this model with its "
            "own config.json"
        )
    stored: set[str] = set()

    def tensor(name: str) -> Tensor:
        value = files[name]
        stored.add(str(value.dtype).removeprefix("torch."))
        made = value.to(device=device, dtype=_dtype(dtype, name, own[name]), copy=True)
        if made.is_floating_point() and not bool(torch.isfinite(made).all()):
            raise UsageError(
                f"'{files.source}': {name} is not finite (NaN or infinity) as {made.dtype}; "
                "the file is damaged, or needs another `dtype` (bfloat16, float32)"
            )
        return made

    _assign(net, tensor, threads, device)
    return Weights("file", "", files.source, layout, ", ".join(sorted(stored)))


def fill_uniform(
    net: nn.Module,
    seed: int,
    scale: Callable[[str, Tensor], tuple[float, float]],
    *,
    dtype: DtypeOf,
    device: str | torch.device = "cpu",
    threads: int = 1,
) -> Weights:
    """Fill `net` as `models.weights.fill_seeded` does: the same values on every machine.

    Args:
        net: of `build_empty`; filled in place.
        seed: which of the random networks.
        scale: `(name, tensor) -> (offset, amplitude)`; the tensor has a shape, but no numbers.
        dtype: of the parameters.
        device: of parameters and buffers.
        threads: that draw numbers; 13 billion take two and a half minutes on one.
    """

    own = net.state_dict()

    def tensor(name: str) -> Tensor:
        like = own[name]
        offset, amplitude = scale(name, like)
        stream = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        drawn = stream.random(tuple(like.shape), dtype=np.float32)
        values = torch.from_numpy(np.asarray(offset + amplitude * (2 * drawn - 1)))
        return values.to(device=device, dtype=_dtype(dtype, name, like))

    _assign(net, tensor, threads, device)
    return Weights("random", "", f"seed {seed}")


def spread(name: str, tensor: Tensor) -> tuple[float, float]:
    """A scale for `fill_uniform`: norms about 1, biases small, matrices that keep the size of what
    goes through.
    """
    if tensor.ndim < 2:
        return (1.0, 0.1) if name.endswith("weight") else (0.0, 0.1)
    if "embed" in name or "query" in name:
        return 0.0, 1.0
    return 0.0, math.sqrt(3 / math.prod(tensor.shape[1:]))


def _assign(
    net: nn.Module, tensor: Callable[[str], Tensor], threads: int, device: str | torch.device
) -> None:
    """Replace all parameters; tied ones by one tensor."""
    tied = _tied(net)
    names = [name for name in net.state_dict() if name not in tied]
    with ThreadPoolExecutor(threads) as pool:
        made = dict(zip(names, pool.map(tensor, names), strict=True))
    made |= {name: made[first] for name, first in tied.items()}
    net.load_state_dict(made, assign=True)
    net.requires_grad_(False).to(device)  # what is in no checkpoint: tables of positions


def _tied(net: nn.Module) -> dict[str, str]:
    """Name -> the first name of the same parameter."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    return tied


def _also(files: TensorFiles, name: str, like: str) -> TensorFiles:
    return files.joined(TensorFiles(files.source, {name: (files, like)}))


def _dtype(dtype: DtypeOf, name: str, like: Tensor) -> torch.dtype:
    if not like.is_floating_point():
        return like.dtype
    return dtype(name) if not isinstance(dtype, torch.dtype) else dtype

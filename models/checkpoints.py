"""A checkpoint to a flat table of tensors: one file, or the shards of a folder.

How one file is read is in `models.weight_files`, folders of many GB in `models.shards`. What only
looks like a checkpoint (the state of an optimiser) is told by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import UsageError, some
from models.shards import read_folder
from models.weight_files import read_file
from models.zoo import FOLDER_FILES, INDEX_FILES, resolve

__all__ = [
    "Checkpoint",
    "State",
    "check_numbers",
    "read_checkpoint",
    "read_folder",
    "unwrapped",
    "weights_file",
]

Checkpoint = str | Path | Mapping[str, Tensor | NDArray[Any]]
State = dict[str, Tensor]

_SHOWN = 4

_CONTAINERS = ("model_state", "model_state_dict", "state_dict", "model", "blobs")
"""PySlowFast; many; PyTorch Lightning and timm; PANNs and DETR; Caffe2."""

_PREFIXES = ("module.", "_orig_mod.", "model.")
"""DataParallel, torch.compile, Lightning modules: before the name of every tensor."""

_MAX_NESTING = 4

_OPTIMISER = frozenset({"optimizer", "optimizer_state", "optimizer_state_dict", "param_groups"})


def read_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint holds, by its own names; `unwrapped` finds the tensors in it.

    Args:
        checkpoint: a mapping (`unwrapped` takes arrays of numpy in it, too), or whatever
            `models.zoo.resolve` finds: safetensors, Caffe2's pickle, any file of `torch.save` or
            `torch.jit.save`, under any name; a folder in the way of Hugging Face or open_clip, also
            cut into shards.

    Raises:
        UsageError: not found, damaged, not safe, or no checkpoint.
    """
    if isinstance(checkpoint, Mapping):
        return dict(checkpoint)
    if not isinstance(checkpoint, str | Path) or not str(checkpoint).strip():
        raise UsageError(
            f"{checkpoint!r:.80} is no checkpoint: expected a path, a name (zoo:NAME, "
            "hf:ORG/NAME) or a table of tensors"
        )
    path = weights_file(resolve(checkpoint))
    return dict(read_folder(path) if path.name in INDEX_FILES else read_file(path))


def weights_file(path: Path) -> Path:
    """The file with the weights in a folder of Hugging Face or open_clip, or the index of its
    shards; a file is itself.
    """
    if not path.is_dir():
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise UsageError(f"folder '{path}' holds neither {' nor '.join(FOLDER_FILES[2:])}")


def unwrapped(state: Mapping[str, Any], source: str = "the checkpoint") -> State:
    """The state dict of a network in what a training program saved, without wrappers' prefixes.

    Raises:
        UsageError: no tensors, only an optimiser's, or entries that are no tensors.
    """
    for _ in range(_MAX_NESTING):
        inner = next((state[key] for key in _CONTAINERS if _is_table(state.get(key))), None)
        if inner is None:
            break
        state = inner
    state = {key: _as_tensor(value) for key, value in state.items()}
    _check_entries(state, source)
    for _ in range(_MAX_NESTING):
        prefix = next((each for each in _PREFIXES if _all_start(state, each)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def _as_tensor(value: Any) -> Any:
    """Numbers of numpy as a tensor of their own; everything else as it is."""
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind not in "biuf":
        return value
    native = np.array(value, dtype=value.dtype.newbyteorder("="))
    try:
        return torch.from_numpy(native)
    except TypeError:  # a type that torch has not (longdouble), told as what is no tensor
        return value


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _all_start(state: Mapping[str, Any], prefix: str) -> bool:
    return bool(state) and all(key.startswith(prefix) for key in state)


def _check_entries(state: Mapping[Any, Any], source: str) -> None:
    strange = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if _OPTIMISER & set(strange) and len(strange) == len(state):
        raise UsageError(
            f"'{source}' holds the state of an optimiser and no network; expected the file in "
            f"which the network was saved ({', '.join(_CONTAINERS)})"
        )
    if strange:
        raise UsageError(
            f"the checkpoint holds entries that are no tensors: {some(strange, _SHOWN)}"
        )
    odd = [repr(key) for key in state if not isinstance(key, str)]
    if odd:
        raise UsageError(f"the checkpoint has tensors whose names are no text: {some(odd, _SHOWN)}")


_BAD: tuple[tuple[str, Callable[[str, Tensor, Tensor], bool]], ...] = (
    ("without plain numbers (sparse, quantised or meta)", lambda _, own, given: not _plain(given)),
    ("not finite (NaN or infinity)", lambda _, own, given: _plain(given) and not _finite(given)),
    (
        "not of floating point",
        lambda _, own, given: own.is_floating_point() != _plain_float(given),
    ),
    (
        "with a variance below 0",
        lambda name, own, given: name.endswith("running_var") and _plain(given) and _below(given),
    ),
)


def check_numbers(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    """Half a sentence for each kind of tensor whose numbers a network cannot compute with.

    float16, bfloat16, float32 and float64 may be mixed: OpenAI's files are, on purpose, and all of
    them become float32.
    """
    for what, bad in _BAD:
        found = [key for key in own if key in given and bad(key, own[key], given[key])]
        if found:
            yield f"{len(found)} tensors {what}: {some(found, _SHOWN)}"


def _plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def _below(tensor: Tensor) -> bool:
    return not tensor.is_complex() and bool((tensor < 0).any())


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _plain_float(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)

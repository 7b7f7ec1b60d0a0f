"""Where the weights of a frozen network come from: a file, a mapping, or a seed.

Loading is strict: a tensor that is missing, left over or of another shape is an error that names
it. Nothing is unpickled freely: safetensors, `torch.load(weights_only=True)`, and for the pickles
of Caffe2 an unpickler that knows numpy arrays and nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import UsageError, some
from data.foreign import read_limited
from data.identity import state_sha256
from data.pickles import Array, read_pickle
from models.safe_load import load_plain

__all__ = [
    "Checkpoint",
    "Layout",
    "Weights",
    "fill_seeded",
    "load_strictly",
    "own_layout",
    "read_checkpoint",
    "renaming_layout",
    "tensors_sha256",
]

Checkpoint = str | Path | Mapping[str, Tensor]
State = dict[str, Tensor]

_CONTAINERS = ("model_state", "state_dict", "model")
_COUNTER = "num_batches_tracked"
_SHOWN = 4

_MAX_CAFFE2_BYTES = 4 << 30
"""SLOWFAST_8x8_R50.pkl has 0.27 GB."""


@dataclass(frozen=True)
class Weights:
    """What a network's weights are, for recipes and reports.

    Args:
        kind: "random" (seeded, never trained) or "file" (a checkpoint, also one given as a state
            dict in memory).
        sha256: over the tensors as the network holds them, so the same weights in two file
            layouts have the same hash.
        source: file name, or "seed N".
        layout: naming convention of the checkpoint; empty for random weights.
    """

    kind: Literal["random", "file"]
    sha256: str
    source: str
    layout: str = ""

    def recipe(self) -> dict[str, str]:
        """The part that belongs into a recipe: not the file's name, which may change freely."""
        return {"kind": self.kind, "sha256": self.sha256}


@dataclass(frozen=True)
class Layout:
    """A naming convention of checkpoints.

    Args:
        name: for people.
        matches: whether a state dict is in this convention.
        convert: `(state, own names) -> state` under the network's own names; tensors that it does
            not know stay under their names, so that the strict check reports them.
    """

    name: str
    matches: Callable[[Mapping[str, Tensor]], bool]
    convert: Callable[[Mapping[str, Tensor], Iterable[str]], State]


def own_layout(name: str, probe: str) -> Layout:
    """The convention that the network itself uses; `probe` is a tensor name only it has."""
    return Layout(name, lambda state: probe in state, lambda state, _: dict(state))


def renaming_layout(
    name: str,
    probe: str,
    rename: Callable[[str], str],
    ignored: Callable[[str], bool] = lambda _: False,
) -> Layout:
    """A convention that differs by names only.

    Args:
        name: for people.
        probe: a tensor name that only this convention has.
        rename: own name to the convention's name.
        ignored: their entries that are no weights (momentum, learning rate).
    """

    def convert(state: Mapping[str, Tensor], own_names: Iterable[str]) -> State:
        rest = {key: value for key, value in state.items() if not ignored(key)}
        found = {own: rest.pop(rename(own)) for own in own_names if rename(own) in rest}
        return found | rest

    return Layout(name, lambda state: probe in state, convert)


def load_strictly(
    net: nn.Module, checkpoint: Checkpoint, layouts: Sequence[Layout], what: str
) -> Weights:
    """Fill `net` from a checkpoint in any of `layouts`.

    Args:
        net: filled in place.
        checkpoint: path of a file or folder, or a state dict.
        layouts: conventions that are tried in order.
        what: the network, for error messages.

    Raises:
        UsageError: unreadable file, unknown convention, missing, left-over or misshapen tensors.
    """
    source = "state dict" if isinstance(checkpoint, Mapping) else Path(checkpoint).name
    state = _unwrapped(read_checkpoint(checkpoint))
    own = net.state_dict()
    layout = next((each for each in layouts if each.matches(state)), None)
    if layout is None:
        raise UsageError(
            f"'{source}' is no checkpoint of {what}: its tensors are called "
            f"{some([*state], _SHOWN)}; known layouts: {', '.join(each.name for each in layouts)}"
        )
    converted = layout.convert(state, own)
    _check(own, converted, f"'{source}' ({layout.name} layout) does not fit {what}")
    # Old PyTorch saved no counters of batches; they play no part in evaluation.
    net.load_state_dict(own | converted)
    return Weights("file", tensors_sha256(net), source, layout.name)


def _check(own: Mapping[str, Tensor], given: Mapping[str, Tensor], sentence: str) -> None:
    missing = [key for key in own if key not in given and not key.endswith(_COUNTER)]
    unexpected = [key for key in given if key not in own]
    misshapen = [
        f"{key} is {tuple(given[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    problems = [
        f"{label} {len(found)} tensors: {some(found, _SHOWN)}"
        for label, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape of", misshapen),
        )
        if found
    ]
    if problems:
        raise UsageError(
            f"{sentence}; {'; '.join(problems)}. Give the checkpoint of this architecture, or the "
            "options (classes, width, model) that it was made with"
        )


def read_checkpoint(checkpoint: Checkpoint) -> State:
    """The tensors of a checkpoint, by the file's own names.

    Args:
        checkpoint: `.safetensors`, `.pkl` (Caffe2 blobs), any file of `torch.save`, a folder in the
            way of Hugging Face (`model.safetensors` or `pytorch_model.bin` in it), or a mapping.
    """
    if isinstance(checkpoint, Mapping):
        return dict(checkpoint)
    path = Path(checkpoint)
    if path.is_dir():
        path = _weights_in(path)
    if not path.is_file():
        raise UsageError(f"checkpoint '{path}' does not exist; give the path of a file or folder")
    try:
        return dict(_read(path))
    except UsageError:
        raise
    except Exception as error:  # every library has its own errors for a damaged file
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UsageError(
            f"checkpoint '{path}' cannot be read ({type(error).__name__}: {reason}); it is "
            "truncated, or not one of: safetensors, torch.save of plain tensors, Caffe2 .pkl"
        ) from error


def _weights_in(folder: Path) -> Path:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"folder '{folder}' holds neither model.safetensors nor pytorch_model.bin")


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".pkl":
        return _read_caffe2(path)
    loaded: Mapping[str, Any] = load_plain(path)
    return loaded


def _read_caffe2(path: Path) -> State:
    content = read_limited(path, _MAX_CAFFE2_BYTES, "the checkpoint")
    loaded = read_pickle(content, str(path), numpy_values=True, encoding="latin1")
    blobs = loaded.get("blobs", loaded) if isinstance(loaded, dict) else None
    if not isinstance(blobs, dict):
        raise UsageError(
            f"the pickle '{path}' holds no table of blobs, so it is not a Caffe2 checkpoint"
        )
    arrays = {key: value.value for key, value in blobs.items() if isinstance(value, Array)}
    return {str(key): torch.from_numpy(np.array(array)) for key, array in arrays.items()}


def _unwrapped(state: Mapping[str, Any]) -> State:
    for container in _CONTAINERS:
        if isinstance(state.get(container), Mapping):
            state = state[container]
    state = {key.removeprefix("module."): value for key, value in state.items()}
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise UsageError(
            f"the checkpoint holds entries that are no tensors: {some(strange, _SHOWN)}"
        )
    return state


def fill_seeded(
    net: nn.Module, seed: int, scale: Callable[[str, Tensor], tuple[float, float]]
) -> None:
    """Fill every floating tensor of `net` with `offset + amplitude * u`, `u` uniform in [-1, 1).

    Each tensor has its own stream, named by (seed, tensor name): the values depend neither on the
    order of the modules, nor on torch's version, nor on anyone's random state.

    Args:
        net: filled in place.
        seed: which of the random networks.
        scale: `(name, tensor) -> (offset, amplitude)`.
    """
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if not tensor.is_floating_point():
                continue
            offset, amplitude = scale(name, tensor)
            stream = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
            uniform = 2 * stream.random(tuple(tensor.shape), dtype=np.float32) - 1
            tensor.copy_(torch.from_numpy(np.asarray(offset + amplitude * uniform)))


def tensors_sha256(module: nn.Module) -> str:
    """sha256 over names and values of all tensors of `module`, counters of batches left out."""
    state = module.state_dict()
    return state_sha256(
        {k: v.detach().cpu().numpy() for k, v in state.items() if not k.endswith(_COUNTER)}
    )

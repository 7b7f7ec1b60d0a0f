"""Where the weights of a frozen network come from: a file, a mapping, or a seed.

Loading is strict: a tensor that is missing, left over, of another shape or not finite is an error
that names it, and nothing is filled then. How files are read is in `models.checkpoints`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from data.errors import UsageError, some
from data.identity import state_sha256
from models.checkpoints import Checkpoint, State, check_numbers, read_checkpoint, unwrapped
from models.layouts import recognised

__all__ = [
    "Checkpoint",
    "Layout",
    "Weights",
    "fill_seeded",
    "load_strictly",
    "misfits",
    "own_layout",
    "read_checkpoint",
    "renaming_layout",
    "tensors_sha256",
]

_COUNTER = "num_batches_tracked"
_SHOWN = 4


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
        stored: types of numbers that the checkpoint has, e.g. "float16, float32"; the network has
            all of them in float32. Empty for random weights.
    """

    kind: Literal["random", "file"]
    sha256: str
    source: str
    layout: str = ""
    stored: str = ""

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
    net: nn.Module,
    checkpoint: Checkpoint,
    layouts: Sequence[Layout],
    what: str,
    adapt: Callable[[Mapping[str, Tensor]], None] | None = None,
    source: str | None = None,
) -> Weights:
    """Fill `net` from a checkpoint in any of `layouts`.

    Args:
        net: filled in place.
        checkpoint: path of a file or folder, or a state dict.
        layouts: conventions that are tried in order.
        what: the network, for error messages.
        adapt: is shown the tensors under the network's own names before they are checked; may
            change a part of `net` that the file decides (the number of classes), or refuse it.
        source: what to call the checkpoint; None: the name of its file.

    Raises:
        UsageError: unreadable file, unknown convention, missing, left-over or misshapen tensors.
    """
    if source is None:
        source = Path(checkpoint).name if isinstance(checkpoint, str | Path) else "state dict"
    state = unwrapped(read_checkpoint(checkpoint), source)
    own = net.state_dict()
    layout = next((each for each in layouts if each.matches(state)), None)
    if layout is None:
        raise UsageError(_another(state, layouts, source, what))
    converted = layout.convert(state, own)
    if adapt is not None:
        adapt(converted)
        own = net.state_dict()
    _check(own, converted, f"'{source}' ({layout.name} layout) does not fit {what}")
    # Old PyTorch saved no counters of batches; they play no part in evaluation.
    net.load_state_dict(own | converted)
    stored = sorted({str(each.dtype).removeprefix("torch.") for each in _floats(converted)})
    return Weights("file", tensors_sha256(net), source, layout.name, ", ".join(stored))


def _floats(state: Mapping[str, Tensor]) -> list[Tensor]:
    return [each for each in state.values() if each.is_floating_point()]


def _another(state: Mapping[str, Tensor], layouts: Sequence[Layout], source: str, what: str) -> str:
    """The sentence for a checkpoint in none of the network's layouts."""
    names = ", ".join(each.name for each in layouts)
    if not state:
        return f"'{source}' is no checkpoint of {what}: it holds no tensors; expected {names}"
    known = recognised(state)
    if known is not None:
        reader = f", which '{known.give_to}' reads" if known.give_to else ""
        return (
            f"'{source}' is no checkpoint of {what}: it is {known.what}{reader}; "
            f"expected one of the layouts: {names}"
        )
    return (
        f"'{source}' is no checkpoint of {what}: its tensors are called "
        f"{some([*state], _SHOWN)}; known layouts: {names}"
    )


def misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Half a sentence each for tensors that are missing, left over or of another shape; their
    numbers are not looked at.
    """
    missing = [key for key in own if key not in given and not key.endswith(_COUNTER)]
    unexpected = [key for key in given if key not in own]
    misshapen = [
        f"{key} is {tuple(given[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    return [
        f"{label} {len(found)} tensors: {some(found, _SHOWN)}"
        for label, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape of", misshapen),
        )
        if found
    ]


def _check(own: Mapping[str, Tensor], given: Mapping[str, Tensor], sentence: str) -> None:
    problems = [*misfits(own, given), *check_numbers(own, given)]
    if problems:
        raise UsageError(
            f"{sentence}; {'; '.join(problems)}. Give the checkpoint of this architecture, or the "
            "options (classes, width, model) that it was made with"
        )


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

"""A checkpoint to a flat table of tensors: every container that the field uses, none of it run.

safetensors; `torch.save` of plain tensors; TorchScript archives (`models.torchscript`); the pickles
of Caffe2. What only looks like a checkpoint (an HTML page, a pointer of git-lfs, an empty file, the
state of an optimiser) is told by name.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.errors import UsageError, some
from data.foreign import check_plain_file, read_limited
from data.pickles import Array, read_pickle
from models.safe_load import LEGACY_MAGIC, load_plain
from models.torchscript import is_torchscript, read_torchscript
from models.zoo import FOLDER_FILES, resolve

__all__ = [
    "Checkpoint",
    "State",
    "check_numbers",
    "read_checkpoint",
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

_MAX_CAFFE2_BYTES = 4 << 30
"""SLOWFAST_8x8_R50.pkl has 0.27 GB."""

_AGAIN = "fetch the file itself (`pipeline weights list` names sources)"


def read_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint holds, by its own names; `unwrapped` finds the tensors in it.

    Args:
        checkpoint: a mapping (`unwrapped` takes arrays of numpy in it, too), or whatever
            `models.zoo.resolve` finds: safetensors, Caffe2's pickle, any file of `torch.save` or
            `torch.jit.save`, under any name; a folder in the way of Hugging Face or open_clip.

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
    check_plain_file(path, "the checkpoint")
    _check_kind(path)
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


def weights_file(path: Path) -> Path:
    """The file with the weights in a folder of Hugging Face or open_clip; a file is itself."""
    if not path.is_dir():
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    shards = sorted(path.glob("*.index.json"))
    also = "; it is cut into shards, which are not read: save it as one file" if shards else ""
    raise UsageError(f"folder '{path}' holds neither {' nor '.join(FOLDER_FILES[2:])}{also}")


def _check_kind(path: Path) -> None:
    """Sentences for what downloads leave behind instead of a checkpoint."""
    with path.open("rb") as file:
        head = file.read(512)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if not head:
        raise UsageError(f"checkpoint '{path}' is empty (0 bytes): a download failed; {_AGAIN}")
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise UsageError(
            f"checkpoint '{path}' is a web page, not weights: the server answered with a page "
            f"(an error, a login, a confirmation); {_AGAIN}"
        )
    if start.startswith(b"version https://git-lfs"):
        raise UsageError(
            f"checkpoint '{path}' is a pointer of git-lfs, not weights; run `git lfs pull` in its "
            "repository"
        )
    if _is_text(head) and path.suffix != ".pkl":  # pickles of protocol 0 are text, too
        raise UsageError(
            f"checkpoint '{path}' is text, not weights; it begins with "
            f"'{' '.join(head[:80].decode('utf-8-sig', 'replace').split())}'; {_AGAIN}"
        )


def _is_text(head: bytes) -> bool:
    # A character may be cut at the end of what was read.
    told = head.decode("utf-8", "ignore")
    whole = len(told.encode()) >= len(head) - 3
    return whole and all(each.isprintable() or each in "\r\n\t\ufeff" for each in told)


def _read(path: Path) -> Mapping[str, Any]:
    """By what the file is, whatever it is called: files of all kinds are named `.pt` or `.bin`."""
    if _is_safetensors(path) or path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if _is_bare_pickle(path):
        return _read_caffe2(path)
    if is_torchscript(path):
        return read_torchscript(path)
    loaded = load_plain(path)
    if not isinstance(loaded, Mapping):
        raise UsageError(
            f"checkpoint '{path}' holds a {type(loaded).__name__}, expected a table of tensors "
            "(a state dict, or a dictionary with one in it)"
        )
    return loaded


def _is_safetensors(path: Path) -> bool:
    """The length of a header of JSON, and the header."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < (1 << 32)


def _is_bare_pickle(path: Path) -> bool:
    """Caffe2's kind: neither the archive nor the older sequence of pickles of torch.save."""
    with path.open("rb") as file:
        head = file.read(len(LEGACY_MAGIC))
    if head == LEGACY_MAGIC or head.startswith(b"PK"):
        return False
    return head.startswith(b"\x80") or path.suffix == ".pkl"


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

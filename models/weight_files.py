"""One file of weights to a table of tensors by name: every container that the field uses.

safetensors; `torch.save` of plain tensors; TorchScript archives (`models.torchscript`); the pickles
of Caffe2. None of it is run. What only looks like a checkpoint (an HTML page, a pointer of git-lfs,
an empty file) is told by name.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import UsageError
from data.foreign import check_plain_file, read_limited
from data.pickles import Array, read_pickle
from models.safe_load import LEGACY_MAGIC, load_plain
from models.safetensors_files import SafetensorsFile
from models.torchscript import is_torchscript, read_torchscript

__all__ = ["read_file"]

_MAX_CAFFE2_BYTES = 4 << 30
"""SLOWFAST_8x8_R50.pkl has 0.27 GB."""

_AGAIN = "fetch the file itself (`pipeline weights list` names sources)"


def read_file(path: Path, *, lazily: bool = False) -> Mapping[str, Any]:
    """What one file holds, by its own names.

    Args:
        path: safetensors, Caffe2's pickle, any file of `torch.save` or `torch.jit.save`, under any
            name.
        lazily: leave tensors in the file until they are used, where its kind allows that. Such
            tensors lie in mapped memory: copy what must outlive the file.

    Raises:
        UsageError: damaged, not safe, or no checkpoint.
    """
    check_plain_file(path, "the checkpoint")
    _check_kind(path)
    try:
        return _read(path, lazily)
    except UsageError:
        raise
    except Exception as error:  # every library has its own errors for a damaged file
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UsageError(
            f"checkpoint '{path}' cannot be read ({type(error).__name__}: {reason}); it is "
            "truncated, or not one of: safetensors, torch.save of plain tensors, Caffe2 .pkl"
        ) from error


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


def _read(path: Path, lazily: bool) -> Mapping[str, Any]:
    """By what the file is, whatever it is called: files of all kinds are named `.pt` or `.bin`."""
    if _is_safetensors(path) or path.suffix == ".safetensors":
        held = SafetensorsFile(path)
        return held if lazily else {name: x.clone() for name, x in held.items()}
    if _is_bare_pickle(path):
        return _read_caffe2(path)
    if is_torchscript(path):
        return read_torchscript(path)
    loaded = load_plain(path, mapped=lazily)
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


def _read_caffe2(path: Path) -> dict[str, Tensor]:
    content = read_limited(path, _MAX_CAFFE2_BYTES, "the checkpoint")
    loaded = read_pickle(content, str(path), numpy_values=True, encoding="latin1")
    blobs = loaded.get("blobs", loaded) if isinstance(loaded, dict) else None
    if not isinstance(blobs, dict):
        raise UsageError(
            f"the pickle '{path}' holds no table of blobs, so it is not a Caffe2 checkpoint"
        )
    arrays = {key: value.value for key, value in blobs.items() if isinstance(value, Array)}
    return {str(key): torch.from_numpy(np.array(array)) for key, array in arrays.items()}

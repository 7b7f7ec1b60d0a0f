"""Reads files of `torch.save` from strangers: tensors and plain values, of the size that they have.

`torch.load(weights_only=True)` names no function that a file could call. What it leaves open is
looked at here: compressed archives (a thousand bytes for each one), tensors that claim more numbers
than were stored, archives that are programs, and errors whose advice is to load unsafely.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import UsageError, some
from data.foreign import check_plain_file

__all__ = ["LEGACY_MAGIC", "load_plain"]

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file of torch before 1.6 begins; all later ones are zip archives."""

_MAX_VALUES = 10_000_000
"""Tensors, numbers and containers of one file; optimiser states of large models have thousands."""

_SPARE_BYTES = 1 << 20


def load_plain(
    path: Path,
    device: torch.device | str = "cpu",
    also: Sequence[type] = (),
    *,
    mapped: bool = False,
) -> Any:
    """What `torch.save` wrote, if it is made of tensors and plain values.

    Args:
        path: the file.
        device: where tensors go.
        also: plain classes that may occur, e.g. `argparse.Namespace`.
        mapped: leave the numbers in the file until they are used (files of torch 1.6 and later).

    Raises:
        UsageError: no regular file, damaged, a program, or anything that is not plain.
    """
    check_plain_file(path, "the checkpoint")
    zipped = _check_container(path)
    try:
        with torch.serialization.safe_globals(list(also)):
            content = torch.load(
                path, map_location=device, weights_only=True, mmap=mapped and zipped
            )
    except Exception as error:  # torch has its own error for each kind of damage
        raise _refused(path, _reason(error)) from None
    _check_tensors(content, path)
    return content


def _refused(path: Path, problem: str) -> UsageError:
    return UsageError(f"'{path}' cannot be read safely: {problem}")


def _check_container(path: Path) -> bool:
    """Whether the file is a zip archive, as those since torch 1.6 are."""
    with path.open("rb") as file:
        head = file.read(len(LEGACY_MAGIC))
    if head == LEGACY_MAGIC:
        return False
    if not head.startswith(b"PK") or not zipfile.is_zipfile(path):
        raise _refused(path, "it is no whole file of torch.save: truncated, or of another kind")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _refused(path, f"it is no whole archive ({error})") from None
    if any(each.filename.endswith("/constants.pkl") for each in members):
        raise _refused(
            path,
            "it is a TorchScript program, not a file of tensors; use the safetensors file of the "
            "same model",
        )
    if not any(each.filename.endswith("/data.pkl") for each in members):
        held = some([each.filename[:80] for each in members], 3) or "nothing"
        raise _refused(path, f"it is an archive of other files ({held}); unpack it first")
    unpacked = sum(each.file_size for each in members)
    packed = any(each.compress_type != zipfile.ZIP_STORED for each in members)
    if packed or unpacked > path.stat().st_size:
        raise _refused(
            path,
            f"it is a compressed archive of {unpacked:,} bytes, which torch.save never writes; "
            "unpack it, or save the tensors again",
        )
    return True


def _reason(error: Exception) -> str:
    """torch's reason, without its advice to load the file unsafely."""
    text = str(error)
    named = re.search(r"GLOBAL ([\w.]{1,200})", text)
    if named:
        return (
            f"it asks for {named[1]}, which is more than plain tensors and values. Nothing was "
            "run; get the file as safetensors, or from someone you trust"
        )
    if "weights_only" in text or "Unsupported" in text:
        return "it holds more than plain tensors and values. Nothing was run"
    first = (text or type(error).__name__).splitlines()[0][:200]
    return f"it is truncated or damaged ({type(error).__name__}: {first})"


def _check_tensors(content: Any, path: Path) -> None:
    """Count numbers: what is shared or repeated must not be more than what was stored."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if len(seen) > _MAX_VALUES:
            raise UsageError(
                f"'{path}' cannot be read safely: it holds more than {_MAX_VALUES:,} values"
            )
        if isinstance(value, Tensor):
            _check_tensor(value, path)
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            waiting.append(vars(value))
    stored = sum(storages.values())
    if stored > path.stat().st_size + _SPARE_BYTES:
        raise _refused(path, f"its tensors claim {stored:,} bytes, more than the file has")


def _check_tensor(tensor: Tensor, path: Path) -> None:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise UsageError(
            f"'{path}' cannot be read safely: it holds a tensor that is not plain numbers"
        )
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise _refused(
            path,
            f"a tensor of shape {tuple(tensor.shape)} claims more numbers than the "
            f"{tensor.untyped_storage().nbytes():,} bytes that were stored for it",
        )

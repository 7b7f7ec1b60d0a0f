"""Ids, content hashes and recipe ids: how the store knows what is the same."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import UsageError
from data.foreign import brief, kind_of_file

__all__ = [
    "canonical_json",
    "check_id",
    "digest",
    "file_sha256",
    "imported_content",
    "query_id",
    "short_digest",
    "state_sha256",
    "tokens_in",
]

_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that mean a device on Windows, with any suffix."""


def check_id(value: str, *, what: str = "video id") -> str:
    """`value` if it is a safe id (`[A-Za-z0-9._-]{1,128}`, no path meaning), else UsageError."""
    if not isinstance(value, str) or not _ID.fullmatch(value) or value.startswith("."):
        raise UsageError(
            f"{what} {brief(value)} is not allowed: 1 to 128 letters, digits, '.', '_' or '-', "
            "not starting with '.', and no path in it; rename it in the list of inputs"
        )
    if _DEVICE.fullmatch(value):
        raise UsageError(
            f"{what} {value!r} is not allowed: it is the name of a device on Windows, where stores "
            "are copied and exported to, too; rename it in the list of inputs"
        )
    return value


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no blanks, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest(value: Any) -> str:
    """sha256 (64 hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def short_digest(value: Any) -> str:
    """First 16 hex of `digest`: recipe ids."""
    return digest(value)[:16]


def file_sha256(path: Path) -> str:
    """sha256 (64 hex) of the bytes of a file, read in pieces; OSError for a pipe or device."""
    kind = kind_of_file(path)
    if kind.startswith(("is a pipe", "is a device", "is a socket")):
        raise OSError(errno.EINVAL, kind, str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def imported_content(id: str) -> str:
    """Content of a video that was never probed: all its imported streams share it.

    The hash of its feature file would differ from stream to stream, and samples are made only of
    rows of the same content.
    """
    return digest({"imported video": id})


def query_id(text: str) -> str:
    """Store id of a query: the same sentence is encoded once, whatever its qid or dataset."""
    return "q-" + hashlib.sha256(text.encode()).hexdigest()[:32]


def tokens_in(encoder: str) -> str:
    """Array of the stage `queries` with the token states of a further encoder, by its name."""
    return f"tokens_{encoder}"


def state_sha256(arrays: Mapping[str, Any]) -> str:
    """sha256 of a mapping of numpy arrays: names, dtypes, shapes and bytes, in name order."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()

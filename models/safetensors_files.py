"""The container of safetensors: eight bytes of length, a header of JSON, the numbers.

Read and written here, because the trainer runs without that library. What a header claims is
checked before it is believed, as the library does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.foreign import strict_json

__all__ = ["SafetensorsFile", "safetensors_bytes"]

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH, _MOST_HEADER_BYTES = 8, 100_000_000  # the library's limit
_ABOUT = "__metadata__"

Place = tuple[torch.dtype, tuple[int, ...], int, int]
"""Type, shape, first byte after the header and the byte after the last one."""


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of a file by name, each a view of the mapped file: copy what must outlive it.

    Args:
        path: the file.

    Attributes:
        metadata: what its writer says beside the tensors.

    Raises:
        ValueError: in half a sentence: what is wrong with the file.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        header, self._start = _header(path, size)
        about = header.pop(_ABOUT, {})
        if not isinstance(about, dict):
            raise ValueError("its metadata are no object")
        self.metadata = {str(key): str(value) for key, value in about.items()}
        self._places = {name: _place(name, entry) for name, entry in header.items()}
        _check_places(self._places, size - self._start)
        self._bytes = torch.empty(0, dtype=torch.uint8)
        if size > self._start:
            whole = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
            self._bytes = whole[self._start :]

    def __getitem__(self, name: str) -> Tensor:
        dtype, shape, first, last = self._places[name]
        raw = self._bytes[first:last]
        if (self._start + first) % dtype.itemsize:
            raw = raw.clone()  # other writers need not align
        return raw.view(dtype).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the numbers begin."""
    with path.open("rb") as file:
        told = file.read(_LENGTH)
        length = int.from_bytes(told, "little")
        if len(told) < _LENGTH or length > min(_MOST_HEADER_BYTES, size - _LENGTH):
            raise ValueError(f"its header should have {length:,} bytes and the file has {size:,}")
        header = strict_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header, _LENGTH + length


def _place(name: str, entry: Any) -> Place:
    kind, shape, (first, last) = _fields(name, entry)
    if kind not in _DTYPES:
        raise ValueError(f"tensor {name} has type {kind!r}; known are {', '.join(_DTYPES)}")
    dtype = _DTYPES[kind]
    if math.prod(shape) * dtype.itemsize != last - first:
        raise ValueError(f"tensor {name} of shape {shape} has {last - first:,} bytes")
    return dtype, shape, first, last


def _fields(name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Type, shape and bytes as the header says them."""
    entry = entry if isinstance(entry, dict) else {}
    kind, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    numbers = [*shape, *place] if isinstance(shape, list) and isinstance(place, list) else [None]
    natural = all(type(n) is int and 0 <= n < 2**62 for n in numbers)
    if not isinstance(kind, str) or not natural or len(place) != 2:
        raise ValueError(f"tensor {name} has no usable dtype, shape and data_offsets")
    return kind, tuple(shape), (place[0], place[1])


def _check_places(places: Mapping[str, Place], size: int) -> None:
    """Tensors lie one after another and fill the file: nothing is read twice, nothing is hidden."""
    edges = [0, *(edge for each in sorted((p[2], p[3]) for p in places.values()) for edge in each)]
    if any(end != start for end, start in list(pairwise(edges))[::2]) or edges[-1] != size:
        raise ValueError(f"its tensors do not fill the {size:,} bytes after the header")


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The file of some tensors; the same tensors and metadata give the same bytes.

    Args:
        tensors: by name.
        metadata: what to say beside them.
    """
    # wide types first, as the library writes them, so that every tensor is aligned
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {_ABOUT: dict(metadata)}
    pieces, end = [], 0
    for name in order:
        x = tensors[name].detach().cpu().contiguous()
        pieces.append(x.reshape(-1).view(torch.uint8).numpy().tobytes())
        start, end = end, end + len(pieces[-1])
        place = {"dtype": _NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
        header[name] = place
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % _LENGTH)
    return b"".join([len(told).to_bytes(_LENGTH, "little"), told, *pieces])

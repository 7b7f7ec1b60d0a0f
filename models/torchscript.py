"""Reads the tensors of a TorchScript archive (`torch.jit.save`) without running any of it.

OpenAI's own CLIP files (`ViT-B-32.pt`) are such archives. `torch.jit.load` would compile and could
run the program in them. Here only `data.pkl` and the stored numbers are looked at: the classes of
the program (`__torch__.*`) stand for plain objects, whose attributes become a nested state dict,
and tensors are put together by our own function, which checks shapes and strides against the bytes
that are there. What a module keeps as an attribute is a tensor of its state, which includes buffers
that PyTorch would leave out of `state_dict()`.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from data.errors import UsageError
from data.foreign import check_plain_file
from data.pickles import PLAIN_OPCODES

__all__ = ["is_torchscript", "read_torchscript"]

_ALLOWED = PLAIN_OPCODES | {"GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"}

_MAX_PICKLE_BYTES = 64 << 20
"""`data.pkl` of OpenAI's ViT-L-14 has well under one MiB: names and shapes, no numbers."""

_MAX_OBJECTS = 1_000_000
_MAX_DEPTH = 64
_SPARE_BYTES = 1 << 20

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip archive with the two pickles that `torch.jit.save` writes."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # whoever reads it next says what is wrong
    ends = {name.rsplit("/", 1)[-1] for name in names}
    return {"data.pkl", "constants.pkl"} <= ends


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of the outermost module and of all modules in it, as `state_dict` names them.

    Raises:
        UsageError: damaged, not made of modules and tensors, or claiming more than is stored.
    """
    check_plain_file(path, "the checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            return _state(_Archive(archive, path).module())
    except UsageError:
        raise
    except Exception as error:  # a broken archive or pickle can fail in any way
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"'{path}' cannot be read safely: as a TorchScript archive it is damaged or not what "
            f"torch.jit.save writes ({type(error).__name__}: {reason}). Nothing was run"
        ) from None


class _Archive:
    """Members of the zip file, each of which must be stored as it is and be there in whole."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive = archive
        self._file_bytes = path.stat().st_size
        self._members = {each.filename: each for each in archive.infolist()}
        pickles = [name for name in self._members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} members data.pkl")
        self._pickle = pickles[0]
        self._root = pickles[0].removesuffix("data.pkl")
        self._storages: dict[str, Tensor] = {}

    def module(self) -> _Object:
        order = self._members.get(f"{self._root}byteorder")
        if order is not None and self._bytes(order.filename, 16).strip() != b"little":
            raise ValueError("its numbers are big-endian")
        content = self._bytes(self._pickle, _MAX_PICKLE_BYTES)
        _look_through(content)
        module = _Reader(content, self).load()
        if not isinstance(module, _Object):
            raise ValueError("it holds no module")
        return module

    def storage(self, pid: Any) -> Tensor:
        """The 1-d tensor of a stored block of numbers, by the pickle's reference to it."""
        kind, dtype, key, _device, count = pid
        if kind != "storage" or not isinstance(dtype, _Storage) or not isinstance(key, str):
            raise ValueError("it refers to something that is no storage of numbers")
        found = self._storages.get(key)
        if found is None:
            raw = self._bytes(f"{self._root}data/{key}", self._file_bytes)
            # A copy that may be written to: torch warns of tensors over read-only memory.
            found = torch.frombuffer(bytearray(raw), dtype=dtype.dtype) if raw else torch.empty(0)
            found = found.to(dtype.dtype)
            self._storages[key] = found
        if found.dtype != dtype.dtype or found.numel() != count:
            raise ValueError(f"storage {key[:40]} does not hold the {count} numbers it should")
        return found

    def _bytes(self, name: str, limit: int) -> bytes:
        member = self._members.get(name)
        if member is None:
            raise ValueError(f"member {name[:80]} is missing")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > limit:
            raise ValueError(f"member {name[:80]} is compressed or too large")
        with self._archive.open(member) as file:
            content = file.read(limit + 1)
        if len(content) != member.file_size:
            raise ValueError(f"member {name[:80]} has not the size that it declares")
        return content


def _look_through(content: bytes) -> None:
    """Check every instruction of the pickle before the first one is carried out."""
    for count, (opcode, argument, place) in enumerate(pickletools.genops(content), 1):
        if opcode.name not in _ALLOWED:
            raise ValueError(f"its pickle has the instruction {opcode.name} at byte {place}")
        far = "PUT" in opcode.name and isinstance(argument, int) and argument > count
        if far or (opcode.name == "FRAME" and int(argument or 0) > len(content)):
            raise ValueError(f"its pickle asks for more memory than it can mean ({opcode.name})")


class _Object:
    """An instance of a class of the program: its attributes, and no behaviour."""

    attributes: Mapping[Any, Any]

    def __new__(cls, *args: Any) -> _Object:
        if args:
            raise ValueError("it gives arguments to a module")
        made = super().__new__(cls)
        made.attributes = {}
        return made

    def __setstate__(self, state: Any) -> None:
        # Modules keep their attributes; other classes of a program have a state of their own.
        self.attributes = state if isinstance(state, dict) else {}


class _Fixed:
    """Something that a pickle may hand on, and not change: a bare tensor has a `__setstate__`."""

    def __setstate__(self, state: Any) -> NoReturn:
        raise ValueError("it would change one of the parts that read it")


class _Storage(_Fixed):
    """The name of a type of storage."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Numbers(_Fixed):
    """A stored block of numbers, or a tensor over one."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Call(_Fixed):
    """A function that the pickle may call."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Reader(pickle.Unpickler):
    """Carries out the instructions; a name stands for one of our own parts and nothing else."""

    def __init__(self, content: bytes, archive: _Archive) -> None:
        super().__init__(io.BytesIO(content))
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Object
        if module == "torch" and name in _STORAGES:
            return _Storage(_STORAGES[name])
        known = _CALLS.get((module, name))
        if known is None:
            raise UsageError(
                f"a TorchScript archive cannot be read safely: it asks for {module[:80]}."
                f"{name[:80]}, which is more than modules and tensors. Nothing was run"
            )
        return known

    def persistent_load(self, pid: Any) -> _Numbers:
        return _Numbers(self._archive.storage(pid))


def _tensor(stored: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Numbers:
    if not isinstance(stored, _Numbers):
        raise ValueError("it makes a tensor of something that is no storage")
    storage = stored.tensor
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or any(type(each) is not int or each < 0 for each in numbers):
        raise ValueError("a tensor has a shape that is no shape")
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else -1
    if count > storage.numel() or last >= storage.numel():
        raise ValueError(
            f"a tensor of shape {tuple(size)} claims more numbers than were stored for it"
        )
    return _Numbers(storage.as_strided(tuple(size), tuple(stride), offset))


def _first(value: Any = None, *_: Any) -> Any:
    return value


def _empty_dict(*_: Any) -> dict[str, Any]:
    return {}


_CALLS = {
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(_first),
    ("collections", "OrderedDict"): _Call(_empty_dict),
    # Lists of one type, which `torch.jit` marks; their values are not ours.
    ("torch.jit._pickle", "build_intlist"): _Call(_first),
    ("torch.jit._pickle", "build_boollist"): _Call(_first),
    ("torch.jit._pickle", "build_doublelist"): _Call(_first),
    ("torch.jit._pickle", "build_tensorlist"): _Call(_first),
    ("torch.jit._pickle", "restore_type_tag"): _Call(_first),
}


def _state(module: _Object) -> dict[str, Tensor]:
    state = dict(_walk(module))
    stored: dict[int, int] = {}
    for value in state.values():
        storage = value.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
    claimed = sum(each.numel() * each.element_size() for each in state.values())
    # Tied weights are written once; nothing legitimate shares one storage a hundredfold.
    if claimed > 4 * sum(stored.values()) + _SPARE_BYTES:
        raise ValueError(f"its tensors claim {claimed:,} bytes, far more than were stored")
    return state


def _walk(module: _Object) -> Iterator[tuple[str, Tensor]]:
    waiting: list[tuple[str, _Object, int]] = [("", module, 0)]
    seen = 0
    while waiting:
        prefix, inner, depth = waiting.pop()
        seen += 1
        if seen > _MAX_OBJECTS or depth > _MAX_DEPTH:
            raise ValueError("its modules contain each other without end")
        for name, value in inner.attributes.items():
            if isinstance(value, _Numbers):
                yield f"{prefix}{name}", value.tensor
            elif isinstance(value, _Object):
                waiting.append((f"{prefix}{name}.", value, depth + 1))

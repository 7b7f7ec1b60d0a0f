"""Reads the pickles that this field hands around as data files, without running anything in them.

A pickle is a program: `pickle.load` runs whatever function it names. Here its instructions are
looked through first and only those that build plain values are allowed; where numpy values are
expected, the names that numpy's pickles use stand for our own few functions, which check what they
are given. No name is ever imported.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError

__all__ = ["PLAIN_OPCODES", "Array", "read_pickle"]

# fmt: off
PLAIN_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT",
    "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE",
    "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM",
    "SETITEMS", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
})
# fmt: on
"""Instructions that push plain values, put them into containers and refer back to them."""

_NAMING = frozenset({"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BYTEARRAY8"})
"""Instructions with which numpy's values are written: name, call, fill, and bytes."""

_MAX_INSTRUCTIONS = 50_000_000
"""Kinetics-GEBD's validation file has about three million."""


def read_pickle(
    content: bytes, source: str, *, numpy_values: bool = False, encoding: str = "ASCII"
) -> Any:
    """The plain value in a pickle: dicts, lists, tuples, strings, bytes, numbers, None.

    Parts may be shared, so what looks like a large tree can be a small graph; whoever walks it
    must count.

    Args:
        content: the whole file.
        source: its name, for messages.
        numpy_values: also allow numpy scalars, which become plain numbers, and arrays, which become
            `Array`.
        encoding: of strings that Python 2 wrote ("latin1" in files with arrays).

    Raises:
        UsageError: naming what is not allowed, or damaged.
    """
    try:
        _look_through(content, source, PLAIN_OPCODES | (_NAMING if numpy_values else frozenset()))
        return _Reader(content, source, encoding).load()
    except UsageError:
        raise
    except MemoryError:
        raise UsageError(
            f"'{source}' is refused: its pickle declares more than fits into memory"
        ) from None
    except Exception as error:  # a broken pickle can fail in any way
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"'{source}' is not a whole pickle of plain values ({type(error).__name__}: {reason}); "
            "it is damaged, or not the file that was meant"
        ) from None


def _look_through(content: bytes, source: str, allowed: frozenset[str]) -> None:
    """Check every instruction before the first one is carried out."""
    for count, (opcode, argument, place) in enumerate(pickletools.genops(content), 1):
        if opcode.name not in allowed:
            what = f"{argument} " if opcode.name in ("GLOBAL", "INST") else ""
            raise UsageError(
                f"'{source}' is refused: its pickle is not plain data but would build objects or "
                f"run code ({opcode.name} {what[:100]}at byte {place}). Nothing was run; get the "
                "values as JSON or from someone you trust"
            )
        # The table of stored values is as long as the largest number in it.
        far = "PUT" in opcode.name and isinstance(argument, int) and argument > count
        if far or count > _MAX_INSTRUCTIONS or _frame(opcode.name, argument) > len(content):
            raise UsageError(
                f"'{source}' is refused: its pickle asks for far more memory than its "
                f"{len(content):,} bytes can mean ({opcode.name} at byte {place})"
            )


def _frame(name: str, argument: Any) -> int:
    return int(argument) if name == "FRAME" else 0


class _Copies:
    """Counts bytes that are copied: one string may be referred to a million times.

    Args:
        most: as many as the file has.
    """

    def __init__(self, most: int) -> None:
        self._left = most

    def raw(self, data: Any) -> bytes | bytearray:
        """Bytes, also those that Python 2 wrote as a string."""
        if isinstance(data, bytes | bytearray):
            return data
        if not isinstance(data, str):
            raise ValueError("it gives the bytes of an array as something else")
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("it means more bytes than it has")
        return data.encode("latin-1")


class Array:
    """An array of a pickle: plain numbers only, of the stated size. `value` is the numpy array."""

    def __init__(self, copies: _Copies) -> None:
        self._copies = copies
        self.value: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        array = np.frombuffer(self._copies.raw(data), _plain_dtype(dtype))
        self.value = array.reshape(shape, order="F" if fortran else "C")


class _DType:
    """What a pickle says of a type of numbers: code and byte order."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])


def _plain_dtype(named: Any) -> np.dtype[Any]:
    if not isinstance(named, _DType) or len(named.code) > 3 or named.code[:1] not in "biuf":
        raise ValueError("it holds a type that is not a plain number")
    return np.dtype(named.code).newbyteorder(named.order.replace("|", "="))  # type: ignore[arg-type]


class _Part:
    """What a name of numpy stands for here. It may be called, and nothing else."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise ValueError("it would change one of the functions that read it")


def _parts(copies: _Copies) -> dict[tuple[str, str], _Part]:
    """The names that numpy's pickles use, and what they stand for."""

    def array(*_: Any) -> Array:
        return Array(copies)

    def from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
        made = Array(copies)
        made.__setstate__((1, shape, dtype, order == "F", data))
        return made

    def scalar(dtype: Any, data: Any) -> Any:
        (value,) = np.frombuffer(copies.raw(data), _plain_dtype(dtype)).tolist()
        return value

    def encode(text: Any, _codec: Any) -> bytes | bytearray:
        return copies.raw(text)

    def dtype(code: Any, *_: Any) -> _DType:
        return _DType(str(code))

    def ndarray(*_: Any) -> NoReturn:
        raise ValueError("it calls numpy.ndarray, which numpy's own pickles never do")

    multiarray = "numpy.core.multiarray"
    return {
        (multiarray, "_reconstruct"): _Part(array),
        (multiarray, "scalar"): _Part(scalar),
        ("numpy.core.numeric", "_frombuffer"): _Part(from_buffer),
        ("numpy", "dtype"): _Part(dtype),
        ("numpy", "ndarray"): _Part(ndarray),
        ("_codecs", "encode"): _Part(encode),
    }


class _Reader(pickle.Unpickler):
    """Carries out the instructions; names stand for `_parts` and for nothing else."""

    def __init__(self, content: bytes, source: str, encoding: str) -> None:
        super().__init__(io.BytesIO(content), encoding=encoding, errors="strict")
        self._source = source
        self._parts = _parts(_Copies(len(content)))

    def find_class(self, module: str, name: str) -> Any:
        part = self._parts.get((module.replace("numpy._core", "numpy.core"), name))
        if part is None:
            raise UsageError(
                f"'{self._source}' is refused: the pickle asks for {module[:80]}.{name[:80]}; only "
                "numpy arrays and numbers are allowed, so it is no data file, or not a safe one"
            )
        return part

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ValueError("it refers to something outside of the file")

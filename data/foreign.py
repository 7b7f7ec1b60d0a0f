"""Text from strangers: read with limits, so that a small file cannot become a large problem.

JSON here is stricter than `json.loads`: a key given twice, NaN and infinity, numbers of hundreds of
digits and deep nesting are errors, where Python keeps the last key, accepts the numbers, and fails
later in some other place.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import reprlib
import stat
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn

from data.errors import UsageError, some

__all__ = [
    "DIGITS_OF_SETTINGS",
    "LARGEST_NUMBER",
    "LONGEST_LINE",
    "MAX_DEPTH",
    "brief",
    "check_plain_file",
    "json_kind",
    "json_object",
    "key_names",
    "kind_of_file",
    "read_limited",
    "strict_json",
    "text_lines",
]

LONGEST_LINE = 8 * 2**20
"""Bytes of a line of a JSONL file; a row of ten hours of video at 2 s needs under half a MiB."""

MAX_LINES = 20_000_000
"""Lines of a JSONL file; the largest public corpus of moments has under a million queries."""

MAX_DEPTH = 64
"""Nesting of JSON; rows of this field have 3."""

LARGEST_NUMBER = 1e30
"""Times and scores from outside are below it: their sums and products are finite."""

_DIGITS = 19
"""Digits of a whole number: those of 64 bits."""

DIGITS_OF_SETTINGS = 31
"""In settings that transformers writes: its `model_max_length` for "no limit" is int(1e30)."""

# Texts are searched once; only those that may hold such a number are parsed with hooks for it.
_LARGE_NUMBER = re.compile(rf"[0-9]{{{_DIGITS + 1}}}|[0-9][eE]\+?[0-9]{{3}}")


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def strict_json(text: bytes | str, *, digits: int = _DIGITS, whole: bool = False) -> Any:
    """The value of a JSON text, without the byte order mark that tools of Windows write.

    Args:
        text: the text.
        digits: most of a whole number; `DIGITS_OF_SETTINGS` for what transformers writes.
        whole: texts must be such that UTF-8 can hold them: JSON can write half a surrogate pair.

    Raises:
        ValueError: in half a sentence: not JSON, a key twice, not finite, too long, too deep.
    """
    if isinstance(text, bytes):
        text = text.decode()  # a UnicodeDecodeError is a ValueError
    text = text.removeprefix("\ufeff")
    odd = _LARGE_NUMBER.search(text) is not None
    try:
        value = (_careful(digits) if odd else _STRICT).decode(text)
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        fault = error.msg.removesuffix(" at")
        raise ValueError(f"{fault} at character {error.colno}{line}") from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    if whole and _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # a UnicodeEncodeError is a ValueError
    return value


def json_object(text: bytes, where: str, *, digits: int = _DIGITS) -> dict[str, Any]:
    """The object of a JSON text, as `strict_json` reads it.

    Args:
        text: the text.
        where: file and line, for messages.
        digits: see `strict_json`.

    Raises:
        UsageError: it is no JSON, or another value.
    """
    try:
        value = strict_json(text, digits=digits)
    except ValueError as error:
        raise UsageError(
            f"{where} is not JSON that can be used: {error}; expected one whole JSON object"
        ) from None
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected a JSON object, found {json_kind(value)}")
    return value


def text_lines(path: Path, what: str) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of every line that is not blank, without a byte order mark.

    Args:
        path: a regular file; a pipe or device is refused before it is opened.
        what: what the file should be, for messages: "the annotations".

    Raises:
        UsageError: no such file, not readable, a line over `LONGEST_LINE` bytes, too many lines.
    """
    check_plain_file(path, what)
    number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    raise UsageError(
                        f"{path}, line {number} is longer than the {LONGEST_LINE:,} bytes that are "
                        f"read; give {what} with one row per line"
                    )
                if number > MAX_LINES:
                    raise UsageError(
                        f"{path} has more than the {MAX_LINES:,} lines that {what} may have; "
                        "split it"
                    )
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except OSError as error:
        raise UsageError(f"cannot read {what} '{path}': {error.strerror}") from None


def read_limited(path: Path, limit: int, what: str) -> bytes:
    """All bytes of a small regular file.

    Raises:
        UsageError: no such file, not readable, or more than `limit` bytes.
    """
    check_plain_file(path, what)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"cannot read {what} '{path}': {error.strerror}") from None
    if len(content) > limit:
        raise UsageError(
            f"{what} '{path}' is larger than the {limit:,} bytes that are read; "
            "name the right file, or cut it"
        )
    return content


def check_plain_file(path: Path, what: str) -> None:
    """UsageError unless `path` is a regular file or a link to one: reading a pipe never ends."""
    kind = kind_of_file(path)
    if kind != "file":
        raise UsageError(f"cannot read {what} '{path}': it {kind}; name a regular file")


def kind_of_file(path: Path) -> str:
    """ "file" for a regular file, else what it is instead, as the end of a sentence."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is a link to nothing" if path.is_symlink() else "does not exist"
    except (OSError, ValueError) as error:
        # ValueError: a NUL in the name. A link to itself is ELOOP.
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    names = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "is a folder, not a file",
        stat.S_IFIFO: "is a pipe, not a file",
        stat.S_IFCHR: "is a device, not a file",
        stat.S_IFBLK: "is a device, not a file",
        stat.S_IFSOCK: "is a socket, not a file",
    }
    return names.get(stat.S_IFMT(mode), "is no regular file")


def brief(value: Any, most: int = 120) -> str:
    """`repr` of a value from outside, cut: a message must not become a megabyte."""
    try:
        text = _BRIEF.repr(value)
    except ValueError:  # a whole number that Python refuses to write out
        text = f"a {type(value).__name__} of thousands of digits"
    return text if len(text) <= most else text[:most] + "…"


def json_kind(value: Any) -> str:
    """What a JSON value is, for messages, in the words of JSON."""
    names: dict[type, str] = {type(None): "null", bool: "true or false", int: "a number"}
    names |= {float: "a number", str: "a string", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def key_names(keys: Iterable[str], most: int = 10) -> str:
    """The first few names from outside in order, cut, and how many more there are."""
    found = sorted(keys)
    return (
        some([each if len(each) <= 40 else each[:40] + "…" for each in found[: most + 1]], most)
        or "none"
    )


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 3
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = _BRIEF.maxset = 10
_BRIEF.maxstring = _BRIEF.maxlong = _BRIEF.maxother = 120


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {brief(twice)} is given twice")
    return value


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number that can be used")


def _int_of(most: int, digits: str) -> int:
    if len(digits.lstrip("-")) > most:
        raise ValueError(f"the number {digits[:24]}… has more than {most} digits")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:24]} is not a number that can be used")
    return number


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, _NESTS) else []
    for _ in range(MAX_DEPTH + 1):
        level = [inner for each in level for inner in _values(each) if isinstance(inner, _NESTS)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _values(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


_NESTS = (dict, list)

_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


@cache
def _careful(digits: int) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_unique,
        parse_constant=_refuse_constant,
        parse_int=partial(_int_of, digits),
        parse_float=_finite,
    )

"""What a format of prediction files is, and how the format of a file is recognised."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.annotations.types import Annotation
from data.errors import UsageError
from data.foreign import (
    LARGEST_NUMBER,
    LONGEST_LINE,
    brief,
    check_plain_file,
    json_kind,
    strict_json,
    text_lines,
)
from data.registry import Registry
from training.predictions.types import Prediction

__all__ = [
    "DECIMALS",
    "FORMATS",
    "LARGEST_FILE",
    "WHAT",
    "WRITERS",
    "Glance",
    "Keeps",
    "PredictionFormat",
    "PredictionWriter",
    "glance",
    "json_rows",
    "kept_by",
    "numbers",
    "rounded",
]

DECIMALS = 4
"""Of every number that is written, as in public files."""

LARGEST_FILE = 64 * 2**20
"""Bytes of a file that is one JSON value; 13,578 answers on ActivityNet-CD need 3 MB."""

WHAT = "the predictions"

Keeps = frozenset[str]

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
}
"""First bytes of files that hold another file."""

_HEAD = 4096

_BLANK_LINES = 1000
"""At the beginning of a file, before nobody looks further for what it is."""


@dataclass(frozen=True)
class Glance:
    """What the beginning of a file shows.

    Args:
        head: its first characters.
        row: the JSON object of its first line that is not blank; None if that line is no whole
            object.
    """

    head: str
    row: Mapping[str, Any] | None

    def has_key(self, name: str) -> bool:
        """Whether the first object seems to have this key."""
        if self.row is not None:
            return name in self.row
        return re.search(rf'"{name}"\s*:', self.head) is not None


class PredictionFormat(Protocol):
    """One format as it is read: registered in `FORMATS`.

    Attributes:
        name: what `--format` and `--from` call it.
    """

    name: str

    def recognises(self, seen: Glance) -> bool:
        """Whether a file that begins so has this format; at most one format says so."""
        ...

    def read(self, path: Path, annotations: Sequence[Annotation] | None) -> list[Prediction]:
        """All predictions of a file, in file order.

        Args:
            path: the file.
            annotations: the queries that it should answer; formats without ids need them.

        Raises:
            UsageError: what is wrong, by line or entry, and what was expected.
        """
        ...


class PredictionWriter(Protocol):
    """One format as it is written: registered in `WRITERS`.

    Attributes:
        name: what `--to` calls it.
        keeps: what of a prediction it has room for: "windows", "saliency".
    """

    name: str
    keeps: Keeps

    def lines(
        self, predictions: Sequence[Prediction], annotations: Sequence[Annotation] | None
    ) -> Iterator[str]:
        """The text of a file, line by line, without line ends.

        Args:
            predictions: what to write, with only what `keeps` names (`kept_by`).
            annotations: the queries that they answer; formats that hold ground truth need them.

        Raises:
            UsageError: annotations are needed and missing, or do not fit the format.
        """
        ...


FORMATS: Registry[PredictionFormat] = Registry("prediction format")
"""All formats that are read, by name."""

WRITERS: Registry[PredictionWriter] = Registry("prediction format to write")
"""All formats that are written, by name."""


def glance(path: Path) -> Glance:
    """The beginning of a file of predictions.

    Raises:
        UsageError: no regular file, or one that is compressed or no text.
    """
    check_plain_file(path, WHAT)
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(0)
            lines = islice(iter(lambda: file.readline(LONGEST_LINE), b""), _BLANK_LINES)
            first = next((line for line in lines if line.strip()), b"")
    except OSError as error:
        raise UsageError(f"cannot read {WHAT} '{path}': {error.strerror}") from None
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise UsageError(
                f"{WHAT} '{path}' are compressed ({kind}); decompress the file first and name the "
                "result"
            )
    if b"\0" in head:
        raise UsageError(
            f"{WHAT} '{path}' are a binary file; expected text: JSON in one of the formats "
            f"{', '.join(FORMATS)}"
        )
    try:
        row = strict_json(first) if len(first) < LONGEST_LINE else None
    except ValueError:
        row = None
    return Glance(
        head.decode("utf-8-sig", errors="replace"), row if isinstance(row, dict) else None
    )


def json_rows(path: Path, example: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place ("p.jsonl, line 3") and JSON object of every line that is not blank.

    Args:
        path: the file.
        example: what a line looks like, for messages.

    Raises:
        UsageError: no such file, no lines, a line that is no JSON object.
    """
    found = False
    for number, line in text_lines(path, WHAT):
        found = True
        where = f"{path}, line {number}"
        try:
            row = strict_json(line)
        except ValueError as error:
            raise UsageError(
                f"{where} is not JSON that can be used: {error}; expected one whole object per "
                f"line: {example}"
            ) from None
        if not isinstance(row, dict):
            raise UsageError(
                f"{where}: expected a JSON object, found {json_kind(row)}; a line is {example}"
            )
        yield where, row
    if not found:
        raise UsageError(f"{path} holds no predictions; expected one JSON object per line")


def numbers(value: Any, width: int | None, where: str, expected: str) -> list[Any]:
    """A list of finite numbers, or of rows of them.

    Args:
        value: from outside.
        width: numbers per row; None for a plain list.
        where: file, line and field, for messages.
        expected: what it should be, for messages.

    Raises:
        UsageError: anything else.
    """
    if not isinstance(value, list):
        raise UsageError(f"{where} must be {expected}, got {brief(value)}")
    try:
        array = np.asarray(value)
    except ValueError:
        raise UsageError(f"{where} must be {expected}, got rows of uneven length") from None
    if array.size == 0 and array.ndim == 1:
        return []
    if array.dtype.kind not in "iuf" or _holds_bool(value):
        raise UsageError(f"{where} must be {expected}, found something else: {brief(value)}")
    if array.ndim != (1 if width is None else 2) or (width and array.shape[1] != width):
        raise UsageError(f"{where} must be {expected}, got shape {array.shape}")
    if not (np.abs(array) < LARGEST_NUMBER).all():
        raise UsageError(
            f"{where} must be {expected}, found {LARGEST_NUMBER:g} or more, or no number"
        )
    values: list[Any] = array.astype(np.float64).tolist()
    return values


def _holds_bool(value: list[Any]) -> bool:
    """numpy takes true for 1 where numbers stand beside it."""
    return any(bool in map(type, each) for each in value if isinstance(each, list)) or (
        bool in map(type, value)
    )


def rounded(prediction: Prediction) -> Prediction:
    """The prediction as a reader of the written file sees it."""
    saliency = prediction.saliency
    return replace(
        prediction,
        windows=tuple(
            (round(start, DECIMALS), round(end, DECIMALS), round(score, DECIMALS))
            for start, end, score in prediction.windows
        ),
        saliency=None if saliency is None else tuple(round(each, DECIMALS) for each in saliency),
    )


def kept_by(
    format: PredictionWriter, predictions: Sequence[Prediction]
) -> tuple[list[Prediction], list[str]]:
    """The predictions with only what a format has room for, and what they lost, in words.

    Raises:
        UsageError: a prediction would lose everything.
    """
    lost = {
        "windows": [each.qid for each in predictions if each.windows],
        "saliency": [each.qid for each in predictions if each.saliency is not None],
    }
    for name in format.keeps:
        del lost[name]
    kept = [
        replace(
            each,
            windows=() if "windows" in lost else each.windows,
            saliency=None if "saliency" in lost else each.saliency,
        )
        for each in predictions
    ]
    bare = [
        after.qid
        for before, after in zip(predictions, kept, strict=True)
        if before != after and not after.windows and after.saliency is None
    ]
    if bare:
        raise UsageError(
            f"{len(bare)} of {len(kept)} predictions have nothing that the format '{format.name}' "
            f"holds ({' and '.join(sorted(format.keeps))}; first: query {bare[0]}); choose another"
        )
    told = [f"the {name} of {len(qids)} predictions" for name, qids in lost.items() if qids]
    return kept, told

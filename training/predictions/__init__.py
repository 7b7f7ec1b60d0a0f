"""Files of predictions: formats of this and other tools, and which query each row answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from data.annotations.types import Annotation
from data.store.files import atomic_write

# the formats register themselves
from training.predictions import scores, submission, tsg, univtg  # noqa: F401
from training.predictions.base import (
    FORMATS,
    WRITERS,
    PredictionFormat,
    PredictionWriter,
    glance,
    kept_by,
    rounded,
)
from training.predictions.matching import in_order, order_note, retyped, unsorted
from training.predictions.types import Prediction

__all__ = [
    "FORMATS",
    "WRITERS",
    "Prediction",
    "PredictionFormat",
    "PredictionWriter",
    "format_of",
    "in_order",
    "kept_by",
    "order_note",
    "read_predictions",
    "retyped",
    "rounded",
    "unsorted",
    "write_predictions",
]


def format_of(path: Path, name: str | None = None) -> PredictionFormat:
    """The format called `name`, or the one that the beginning of a file shows.

    Raises:
        UsageError: unknown name; no regular text file.
    """
    seen = glance(path)
    if name is not None:
        return FORMATS.get(name)
    formats = (FORMATS.get(each) for each in FORMATS)
    # what looks like nothing is told what a submission looks like
    return next((each for each in formats if each.recognises(seen)), FORMATS.get("submission"))


def read_predictions(
    path: Path,
    annotations: Sequence[Annotation] | None = None,
    format: str | None = None,
) -> list[Prediction]:
    """All predictions of a file.

    Args:
        path: the file.
        annotations: the queries that it should answer; formats without ids need them. With them,
            the predictions come in their order, exactly one for each.
        format: name of its format (`FORMATS`); None looks at its beginning.

    Returns:
        In the order of the annotations, or of the file where none are given.

    Raises:
        UsageError: an unreadable file; a bad line or entry, with its number and what was expected;
            predictions that do not answer the annotations.
    """
    path = Path(path)
    found = format_of(path, format).read(path, annotations)
    return found if annotations is None else in_order(annotations, found, str(path))


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write a submission file, replacing an old one at once."""
    lines = WRITERS.get("submission").lines(list(predictions), None)
    atomic_write(path, "".join(f"{line}\n" for line in lines).encode())

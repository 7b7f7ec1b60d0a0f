"""Which dataset's format an annotation file has, by its content, where only one can be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.annotations.formats import DATASETS, Sample
from data.annotations.jsonl import read_lines
from data.annotations.published import first_bytes, has_rows
from data.annotations.videos import read_videos
from data.errors import UsageError, some

__all__ = ["guess_dataset"]


def guess_dataset(path: Path) -> str:
    """Name of the dataset whose format a file has; rows of moments without more are `custom`.

    Raises:
        UsageError: the file cannot be read; several datasets have this format, or none.
    """
    sample = _sample(path)
    names = [name for name in DATASETS if DATASETS.get(name).claims(sample)]
    if len(names) == 1:
        return names[0]
    if names:
        raise UsageError(
            f"{path} may be of {', '.join(names[:-1])} or {names[-1]}, whose files look alike; "
            "say which with --dataset"
        )
    raise UsageError(
        f"{path} looks like no known dataset (fields of its first query: "
        f"{some(sorted(sample.fields)) or 'none'}); say with --dataset which format it is to "
        f"be read in: {', '.join(DATASETS)}"
    )


def _sample(path: Path) -> Sample:
    if has_rows(path):
        row = _first_row(path)
        return Sample(path, "rows", str(row.get("vid", "")), row)
    start = first_bytes(path).lstrip()
    if start.startswith((b"{", b"[")):
        video, entry = next(iter(read_videos(path).items()))
        return Sample(path, "videos", video, entry if isinstance(entry, dict) else {})
    if b"##" in start.split(b"\n", 1)[0]:
        return Sample(path, "text")
    if not start:
        raise UsageError(f"the annotations {path} hold no rows")
    raise UsageError(
        f"{path} is no annotation file that is known: neither JSON nor lines "
        "'VIDEO START END##SENTENCE'"
    )


def _first_row(path: Path) -> dict[str, Any]:
    """The first line that can be read: a file is of its dataset although a line is broken."""
    wrong: UsageError | None = None
    for line in read_lines(path):
        try:
            return line.row
        except UsageError as error:
            wrong = wrong or error
    assert wrong is not None  # `read_lines` refuses a file without lines
    raise wrong

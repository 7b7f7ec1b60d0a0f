"""What is known of the feature files of videos before they are read, and the rows made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError, UsageError
from data.grid import Grid
from data.identity import check_id, imported_content
from data.interop.arrays import Header
from data.interop.lengths import Expected, Fit, Lengths, Policy, fit, fitted, pool, pooled_rows
from data.interop.report import Line
from data.interop.sources import Entry, SourceOptions
from data.interop.writing import Draft, Hashes
from data.store import CatalogueEntry, ItemKey, Row

__all__ = ["NOT_STREAMS", "Form", "ImportOptions", "Looked", "look"]

NOT_STREAMS = ("probe", "captions", "narratives", "queries", "events")
"""Stages whose rows are no features on the grid."""

_NOT_STAGES = ("annotations", "cache", "set-aside")
"""Other folders of a store."""

_UNIT_SLACK = 5e-3
"""Of norms of rows that were normalised and then stored as float16."""


@dataclass(frozen=True)
class ImportOptions:
    """What is made of the files.

    Args:
        stage: name of the stage and of its array; a trainer names it as a stream.
        rows_per_clip: rows of the files in one clip of the grid; their mean is taken.
        lengths: what happens where a file has more or fewer rows than the video has clips.
        most: how many rows may be cut or repeated.
        dtype: `keep`, `float16` or `float32`.
        origin: where the files come from, in the user's words.
        names: how the files are named.
    """

    stage: str
    rows_per_clip: int = 1
    lengths: Policy = "repair"
    most: int = 2
    dtype: Literal["keep", "float16", "float32"] = "keep"
    origin: str = ""
    names: SourceOptions = field(default_factory=SourceOptions)

    def __post_init__(self) -> None:
        check_id(self.stage, what="stage")
        if self.stage in NOT_STREAMS + _NOT_STAGES:
            raise UsageError(
                f"features cannot be imported as '{self.stage}', which is no stream; name one, "
                "e.g. --stage clip"
            )
        if self.rows_per_clip < 1 or self.most < 0:
            raise UsageError(
                f"--rows-per-clip must be at least 1 and --most at least 0, got "
                f"{self.rows_per_clip} and {self.most}"
            )


@dataclass(frozen=True)
class Looked:
    """One video before its numbers are read.

    Args:
        entry: its arrays.
        key: its key.
        header: (rows, columns) and type; None if they cannot be seen.
        sha256: of its files.
        expected: how long it is; None if nobody knows.
        fault: why nothing can be made of it.
    """

    entry: Entry
    key: ItemKey
    header: Header | None
    sha256: tuple[str, ...]
    expected: Expected | None
    fault: InputError | None = None


def look(
    entry: Entry, catalogue: Mapping[str, CatalogueEntry], lengths: Lengths, hashes: Hashes
) -> Looked:
    """Look at the files of a video without reading their numbers; faults are kept for its line."""
    known = catalogue.get(entry.id)
    content = known.content if known else imported_content(entry.id)
    key, expected = ItemKey(entry.id, content), lengths.of(entry.id, content)
    sha256: tuple[str, ...] = ()
    try:
        sha256 = tuple(hashes.of(part.file) for part in entry.parts)
        return Looked(entry, key, entry.look(), sha256, expected)
    except InputError as error:
        return Looked(entry, key, None, sha256, expected, error)


class Form:
    """What the rows of the stage look like, and how one video becomes one row.

    Args:
        width: columns.
        dtype: name of the type of the rows.
        options: what is asked for.
        clip_len_s: clip length of the store.
    """

    def __init__(self, width: int, dtype: str, options: ImportOptions, clip_len_s: float) -> None:
        self.width, self.dtype = width, dtype
        self.options, self.clip_len_s = options, clip_len_s
        self._rows_read = self._unit_rows = 0

    @staticmethod
    def of(looked: Sequence[Looked], options: ImportOptions, clip_len_s: float) -> Form:
        """The width that most files have, and a type that holds the numbers of all of these."""
        headers = [each.header for each in looked if each.header is not None]
        if not headers:
            fault = next(each.fault for each in looked if each.fault is not None)
            raise UsageError(
                f"none of the {len(looked):,} files can be imported, for example: {fault}"
            )
        (width, _), *_ = Counter(header.shape[1] for header in headers).most_common(1)
        types = {header.dtype for header in headers if header.shape[1] == width}
        dtype = np.result_type(*types).name if options.dtype == "keep" else options.dtype
        return Form(width, dtype, options, clip_len_s)

    def draft(self, one: Looked) -> Draft:
        """The row to be, or the refusal."""
        line = Line(one.entry.id, "planned", one.entry.names)
        try:
            facts = self._facts(one)
        except InputError as error:
            rows = one.header.shape[0] if one.header else None
            refused = Line(
                line.id, "refused", line.files, rows, reason=error.reason, told=str(error)
            )
            seen = {"sha256": list(one.sha256), "fit": error.reason} if one.header else {}
            return Draft(refused, one.key, lambda: self._row(one, {}), seen)
        planned = Line.of_facts(line.id, "planned", facts)
        return Draft(planned, one.key, lambda: self._row(one, facts), facts)

    def fit(self, one: Looked) -> Fit:
        """What happens to its rows; InputError."""
        if one.header is None:
            raise one.fault or InputError("unreadable", "cannot be read")
        rows = pooled_rows(one.header.shape[0], self.options.rows_per_clip)
        return fit(rows, self.grid(one).n, self.options.lengths, self.options.most)

    def grid(self, one: Looked) -> Grid:
        """The clips of a video: as long as it is known to be, else as many as there are rows."""
        if one.expected is not None:
            return Grid(one.expected.duration_s, self.clip_len_s)
        assert one.header is not None  # `fit` was asked first
        rows = pooled_rows(one.header.shape[0], self.options.rows_per_clip)
        return Grid(rows * self.clip_len_s, self.clip_len_s)

    def notes(self) -> Iterator[str]:
        """What was seen of the numbers."""
        if self._rows_read and self._unit_rows == self._rows_read:
            yield (
                "all rows have length 1: they were normalised before (stored as they are; "
                "normalising them again in training changes nothing)"
            )

    def _facts(self, one: Looked) -> dict[str, Any]:
        how = self.fit(one)
        assert one.header is not None
        rows, width = one.header.shape
        if width != self.width:
            raise InputError(
                "width", f"rows have {width} columns, those of most files {self.width}"
            )
        return {
            "files": one.entry.names,
            "sha256": list(one.sha256),
            "rows": rows,
            "row_s": self.clip_len_s / self.options.rows_per_clip,
            "clips": how.clips,
            "duration_s": self.grid(one).duration_s,
            "fit": how.action,
            "by": how.by,
            "expected": one.expected.by if one.expected else "rows",
            "told": self._told(one, how, rows),
        }

    def _told(self, one: Looked, how: Fit, rows: int) -> str:
        pooled = self.options.rows_per_clip
        mean = f", {how.rows} after the mean of each {pooled}" if pooled > 1 else ""
        if one.expected is None:
            return f"{rows} rows{mean}; how long the video is nobody says: as many clips"
        known = f"{one.expected.duration_s:.10g} s ({one.expected.by}) are {how.clips} clips"
        return f"{known}; the file has {rows} rows{mean}: {how.told}"

    def _row(self, one: Looked, facts: Mapping[str, Any]) -> Row:
        array = one.entry.read()
        with np.errstate(over="ignore"):  # too large for float16 is found below
            made = fitted(pool(array, self.options.rows_per_clip), self.fit(one)).astype(self.dtype)
        bad = int((~np.isfinite(made)).sum())
        if bad:
            raise InputError(
                "not-finite",
                f"{bad:,} of {made.size:,} values are NaN, infinite or too large for {self.dtype}",
            )
        self._count_unit_rows(made)
        return Row(one.key, self.grid(one), {self.options.stage: made}, facts=facts)

    def _count_unit_rows(self, rows: NDArray[Any]) -> None:
        norms = np.linalg.norm(rows.astype(np.float32), axis=1)
        norms = norms[norms > 0]
        self._rows_read += len(norms)
        self._unit_rows += int((abs(norms - 1) < _UNIT_SLACK).sum())

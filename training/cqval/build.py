"""The twelve splits of an annotation file, and the file that keeps them.

The file holds the clauses and words of every query beside the splits, so that anybody can see why a
query is in one, and a hash of all that, so that a file that was edited is told from one that was
made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.annotations import load_annotations
from data.annotations.types import Annotation
from data.errors import UsageError
from data.foreign import brief, json_object, read_limited
from data.identity import digest, file_sha256
from data.store.files import atomic_write
from training.cqval.parses import APPROXIMATE, RECONSTRUCTED, Parses
from training.cqval.published import (
    PUBLISHED_SIZES,
    THRESHOLDS,
    Threshold,
    deltas,
    is_published_split,
)
from training.cqval.words import WORD_RULES

__all__ = ["Queries", "Splits", "build", "read_splits", "sizes", "write_splits"]

_FORMAT, _VERSION = "storyline-cqval", 1
_LIMIT = 256 * 2**20
_MOST = 10_000

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Queries:
    """The queries of an annotation file, and which file it was.

    Args:
        annotations: all rows.
        dataset: in whose format they are.
        file: its name.
        sha256: of its bytes.
    """

    annotations: Sequence[Annotation]
    dataset: str
    file: str
    sha256: str

    @classmethod
    def read(cls, path: Path, dataset: str) -> Queries:
        """Load a file; UsageError for one that cannot be read."""
        return cls(load_annotations(dataset, path), dataset, path.name, file_sha256(path))

    @property
    def texts(self) -> list[str]:
        """The sentences."""
        return [each.query for each in self.annotations]

    @property
    def published(self) -> bool:
        """Whether sizes were published for these queries: they are those of QVHighlights val."""
        return is_published_split(self.texts)


@dataclass(frozen=True)
class Splits:
    """What was counted, and how.

    Args:
        name: what the splits may be called.
        parser: source, name, version and hashes of the parse.
        clause_labels: labels that were counted; None for a source without labels.
        word_rule: name in `WORD_RULES`.
        dataset, file, sha256: the annotations.
        published: whether the published sizes are of these queries.
        qids: (Q) in file order.
        clauses, words: (Q) of each query.
        remarks: what a person should know before trusting it.
    """

    name: str
    parser: Mapping[str, Any]
    clause_labels: tuple[str, ...] | None
    word_rule: str
    dataset: str
    file: str
    sha256: str
    published: bool
    qids: tuple[int | str, ...]
    clauses: tuple[int, ...]
    words: tuple[int, ...]
    remarks: tuple[str, ...] = ()

    def inside(self, least: Threshold) -> NDArray[np.bool_]:
        """(Q,) which queries have at least so many clauses and words."""
        return np.asarray(
            (np.asarray(self.clauses) >= least.clauses) & (np.asarray(self.words) >= least.words)
        )

    def with_remarks(self, more: Iterable[str]) -> Splits:
        """The same with more remarks."""
        return replace(self, remarks=(*self.remarks, *more))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Queries of each of the twelve splits."""
        return sizes(np.asarray(self.clauses), np.asarray(self.words))

    @property
    def deltas(self) -> tuple[int, ...] | None:
        """Size less published size; None where none were published."""
        return deltas(self.sizes) if self.published else None


def build(
    queries: Queries, parses: Parses, labels: Sequence[str] | None = None, word_rule: str = "split"
) -> Splits:
    """Count clauses and words.

    Args:
        queries: the annotations.
        parses: of the same queries in the same order.
        labels: what makes a clause; None for the default.
        word_rule: name in `WORD_RULES`.

    Raises:
        UsageError: unknown labels or word rule; a rule that needs tokens without any; no query has
            a clause, so that all splits would be empty.
    """
    chosen = parses.labels(labels)
    clauses = parses.clauses(labels)
    if not clauses.any():
        raise UsageError(
            f"not one of {len(queries.annotations)} queries has a clause by this rule"
            + (f" ({', '.join(chosen)})" if chosen else "")
            + ", so that all splits would be empty; look at the parse and at its labels"
        )
    return Splits(
        name=parses.name,
        parser=parses.about,
        clause_labels=chosen,
        word_rule=word_rule,
        dataset=queries.dataset,
        file=queries.file,
        sha256=queries.sha256,
        published=queries.published,
        qids=tuple(each.qid for each in queries.annotations),
        clauses=tuple(clauses.tolist()),
        words=tuple(count_words(queries, parses, word_rule).tolist()),
        remarks=tuple(parses.remarks),
    )


def count_words(queries: Queries, parses: Parses, rule: str) -> Counts:
    """(Q,) words of each query by the rule of that name."""
    counts = WORD_RULES.get(rule)(queries.texts, parses.sentences)
    if counts is None:
        raise UsageError(
            f"the word rule '{rule}' counts tokens of a parse, and --parser "
            f"{parses.about['source']} has none; use --words split"
        )
    return counts


def sizes(clauses: Counts, words: Counts) -> tuple[int, ...]:
    """How many queries reach each of the twelve thresholds."""
    return tuple(int(((clauses >= c) & (words >= w)).sum()) for c, w in THRESHOLDS)


def write_splits(path: Path, splits: Splits) -> None:
    """Write the split file, replacing an old one at once."""
    atomic_write(path, (json.dumps(_to_json(splits), indent=1) + "\n").encode())


def read_splits(path: Path) -> Splits:
    """A split file.

    Raises:
        UsageError: not a split file, of another version, or changed after it was made.
    """
    row = json_object(read_limited(path, _LIMIT, "the splits"), str(path))
    if (row.get("format"), row.get("version")) != (_FORMAT, _VERSION):
        raise UsageError(
            f"{path} is no split file of this version: it says format {brief(row.get('format'))}, "
            f"version {brief(row.get('version'))}; make it with `trainer cqval build`"
        )
    try:
        splits = _from_json(row)
        same = _to_json(splits) == row
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is no whole split file ({type(error).__name__}: {brief(str(error))}); make it "
            "again with `trainer cqval build`"
        ) from None
    if not same:
        raise UsageError(
            f"{path} was changed after it was made: its content is not what its sha256 says. Make "
            "it again with `trainer cqval build`"
        )
    return splits


def _to_json(splits: Splits) -> dict[str, Any]:
    counted = zip(splits.qids, splits.clauses, splits.words, strict=True)
    row = {
        "format": _FORMAT,
        "version": _VERSION,
        "name": splits.name,
        "parser": dict(splits.parser),
        "clause_labels": None if splits.clause_labels is None else list(splits.clause_labels),
        "word_rule": splits.word_rule,
        "annotations": {
            "dataset": splits.dataset,
            "file": splits.file,
            "sha256": splits.sha256,
            "queries": len(splits.qids),
            "published_sizes_apply": splits.published,
        },
        "remarks": list(splits.remarks),
        "splits": list(_split_rows(splits)),
        "queries": [{"qid": qid, "clauses": c, "words": w} for qid, c, w in counted],
    }
    return {**row, "sha256": digest(row)}


def _split_rows(splits: Splits) -> Iterable[dict[str, Any]]:
    differences = splits.deltas or (None,) * len(THRESHOLDS)
    for least, published, delta in zip(THRESHOLDS, PUBLISHED_SIZES, differences, strict=True):
        inside = np.flatnonzero(splits.inside(least))
        yield {
            "clauses": least.clauses,
            "words": least.words,
            "size": len(inside),
            "published": published if splits.published else None,
            "delta": delta,
            "qids": [splits.qids[i] for i in inside],
        }


def _from_json(row: Mapping[str, Any]) -> Splits:
    queries, source = row["queries"], row["annotations"]
    if row["name"] not in {RECONSTRUCTED, APPROXIMATE}:
        raise ValueError(f"name {row['name']}")
    counts = [each[name] for each in queries for name in ("clauses", "words")]
    if not all(type(each) is int and 0 <= each <= _MOST for each in counts):
        raise ValueError(f"clauses and words are whole numbers from 0 to {_MOST}")
    if not all(type(each["qid"]) in {int, str} for each in queries):
        raise ValueError("a qid is a whole number or a string")
    labels = row["clause_labels"]
    return Splits(
        name=row["name"],
        parser=dict(row["parser"]),
        clause_labels=None if labels is None else tuple(labels),
        word_rule=str(row["word_rule"]),
        dataset=str(source["dataset"]),
        file=str(source["file"]),
        sha256=str(source["sha256"]),
        published=bool(source["published_sizes_apply"]),
        qids=tuple(each["qid"] for each in queries),
        clauses=tuple(each["clauses"] for each in queries),
        words=tuple(each["words"] for each in queries),
        remarks=tuple(map(str, row["remarks"])),
    )

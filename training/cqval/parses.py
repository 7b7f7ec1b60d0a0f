"""Where the clauses of queries come from: one protocol, one registry, one file per source.

A missing or useless parse is an error, never an empty split: a spaCy pipeline without a parser
gives every query zero clauses and says nothing (specs/tea_lmr_cqval_splits.md §4.4, §4.5).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.annotations.types import Annotation
from data.errors import UsageError, some
from data.registry import Registry
from training.cqval.clauses import CLAUSE_LABELS, CONJ_VERB, Token, known_labels, label_counts

__all__ = [
    "APPROXIMATE",
    "PARSERS",
    "RECONSTRUCTED",
    "ROUTES",
    "Counted",
    "Labelled",
    "Parses",
    "Source",
    "by_qid_text",
    "check_complete",
]

RECONSTRUCTED = "C-QVal (reconstructed)"
"""Which labels LMR counted is not known, so nobody can write "C-QVal" without a word more."""

APPROXIMATE = "C-QVal-approx"
"""Not from a parse at all."""

ROUTES = (
    "Supply a parse in one of three ways: `--parser spacy --model NAME_OR_FOLDER` (an installed "
    "package, or an unpacked folder, of a pipeline that has a parser, such as en_core_web_sm), "
    "`--parser conllu --parses FILE.conllu` (made by any parser anywhere, '# qid = ...' above "
    "each sentence), or `--parser sidecar --counts FILE.json` ({qid: clauses}). For a smoke test "
    f"there is `--parser heuristic`, which names itself {APPROXIMATE}"
)
"""What to do without a parser; part of every message about one that is missing."""

Counts = NDArray[np.int64]


class Parses(Protocol):
    """What a source found out about the queries of an annotation file, in their order."""

    @property
    def name(self) -> str:
        """What a split made of it may be called."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """Source, name and version of the parser, hashes; goes into the split file."""
        ...

    @property
    def remarks(self) -> Sequence[str]:
        """What a person should know before trusting it."""
        ...

    @property
    def sentences(self) -> Sequence[Sequence[Token]] | None:
        """Tokens of each query; None from a source of mere counts."""
        ...

    def labels(self, asked: Sequence[str] | None) -> tuple[str, ...] | None:
        """The labels that are counted if a user asks for these, or for none.

        Raises:
            UsageError: they are not known, or this source cannot count by labels.
        """
        ...

    def clauses(self, labels: Sequence[str] | None) -> Counts:
        """(Q,) clauses of each query, by the result of `labels`."""
        ...


@dataclass(frozen=True)
class Labelled:
    """A real parse: every token with its dependency label.

    Args:
        about: see `Parses`.
        sentences: tokens of each query.
        inventory: labels that the parser can give; empty if that is not known.
        remarks: see `Parses`.
    """

    about: Mapping[str, Any]
    sentences: Sequence[Sequence[Token]]
    inventory: frozenset[str] = frozenset()
    remarks: Sequence[str] = ()
    name: str = RECONSTRUCTED

    @property
    def found(self) -> frozenset[str]:
        """Labels that occur in the parse."""
        return frozenset(token.label for tokens in self.sentences for token in tokens)

    def labels(self, asked: Sequence[str] | None) -> tuple[str, ...]:
        """See `Parses`; the default is `CLAUSE_LABELS`."""
        possible = self.inventory | self.found
        chosen = known_labels(CLAUSE_LABELS if asked is None else asked, possible)
        if self.inventory and not {each.partition("-")[0] for each in chosen} & possible:
            raise UsageError(
                f"the parser knows none of the labels {', '.join(chosen)}: every query would have "
                f"zero clauses. Its labels: {some(sorted(possible), 60)}. Give --clause-labels, or "
                "another parser"
            )
        if CONJ_VERB in chosen and self._conjuncts_without_pos:
            raise UsageError(
                f"'{CONJ_VERB}' is 'conj' on a verb, and {self._conjuncts_without_pos:,} tokens "
                "with the label 'conj' have no part of speech in this parse; leave it out, or give "
                "a parse with parts of speech (the column UPOS; in spaCy a tagger or morphologizer)"
            )
        return chosen

    @property
    def _conjuncts_without_pos(self) -> int:
        return sum(
            token.label == "conj" and not token.pos for tokens in self.sentences for token in tokens
        )

    def clauses(self, labels: Sequence[str] | None) -> Counts:
        """See `Parses`."""
        counts = label_counts(self.sentences, self.labels(labels))
        return np.asarray(counts.sum(axis=1))


@dataclass(frozen=True)
class Counted:
    """Clauses of each query, counted by somebody else or by a rule of thumb.

    Args:
        about: see `Parses`.
        counts: one per query.
        name: see `Parses`.
        remarks: see `Parses`.
    """

    about: Mapping[str, Any]
    counts: Sequence[int]
    name: str = RECONSTRUCTED
    remarks: Sequence[str] = ()
    sentences: None = None

    def labels(self, asked: Sequence[str] | None) -> None:
        """None: there are no labels to choose from."""
        if asked is not None:
            raise UsageError(
                f"--parser {self.about['source']} has numbers of clauses and no dependency labels; "
                "leave out --clause-labels and --preset, or give a parse (--parser spacy or conllu)"
            )

    def clauses(self, labels: Sequence[str] | None) -> Counts:
        """See `Parses`."""
        self.labels(labels)
        return np.asarray(self.counts, np.int64)


class Source(Protocol):
    """One way to get clauses, registered in `PARSERS`.

    Attributes:
        option: which option says where the parse is ("--parses"); None if nothing is needed.
        default: value of that option if it is not given; None if it must be.
    """

    option: str | None
    default: str | None

    def __call__(self, annotations: Sequence[Annotation], given: str | None) -> Parses:
        """Clauses for each annotation.

        Args:
            annotations: the queries.
            given: value of `option`.

        Raises:
            UsageError: no parser, no such file, or a query that has no parse.
        """
        ...


PARSERS: Registry[Source] = Registry("parser")
"""Sources of clauses by name."""


def by_qid_text(annotations: Iterable[Annotation]) -> dict[str, Annotation]:
    """Queries by their qid as text, as files that have no numbers write it.

    Raises:
        UsageError: two qids are the same text: 1 and "1".
    """
    found: dict[str, Annotation] = {}
    for each in annotations:
        if str(each.qid) in found:
            raise UsageError(
                f"the annotations have the qid {each.qid} as a number and as a string, which this "
                "kind of file cannot tell apart"
            )
        found[str(each.qid)] = each
    return found


def check_complete(wanted: Iterable[str], there: Iterable[str], path: object) -> str | None:
    """A remark about qids that nobody asked for; None if there are none.

    Raises:
        UsageError: a wanted qid is not there.
    """
    wanted, there = list(wanted), list(there)
    missing = sorted(set(wanted) - set(there))
    if missing:
        raise UsageError(
            f"{path} lacks {len(missing):,} of the {len(wanted):,} queries of the annotations "
            f"({some([f'qid {qid}' for qid in missing], 3)}); parse every query: a split of a part "
            "would be another split"
        )
    more = set(there) - set(wanted)
    if not more:
        return None
    return f"{path} also has {len(more)} queries that are not in the annotations; not used"

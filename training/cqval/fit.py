"""Which labels and which words LMR may have counted: every rule against the twelve published sizes.

Sizes are all that can be compared with: LMR's list of queries is not public, and its hits are of
its own models (specs/tea_lmr_cqval_splits.md §4.2). Twelve numbers do not tell thousands of rules
apart, so a ranking comes with what the best rules have in common and what they do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError, some
from data.foreign import brief, json_object, read_limited
from data.store.files import atomic_write
from training.cqval.build import Queries
from training.cqval.clauses import CANDIDATES, CONJ_VERB, Token, known_labels, label_counts
from training.cqval.parses import Parses
from training.cqval.published import PUBLISHED_SIZES, THRESHOLDS
from training.cqval.words import WORD_RULES

__all__ = ["Fit", "Preset", "Rule", "fit", "rank", "read_preset", "write_preset"]

MOST_CANDIDATES = 16
"""65,535 label sets; twice as many labels would be two thousand million."""

NOISE = 0.04
"""Mean relative error that parsers of different versions differ by
(specs/tea_lmr_cqval_splits.md §4.3: 3 to 4 %)."""

_FORMAT, _VERSION = "storyline-cqval-preset", 1
_LIMIT = 2**20
_BLOCK = 4096

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Rule:
    """One way to count, and the sizes that it makes.

    Args:
        labels: what makes a clause, sorted.
        words: name of the word rule.
        sizes: queries of each of the twelve splits.
    """

    labels: tuple[str, ...]
    words: str
    sizes: tuple[int, ...]

    @property
    def residuals(self) -> tuple[int, ...]:
        """Size less published size."""
        return tuple(a - b for a, b in zip(self.sizes, PUBLISHED_SIZES, strict=True))

    @property
    def exact(self) -> int:
        """How many sizes are the published ones."""
        return self.residuals.count(0)

    @property
    def absolute(self) -> int:
        """Sum of the residuals without their signs."""
        return sum(map(abs, self.residuals))

    @property
    def relative(self) -> float:
        """Mean over the twelve of |residual| / published size: a small split weighs as a large."""
        shares = zip(self.residuals, PUBLISHED_SIZES, strict=True)
        return sum(abs(residual) / size for residual, size in shares) / len(PUBLISHED_SIZES)

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts the best first: by error, then the simplest: fewest labels, words by `split`."""
        simple = (len(self.labels), self.words != "split", self.words, self.labels)
        return (round(self.relative, 12), self.absolute, -self.exact, *simple)


@dataclass(frozen=True)
class Fit:
    """All rules, best first.

    Args:
        rules: every set of labels with every word rule.
        candidates: the labels that sets were made of.
        absent: labels that were to be tried and that no query has.
    """

    rules: tuple[Rule, ...]
    candidates: tuple[str, ...]
    absent: tuple[str, ...] = ()

    @property
    def best(self) -> Rule:
        """The first of the best; see `ties`."""
        return self.rules[0]

    @property
    def ties(self) -> tuple[Rule, ...]:
        """Rules that make exactly the sizes of the best."""
        return tuple(each for each in self.rules if each.sizes == self.best.sizes)

    @property
    def plausible(self) -> tuple[Rule, ...]:
        """Rules that another version of the parser might have put first; none if no rule fits."""
        return tuple(each for each in self.rules if each.relative <= NOISE)

    def remarks(self) -> Iterator[str]:
        """What the ranking does and does not tell, in sentences."""
        if len(self.ties) > 1:
            yield (
                f"{len(self.ties)} rules make the sizes of the best one; the twelve sizes cannot "
                f"tell them apart. First is the one with the fewest labels. {_common(self.ties)}"
            )
        if self.plausible:
            yield (
                f"{len(self.plausible):,} of {len(self.rules):,} rules are off by at most "
                f"{NOISE:.0%} on average, which is what parsers differ by. "
                f"{_common(self.plausible)}"
            )
        else:
            yield (
                f"no rule fits: the best is off by {self.best.relative:.1%} on average, and "
                f"parsers differ by {NOISE:.0%}. Is the parse good?"
            )
        if self.best.exact < len(PUBLISHED_SIZES):
            yield (
                f"the best rule makes {self.best.exact} of 12 sizes: LMR's parser was another "
                "version, or its rule is not among these"
            )
        if self.absent:
            yield f"not in this parse, so not tried: {', '.join(self.absent)}"


def _common(rules: Sequence[Rule]) -> str:
    sets = [set(each.labels) for each in rules]
    sure, possible = set.intersection(*sets), set.union(*sets)
    parts = {
        "in all of them": sorted(sure),
        "in some": sorted(possible - sure),
        "words by": sorted({each.words for each in rules}),
    }
    return "; ".join(f"{name}: {', '.join(found) or 'none'}" for name, found in parts.items())


def fit(queries: Queries, parses: Parses, candidates: Sequence[str] | None = None) -> Fit:
    """Compare all label sets and word rules with the published sizes.

    Args:
        queries: QVHighlights val.
        parses: of the same queries in the same order.
        candidates: labels to make sets of, at most 16; those that do not occur are left out. None
            for `CANDIDATES`.

    Raises:
        UsageError: other annotations; a source without labels; no or too many labels.
    """
    if parses.sentences is None:
        raise UsageError(
            f"--parser {parses.about['source']} has numbers of clauses and no labels, so there are "
            "no rules to compare: fit is impossible. Give a parse (--parser spacy or conllu)"
        )
    if not queries.published:
        raise UsageError(
            f"{queries.file} does not hold the 1,550 queries of QVHighlights val, of which LMR "
            f"published the sizes (it has {len(queries.annotations)}, or of other lengths); fit "
            "says nothing about other queries"
        )
    words = {name: WORD_RULES.get(name)(queries.texts, parses.sentences) for name in WORD_RULES}
    labels = parses.labels(_usual(parses.sentences) if candidates is None else candidates) or ()
    counts = label_counts(parses.sentences, labels)
    there = [i for i in range(len(labels)) if counts[:, i].any()]
    if not 0 < len(there) <= MOST_CANDIDATES:
        raise UsageError(
            f"{len(there)} of the labels {some(labels, 40)} occur in the parse; fit compares all "
            f"sets of 1 to {MOST_CANDIDATES} labels, choose with --candidates"
        )
    known = {name: each for name, each in words.items() if each is not None}
    chosen = tuple(labels[i] for i in there)
    wanted = CANDIDATES if candidates is None else labels
    absent = tuple(each for each in wanted if each not in chosen)
    return Fit(tuple(rank(counts[:, there], chosen, known)), chosen, absent)


def _usual(sentences: Sequence[Sequence[Token]]) -> list[str]:
    """`CANDIDATES`, without the one that needs parts of speech where there are none."""
    tagged = all(token.pos for tokens in sentences for token in tokens if token.label == "conj")
    return [each for each in CANDIDATES if tagged or each != CONJ_VERB]


def rank(counts: Counts, labels: Sequence[str], words: Mapping[str, Counts]) -> list[Rule]:
    """Every non-empty set of labels with every word rule, best first.

    Args:
        counts: (Q, L) how often each query has each label.
        labels: L names.
        words: (Q,) words of each query by the name of each rule.
    """
    long_enough = np.stack(
        [each >= least.words for each in words.values() for least in THRESHOLDS], axis=1
    ).astype(np.float32)
    rules: list[Rule] = []
    for first in range(1, 2 ** len(labels), _BLOCK):
        numbers = np.arange(first, min(first + _BLOCK, 2 ** len(labels)))
        sets = (numbers[:, None] >> np.arange(len(labels)) & 1).astype(np.float32)
        found = _sizes(sets @ counts.T.astype(np.float32), long_enough)
        for chosen, by_rule in zip(sets.astype(bool), found, strict=True):
            names = tuple(sorted(np.asarray(labels)[chosen].tolist()))
            rules += [
                Rule(names, name, tuple(row)) for name, row in zip(words, by_rule, strict=True)
            ]
    return sorted(rules, key=lambda rule: rule.order)


def _sizes(clauses: NDArray[np.float32], long_enough: NDArray[np.float32]) -> list[list[list[int]]]:
    """[S][R][12] sizes of (S, Q) clauses and (Q, R * 12) queries that are long enough."""
    sizes = np.zeros((len(clauses), long_enough.shape[1]))
    least = np.asarray([each.clauses for each in THRESHOLDS])
    column = np.tile(least, long_enough.shape[1] // len(least))
    for number in np.unique(least):
        enough = (clauses >= number).astype(np.float32)
        sizes[:, column == number] = enough @ long_enough[:, column == number]
    shaped: list[list[list[int]]] = (
        sizes.reshape(len(clauses), -1, len(least)).astype(np.int64).tolist()
    )
    return shaped


@dataclass(frozen=True)
class Preset:
    """A rule to build with, and where it comes from.

    Args:
        labels: what makes a clause.
        words: name of the word rule.
        parser: `Parses.about` of the parse that it was fitted with.
    """

    labels: tuple[str, ...]
    words: str
    parser: Mapping[str, Any]

    def remarks(self, parses: Parses) -> Iterator[str]:
        """A sentence if the rule was fitted with another parse than this one."""
        if dict(self.parser) != dict(parses.about):
            yield "the preset was fitted with another parse than this one"


def write_preset(path: Path, found: Fit, parses: Parses, queries: Queries) -> None:
    """Write the best rule with everything that it was chosen by."""
    best = found.best
    row = {
        "format": _FORMAT,
        "version": _VERSION,
        "clause_labels": list(best.labels),
        "word_rule": best.words,
        "fitted": {
            "parser": dict(parses.about),
            "annotations_sha256": queries.sha256,
            "candidates": list(found.candidates),
            "sizes": list(best.sizes),
            "residuals": list(best.residuals),
            "exact": best.exact,
            "absolute_error": best.absolute,
            "relative_error": round(best.relative, 6),
            "rules_with_the_same_sizes": len(found.ties),
            "rules_within_parser_noise": len(found.plausible),
        },
    }
    atomic_write(path, (json.dumps(row, indent=1) + "\n").encode())


def read_preset(path: Path) -> Preset:
    """A preset file; UsageError if it is none."""
    row = json_object(read_limited(path, _LIMIT, "the preset"), str(path))
    labels, words, fitted = (row.get(each) for each in ("clause_labels", "word_rule", "fitted"))
    whole = (row.get("format"), row.get("version")) == (_FORMAT, _VERSION)
    if not whole or not isinstance(labels, list) or not isinstance(fitted, dict):
        raise UsageError(
            f"{path} is no preset of this version: {brief(row)}; make it with `trainer cqval fit`"
        )
    parser = fitted.get("parser")
    return Preset(
        known_labels(map(str, labels), map(str, labels)),
        str(words),
        parser if isinstance(parser, dict) else {},
    )

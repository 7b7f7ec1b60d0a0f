"""The clause rule: how many tokens of a query stand in a dependency that makes a clause.

LMR says only that it used "spaCy to calculate the number of clauses" (Sec. IV-D); which labels it
counted is not known (specs/tea_lmr_cqval_splits.md §4.3). spaCy's English pipelines have the labels
of ClearNLP, most other parsers those of Universal Dependencies. Counting is by ClearNLP names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import UsageError, nearest

__all__ = [
    "CANDIDATES",
    "CLAUSE_LABELS",
    "CONJ_VERB",
    "Token",
    "clearnlp",
    "known_labels",
    "label_counts",
]

CLAUSE_LABELS = ("acl", "advcl", "ccomp", "csubj", "csubjpass", "relcl", "xcomp")
"""Counted by default: the complete list of ClearNLP's clauses, a superset of the set that is most
often found in public code. The main clause (ROOT) is not counted: the published sizes exclude it
(specs/tea_lmr_cqval_splits.md §4.3)."""

CANDIDATES = (*CLAUSE_LABELS, "conj-verb", "parataxis", "pcomp")
"""Labels whose sets `fit` compares."""

CONJ_VERB = "conj-verb"
"""Not a label of a parser: `conj` on a verb, "She cuts and *eats* it"."""

_CLEARNLP = (
    "ROOT acl acomp advcl advmod agent amod appos attr aux auxpass case cc ccomp compound conj "
    "csubj csubjpass dative dep det dobj expl intj mark meta neg nmod npadvmod nsubj nsubjpass "
    "nummod oprd parataxis pcomp pobj poss preconj predet prep prt punct quantmod relcl "
    "xcomp"
)
CLEARNLP = frozenset(_CLEARNLP.split())
"""Labels of the parser of en_core_web_sm 3.8.0, from its meta.json in explosion/spacy-models."""

_FROM_UD = {
    "root": "ROOT",
    "acl:relcl": "relcl",
    "csubj:pass": "csubjpass",
    "nsubj:pass": "nsubjpass",
    "aux:pass": "auxpass",
    "nmod:poss": "poss",
    "compound:prt": "prt",
    "det:predet": "predet",
    "cc:preconj": "preconj",
    "obl:agent": "agent",
    "obj": "dobj",
    "iobj": "dative",
}
"""Universal Dependencies that are the same thing under another name. Any other subtype is cut off
(`advcl:relcl` is `advcl`). Nothing makes `pcomp` of UD: "by *talking*" is `advcl` there."""


@dataclass(frozen=True)
class Token:
    """One syntactic word of a parse.

    Args:
        text: as written.
        label: dependency on its head, by its ClearNLP name.
        pos: coarse part of speech (`VERB`); empty where the parse has none.
    """

    text: str
    label: str
    pos: str = ""


def clearnlp(label: str) -> str:
    """The ClearNLP name of a label of ClearNLP or Universal Dependencies."""
    label = label.strip()
    return _FROM_UD.get(label) or label.partition(":")[0]


def known_labels(labels: Iterable[str], found: Iterable[str] = ()) -> tuple[str, ...]:
    """Labels of a clause rule by their ClearNLP names, sorted, none twice.

    Args:
        labels: as a user gives them.
        found: labels of the parse at hand, which may be of another scheme.

    Raises:
        UsageError: a label that no parser has, or none at all.
    """
    known = CLEARNLP | {CONJ_VERB} | set(found)
    chosen = sorted({clearnlp(each) for each in labels if each.strip()})
    if not chosen:
        raise UsageError(f"a clause rule needs labels, such as {','.join(CLAUSE_LABELS)}")
    for each in chosen:
        if each not in known:
            raise UsageError(f"unknown clause label '{each}'; {nearest(each, known)}")
    return tuple(chosen)


def label_counts(sentences: Sequence[Sequence[Token]], labels: Sequence[str]) -> NDArray[np.int64]:
    """(Q, L) how often each query has each label.

    Args:
        sentences: tokens of each query.
        labels: L names; "conj-verb" is `conj` on a token whose part of speech is VERB or AUX.
    """
    place = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(sentences), len(labels)), np.int64)
    for row, tokens in enumerate(sentences):
        for label in (each for token in tokens for each in _names(token)):
            if label in place:
                counts[row, place[label]] += 1
    return counts


def _names(token: Token) -> tuple[str, ...]:
    if token.label == "conj" and token.pos in {"VERB", "AUX"}:
        return token.label, CONJ_VERB
    return (token.label,)

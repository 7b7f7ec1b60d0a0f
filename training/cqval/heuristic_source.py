"""A rule of thumb for smoke tests, where there is no parse: forms in -ing that start a clause.

"A man *wearing* a hat" counts, "a man is wearing a hat" does not. Finite clauses ("that she likes")
are not seen at all. The spec tells its rule in half a sentence and has the sizes 401, 358, 308,
256, 221, 185, 153, 128, 98, 77, 69, 64 (specs/tea_lmr_cqval_splits.md §4.4); this one differs from
them by at most one query in each (docs/cqval.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data.annotations.types import Annotation
from training.cqval.parses import APPROXIMATE, PARSERS, Counted

__all__ = ["Heuristic", "participles"]

_WORD = re.compile(r"[a-z']+")

_BE = {"am", "is", "are", "was", "were", "be", "been", "being"}
_BE |= {"he's", "she's", "it's", "they're", "there's"}

_REACH = 2
"""Words before a participle among which a form of "be" governs it: "is slowly walking"."""

_NO_VERBS = (
    "anything bring building ceiling clothing during evening everything king morning nothing ring "
    "sing something spring string swing thing wedding wing"
)
_NO_VERB = frozenset(_NO_VERBS.split())


def participles(query: str) -> int:
    """Participles in -ing that no form of "be" governs."""
    words = _WORD.findall(query.lower())
    return sum(
        word.endswith("ing")
        and word not in _NO_VERB
        and _BE.isdisjoint(words[max(0, place - _REACH) : place])
        for place, word in enumerate(words)
    )


class Heuristic:
    """Counts `participles`; its splits are called C-QVal-approx."""

    option: str | None = None
    default: str | None = None

    def __call__(self, annotations: Sequence[Annotation], given: str | None) -> Counted:
        """See `Source`."""
        del given
        return Counted(
            about={"source": "heuristic", "name": "participles", "version": 1},
            counts=[participles(each.query) for each in annotations],
            name=APPROXIMATE,
            remarks=("no parse was used: fit for smoke tests, not for reporting",),
        )


PARSERS.register("heuristic")(Heuristic())

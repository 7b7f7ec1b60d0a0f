"""Word rules: how long a query is. LMR does not say how it counts words."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.registry import Registry
from training.cqval.clauses import Token

__all__ = ["WORD_RULES", "WordRule"]


@dataclass(frozen=True)
class WordRule:
    """How the words of a query are counted.

    Args:
        of_text: counts in the sentence; None for rules that need the tokens of a parse.
        of_token: which tokens of a parse are words.
    """

    of_text: Callable[[str], int] | None = None
    of_token: Callable[[Token], bool] | None = None

    def __call__(
        self, queries: Sequence[str], sentences: Sequence[Sequence[Token]] | None
    ) -> NDArray[np.int64] | None:
        """(Q,) words of each query; None if the rule needs tokens and there are none."""
        if self.of_text is not None:
            return np.asarray([self.of_text(each) for each in queries], np.int64)
        if sentences is None or self.of_token is None:
            return None
        counts = [sum(map(self.of_token, tokens)) for tokens in sentences]
        return np.asarray(counts, np.int64)


def is_punctuation(text: str) -> bool:
    """Whether a token has nothing but punctuation signs, as spaCy's `is_punct` says it."""
    return bool(text) and all(unicodedata.category(sign).startswith("P") for sign in text)


WORD_RULES: Registry[WordRule] = Registry("word rule")
"""`split` (the default) counts what stands between blanks; the others count tokens of the parse."""

WORD_RULES.register("split")(WordRule(of_text=lambda query: len(query.split())))
WORD_RULES.register("alphabetic")(WordRule(of_token=lambda token: token.text.isalpha()))
WORD_RULES.register("no-punctuation")(
    WordRule(of_token=lambda token: not is_punctuation(token.text))
)
WORD_RULES.register("tokens")(WordRule(of_token=lambda token: True))

"""GloVe: one frozen vector per word, the word vectors of EMB, VSLNet and TEA.

Pennington, Socher, Manning, "GloVe: Global Vectors for Word Representation", EMNLP 2014,
https://nlp.stanford.edu/projects/glove/. As in the public code of EMB and VSLNet
(`util/data_gen.py`): the 840B vectors of 300 numbers, lower case, Treebank tokens, signs kept in
queries. What differs:

- A word without a vector is left out (`unknown: skip`), where EMB has one trained vector for all
  such words: a stored vector is frozen. `unknown: zero` keeps its place. Either way it is named in
  the states, and no part of a caption's mean.
- Captions lose their signs before they are averaged (`keeps_punctuation`): "." and "," are the most
  frequent tokens, and their vectors would be most of every mean (specs §2.4).
- Words are looked up as they are. EMB's vocabulary is that of its queries; a table made for some
  texts knows which words were asked for, so that a word that nobody looked up is told apart from
  one that GloVe does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from data.errors import InputError, UsageError, nearest, some
from models.text.base import (
    SIGN,
    TEXT_ENCODERS,
    UNKNOWN,
    WORD,
    TextEncoder,
    TextStates,
    is_sign,
    split_sentences,
)
from models.text.treebank import treebank_words
from models.weights import Checkpoint, Weights
from models.word_tables import open_table

__all__ = ["SIGNS", "GloveText", "glove_words"]

_REMEMBERED = 20_000
"""Rows that are kept in memory: 24 MB."""


SIGNS = frozenset({*"!#$%&()*,-./:;<>?@[]_{}«»“”‘’„`'–—…•", "``", "''", '"', "--", "...", "."})
"""Signs that every table is asked for, so that another text has its own."""


def glove_words(text: str) -> list[str]:
    """The words and signs of a text of any length that are looked up, in order."""
    return [word for each in split_sentences(text) for word in treebank_words(each)]


@TEXT_ENCODERS.register("glove")
class GloveText(TextEncoder):
    """One vector per lower-cased Treebank token; the pooled vector is the mean of the known ones.

    Args:
        checkpoint: the table that `pipeline weights glove` writes.
        unknown: "skip" leaves words without a vector out; "zero" has a vector of zeros in their
            place.
        unasked: words that were not looked up when the table was made: "refuse" the text, or
            treat them as "unknown".
        seed: taken and not used: nothing is random here.
        device: taken and not used: it runs on the CPU.
    """

    name = "glove"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"full": {}, "tiny": {}}
    keeps_punctuation = False
    random = False

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        unknown: str = "skip",
        unasked: str = "refuse",
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        del seed, device
        for option, given, allowed in (
            ("unknown", unknown, ("skip", "zero")),
            ("unasked", unasked, ("refuse", "unknown")),
        ):
            if given not in allowed:
                raise UsageError(
                    f"text encoder glove: option '{option}' is '{given}'; {nearest(given, allowed)}"
                )
        table = self._table = open_table(checkpoint, self.name)
        self._rows = {word: index for index, word in enumerate(table.words)}
        if len(self._rows) != table.shape[0]:
            raise UsageError(
                f"table '{table.path}' is damaged: {len(self._rows):,} different words for "
                f"{table.shape[0]:,} vectors; make it again"
            )
        self._unknown, self._unasked = unknown, unasked
        self._row = lru_cache(_REMEMBERED)(table.row)
        self.dim = self.pooled_dim = table.shape[1]
        self.weights = Weights("file", table.sha256, table.path.name, "word table")

    def params(self) -> dict[str, Any]:
        """See `TextEncoder.params`."""
        return super().params() | {"unknown": self._unknown, "unasked": self._unasked}

    def _encode(self, texts: Sequence[str]) -> list[TextStates]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> TextStates:
        tokens = glove_words(text)
        lost = tuple(each for each in tokens if each not in self._rows)
        self._check_asked(lost)
        placed = tokens if self._unknown == "zero" else [e for e in tokens if e in self._rows]
        states = np.zeros((max(len(placed), 1), self.dim), np.float32)
        kinds = np.full(len(states), UNKNOWN, np.uint8)
        for place, token in enumerate(placed):
            if token in self._rows:
                states[place] = self._row(self._rows[token])
                kinds[place] = SIGN if is_sign(token) else WORD
        known = states[kinds != UNKNOWN]
        pooled = known.mean(axis=0) if len(known) else states[0]
        return TextStates(states, pooled, kinds=kinds, unknown=_words_of(lost))

    def _check_asked(self, lost: Sequence[str]) -> None:
        table = self._table
        if self._unasked == "unknown" or table.whole:
            return
        # Of signs every table has the usual ones; for another no text is refused.
        never = sorted({*_words_of(lost)} - table.unknown)
        if never:
            raise InputError(
                "words-not-looked-up",
                f"table '{table.path.name}' was made without looking up: {some(never)}; make it "
                "again with the texts of this run (`pipeline weights glove … --words-from STORE`), "
                "or count such words as unknown with options: {unasked: unknown}",
            )


def _words_of(tokens: Sequence[str]) -> tuple[str, ...]:
    return tuple(each for each in tokens if not is_sign(each))

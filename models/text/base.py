"""What a text encoder is: sentences in, states of their tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.registry import Registry
from models.weights import Weights

__all__ = [
    "SIGN",
    "TEXT_ENCODERS",
    "UNKNOWN",
    "WORD",
    "CaptionVector",
    "TextEncoder",
    "TextStates",
    "is_sign",
    "split_sentences",
]

TEXT_ENCODERS: Registry[type[TextEncoder]] = Registry("text encoder")
"""All text encoders by name. A module adds its class with `@TEXT_ENCODERS.register("name")`."""

WORD, SIGN, UNKNOWN = 0, 1, 2
"""Kinds of tokens: a word; punctuation; a place kept by zeros for a word that is not known."""


@dataclass(frozen=True)
class TextStates:
    """One encoded text, never padded.

    Args:
        tokens: float32 (T, D), T >= 1.
        pooled: float32 (P,), one vector for the text.
        truncated: whether words at the end did not fit and are missing.
        kinds: uint8 (T,), what each token is: `WORD`, `SIGN` or `UNKNOWN`; None: words all.
        unknown: words that the encoder has no state for, in order. They are left out of `tokens`,
            unless the encoder was told to keep their places; one of zeros stands for them if no
            other token is left.
    """

    tokens: NDArray[np.float32]
    pooled: NDArray[np.float32]
    truncated: bool = False
    kinds: NDArray[np.uint8] | None = None
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptionVector:
    """One embedded caption of any length.

    Args:
        vector: float32 (D,), mean of the states of its words; zeros if no word is known.
        words: tokens that the mean runs over.
        truncated: whether a sentence did not fit, so that words of it are missing.
        unknown: words that the encoder has no state for, in order.
    """

    vector: NDArray[np.float32]
    words: int
    truncated: bool
    unknown: tuple[str, ...] = ()


class TextEncoder(ABC):
    """A frozen text encoder.

    Attributes:
        dim: D of the token states.
        pooled_dim: P of the pooled vector.
        weights: where the weights come from.
        edges: how many states at the beginning and at the end of `tokens` are markers, not words.
        keeps_punctuation: whether signs are part of a caption's mean, if nobody says otherwise.
        random: whether it is of use without a file, by seeded random weights.
    """

    name: ClassVar[str]
    keeps_punctuation: ClassVar[bool] = True
    random: ClassVar[bool] = True
    PRESETS: ClassVar[dict[str, dict[str, Any]]]
    """Named sets of constructor options, as in `models.backbones`."""
    edges: ClassVar[tuple[int, int]] = (0, 0)

    dim: int
    pooled_dim: int
    weights: Weights

    def encode(self, texts: Sequence[str]) -> list[TextStates]:
        """Encode each text on its own; the others of the call make no difference.

        Raises:
            InputError: `no-text`, a text without any word.
        """
        for text in texts:
            if not text.strip():
                raise InputError("no-text", f"a text without words cannot be encoded: {text!r}")
        return self._encode(texts) if texts else []

    @abstractmethod
    def _encode(self, texts: Sequence[str]) -> list[TextStates]: ...

    def params(self) -> dict[str, Any]:
        """Plain JSON that determines the states of a given text: the recipe."""
        return {
            "text_encoder": self.name,
            "dim": self.dim,
            "pooled_dim": self.pooled_dim,
            "weights": self.weights.recipe(),
        }

    def encode_caption(self, text: str) -> NDArray[np.float32]:
        """A caption of any length as one vector (D,); see `caption_vector`."""
        return self.caption_vector(text).vector

    def caption_vector(self, text: str, keep_punct: bool | None = None) -> CaptionVector:
        """Mean of the word states of a caption, `e(c)` of TEA's Eq. 3.

        The caption is encoded sentence by sentence, so that a long one fits an encoder's context;
        every word weighs the same, whatever its sentence.

        Args:
            text: one or more sentences.
            keep_punct: whether signs count as words; None: `keeps_punctuation`.

        Raises:
            InputError: `no-text`, a caption without words.
        """
        kept = self.keeps_punctuation if keep_punct is None else keep_punct
        states = list(self._sentences(text))
        words = np.concatenate([_words(each, self.edges, kept) for each in states])
        unknown = tuple(word for each in states for word in each.unknown)
        if not len(words) and not unknown:
            raise InputError("no-text", f"a text of signs alone cannot be encoded: {text!r:.200}")
        total = words.sum(axis=0, dtype=np.float64)
        return CaptionVector(
            (total / max(len(words), 1)).astype(np.float32),
            len(words),
            any(each.truncated for each in states),
            unknown,
        )

    def _sentences(self, text: str) -> Iterator[TextStates]:
        """The states of each sentence that has words; InputError if none has."""
        problem: InputError | None = None
        found = False
        for sentence in split_sentences(text) or [text]:
            try:
                (states,) = self.encode([sentence])
            except InputError as error:
                if error.reason != "no-text":
                    raise
                problem = error  # "..." on a line of its own says nothing of the others
                continue
            found = True
            yield states
        if not found and problem is not None:
            raise problem


def _words(states: TextStates, edges: tuple[int, int], keep_punct: bool) -> NDArray[np.float32]:
    """The states that a mean over words runs over, (W, D); W may be 0."""
    lead, trail = edges
    inner = slice(lead, len(states.tokens) - trail)
    if states.kinds is None:
        return states.tokens[inner]
    kinds = states.kinds[inner]
    counted = (kinds == WORD) | (keep_punct & (kinds == SIGN))
    words: NDArray[np.float32] = states.tokens[inner][counted]
    return words


def is_sign(token: str) -> bool:
    """Whether a token is punctuation: it has neither letter nor digit."""
    return not any(each.isalnum() for each in token)


def split_sentences(text: str) -> list[str]:
    """The sentences of `text` by spaCy's rules for English, which need no model; lines are apart.

    "Mr. Smith" and "3.5 m" are not cut.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    sentences = [found.text.strip() for line in lines for found in _sentencizer()(line).sents]
    return [each for each in sentences if each]


@cache
def _sentencizer() -> Any:
    import spacy

    language = spacy.blank("en")
    language.add_pipe("sentencizer")
    return language

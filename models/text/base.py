"""What a text encoder is: sentences in, states of their tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.registry import Registry
from models.weights import Weights

__all__ = ["TEXT_ENCODERS", "CaptionVector", "TextEncoder", "TextStates", "split_sentences"]

TEXT_ENCODERS: Registry[type[TextEncoder]] = Registry("text encoder")
"""All text encoders by name. A module adds its class with `@TEXT_ENCODERS.register("name")`."""


@dataclass(frozen=True)
class TextStates:
    """One encoded text, never padded.

    Args:
        tokens: float32 (T, D), T >= 1.
        pooled: float32 (P,), one vector for the text.
        truncated: whether words at the end did not fit and are missing.
    """

    tokens: NDArray[np.float32]
    pooled: NDArray[np.float32]
    truncated: bool = False


@dataclass(frozen=True)
class CaptionVector:
    """One embedded caption of any length.

    Args:
        vector: float32 (D,), mean of the states of its words.
        words: tokens that the mean runs over.
        truncated: whether a sentence did not fit, so that words of it are missing.
    """

    vector: NDArray[np.float32]
    words: int
    truncated: bool


class TextEncoder(ABC):
    """A frozen text encoder.

    Attributes:
        dim: D of the token states.
        pooled_dim: P of the pooled vector.
        weights: where the weights come from.
        edges: how many states at the beginning and at the end of `tokens` are markers, not words.
    """

    name: ClassVar[str]
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

    def caption_vector(self, text: str) -> CaptionVector:
        """Mean of the word states of a caption, `e(c)` of TEA's Eq. 3.

        The caption is encoded sentence by sentence, so that a long one fits an encoder's context;
        every word weighs the same, whatever its sentence.
        """
        states = self.encode(split_sentences(text) or [text])
        lead, trail = self.edges
        words = np.concatenate([each.tokens[lead : len(each.tokens) - trail] for each in states])
        return CaptionVector(
            words.mean(axis=0, dtype=np.float64).astype(np.float32),
            len(words),
            any(each.truncated for each in states),
        )


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

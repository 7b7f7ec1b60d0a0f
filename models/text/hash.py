"""Seeded random word vectors: every word its own direction, nothing learned.

For tests and as an explicit choice where no weights are at hand. Words keep apart, but no word is
closer to another in meaning, and order and context play no part.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError, UsageError
from data.identity import digest
from models.text.base import TEXT_ENCODERS, TextEncoder, TextStates
from models.weights import Checkpoint, Weights

__all__ = ["HashText"]


@TEXT_ENCODERS.register("hash")
class HashText(TextEncoder):
    """One vector per lower-cased word, by hash of (seed, word); punctuation is dropped.

    Args:
        dim: length of the vectors.
        seed: which of the random tables.
        device: taken and not used: it runs on the CPU.
    """

    name = "hash"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"full": {"dim": 300}, "tiny": {"dim": 64}}
    keeps_punctuation = False  # it has none to keep

    def __init__(
        self,
        checkpoint: Checkpoint | None = None,
        *,
        dim: int = 300,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        del device
        if checkpoint is not None:
            raise UsageError("text encoder hash has no weights; leave its checkpoint out")
        self.dim = self.pooled_dim = dim
        self._seed = seed
        self.weights = Weights("random", digest(["hash words", 1, dim, seed]), f"seed {seed}")

    def _encode(self, texts: Sequence[str]) -> list[TextStates]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> TextStates:
        words = re.findall(r"\w+(?:['’]\w+)*", text.lower())
        if not words:
            raise InputError("no-text", f"a text without words cannot be encoded: {text!r}")
        tokens = np.stack([self._vector(word) for word in words])
        return TextStates(tokens, tokens.mean(axis=0))

    def _vector(self, word: str) -> NDArray[np.float32]:
        key = hashlib.sha256(f"{self._seed}:{word}".encode()).digest()
        random = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "big")))
        # Uniform with unit variance: exact on every machine.
        return (3**0.5 * (2 * random.random(self.dim, dtype=np.float32) - 1)).astype(np.float32)

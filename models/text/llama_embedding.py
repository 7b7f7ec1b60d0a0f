"""LLaMA's input embeddings: one frozen vector per sub-word, no layer of the language model.

The text encoder of LMR's description branch and of its Charades-STA setting
(specs/tea_lmr_cqval_splits.md §3.1): a look-up in `embed_tokens`, 32,000 vectors of 4,096 numbers
for 7B. The table and its tokenizer are written once by `pipeline weights extract-embedding`; the
13 GB of the language model are not needed then.

No marker is among the tokens: BOS says nothing of a text. Special tokens spelt out in a text
("</s>") are text. The paper does not say how the tokens of a description become one vector per
clip; ours is their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from data.errors import InputError, UsageError
from models.text.base import SIGN, TEXT_ENCODERS, WORD, TextEncoder, TextStates, is_sign
from models.tokens import tokens_from
from models.weights import Checkpoint, Weights
from models.word_tables import open_table

__all__ = ["LlamaEmbedding"]

_REMEMBERED = 2_000
"""Rows that are kept in memory: 32 MB of 4096 numbers."""

_BLANK = "▁"  # how pieces of SentencePiece show a space


@TEXT_ENCODERS.register("llama_embedding")
class LlamaEmbedding(TextEncoder):
    """One vector per sub-word of a text as it is written; the pooled vector is their mean.

    Args:
        checkpoint: the table that `pipeline weights extract-embedding` writes.
        seed: taken and not used: nothing is random here.
        device: taken and not used: it runs on the CPU.
    """

    name = "llama_embedding"
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"full": {}, "tiny": {}}
    random = False

    def __init__(
        self, checkpoint: Checkpoint | None = None, *, seed: int = 0, device: str = "cpu"
    ) -> None:
        del seed, device
        table = open_table(checkpoint, self.name)
        kind = table.about.get("tokenizer", "")
        self._pieces = tokens_from(
            table.blob("tokenizer"), kind, f"the tokenizer in table '{table.path}'"
        )
        rows, self.dim = table.shape
        if self._pieces.count > rows:
            raise UsageError(
                f"table '{table.path}' is damaged: its tokenizer has {self._pieces.count:,} "
                f"pieces for {rows:,} vectors; make it again"
            )
        self.pooled_dim = self.dim
        self._row = lru_cache(_REMEMBERED)(table.row)
        self.weights = Weights("file", table.sha256, table.path.name, "word table")

    def _encode(self, texts: Sequence[str]) -> list[TextStates]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> TextStates:
        ids = self._pieces.encode(text)
        if not ids:
            raise InputError("no-text", f"a text without words cannot be encoded: {text!r:.200}")
        tokens = np.stack([self._row(each) for each in ids])
        signs = [is_sign(self._pieces.piece(each).replace(_BLANK, "")) for each in ids]
        kinds = np.where(signs, SIGN, WORD).astype(np.uint8)
        return TextStates(tokens, tokens.mean(axis=0), kinds=kinds)

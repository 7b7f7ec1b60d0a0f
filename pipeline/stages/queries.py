"""`queries`: token states and a pooled vector per sentence, encoded once whatever its qid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from data.store.types import Row, Schema, StreamSpec
from pipeline.stage import STAGES, Inputs, Item, RowStage
from pipeline.stages.common import Configured, built
from pipeline.stages.text import TextOptions, build_encoder, shares, text_dims

if TYPE_CHECKING:
    from models.text import TextEncoder

__all__ = ["QueriesOptions", "QueriesStage"]


class QueriesOptions(TextOptions):
    """Section `queries` of pipeline.yaml."""

    group_size: int = Field(256, ge=1, description="Sentences that travel to a worker together.")


@STAGES.register("queries")
class QueriesStage(Configured, RowStage):
    """Token states (T, D) and pooled vector (1, P), un-normalised float16.

    Facts of a row: one of the `sentences`, whether it is `truncated`, its `tokens`, markers
    included, and `unknown_words`.
    """

    name = "queries"
    version = 2  # facts of words
    over = "queries"
    summed = ("sentences", "truncated", "tokens", "unknown_words")
    remarked = summed
    Options: ClassVar[type[Any]] = QueriesOptions
    options: QueriesOptions
    _encoder: TextEncoder | None = None

    @property
    def schema(self) -> Schema:
        """`tokens` (T, D) and `pooled` (1, P)."""
        dim, pooled_dim = text_dims(self.options)
        return Schema(
            {
                "tokens": StreamSpec((dim,), "float16", "item"),
                "pooled": StreamSpec((pooled_dim,), "float16", "item"),
            }
        )

    def params(self) -> Mapping[str, Any]:
        """The encoder."""
        return {"encoder": self.options.params}

    @classmethod
    def remarks(cls, sums: Mapping[str, int]) -> list[str]:
        """What the encoder lost of the sentences."""
        return shares(
            (sums["truncated"], sums["sentences"], "queries truncated"),
            (sums["unknown_words"], sums["tokens"] + sums["unknown_words"], "words unknown"),
        )

    @property
    def group_size(self) -> int:
        """Sentences are short: many travel together."""
        return self.options.group_size

    def setup(self) -> None:
        """Build the text encoder."""
        self._encoder = build_encoder(self.options, self.context.device)

    def process(self, item: Item, inputs: Inputs) -> Row:
        """Encode one sentence.

        Raises:
            InputError: `no-text`, a sentence without words; `words-not-looked-up`, one with words
                that the table of the encoder was not made for.
        """
        del inputs
        if item.text is None:
            raise ValueError(f"item {item.key.id} has no sentence")
        (states,) = built(self._encoder, self.name).encode([item.text])
        arrays = {
            "tokens": states.tokens.astype(np.float16),
            "pooled": states.pooled.reshape(1, -1).astype(np.float16),
        }
        facts = {
            "sentences": 1,
            "truncated": int(states.truncated),
            "tokens": len(states.tokens),
            "unknown_words": len(states.unknown),
        }
        return Row(item.key, None, arrays, facts=facts)

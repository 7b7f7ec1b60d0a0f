"""Encoders of clips, words and descriptions of the clips, which read the query their own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from torch import Tensor

from data.errors import UsageError
from models.retrieval.flow import Tokens
from models.retrieval.parts.encoders import ProjectionEncoders
from models.retrieval.parts.projection import FeatureProjection
from models.retrieval.types import Batch, Side

__all__ = ["DescribedEncoders", "DescriptionQuery"]

DescriptionQuery = Literal["separate", "shared", "other"]
"""What descriptions read of the query: its words projected a second time, as the clips read them,
or its words in another embedding."""

_REMEDY = (
    "load them with the trainer's `data.narratives=true` (`pipeline run --stage narratives` writes "
    "them), or give `side_dims` to `create_model`"
)
_OTHER_REMEDY = (
    "load it with the trainer's `data.other_texts` (`pipeline run --stage queries` writes what "
    "`stages.queries.others` names), or give `text_dims` to `create_model`"
)


class DescribedEncoders(ProjectionEncoders):
    """Projections of clips, descriptions and words (specs/tea_lmr_cqval_splits.md §3.3).

    `extras` of the tokens, where descriptions are read: `description` (B, L, d), and `described`
    (B, L) float, 1 where a clip has a description. `texts` of the tokens: `description_words`
    (B, T', d) and `description_mask` (B, T') bool, the words as the descriptions read them, where
    that is another projection or another embedding.

    Args:
        video: features of a clip.
        text: features of a word.
        hidden: d.
        sides: features of each side stream.
        texts: features of a word in each further embedding.
        side: name of the side stream of descriptions; None reads none.
        visual: whether clips are read; without them `video` of the tokens are the descriptions.
        query: see `DescriptionQuery`.
        other_text: name of the other embedding.
        depth: layers of a projection.
        dropout: on what comes in.

    Raises:
        UsageError: the data have no descriptions, or not the other embedding of the query.
    """

    def __init__(
        self,
        video: int,
        text: int,
        hidden: int,
        *,
        sides: Mapping[str, int],
        texts: Mapping[str, int],
        side: str | None,
        visual: bool,
        query: DescriptionQuery,
        other_text: str,
        depth: int,
        dropout: float,
    ) -> None:
        other = other_text if query == "other" else None
        _check(sides, side, texts, other)
        described = sides[side] if side is not None else 0
        super().__init__(
            video if visual else described,
            text,
            hidden,
            depth=depth,
            dropout=dropout,
        )

        def projection(inputs: int) -> FeatureProjection:
            return FeatureProjection(inputs, hidden, depth=depth, dropout=dropout)

        self.side = side
        self.other = other
        self.description = projection(described) if visual and side is not None else None
        self.words = projection(text) if visual and query == "separate" else None
        if side is not None:
            self.provides = self.provides | {"description", "described"}
            self.requires = frozenset({f"side.{side}"})
        if other is not None:
            self.requires |= {f"text.{other}"}
            self.words = projection(texts[other])

    def forward(self, batch: Batch) -> Tokens:
        """Tokens of a batch.

        Raises:
            UsageError: the batch has no such side stream, or not this embedding of the query.
        """
        if self.side is None:
            return super().forward(batch)
        stream = _described(batch, self.side)
        if self.description is None:
            tokens = super().forward(replace(batch, video=stream.x))
            description = tokens.video
        else:
            tokens = super().forward(batch)
            description = self.description(stream.x)
        described = (stream.mask & batch.video_mask).to(description.dtype)
        extras = {"description": description, "described": described}
        return replace(tokens, extras=extras, texts=self.other_texts(batch))

    def other_texts(self, batch: Batch) -> dict[str, Tensor]:
        """`description_words` (B, T', d) and `description_mask` (B, T') bool."""
        if self.words is None:
            return {}
        read = Side(batch.text, batch.text_mask)
        if self.other is not None:
            read = _embedded(batch, self.other)
        return {"description_words": self.words(read.x), "description_mask": read.mask}


def _check(
    sides: Mapping[str, int], side: str | None, texts: Mapping[str, int], other: str | None
) -> None:
    if side is not None and side not in sides:
        raise UsageError(
            f"the model reads descriptions of the clips from the side stream '{side}', and the "
            f"data give {', '.join(sorted(sides)) or 'none'}; {_REMEDY}"
        )
    if other is not None and other not in texts:
        raise UsageError(
            f"the descriptions read the query in the embedding '{other}', and the data give "
            f"{', '.join(sorted(texts)) or 'no other than the main one'}; {_OTHER_REMEDY}"
        )


def _described(batch: Batch, name: str) -> Side:
    """The stream, zero where it says nothing: without clips the saliency reads every row."""
    if name not in batch.side:
        raise UsageError(
            f"the model reads the descriptions '{name}', and this batch carries "
            f"{', '.join(sorted(batch.side)) or 'no side stream'}; {_REMEDY}"
        )
    stream = batch.side[name]
    return replace(stream, x=stream.x.masked_fill(~stream.mask.unsqueeze(-1), 0))


def _embedded(batch: Batch, name: str) -> Side:
    if name not in batch.texts:
        raise UsageError(
            f"the model reads the query in the embedding '{name}', too, and this batch carries "
            f"{', '.join(sorted(batch.texts)) or 'no other one'}; {_OTHER_REMEDY}"
        )
    return batch.texts[name]

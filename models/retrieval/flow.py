"""What flows between the parts of a retrieval model (`stages`), in the order of the path.

B samples, L clips, T words, S memory rows, Q queries, G moments, ℓ decoder layers, d features.
Batch first everywhere. Masks are True where something is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from models.retrieval.types import Batch, Predictions, StepContext, Targets

__all__ = [
    "Decoded",
    "Memory",
    "Outcome",
    "Queries",
    "Tokens",
    "Trace",
]


@dataclass(frozen=True)
class Tokens:
    """What the encoders make of a batch.

    Args:
        video: (B, L, d).
        video_mask: (B, L) bool.
        video_pos: (B, L, d) position code of the clips.
        text: (B, T, d).
        text_mask: (B, T) bool.
        text_pos: (B, T, d) position code of the words, zero if the model has none.
        extras: what later parts need beside, each documented by the part that provides it.
        texts: further codes of the same query, by name; they change with `text`. Their words may
            be others, of another number.
    """

    video: Tensor
    video_mask: Tensor
    video_pos: Tensor
    text: Tensor
    text_mask: Tensor
    text_pos: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    texts: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """What the fuser makes of video and text.

    Args:
        clip: (B, L, d), always on the clip axis.
        clip_mask: (B, L) bool.
        clip_pos: (B, L, d).
        kv: (B, S, d), what the decoder attends to; often `clip` itself.
        kv_mask: (B, S) bool.
        kv_pos: (B, S, d).
        global_token: (B, d) summary of the whole video under the query, if the fuser has one.
        extras: what later parts need beside, each documented by the part that provides it.
        source: the tokens that it was made of, for parts that read video or words as they were
            before the fusion; the model sets it.
    """

    clip: Tensor
    clip_mask: Tensor
    clip_pos: Tensor
    kv: Tensor
    kv_mask: Tensor
    kv_pos: Tensor
    global_token: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    source: Tokens | None = None

    @property
    def tokens(self) -> Tokens:
        """`source`, which every memory has once it has left the fuser."""
        assert self.source is not None
        return self.source


@dataclass(frozen=True)
class Queries:
    """What a decoder starts from.

    Args:
        content: (B, Q, d).
        anchors: (B, Q, 2) (centre, width) in [0, 1], if the decoder has any.
        place: (B, Q, d) learned places, of a decoder without anchors.
        extras: what heads need of the start, handed on in `Decoded.extras`.
    """

    content: Tensor
    anchors: Tensor | None = None
    place: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoded:
    """What the decoder makes of the memory.

    Args:
        states: (ℓ, B, Q, d) normalised output of every layer.
        references: (ℓ, B, Q, 2) anchors (centre, width) in [0, 1] that each layer started from.
        extras: what heads need beside.
    """

    states: Tensor
    references: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """Everything between a batch and its predictions: what losses may read.

    Args:
        tokens: after the merges.
        memory: after the refiners.
        decoded: of the decoder, if there is one.
        predictions: of the heads and extra passes.
        encoded: of the encoders alone, before any merge.
    """

    tokens: Tokens
    memory: Memory
    decoded: Decoded | None
    predictions: Predictions
    encoded: Tokens


@dataclass(frozen=True)
class Outcome:
    """Everything a loss term may read. ℓ decoder layers, first layer first.

    Args:
        logits: (ℓ, B, Q, 2).
        spans: (ℓ, B, Q, 2).
        matched: (ℓ, B, G) query of every moment, −1 where it has none.
        trace: what the model made on the way; `predictions` is its end.
        batch: what the model was given.
        targets: its ground truth.
        context: where training stands.
    """

    logits: Tensor
    spans: Tensor
    matched: Tensor
    trace: Trace
    batch: Batch
    targets: Targets
    context: StepContext

    @property
    def predictions(self) -> Predictions:
        """Of the last layer, with saliency and extras."""
        return self.trace.predictions

    def matched_spans(self) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted span of every moment, its target, and whether the two belong together.

        Returns:
            (ℓ, B, G, 2), (B, G, 2), and (ℓ, B, G) bool.
        """
        index = self.matched.clamp(min=0).unsqueeze(-1).expand(*self.matched.shape, 2)
        return self.spans.gather(-2, index), self.targets.spans, self.matched >= 0

    def is_matched(self) -> Tensor:
        """(ℓ, B, Q) bool, whether a query answers for a moment."""
        count = self.matched.new_zeros(self.logits.shape[:-1])
        found = (self.matched >= 0).to(count.dtype)
        return count.scatter_add(-1, self.matched.clamp(min=0), found) > 0

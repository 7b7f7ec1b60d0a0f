"""What flows through a retrieval model. B videos-with-query, L clips, T text tokens, Q moment
queries, G ground-truth moments. Masks are True where something is; given as numbers, as public code
has them, they are True where not 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Batch", "Predictions", "Side", "StepContext", "Targets"]


def _as_bool(record: Any, *masks: str) -> None:
    """Make masks of numbers bool; `~` and `where` would fail on them in the middle of a model."""
    for name in masks:
        mask = getattr(record, name)
        if isinstance(mask, Tensor) and mask.dtype != torch.bool:
            object.__setattr__(record, name, mask != 0)


@dataclass(frozen=True)
class Side:
    """A named stream beside video and text: on the clip grid, e.g. the narrative, or of the words
    of the query in another embedding.

    Args:
        x: (B, L, Ds) float.
        mask: (B, L) bool; False where the stream has nothing to say about a clip, or no word.
    """

    x: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        _as_bool(self, "mask")


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch; all padded, no lists, so that losses need no host loop.

    Args:
        spans: (B, G, 2) moments as (centre, width) in [0, 1] of the grid (`L * clip_len`).
        span_mask: (B, G) bool.
        saliency: (B, L) summed saliency label of each clip, 0 where not annotated.
        positive: (B, P) int64 clip indices for the margin loss.
        negative: (B, P) int64 clip indices for the margin loss, paired with `positive`.
        pair_mask: (B, P) bool; False where a sample has no such pair.
        in_moment: (B, L) bool, whether a clip lies in a ground-truth moment.
        has_moments: (B,) bool, samples of which the moments are known; None if all are. The
            others are annotated for highlight detection alone: nothing is background there.
    """

    spans: Tensor
    span_mask: Tensor
    saliency: Tensor
    positive: Tensor
    negative: Tensor
    pair_mask: Tensor
    in_moment: Tensor
    has_moments: Tensor | None = None

    def __post_init__(self) -> None:
        _as_bool(self, "span_mask", "pair_mask", "in_moment", "has_moments")


@dataclass(frozen=True)
class Batch:
    """Input of every retrieval model.

    Args:
        video: (B, L, Dv) float, of the type of the model's weights or a narrower one, which is
            widened; normalised streams and, as last two columns, the clip's
            `[i/L, (i+1)/L]` (TEF) of the sample's own length.
        video_mask: (B, L) bool.
        text: (B, T, Dt) float, normalised token states of the query; for a model of word ids
            (B, T) int64.
        text_mask: (B, T) bool.
        side: side streams by name.
        texts: the query in further embeddings by name; each has words (T) of its own.
        events: (B, E, 3) pseudo-events as (start, end, depth), start and end in [0, 1] of the
            grid; None if not asked for.
        event_mask: (B, E) bool.
        video_ids: (B,) int64, equal for samples on the same video (false negatives).
        sample_ids: (B,) int64, equal for the same sample in every epoch.
        wrong_text: (B, T', Dt) a text of another video for each sample, for losses that contrast
            with one; None lets them take one of the batch.
        wrong_text_mask: (B, T') bool.
        wrong_texts: the same wrong texts in the embeddings of `texts`.
        targets: ground truth; None at inference.
    """

    video: Tensor
    video_mask: Tensor
    text: Tensor
    text_mask: Tensor
    side: Mapping[str, Side] = field(default_factory=dict)
    texts: Mapping[str, Side] = field(default_factory=dict)
    events: Tensor | None = None
    event_mask: Tensor | None = None
    video_ids: Tensor | None = None
    sample_ids: Tensor | None = None
    wrong_text: Tensor | None = None
    wrong_text_mask: Tensor | None = None
    wrong_texts: Mapping[str, Side] = field(default_factory=dict)
    targets: Targets | None = None

    def __post_init__(self) -> None:
        _as_bool(self, "video_mask", "text_mask", "event_mask", "wrong_text_mask")

    def __len__(self) -> int:
        return int(self.video.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, Mapping):
                return {key: move(each) for key, each in value.items()}
            if isinstance(value, Side | Targets):
                return replace(
                    value, **{f.name: move(getattr(value, f.name)) for f in fields(value)}
                )
            return value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class Predictions:
    """Output of every retrieval model.

    Args:
        logits: (B, Q, 2), index 0 is foreground.
        spans: (B, Q, 2) as (centre, width) in [0, 1] of the grid.
        saliency: (B, L) unbounded scores; padded clips are meaningless.
        layers: predictions of the earlier decoder layers, first layer first, without saliency.
        extras: what plug-ins and losses need beside (`saliency_negative`, `memory`, ...),
            documented by the part that provides it.
        query_mask: (B, Q) bool, queries that exist: a model with one query per clip has none at
            padding; None if all do.
    """

    logits: Tensor
    spans: Tensor
    saliency: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...] = ()
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    query_mask: Tensor | None = None


@dataclass(frozen=True)
class StepContext:
    """Where training stands, for losses and plug-ins that depend on it.

    Args:
        epoch: from 0.
        step: steps that were taken in all.
        steps_per_epoch: in one epoch.
        view: 0 for the batch itself, i for its i-th view (`stages.View`).
    """

    epoch: int = 0
    step: int = 0
    steps_per_epoch: int = 1
    view: int = 0

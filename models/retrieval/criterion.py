"""Loss terms and their sum: what is optimised is exactly what the terms return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from data.errors import UsageError
from models.retrieval.parts import losses
from models.retrieval.parts.matcher import Matcher
from models.retrieval.stages import LossTerm, Outcome, Trace
from models.retrieval.types import Batch, StepContext, Targets

__all__ = [
    "Criterion",
    "FocalLabelTerm",
    "LabelTerm",
    "MarginTerm",
    "NegativePairTerm",
    "RankTerm",
    "SpanGIoUTerm",
    "SpanL1Term",
]


class SpanL1Term(LossTerm):
    """L1 of matched (centre, width)."""

    name = "span"
    requires = frozenset({"logits", "spans"})

    def forward(self, outcome: Outcome) -> Tensor:
        """(ℓ,)."""
        return losses.span_l1(*outcome.matched_spans())


class SpanGIoUTerm(LossTerm):
    """1 − gIoU of matched moments."""

    name = "giou"
    requires = frozenset({"logits", "spans"})

    def forward(self, outcome: Outcome) -> Tensor:
        """(ℓ,)."""
        return losses.span_giou(*outcome.matched_spans())


class LabelTerm(LossTerm):
    """Foreground against background, for samples of which the moments are known.

    Args:
        weight: factor in the sum.
        background: weight of queries without a moment.
    """

    name = "label"
    requires = frozenset({"logits", "spans"})

    def __init__(self, weight: float, *, background: float) -> None:
        super().__init__(weight)
        self.background = background

    def forward(self, outcome: Outcome) -> Tensor:
        """(ℓ,)."""
        return losses.label_cross_entropy(
            outcome.logits,
            outcome.is_matched(),
            background=self.background,
            counted=outcome.targets.has_moments,
        )


class FocalLabelTerm(LossTerm):
    """Foreground against background by the sigmoid focal loss (TR-DETR and LD-DETR's code).

    Args:
        weight: factor in the sum.
        alpha: weight of the class that is right.
        gamma: how much easy ones count less.
    """

    name = "label"
    requires = frozenset({"logits", "spans"})

    def __init__(self, weight: float, *, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__(weight)
        self.alpha, self.gamma = alpha, gamma

    def forward(self, outcome: Outcome) -> Tensor:
        """(ℓ,)."""
        return losses.label_focal(
            outcome.logits,
            outcome.is_matched(),
            alpha=self.alpha,
            gamma=self.gamma,
            counted=outcome.targets.has_moments,
        )


class MarginTerm(LossTerm):
    """Hinge between the saliency of paired clips.

    Args:
        weight: factor in the sum.
        margin: Δ.
    """

    name = "margin"
    requires = frozenset({"saliency"})

    def __init__(self, weight: float, *, margin: float) -> None:
        super().__init__(weight)
        self.margin = margin

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        targets = outcome.targets
        return losses.margin_loss(
            outcome.predictions.saliency,
            targets.positive,
            targets.negative,
            targets.pair_mask,
            margin=self.margin,
        )


class RankTerm(LossTerm):
    """Rank-aware contrast of the clips under the right text, and under a wrong one if a pass
    provides it.

    Args:
        weight: factor in the sum.
        against_negative: whether the clips under the wrong text join the contrast.
    """

    name = "rank"

    def __init__(self, weight: float, *, against_negative: bool) -> None:
        super().__init__(weight)
        self.against_negative = against_negative
        wrong = {"saliency_negative", "negative_mask"} if against_negative else set()
        self.requires = frozenset({"saliency"} | wrong)

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        scores, labels = outcome.predictions.saliency, outcome.targets.saliency
        mask = outcome.batch.video_mask
        if self.against_negative:
            wrong = outcome.predictions.extras["saliency_negative"]
            scores = torch.cat([scores, wrong], dim=1)
            labels = torch.cat([labels, torch.zeros_like(labels)], dim=1)
            mask = torch.cat([mask, _negative_clips(outcome)], dim=1)
        return losses.rank_loss(scores, labels, mask)


class NegativePairTerm(LossTerm):
    """No clip is salient under a wrong text.

    Args:
        weight: factor in the sum.
        log: as `negative_pair_loss`.
    """

    name = "negative_pair"
    requires = frozenset({"saliency_negative", "negative_mask"})

    def __init__(self, weight: float, *, log: Literal["softplus", "log"]) -> None:
        super().__init__(weight)
        self.log: Literal["softplus", "log"] = log

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        scores = outcome.predictions.extras["saliency_negative"]
        return losses.negative_pair_loss(scores, _negative_clips(outcome), log=self.log)


def _negative_clips(outcome: Outcome) -> Tensor:
    """(B, L) bool, real clips of samples for which a wrong text was found."""
    return outcome.batch.video_mask & outcome.predictions.extras["negative_mask"].unsqueeze(1)


class Criterion(nn.Module):
    """The weighted terms of a model; their sum is minimised.

    Args:
        terms: loss terms; those of weight 0 are left out.
        matcher: gives every moment its query; None for a model whose terms need no queries.
        every_layer: whether the moment terms also count for the earlier decoder layers.

    Raises:
        UsageError: two terms of one name, or none that counts.
    """

    def __init__(
        self, terms: Iterable[LossTerm], matcher: Matcher | None, *, every_layer: bool = True
    ) -> None:
        super().__init__()
        counted = [term for term in terms if term.weight != 0]
        names = [term.name for term in counted]
        if not names or len(set(names)) < len(names):
            raise UsageError(
                f"a criterion needs at least one loss term with a weight other than 0, and each "
                f"name once; got {names or 'none'}"
            )
        self.terms = nn.ModuleDict({term.name: term for term in counted})
        self.matcher = matcher
        self.every_layer = every_layer

    def forward(self, trace: Trace, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        """Weighted scalar terms by name; those of earlier decoder layers end in `_<layer>`.

        Raises:
            UsageError: the batch has no targets.
        """
        if batch.targets is None:
            raise UsageError(
                "losses need the ground truth, and this batch has no targets; "
                "train on a split whose annotations have moments or saliency"
            )
        outcome = self._outcome(trace, batch, batch.targets, context)
        weighted: dict[str, Tensor] = {}
        for name, term in cast("Mapping[str, LossTerm]", self.terms).items():
            value = term(outcome) * term.weight
            *earlier, last = value.unbind() if value.dim() else (value,)
            weighted[name] = last
            weighted.update({f"{name}_{i}": each for i, each in enumerate(earlier)})
        return weighted

    def _outcome(
        self, trace: Trace, batch: Batch, targets: Targets, context: StepContext
    ) -> Outcome:
        found = trace.predictions
        layers = (*(found.layers if self.every_layer else ()), (found.logits, found.spans))
        logits = torch.stack([each[0] for each in layers]).float()
        spans = torch.stack([each[1] for each in layers]).float()
        if self.matcher is None:
            shape = (len(layers), *targets.span_mask.shape)
            matched = torch.full(shape, -1, device=spans.device)
        else:
            matched = self.matcher(logits, spans, targets.spans, targets.span_mask)
        return Outcome(logits, spans, matched, trace, batch, targets, context)

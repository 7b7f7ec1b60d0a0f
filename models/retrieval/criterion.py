"""Loss terms and their sum: what is optimised is exactly what the terms return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from data.errors import UsageError
from models.retrieval.flow import Outcome, Trace
from models.retrieval.parts import losses
from models.retrieval.parts.matcher import Matcher
from models.retrieval.stages import LossTerm
from models.retrieval.types import Batch, StepContext, Targets

__all__ = [
    "ClipTerm",
    "Criterion",
    "FocalLabelTerm",
    "LabelTerm",
    "MarginTerm",
    "NegativePairTerm",
    "RankTerm",
    "SpanGIoUTerm",
    "SpanL1Term",
    "negative_clips",
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


class ClipTerm(LossTerm):
    """A loss of one score per clip.

    Args:
        weight: factor in the sum.
        of: which output is the score: `saliency`, or an extra (B, L), which then joins the name.
    """

    def __init__(self, weight: float, *, of: str = "saliency") -> None:
        super().__init__(weight)
        self.of = of
        self.requires = frozenset({of})
        if of != "saliency":
            self.name = f"{self.name}_{of}"

    def scores(self, outcome: Outcome) -> Tensor:
        """(B, L)."""
        found = outcome.predictions
        return found.saliency if self.of == "saliency" else found.extras[self.of]


class MarginTerm(ClipTerm):
    """Hinge between the scores of paired clips.

    Args:
        weight: factor in the sum.
        margin: Δ.
        of: as `ClipTerm`.
    """

    name = "margin"

    def __init__(self, weight: float, *, margin: float, of: str = "saliency") -> None:
        super().__init__(weight, of=of)
        self.margin = margin

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        targets = outcome.targets
        return losses.margin_loss(
            self.scores(outcome),
            targets.positive,
            targets.negative,
            targets.pair_mask,
            margin=self.margin,
        )


class RankTerm(ClipTerm):
    """Rank-aware contrast of the clips under the right text, and under a wrong one if a pass
    provides it.

    Args:
        weight: factor in the sum.
        against_negative: whether the clips under the wrong text join the contrast.
        of: as `ClipTerm`.
    """

    name = "rank"

    def __init__(self, weight: float, *, against_negative: bool, of: str = "saliency") -> None:
        super().__init__(weight, of=of)
        self.against_negative = against_negative
        if against_negative:
            self.requires = self.requires | {f"{of}_negative", "negative_mask"}

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        scores, labels = self.scores(outcome), outcome.targets.saliency
        mask = outcome.batch.video_mask
        if self.against_negative:
            wrong = outcome.predictions.extras[f"{self.of}_negative"]
            scores = torch.cat([scores, wrong], dim=1)
            labels = torch.cat([labels, torch.zeros_like(labels)], dim=1)
            mask = torch.cat([mask, negative_clips(outcome)], dim=1)
        return self.over_samples(losses.rank_losses(scores, labels, mask), outcome)

    def over_samples(self, loss: Tensor, outcome: Outcome) -> Tensor:
        """The scalar of the losses (B,) of the samples: their mean."""
        return loss.mean()


class NegativePairTerm(LossTerm):
    """No clip is salient under a wrong text.

    Args:
        weight: factor in the sum.
        log: as `negative_pair_losses`.
        among: whether the mean is over all samples or those with a wrong text.
    """

    name = "negative_pair"
    requires = frozenset({"saliency_negative", "negative_mask"})

    def __init__(
        self,
        weight: float,
        *,
        log: Literal["softplus", "log"],
        among: Literal["all", "found"] = "all",
    ) -> None:
        super().__init__(weight)
        self.log: Literal["softplus", "log"] = log
        self.among = among

    def forward(self, outcome: Outcome) -> Tensor:
        """Scalar."""
        scores = outcome.predictions.extras["saliency_negative"]
        each = losses.negative_pair_losses(scores, negative_clips(outcome), log=self.log)
        return self.over_samples(each, outcome)

    def over_samples(self, loss: Tensor, outcome: Outcome) -> Tensor:
        """The mean of the losses (B,) of the samples; those without a wrong text have 0."""
        if self.among == "all":
            return loss.mean()
        found = outcome.predictions.extras["negative_mask"]
        return loss.sum() / found.sum().clamp(min=1)


def negative_clips(outcome: Outcome) -> Tensor:
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

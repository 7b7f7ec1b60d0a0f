"""Loss functions, each a plain function of tensors. Nothing here asks the CPU for a value."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from models.retrieval.parts.spans import overlap, start_end

__all__ = [
    "MAX_LABEL",
    "contrastive_align",
    "label_cross_entropy",
    "label_focal",
    "margin_loss",
    "mean_known",
    "mean_where",
    "negative_pair_losses",
    "rank_losses",
    "rank_weights",
    "span_giou",
    "span_l1",
]

MAX_LABEL = 12
"""Highest summed saliency label of a clip: three raters, 0 to 4 each (QVHighlights)."""


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all axes where `mask`, of the same shape; 0 where nothing is."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def mean_known(losses: Tensor, known: Tensor | None) -> Tensor:
    """Mean of the losses (B,) over the samples that are `known` (B,) bool; None: over all."""
    return losses.mean() if known is None else mean_where(losses, known)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last two axes where `mask`; 0 where nothing is. (..., B, G) as (...)."""
    total = torch.where(mask, values, 0).sum((-2, -1))
    return total / mask.sum((-2, -1)).clamp(min=1)


def span_l1(spans: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of matched (centre, width) coordinates.

    Args:
        spans: (..., B, G, 2) matched predictions.
        targets: (B, G, 2).
        mask: (..., B, G) bool.

    Returns:
        (...).
    """
    return _mean((spans - targets).abs().mean(-1), mask)


def span_giou(spans: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean of 1 − gIoU of matched moments; shapes as `span_l1`."""
    return _mean(1 - overlap(start_end(spans), start_end(targets))[1], mask)


def label_cross_entropy(
    logits: Tensor, matched: Tensor, *, background: float, counted: Tensor | None = None
) -> Tensor:
    """Cross entropy of foreground (matched) against background, plain mean over all queries.

    The mean divides by the count and not by the sum of weights, as released.

    Args:
        logits: (..., B, Q, 2), index 0 foreground.
        matched: (..., B, Q) bool.
        background: weight of queries without a moment (`eos_coef`).
        counted: (B,) bool, samples that the mean is over; None: all.

    Returns:
        (...).
    """
    log_p = logits.log_softmax(-1)
    loss = torch.where(matched, -log_p[..., 0], -background * log_p[..., 1])
    if counted is not None:
        return _mean(loss, counted.unsqueeze(-1).expand_as(loss))
    return loss.mean((-2, -1))


def label_focal(
    logits: Tensor,
    matched: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    counted: Tensor | None = None,
) -> Tensor:
    """Sigmoid focal loss (Lin et al., ICCV 2017) of both logits against the one-hot class, mean
    over queries and the two classes; shapes and `counted` as `label_cross_entropy`.
    """
    target = torch.stack([matched, ~matched], dim=-1).to(logits.dtype)
    cross = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = (target - logits.sigmoid()).abs()
    share = alpha * target + (1 - alpha) * (1 - target)
    loss = (share * wrong**gamma * cross).mean(-1)
    if counted is not None:
        return _mean(loss, counted.unsqueeze(-1).expand_as(loss))
    return loss.mean((-2, -1))


def contrastive_align(
    queries: Tensor, words: Tensor, mask: Tensor, matched: Tensor, *, temperature: float
) -> Tensor:
    """Queries that answer for a moment are nearer to the text than the others (Moment-DETR's code).

    The score of a query is the sum of its cosines with the words; the loss contrasts the mean
    score of the matched queries with all, mean over samples that have one.

    Args:
        queries: (..., B, Q, e) of unit length.
        words: (B, T, e) of unit length.
        mask: (B, T) bool, words that count.
        matched: (..., B, Q) bool.
        temperature: τ.

    Returns:
        (...).
    """
    text = torch.where(mask.unsqueeze(-1), words, 0).sum(1)
    score = (queries * text.unsqueeze(1)).sum(-1) / temperature
    count = matched.sum(-1)
    right = torch.where(matched, score, 0).sum(-1) / count.clamp(min=1)
    loss = score.logsumexp(-1) - right
    some = count > 0
    return torch.where(some, loss, 0).sum(-1) / some.sum(-1).clamp(min=1)


def margin_loss(
    scores: Tensor, positive: Tensor, negative: Tensor, mask: Tensor, *, margin: float
) -> Tensor:
    """Twice the mean hinge `max(0, margin + s_negative − s_positive)` over pairs of clips.

    Args:
        scores: (B, L).
        positive: (B, P) clip indices.
        negative: (B, P) clip indices.
        mask: (B, P) bool, pairs that exist.
        margin: Δ.
    """
    hinge = (margin + scores.gather(1, negative) - scores.gather(1, positive)).clamp(min=0)
    return 2 * _mean(hinge, mask)


def rank_weights(labels: Tensor, mask: Tensor) -> Tensor:
    """Weights ω that turn the rank-aware contrastive loss into one weighted log-softmax.

    The loss sums over r = 1 … 11 the mean of −log softmax over the clips with label ≥ r. Summing
    over r first gives clip l the weight `ω_l = Σ_{r ≤ y_l, r ≤ 11} 1 / (n_r + 1e-6)`, n_r the
    number of clips with label ≥ r; it depends on labels only.

    Args:
        labels: (B, L) summed saliency labels.
        mask: (B, L) bool.

    Returns:
        (B, L) float32.
    """
    steps = torch.arange(1, MAX_LABEL, device=labels.device)
    reached = (labels.unsqueeze(-1) >= steps) & mask.unsqueeze(-1)
    count = reached.sum(1, keepdim=True)
    return (reached / (count + 1e-6)).sum(-1)


def rank_losses(
    scores: Tensor, labels: Tensor, mask: Tensor, *, temperature: float = 0.5
) -> Tensor:
    """Rank-aware contrastive loss of QD-DETR (Eq. 8–9), (B,).

    Eleven steps are divided by twelve, as released.

    Args:
        scores: (B, L).
        labels: (B, L) summed saliency labels, 0 to 12; clips under a wrong text have 0.
        mask: (B, L) bool.
        temperature: τ.
    """
    log_p = (scores.float().masked_fill(~mask, -1e3) / temperature).log_softmax(-1)
    return -(rank_weights(labels, mask) * log_p).sum(-1) / MAX_LABEL


def negative_pair_losses(
    scores: Tensor, mask: Tensor, *, log: Literal["softplus", "log"] = "softplus"
) -> Tensor:
    """`Σ_l −log(1 − σ(s_l))` of clips under a wrong text, (B,) (QD-DETR Eq. 7).

    Args:
        scores: (B, L).
        mask: (B, L) bool.
        log: `softplus` is exact everywhere; `log` is the released form, infinite in float32 from
            s of about 17 on.
    """
    scores = scores.float()
    loss = functional.softplus(scores) if log == "softplus" else -torch.log(1 - scores.sigmoid())
    return torch.where(mask, loss, 0).sum(1)

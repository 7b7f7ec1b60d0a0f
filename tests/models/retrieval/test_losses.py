from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.retrieval.parts import losses


def rank_loss_by_loop(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Eleven contrasts, one for each label step, as the paper states them (QD-DETR Eq. 8-9)."""
    log_p = (scores.masked_fill(~mask, -1e3) / 0.5).log_softmax(-1)
    total = torch.zeros(())
    for step in range(1, 12):
        positive = (labels >= step) & mask
        mean = (positive * log_p).sum(1) / (positive.sum(1) + 1e-6)
        total = total - mean.mean()
    return total / 12


@pytest.mark.parametrize("top", [1, 12], ids=["labels 0 or 1", "labels 0 to 12"])
def test_rank_loss_in_weight_form_equals_the_eleven_contrasts(top: int) -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        scores = torch.randn(6, 20, generator=rng)
        labels = torch.randint(0, top + 1, (6, 20), generator=rng).float()
        mask = torch.arange(20) < torch.randint(1, 21, (6, 1), generator=rng)
        labels = labels * mask
        torch.testing.assert_close(
            losses.rank_losses(scores, labels, mask).mean(),
            rank_loss_by_loop(scores, labels, mask),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize("scale", [50.0, -50.0])
def test_saliency_losses_and_gradients_stay_finite_at_extreme_scores(scale: float) -> None:
    scores = torch.tensor([[scale, 0.0, -scale, scale]], requires_grad=True)
    mask = torch.tensor([[True, True, True, False]])
    labels = torch.tensor([[0.0, 12.0, 1.0, 0.0]])
    loss = losses.negative_pair_losses(scores, mask) + losses.rank_losses(scores, labels, mask)
    loss.sum().backward()
    assert loss.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[0, 3] == 0


def test_the_released_logarithm_overflows_where_softplus_does_not() -> None:
    scores, mask = torch.tensor([[20.0]]), torch.tensor([[True]])
    assert losses.negative_pair_losses(scores, mask, log="log").isinf()
    assert losses.negative_pair_losses(scores, mask).item() == pytest.approx(20.0)


def test_margin_loss_is_twice_the_mean_hinge_of_the_pairs_that_exist() -> None:
    scores = torch.tensor([[1.0, 0.0, 0.9], [0.0, 0.0, 5.0]])
    positive, negative = torch.tensor([[0, 2], [0, 0]]), torch.tensor([[1, 0], [1, 2]])
    mask = torch.tensor([[True, True], [True, False]])
    # hinges: 0.2 - 1 -> 0; 0.2 + 1 - 0.9 = 0.3; 0.2; the fourth pair does not exist
    loss = losses.margin_loss(scores, positive, negative, mask, margin=0.2)
    assert loss.item() == pytest.approx(2 * (0.3 + 0.2) / 3)


def test_span_losses_average_matched_moments_only() -> None:
    spans = torch.tensor([[[0.5, 0.2], [9.0, 9.0]]])
    targets = torch.tensor([[[0.4, 0.4], [0.0, 0.0]]])
    mask = torch.tensor([[True, False]])
    assert losses.span_l1(spans, targets, mask).item() == pytest.approx((0.1 + 0.2) / 2)
    # [0.4, 0.6] lies in [0.2, 0.6]: IoU = gIoU = 1/2
    assert losses.span_giou(spans, targets, mask).item() == pytest.approx(0.5)
    nothing = torch.zeros_like(mask)
    assert losses.span_l1(spans, targets, nothing) == 0


def test_empty_moments_at_one_place_overlap_zero_not_nan() -> None:
    spans = torch.tensor([[[0.5, 0.0]]], requires_grad=True)
    loss = losses.span_giou(spans, torch.tensor([[[0.5, 0.0]]]), torch.tensor([[True]]))
    loss.backward()
    assert loss.item() == 1
    assert spans.grad is not None
    assert spans.grad.isfinite().all()


def test_label_loss_divides_by_the_number_of_queries() -> None:
    logits = torch.zeros(1, 4, 2)
    matched = torch.tensor([[True, False, False, False]])
    expected = torch.log(torch.tensor(2.0)) * (1 + 3 * 0.1) / 4
    torch.testing.assert_close(
        losses.label_cross_entropy(logits, matched, background=0.1), expected
    )

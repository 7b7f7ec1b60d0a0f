from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.retrieval.parts.matcher import (
    Matcher,
    assign,
    assign_by_augmenting,
    assign_by_enumeration,
)
from models.retrieval.testing import random_batch


def by_scipy(cost: Tensor, mask: Tensor) -> list[float]:
    """Cost of the best assignment of the rows that count."""
    totals = []
    for rows, keep in zip(cost.numpy(), mask.numpy(), strict=True):
        chosen, columns = linear_sum_assignment(rows[keep])
        totals.append(float(rows[keep][chosen, columns].sum()))
    return totals


def price(cost: Tensor, found: Tensor) -> list[float]:
    taken = cost.gather(2, found.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(found >= 0, taken, 0).sum(1).tolist()


@pytest.mark.parametrize("queries", [10, 30])
@pytest.mark.parametrize("moments", [1, 2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("kind", ["random", "ties"])
def test_assignment_costs_what_scipy_finds(queries: int, moments: int, kind: str) -> None:
    rng = np.random.default_rng(moments)
    cost = rng.normal(size=(16, moments, queries))
    cost = torch.tensor(np.round(cost) if kind == "ties" else cost)
    mask = torch.tensor(rng.random((16, moments)) < 0.7)
    found = assign(cost, mask)
    assert price(cost, found) == pytest.approx(by_scipy(cost, mask))
    for row, keep in zip(found, mask, strict=True):
        assert (row[~keep] == -1).all()
        assert len(set(row[keep].tolist())) == int(keep.sum())


def test_both_solvers_give_the_same_columns() -> None:
    cost = torch.rand(200, 5, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mask = torch.ones(200, 5, dtype=torch.bool)
    assert torch.equal(assign_by_enumeration(cost, mask), assign_by_augmenting(cost))


@pytest.mark.parametrize("moments", [5, 8])
def test_more_moments_than_queries_leave_the_dearest_out(moments: int) -> None:
    rng = torch.Generator().manual_seed(0)
    cost = 3 * torch.randn(40, moments, 3, generator=rng)
    mask = torch.rand(40, moments, generator=rng) < 0.6
    found = assign(cost, mask)
    assert torch.equal((found >= 0).sum(1), mask.sum(1).clamp(max=3))
    assert price(cost, found) == pytest.approx(by_scipy(cost, mask), rel=1e-4)


def test_no_moments_at_all_match_nothing() -> None:
    assert assign(torch.zeros(2, 0, 5), torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)


def test_cost_weighs_distance_overlap_and_foreground() -> None:
    logits = torch.tensor([[[0.0, 0.0], [torch.inf, 0.0]]]).nan_to_num(posinf=50.0)
    spans = torch.tensor([[[0.5, 0.2], [0.5, 0.4]]])
    target = torch.tensor([[[0.5, 0.2]]])
    cost = Matcher(span=10, giou=1, label=4).cost(logits, spans, target)
    # first: no distance, gIoU 1, p 1/2; second: |w| off by 0.2, gIoU 1/2, p 1
    assert cost[0, 0].tolist() == pytest.approx([-1 - 2, 10 * 0.2 - 0.5 - 4])


def test_all_layers_are_matched_in_one_call() -> None:
    batch = random_batch([8, 8], [3, 3], moments=2)
    assert batch.targets is not None
    torch.manual_seed(0)
    logits, spans = torch.randn(3, 2, 6, 2), torch.rand(3, 2, 6, 2)
    matcher = Matcher()
    together = matcher(logits, spans, batch.targets.spans, batch.targets.span_mask)
    for layer in range(3):
        alone = matcher(logits[layer], spans[layer], batch.targets.spans, batch.targets.span_mask)
        assert torch.equal(together[layer], alone)

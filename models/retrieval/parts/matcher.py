"""Which query answers for which moment: the optimal assignment, without asking the CPU.

The public code copies costs to the CPU and calls scipy once per sample, layer and pass. Both
solvers here are exact, run on all samples and layers at once, and never synchronise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.retrieval.parts.spans import pairwise_giou, start_end

__all__ = ["Matcher", "assign", "assign_by_augmenting", "assign_by_enumeration"]

_MOST_ENUMERATED = 5
"""3125 candidates a sample; six moments would be 46,656."""


class Matcher:
    """Optimal assignment under `span · L1 − giou · gIoU − label · P(foreground)`.

    Args:
        span: cost of the L1 distance of (centre, width).
        giou: cost of the generalised IoU.
        label: cost of the foreground probability.
    """

    def __init__(self, *, span: float = 10.0, giou: float = 1.0, label: float = 4.0) -> None:
        self.span, self.giou, self.label = span, giou, label

    @torch.no_grad()
    def __call__(self, logits: Tensor, spans: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """Query of every moment.

        Args:
            logits: (..., B, Q, 2).
            spans: (..., B, Q, 2) as (centre, width).
            targets: (B, G, 2) as (centre, width).
            mask: (B, G) bool.

        Returns:
            (..., B, G) int64, −1 where a moment has none: padding, or more moments than queries.
        """
        cost = self.cost(logits, spans, targets)
        mask = mask.expand(cost.shape[:-1])
        return assign(cost.flatten(0, -3), mask.flatten(0, -2)).view(mask.shape)

    def cost(self, logits: Tensor, spans: Tensor, targets: Tensor) -> Tensor:
        """(..., B, G, Q) float32 cost of giving a moment to a query; shapes as in the call."""
        spans, targets = spans.float().unsqueeze(-3), targets.float()
        foreground = logits.float().softmax(-1)[..., 0].unsqueeze(-2)
        distance = (targets.unsqueeze(-2) - spans).abs().sum(-1)
        giou = pairwise_giou(start_end(targets), start_end(spans.squeeze(-3)))
        return self.span * distance - self.giou * giou - self.label * foreground


def assign(cost: Tensor, mask: Tensor) -> Tensor:
    """The cheapest column for every row, no column twice.

    Args:
        cost: (B, G, Q).
        mask: (B, G) bool, rows that count.

    Returns:
        (B, G) int64, −1 for rows that do not count and, if more rows count than there are
        columns, for those that the cheapest assignment leaves out.
    """
    rows, columns = cost.shape[1:]
    if rows == 0:
        return mask.to(torch.int64)
    if rows > columns:
        cost = _with_refuge(cost, rows - columns)
    cost = cost.masked_fill(~mask.unsqueeze(-1), 0)
    if rows <= _MOST_ENUMERATED:
        column = assign_by_enumeration(cost, mask)
    else:
        column = assign_by_augmenting(cost)
    return torch.where(mask & (column < columns), column, -1)


def _with_refuge(cost: Tensor, count: int) -> Tensor:
    """`cost` with further columns that are dearer than any way to do without them."""
    spread = cost.amax((1, 2), keepdim=True) - cost.amin((1, 2), keepdim=True)
    refuge = cost.amax((1, 2), keepdim=True) + spread * cost.shape[1] + 1
    return torch.cat([cost, refuge.expand(-1, cost.shape[1], count)], dim=-1)


def assign_by_enumeration(cost: Tensor, mask: Tensor) -> Tensor:
    """`assign` by trying all combinations of each row's G cheapest columns.

    Only those can be in an optimum: if a row held a dearer one, one of its G cheapest would be
    free, since the other rows hold only G − 1. Memory is B · G^G numbers.

    Args:
        cost: (B, G, Q) with G ≤ Q, 0 in rows that do not count.
        mask: (B, G) bool, rows that count.

    Returns:
        (B, G) int64; columns of rows that do not count have no meaning.
    """
    rows = cost.shape[1]
    cheap, column = cost.topk(rows, dim=-1, largest=False)
    flat = column.flatten(1)
    first_like_it = (flat.unsqueeze(2) == flat.unsqueeze(1)).int().argmax(2)
    bit = (1 << first_like_it.int()).view(column.shape) * mask.unsqueeze(2)
    # Every row puts its axis in front, so that the largest sums run over contiguous memory.
    total, taken = cheap[:, 0], bit[:, 0]
    for i in range(1, rows):
        twice = (taken.unsqueeze(1) & bit[:, i].unsqueeze(2)) != 0
        total = total.unsqueeze(1) + cheap[:, i].unsqueeze(2)
        total = total.masked_fill_(twice, torch.inf).flatten(1)
        taken = (taken.unsqueeze(1) | bit[:, i].unsqueeze(2)).flatten(1)
    best = total.argmin(1)
    place = torch.stack([best // rows**i % rows for i in range(rows)], dim=1)
    return column.gather(2, place.unsqueeze(-1)).squeeze(-1)


def assign_by_augmenting(cost: Tensor) -> Tensor:
    """`assign` by shortest augmenting paths (Kuhn 1955, with potentials), all samples in step.

    For more moments than enumeration can hold. A row needs at most one step more than rows are
    already placed, so the number of steps is fixed at G (G + 1) / 2 and nothing is asked of the
    device; samples that are done earlier stand still. Rows that do not count take a column that
    is left, which at cost 0 keeps none from the others.

    Args:
        cost: (B, G, Q) with G ≤ Q, 0 in rows that do not count.

    Returns:
        (B, G) int64.
    """
    batch, rows, columns = cost.shape
    # One column more than there are: the root, where the path of the row being placed begins.
    owner = torch.full((batch, columns + 1), -1, device=cost.device)
    row_price, column_price = cost.new_zeros(batch, rows), cost.new_zeros(batch, columns + 1)
    for row in range(rows):
        owner[:, columns] = row
        end, came_from = _shortest_path(cost, owner, row_price, column_price, steps=row + 1)
        _shift_owners(owner, end, came_from, steps=row + 1)
    held = owner[:, None, :columns] == torch.arange(rows, device=cost.device)[:, None]
    return held.int().argmax(2)


def _shortest_path(
    cost: Tensor, owner: Tensor, row_price: Tensor, column_price: Tensor, *, steps: int
) -> tuple[Tensor, Tensor]:
    """The free column (B,) at the end of the cheapest path from the root, and each column's
    predecessor (B, Q) on it. Prices are updated in place.
    """
    batch, _, columns = cost.shape
    sample = torch.arange(batch, device=cost.device)
    at = torch.full((batch,), columns, device=cost.device)
    slack = cost.new_full((batch, columns), torch.inf)
    came_from = torch.full((batch, columns), columns, device=cost.device)
    seen = torch.zeros(batch, columns + 1, dtype=torch.bool, device=cost.device)
    for _ in range(steps):
        going = owner[sample, at] >= 0
        seen[sample, at] |= going
        row = owner[sample, at].clamp(min=0)
        reduced = cost[sample, row] - row_price[sample, row, None] - column_price[:, :columns]
        better = going[:, None] & ~seen[:, :columns] & (reduced < slack)
        slack = torch.where(better, reduced, slack)
        came_from = torch.where(better, at[:, None], came_from)
        step, nearest = slack.masked_fill(seen[:, :columns], torch.inf).min(1)
        step = torch.where(going, step, 0)
        paid = torch.where(seen, step[:, None], 0)
        row_price.scatter_add_(1, owner.clamp(min=0), paid)
        column_price -= paid
        slack = slack - step[:, None]
        at = torch.where(going, nearest, at)
    return at, came_from


def _shift_owners(owner: Tensor, end: Tensor, came_from: Tensor, *, steps: int) -> None:
    """Hand every column of the path to the owner of its predecessor, in place."""
    columns = came_from.shape[1]
    sample = torch.arange(len(end), device=end.device)
    at = end
    for _ in range(steps):
        before = came_from[sample, at.clamp(max=columns - 1)]
        before = torch.where(at == columns, columns, before)
        owner[sample, at] = owner[sample, before]
        at = before

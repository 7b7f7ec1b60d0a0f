from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from torch.nn import functional

from models.retrieval.parts.pseudo_events import EventMatcher, boundary_scores, find_events
from models.retrieval.parts.spans import pairwise_giou, start_end
from models.retrieval.testing import alone, random_batch
from models.retrieval.types import Batch


def scenes(*lengths: int, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """One video of constant scenes, (1, L, 4) and its mask."""
    rows = [functional.one_hot(torch.tensor(i % 4), 4).expand(n, 4) for i, n in enumerate(lengths)]
    video = functional.pad(torch.cat(rows).float(), (0, 0, 0, padding))
    return video.unsqueeze(0), video.any(-1).unsqueeze(0)


def events(batch: Batch, how: Any) -> list[list[tuple[float, float]]]:
    spans, mask = find_events(batch.video, batch.video_mask, how=how)
    return [
        [(round(start, 4), round(end, 4)) for start, end in start_end(row[keep]).tolist()]
        for row, keep in zip(spans, mask, strict=True)
    ]


def test_the_score_is_the_kernel_on_the_diagonal_of_the_similarities() -> None:
    video = torch.randn(2, 12, 5)
    unit = functional.normalize(video, dim=-1)
    similar = unit @ unit.transpose(1, 2)
    v = torch.tensor([1.0, 1.0, 0.0, -1.0, -1.0])
    public = functional.conv2d(similar.unsqueeze(1), torch.outer(v, v)[None, None], padding=2)
    public = public.squeeze(1).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(boundary_scores(video), public, atol=1e-5, rtol=1e-5)


def test_events_begin_where_the_scene_changes() -> None:
    video, mask = scenes(6, 8, 6)
    spans, found = find_events(video, mask)
    assert start_end(spans[found]).mul(20).round().tolist() == [
        [0, 5],
        [5, 6],
        [6, 13],
        [13, 14],
        [14, 19],
    ]


def test_a_video_that_changes_at_its_end_has_no_event_in_the_padding() -> None:
    """Its last two clips cancel in the score of the first padded one, so the next is a peak."""
    video, mask = torch.zeros(1, 14, 2), torch.arange(14)[None] < 10
    video[0, 8], video[0, 9] = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])
    assert boundary_scores(video)[0, 10:].tolist() == pytest.approx([0, 1, 0, 0])
    assert not find_events(video, mask)[1][0, 10:].any()


def test_a_video_of_one_clip_has_no_events_and_breaks_nothing() -> None:
    spans, found = find_events(torch.randn(2, 1, 4), torch.ones(2, 1, dtype=torch.bool))
    assert not found.any()
    assert spans.isfinite().all()


def test_online_events_do_not_depend_on_the_batch_and_released_ones_do() -> None:
    batch = random_batch([30, 7], [3, 2], seed=3)
    one = alone(batch, 1)
    assert events(batch, "online")[1] == events(one, "online")[0]
    assert events(batch, "released")[1] != events(one, "released")[0]


@pytest.mark.parametrize(("samples", "middle"), [(1, 0), (2, None), (3, 1), (4, None), (5, 2)])
def test_an_odd_batch_joins_its_first_and_last_video_only_as_released(
    samples: int, middle: int | None
) -> None:
    batch = random_batch([12] * samples, [3] * samples)
    backward = [
        row
        for row, spans in enumerate(events(batch, "released"))
        if any(end < start for start, end in spans)
    ]
    assert backward == ([] if middle is None else [middle])
    assert not any(end < start for row in events(batch, "online") for start, end in row)


def test_what_lies_in_the_padding_of_a_video_is_not_seen() -> None:
    video, mask = scenes(6, 8, padding=4)
    noisy = torch.where(mask.unsqueeze(-1), video, torch.nan)
    assert torch.equal(find_events(noisy, mask)[1], find_events(video, mask)[1])


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_the_cheapest_pairs_are_found_with_few_events_and_many(count: int) -> None:
    torch.manual_seed(count)
    spans, targets = torch.rand(8, 4, 2), torch.rand(8, 7, 2)
    mask = torch.arange(7).expand(8, 7) < count
    found = EventMatcher(span=10.0, giou=1.0)(spans, targets, mask)
    cost = 10 * (spans.unsqueeze(2) - targets.unsqueeze(1)).abs().sum(-1)
    cost = cost - pairwise_giou(start_end(spans), start_end(targets))
    for row, chosen in enumerate(found.tolist()):
        pairs = [(span, event) for span, event in enumerate(chosen) if event >= 0]
        assert len(pairs) == len({event for _, event in pairs}) == min(4, count)
        assert all(event < count for _, event in pairs)
        ours = sum(float(cost[row, span, event]) for span, event in pairs)
        assert ours == pytest.approx(cheapest(cost[row, :, :count].tolist()), rel=1e-4)


def cheapest(cost: list[list[float]]) -> float:
    rows, columns = len(cost), len(cost[0])
    if rows > columns:
        return cheapest([list(each) for each in zip(*cost, strict=True)])
    return min(
        sum(cost[i][j] for i, j in enumerate(chosen))
        for chosen in permutations(range(columns), rows)
    )

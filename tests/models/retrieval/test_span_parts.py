"""The parts of the span bases against plain loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from models.retrieval.parts.clip_pooling import grid_mask, to_clips, to_grid
from models.retrieval.parts.context_query import ContextQuery, Pointwise, masked_softmax
from models.retrieval.parts.elastic import Elastic, Found, between, highlighted, moment_places
from models.retrieval.parts.guided import AttentionUnit, around, at_ends, block_max
from models.retrieval.parts.proposals import ProposalScorer, propose
from models.retrieval.parts.span_predictor import BiLSTM, top_spans

MASK = torch.arange(11) < torch.tensor([[11], [6], [1]])


def features(width: int = 4, count: int = 11) -> Tensor:
    return torch.randn(3, count, width, generator=torch.Generator().manual_seed(0))


def test_guides_are_the_maxima_of_all_before_and_all_after() -> None:
    x = features()
    left, right = around(x, MASK)
    for b, n in enumerate(MASK.sum(1).tolist()):
        for i in range(11):
            before, after = x[b, :i], x[b, i + 1 : n]
            real = i < n
            zero = torch.zeros(4)
            assert torch.equal(left[b, i], before.amax(0) if real and len(before) else zero)
            assert torch.equal(right[b, i], after.amax(0) if real and len(after) else zero)


def test_a_tie_between_clips_does_not_change_the_size_of_the_gradient() -> None:
    x = features().requires_grad_()
    sum(each.sum() for each in around(x, MASK)).backward()
    total = x.grad.sum((1, 2))
    real = MASK.sum(1)
    torch.testing.assert_close(total, 2.0 * 4 * (real - 1))


def test_proposals_are_the_maxima_of_their_clips() -> None:
    x = features()
    found = propose(x, MASK, 4)
    assert found.mask.shape == (3, 9)
    for b, n in enumerate(MASK.sum(1).tolist()):
        for i in range(3):
            for j in range(3):
                cell, last = 3 * i + j, min(4 * j + 3, n - 1)
                exists = i <= j and 4 * j < n
                assert bool(found.mask[b, cell]) == exists
                if exists:
                    assert found.bounds[b, cell].tolist() == [4 * i, last]
                    assert torch.equal(found.features[b, cell], x[b, 4 * i : last + 1].amax(0))
                else:
                    assert found.bounds[b, cell].tolist() == [0, 0]
                    assert not found.features[b, cell].any()


def test_the_released_tail_wins_over_negative_features_of_the_longest_video() -> None:
    x = -1 - features().abs()
    closed, zero = propose(x, MASK, 4), propose(x, MASK, 4, tail=-1e-30)
    last = 8  # the cell from block 2 to block 2, whose fourth clip there is none
    assert closed.features[0, last].max() <= -1
    assert zero.features[0, last].abs().max() < 1e-20
    assert torch.equal(closed.features[1], zero.features[1])


def test_guides_of_a_proposal_are_the_blocks_at_its_ends() -> None:
    x = features()
    blocks = block_max(x, MASK, 4)
    found = propose(x, MASK, 4)
    first, last = at_ends(blocks, found.mask)
    for b in range(3):
        for cell in range(9):
            here = found.mask[b, cell]
            assert torch.equal(first[b, cell], blocks[b, cell // 3] * here)
            assert torch.equal(last[b, cell], blocks[b, cell % 3] * here)


def test_blocks_count_padding_only_when_asked() -> None:
    x = features().abs()
    x[1, 6:8] = 50
    assert block_max(x, None, 4)[1, 1].max() == 50
    assert block_max(x, MASK, 4)[1, 1].max() < 50


def test_scores_of_proposals_do_not_depend_on_blocks_that_others_have() -> None:
    torch.manual_seed(0)
    scorer, found = ProposalScorer(4, 2), propose(features(), MASK, 4)
    short = propose(features()[1:2, :6], MASK[1:2, :6], 4)
    together = scorer(found.features, found.mask)[1].reshape(3, 3)[:2, :2].flatten()
    alone = scorer(short.features, short.mask)[0]
    torch.testing.assert_close(together[short.mask[0]], alone[short.mask[0]])


def test_silent_rows_take_the_plain_mean_of_everything() -> None:
    torch.manual_seed(0)
    unit, x, source = AttentionUnit(4, 2, 0.0), features(), features(count=5)
    silent = ~MASK
    allowed = torch.ones(3, 1, 11, 5, dtype=torch.bool)
    out = unit(x, source, allowed, silent=silent)
    mean = unit.value(source).mean(1, keepdim=True)
    expected = unit.norm1(x + mean)
    expected = unit.norm2(expected + unit.mix2(unit.mix1(expected).relu()))
    torch.testing.assert_close(out[silent], expected[silent])


def test_the_two_lstms_equal_a_packed_bidirectional_one() -> None:
    torch.manual_seed(0)
    ours, packed = BiLSTM(4), nn.LSTM(4, 4, batch_first=True, bidirectional=True)
    for name, weight in ours.ahead.named_parameters():
        getattr(packed, name).data.copy_(weight)
    for name, weight in ours.back.named_parameters():
        getattr(packed, f"{name}_reverse").data.copy_(weight)
    x = features()
    rows = nn.utils.rnn.pack_padded_sequence(x, MASK.sum(1), batch_first=True)
    states, _ = nn.utils.rnn.pad_packed_sequence(packed(rows)[0], batch_first=True)
    torch.testing.assert_close(ours(x, MASK)[MASK], ours.mix(states)[MASK])


@pytest.mark.parametrize("count", [1, 4, 70, 200])
def test_spans_are_the_best_pairs_in_order(count: int) -> None:
    start, end = features(2).unbind(-1)
    low = torch.finfo(torch.float32).min
    start, end = start.masked_fill(~MASK, low), end.masked_fill(~MASK, low)
    logits, spans, real = top_spans(start, end, MASK, count)
    score = logits.softmax(-1)[..., 0]
    for b, n in enumerate(MASK.sum(1).tolist()):
        p, q = start[b].softmax(0), end[b].softmax(0)
        pairs = sorted(
            ((float(p[i] * q[j]), i, j) for i in range(n) for j in range(i, n)), reverse=True
        )[:count]
        assert real[b].tolist() == [k < len(pairs) for k in range(count)]
        for k, (value, i, j) in enumerate(pairs):
            assert float(score[b, k]) == pytest.approx(value, rel=1e-4, abs=1e-6)
            centre, width = spans[b, k].tolist()
            assert (centre - width / 2) * n == pytest.approx(i, abs=1e-4)
            assert (centre + width / 2) * n == pytest.approx(j + 1, abs=1e-4)
    assert (score[~real] < 1e-30).all()
    assert logits.isfinite().all()


def test_context_and_query_are_read_as_the_formula_says() -> None:
    torch.manual_seed(0)
    read, v, q = ContextQuery(4, 0.0), features()[:1, :5], features(count=3)[:1]
    form = read.similarity
    score = torch.stack(
        [
            torch.stack(
                [a @ form.context + b @ form.query + (a * form.both[0, 0]) @ b for b in q[0]]
            )
            for a in v[0]
        ]
    ).squeeze(-1)
    words, rows = score.softmax(1), score.softmax(0)
    found, again = words @ q[0], words @ rows.T @ v[0]
    mixed = read.mix(torch.cat([v[0], found, v[0] * found, v[0] * again], -1))
    pooled = ((q[0] @ read.pool).softmax(0) * q[0]).sum(0).expand(5, 4)
    expected = read.join(torch.cat([mixed, pooled], -1)).relu()
    everything = torch.ones(1, 5, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(read(v, q, *everything)[0], expected)


def test_a_pointwise_layer_is_a_convolution_of_width_one() -> None:
    layer, x = Pointwise(4, 6), features()
    expected = nn.functional.conv1d(x.transpose(1, 2), layer.weight, layer.bias).transpose(1, 2)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("clips", [17, 40, 128, 129, 133, 200])
def test_pooling_is_that_of_the_public_code(clips: int) -> None:
    size = 128 if clips > 40 else 16
    x = torch.randn(1, clips, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, clips, dtype=torch.bool)
    if clips <= size:
        assert to_grid(x, mask, size, "released") is x
        return
    edges = [min(round(i / size * clips), clips - 1) for i in range(size + 1)]
    public = torch.stack(
        [x[0, a:b].mean(0) if a < b else x[0, a] for a, b in itertools.pairwise(edges)]
    )
    torch.testing.assert_close(to_grid(x, mask, size, "released")[0], public)
    ours = to_grid(x, mask, size, "mean")[0]
    torch.testing.assert_close(ours[:-1], public[:-1])
    torch.testing.assert_close(ours[-1], x[0, edges[-2] :].mean(0))
    largest = to_grid(x, mask, size, "max")[0]
    torch.testing.assert_close(largest[-1], x[0, edges[-2] :].amax(0))
    torch.testing.assert_close(largest[0], x[0, : edges[1]].amax(0))


@pytest.mark.parametrize("how", ["mean", "max", "released"])
def test_pooling_does_not_depend_on_padding(how: str) -> None:
    mask = torch.arange(50) < torch.tensor([[50], [37], [9]])
    x = torch.randn(3, 50, 2)
    together = to_grid(x, mask, 16, how)
    for row, clips in enumerate((50, 37, 9)):
        alone = to_grid(x[row : row + 1, :clips], mask[row : row + 1, :clips], 16, how)
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0])
    assert grid_mask(mask, 16).sum(1).tolist() == [16, 16, 9]
    back = to_clips(together, mask)
    torch.testing.assert_close(back[2, :9], x[2, :9])


def test_the_first_and_last_place_are_those_of_the_largest_iou() -> None:
    spans = torch.tensor([[0.5, 0.31], [0.1, 0.02], [0.93, 0.2]])
    start, end = moment_places(spans, torch.tensor([11, 6, 9]), 11)
    for b, n in enumerate((11, 6, 9)):
        centre, width = spans[b].tolist()
        low, high = (centre - width / 2) * n, (centre + width / 2) * n

        def iou(i: int, j: int, low: float = low, high: float = high) -> float:
            inner = max(0.0, min(j + 1, high) - max(i, low))
            return inner / (max(j + 1, high) - min(i, low))

        best = max(((i, j) for i in range(n) for j in range(i, n)), key=lambda p: iou(*p))
        assert (int(start[b]), int(end[b])) == best


def chosen(least: float, scores: list[float], elastic: Elastic | None = None) -> Found:
    bounds = torch.tensor([[[0, 7], [8, 15], [0, 15], [16, 23]]])
    exists = torch.tensor([[True, True, True, False]])
    moment = torch.tensor([8]), torch.tensor([13])
    elastic = elastic or Elastic()
    return elastic.choose(moment, bounds, torch.tensor([scores]), exists, least)


def ends(found: Found) -> list[int]:
    return [int(found.other_start), int(found.other_end)]


def test_the_proposal_is_the_best_scored_one_with_enough_overlap() -> None:
    scores = [3.0, 1.0, 2.0, 9.0]
    assert ends(chosen(0.0, scores)) == [0, 7]
    assert ends(chosen(0.3, scores)) == [0, 15]
    assert ends(chosen(0.5, scores)) == [8, 15]
    assert ends(chosen(0.99, scores)) == [8, 13], "the annotation, where no proposal fits"


def test_exclusive_ends_are_one_late() -> None:
    late = Elastic(end="exclusive")
    assert ends(chosen(0.5, [3.0, 1.0, 2.0, 9.0], late)) == [8, 16]
    assert ends(chosen(0.99, [3.0, 1.0, 2.0, 9.0], late)) == [8, 14]


def test_a_set_holds_everything_between_both_edges() -> None:
    inside = between(torch.tensor([4, 2]), torch.tensor([1, 2]), 6)
    assert inside.int().tolist() == [[0, 1, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0]]


def test_the_highlight_reaches_to_the_later_or_the_earlier_end_and_beyond() -> None:
    found = Found(*(torch.tensor([x]) for x in (4, 8, 3, 6)))
    mask = torch.ones(1, 10, dtype=torch.bool)
    for end, extend, expected in (
        ("max", 0.0, range(3, 9)),
        ("min", 0.0, range(3, 7)),
        ("max", 0.2, range(2, 10)),
        ("max", 0.9, range(10)),
    ):
        inside = highlighted(found, mask, extend=extend, end=end)[0]
        assert inside.nonzero().flatten().tolist() == list(expected)


def test_a_softmax_over_nothing_is_zero() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False]])
    found = masked_softmax(torch.tensor([[1.0, 5.0, 1.0], [1.0, 5.0, 1.0]]), mask, 1)
    assert found.tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]

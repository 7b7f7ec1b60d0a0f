"""Targets and padding, and that what is drawn depends on seed, epoch and query alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_store import LLAMA, Annotations, samples, together

from data.annotations.types import Annotation
from training.batch import Draw, QueryTruth, collate


def truth(windows: list[tuple[float, float]], clips: int = 10, **more: object) -> QueryTruth:
    row = Annotation(1, "q", "v", windows=tuple(windows), **more)  # type: ignore[arg-type]
    found = QueryTruth.of(row, clips, 2.0)
    assert found is not None
    return found


def test_spans_are_centre_and_width_in_units_of_the_grid() -> None:
    np.testing.assert_allclose(truth([(2, 6), (0, 20)]).spans, [[0.2, 0.2], [0.5, 1.0]])


def test_moments_are_cut_to_the_clips_that_are_used() -> None:
    found = truth([(6, 14), (10, 12)], clips=5)
    np.testing.assert_allclose(found.spans, [[0.8, 0.4]])
    assert found.in_moment.tolist() == [False, False, False, True, True]


def test_a_clip_is_in_a_moment_if_its_centre_is_and_a_tiny_moment_has_one_clip() -> None:
    assert np.flatnonzero(truth([(2, 6)]).in_moment).tolist() == [1, 2]
    assert np.flatnonzero(truth([(2.9, 5.2)]).in_moment).tolist() == [1, 2]
    assert np.flatnonzero(truth([(5.2, 5.4)]).in_moment).tolist() == [2]


def test_labels_are_summed_over_annotators_and_make_the_hard_pair() -> None:
    found = truth([(2, 8)], clip_ids=(1, 2, 3), saliency=((1, 2), (4, 4), (0, 1)))
    assert found.saliency.tolist() == [0, 3, 8, 1, 0, 0, 0, 0, 0, 0]
    assert found.hard_pair == (2, 3)


def test_equal_labels_rank_no_clip_above_another() -> None:
    found = truth([(2, 8)], clip_ids=(1, 2, 3), saliency=((2,), (2,), (2,)))
    assert found.hard_pair is None
    for positive, negative in filter(None, found.pairs(Draw(), 1)):
        assert found.in_moment[positive]
        assert not found.in_moment[negative]


def test_without_labels_pairs_are_random_and_the_label_is_the_moment() -> None:
    found = truth([(2, 8)])
    assert found.saliency.tolist() == found.in_moment.astype(float).tolist()
    drawn = [found.pairs(Draw(epoch=epoch), 1) for epoch in range(40)]
    assert {pair[0] for row in drawn for pair in row if pair} == {1, 2, 3}
    assert {pair[1] for row in drawn for pair in row if pair} == {0, 4, 5, 6, 7, 8, 9}


def test_a_moment_of_the_whole_video_has_no_pair_with_a_negative_outside() -> None:
    labelled = truth([(0, 4)], clips=2, clip_ids=(0, 1), saliency=((1,), (3,)))
    assert labelled.pairs(Draw(), 1) == [(1, 0), None]
    assert truth([(0, 4)], clips=2).pairs(Draw(), 1) == [None, None]


def test_draws_depend_on_seed_epoch_and_query_and_on_nothing_else() -> None:
    many = truth([(i, i + 1.0) for i in range(0, 20, 2)])
    draw = Draw(seed=1, epoch=2)
    np.random.seed(5)
    first = (many.pairs(draw, 7), many.chosen_spans(draw, 7).tolist())
    np.random.seed(6)
    assert (many.pairs(draw, 7), many.chosen_spans(draw, 7).tolist()) == first
    others = [(Draw(2, 2), 7), (Draw(1, 3), 7), (draw, 8), (draw, "7")]
    assert all(many.chosen_spans(*each).tolist() != first[1] for each in others)


def test_at_most_max_windows_moments_are_targets_in_their_order() -> None:
    many = truth([(i, i + 1.0) for i in range(0, 20, 2)])
    chosen = many.chosen_spans(Draw(max_windows=3), 1)
    assert len(chosen) == 3
    assert (np.diff(chosen[:, 0]) > 0).all()
    assert len(many.spans) == 10


@pytest.fixture
def pair(splits: Annotations) -> list:  # type: ignore[type-arg]
    """Two samples, the second shorter in clips and words."""
    long, short = samples(splits["train"][:2])
    assert short.narrative is not None
    assert short.narrative_mask is not None
    cut = replace(
        short,
        video=short.video[:7],
        text=short.text[:2],
        texts={"llama": short.texts["llama"][:5]},
        narrative=short.narrative[:7],
        narrative_mask=short.narrative_mask[:7],
        events=np.zeros((0, 3), np.float32),
    )
    return [long, cut]


def test_a_batch_is_padded_with_zeros_under_false_masks(pair: list) -> None:  # type: ignore[type-arg]
    batch = collate(together(pair), Draw()).tensors
    assert batch.video.shape == (2, 12, 18)
    assert batch.video_mask.sum(1).tolist() == [12, 7]
    assert batch.text_mask.sum(1).tolist() == [3, 2]
    assert batch.video[1, 7:].abs().sum() == 0
    assert batch.side["narrative"].mask[1, 7:].sum() == 0
    assert batch.event_mask is not None
    assert batch.event_mask.sum(1).tolist() == [2, 0]
    assert torch.equal(batch.video[1, :7], torch.from_numpy(pair[1].video))
    llama = batch.texts["llama"]
    assert llama.x.shape == (2, 6, LLAMA)
    assert llama.mask.sum(1).tolist() == [6, 5]
    assert llama.x[1, 5:].abs().sum() == 0
    assert torch.equal(llama.x[1, :5], torch.from_numpy(pair[1].texts["llama"]))


def test_a_batch_moves_with_its_further_embeddings(pair: list) -> None:  # type: ignore[type-arg]
    moved = collate(together(pair), None).tensors.to("meta")
    assert moved.texts["llama"].x.is_meta
    assert moved.texts["llama"].mask.is_meta


def test_targets_are_padded_and_point_at_clips_of_the_sample(pair: list) -> None:  # type: ignore[type-arg]
    targets = collate(together(pair), Draw()).tensors.targets
    assert targets is not None
    assert targets.spans.shape[:2] == targets.span_mask.shape
    assert targets.saliency.shape == targets.in_moment.shape == (2, 12)
    assert targets.positive.shape == targets.pair_mask.shape == (2, 2)
    for row, column in targets.pair_mask.nonzero().tolist():
        assert targets.in_moment[row, targets.positive[row, column]]


def test_there_are_no_targets_without_a_draw_or_without_ground_truth(pair: list) -> None:  # type: ignore[type-arg]
    assert collate(together(pair), None).tensors.targets is None
    bare = replace(pair[0].annotation, windows=None, clip_ids=None, saliency=None)
    hidden = replace(pair[0], annotation=bare)
    assert collate(together([hidden, pair[1]]), Draw()).tensors.targets is None


def test_queries_on_the_same_video_have_the_same_number(pair: list) -> None:  # type: ignore[type-arg]
    numbers = collate(together([pair[0], pair[1], pair[0]]), None).tensors.video_ids
    assert numbers is not None
    assert numbers[0] == numbers[2] != numbers[1]

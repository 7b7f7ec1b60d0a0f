from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from data.errors import UsageError
from models.retrieval import RetrievalModel, create_model
from models.retrieval.testing import random_batch
from models.retrieval.types import Batch, Side

NARRATIVE = {"narrative": 12}


def model(side_dims: dict[str, int] | None = None, **options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model(
        "qd_detr",
        video_dim=18,
        text_dim=12,
        hidden=16,
        heads=4,
        feedforward=24,
        side_dims=NARRATIVE if side_dims is None else side_dims,
        plugins={"tea": {"heads": 4, **options}},
    ).eval()


def batch() -> Batch:
    return random_batch([6, 4], [3, 2], side_dims=NARRATIVE)


@pytest.mark.parametrize("merge", ["concat", "add", "attention"])
@pytest.mark.parametrize("projection", ["shared", "separate"])
@torch.no_grad()
def test_clips_that_the_narrative_does_not_cover_stay_as_they_were(
    merge: str, projection: str
) -> None:
    given, built = batch(), model(merge=merge, projection=projection)
    before = built.encoders(given).video
    after = built.trace(given, passes=False).tokens.video
    covered = given.side["narrative"].mask
    assert torch.equal(after[~covered], before[~covered])
    assert (after[covered] - before[covered]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("merge", ["concat", "add", "attention"])
@torch.no_grad()
def test_what_the_stream_holds_where_it_covers_nothing_is_not_read(merge: str) -> None:
    given, built = batch(), model(merge=merge)
    stream = given.side["narrative"]
    noisy = Side(torch.where(stream.mask.unsqueeze(-1), stream.x, 7.0), stream.mask)
    changed = replace(given, side={"narrative": noisy})
    torch.testing.assert_close(built(changed).logits, built(given).logits)


@torch.no_grad()
def test_addition_adds_the_narrative_projected_as_the_query() -> None:
    given, built = batch(), model(merge="add")
    stream = given.side["narrative"]
    expected = built.encoders(given).video + built.encoders.encode_text(stream.x)
    after = built.trace(given, passes=False).tokens.video
    torch.testing.assert_close(after[stream.mask], expected[stream.mask])


def test_the_projection_is_shared_or_its_own() -> None:
    shared = {key for key, _ in model().named_parameters() if key.startswith("merges")}
    separate = {
        key for key, _ in model(projection="separate").named_parameters() if "merges" in key
    }
    assert not any("projection" in key for key in shared)
    assert separate - shared
    assert all("projection" in key for key in separate - shared)


def test_a_stream_of_another_width_needs_its_own_projection() -> None:
    with pytest.raises(UsageError, match=r"7 features\) as the query \(12 features\).*separate"):
        model({"narrative": 7})
    model({"narrative": 7}, projection="separate")


@torch.no_grad()
def test_the_narrative_goes_through_its_own_projection_if_it_has_one() -> None:
    given, found = batch(), {}
    for projection in ("shared", "separate"):
        built = model(projection=projection, merge="add")
        merge = built.merges[0]
        trace = built.trace(given, passes=False)
        found[projection] = trace.tokens.video - trace.encoded.video
        own = built.encoders.encode_text if merge.projection is None else merge.projection
        stream = given.side["narrative"]
        covered = torch.where(stream.mask.unsqueeze(-1), own(stream.x), 0)
        torch.testing.assert_close(found[projection], covered, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found["shared"], found["separate"], atol=1e-3)


def test_data_without_the_stream_are_refused_with_the_option_that_loads_it() -> None:
    with pytest.raises(UsageError, match=r"reads the side stream 'narrative'.*data\.narratives"):
        model({})
    with pytest.raises(UsageError, match=r"carries none; load .*data\.narratives"):
        model()(replace(batch(), side={}))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UsageError, match="16 features among 3 heads"):
        model(merge="attention", heads=3)

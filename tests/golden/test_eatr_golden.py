"""EaTR's `release` preset computes what its public code computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.retrieval import RetrievalModel
from models.retrieval.parts import losses
from models.retrieval.parts.projection import AnchorSine
from models.retrieval.parts.pseudo_events import EventMatcher, find_events
from tests.golden.public_golden import (
    Golden,
    check_predictions,
    check_step,
    check_trace,
    close,
    golden_of,
    step_of,
    test_matched_indices_equal_the_public_code,
    test_public_weights_survive_the_way_there_and_back,
)

__all__ = [
    "test_matched_indices_equal_the_public_code",
    "test_public_weights_survive_the_way_there_and_back",
]

LOSSES = {"margin": "saliency", "event": "event_span + event_giou"}

golden = golden_of("eatr")
step = step_of("eatr")


@torch.no_grad()
def test_outputs_equal_the_public_code(golden: Golden) -> None:
    trace = golden.load().trace(golden.batch, passes=True)
    check_trace(trace, golden)
    close(trace.predictions.extras["event_spans"], golden.tensors["eval.pred_event_spans"])


def test_pseudo_events_equal_the_public_code(golden: Golden) -> None:
    spans, mask = find_events(golden.batch.video, golden.batch.video_mask, how="released")
    for row in range(len(spans)):
        close(spans[row][mask[row]], golden.tensors[f"eval.pseudo_event_spans.{row}"])


def test_a_training_step_equals_the_public_code(step: Golden) -> None:
    model = step.in_training()
    found = model(step.batch)
    check_predictions(found, step, "train")
    close(found.extras["event_spans"], step.tensors["train.pred_event_spans"])
    check_step(model, step, LOSSES)


@torch.no_grad()
def test_matched_events_equal_the_public_code(step: Golden) -> None:
    _, events, *_ = step.step["matched_indices_in_call_order"]
    check_event_matches(step.load(), step, events)


def check_event_matches(
    model: RetrievalModel, golden: Golden, public: list[list[list[int]]]
) -> None:
    """The pairs, and with them both event losses, are the public ones."""
    batch, spans = golden.batch, model(golden.batch).extras["event_spans"]
    events, mask = find_events(batch.video, batch.video_mask, how="released")
    matched = EventMatcher(span=10, giou=1)(spans, events, mask)
    rank = mask.cumsum(1) - 1
    for row, (queries, numbers) in enumerate(public):
        ours = {q: int(rank[row, e]) for q, e in enumerate(matched[row].tolist()) if e >= 0}
        assert ours == dict(zip(queries, numbers, strict=True))
    chosen = events.gather(1, matched.clamp(min=0).unsqueeze(-1).expand_as(spans))
    step = golden.step["losses"]
    given = (spans, chosen, matched >= 0)
    assert losses.span_l1(*given).item() == pytest.approx(step["loss_event_span"], rel=1e-4)
    assert losses.span_giou(*given).item() == pytest.approx(step["loss_event_giou"], rel=1e-4)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_the_detector_of_eatr_gives_what_the_public_one_gives(samples: int, shared: Path) -> None:
    pure = load_file(shared / "golden" / "retrieval" / "pure" / "eatr.safetensors")
    given = {
        key.split(".")[1]: x
        for key, x in pure.items()
        if key.startswith(f"pseudo_events_batch{samples}.")
    }
    spans, mask = find_events(given["video"], given["mask"].bool(), how="released")
    assert mask.sum(1).tolist() == given["counts"].tolist()
    close(spans[mask], given["spans"])
    anchors = pure["anchor_sine_event.anchors"]
    close(AnchorSine(64)(anchors), pure["anchor_sine_event.out"])

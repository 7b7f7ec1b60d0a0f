"""EaTR's `release` preset computes what its public code computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.retrieval import MODELS, RetrievalModel
from models.retrieval.official import official_state_dict
from models.retrieval.parts import losses
from models.retrieval.parts.projection import AnchorSine
from models.retrieval.parts.pseudo_events import EventMatcher, find_events
from models.retrieval.types import StepContext
from tests.golden.public_golden import (
    Golden,
    check_gradients,
    check_input_gradients,
    check_layers,
    close,
    read,
    with_gradients,
)


@pytest.fixture(params=["a", "b", "c", "q"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return read("eatr", request.param, request)


@torch.no_grad()
def test_eatr_outputs_equal_the_public_code(golden: Golden) -> None:
    gold, batch = golden.tensors, golden.batch
    trace = golden.load().trace(batch, passes=True)
    check_layers(trace.predictions, golden)
    close(trace.predictions.saliency, gold["eval.saliency_scores"], batch.video_mask)
    close(trace.predictions.extras["event_spans"], gold["eval.pred_event_spans"])
    assert trace.decoded is not None
    assert trace.decoded.references is not None
    events, *layers = gold["eval.hs"].unbind()
    close(trace.decoded.extras["event_states"], events)
    close(trace.decoded.states, torch.stack(layers))
    close(trace.decoded.references, gold["eval.references"])
    close(trace.memory.kv, gold["eval.memory"], trace.memory.kv_mask)


def test_pseudo_events_equal_the_public_code(golden: Golden) -> None:
    spans, mask = find_events(golden.batch.video, golden.batch.video_mask, how="released")
    for row in range(len(spans)):
        close(spans[row][mask[row]], golden.tensors[f"eval.pseudo_event_spans.{row}"])


@pytest.mark.parametrize("case", ["b", "q"])
def test_a_training_step_of_eatr_equals_the_public_code(
    case: str, request: pytest.FixtureRequest
) -> None:
    golden = read("eatr", case, request)
    step, batch = golden.meta["train"]["train"], with_gradients(golden.batch)
    model = golden.load(dropout=0.0, input_dropout=0.0).train()
    found = model(batch)
    close(found.logits, golden.tensors["train.pred_logits"])
    close(found.spans, golden.tensors["train.pred_spans"])
    close(found.extras["event_spans"], golden.tensors["train.pred_event_spans"])
    values = model.losses(batch, StepContext())
    public = {key: x * step["weights"].get(key, 0) for key, x in step["losses"].items()}
    for name, loss in values.items():
        if name == "event":
            expected = public["loss_event_span"] + public["loss_event_giou"]
        else:
            expected = public["loss_saliency" if name == "margin" else f"loss_{name}"]
        assert loss.item() == pytest.approx(expected, rel=1e-4), name
    total = torch.stack(list(values.values())).sum()
    assert total.item() == pytest.approx(step["total"], rel=1e-4)
    total.backward()
    check_gradients(model, step)
    check_input_gradients(batch, golden)


@pytest.mark.parametrize("case", ["b", "q"])
@torch.no_grad()
def test_matches_of_eatr_equal_the_public_code(case: str, request: pytest.FixtureRequest) -> None:
    golden = read("eatr", case, request)
    model, batch, targets = golden.load(), golden.batch, golden.batch.targets
    assert targets is not None
    found = model(batch)
    last, events, *earlier = golden.meta["train"]["train"]["matched_indices_in_call_order"]
    layers = ((found.logits, found.spans), *found.layers)
    for (logits, spans), call in zip(layers, (last, *earlier), strict=True):
        matched = model.criterion.matcher(logits, spans, targets.spans, targets.span_mask)
        for row, (queries, moments) in zip(matched.tolist(), call, strict=True):
            assert [row[moment] for moment in moments] == queries
    check_event_matches(model, golden, events)


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
    step = golden.meta["train"]["train"]["losses"]
    given = (spans, chosen, matched >= 0)
    assert losses.span_l1(*given).item() == pytest.approx(step["loss_event_span"], rel=1e-4)
    assert losses.span_giou(*given).item() == pytest.approx(step["loss_event_giou"], rel=1e-4)


def test_public_weights_of_eatr_survive_the_way_there_and_back(golden: Golden) -> None:
    model = golden.load()
    layout = MODELS.get("eatr").official
    back, unused = official_state_dict(model, layout), layout.unused(model.recipe)
    assert back.keys() == golden.weights.keys()
    assert all(torch.equal(back[k], golden.weights[k]) for k in back.keys() - unused.keys())
    assert all(back[key].shape == golden.weights[key].shape for key in unused)


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

"""Two plug-ins on one base: they train together, or the refusal says what to do instead.

The rows of the conflicts table (specs/retrieval_models.md §5.4) that are no refusal have a test of
their own here or beside the plug-in.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_every_model import PAIRS, TRIED, narrow, ragged

from data.errors import UsageError
from models.retrieval import MODELS, PLUGINS, RetrievalModel
from models.retrieval.types import StepContext


def both(name: str, *plugins: str) -> RetrievalModel:
    return narrow(name, plugins={each: TRIED.get(each, {}) for each in plugins}).train()


def pairs_of(name: str) -> Iterator[tuple[str, str]]:
    """Every two plug-ins that go with a base and with each other."""
    known = [plugin for plugin in PLUGINS if (name, plugin) in PAIRS]
    for one, other in itertools.combinations(known, 2):
        mine, theirs = PLUGINS.get(one).conflicts, PLUGINS.get(other).conflicts
        if other not in mine and one not in theirs:
            yield one, other


def step(model: RetrievalModel, optimiser: torch.optim.Optimizer, number: int) -> dict[str, Any]:
    losses = model.losses(ragged(), StepContext(epoch=number, step=number))
    total = torch.stack(list(losses.values())).sum()
    optimiser.zero_grad()
    total.backward()
    assert total.isfinite()
    optimiser.step()
    model.after_step(StepContext(epoch=number, step=number))
    return losses


@pytest.mark.parametrize("name", list(MODELS))
def test_two_plugins_train_together_and_both_keep_their_losses(name: str) -> None:
    terms = {plugin: set(both(name, plugin).criterion.terms) for plugin in known_of(name)}
    plain = set(narrow(name).criterion.terms)
    for one, other in pairs_of(name):
        model = both(name, one, other)
        learned = {key: x for key, x in model.named_parameters() if x.requires_grad}
        optimiser = torch.optim.AdamW(learned.values(), 1e-3)
        for number in range(2):
            losses = step(model, optimiser, number)
        added = (terms[one] | terms[other]) - plain
        assert set(model.criterion.terms) >= added, (one, other)
        for loss in added:
            assert losses[loss].requires_grad, (one, other, loss)
        for key, x in learned.items():
            assert x.isfinite().all(), (one, other, key)
            assert x.grad is not None, (one, other, key)


def known_of(name: str) -> list[str]:
    return [plugin for plugin in PLUGINS if (name, plugin) in PAIRS]


@pytest.mark.parametrize("plugin", list(PLUGINS))
def test_every_refusal_says_what_to_do(plugin: str) -> None:
    for other, reason in PLUGINS.get(plugin).conflicts.items():
        assert re.search(r"\b(set|choose|use|leave)\b", reason), f"{plugin} with {other}: {reason}"


@pytest.mark.parametrize("order", [("tea", "position_regulation"), ("position_regulation", "tea")])
def test_regulated_places_are_those_that_tea_moves_into_the_clips(order: tuple[str, str]) -> None:
    """Moved away before the loss reads them, it would be 0 and train nothing."""
    options: dict[str, dict[str, Any]] = {"tea": {"place": "added"}, "position_regulation": {}}
    model = narrow("qd_detr", plugins={each: options[each] for each in order}).train()
    trace = model.trace(ragged(), passes=False)
    assert not trace.tokens.video_pos.any()
    table = dict(model.named_parameters())["merges.0.table"]
    model.losses(ragged(), StepContext())["position"].backward()
    assert table.grad is not None
    assert table.grad.abs().sum() > 0


@torch.no_grad()
def test_univtg_finds_other_moments_with_the_refiner_and_the_same_highlights() -> None:
    """Its saliency compares clips and words as they were before the memory."""
    plain, refined = narrow("univtg").eval(), both("univtg", "llm_refiner").eval()
    one, other = plain(ragged()), refined(ragged())
    assert torch.equal(one.saliency, other.saliency)
    assert not torch.allclose(one.spans, other.spans, atol=1e-3)


@pytest.mark.parametrize("name", [m for m, plugin in PAIRS if plugin == "distill_align"])
def test_a_step_puts_a_batch_into_the_queue_once_whatever_runs_beside(name: str) -> None:
    model, batch = both(name, "distill_align"), ragged()
    queue = model.get_submodule("criterion.terms.distill_align.queue")
    before = dict(queue.state_dict())["pointer"].clone()
    for number in range(2):  # gradients of two batches in one step
        model.losses(batch, StepContext(step=number))
        assert torch.equal(queue.state_dict()["pointer"], before)
    model.after_step(StepContext(step=1))
    assert torch.equal(queue.state_dict()["pointer"], before + 2 * len(batch))


@pytest.mark.parametrize("name", list(MODELS))
def test_computing_losses_and_predictions_in_evaluation_changes_no_state(name: str) -> None:
    model = both(name, *(each for each in ("distill_align", "conv_fuser") if (name, each) in PAIRS))
    model.eval()
    before = {key: x.clone() for key, x in model.state_dict().items()}
    with torch.no_grad():
        model.losses(ragged(), StepContext(epoch=3, step=7))
        model(ragged())
    assert all(torch.equal(x, before[key]) for key, x in model.state_dict().items())


def test_a_pass_that_no_loss_reads_does_not_run() -> None:
    silent = narrow("qd_detr", saliency_weight=0.0).train()
    assert len(narrow("qd_detr").passes) == 1
    assert len(silent.passes) == 0
    assert "saliency_negative" not in silent(ragged()).extras


def test_what_does_not_fit_is_refused_for_a_pair_too() -> None:
    with pytest.raises(UsageError, match="choose a base with queries"):
        both("univtg", "conv_fuser", "event_regulation")

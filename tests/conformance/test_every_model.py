"""What every model of the family must do, with every preset and plug-in. A new model or plug-in is
tested here by being registered."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from models.retrieval import MODELS, PLUGINS, PRESETS, RetrievalModel, create_model
from models.retrieval.decode import ranked
from models.retrieval.official import fill, official_state_dict
from models.retrieval.parts.spans import overlap, start_end
from models.retrieval.testing import alone, random_batch, take
from models.retrieval.types import Batch, Predictions, StepContext

VIDEO, TEXT, SIDES = 18, 12, {"narrative": 12}
NARROW = {"hidden": 32, "heads": 4, "feedforward": 48}
STILL = {"dropout": 0.0, "input_dropout": 0.0}


@dataclass(frozen=True)
class Case:
    name: str
    preset: Any
    plugin: str | None

    def __str__(self) -> str:
        return f"{self.name}-{self.preset}-{self.plugin or 'plain'}"

    def build(self, **options: Any) -> RetrievalModel:
        plugins = {self.plugin: {}} if self.plugin else {}
        return narrow(self.name, preset=self.preset, plugins=plugins, **options)


def narrow(name: str, **options: Any) -> RetrievalModel:
    known = MODELS.get(name).options.model_fields
    given = {key: value for key, value in (NARROW | STILL).items() if key in known}
    torch.manual_seed(0)
    return create_model(name, video_dim=VIDEO, text_dim=TEXT, side_dims=SIDES, **(given | options))


CASES = [Case(m, p, g) for m in MODELS for p in PRESETS for g in (None, *PLUGINS)]
FIXED = [case for case in CASES if case.preset == "fixed"]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_fixed = pytest.mark.parametrize("case", FIXED, ids=str)
every_model = pytest.mark.parametrize("name", list(MODELS))


def ragged(**options: Any) -> Batch:
    lengths, words = [11, 7, 9, 3], [5, 2, 4, 1]
    return random_batch(
        lengths, words, video_dim=VIDEO, text_dim=TEXT, side_dims=SIDES, moments=2, **options
    )


def equal(a: Predictions, b: Predictions, clips: int) -> None:
    for x, y in (
        (a.logits, b.logits),
        (a.spans, b.spans),
        (a.saliency[:, :clips], b.saliency[:, :clips]),
        *(
            (x, y)
            for one, two in zip(a.layers, b.layers, strict=True)
            for x, y in zip(one, two, strict=True)
        ),
    ):
        torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-5)


@every_case
@torch.no_grad()
def test_predictions_have_the_documented_shapes_and_ranges(case: Case) -> None:
    batch = ragged()
    found = case.build().eval()(batch)
    queries = found.logits.shape[1]
    assert found.logits.shape == (4, queries, 2)
    assert found.spans.shape == (4, queries, 2)
    assert found.saliency.shape == batch.video_mask.shape
    assert found.spans.min() >= 0
    assert found.spans.max() <= 1
    for logits, spans in found.layers:
        assert logits.shape == found.logits.shape
        assert spans.shape == found.spans.shape


@every_fixed
@torch.no_grad()
def test_a_sample_alone_gives_what_it_gives_beside_longer_ones(case: Case) -> None:
    model, batch = case.build().eval(), ragged()
    together = model(batch)
    for row, clips in enumerate(batch.video_mask.sum(1).tolist()):
        by_itself = model(alone(batch, row))
        beside = Predictions(
            together.logits[row : row + 1],
            together.spans[row : row + 1],
            together.saliency[row : row + 1],
            tuple((a[row : row + 1], b[row : row + 1]) for a, b in together.layers),
        )
        equal(by_itself, beside, clips)


@every_fixed
@torch.no_grad()
def test_what_lies_in_padding_changes_nothing(case: Case) -> None:
    model, batch = case.build().eval(), ragged()
    noisy = replace(
        batch,
        video=torch.where(batch.video_mask.unsqueeze(-1), batch.video, torch.randn(VIDEO)),
        text=torch.where(batch.text_mask.unsqueeze(-1), batch.text, torch.randn(TEXT)),
    )
    equal(model(noisy), model(batch), clips=3)


@every_fixed
@torch.no_grad()
def test_samples_in_another_order_give_the_same_in_that_order(case: Case) -> None:
    model, batch, order = case.build().eval(), ragged(), [2, 0, 3, 1]
    there, here = model(take(batch, order)), model(batch)
    moved = Predictions(
        here.logits[order],
        here.spans[order],
        here.saliency[order],
        tuple((a[order], b[order]) for a, b in here.layers),
    )
    equal(there, moved, clips=3)


@every_case
def test_gradients_reach_every_parameter(case: Case) -> None:
    model, batch = case.build().train(), ragged()
    with torch.no_grad():  # parameters that start at zero would hide those behind them
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    torch.stack(list(model.losses(batch, StepContext()).values())).sum().backward()
    inert = MODELS.get(case.name).inert
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        reached = bool(parameter.grad.abs().max() > 1e-6)
        silent = any(re.fullmatch(pattern, name) for pattern in inert)
        assert reached != silent, f"{name}: gradient {reached}, declared inert {silent}"


@every_case
def test_every_loss_is_named_finite_and_in_the_sum_that_is_minimised(case: Case) -> None:
    model = case.build().train()
    losses = model.losses(ragged(), StepContext())
    terms = {name: term.weight for name, term in model.criterion.terms.items()}
    assert terms.keys() <= losses.keys()
    for name, loss in losses.items():
        assert loss.shape == (), name
        assert loss.isfinite(), name
        assert loss.requires_grad, name
        assert terms[re.sub(r"_\d+$", "", name)] != 0


@every_case
def test_a_model_comes_back_from_its_recipe_and_state(case: Case) -> None:
    model, batch, file = case.build().eval(), ragged(), io.BytesIO()
    torch.save({"recipe": model.recipe, "state": model.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = create_model(**saved["recipe"]).eval()
    again.load_state_dict(saved["state"])
    with torch.no_grad():
        assert torch.equal(again(batch).spans, model(batch).spans)
    assert again.recipe == model.recipe


@every_model
def test_the_public_layout_has_one_place_for_every_parameter(name: str) -> None:
    model, layout = narrow(name, preset="release"), MODELS.get(name).official
    public = official_state_dict(model, layout)
    assert len(public) == len(model.state_dict()) + len(layout.unused(model.recipe))
    torch.manual_seed(1)
    other = create_model(**model.recipe)
    fill(other, layout, public)
    for (key, ours), theirs in zip(
        model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), key


@pytest.mark.parametrize("plugin", list(PLUGINS))
@every_model
@torch.no_grad()
def test_a_plugin_that_is_off_equals_one_that_is_absent(name: str, plugin: str) -> None:
    absent = narrow(name).eval()
    off = narrow(name, plugins={plugin: dict(PLUGINS.get(plugin).off)}).eval()
    state, batch = off.state_dict(), ragged()
    assert state.keys() == absent.state_dict().keys()
    assert all(torch.equal(state[key], x) for key, x in absent.state_dict().items())
    assert torch.equal(off(batch).logits, absent(batch).logits)


@pytest.mark.parametrize("plugin", list(PLUGINS))
@every_model
@torch.no_grad()
def test_a_plugin_keeps_the_weights_of_the_base_and_changes_what_it_gives(
    name: str, plugin: str
) -> None:
    absent, present = narrow(name).eval(), narrow(name, plugins={plugin: {}}).eval()
    state = present.state_dict()
    assert all(torch.equal(state[key], x) for key, x in absent.state_dict().items())
    assert not torch.allclose(present(ragged()).logits, absent(ragged()).logits, atol=1e-4)


EDGES = {
    "query without words": random_batch([6, 6], [0, 3], side_dims=SIDES),
    "no query has words": random_batch([6, 6], [0, 0], side_dims=SIDES),
    "one clip": random_batch([1, 1], [3, 2], side_dims=SIDES),
    "one sample": random_batch([6], [3], side_dims=SIDES),
    "one video in the whole batch": replace(
        random_batch([6, 6], [3, 3], side_dims=SIDES), video_ids=torch.zeros(2, dtype=torch.int64)
    ),
    "no video ids": replace(random_batch([6, 6], [3, 3], side_dims=SIDES), video_ids=None),
}


@pytest.mark.parametrize("edge", list(EDGES))
@every_fixed
def test_edges_train_without_nan(case: Case, edge: str) -> None:
    check_step(case.build().train(), EDGES[edge])


def whole(batch: Batch) -> Batch:
    assert batch.targets is not None
    clips = torch.arange(batch.video_mask.shape[1]).expand_as(batch.video_mask)
    targets = replace(
        batch.targets,
        spans=torch.tensor([0.5, 1.0]).expand_as(batch.targets.spans),
        in_moment=batch.video_mask,
        saliency=(1.0 + clips) * batch.video_mask,
        pair_mask=torch.zeros_like(batch.targets.pair_mask),
    )
    return replace(batch, targets=targets)


def without_moments(batch: Batch) -> Batch:
    assert batch.targets is not None
    targets = replace(
        batch.targets,
        span_mask=torch.zeros_like(batch.targets.span_mask),
        saliency=torch.zeros_like(batch.targets.saliency),
    )
    return replace(batch, targets=targets)


@pytest.mark.parametrize("change", [whole, without_moments], ids=["whole video", "no moments"])
@every_fixed
def test_extreme_ground_truth_trains_without_nan(case: Case, change: Any) -> None:
    check_step(case.build().train(), change(random_batch([6, 4], [3, 2], side_dims=SIDES)))


@pytest.mark.parametrize("size", [1e3, 0.0], ids=["huge", "zero"])
@every_fixed
def test_extreme_features_train_without_nan(case: Case, size: float) -> None:
    batch = random_batch([6, 4], [3, 2], side_dims=SIDES)
    check_step(
        case.build().train(), replace(batch, video=batch.video * size, text=batch.text * size)
    )


@every_fixed
def test_autocast_to_bfloat16_trains_and_stays_near(case: Case) -> None:
    model, batch = case.build().train(), ragged()
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        check_step(model, batch)
        near = model(batch)
    assert (near.spans - exact.spans).abs().max() < 0.05
    assert near.saliency.dtype == torch.float32


def check_step(model: RetrievalModel, batch: Batch) -> None:
    total = torch.stack(list(model.losses(batch, StepContext()).values())).sum()
    total.backward()
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name


@pytest.mark.slow
@every_model
def test_thirty_two_samples_can_be_learned_by_heart(name: str) -> None:
    batch = random_batch([10] * 32, [4] * 32, seed=1)
    model = narrow(name, hidden=64, feedforward=64)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(1, 301):
        loss = torch.stack(list(model.losses(batch, StepContext()).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 25 == 0 and recall(model, batch) == 1:
            return
    pytest.fail(f"R1@0.7 is {recall(model, batch):.2f} after {step} steps on 32 samples")


@torch.no_grad()
def recall(model: RetrievalModel, batch: Batch) -> float:
    """R1@0.7 with one moment a sample."""
    assert batch.targets is not None
    best = ranked(model.eval()(batch))[:, 0, :2]
    model.train()
    return (overlap(best, start_end(batch.targets.spans[:, 0]))[0] >= 0.7).float().mean().item()

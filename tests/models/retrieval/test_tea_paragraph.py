"""TEA on a span base: the merge with places, and the branch of paragraph and query."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from data.errors import UsageError
from models.retrieval import MODELS, PLUGINS, RetrievalModel, create_model
from models.retrieval.build import ModelFamily
from models.retrieval.official import unpublished
from models.retrieval.stages import Parts
from models.retrieval.testing import random_batch
from models.retrieval.types import Batch, Side

SIDES = {"narrative": 12}


def model(plugins: dict[str, dict[str, Any]], **options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    given = {"hidden": 32, "heads": 4, "dropout": 0.0, "video_dim": 18, "text_dim": 12} | options
    return create_model("emb", side_dims=SIDES, plugins=plugins, **given)


def branch(**options: Any) -> RetrievalModel:
    return model({"tea_paragraph": {"heads": 4, "dropout": 0.0, **options}})


def batch() -> Batch:
    return random_batch([11, 7, 4], [4, 2, 3], side_dims=SIDES)


def untold(given: Batch, row: int) -> Batch:
    stream = given.side["narrative"]
    mask = stream.mask.clone()
    mask[row] = False
    return replace(given, side={"narrative": Side(stream.x, mask)})


def test_the_distributions_are_the_weighted_mean_of_both() -> None:
    found = branch(alpha=0.5).eval()(batch()).extras
    for edge in ("start", "end"):
        p, seen, told = (
            found[f"{name}{edge}_logits"].softmax(1) for name in ("", "video_", "paragraph_")
        )
        torch.testing.assert_close(p, (seen + 0.5 * told) / 1.5)
        # a distribution as it is, not up to a factor
        torch.testing.assert_close(found[f"{edge}_logits"].exp().sum(1), torch.ones(3))


@torch.no_grad()
def test_with_a_weight_of_nearly_nothing_the_video_decides() -> None:
    given = batch()
    plain, faint, half = model({}).eval(), branch(alpha=1e-7).eval(), branch().eval()
    torch.testing.assert_close(faint(given).logits, plain(given).logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(half(given).logits, plain(given).logits, atol=1e-4)


@torch.no_grad()
def test_a_video_without_narrative_is_left_to_its_own_distributions() -> None:
    given, built = untold(batch(), 1), branch().eval()
    plain = model({}).eval()(given)
    found = built(given)
    torch.testing.assert_close(found.logits[1], plain.logits[1])
    assert not torch.allclose(found.logits[0], plain.logits[0])


@torch.no_grad()
def test_what_the_narrative_holds_where_it_covers_nothing_is_not_read() -> None:
    given, built = batch(), branch().eval()
    stream = given.side["narrative"]
    noisy = Side(torch.where(stream.mask.unsqueeze(-1), stream.x, 7.0), stream.mask)
    changed = replace(given, side={"narrative": noisy})
    torch.testing.assert_close(built(changed).logits, built(given).logits)


@pytest.mark.parametrize(
    ("loss", "learned", "terms"),
    [
        ("combined", True, {"location"}),
        ("separate", True, {"location", "paragraph_location"}),
        ("none", False, {"location"}),
    ],
)
def test_the_branch_learns_unless_only_the_video_is_trained(
    loss: str, learned: bool, terms: set[str]
) -> None:
    built = branch(loss=loss)
    losses = built.losses(batch())
    assert losses.keys() == terms | {"highlight", "proposal"}
    torch.stack(list(losses.values())).sum().backward()
    own = [p for name, p in built.named_parameters() if name.startswith("heads.2")]
    assert own
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in own) == learned


def test_trained_apart_the_video_has_the_loss_of_the_plain_base() -> None:
    given = batch()
    plain = model({}).losses(given)["location"]
    for loss in ("separate", "none"):
        torch.testing.assert_close(branch(loss=loss).losses(given)["location"], plain)
    assert branch(loss="combined").losses(given)["location"] != plain


def test_a_video_without_narrative_does_not_learn_through_the_branch() -> None:
    built, given = branch(loss="separate"), batch()
    stream = given.side["narrative"]
    none = {"narrative": Side(stream.x, torch.zeros_like(stream.mask))}
    built.losses(replace(given, side=none))["paragraph_location"].backward()
    reached = {name for name, p in built.named_parameters() if p.grad is not None and p.grad.any()}
    assert not reached


def test_the_projection_is_shared_or_its_own() -> None:
    assert not any("merges" in name for name, _ in branch().named_parameters())
    own = branch(projection="separate")
    assert any(name.startswith("merges.0.projection") for name, _ in own.named_parameters())


def test_bases_without_distributions_are_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match=r"does not go with 'qd_detr'.*first and the last clip"):
        create_model(
            "qd_detr", video_dim=18, text_dim=12, side_dims=SIDES, plugins={"tea_paragraph": {}}
        )


@contextmanager
def registered(family: ModelFamily[Any]) -> Iterator[str]:
    """A base that somebody adds after the plug-ins were imported."""
    name = "a_base_of_this_test"
    MODELS.register(name)(family)
    try:
        yield name
    finally:
        del MODELS._things[name]


def narrated(name: str) -> RetrievalModel:
    given: dict[str, Any] = {"hidden": 32, "heads": 4, "dropout": 0.0, "side_dims": SIDES}
    plugins = {"tea_paragraph": {"heads": 4, "dropout": 0.0}}
    return create_model(name, video_dim=18, text_dim=12, plugins=plugins, **given)


def test_a_new_base_without_distributions_is_refused_too() -> None:
    conflicts = PLUGINS.get("tea_paragraph").conflicts
    with registered(replace(MODELS.get("qd_detr"), official=unpublished("This test"))) as name:
        with pytest.raises(UsageError, match=f"does not go with '{name}': .* spans without them"):
            narrated(name)
        assert name in conflicts
        assert {*conflicts} == {*MODELS} - {"emb"}
    assert name not in conflicts


def test_a_new_base_with_distributions_has_the_branch_without_being_known_by_name() -> None:
    torch.manual_seed(0)
    with registered(replace(MODELS.get("emb"), official=unpublished("This test"))) as name:
        found = narrated(name).eval()(batch())
    torch.testing.assert_close(found.logits, branch().eval()(batch()).logits)


def test_a_base_that_promises_distributions_and_has_none_is_refused() -> None:
    family: ModelFamily[Any] = MODELS.get("emb")

    def without(dims: Any, options: Any) -> Any:
        blueprint = family.build(dims, options)
        parts: Parts = replace(blueprint.parts, heads=())
        return replace(blueprint, parts=parts)

    with (
        registered(replace(family, build=without)) as name,
        pytest.raises(UsageError, match="predicts spans without them"),
    ):
        narrated(name)


def test_heads_and_streams_must_fit() -> None:
    with pytest.raises(UsageError, match="'tea_paragraph' cannot divide 32 features among 5"):
        branch(heads=5)
    with pytest.raises(UsageError, match=r"'tea_paragraph' reads the side stream 'other'"):
        branch(side="other")
    with pytest.raises(UsageError, match=r"carries none; load .*data\.narratives"):
        branch()(replace(batch(), side={}))


@torch.no_grad()
def test_with_places_added_clip_and_narrative_hold_theirs_when_they_meet() -> None:
    given = batch()
    apart, added = (
        model({"tea": {"merge": "add", "place": place}}).eval() for place in ("apart", "added")
    )
    before = added.encoders(given)
    told = added.encoders.encode_text(given.side["narrative"].x)
    found = added.trace(given, passes=False).tokens
    covered = given.side["narrative"].mask
    expected = before.video + told + 2 * before.video_pos
    torch.testing.assert_close(found.video[covered], expected[covered])
    bare = (before.video + before.video_pos)[~covered]
    torch.testing.assert_close(found.video[~covered], bare)
    assert not found.video_pos.any()
    assert torch.equal(apart.trace(given, passes=False).tokens.video_pos, before.video_pos)


@torch.no_grad()
def test_tea_as_its_text_has_it_runs_with_both_plugins_in_either_order() -> None:
    tea = {"place": "added"}
    told = {"similarity": "scaled_dot", "heads": 4}
    given = random_batch([30, 7, 16], [4, 2, 3], side_dims=SIDES)
    stream = given.side["narrative"]
    for plugins in (
        {"tea": tea, "tea_paragraph": told},
        {"tea_paragraph": told, "tea": tea},
    ):
        built = model(plugins, preset="paper", max_clips=16)
        losses = built.train().losses(given)
        assert all(value.isfinite() for value in losses.values())
        assert built.eval()(given).saliency.shape == given.video_mask.shape
        # the paragraph holds the places of the clips, which `place: added` takes from them (§3.2)
        trace = built.trace(given, passes=False)
        words = built.encoders.encode_text(stream.x) * stream.mask.unsqueeze(-1)
        torch.testing.assert_close(
            trace.tokens.extras["paragraph"], words + trace.encoded.video_pos
        )

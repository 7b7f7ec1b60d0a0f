"""EMB: its switches, each both ways. What its parts compute is in `test_span_parts.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from data.errors import UsageError
from models.retrieval import RetrievalModel, create_model, load_official
from models.retrieval.decode import Decoding
from models.retrieval.parts.clip_pooling import grid_mask, to_grid
from models.retrieval.parts.elastic import Found, highlighted, learned_moment
from models.retrieval.testing import alone, random_batch, take
from models.retrieval.types import Batch, StepContext

LENGTHS, WORDS = [21, 13, 18, 5], [5, 2, 4, 1]


def model(**options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    given = {"hidden": 32, "heads": 4, "dropout": 0.0, "video_dim": 18, "text_dim": 12} | options
    return create_model("emb", **given)


def batch(**options: Any) -> Batch:
    return random_batch(LENGTHS, WORDS, **options)


def loss(built: RetrievalModel, name: str, given: Batch, epoch: int = 0) -> float:
    with torch.no_grad():
        return float(built.losses(given, StepContext(epoch=epoch))[name])


def names(built: RetrievalModel) -> set[str]:
    return {name for name, _ in built.named_parameters()}


def test_the_order_self_cross_has_no_second_round_of_self_attention() -> None:
    thrice, twice = names(model()), names(model(order="self_cross"))
    assert twice < thrice
    again = ("clips_again", "proposals_again", "words_again", "words_of_proposals")
    assert all(name.split(".")[1] in again for name in thrice - twice)


@torch.no_grad()
def test_with_self_cross_the_words_read_clips_that_have_read_the_words() -> None:
    """With the released order they read the clips of before, whatever reads the words then."""
    for order, reaches in (("self_cross", True), ("self_cross_self", False)):
        built, given = model(order=order).eval(), batch()
        seen: list[torch.Tensor] = []
        built.fuser.words_clips.register_forward_hook(
            lambda part, args, out, seen=seen: seen.append(out)
        )
        built(given)
        built.fuser.clips_words.units[0].value.bias += torch.linspace(-3, 3, 32)
        built(given)
        assert torch.allclose(*seen) != reaches, order


def test_the_similarity_has_three_vectors_or_two_matrices() -> None:
    for similarity, count in (("trilinear", 3), ("scaled_dot", 4)):
        own = [n for n in names(model(similarity=similarity)) if "read_clips.similarity" in n]
        assert len(own) == count, similarity


def test_without_a_threshold_the_epoch_changes_nothing() -> None:
    annealed, free, given = model(), model(threshold="none"), batch(moments=2)
    early, late = (loss(annealed, "location", given, epoch) for epoch in (0, 99))
    assert late < early
    assert loss(free, "location", given, 0) == loss(free, "location", given, 99)


def test_the_threshold_is_spread_over_the_epochs_of_the_option() -> None:
    short, given = model(epochs=10), batch(moments=2)
    assert loss(short, "location", given, 9) == loss(model(), "location", given, 90)


@pytest.mark.parametrize(
    ("options", "term"),
    [
        ({"proposal_target": "iou"}, "proposal"),
        ({"target_high": 0.9}, "proposal"),
        ({"highlight_extend": 0.0}, "highlight"),
        ({"highlight_foreground": 1.0}, "highlight"),
    ],
    ids=str,
)
def test_a_switch_of_one_loss_changes_that_one_alone(options: dict[str, Any], term: str) -> None:
    one, other, given = model(), model(**options), batch(moments=1)
    for name in ("location", "highlight", "proposal"):
        same = loss(one, name, given) == loss(other, name, given)
        assert same == (name != term), name


def test_the_end_of_the_highlight_matters_where_a_proposal_ends_later() -> None:
    late = {"threshold": "none", "highlight_extend": 0.0}
    latest, earliest = model(**late), model(**late, highlight_end="min")
    assert loss(latest, "highlight", batch()) != loss(earliest, "highlight", batch())
    assert loss(latest, "location", batch()) == loss(earliest, "location", batch())


def test_exclusive_ends_hold_one_clip_too_many_even_without_a_proposal() -> None:
    given = batch()
    assert loss(model(end_index="exclusive"), "location", given) < loss(model(), "location", given)


@pytest.mark.parametrize(
    "defect", [{"end_guides": "released"}, {"tail_pad": "zero"}, {"preset": "release"}], ids=str
)
@torch.no_grad()
def test_released_guides_and_tails_let_a_sample_depend_on_its_batch(defect: dict[str, Any]) -> None:
    given = batch()
    fixed, released = model().eval(), model(**defect).eval()
    for built, same in ((fixed, True), (released, False)):
        together = built(given).extras["proposal_logits"][1]
        short = built(alone(given, 1)).extras
        kept = together.reshape(3, 3)[:2, :2].flatten()
        assert torch.allclose(kept, short["proposal_logits"][0], atol=1e-5) == same
    assert released.fuser.mixes_samples
    assert not fixed.fuser.mixes_samples


@pytest.mark.parametrize("pooling", ["mean", "max", "released"])
@torch.no_grad()
def test_long_videos_give_saliency_on_their_clips_and_spans_on_the_grid(pooling: str) -> None:
    given = random_batch([40, 11, 16], [3, 2, 4])
    built = model(max_clips=16, pooling=pooling).eval()
    found = built(given)
    assert found.saliency.shape == given.video_mask.shape
    assert found.extras["start_logits"].shape == (3, 16)
    for row in range(3):
        by_itself = built(alone(given, row))
        clips = by_itself.saliency.shape[1]
        torch.testing.assert_close(by_itself.saliency[0], found.saliency[row, :clips])
        torch.testing.assert_close(by_itself.spans[0], found.spans[row])
    check = built.train().losses(given, StepContext())
    assert all(value.isfinite() for value in check.values())


@torch.no_grad()
def test_videos_that_fit_are_not_pooled() -> None:
    given = batch()
    mean, largest = model().eval()(given), model(pooling="max").eval()(given)
    assert torch.equal(mean.logits, largest.logits)


def test_without_pooling_a_long_video_is_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"21 clips and this model at most 16.*pooling: mean"):
        model(max_clips=16, pooling="none")(batch())


@torch.no_grad()
def test_ids_give_what_their_vectors_give() -> None:
    ids = torch.tensor([[3, 1, 0], [2, 4, 5]])
    by_id = model(words="ids", vocabulary=6).eval()
    by_id.encoders.words.known += torch.randn(4, 12)
    by_vector = model().eval()
    state = {k: x for k, x in by_id.state_dict().items() if not k.startswith("encoders.words")}
    by_vector.load_state_dict(state)
    base = replace(random_batch([6, 4], [3, 3]), text_mask=ids > 0)
    vectors = replace(base, text=by_id.encoders.words(ids))
    torch.testing.assert_close(
        by_id(replace(base, text=ids)).logits, by_vector(vectors).logits, rtol=0, atol=0
    )


def test_of_the_table_only_the_unknown_word_is_learned() -> None:
    built = model(words="ids", vocabulary=6)
    given = replace(random_batch([6, 4], [3, 2]), text=torch.tensor([[3, 1, 0], [2, 4, 5]]))
    torch.stack(list(built.losses(given).values())).sum().backward()
    own = {n for n in names(built) if "encoders.words" in n}
    assert own == {"encoders.words.unknown"}
    assert built.encoders.words.unknown.grad.abs().max() > 0
    assert {"encoders.words.pad", "encoders.words.known"} <= built.state_dict().keys()


def test_ids_for_a_model_of_vectors_are_refused_with_the_remedy() -> None:
    given = random_batch([6, 4], [3, 2])
    ids = replace(given, text=torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"holds word ids.*words: ids"):
        model()(ids)
    with pytest.raises(UsageError, match="vocabulary of at least 2"):
        model(words="ids")


@torch.no_grad()
def test_the_longest_proposal_has_any_number_of_blocks_or_as_released_sixteen() -> None:
    given = random_batch([150, 40], [4, 2])
    for longest, clips in (("all", 150), ("released", 128)):
        found = model(longest=longest, max_clips=150).eval()(given).extras
        first, last = found["proposals"].unbind(-1)
        assert int((last - first + 1)[found["proposal_mask"]].max()) == clips
    assert model(preset="release").recipe["longest"] == "released"


@torch.no_grad()
def test_a_short_video_guides_alike_whether_its_neighbour_was_pooled_here_or_before() -> None:
    """As released, where padded places guide proposals too."""
    long = random_batch([60, 13], [4, 2])
    built = model(preset="release", max_clips=20).eval()
    grid = to_grid(long.video, long.video_mask, 20, "released")
    before = replace(long, video=grid, video_mask=grid_mask(long.video_mask, 20), targets=None)
    here, there = (built(each).extras["proposal_logits"] for each in (long, before))
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)


def test_spans_are_read_in_units_of_the_grid_or_as_released() -> None:
    assert model().decoding == Decoding(unit="grid")
    assert model(preset="release").decoding == Decoding(unit="duration")


def test_options_that_do_not_fit_are_refused_with_their_values() -> None:
    with pytest.raises(UsageError, match="hidden 32 must be a multiple of heads 5"):
        model(heads=5)
    with pytest.raises(UsageError, match=r"target_low 0\.9 must not be above target_high 0\.7"):
        model(target_low=0.9)


def test_a_checkpoint_of_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no 'embedding_net\.word_emb\.glove_vec'"):
        load_official("emb", {"model": {"x": torch.zeros(1)}, "opt": {}})


def test_samples_whose_moments_are_not_known_do_not_count() -> None:
    given = batch()
    assert given.targets is not None
    known = torch.tensor([True, False, True, False])
    partly = replace(given, targets=replace(given.targets, has_moments=known))
    for preset in ("fixed", "paper"):
        built = model(preset=preset)
        for name in ("location", "highlight", "proposal"):
            alike = loss(built, name, take(given, [0, 2]))
            assert loss(built, name, partly) == pytest.approx(alike, rel=1e-5), name


def test_of_several_moments_the_longest_is_learned() -> None:
    given = batch()
    assert given.targets is not None
    moments = torch.tensor([[[0.2, 0.1], [0.6, 0.5]]]).expand(4, -1, -1)
    both = replace(given.targets, spans=moments, span_mask=torch.ones(4, 2, dtype=torch.bool))
    longest = replace(both, spans=moments[:, 1:], span_mask=both.span_mask[:, 1:])
    built = model()
    for name in ("location", "highlight", "proposal"):
        assert loss(built, name, replace(given, targets=both)) == loss(
            built, name, replace(given, targets=longest)
        )
    # what is no moment is not learned, however long
    first = replace(both, span_mask=torch.tensor([True, False]).expand(4, -1))
    spans, known = learned_moment(first)
    assert torch.equal(spans, moments[:, 0])
    assert known.all()


def test_a_highlight_that_is_extended_ends_with_the_video() -> None:
    first, last = torch.tensor([1]), torch.tensor([3])
    mask = torch.tensor([[True, True, True, True, False, False]])
    inside = highlighted(Found(first, last, first, last), mask, extend=0.5, end="max")
    # half of three clips is two on either side
    assert inside.tolist() == [[True, True, True, True, False, False]]


@torch.no_grad()
def test_the_place_of_a_clip_is_read_or_ignored() -> None:
    given = batch()
    moved = replace(given, video=torch.cat([given.video[..., :-2], given.video[..., -2:] + 1], -1))
    for chosen, same in (("ignored", True), ("read", False)):
        built = model(clip_place=chosen).eval()
        assert torch.equal(built(given).saliency, built(moved).saliency) is same

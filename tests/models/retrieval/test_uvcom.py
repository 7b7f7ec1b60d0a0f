from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from data.errors import UsageError
from models.retrieval import MODELS, RetrievalModel, create_model, load_official
from models.retrieval.decode import Decoding
from models.retrieval.official import official_state_dict
from models.retrieval.parts.clustering import expectation_means, most_alike, random_walk
from models.retrieval.parts.encoders import ProjectionEncoders
from models.retrieval.parts.likeness import ChosenText, likeness
from models.retrieval.parts.slots import SlotAttention
from models.retrieval.testing import random_batch, take
from models.retrieval.types import Batch, StepContext
from models.retrieval.uvcom import IntegrationFuser

SMALL: dict[str, Any] = {
    "video_dim": 18,
    "text_dim": 12,
    "hidden": 16,
    "heads": 4,
    "feedforward": 24,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "queries": 6,
    "slot_hidden": 24,
    "similarity_hidden": 24,
    "dropout": 0.0,
    "input_dropout": 0.0,
}
OPT = {"hidden_dim": 16, "nheads": 4, "dim_feedforward": 24, "enc_layers": 1, "dec_layers": 2}
"""Public options of a checkpoint of the small model."""
LATE = StepContext(epoch=80)


def small(**options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model("uvcom", **(SMALL | options))


def ragged(**options: Any) -> Batch:
    return random_batch([8, 3, 5], [6, 2, 4], **options)


def test_presets_choose_the_switches() -> None:
    fixed, release, paper = (small(preset=each) for each in ("fixed", "release", "paper"))
    names = ("padding", "slot_start", "windows", "negatives", "chosen", "t2v_mask")
    assert [[each.recipe[name] for name in names] for each in (fixed, release, paper)] == [
        ["masked", "apart", "all", "roll_other_video", "least", "words"],
        ["released", "equal", "first", "roll", "least", "released"],
        ["masked", "equal", "all", "roll", "most", "words"],
    ]
    assert release.decoding == Decoding.released()


def test_published_sizes_have_the_published_number_of_parameters() -> None:
    model = create_model("uvcom", video_dim=2818, text_dim=512, preset="release")
    # 18.19 M with the 8,704 values of txt_position_embed and the 256 of global_rep_token, which
    # the public code never reads (specs/retrieval_models.md §3)
    ours = sum(x.numel() for x in model.parameters())
    assert ours + 8704 + 256 == pytest.approx(18.19e6, rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("padding", "depends"), [("masked", False), ("released", True)])
def test_released_padding_lets_the_longest_sample_change_the_others(
    padding: str, depends: bool
) -> None:
    model, batch = small(padding=padding).eval(), ragged()
    one = take(batch, [1])
    short = replace(
        one,
        video=one.video[:, :3],
        video_mask=one.video_mask[:, :3],
        text=one.text[:, :2],
        text_mask=one.text_mask[:, :2],
    )
    for part in ("memory.clip", "memory.extras.sentence", "predictions.spans"):
        padded, cut = (_read(model.trace(each, passes=False), part) for each in (one, short))
        if part == "memory.clip":
            padded = padded[:, :3]
        assert torch.allclose(padded, cut, atol=1e-5) != depends, part


def _read(trace: Any, path: str) -> torch.Tensor:
    for name in path.split("."):
        trace = trace[name] if isinstance(trace, dict) else getattr(trace, name)
    return trace


@torch.no_grad()
@pytest.mark.parametrize(("padding", "hears"), [("masked", False), ("released", True)])
def test_released_convolutions_hear_the_bias_at_padded_clips(padding: Any, hears: bool) -> None:
    fuser = small(padding=padding).fuser
    assert isinstance(fuser, IntegrationFuser)
    torch.nn.init.ones_(fuser.local[0].bias)
    clips, mask = torch.randn(1, 6, 16), torch.arange(6)[None] < 4
    padded = fuser.local(clips, mask)[:, :4]
    cut = fuser.local(clips[:, :4], mask[:, :4])
    assert torch.allclose(padded[:, :3], cut[:, :3], atol=1e-6)
    assert torch.allclose(padded[:, 3], cut[:, 3], atol=1e-6) != hears


@pytest.mark.parametrize(("start", "learns"), [("apart", True), ("equal", False)])
def test_slots_that_start_equal_do_not_learn_where_to_look(start: str, learns: bool) -> None:
    model = small(slot_start=start)
    torch.stack(list(model.losses(ragged()).values())).sum().backward()
    assert model.decoder is not None
    gradient = model.decoder.init.slots.query.weight.grad
    assert (gradient.abs().max() > 1e-5) == learns


@torch.no_grad()
def test_equal_slots_all_take_the_mean_of_the_clips() -> None:
    slots, clips = torch.randn(2, 1, 8).expand(-1, 4, -1), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    attention = SlotAttention(8, hidden=8, depth=2, iterations=1)
    share = attention._shares(slots, clips, mask)
    for row, count in ((0, 5), (1, 2)):
        torch.testing.assert_close(share[row, :, :count], torch.full((4, count), 1 / count))
        assert (share[row, :, count:] == 0).all()
    released = SlotAttention(8, hidden=8, depth=2, iterations=1, padding="released")
    assert (released._shares(slots, clips, mask)[1, :, 2:] > 0).all()


def test_a_video_without_clips_shares_nothing_among_the_slots() -> None:
    slots, clips = torch.randn(1, 4, 8), torch.randn(1, 5, 8)
    nothing = torch.zeros(1, 5, dtype=torch.bool)
    share = SlotAttention(8, hidden=8, depth=2, iterations=1)._shares(slots, clips, nothing)
    assert torch.equal(share, torch.zeros(1, 4, 5))


def test_the_first_window_is_cut_to_whole_clips_and_all_windows_are_as_annotated() -> None:
    batch = random_batch([8, 8], [3, 3])
    assert batch.targets is not None
    spans = torch.tensor([[[0.3, 0.4], [0.8, 0.2]]]).expand(2, -1, -1)
    inside = torch.tensor([[False, True, True, True, False, False, True, True]]).expand(2, -1)
    targets = replace(
        batch.targets, spans=spans, span_mask=torch.ones(2, 2, dtype=torch.bool), in_moment=inside
    )
    batch = replace(batch, targets=targets)
    with torch.no_grad():
        every, first = (small(windows=each).losses(batch)["clip_text"] for each in ("all", "first"))
        trace = small().trace(batch, passes=True)
    log_p = likeness(trace.memory)[1].log_softmax(-1)
    # 0.3 ± 0.2 of eight clips is 0.8 to 4.0: clips 0, 1, 2, 3 after truncation.
    torch.testing.assert_close(first, -log_p[:, :4].sum() / 16 / 2)
    torch.testing.assert_close(every, -log_p[inside].sum() / 16 / 2)


def test_a_sample_without_moments_has_no_first_window() -> None:
    batch = random_batch([8, 8], [3, 3])
    assert batch.targets is not None
    none = replace(batch.targets, span_mask=torch.zeros_like(batch.targets.span_mask))
    loss = small(windows="first").losses(replace(batch, targets=none))["clip_text"]
    assert loss.item() == 0


def test_samples_without_known_moments_are_left_out_of_the_alignment_of_clips() -> None:
    batch = random_batch([6, 6], [3, 3])
    assert batch.targets is not None
    known = replace(batch.targets, has_moments=torch.tensor([True, False]))
    model = small().eval()
    with torch.no_grad():
        both = model.losses(replace(batch, targets=known))["clip_text"]
        alone = model.losses(take(batch, [0]))["clip_text"]
    torch.testing.assert_close(both, alone)


@torch.no_grad()
def test_wrong_texts_are_chosen_by_likeness_from_an_epoch_on() -> None:
    batch, model = random_batch([6] * 4, [3] * 4), small().eval()
    memory = model.trace(batch, passes=False).memory
    for chosen, ours in (("least", torch.argmin), ("most", torch.argmax)):
        wrong = ChosenText("roll", chosen=chosen, from_epoch=80, padding="masked")
        assert not wrong.waits(StepContext(epoch=79))
        assert wrong.waits(LATE)
        changed, facts = wrong.change_after(memory, memory.tokens, batch, model.encoders, LATE)
        partner = ours(wrong._like(memory), dim=1)
        assert torch.equal(changed.text, memory.tokens.text[partner])
        assert facts["negative_mask"].all()


@torch.no_grad()
def test_a_chosen_text_is_never_of_the_same_video_unless_released() -> None:
    batch, model = random_batch([6] * 4, [3] * 4), small().eval()
    batch = replace(batch, video_ids=torch.tensor([0, 0, 0, 1]))
    memory = model.trace(batch, passes=False).memory
    for choice, other in (("roll_other_video", True), ("roll", False)):
        wrong = ChosenText(choice, chosen="most", from_epoch=0, padding="masked")
        changed, _ = wrong.change_after(memory, memory.tokens, batch, model.encoders, LATE)
        same = [torch.equal(changed.text[i], memory.tokens.text[3]) for i in range(3)]
        assert all(same) or not other
    lonely = replace(batch, video_ids=torch.zeros(4, dtype=torch.int64))
    wrong = ChosenText("roll_other_video", chosen="most", from_epoch=0, padding="masked")
    _, facts = wrong.change_after(memory, memory.tokens, lonely, model.encoders, LATE)
    assert not facts["negative_mask"].any()


@pytest.mark.parametrize("epoch", [0, 80])
@torch.no_grad()
def test_a_wrong_text_stands_at_its_own_places_or_as_released_at_those_of_the_right(
    epoch: int,
) -> None:
    batch, context = ragged(), StepContext(epoch=epoch)
    found = [
        small(text_position="learned", negative_places=each, text_means=2)
        .trace(batch, passes=True, context=context)
        .predictions
        for each in ("own", "right")
    ]
    assert torch.equal(found[0].saliency, found[1].saliency)
    own, right = (each.extras["saliency_negative"] for each in found)
    assert not torch.allclose(own, right, atol=1e-4)
    assert small(preset="release").recipe["negative_places"] == "right"


def test_a_public_checkpoint_of_tvsum_was_not_trained_on_moments() -> None:
    model = small(preset="release", queries=30, slot_hidden=1024, similarity_hidden=1024)
    public = official_state_dict(model, MODELS.get("uvcom").official)
    options = OPT | {"dset_name": "tvsum"}
    losses = load_official("uvcom", {"model": public, "opt": options}).losses(ragged())
    assert losses.keys() == {"margin", "rank", "negative_pair", "video_text", "clip_text"}


def public_projection(public: dict[str, torch.Tensor], name: str, relus: list[bool]) -> Any:
    """`LinearLayer` of the public code (uvcom/model.py, line 528) once for each of `relus`."""

    def project(x: torch.Tensor) -> torch.Tensor:
        for i, relu in enumerate(relus):
            norm = [public[f"{name}.{i}.LayerNorm.{kind}"] for kind in ("weight", "bias")]
            linear = [public[f"{name}.{i}.net.1.{kind}"] for kind in ("weight", "bias")]
            x = functional.layer_norm(x, x.shape[-1:], *norm)
            x = functional.linear(x, *linear)
            x = x.relu() if relu else x
        return x

    return project


@torch.no_grad()
@pytest.mark.parametrize(
    ("layers", "text", "video"),
    [
        (1, [False], [False, True]),
        (2, [True, False], [True, False]),
        (3, [True, True, False], [True, True]),
    ],
)
def test_public_checkpoints_of_one_to_three_projections_load(
    layers: int, text: list[bool], video: list[bool]
) -> None:
    """`relu_args` and the slices `[:n_input_proj]` of words and `[:2]` of clips are those of
    uvcom/model.py, lines 89 to 100."""
    sizes = {"queries": 30, "slot_hidden": 1024, "similarity_hidden": 1024}
    model = small(preset="release", projection_layers=layers, **sizes)
    public = dict(official_state_dict(model, MODELS.get("uvcom").official))
    kinds = ("LayerNorm.weight", "LayerNorm.bias", "net.1.weight", "net.1.bias")
    shapes = {key: tuple(x.shape) for key, x in public.items() if key.startswith("input_")}
    widths = {"txt": [12, 16, 16][:layers], "vid": [18, 16]}
    assert shapes == {
        f"input_{name}_proj.{i}.{kind}": shape
        for name, inputs in widths.items()
        for i, width in enumerate(inputs)
        for kind, shape in zip(kinds, ((width,), (width,), (16, width), (16,)), strict=True)
    }
    loaded = load_official("uvcom", {"model": public, "opt": OPT | {"n_input_proj": layers}})
    tokens = loaded.encoders(ragged())
    want_text = public_projection(public, "input_txt_proj", text)(ragged().text)
    want_video = public_projection(public, "input_vid_proj", video)(ragged().video)
    torch.testing.assert_close(tokens.text, want_text)
    torch.testing.assert_close(tokens.video, want_video)


@torch.no_grad()
def test_clips_are_projected_as_often_as_words_unless_released() -> None:
    for layers in (1, 3):
        fixed = small(projection_layers=layers).encoders
        assert isinstance(fixed, ProjectionEncoders)
        assert len(fixed.video.linears) == len(fixed.text.linears) == layers
        assert fixed(ragged()).video.min() < 0
        released = small(projection_layers=layers, preset="release").encoders
        assert released(ragged()).video.min() == 0


@pytest.mark.parametrize("preset", ["fixed", "release", "paper"])
def test_late_epochs_train_without_nan(preset: str) -> None:
    model = small(preset=preset).train()
    for batch in (ragged(), random_batch([4], [0]), random_batch([1, 1], [2, 1])):
        losses = model.losses(batch, LATE)
        torch.stack(list(losses.values())).sum().backward()
        assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_means_do_not_see_what_is_masked() -> None:
    x, means = torch.randn(2, 9, 4), torch.randn(2, 3, 4)
    mask = torch.arange(9)[None] < torch.tensor([[9], [4]])
    masked = expectation_means(means, x, mask, rounds=3)
    cut = expectation_means(means[1:], x[1:, :4], mask[1:, :4], rounds=3)
    torch.testing.assert_close(masked[1:], cut)
    nothing = expectation_means(means, x, torch.zeros_like(mask), rounds=3)
    assert (nothing == 0).all()


def test_the_random_walk_by_means_is_the_walk_by_clips() -> None:
    x, y = torch.randn(2, 9, 4).double(), torch.randn(2, 3, 4).double()
    mask = torch.arange(9)[None] < torch.tensor([[9], [4]])
    near = torch.nn.functional.normalize(y, dim=-1) @ torch.nn.functional.normalize(
        x, dim=-1
    ).transpose(1, 2)
    there = (5 * near).softmax(1)
    back = there * mask[:, None]
    back = back / back.sum(-1, keepdim=True)
    system = torch.eye(9).double() - 0.25 * there.transpose(1, 2) @ back
    slow = 0.5 * torch.linalg.solve(system, 0.5 * there.transpose(1, 2) @ y + x)
    torch.testing.assert_close(random_walk(x, y, mask), slow.float(), atol=1e-5, rtol=1e-5)


def test_the_mean_most_like_the_others_is_taken_with_its_gradient() -> None:
    means = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]], requires_grad=True)
    chosen = most_alike(means, torch.tensor([[[0.1, 1.0], [-0.1, 1.0]]]))
    assert chosen.tolist() == [[[0.0, 2.0]]]
    chosen.sum().backward()
    assert means.grad is not None
    assert means.grad.tolist() == [[[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]]


@pytest.mark.parametrize(
    ("option", "value"), [("cross_fusion", True), ("a_feat_dir", "pann"), ("n_input_proj", 4)]
)
def test_public_options_without_a_part_are_refused(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=option):
        load_official("uvcom", {"model": {}, "opt": {option: value}})

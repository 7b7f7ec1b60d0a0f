"""LMR against its equations, written out in plain torch, and each of its switches both ways."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from data.errors import UsageError
from models.retrieval import RetrievalModel, create_model, load_official
from models.retrieval.flow import Memory, Tokens
from models.retrieval.lmr import ContextFuser
from models.retrieval.parts.losses import rank_losses
from models.retrieval.testing import random_batch
from models.retrieval.types import Batch, Side, StepContext

NARRATIVE, LLAMA = {"narrative": 9}, {"llama": 7}
HEADS = 4
OTHER = {"description_query": "other", "text_dims": LLAMA}


def model(**options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model(
        "lmr",
        video_dim=18,
        text_dim=12,
        side_dims=NARRATIVE,
        hidden=16,
        heads=HEADS,
        feedforward=16,
        queries=3,
        dropout=0.0,
        input_dropout=0.0,
        **options,
    ).eval()


def batch() -> Batch:
    return random_batch([6, 4], [3, 2], side_dims=NARRATIVE, text_dims=LLAMA)


def attention(part: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(QKᵀ/√a)V, head by head."""
    wq, wk, wv = part.in_proj_weight.chunk(3)
    bq, bk, bv = part.in_proj_bias.chunk(3)
    q, k, v = query @ wq.T + bq, key @ wk.T + bk, value @ wv.T + bv
    size = q.shape[-1] // HEADS
    found = []
    for i in range(HEADS):
        one = slice(i * size, (i + 1) * size)
        score = q[..., one] @ k[..., one].transpose(1, 2) / math.sqrt(size)
        weight = score.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
        found.append(weight @ v[..., one])
    return torch.cat(found, -1) @ part.out_proj.weight.T + part.out_proj.bias


def residual(part: Any, x: Tensor, found: Tensor) -> Tensor:
    """LN(x + found), then LN(x + FFN(x))."""
    x = functional.layer_norm(x + found, x.shape[-1:], part.norm1.weight, part.norm1.bias)
    feed = part.feedforward
    inner = functional.prelu(feed.linear1(x), feed.activation.weight)
    return functional.layer_norm(
        x + feed.linear2(inner), x.shape[-1:], part.norm2.weight, part.norm2.bias
    )


def fused(layers: nn.ModuleList, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    for layer in layers:
        x = residual(layer, x, attention(layer.attention, x, words, words, mask))
    return x


def walk(built: RetrievalModel, given: Batch) -> tuple[Tokens, Memory, ContextFuser]:
    found = built.trace(given, passes=False)
    assert isinstance(built.fuser, ContextFuser)
    return found.tokens, found.memory, built.fuser


@torch.no_grad()
def test_clips_and_descriptions_read_the_query_through_the_same_layers_then_each_other() -> None:
    built, given = model(), batch()
    tokens, memory, fuser = walk(built, given)
    assert len(fuser.fusion) == 2
    assert fuser.types is not None
    clips = fused(fuser.fusion, tokens.video, tokens.text, tokens.text_mask)
    words = tokens.texts["description_words"]
    told = fused(fuser.fusion, tokens.extras["description"], words, tokens.text_mask)

    token, place = (x.expand(2, 1, -1) for x in (fuser.token, fuser.token_pos))
    rows = torch.cat([token, clips + fuser.types[0], told + fuser.types[1]], 1)
    pos = torch.cat([place, tokens.video_pos, tokens.video_pos], 1)
    first = torch.ones(2, 1, dtype=torch.bool)
    mask = torch.cat([first, given.video_mask, given.side["narrative"].mask], 1)
    for layer in fuser.layers:
        part: Any = layer
        rows = residual(part, rows, attention(part.attention, rows + pos, rows + pos, rows, mask))
    assert memory.global_token is not None
    torch.testing.assert_close(memory.global_token, rows[:, 0])
    torch.testing.assert_close(memory.clip, rows[:, 1:7])
    torch.testing.assert_close(memory.kv, rows[:, 1:])
    assert torch.equal(memory.kv_mask, mask[:, 1:])


@torch.no_grad()
def test_saliency_is_the_scaled_product_of_saliency_token_and_clips() -> None:
    built, given = model(), batch()
    found = built.trace(given, passes=False)
    head: Any = built.heads[1]
    assert found.memory.global_token is not None
    whole, clips = head.whole(found.memory.global_token), head.clip(found.memory.clip)
    expected = torch.einsum("bd,bld->bl", whole, clips) / math.sqrt(16)
    torch.testing.assert_close(found.predictions.saliency, expected)


@torch.no_grad()
def test_moment_queries_start_as_copies_of_the_sentence_at_learned_places() -> None:
    built, given = model(), batch()
    tokens, memory, _ = walk(built, given)
    decoder: Any = built.decoder
    queries = decoder.start(memory)
    for row, count in enumerate(given.text_mask.sum(1).tolist()):
        sentence = tokens.text[row, :count].mean(0)
        torch.testing.assert_close(queries.content[row], sentence.expand(3, -1))
    assert torch.equal(queries.place[0], decoder.places.weight)


@torch.no_grad()
def test_the_decoder_reads_clips_and_descriptions_and_gives_one_span_for_each_query() -> None:
    built, given = model(), batch()
    _, memory, _ = walk(built, given)
    decoder: Any = built.decoder
    start = decoder.start(memory)
    x, place, everyone = start.content, start.place, torch.ones(2, 3, dtype=torch.bool)
    for layer in decoder.layers:
        x = layer.norm1(x + attention(layer.self_attention, x + place, x + place, x, everyone))
        keys = memory.kv + memory.kv_pos
        found = attention(layer.cross_attention, x + place, keys, memory.kv, memory.kv_mask)
        x = layer.norm2(x + found)
        feed = layer.feedforward
        x = layer.norm3(x + feed.linear2(feed.linear1(x).relu()))
    states = decoder.norm(x)
    head: Any = built.heads[0]
    predictions = built(given)
    torch.testing.assert_close(predictions.spans, head.span(states).sigmoid())
    torch.testing.assert_close(predictions.logits, head.label(states))
    assert predictions.spans.shape == (2, 3, 2)


def test_the_wrong_query_is_punished_by_the_log_of_one_minus_a_sigmoid() -> None:
    built, given = model(saliency="neg-only").train(), batch()
    losses = built.losses(given, StepContext())
    scores = built(given).extras["saliency_negative"].double()
    per_video = (-torch.log(1 - scores.sigmoid()) * given.video_mask).sum(1)
    expected = per_video.mean()
    assert losses["negative_pair"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert {"span", "giou", "label", "negative_pair"} <= losses.keys()


def test_the_paper_takes_the_next_sample_for_the_wrong_query() -> None:
    changed = {"negatives": "roll"}
    fixed, release, paper = (model(preset=each).recipe for each in ("fixed", "release", "paper"))
    assert paper == fixed | changed | {"preset": "paper"}
    assert release == fixed | {"preset": "release"}


def test_the_saliency_losses_of_qd_detr_are_a_switch() -> None:
    both = model().losses(batch(), StepContext()).keys()
    paper = model(saliency="neg-only").losses(batch(), StepContext()).keys()
    assert both - paper == {"margin", "rank"}
    assert not paper - both


@torch.no_grad()
def test_clips_under_the_wrong_query_rank_below_those_under_the_right_one() -> None:
    """QD-DETR's Eq. 8–9: the contrast holds both, and a clip under a wrong query has label 0."""
    built, given = model(), batch()
    found, targets = built.trace(given, passes=True).predictions, given.targets
    assert targets is not None
    scores = torch.cat([found.saliency, found.extras["saliency_negative"]], dim=1)
    labels = torch.cat([targets.saliency, torch.zeros_like(targets.saliency)], dim=1)
    each = rank_losses(scores, labels, torch.cat([given.video_mask] * 2, dim=1))
    torch.testing.assert_close(built.losses(given)["rank"], each.mean())


@torch.no_grad()
def test_the_second_projection_of_the_query_also_sees_the_wrong_query() -> None:
    built, given = model(), batch()
    tokens = built.encoders(given)
    (other,) = built.passes
    changed, _ = other.change(tokens, given, built.encoders, StepContext())  # type: ignore[operator]
    for name in ("text", "text_mask"):
        assert torch.equal(getattr(changed, name), getattr(tokens, name)[[1, 0]])
    ours, theirs = changed.texts["description_words"], tokens.texts["description_words"]
    assert torch.equal(ours, theirs[[1, 0]])
    given = replace(given, wrong_text=given.text[:, :2], wrong_text_mask=given.text_mask[:, :2])
    changed, _ = other.change(tokens, given, built.encoders, StepContext())  # type: ignore[operator]
    assert torch.equal(changed.texts["description_words"], theirs[:, :2])


@torch.no_grad()
def test_descriptions_read_the_other_embedding_and_clips_the_main_one_by_the_same_layers() -> None:
    # F̃^t = VQF(P_t(F^t), P_l(F^l_llama)), F̃^v = VQF(P_v(F^v), P_c(F^l_clip)): spec §3.3
    built, given = model(**OTHER, vcm=False), batch()
    tokens, memory, fuser = walk(built, given)
    words: Any = built.encoders.words
    llama = given.texts["llama"]
    assert llama.mask.sum(1).tolist() == [6, 4]
    clips = fused(fuser.fusion, tokens.video, tokens.text, given.text_mask)
    told = fused(fuser.fusion, tokens.extras["description"], words(llama.x), llama.mask)
    torch.testing.assert_close(memory.kv, torch.cat([clips, told], 1))


@torch.no_grad()
@pytest.mark.parametrize("query", ["separate", "shared", "other"])
def test_each_embedding_of_the_query_changes_what_reads_it_and_nothing_else(query: str) -> None:
    built = model(description_query=query, text_dims=LLAMA, vcm=False)
    given = batch()
    llama = given.texts["llama"]
    changed = {
        "main": replace(given, text=given.text.flip(-1)),
        "llama": replace(given, texts={"llama": replace(llama, x=llama.x.flip(-1))}),
    }
    before = built.trace(given, passes=False).memory.kv
    moved: dict[str, tuple[bool, bool]] = {}
    for name, each in changed.items():
        after = built.trace(each, passes=False).memory.kv
        apart = ((after - before).abs() > 1e-6).any(-1)
        moved[name] = (bool(apart[:, :6].any()), bool(apart[:, 6:].any()))
    clips_alone, told_alone, both, none = (True, False), (False, True), (True, True), (False, False)
    expected = {"main": clips_alone, "llama": told_alone}
    assert moved == (expected if query == "other" else {"main": both, "llama": none})


@torch.no_grad()
def test_the_wrong_query_is_wrong_in_both_embeddings_and_of_the_same_sample() -> None:
    built, given = model(**OTHER), batch()
    tokens = built.encoders(given)
    (other,) = built.passes
    changed, _ = other.change(tokens, given, built.encoders, StepContext())  # type: ignore[operator]
    assert torch.equal(changed.text, tokens.text[[1, 0]])
    for name in ("description_words", "description_mask"):
        assert torch.equal(changed.texts[name], tokens.texts[name][[1, 0]])


@torch.no_grad()
def test_a_wrong_query_that_the_batch_brings_is_read_in_both_embeddings() -> None:
    built, given = model(**OTHER), batch()
    tokens = built.encoders(given)
    (other,) = built.passes
    brought = replace(given, wrong_text=given.text[:, :2], wrong_text_mask=given.text_mask[:, :2])
    with pytest.raises(UsageError, match="'llama', too, and this batch carries no other one"):
        other.change(tokens, brought, built.encoders, StepContext())  # type: ignore[operator]
    llama = given.texts["llama"]
    short = Side(llama.x[:, :5], llama.mask[:, :5])
    brought = replace(brought, wrong_texts={"llama": short})
    changed, _ = other.change(tokens, brought, built.encoders, StepContext())  # type: ignore[operator]
    assert torch.equal(changed.text, tokens.text[:, :2])
    assert torch.equal(changed.texts["description_mask"], short.mask)
    words = tokens.texts["description_words"]
    torch.testing.assert_close(changed.texts["description_words"], words[:, :5])


def test_a_wrong_query_of_another_length_in_one_embedding_alone_trains() -> None:
    built, given = model(**OTHER).train(), batch()
    llama = given.texts["llama"]
    brought = replace(
        given,
        wrong_text=given.text,
        wrong_text_mask=given.text_mask,
        wrong_texts={"llama": Side(llama.x[:, :5], llama.mask[:, :5])},
    )
    assert built.losses(brought, StepContext())["negative_pair"].isfinite()


def parameters(**options: Any) -> set[str]:
    return {name for name, _ in model(**options).named_parameters()}


def test_separate_fusion_and_shared_projection_change_which_weights_there_are() -> None:
    full = parameters()
    apart = parameters(share_vqf=False)
    assert {name.split(".")[1] for name in apart - full} == {"description_fusion"}
    assert full - parameters(description_query="shared") == {
        name for name in full if name.startswith("encoders.words.")
    }
    assert not full - apart


@torch.no_grad()
def test_without_the_fusion_saliency_does_not_depend_on_the_query() -> None:
    given = batch()
    other = replace(given, text=given.text.flip(-1))
    for vqf in ("both", "clips", "none"):
        built = model(vqf=vqf)
        same = torch.allclose(built(given).saliency, built(other).saliency, atol=1e-6)
        assert same == (vqf == "none")
        assert not torch.allclose(built(given).logits, built(other).logits, atol=1e-6)
    assert "negative_pair" not in model(vqf="none").losses(given, StepContext())


@torch.no_grad()
@pytest.mark.parametrize("share", [True, False])
def test_without_the_fusion_of_table_vi_descriptions_alone_do_not_read_the_query(
    share: bool,
) -> None:
    built, given = model(vqf="clips", vcm=False, share_vqf=share), batch()
    tokens, memory, fuser = walk(built, given)
    clips = fused(fuser.fusion, tokens.video, tokens.text, given.text_mask)
    torch.testing.assert_close(memory.kv, torch.cat([clips, tokens.extras["description"]], 1))


@torch.no_grad()
def test_without_descriptions_the_context_is_that_of_the_clips_and_no_stream_is_asked_for() -> None:
    built, given = model(descriptions=False), replace(batch(), side={})
    assert built.reads == set()
    tokens, memory, fuser = walk(built, given)
    x = fused(fuser.fusion, tokens.video, tokens.text, given.text_mask)
    assert isinstance(fuser.token_pos, Tensor)
    rows = torch.cat([fuser.token.expand(2, 1, -1), x], 1)
    pos = torch.cat([fuser.token_pos.expand(2, 1, -1), tokens.video_pos], 1)
    mask = torch.cat([torch.ones(2, 1, dtype=torch.bool), given.video_mask], 1)
    for layer in fuser.layers:
        part: Any = layer
        rows = residual(part, rows, attention(part.attention, rows + pos, rows + pos, rows, mask))
    torch.testing.assert_close(memory.kv, rows[:, 1:])
    assert torch.equal(memory.kv_mask, given.video_mask)


@torch.no_grad()
def test_without_context_a_clip_knows_nothing_of_the_others() -> None:
    given = batch()
    video = given.video.clone()
    video[:, 0, :-2] += torch.linspace(-1, 1, 16)
    for vcm in (True, False):
        built = model(vcm=vcm)
        before = built.trace(given, passes=False).memory.clip
        after = built.trace(replace(given, video=video), passes=False).memory.clip
        assert torch.allclose(before[:, 1:], after[:, 1:], atol=1e-6) != vcm
        # nothing to tell apart where no row reads one of the other kind
        assert (built.fuser.types is not None) == vcm


@torch.no_grad()
def test_without_language_conditioning_the_queries_start_from_nothing() -> None:
    for content in ("mean", "last", "none"):
        built, given = model(query_content=content), batch()
        tokens, memory, _ = walk(built, given)
        decoder: Any = built.decoder
        found = decoder.start(memory).content[1, 0]
        expected = {
            "mean": tokens.text[1, :2].mean(0),
            "last": tokens.text[1, 1],
            "none": torch.zeros(16),
        }
        torch.testing.assert_close(found, expected[content])


@torch.no_grad()
def test_without_visual_features_the_clips_are_not_read() -> None:
    given = batch()
    noise = replace(given, video=torch.randn_like(given.video))
    blind, full = model(visual=False), model()
    assert torch.equal(blind(given).spans, blind(noise).spans)
    assert torch.equal(blind(given).saliency, blind(noise).saliency)
    assert not torch.allclose(full(given).spans, full(noise).spans, atol=1e-5)
    assert blind.trace(given, passes=False).memory.kv.shape == (2, 6, 16)


@pytest.mark.parametrize(
    "options",
    [
        {"vqf": "none"},
        {"vqf": "clips"},
        {"vqf": "clips", "share_vqf": False},
        {"descriptions": False},
        {"descriptions": False, "vcm": False},
        {"vcm": False},
        {"share_vqf": False},
        {"visual": False},
        {"query_content": "last"},
        {"description_query": "shared"},
        OTHER,
        {**OTHER, "share_vqf": False},
        {**OTHER, "visual": False},
        {"types": False},
        {"visual": False, "vcm": False, "saliency": "neg-only"},
        {"visual": False, "vqf": "none"},
        {"visual": False, "vqf": "clips"},
        {"visual": False, "plugins": {"tea": {"projection": "separate"}}},
    ],
    ids=str,
)
def test_every_ablation_trains_all_the_weights_that_it_has(options: dict[str, Any]) -> None:
    built, given = model(**options).train(), batch()
    torch.stack(list(built.losses(given, StepContext()).values())).sum().backward()
    silent = [
        name
        for name, parameter in built.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert not silent


@torch.no_grad()
@pytest.mark.parametrize("visual", [True, False])
def test_a_clip_without_a_description_is_not_read_in_its_place(visual: bool) -> None:
    built, given = model(visual=visual), batch()
    stream = given.side["narrative"]
    noise = torch.full_like(stream.x, torch.nan)
    noisy = Side(torch.where(stream.mask.unsqueeze(-1), stream.x, noise), stream.mask)
    changed = replace(given, side={"narrative": noisy})
    torch.testing.assert_close(built(changed).spans, built(given).spans)
    torch.testing.assert_close(built(changed).saliency, built(given).saliency)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vqf": "none", "query_content": "none"}, "only the moment queries read the sentence"),
        ({"vqf": "clips", "visual": False, "query_content": "none"}, "only the moment queries"),
        ({"vqf": "none", "saliency": "neg-only"}, "only teach it to be low"),
        ({**OTHER, "vqf": "clips"}, "nothing would read its other embedding"),
        ({**OTHER, "descriptions": False}, "nothing would read its other embedding"),
        ({**OTHER, "visual": False, "query_content": "none"}, "nothing reads the main embedding"),
        ({"text_position": "learned"}, "text_position: Input should be 'none'"),
        ({"visual": False, "descriptions": False}, "leave nothing of the video"),
        ({"description_query": "other"}, r"'llama', and the data give no other.*data\.other_texts"),
        ({**OTHER, "other_text": "glove"}, r"'glove', and the data give llama; load it"),
        ({"side": "captions"}, r"stream 'captions', and the data give narrative.*narratives=true"),
    ],
)
def test_combinations_without_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model(**options)


def test_a_batch_without_descriptions_is_refused() -> None:
    with pytest.raises(UsageError, match="this batch carries no side stream"):
        model()(replace(batch(), side={}))


def test_a_batch_without_the_other_embedding_is_refused() -> None:
    with pytest.raises(UsageError, match=r"carries glove; load it.*stages\.queries\.others"):
        model(**OTHER)(replace(batch(), texts={"glove": batch().texts["llama"]}))


def test_a_model_says_that_it_reads_the_other_embedding_and_comes_back_with_its_width() -> None:
    built = model(**OTHER)
    assert built.reads == {"side.narrative", "text.llama"}
    assert model(text_dims=LLAMA).reads == {"side.narrative"}
    again = create_model(**built.recipe)
    assert again.recipe == built.recipe
    assert again.recipe["text_dims"] == LLAMA


def test_there_is_no_public_checkpoint_to_read() -> None:
    with pytest.raises(UsageError, match="LMR has no public code"):
        load_official("lmr", {"model": {}, "opt": {}})

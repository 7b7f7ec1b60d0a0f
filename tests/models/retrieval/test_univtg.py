from __future__ import annotations

import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UsageError
from models.retrieval import MODELS, RetrievalModel, create_model, load_official
from models.retrieval.decode import Decoding, clip_scores, ranked, windows
from models.retrieval.official import official_state_dict
from models.retrieval.parts.clip_moments import clip_moments
from models.retrieval.parts.spans import start_end
from models.retrieval.testing import alone, random_batch, take
from models.retrieval.types import Batch, Predictions, Targets

SMALL: dict[str, Any] = {
    "video_dim": 18,
    "text_dim": 12,
    "hidden": 16,
    "heads": 4,
    "feedforward": 24,
    "encoder_layers": 2,
    "drop_path": 0.0,
    "input_dropout": 0.0,
}


def small(**options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model("univtg", **(SMALL | options))


def ragged(**options: Any) -> Batch:
    return random_batch([11, 7, 3], [5, 2, 4], **options)


def moments(*windows: tuple[float, float]) -> Targets:
    """Targets of one sample of four clips with windows (start, end)."""
    edges = torch.tensor([windows])
    spans = torch.stack([edges.mean(-1), edges[..., 1] - edges[..., 0]], dim=-1)
    batch = random_batch([4], [2])
    assert batch.targets is not None
    return replace(
        batch.targets, spans=spans, span_mask=torch.ones(spans.shape[:2], dtype=torch.bool)
    )


CENTRES = torch.tensor([[0.125, 0.375, 0.625, 0.875]])
FOUR = torch.ones(1, 4, dtype=torch.bool)


def test_published_sizes_have_the_published_tensors(shared: Path) -> None:
    listed = (shared / "specs" / "model_keys" / "univtg_keys.txt").read_text()
    public = {
        line.split(" ", 1)[0]: tuple(map(int, re.findall(r"\d+", line.split(" ", 1)[1])))
        for line in listed.splitlines()
    }
    model = create_model("univtg", video_dim=2818, text_dim=512, preset="release")
    ours = official_state_dict(model, MODELS.get("univtg").official)
    assert {key: tuple(x.shape) for key, x in ours.items()} == public


def test_presets_choose_the_switches() -> None:
    fixed, release = small(), small(preset="release")
    assert (fixed.recipe["timestamps"], release.recipe["timestamps"]) == ("centre", "released")
    assert fixed.decoding.unit == "grid"
    assert release.decoding.unit == "duration"
    assert fixed.decoding.nms_iou == release.decoding.nms_iou == 0.7
    assert fixed.criterion.matcher is None


@torch.no_grad()
def test_every_clip_is_a_query_and_padding_is_none() -> None:
    batch = ragged()
    found = small().eval()(batch)
    assert found.query_mask is not None
    assert torch.equal(found.query_mask, batch.video_mask)
    counts = [len(each) for each in windows(found, grid_s=22.0, how=Decoding())]
    assert counts == [11, 7, 3]


@torch.no_grad()
def test_released_timestamps_count_half_a_clip_in_seconds() -> None:
    batch, off = ragged(), {"spans_in_video": False}
    centre, released, one = (
        start_end(small(**off, **how).eval()(batch).spans)
        for how in (
            {},
            {"timestamps": "released", "clip_len_s": 2.0},
            {"timestamps": "released", "clip_len_s": 1.0},
        )
    )
    clips = batch.video_mask.sum(1)[:, None, None]
    torch.testing.assert_close(released - centre, (0.5 / clips).expand_as(centre))
    torch.testing.assert_close(one, centre)


@torch.no_grad()
def test_windows_are_cut_to_the_video_unless_released() -> None:
    batch = ragged()
    cut, whole = (
        start_end(small(spans_in_video=each).eval()(batch).spans) for each in (True, False)
    )
    assert whole.min() < 0
    assert whole.max() > 1
    torch.testing.assert_close(cut, whole.clamp(0, 1))


@pytest.mark.parametrize("padding", ["zero", "released"])
@torch.no_grad()
def test_convolutions_read_the_padding_of_a_batch_only_as_released(padding: str) -> None:
    model, batch = small(conv_padding=padding).eval(), ragged()
    together = model(batch).logits[2, :3]
    by_itself = model(alone(batch, 2)).logits[0]
    assert torch.allclose(together, by_itself, atol=1e-5) == (padding == "zero")


@torch.no_grad()
def test_padded_clips_are_never_the_most_salient() -> None:
    batch = ragged()
    for padding, value in (("fill", -1000.0), ("log", -103.28)):
        saliency = small(saliency_padding=padding).eval()(batch).saliency
        assert saliency[batch.video_mask].abs().max() <= 1 + 1e-6
        assert saliency[~batch.video_mask] == pytest.approx(value, abs=1.5)


@torch.no_grad()
def test_saliency_is_that_of_the_tokens_before_the_fusion() -> None:
    model, batch = small().eval(), ragged()
    before = model(batch)
    for parameter in model.fuser.parameters():
        parameter.zero_()
    after = model(batch)
    assert torch.equal(before.saliency, after.saliency)
    assert not torch.allclose(before.logits, after.logits)


def test_a_clip_belongs_to_the_moment_around_its_place() -> None:
    edges, inside = clip_moments(moments((0.0, 0.5), (0.5, 1.0)), CENTRES, FOUR, "own_clip")
    assert inside.all()
    expected = [[0.0, 0.5], [0.0, 0.5], [0.5, 1.0], [0.5, 1.0]]
    torch.testing.assert_close(edges[0], torch.tensor(expected))


def test_of_moments_that_overlap_the_shorter_counts() -> None:
    edges, _ = clip_moments(moments((0.0, 1.0), (0.25, 0.5)), CENTRES, FOUR, "own_clip")
    assert edges[0, 1].tolist() == [0.25, 0.5]
    assert edges[0, 2].tolist() == [0.0, 1.0]


def test_a_moment_too_short_for_a_place_gets_the_clip_in_which_it_begins() -> None:
    short, long = (0.51, 0.6), (0.75, 1.0)
    for how in ("own_clip", "released"):
        found = clip_moments(moments(short), CENTRES, FOUR, how)[1]
        assert found.tolist() == [[False, False, True, False]]
    assert clip_moments(moments(short, long), CENTRES, FOUR, "own_clip")[1].sum() == 2
    assert clip_moments(moments(short, long), CENTRES, FOUR, "released")[1].sum() == 1


@pytest.mark.parametrize("intra", ["clips", "released"])
def test_the_contrast_of_clips_sees_other_samples_only_as_released(intra: str) -> None:
    model, batch = small(intra=intra), ragged()
    together = model.losses(batch)["intra"]
    single = torch.stack([model.losses(take(batch, [i]))["intra"] for i in range(3)]).mean()
    assert torch.isclose(together, single, atol=1e-5) == (intra == "clips")


def test_samples_without_known_moments_are_no_background() -> None:
    model, batch = small(), ragged()
    assert batch.targets is not None
    known = torch.tensor([True, True, False])
    hidden = batch.targets.span_mask & known[:, None]
    targets = replace(batch.targets, has_moments=known, span_mask=hidden)
    partly = model.losses(replace(batch, targets=targets))
    two = model.losses(take(batch, [0, 1]))
    for name in ("span", "giou", "label"):
        torch.testing.assert_close(partly[name], two[name])


def test_samples_without_a_salient_clip_count_for_no_contrast() -> None:
    model, batch = small(), ragged()
    assert batch.targets is not None
    saliency = batch.targets.saliency.clone()
    saliency[2] = 0
    losses = model.losses(replace(batch, targets=replace(batch.targets, saliency=saliency)))
    torch.testing.assert_close(losses["intra"], model.losses(take(batch, [0, 1]))["intra"])
    nothing = replace(batch.targets, saliency=torch.zeros_like(saliency))
    losses = model.losses(replace(batch, targets=nothing))
    assert losses["inter"] == losses["intra"] == 0


def test_a_sentence_is_not_contrasted_with_the_clips_of_a_video_without_a_salient_one() -> None:
    model, batch = small(), ragged()
    assert batch.targets is not None
    saliency, video = batch.targets.saliency.clone(), batch.video.clone()
    saliency[2], video[2] = 0, -video[2]
    targets = replace(batch.targets, saliency=saliency)
    found = model.losses(replace(batch, targets=targets))["inter"]
    torch.testing.assert_close(
        found, model.losses(replace(batch, targets=targets, video=video))["inter"]
    )


@torch.no_grad()
def test_scores_of_windows_and_of_clips_are_chosen_apart() -> None:
    found: Predictions = small().eval()(ragged())
    foreground = found.logits.softmax(-1)[..., 0]
    torch.testing.assert_close(clip_scores(found), found.saliency)
    both = clip_scores(found, small().decoding)
    torch.testing.assert_close(both, found.saliency + foreground)
    plain, added = (ranked(found, how)[0, 0, 2] for how in ("foreground", "foreground+saliency"))
    assert plain == foreground[0].max()
    assert added == (found.saliency + foreground)[0].max()


def test_a_loop_over_a_decoder_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'loop_decoder' does not go with 'univtg'.*no decoder"):
        small(plugins={"loop_decoder": {}})


@pytest.mark.parametrize("kind", ["hl", "vs"])
def test_a_public_checkpoint_of_highlights_alone_learns_no_edges(kind: str) -> None:
    state = official_state_dict(small(preset="release"), MODELS.get("univtg").official)
    public = {"hidden_dim": 16, "nheads": 4, "dim_feedforward": 24, "enc_layers": 2}
    model = load_official("univtg", {"model": state, "opt": public | {"dset_type": kind}})
    assert set(model.criterion.terms) == {"label", "inter", "intra"}


def test_a_public_checkpoint_brings_its_ranking(tmp_path: Path) -> None:
    model = small(preset="release")
    state = official_state_dict(model, MODELS.get("univtg").official)
    public = {
        "hidden_dim": 16,
        "nheads": 4,
        "dim_feedforward": 24,
        "enc_layers": 2,
        "max_q_l": 75,
        "clip_length": 2,
        "nms_thd": 0.7,
        "max_after_nms": 5,
        "eval_mode": "add",
    }
    file = tmp_path / "best.ckpt"
    torch.save({"model": state, "opt": Namespace(**public)}, file)
    for given in (file, {"model": state, "opt": public}):
        loaded = load_official("univtg", given)
        assert (loaded.decoding.nms_iou, loaded.decoding.keep) == (0.7, 5)
        assert loaded.decoding.score == "foreground"
        assert loaded.decoding.highlight == "foreground+saliency"
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, model.state_dict()[key]), key
    plain = load_official("univtg", {"model": state, "opt": public | {"nms_thd": -1}})
    assert plain.decoding.nms_iou is None

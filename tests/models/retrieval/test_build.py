from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data.errors import UsageError
from models.retrieval import RetrievalModel, create_model, list_models, load_official
from models.retrieval.build import MODELS, PLUGINS, Dims, Options, Plugin
from models.retrieval.criterion import Criterion, MarginTerm
from models.retrieval.flow import Memory, Tokens
from models.retrieval.official import official_state_dict
from models.retrieval.parts.matcher import Matcher
from models.retrieval.stages import Fuser
from models.retrieval.testing import random_batch
from models.retrieval.types import Side, StepContext

SMALL: dict[str, Any] = {"video_dim": 18, "text_dim": 12, "hidden": 16, "heads": 2}
PUBLIC = {"hidden_dim": 16, "nheads": 2, "max_q_l": 32}


def test_models_are_listed() -> None:
    assert "qd_detr" in list_models()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "qd_dert"}, "unknown model 'qd_dert'; did you mean 'qd_detr'"),
        ({"preset": "fix"}, "unknown preset 'fix'; did you mean 'fixed'"),
        ({"margin": float("inf")}, "margin: Input should be a finite number"),
        ({"hiden": 32}, "model 'qd_detr' has no option 'hiden'; did you mean 'hidden'"),
        ({"heads": 3}, "hidden 16 must be a multiple of heads 3"),
        ({"negatives": "random"}, "negatives: .*got 'random'"),
        ({"plugins": {"te": {}}}, "unknown plug-in 'te'; did you mean 'tea'"),
        ({"plugins": {"tea": {"merg": "add"}}}, "plug-in 'tea' has no option 'merg'; did you mean"),
    ],
)
def test_wrong_use_is_answered_with_the_nearest_that_is_right(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        create_model(**({"name": "qd_detr"} | SMALL | change))


@pytest.fixture
def shy() -> Iterator[str]:
    """A plug-in that somebody adds, and that does not go with one of ours."""
    name, reason = "a_plugin_of_this_test", {"loop_decoder": "it counts the loops itself"}
    PLUGINS.register(name)(
        Plugin(
            "merge", frozenset(), Options, lambda blueprint, dims, options: blueprint, {}, reason
        )
    )
    yield name
    del PLUGINS._things[name]


def test_plugins_that_do_not_go_together_are_refused_whichever_comes_first(shy: str) -> None:
    create_model("qd_detr", **SMALL, plugins={shy: {}})
    for order in ((shy, "loop_decoder"), ("loop_decoder", shy)):
        first, last = order
        said = f"plug-in '{last}' does not go with '{first}': it counts the loops itself"
        with pytest.raises(UsageError, match=said):
            create_model("qd_detr", **SMALL, plugins={each: {} for each in order})


def test_options_win_over_the_preset() -> None:
    model = create_model("qd_detr", **SMALL, preset="release", negatives="roll_other_video")
    assert model.recipe["negatives"] == "roll_other_video"
    assert model.recipe["negative_log"] == "log"


class ClipsOnly(Fuser):
    """A fuser without a global token."""

    def forward(self, tokens: Tokens) -> Memory:
        clips = tokens.video, tokens.video_mask, tokens.video_pos
        return Memory(*clips, *clips)


def blueprint() -> Any:
    family = MODELS.get("qd_detr")
    return family.build(Dims(18, 12), family.options(hidden=16, heads=2))


def test_parts_that_do_not_fit_are_refused_with_the_reason() -> None:
    parts = replace(blueprint().parts, fuser=ClipsOnly())
    with pytest.raises(
        UsageError,
        match=r"head GlobalDotSaliency needs 'global_token', and no part before it provides that; "
        r"provided so far: clip \(ClipsOnly\)",
    ):
        RetrievalModel(parts, Criterion(parts.terms, Matcher()))


def test_a_loss_without_its_pass_is_refused() -> None:
    parts = replace(blueprint().parts, passes=())
    with pytest.raises(UsageError, match="criterion RankTerm needs 'negative_mask'"):
        RetrievalModel(parts, Criterion(parts.terms, Matcher()))


def test_a_model_without_a_saliency_head_is_refused() -> None:
    made = blueprint().parts
    parts = replace(made, heads=made.heads[:1], passes=(), terms=made.terms[:3])
    with pytest.raises(UsageError, match="nothing here gives saliency"):
        RetrievalModel(parts, Criterion(parts.terms, Matcher()))


def test_a_criterion_refuses_two_terms_of_one_name_and_none_at_all() -> None:
    with pytest.raises(UsageError, match="each name once"):
        Criterion([MarginTerm(1, margin=0.2), MarginTerm(2, margin=0.2)], Matcher())
    with pytest.raises(UsageError, match="at least one loss term"):
        Criterion([MarginTerm(0, margin=0.2)], Matcher())


class Count(MarginTerm):
    """A loss that counts the optimiser's steps."""

    def after_step(self, context: StepContext) -> None:
        self.steps = context.step


def test_parts_with_a_state_of_their_own_take_every_step() -> None:
    made, term = blueprint(), Count(1.0, margin=0.2)
    model = RetrievalModel(made.parts, Criterion([term], Matcher()))
    model.after_step(StepContext(step=7))
    assert term.steps == 7


def test_a_criterion_without_a_matcher_matches_nothing() -> None:
    made = blueprint()
    model = RetrievalModel(made.parts, Criterion(made.parts.terms, None))
    losses = model.losses(random_batch([6, 4], [3, 2]))
    assert losses["span"] == 0
    assert losses["label"] > 0


def test_masks_of_numbers_are_read_as_masks() -> None:
    batch, model = random_batch([6, 4], [3, 2]), create_model("qd_detr", **SMALL).eval()
    assert batch.targets is not None
    names = ("span_mask", "pair_mask", "in_moment")
    numbers = {name: getattr(batch.targets, name).float() for name in names}
    given = replace(
        batch,
        video_mask=batch.video_mask.float(),
        text_mask=batch.text_mask.long(),
        targets=replace(batch.targets, **numbers),
    )
    assert given.targets is not None
    assert all(torch.equal(getattr(given.targets, n), getattr(batch.targets, n)) for n in names)
    assert torch.equal(model(given).logits, model(batch).logits)
    side = Side(torch.zeros(1, 2, 3), torch.tensor([[1, 0]], dtype=torch.uint8))
    assert side.mask.tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"video_dim": 16}, "16 features a clip and the model was built with video_dim=18"),
        ({"text_dim": 7}, "7 features a word and the model was built with text_dim=12"),
    ],
)
def test_features_of_another_width_are_refused(dims: dict[str, int], message: str) -> None:
    model = create_model("qd_detr", **SMALL)
    with pytest.raises(UsageError, match=message):
        model(random_batch([6, 4], [3, 2], **dims))


def test_losses_without_ground_truth_are_refused() -> None:
    batch = replace(random_batch([4], [2]), targets=None)
    with pytest.raises(UsageError, match="this batch has no targets"):
        create_model("qd_detr", **SMALL).losses(batch)


def public_weights() -> dict[str, torch.Tensor]:
    model = create_model("qd_detr", **SMALL, preset="release")
    return official_state_dict(model, MODELS.get("qd_detr").official)


@pytest.mark.parametrize("namespace", [argparse.Namespace, SimpleNamespace])
def test_a_public_checkpoint_file_is_read_with_its_namespace(
    namespace: Callable[..., Any], tmp_path: Path
) -> None:
    weights = public_weights()
    content = {
        "model": {f"module.{key}": x for key, x in weights.items()},
        "opt": namespace(**PUBLIC, dropout=0.25),
        "epoch": 3,
    }
    torch.save(content, tmp_path / "model_best.ckpt")
    model = load_official("qd_detr", tmp_path / "model_best.ckpt")
    assert not model.training
    assert model.recipe["dropout"] == 0.25
    assert model.recipe["preset"] == "release"
    assert load_official("qd_detr", content).recipe == model.recipe
    back = official_state_dict(model, MODELS.get("qd_detr").official)
    assert all(torch.equal(back[key], weights[key]) for key in weights)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def test_a_checkpoint_with_code_in_it_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": {}, "opt": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UsageError, match=r"evil.ckpt' cannot be read safely"):
        load_official("qd_detr", tmp_path / "evil.ckpt")
    assert "unpickled" not in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_or_half_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint at"):
        load_official("qd_detr", tmp_path / "absent.ckpt")
    (tmp_path / "half.ckpt").write_bytes(b"PK\x03\x04half")
    with pytest.raises(UsageError, match=r"half.ckpt' cannot be read safely"):
        load_official("qd_detr", tmp_path / "half.ckpt")
    with pytest.raises(UsageError, match="this has no opt, only model"):
        load_official("qd_detr", {"model": {}})


def test_every_tensor_that_does_not_fit_is_named() -> None:
    weights = public_weights()
    del weights["class_embed.bias"]
    weights["saliency_proj3.weight"] = torch.zeros(1)
    weights["global_rep_token"] = torch.zeros(3)
    with pytest.raises(UsageError) as error:
        load_official("qd_detr", {"model": weights, "opt": PUBLIC})
    said = str(error.value)
    assert "1 missing: class_embed.bias" in said
    assert "1 unexpected: saliency_proj3.weight" in said
    assert "global_rep_token is (3,) and should be (16,)" in said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.tensor([1.0, float("nan")]), "1 with NaN or infinity: class_embed.bias"),
        (torch.tensor([1.0, float("inf")]), "1 with NaN or infinity: class_embed.bias"),
        (torch.tensor([1, 2]), "class_embed.bias is torch.int64 and should be torch.float32"),
        (torch.tensor([1j, 2.0]), "class_embed.bias is torch.complex64 and should be"),
    ],
)
def test_a_tensor_without_numbers_that_a_model_can_use_is_named(
    value: torch.Tensor, said: str
) -> None:
    weights = public_weights() | {"class_embed.bias": value}
    with pytest.raises(UsageError, match=said):
        load_official("qd_detr", {"model": weights, "opt": PUBLIC})
    half = {key: x.half() for key, x in public_weights().items()}
    assert load_official("qd_detr", {"model": half, "opt": PUBLIC}).recipe["hidden"] == 16


@pytest.mark.parametrize("options", [{}, {"hidden_dim": 16, "nhead": 2}])
def test_options_that_no_tensor_shows_must_be_said(options: dict[str, Any]) -> None:
    checkpoint = {"model": public_weights(), "opt": options}
    with pytest.raises(UsageError, match=r"do not say 'nheads', .* lack .*dec_layers, .* heads=…"):
        load_official("qd_detr", checkpoint)
    said = {"hidden": 16, "heads": 2, "max_words": 32}
    assert load_official("qd_detr", checkpoint, **said).recipe["heads"] == 2


def test_where_the_model_does_not_fit_it_is_said_which_sizes_were_not_given() -> None:
    with pytest.raises(
        UsageError, match=r"\(they do not say .*hidden_dim.*: defaults were taken\)"
    ):
        load_official("qd_detr", {"model": public_weights(), "opt": {"nheads": 2}})


@pytest.mark.parametrize("tensor", ["LayerNorm.weight", "LayerNorm.bias", "net.1.weight"])
@pytest.mark.parametrize("shape", [(5, 5), None])
def test_the_tensor_that_does_not_fit_is_named_where_the_width_is_read(
    tensor: str, shape: tuple[int, ...] | None
) -> None:
    weights, key = public_weights(), f"input_vid_proj.0.{tensor}"
    whole = weights.pop(key)
    if shape is not None:
        weights[key] = torch.zeros(shape)
    with pytest.raises(UsageError) as error:
        load_official("qd_detr", {"model": weights, "opt": PUBLIC})
    said = f"1 missing: {key}"
    if shape is not None:
        said = f"1 of another shape: {key} is (5, 5) and should be {tuple(whole.shape)}"
    assert str(error.value).endswith(said)


@pytest.mark.parametrize(
    ("option", "value"),
    [("pre_norm", True), ("position_embedding", "learned"), ("span_loss_type", "ce")],
)
def test_public_options_without_a_part_are_refused(option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"trained with {option}={value!r}.*not supported"):
        load_official("qd_detr", {"model": public_weights(), "opt": PUBLIC | {option: value}})


def test_a_state_dict_of_another_model_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no 'input_vid_proj.0.LayerNorm.weight'"):
        load_official("qd_detr", {"model": {"x": torch.zeros(1)}, "opt": PUBLIC})


def test_plugins_have_no_place_in_the_public_layout() -> None:
    model = create_model("qd_detr", **SMALL, side_dims={"narrative": 12}, plugins={"tea": {}})
    with pytest.raises(UsageError, match=r"no place for merges.0"):
        official_state_dict(model, MODELS.get("qd_detr").official)

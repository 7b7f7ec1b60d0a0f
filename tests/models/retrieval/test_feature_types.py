"""Features of other floating types than the weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from data.errors import UsageError
from models.retrieval import RetrievalModel, create_model
from models.retrieval.testing import random_batch
from models.retrieval.types import Batch, Side


def model(name: str = "qd_detr", **options: Any) -> RetrievalModel:
    torch.manual_seed(0)
    return create_model(name, video_dim=18, text_dim=12, hidden=16, heads=2, **options)


def batch(dtype: torch.dtype) -> Batch:
    given = random_batch([6, 4], [3, 2])
    return replace(given, video=given.video.to(dtype), text=given.text.to(dtype))


def widened(given: Batch) -> Batch:
    return replace(given, video=given.video.float(), text=given.text.float())


@pytest.mark.parametrize("name", ["qd_detr", "cg_detr", "emb"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_features_are_widened_which_changes_no_number(name: str, dtype: torch.dtype) -> None:
    built, given = model(name).eval(), batch(dtype)
    with torch.no_grad():
        assert torch.equal(built(given).spans, built(widened(given)).spans)
        found, expected = built.losses(given), built.losses(widened(given))
    assert {key: x.item() for key, x in found.items()} == {
        key: x.item() for key, x in expected.items()
    }


def test_narrow_features_go_through_autocast_as_wide_ones_do() -> None:
    built, given = model().eval(), batch(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(built(given).spans, built(widened(given)).spans)


def test_narrow_side_streams_and_wrong_texts_are_widened_too() -> None:
    built = model(plugins={"tea": {}}, side_dims={"narrative": 12})
    given = batch(torch.float32)
    side = {"narrative": Side(torch.randn(2, 6, 12).half(), given.video_mask)}
    given = replace(given, side=side, wrong_text=given.text.half(), wrong_text_mask=given.text_mask)
    assert all(x.dtype == torch.float32 for x in built.losses(given).values())


@pytest.mark.parametrize(
    ("carried", "message"),
    [
        ({"side": 11}, r"has 11 features a clip .* with side_dims\['narrative'\]=12;"),
        ({"texts": 7}, r"has 7 features a word .* with text_dims\['llama'\]=6;"),
        ({"wrong_texts": 5}, r"has 5 features a word .* with text_dims\['llama'\]=6;"),
    ],
)
def test_streams_and_further_texts_of_another_width_are_refused(
    carried: dict[str, int], message: str
) -> None:
    dims: dict[str, Any] = {"side_dims": {"narrative": 12}, "text_dims": {"llama": 6}}
    built = model("lmr", description_query="other", **dims)
    given = batch(torch.float32)
    widths = {"side": 12, "texts": 6, "wrong_texts": 6} | carried
    names = {"side": "narrative", "texts": "llama", "wrong_texts": "llama"}
    streams = {
        key: {names[key]: Side(torch.randn(2, 6, width), given.video_mask)}
        for key, width in widths.items()
    }
    with pytest.raises(UsageError, match=message):
        built(replace(given, **streams))


def test_word_ids_may_be_of_either_integer_type() -> None:
    built = model("emb", words="ids", vocabulary=9).eval()
    given = batch(torch.float32)
    ids = torch.ones(given.text.shape[:2], dtype=torch.int64)
    with torch.no_grad():
        one, other = (built(replace(given, text=each)) for each in (ids, ids.int()))
    assert torch.equal(one.spans, other.spans)


def test_word_ids_are_refused_by_a_model_that_reads_token_states() -> None:
    given = batch(torch.float32)
    ids = torch.ones(given.text.shape[:2], dtype=torch.int64)
    with pytest.raises(UsageError, match=r"text is torch\.int64, ids .* reads what a text encoder"):
        model()(replace(given, text=ids))


@pytest.mark.parametrize(
    ("weights", "features", "message"),
    [
        (torch.float32, torch.float64, "Batch.video is float64 and the weights of the model are"),
        (torch.float32, torch.int64, "Batch.video is int64 and the weights of the model are"),
        (torch.bfloat16, torch.float32, r"are bfloat16; convert it with \.to\(torch.bfloat16\)"),
    ],
)
def test_what_would_lose_digits_is_refused_with_what_to_do(
    weights: torch.dtype, features: torch.dtype, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        model().to(weights)(batch(features))

"""The generation loop beside `generate()` of transformers, on the same small models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_language_models import DIM, EOS, VOCAB, keys, llama, opt, prompts, public

from models.captioners.generating import Decoding
from models.captioners.loop import Engine
from models.captioners.loop.sampling import NOT_FINITE, choose, uniforms
from models.captioners.loop.steps import ExactSteps, StaticSteps

LENGTHS = [9, 9, 5, 13, 9, 5, 9, 1]
BOTH = pytest.mark.parametrize("steps", [ExactSteps, StaticSteps])


def engine(lm: Any, **options: Any) -> Engine:
    return Engine(lm, device="cpu", dtype=torch.float32, eos=EOS, **options)


@BOTH
@pytest.mark.parametrize(
    ("build", "dim"),
    [
        (llama, DIM),
        (lambda: llama(heads=4, kv_heads=2), DIM),
        (opt, DIM),
        (lambda: opt(projected=16), 16),
    ],
    ids=["llama", "llama with grouped queries", "opt", "opt as the 350M one"],
)
def test_greedy_rows_are_those_of_transformers(
    build: Callable[[], Any], dim: int, steps: type[ExactSteps]
) -> None:
    lm = build()
    given = prompts(LENGTHS, dim)
    made = engine(lm, steps=steps).generate(given, keys(len(given)), Decoding(max_new_tokens=16))
    assert [row.ids for row in made] == [public(lm, each, max_new_tokens=16) for each in given]
    assert [row.prompt_tokens for row in made] == LENGTHS
    # The test would show little if all rows had the same length, or no row an end.
    assert len({len(row.ids) for row in made}) > 1
    assert {row.finish_reason for row in made} == {"stop", "length"}


@BOTH
@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`:UserWarning")  # that is meant
def test_the_repetition_penalty_is_that_of_transformers(steps: type[ExactSteps]) -> None:
    lm = llama()
    given = prompts(LENGTHS)
    made = engine(lm, steps=steps).generate(
        given, keys(8), Decoding(max_new_tokens=16, repetition_penalty=1.3)
    )
    plain = engine(lm).generate(given, keys(8), Decoding(max_new_tokens=16))
    wanted = [public(lm, each, max_new_tokens=16, repetition_penalty=1.3) for each in given]
    assert [row.ids for row in made] == wanted
    assert made != plain


def test_ids_that_are_not_allowed_are_never_chosen_and_the_rest_is_as_if_they_did_not_exist() -> (
    None
):
    lm = llama()
    given = prompts(LENGTHS)
    made = engine(lm).generate(given, keys(8), Decoding(max_new_tokens=16), allowed=40)
    hidden = list(range(40, VOCAB))
    wanted = [public(lm, each, max_new_tokens=16, suppress_tokens=hidden) for each in given]
    assert [row.ids for row in made] == wanted
    assert max(max(row.ids) for row in engine(lm).generate(given, keys(8), Decoding(16))) >= 40


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.9), (0, 0.3), (7, 1.0), (7, 0.8)])
def test_tokens_are_sampled_as_often_as_their_probability_says(top_k: int, top_p: float) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(1)) * 2
    warped = TemperatureLogitsWarper(0.7)(None, logits)
    warped = TopKLogitsWarper(top_k)(None, warped) if top_k else warped
    wanted = TopPLogitsWarper(top_p)(None, warped).softmax(-1)[0].double()
    # Evenly spread numbers: each token gets its share of them, up to one at either end.
    count = 20_000
    spread = (torch.arange(count) + 0.5) / count
    chosen = choose(
        logits.expand(count, -1),
        Decoding(temperature=0.7, top_k=top_k, top_p=top_p),
        uniform=spread,
    )
    share = torch.bincount(chosen, minlength=30).double() / count
    assert (share - wanted).abs().max() < 2 / count
    assert (share[wanted > 1.5 / count] > 0).all()
    assert (share[wanted == 0] == 0).all()


def test_the_ends_of_the_unit_interval_give_tokens_that_may_be_chosen() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 3.0, -200.0]]).expand(2, -1)
    least, most = 0.0, 1 - 2**-24
    chosen = choose(logits, Decoding(temperature=1.0), uniform=torch.tensor([least, most]))
    assert chosen.tolist() == [2, 0]


def test_a_top_p_of_nothing_leaves_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    decoding = Decoding(temperature=1.0, top_p=0.0)
    assert choose(logits, decoding, uniform=torch.tensor([0.999])).tolist() == [1]


def test_a_row_without_a_finite_number_gets_no_token() -> None:
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [float("inf"), 1.0]])
    assert choose(logits, Decoding()).tolist() == [1, NOT_FINITE, NOT_FINITE]


def test_uniform_numbers_are_uniform_and_belong_to_seed_key_and_step() -> None:
    many = uniforms(0, "a", 50_000)
    assert many.dtype == np.float32
    assert many.min() >= 0
    assert many.max() < 1
    counts = np.histogram(many, 50, (0, 1))[0]
    # Chi squared with 49 degrees of freedom is above 86 once in a thousand.
    assert ((counts - 1000) ** 2 / 1000).sum() < 86
    assert (uniforms(0, "a", 7) == many[:7]).all()
    assert not (uniforms(1, "a", 7) == many[:7]).any()
    assert not (uniforms(0, "b", 7) == many[:7]).any()

"""What is random in the feasibility study is drawn by its seed, and what it compares is apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.llama_files import LlamaLayers, LlamaSpec
from models.retrieval.parts.llama_layers import random_layers
from training.feasibility.commands import _table
from training.feasibility.inputs import Triplets, lifted
from training.feasibility.refining import refined, refiner_of
from training.feasibility.study import Outcome, Setting, Study, fused, similarities

SPEC = LlamaSpec(width=32, heads=4, kv_heads=2, hidden=48)
TRIPLETS = Triplets.of([(f"a{i}", f"b{i}", f"c{i}") for i in range(40)])


def layers() -> LlamaLayers:
    tensors = random_layers(SPEC, [3, 4], seed=7, dtype=torch.float32)
    held = dict(zip([3, 4], tensors, strict=True))
    return LlamaLayers(SPEC, held, torch.linspace(0.5, 2, 32), "made up", {3: "", 4: ""})


def vectors() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32)


def study(**options: Any) -> Study:
    return Study(TRIPLETS, vectors(), layers(), **({"resamples": 200} | options))


def cell(**changes: Any) -> Setting:
    given = {"layers": (3, 4), "control": "none", "alpha": 0.0, "p": 0.0, "seed": 0}
    return Setting(**(given | changes))


def outcome(**changes: Any) -> Outcome:
    return study().outcome(cell(**changes))


def test_random_weights_are_other_layers_and_others_for_every_seed() -> None:
    one = study()
    first, second, real = (
        one.outcome(each).cosine_after
        for each in (
            cell(control="random-weights"),
            cell(control="random-weights", seed=1),
            cell(),
        )
    )
    assert len({first, second, real}) == 3
    # and the same whatever was computed before
    assert outcome(control="random-weights", seed=1).cosine_after == second


def test_roles_are_drawn_for_every_seed_anew() -> None:
    first, second = (study()._roles(cell(control="permuted", seed=seed)) for seed in (0, 1))
    assert not np.array_equal(first, second)
    for drawn in (first, second):
        assert np.array_equal(np.sort(drawn, axis=1), np.sort(TRIPLETS.rows, axis=1))


def test_the_same_seed_gives_the_same_interval_around_the_difference() -> None:
    found, again = outcome(), outcome()
    assert found.improved + found.deteriorated > 0
    assert found.difference_ci == again.difference_ci
    assert found.difference_ci[0] < found.difference < found.difference_ci[1]


@pytest.mark.parametrize(("level", "deviations"), [(0.95, 1.960), (0.5, 0.6745)])
def test_the_interval_holds_its_share_of_the_resamples(level: float, deviations: float) -> None:
    """Of a mean of 400 values the bootstrap is nearly the normal distribution, whose quantiles
    these are (any table of it)."""
    change = np.repeat([1, 0, -1], [100, 250, 50])
    half = deviations * change.std() / 20
    found = study(resamples=4000, level=level)._interval(change, 0)
    assert found == pytest.approx((0.125 - half, 0.125 + half), abs=0.005)


def test_elements_are_dropped_from_a_random_vector_that_has_its_length_already() -> None:
    whole, dropped = fused(vectors(), 1.0, 0.0, 3), fused(vectors(), 1.0, 0.4, 3)
    kept = dropped != 0
    assert 0.5 < kept.mean() < 0.7
    assert np.array_equal(dropped[kept], whole[kept])


def test_a_vector_of_zeros_is_alike_to_none() -> None:
    """All that is left of a concept with alpha 1 and p 1."""
    assert not similarities(np.zeros((2, 3, 4), np.float32), "cos").any()


def test_concepts_of_a_matrix_are_refined_together() -> None:
    _, after = study().matrices(cell(control="mean-shift"))
    shifted = vectors() + vectors().mean(0)
    unit = shifted / np.linalg.norm(shifted, axis=1, keepdims=True)
    np.testing.assert_allclose(after, unit @ unit.T, atol=1e-5)


def test_the_last_norm_has_the_networks_gain_or_ones_or_is_left_out() -> None:
    wide = lifted(vectors(), 32, "pad")
    loaded, ones, none = (
        refined(
            refiner_of("none", layers(), [3, 4], final_norm=norm, rope=False, causal=False, seed=0),
            wide,
            TRIPLETS.rows,
            "triplet",
        )
        for norm in ("loaded", "ones", "none")
    )
    np.testing.assert_allclose(loaded, ones * layers().norm.numpy(), rtol=1e-5)
    np.testing.assert_allclose(np.square(ones).mean(-1), 1, rtol=1e-4)
    assert not np.allclose(np.square(none).mean(-1), 1, rtol=0.01)


def test_a_concept_reads_only_those_before_it_if_asked() -> None:
    wide = lifted(vectors(), 32, "pad")
    other = wide.copy()
    other[TRIPLETS.rows[:, 2]] *= -1
    for causal in (True, False):
        layer = refiner_of(
            "none", layers(), [3, 4], final_norm="none", rope=False, causal=causal, seed=0
        )
        before, after = (refined(layer, x, TRIPLETS.rows, "triplet") for x in (wide, other))
        assert np.allclose(before[:, :2], after[:, :2], atol=1e-6) == causal


def test_the_table_shows_the_first_seed_alone() -> None:
    found = outcome()
    more = [replace(found, setting=cell(seed=seed)) for seed in (1, 2)]
    assert _table([found, *more], 0.95).row_count == 1

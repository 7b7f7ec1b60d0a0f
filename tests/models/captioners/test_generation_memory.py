"""Sizes, buckets and budgets of the generation loop."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from tiny_language_models import llama, opt
from torch import nn

from models.captioners.loop import place
from models.captioners.loop.cache import Memory
from models.captioners.loop.lm import Shape, shape_of
from models.captioners.loop.memory import Budget, free_bytes
from models.captioners.loop.rows import Row, Table
from models.captioners.loop.steps import ExactSteps, StaticSteps

GIB = 2**30
CPU = torch.device("cpu")


def test_sizes_are_read_from_the_configuration() -> None:
    assert shape_of(llama(heads=4, kv_heads=2)) == Shape(2, 2, 8, 256)
    assert shape_of(opt()) == Shape(2, 4, 8, 256)
    assert shape_of(llama()).numbers == 2 * 2 * 4 * 8


def test_a_language_model_with_a_sliding_window_is_refused() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=10,
        sliding_window=8,
    )
    with pytest.raises(ValueError, match=r"got mistral with .* sliding_window 8"):
        shape_of(MistralForCausalLM(config))


def test_rotary_positions_stay_exact_in_a_model_that_is_cast() -> None:
    placed = place(deepcopy(llama()), "cpu", torch.bfloat16)
    kinds = {name: each.dtype for name, each in placed.named_buffers()}
    assert set(kinds.values()) == {torch.float32}
    assert {each.dtype for each in placed.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match=r"inv_freq is torch\.bfloat16.*loop\.place"):
        place(deepcopy(llama()).to(torch.bfloat16), "cpu", torch.bfloat16)


def test_parameters_that_are_whole_numbers_are_not_cast() -> None:
    module = nn.Linear(2, 2)
    module.codes = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    assert place(module, "cpu", torch.bfloat16).codes.dtype == torch.int64


def test_buckets_are_never_smaller_and_at_most_half_larger() -> None:
    steps = StaticSteps(llama())
    buckets = [steps.bucket(rows) for rows in range(1, 300)]
    assert sorted(set(buckets))[:12] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(rows <= bucket <= 1.5 * rows for rows, bucket in enumerate(buckets, 1))
    assert all(steps.bucket(bucket) == bucket for bucket in buckets)
    assert [steps.length(tokens) for tokens in (1, 64, 65)] == [64, 64, 128]
    assert ExactSteps(llama()).bucket(7) == 7


def test_as_many_rows_as_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    # LLaVA-1.5-13B in bfloat16, specs/captioners.md §3.2: 0.819 MB per token, and at most 204
    # captions of 696 tokens in what 139 GiB leave beside 26.7 GB of weights.
    thirteen = Shape(40, 40, 128, 4096)
    free = 139 * GIB - 26.7e9
    monkeypatch.setattr("models.captioners.loop.memory.free_bytes", lambda device: free)
    budget = Budget(CPU, max_rows=1000)
    assert thirteen.numbers * 2 == pytest.approx(0.819e6, rel=1e-3)
    assert budget.affordable(thirteen.numbers * 2, 696, 0) == pytest.approx(204, abs=12)
    assert budget.affordable(thirteen.numbers * 2, 10**6, 0) == 1
    assert Budget(CPU, max_rows=50).affordable(thirteen.numbers * 2, 696, 0) == 50
    assert Budget(CPU).affordable(1, 1, 0) == 64


def test_free_memory_is_told_by_the_system() -> None:
    free = free_bytes(CPU)
    assert free is None or 0 < free < 2**50


def test_a_budget_halves_what_was_too_much() -> None:
    budget = Budget(CPU, max_rows=64)
    budget.prefill_tokens = 4096
    assert budget.prefill_rows(600) == 6
    assert budget.shrink(64, reading=(6, 600))
    assert (budget.prefill_rows(600), budget.rows) == (3, 64)
    assert budget.shrink(64, reading=(3, 600))
    assert (budget.prefill_rows(600), budget.rows) == (1, 64)
    assert budget.shrink(64, reading=(1, 600))
    assert budget.rows == 32
    assert budget.shrink(5, reading=None)
    assert budget.rows == 2
    assert not budget.shrink(1, reading=None)
    with pytest.raises(ValueError, match="max_rows has to be at least 1, got 0"):
        Budget(CPU, max_rows=0)


def test_rows_at_work_move_to_places_of_rows_that_are_over() -> None:
    table = Table()
    table.rows = [Row(index, 4) for index in range(7)]
    for over in (0, 2, 6):
        table.rows[over].finish = "stop"
    sources, holes = table.compact()
    assert (sources, holes) == ([4, 5], [0, 2])
    assert [row.index for row in table.rows] == [4, 1, 5, 3]


def test_a_row_takes_all_that_it_has_to_its_new_place() -> None:
    memory = Memory(Shape(2, 3, 4, None), 5, 6, CPU, torch.float32)
    for layer, each in enumerate([*memory.keys, *memory.values]):
        each.copy_(torch.arange(5.0).view(5, 1, 1, 1) + 10 * layer)
    memory.ids.copy_(torch.arange(5))
    memory.positions.copy_(torch.arange(5) + 1)
    memory.move([3, 4], [0, 1])
    assert memory.ids.tolist() == [3, 4, 2, 3, 4]
    assert memory.positions.tolist() == [4, 5, 3, 4, 5]
    assert (memory.keys[1][0] == 13).all()
    assert (memory.values[1][1] == 34).all()
    memory.advance(5)
    assert memory.positions.tolist() == [5, 5, 4, 5, 5]  # no further than its end


def test_a_row_that_is_not_over_has_no_result() -> None:
    with pytest.raises(ValueError, match=re.escape("row 3 is not over")):
        Row(3, 4).result()

"""The generation loop: no row notices with whom it runs, nor how much memory there is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
import torch
from tiny_language_models import EOS, keys, llama, opt, prompts
from torch import Tensor, nn

from data.errors import UsageError
from models.captioners.generating import Decoding
from models.captioners.loop import Engine, Generated, Prompts
from models.captioners.loop.cache import Memory
from models.captioners.loop.lm import shape_of
from models.captioners.loop.steps import ExactSteps, StaticSteps

LENGTHS = [9, 9, 5, 13, 9, 5, 9, 1, 13, 9, 5, 9, 2]
MANY = len(LENGTHS)
WAYS = {
    "greedy": Decoding(max_new_tokens=12),
    "penalised": Decoding(max_new_tokens=12, repetition_penalty=1.3),
    "sampled": Decoding(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=3),
    "both": Decoding(max_new_tokens=12, temperature=0.7, top_k=9, repetition_penalty=1.1),
}
EACH_WAY = pytest.mark.parametrize("decoding", WAYS.values(), ids=WAYS.keys())
BOTH = pytest.mark.parametrize("steps", [ExactSteps, StaticSteps])


def engine(lm: Any, **options: Any) -> Engine:
    return Engine(lm, device="cpu", dtype=torch.float32, eos=EOS, **options)


def alone(lm: Any, decoding: Decoding, given: Sequence[Tensor]) -> list[Generated]:
    """Each prompt in a batch of its own."""
    one_by_one = engine(lm)
    return [
        one_by_one.generate([prompt], [key], decoding)[0]
        for prompt, key in zip(given, keys(len(given)), strict=True)
    ]


@cache
def expected(decoding: Decoding) -> list[Generated]:
    """What the rows of `LENGTHS` are, each alone."""
    return alone(llama(), decoding, prompts(LENGTHS))


@BOTH
@EACH_WAY
def test_a_batch_of_n_is_n_batches_of_one(steps: type[ExactSteps], decoding: Decoding) -> None:
    lm = llama()
    together = engine(lm, steps=steps).generate(prompts(LENGTHS), keys(MANY), decoding)
    assert together == expected(decoding)
    assert len({len(row.ids) for row in together}) > 3


def test_rows_of_opt_do_not_notice_each_other_either() -> None:
    lm = opt()
    assert engine(lm, steps=StaticSteps).generate(
        prompts(LENGTHS), keys(MANY), WAYS["both"]
    ) == alone(lm, WAYS["both"], prompts(LENGTHS))


@EACH_WAY
def test_the_order_of_rows_changes_nothing(decoding: Decoding) -> None:
    given, names = prompts(LENGTHS), keys(MANY)
    loop = engine(llama())
    forward = loop.generate(given, names, decoding)
    assert loop.generate(given[::-1], names[::-1], decoding) == forward[::-1]


@BOTH
@EACH_WAY
def test_rows_that_move_together_are_what_they_would_have_been(
    steps: type[ExactSteps], decoding: Decoding
) -> None:
    lm = llama()
    moving, staying = engine(lm, steps=steps), engine(lm, steps=steps, compact_below=0.0)
    given = prompts(LENGTHS)
    assert moving.generate(given, keys(MANY), decoding) == staying.generate(
        given, keys(MANY), decoding
    )
    assert moving.counts.row_steps < staying.counts.row_steps
    assert moving.counts.tokens == staying.counts.tokens


@BOTH
@pytest.mark.parametrize("decoding", [WAYS["greedy"], WAYS["both"]], ids=["greedy", "both"])
@pytest.mark.parametrize("max_rows", [1, 3, 7])
def test_rows_that_wait_take_the_places_of_those_that_are_over(
    steps: type[ExactSteps], decoding: Decoding, max_rows: int
) -> None:
    lm = llama()
    loop = engine(lm, steps=steps, max_rows=max_rows)
    assert loop.generate(prompts(LENGTHS), keys(MANY), decoding) == expected(decoding)
    waste = loop.counts.row_steps - loop.counts.tokens
    assert waste < 0.6 * loop.counts.row_steps


def test_places_that_become_free_are_used_before_the_last_row_is_over() -> None:
    loop = engine(llama(), max_rows=8)
    loop.generate(prompts([9] * 48), keys(48), WAYS["sampled"])
    busy = (loop.counts.tokens - 48) / loop.counts.row_steps
    assert busy > 0.75


def test_sampling_changes_with_the_seed_and_with_the_key() -> None:
    loop, given = engine(llama()), prompts([9] * 6)
    first = loop.generate(given, keys(6), WAYS["sampled"])
    assert loop.generate(given, keys(6), WAYS["sampled"]) == first
    assert loop.generate(given, keys(6), replace(WAYS["sampled"], seed=4)) != first
    assert loop.generate(given, keys(12)[6:], WAYS["sampled"]) != first


def test_each_row_stops_at_its_own_stop_sequence() -> None:
    lm = llama()
    plain = engine(lm).generate(prompts(LENGTHS), keys(MANY), Decoding(max_new_tokens=12))
    long = [row for row in plain if len(row.ids) > 8]
    pair, single = long[0].ids[3:5], long[1].ids[6:7]
    assert pair[1] != single[0]
    made = engine(lm, max_rows=4).generate(
        prompts(LENGTHS), keys(MANY), Decoding(max_new_tokens=12), stop=[single, pair]
    )
    for row, before in zip(made, plain, strict=True):
        cut = [
            at
            for at in range(len(before.ids))
            if before.ids[at : at + 2] == pair or before.ids[at] == single[0]
        ]
        assert row.ids == (before.ids[: cut[0]] if cut else before.ids)
        assert row.finish_reason == ("stop" if cut else before.finish_reason)
    assert made != plain


def test_embeddings_are_asked_for_once_a_few_rows_of_equal_length_at_a_time() -> None:
    lm, given = llama(), prompts(LENGTHS)
    asked: list[list[int]] = []

    def embed(rows: Sequence[int]) -> Tensor:
        asked.append(list(rows))
        return torch.stack([given[i] for i in rows])

    loop = engine(lm, max_rows=5)
    made = loop.generate(Prompts(LENGTHS, embed), keys(MANY), WAYS["greedy"])
    assert made == expected(WAYS["greedy"])
    assert sorted(row for rows in asked for row in rows) == list(range(MANY))
    assert all(len({LENGTHS[row] for row in rows}) == 1 and len(rows) <= 5 for rows in asked)
    assert loop.counts.prefills == len(asked)


class Small(nn.Module):
    """A language model on a device that has memory for so many rows and tokens at once."""

    def __init__(self, lm: Any, rows: int, tokens: int = 10**6) -> None:
        super().__init__()
        self.lm, self.config = lm, lm.config
        self.rows, self.tokens, self.failures = rows, tokens, 0

    def get_input_embeddings(self) -> Any:
        return self.lm.get_input_embeddings()

    def forward(self, *, inputs_embeds: Tensor, **rest: Any) -> Any:
        rows, tokens, _ = inputs_embeds.shape
        too_many = rows > self.rows if tokens == 1 else rows * tokens > self.tokens
        if too_many:
            self.failures += 1
            raise torch.OutOfMemoryError(f"{rows} x {tokens}")
        return self.lm(inputs_embeds=inputs_embeds, **rest)


@BOTH
@pytest.mark.parametrize(
    ("rows", "tokens", "way"),
    [(3, 10**6, "greedy"), (6, 10**6, "both"), (100, 30, "both"), (5, 13, "greedy")],
)
def test_memory_that_runs_out_loses_no_row_and_is_remembered(
    steps: type[ExactSteps], rows: int, tokens: int, way: str
) -> None:
    decoding = WAYS[way]
    lm = llama()
    small = Small(lm, rows, tokens)
    loop = engine(small, steps=steps)
    assert loop.generate(prompts(LENGTHS), keys(MANY), decoding) == expected(decoding)
    assert small.failures == loop.counts.shrinks > 0
    loop.generate(prompts(LENGTHS), keys(MANY), decoding)
    assert small.failures == loop.counts.shrinks
    assert loop.params()["out_of_memory"] == small.failures


class Watched(Memory):
    """Memory that tells how many of its kind there are."""

    alive: ClassVar[WeakSet[Watched]] = WeakSet()
    most = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        Watched.alive.add(self)
        Watched.most = max(Watched.most, len(Watched.alive))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    monkeypatch.setattr("models.captioners.loop.engine.Memory", Watched)
    Watched.alive, Watched.most = WeakSet(), 0
    return Watched


def test_memory_is_given_back_before_a_larger_one_is_taken(watched: type[Watched]) -> None:
    loop = engine(llama())
    for count, tokens in ((2, 9), (9, 9), (9, 80)):
        loop.generate(prompts([tokens] * count), keys(count), WAYS["greedy"])
    assert watched.most == 1


def test_nothing_holds_on_to_memory_that_did_not_suffice(
    watched: type[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = engine(Small(llama(), rows=3))
    left: list[int] = []
    release = loop.release
    monkeypatch.setattr(loop, "release", lambda: (release(), left.append(len(watched.alive))))
    loop.generate(prompts(LENGTHS), keys(MANY), WAYS["greedy"])
    assert loop.counts.shrinks > 0
    assert set(left) == {0}


def test_few_rows_in_a_large_memory_halve_the_memory_and_not_the_few() -> None:
    small = Small(llama(), rows=64)
    loop = engine(small)
    loop.generate(prompts([9] * 64), keys(64), WAYS["greedy"])
    small.rows = 2  # something else takes the rest of the device, for once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._budget, "shrink", _once(loop._budget.shrink, small))
        loop.generate(prompts([9] * 3), keys(3), WAYS["greedy"])
    assert loop.counts.shrinks == 1
    assert loop.max_rows == 32


def _once(shrink: Any, small: Small) -> Any:
    def called(*args: Any) -> Any:
        small.rows = 64
        return shrink(*args)

    return called


def test_one_long_prompt_does_not_cost_rows_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = llama()
    token = shape_of(lm).numbers * 4
    loop = engine(lm)
    # Room for 16 rows of 64 tokens, a quarter of it kept free; what is held counts as free.
    monkeypatch.setattr(
        "models.captioners.loop.memory.free_bytes",
        lambda device: token * 64 * 16 / 0.75 - (loop._memory.bytes if loop._memory else 0),
    )
    sizes = []
    for tokens in (9, 200, 9):
        loop.generate(prompts([tokens] * 16), keys(16), WAYS["greedy"])
        assert loop._memory is not None
        sizes.append((loop._memory.rows, loop._memory.length))
    assert sizes == [(16, 64), (4, 256), (16, 64)]


def test_memory_that_runs_out_while_a_picture_is_seen_loses_no_row() -> None:
    lm, given = llama(), prompts(LENGTHS)

    def embed(rows: Sequence[int]) -> Tensor:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("the vision tower")
        return torch.stack([given[i] for i in rows])

    loop = engine(lm)
    made = loop.generate(Prompts(LENGTHS, embed), keys(MANY), WAYS["greedy"])
    assert made == expected(WAYS["greedy"])
    assert loop.max_rows == 64  # it was not the number of rows that was too large


def test_one_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="1 x 1"):
        engine(Small(llama(), rows=0)).generate(prompts([9]), keys(1), WAYS["greedy"])


def test_other_errors_are_not_taken_for_memory_that_ran_out() -> None:
    def embed(rows: Sequence[int]) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    loop = engine(llama())
    with pytest.raises(RuntimeError, match="illegal memory access"):
        loop.generate(Prompts([9, 9], embed), keys(2), WAYS["greedy"])
    assert loop.counts.shrinks == 0


@BOTH
@pytest.mark.parametrize("max_rows", [1, 2, 64])
def test_a_row_that_is_not_finite_fails_alone_and_leaves_nothing_behind(
    steps: type[ExactSteps], max_rows: int
) -> None:
    lm, given = llama(), prompts([13, 9, 9, 5, 9, 5])
    whole = alone(lm, WAYS["greedy"], given)
    broken = [*given]
    broken[0] = torch.full_like(given[0], torch.nan)
    broken[2] = given[2].clone()
    broken[2][3, 5] = torch.inf
    made = engine(lm, steps=steps, max_rows=max_rows).generate(broken, keys(6), WAYS["greedy"])
    for index in (0, 2):
        assert made[index].finish_reason == "error"
        assert "no finite number" in made[index].reason
    assert [made[i] for i in (1, 3, 4, 5)] == [whole[i] for i in (1, 3, 4, 5)]


def test_memory_of_a_call_serves_the_next_and_can_be_given_back() -> None:
    lm = llama()
    loop = engine(lm)
    first = loop.generate(prompts(LENGTHS), keys(MANY), WAYS["greedy"])
    loop.generate(prompts([70] * 3), keys(3), WAYS["sampled"])
    assert loop.generate(prompts(LENGTHS), keys(MANY), WAYS["greedy"]) == first
    loop.release()
    assert loop.generate(prompts(LENGTHS), keys(MANY), WAYS["greedy"]) == first


def test_no_prompts_are_no_work() -> None:
    assert engine(llama()).generate([], [], WAYS["greedy"]) == []


def test_a_prompt_that_leaves_no_positions_for_the_answer_is_refused() -> None:
    wanted = "246 tokens and max_new_tokens 12 are more than the 256 positions"
    with pytest.raises(UsageError, match=wanted) as error:
        engine(llama()).generate(prompts([9, 246]), keys(2), WAYS["greedy"])
    assert "at most 10 new tokens" in str(error.value)


@pytest.mark.parametrize(
    ("given", "names", "stop", "message"),
    [
        ([9, 9], 1, [], "2 prompts have 1 keys"),
        ([9, 0], 2, [], "at least one token"),
        ([9], 1, [()], "a stop sequence has at least one token"),
    ],
)
def test_calls_that_make_no_sense_say_so(
    given: list[int],
    names: int,
    stop: list[tuple[int, ...]],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        engine(llama()).generate(prompts(given), keys(names), WAYS["greedy"], stop=stop)


def test_embeddings_of_another_length_than_was_said_are_refused() -> None:
    wrong = Prompts([9], lambda rows: torch.zeros(1, 8, 32))
    with pytest.raises(ValueError, match=re.escape("1 prompts of 9 tokens have embeddings (1, 8")):
        engine(llama()).generate(wrong, keys(1), WAYS["greedy"])

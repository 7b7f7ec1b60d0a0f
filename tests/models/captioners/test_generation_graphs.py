"""Steps that are recorded and replayed: all of it but the GPU's own recording."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_language_models import EOS, VOCAB, keys, llama, opt, prompts
from torch import Tensor

from models.captioners.generating import Decoding
from models.captioners.loop import Engine
from models.captioners.loop.cache import Memory
from models.captioners.loop.lm import shape_of
from models.captioners.loop.steps import ExactSteps, GraphSteps, StaticSteps

LENGTHS = [9, 9, 5, 13, 9, 5, 9, 60, 13, 9]
WAYS = {
    "greedy": Decoding(max_new_tokens=12),
    "both": Decoding(max_new_tokens=12, temperature=1.0, top_p=0.9, repetition_penalty=1.1),
}


class Tape:
    """Like a CUDA graph: computes again from the same memory, into the same tensor."""

    made = 0

    def __call__(
        self, device: torch.device, compute: Callable[[], Tensor]
    ) -> tuple[Callable[[], object], Tensor]:
        del device
        Tape.made += 1
        result = compute().clone()
        return lambda: result.copy_(compute()), result


class Torn:
    """Cannot record the shape that is recorded second."""

    def __init__(self, error: RuntimeError) -> None:
        self.error, self.calls = error, 0

    def __call__(
        self, device: torch.device, compute: Callable[[], Tensor]
    ) -> tuple[Callable[[], object], Tensor]:
        self.calls += 1
        if self.calls == 2:
            raise self.error
        return Tape()(device, compute)


def engine(lm: Any, **options: Any) -> Engine:
    return Engine(lm, device="cpu", dtype=torch.float32, eos=EOS, **options)


@pytest.mark.parametrize("decoding", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("max_rows", [4, 64])
def test_replayed_steps_are_the_steps(decoding: Decoding, max_rows: int) -> None:
    lm = llama()
    wanted = engine(lm).generate(prompts(LENGTHS), keys(10), decoding)
    loop = engine(lm, steps=lambda each: GraphSteps(each, Tape), max_rows=max_rows)
    Tape.made = 0
    assert loop.generate(prompts(LENGTHS), keys(10), decoding) == wanted
    recorded = Tape.made
    assert 0 < recorded < loop.counts.steps / 2
    assert loop.generate(prompts(LENGTHS), keys(10), decoding) == wanted
    assert Tape.made == recorded
    # Memory that is given up takes with it what was recorded on it.
    loop.release()
    assert loop.generate(prompts(LENGTHS), keys(10), decoding) == wanted
    assert Tape.made == 2 * recorded


def test_a_step_that_cannot_be_recorded_is_computed_and_that_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torn = Torn(RuntimeError("operation not permitted when stream is capturing\nand so on"))
    loop = engine(llama(), steps=lambda each: GraphSteps(each, lambda: torn))
    with caplog.at_level(logging.WARNING):
        made = loop.generate(prompts(LENGTHS), keys(10), WAYS["greedy"])
    assert made == engine(llama()).generate(prompts(LENGTHS), keys(10), WAYS["greedy"])
    reason = "operation not permitted when stream is capturing"
    assert loop.params()["no_graphs"] == reason
    assert [record.getMessage() for record in caplog.records] == [
        f"no CUDA graphs, captions come slower: {reason}"
    ]
    assert torn.calls == 2


def _followed() -> RuntimeError:
    """As `torch.cuda.graph` raises it: where memory runs out, recording cannot end either."""
    error = RuntimeError("operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("for the graph")
    return error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("for the graph"),
        RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
        _followed(),
    ],
    ids=["torch", "library", "followed"],
)
def test_memory_that_runs_out_while_a_step_is_recorded_loses_no_row(error: RuntimeError) -> None:
    torn = Torn(error)
    loop = engine(llama(), steps=lambda each: GraphSteps(each, lambda: torn))
    made = loop.generate(prompts(LENGTHS), keys(10), WAYS["both"])
    assert made == engine(llama()).generate(prompts(LENGTHS), keys(10), WAYS["both"])
    assert loop.params() == {
        "steps": "GraphSteps",
        "max_rows": 6,  # half of the bucket of 12
        "dtype": "float32",
        "out_of_memory": 1,
    }


@pytest.mark.parametrize("build", [llama, opt])
@pytest.mark.parametrize("steps", [ExactSteps, StaticSteps])
def test_a_step_reads_no_number_back(build: Callable[[], Any], steps: type[ExactSteps]) -> None:
    # On `meta` there are no numbers: whatever asks for one fails, as it would in a graph.
    device = torch.device("meta")
    lm = deepcopy(build()).to(device)
    memory = Memory(shape_of(lm), 8, 128, device, torch.float32)
    logits = steps(lm)(memory, 6, 70, False)
    assert logits.shape == (6, VOCAB)
    with pytest.raises(RuntimeError, match="meta"):
        int(logits.argmax())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("decoding", WAYS.values(), ids=WAYS.keys())
def test_steps_replayed_as_cuda_graphs_are_the_steps(decoding: Decoding) -> None:
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.float32, "eos": EOS}
    given = [each.cuda() for each in prompts(LENGTHS)]
    replayed = Engine(deepcopy(llama()), **options)
    plain = Engine(deepcopy(llama()), **options, graphs=False)
    wanted = plain.generate(given, keys(10), decoding)
    assert [replayed.generate(given, keys(10), decoding) for _ in range(2)] == [wanted] * 2
    assert replayed.params()["steps"] == GraphSteps.__name__
    assert "no_graphs" not in replayed.params()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_recorded() -> None:
    assert engine(llama(), graphs=True).params()["steps"] == "ExactSteps"

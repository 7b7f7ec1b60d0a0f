"""Two real processes train together: what they share is equal, and is what one process has that
sees the batches of both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from in_processes import in_processes
from torch import Tensor

from models.retrieval import MODELS, RetrievalModel, create_model
from models.retrieval.decode import Decoding
from models.retrieval.parts.distill import DistillAlignTerm
from models.retrieval.parts.processes import rows_of_all
from models.retrieval.testing import random_batch, take
from models.retrieval.types import Batch, StepContext
from training.distributed import World
from training.retrieval_task import RetrievalTask
from training.task import MomentBatch

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "hidden": 16,
    "heads": 2,
    "feedforward": 24,
    "queue_length": 16,
    "weights": "random",
}
STILL: dict[str, Any] = {
    "dropout": 0.0,
    "input_dropout": 0.0,
    "momentum_dropout": False,
    "momentum": 0.9,
}
LLM: dict[str, Any] = {
    "numbers": "float32",
    "llm_width": 16,
    "llm_heads": 2,
    "llm_hidden": 24,
    "layers": (0,),
}
ALIGN = {key: STILL[key] for key in ("momentum", "momentum_dropout")} | {"queue_length": 16}
SHARES = ((0, 1, 2), (3, 4))
"""Rows of a step that each process has; the second has fewer."""

PLUGGED: dict[str, dict[str, Any]] = {
    "with-plugins": {"distill_align": ALIGN, "conv_fuser": {"heads": 2, "feedforward": 24}},
    "first-process": {"distill_align": ALIGN | {"queue_from": "first_process"}},
}
"""Moment-DETR with these plug-ins."""

State = dict[str, Tensor]


def small(name: str, **options: Any) -> RetrievalModel:
    known = MODELS.get(name).options.model_fields
    given = {key: value for key, value in (SMALL | STILL | LLM).items() if key in known}
    torch.manual_seed(0)
    side_dims = {"narrative": 12}
    return create_model(name, video_dim=18, text_dim=12, side_dims=side_dims, **(given | options))


def built(name: str) -> RetrievalModel:
    return small("moment_detr", plugins=PLUGGED[name]) if name in PLUGGED else small(name)


def batch_of(step: int) -> Batch:
    """Five samples, other ones in every step."""
    batch = random_batch([6, 4, 5, 6, 3], [3, 2, 3, 1, 2], side_dims={"narrative": 12}, seed=step)
    return replace(batch, sample_ids=torch.arange(5) + 10 * step)


def align_of(model: RetrievalModel) -> DistillAlignTerm:
    term = model.criterion.terms["distill_align"]
    assert isinstance(term, DistillAlignTerm)
    return term


def trained(model: RetrievalModel, rank: int, steps: int = 3) -> State:
    """The model after some steps of two processes, with three samples of a step or two."""
    task = RetrievalTask(model, Decoding(), device=torch.device("cpu"), world=World(rank, 2))
    moved = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(moved, lr=1e-2)
    model.train()
    for step in range(steps):
        context = StepContext(step=step, steps_per_epoch=steps)
        batch = take(batch_of(step), SHARES[rank])
        optimizer.zero_grad()
        losses = task.losses(MomentBatch(batch, ()), context)
        torch.autograd.backward(torch.stack([*losses.values()]).sum())
        optimizer.step()
        task.after_step(context)
    return {key: value.clone() for key, value in model.state_dict().items()}


def aligned(shares: list[list[Batch]], **options: Any) -> State:
    """Queue and slow encoders of LD-DETR after steps of several batches each; the encoders that
    are followed stand elsewhere than where the slow ones began."""
    model = small("ld_detr", **options).train()
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.encoders.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng))
    for step, batches in enumerate(shares):
        for batch in batches:
            model.losses(batch, StepContext(step=step))
        model.after_step(StepContext(step=step))
    term = align_of(model)
    return {key: x.clone() for key, x in term.state_dict().items()}


def in_one_of_two(rank: int) -> dict[str, Any]:
    """Everything that the tests below look at, because processes take seconds to start."""
    mine = [take(batch_of(step), SHARES[rank]) for step in range(4)]
    rows = torch.tensor([[10.0 * rank + i] for i in range(3 * rank)]).reshape(-1, 1)
    found: dict[str, Any] = {
        "rows": rows_of_all([rows])[0],
        "steps": aligned([mine[:1], mine[1:2]]),
        "accumulated": aligned([mine[:2], []]),
        "one-sided": aligned([mine[:1] if rank == 0 else []]),
        "within-the-loss": aligned([mine[:1]], updates="forward", queue_length=15),
    }
    return found | {name: trained(built(name), rank) for name in (*MODELS, *PLUGGED)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return in_processes(2, in_one_of_two, tmp_path_factory.mktemp("processes"))


def assert_same(one: State, other: State) -> None:
    """Up to rounding, which differs with the size of a batch."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key])


def test_rows_of_all_processes_come_by_rank_without_padding(two: list[dict[str, Any]]) -> None:
    assert [each["rows"].tolist() for each in two] == [[[10.0], [11.0], [12.0]]] * 2


def test_a_process_alone_keeps_its_rows() -> None:
    rows = torch.ones(2, 3)
    assert rows_of_all([rows])[0] is rows


@pytest.mark.parametrize("name", [*MODELS, "with-plugins"])
def test_two_processes_have_equal_weights_slow_weights_and_queues(
    two: list[dict[str, Any]], name: str
) -> None:
    """Running statistics of batch norms are those of the first process from the next step on."""
    states = [each[name] for each in two]
    differing = [key for key, value in states[0].items() if not torch.equal(value, states[1][key])]
    assert [key for key in differing if ".running_" not in key] == []
    start = built(name).state_dict()
    assert any(not torch.equal(value, states[0][key]) for key, value in start.items())


def test_the_queue_of_two_processes_is_that_of_one_with_the_batches_of_both(
    two: list[dict[str, Any]],
) -> None:
    alone = aligned([[batch_of(0)], [batch_of(1)]])
    assert alone["queue.ids"][:10].tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    for each in two:
        assert_same(each["steps"], alone)


def test_accumulated_batches_enter_the_queue_once_at_the_step(two: list[dict[str, Any]]) -> None:
    """Those of the first process come first; the second step had no batch and adds none."""
    for each in two:
        ids = each["accumulated"]["queue.ids"]
        assert ids[:10].tolist() == [0, 1, 2, 10, 11, 12, 3, 4, 13, 14]
        assert (ids[10:] == ids[10]).all()
        assert each["accumulated"]["queue.pointer"] == 10


def test_a_process_without_a_batch_takes_the_keys_of_the_other(two: list[dict[str, Any]]) -> None:
    for each in two:
        assert each["one-sided"]["queue.ids"][:3].tolist() == [0, 1, 2]
        assert each["one-sided"]["queue.pointer"] == 3
    assert_same(two[0]["one-sided"], two[1]["one-sided"])


def test_a_queue_that_is_written_within_the_loss_takes_everyones_keys_too(
    two: list[dict[str, Any]],
) -> None:
    """Fifteen keys are a multiple of the five of both, not of the two of the second process."""
    alone = aligned([[batch_of(0)]], updates="forward", queue_length=15)
    for each in two:
        assert_same(each["within-the-loss"], alone)


def test_keys_of_the_first_process_alone_are_an_option(two: list[dict[str, Any]]) -> None:
    every = two[0]["with-plugins"]["criterion.terms.distill_align.queue.ids"]
    first = two[0]["first-process"]["criterion.terms.distill_align.queue.ids"]
    assert first[:9].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert every[:15].tolist() == [*range(5), *range(10, 15), *range(20, 25)]


def test_the_released_queue_is_that_of_code_for_one_process() -> None:
    released = small("ld_detr", preset="release")
    assert align_of(released).queue_from == "first_process"
    assert align_of(small("ld_detr")).queue_from == "all_processes"

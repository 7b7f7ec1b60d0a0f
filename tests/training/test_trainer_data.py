"""Held or streamed, the batches are the same; the order is a function of seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from small_store import Annotations, samples, together
from torch import Tensor

from data.annotations.types import Annotation
from data.dataset import MomentDataset, Sample, Together
from data.store import Store
from models.retrieval.types import Side, Targets
from training.batch import Draw
from training.config import DataGroup
from training.data import Order, Queries, ResidentQueries, StreamedQueries, hold
from training.split import Split
from training.task import MomentBatch

CPU = torch.device("cpu")


class Listed:
    """A split in memory."""

    def __init__(self, rows: list[Sample]) -> None:
        self.rows = rows

    @property
    def annotations(self) -> list[Annotation]:
        return [each.annotation for each in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self.rows[index]

    def together(self, rows: Sequence[int]) -> Together:
        return together([self.rows[row] for row in rows])


@pytest.fixture
def ragged(splits: Annotations) -> Listed:
    """Videos and queries of different lengths; the last two queries share a video."""
    rows = samples(splits["train"][:9])
    for i, row in enumerate(rows):
        assert row.narrative is not None
        assert row.narrative_mask is not None
        assert row.events is not None
        n = 6 + i % 4
        rows[i] = replace(
            row,
            video=row.video[:n],
            text=row.text[: 1 + i % 3],
            texts={"llama": row.texts["llama"][: 1 + i % 5]},
            narrative=row.narrative[:n],
            narrative_mask=row.narrative_mask[:n],
            events=row.events[: i % 3],
        )
    shared = replace(rows[8], annotation=replace(rows[8].annotation, qid=99, query="other"))
    return Listed([*rows, shared])


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from tensors(each, f"{name}.{key}")
    elif isinstance(value, Side | Targets) or name == "batch":
        for each in fields(value):
            yield from tensors(getattr(value, each.name), f"{name}.{each.name}")
    else:
        yield name, value


def assert_same(one: MomentBatch, other: MomentBatch) -> None:
    assert one.queries == other.queries
    pairs = zip(tensors(one.tensors, "batch"), tensors(other.tensors, "batch"), strict=True)
    for (name, a), (other_name, b) in pairs:
        assert name == other_name
        assert (isinstance(a, Tensor) and torch.equal(a, b)) or (a is None and b is None), name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("draw", [Draw(seed=4, epoch=1), None], ids=["train", "predict"])
def test_held_and_streamed_batches_are_equal(
    ragged: Listed, workers: int, draw: Draw | None
) -> None:
    batches = Order(len(ragged), 4, seed=1).batches(0)
    held = ResidentQueries(ragged, CPU)
    streamed = StreamedQueries(ragged, CPU, workers)
    for one, other in zip(held.read(batches, draw), streamed.read(batches, draw), strict=True):
        assert_same(one, other)


def test_workers_that_live_on_see_the_draw_of_the_new_epoch(ragged: Listed) -> None:
    streamed = StreamedQueries(ragged, CPU, 1)
    batches = Order(len(ragged), 10, shuffle=False).batches(0)

    def negatives(queries: Queries, epoch: int) -> list[Any]:
        batch = next(iter(queries.read(batches, Draw(epoch=epoch))))
        assert batch.tensors.targets is not None
        found: list[Any] = batch.tensors.targets.negative.tolist()
        return found

    first, second = negatives(streamed, 0), negatives(streamed, 1)
    assert first != second
    assert second == negatives(ResidentQueries(ragged, CPU), 1)


def test_a_store_gives_equal_batches_held_and_streamed_by_workers(store: Store) -> None:
    split = MomentDataset(store, "train", other_texts=["llama"], narratives=True, events=True)
    batches = Order(len(split), 7).batches(0)
    held = hold(split, CPU, "device").read(batches, Draw())
    streamed = hold(split, CPU, "none", workers=2).read(batches, Draw())
    for one, other in zip(held, streamed, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("cache", ["device", "none"])
@pytest.mark.parametrize(("depth", "events"), [(0, 1), (1, 2), (None, 2)])
def test_a_batch_has_events_of_the_depth_that_the_config_wants(
    store: Store, cache: Any, depth: int | None, events: int
) -> None:
    config = DataGroup(store=store.path, streams=("clip",), events=True, event_depth=depth)
    split = Split.open(store, config, "val", store.annotations("val"), lambda sentence: None)
    queries = hold(split.samples, CPU, cache)
    (batch,) = queries.read([np.arange(3)], None)
    assert batch.tensors.events is not None
    assert batch.tensors.event_mask is not None
    assert batch.tensors.events.shape == (3, events, 3)
    assert bool(batch.tensors.event_mask.all())
    starts, ends = batch.tensors.events[..., 0], batch.tensors.events[..., 1]
    assert torch.equal(starts[:, 1:], ends[:, :-1])
    assert bool((starts[:, 0] == 0).all())
    assert bool((ends[:, -1] == 1).all())


def test_a_video_is_held_once_however_many_queries_it_has(ragged: Listed) -> None:
    held = ResidentQueries(ragged, CPU)
    assert "10 queries on 9 videos are held on cpu" in held.about


def test_the_estimate_counts_a_video_once_and_padding_too(splits: Annotations) -> None:
    long = replace(samples(splits["train"][:1])[0], video=np.zeros((1024, 1024), np.float32))
    long = replace(long, text=np.zeros((1, 1), np.float32), texts={}, narrative=None, events=None)
    assert "(about 4 MiB" in hold(Listed([long] * 64), CPU).about
    short = replace(samples(splits["train"][1:2])[0], video=long.video[:1], text=long.text)
    short = replace(short, texts={}, narrative=None, events=None)
    assert "(about 8 MiB" in hold(Listed([long, short]), CPU).about
    told = replace(long, texts={"llama": np.zeros((256, 1024), np.float32)})
    assert "(about 68 MiB" in hold(Listed([told] * 64), CPU).about


def test_auto_streams_what_does_not_fit_and_says_so(
    ragged: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(hold(ragged, CPU, "auto"), ResidentQueries)
    monkeypatch.setattr("training.data._free_memory", lambda device: 10_000)
    streamed = hold(ragged, CPU, "auto")
    assert isinstance(streamed, StreamedQueries)
    assert "features are read for each batch by 0 workers" in streamed.about
    assert isinstance(hold(ragged, CPU, "device"), ResidentQueries)


def test_the_order_is_a_function_of_seed_and_epoch_and_visits_all_once() -> None:
    order = Order(10, 4, seed=3)
    first, again = (np.concatenate(order.batches(2)) for _ in range(2))
    assert first.tolist() == again.tolist()
    assert sorted(first.tolist()) == list(range(10))
    assert first.tolist() != np.concatenate(order.batches(3)).tolist()
    assert first.tolist() != np.concatenate(Order(10, 4, seed=4).batches(2)).tolist()
    assert [len(each) for each in order.batches(0)] == [4, 4, 2]
    assert len(order) == 3


def test_without_shuffling_the_order_is_that_of_the_file() -> None:
    assert np.concatenate(Order(5, 2, shuffle=False).batches(7)).tolist() == [0, 1, 2, 3, 4]


def test_processes_share_an_epoch_evenly_as_distributed_sampler_does() -> None:
    dealt = [Order(7, 2, seed=1, rank=rank, world=3).batches(0) for rank in range(3)]
    rows = [np.concatenate(each).tolist() for each in dealt]
    assert [len(each) for each in rows] == [3, 3, 3]
    whole = np.concatenate(Order(7, 2, seed=1).batches(0)).tolist()
    assert [row for deal in zip(*rows, strict=True) for row in deal] == whole + whole[:2]

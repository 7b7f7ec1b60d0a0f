from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from data.errors import UsageError
from data.grid import Grid
from data.store.types import ItemKey, Row
from pipeline.stage import Item, StageContext
from pipeline.stages.events import EventsOptions, EventsStage

KEY = ItemKey("film", "0" * 64)
GRID = Grid(12.3, 1.0)


class Rows:
    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = arrays

    def row(self, stage: str) -> Row:
        name = {"narratives": "narrative"}.get(stage, stage)
        return Row(KEY, GRID, {name: np.asarray(self._arrays[stage], np.float16)})


def stage(**options: Any) -> EventsStage:
    return EventsStage(StageContext(1.0), EventsOptions(half_width_s=3.0, delta_rel=0.2, **options))


def scenes(*lengths: int) -> np.ndarray:
    return np.repeat(np.eye(len(lengths)), lengths, axis=0)


def test_events_partition_the_real_duration_not_the_grid() -> None:
    row = stage().process(Item(KEY), Rows({"clip": scenes(5, 7)}))
    assert row["boundaries_s"].tolist() == [5.0]
    assert row["spans_s"].tolist() == [[0.0, 5.0], [5.0, 12.3]]
    assert row["depth"].tolist() == [1, 1]
    assert len(row["scores"]) == GRID.n


def test_a_weighted_set_of_streams_sees_the_cuts_of_each() -> None:
    both = stage(streams={"clip": 1.0, "narratives": 0.5})
    assert both.upstream == ("clip", "narratives")
    rows = Rows({"clip": scenes(4, 8), "narratives": scenes(8, 4)})
    assert both.process(Item(KEY), rows)["boundaries_s"].tolist() == [4.0, 8.0]
    only = stage(streams={"narratives": 1.0}).process(Item(KEY), rows)
    assert only["boundaries_s"].tolist() == [8.0]


def test_of_two_streams_the_heavier_one_cuts_deeper() -> None:
    rows = Rows({"clip": scenes(4, 8), "narratives": scenes(8, 4)})
    row = stage(streams={"clip": 1.0, "narratives": 0.5}).process(Item(KEY), rows)
    assert row["boundary_depth"].tolist() == [0, 1]
    row = stage(streams={"clip": 0.5, "narratives": 1.0}).process(Item(KEY), rows)
    assert row["boundary_depth"].tolist() == [1, 0]


def test_a_stage_without_features_per_clip_is_refused_and_the_others_are_named() -> None:
    with pytest.raises(UsageError, match=r"'captions' .* allowed: clip, i3d, i3d_flow, narr"):
        stage(streams={"captions": 1.0})
    with pytest.raises(UsageError, match="unknown stage 'clp'; did you mean 'clip'"):
        stage(streams={"clp": 1.0})


def test_streams_and_their_weights_are_part_of_the_recipe() -> None:
    weights = ({"clip": 1.0}, {"clip": 2.0, "i3d": 1.0}, {"clip": 1.0, "i3d": 1.0})
    assert len({stage(streams=each).recipe({}).id for each in weights}) == 3

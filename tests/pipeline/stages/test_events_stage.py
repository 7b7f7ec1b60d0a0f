from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import InputError, UsageError
from data.grid import Grid
from data.store.types import ItemKey, Row
from pipeline.config import load_pipeline_config
from pipeline.events.parser import METHODS, parse
from pipeline.program import Program
from pipeline.stage import Item, StageContext
from pipeline.stages.common import WorkerOptions
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
    return plain(half_width_s=3.0, delta_rel=0.2, **options)


def plain(**options: Any) -> EventsStage:
    return EventsStage(StageContext(1.0), EventsOptions(**options))


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
    with pytest.raises(UsageError, match=r"'captions' .* allowed: clip, i3d, i3d_flow, narr.*imp"):
        stage(streams={"captions": 1.0})


def test_a_stream_that_is_no_stage_and_no_import_is_refused_before_anything_is_read() -> None:
    options = {"events": EventsOptions(streams={"clp": 1.0})}
    with pytest.raises(UsageError, match=r"'events' reads 'clp'.* mean 'clip'.*--stage clp"):
        Program.build(StageContext(1.0), options)


def test_features_of_an_import_of_any_name_are_compared() -> None:
    own = stage(streams={"dinov2": 1.0}).process(Item(KEY), Rows({"dinov2": scenes(5, 7)}))
    assert own["boundaries_s"].tolist() == [5.0]
    with pytest.raises(InputError, match=r"'dinov2' holds an array of shape \(3,\).*film"):
        stage(streams={"dinov2": 1.0}).process(Item(KEY), Rows({"dinov2": np.ones(3)}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused_with_video_stage_and_clip(value: float) -> None:
    broken = scenes(5, 7)
    broken[8, 1] = value
    rows = Rows({"clip": scenes(4, 8), "slowfast": broken})
    with pytest.raises(InputError, match=r"film \(stage 'slowfast'\).* 1 clips, first in clip 8"):
        stage(streams={"clip": 1.0, "slowfast": 1.0}).process(Item(KEY), rows)


def test_a_video_that_the_options_do_not_fit_is_named() -> None:
    short = plain(method="eatr-compat", padded_len=5)
    with pytest.raises(InputError, match=r"video film: .*5"):
        short.process(Item(KEY), Rows({"clip": scenes(5, 7)}))


def test_features_with_the_positions_of_clips_are_refused() -> None:
    edges = np.linspace(0, 1, GRID.n + 1)
    tef = np.stack([edges[:-1], edges[1:]], axis=1)
    with_tef = np.concatenate([scenes(5, 7), tef], axis=1)
    with pytest.raises(InputError, match=r"film .*TEF.*import the features without"):
        stage().process(Item(KEY), Rows({"clip": with_tef}))


def test_events_are_those_of_parse_with_every_option_that_is_given() -> None:
    rng = np.random.default_rng(0)
    features = np.repeat(rng.standard_normal((4, 6)), 3, axis=0)
    features += 0.3 * rng.standard_normal(features.shape)
    features = features.astype(np.float16).astype(np.float64)
    given: list[dict[str, Any]] = [
        {"scales": (2.0, 4.0), "pool": "mean", "max_events": 3, "delta_rel": 0.2},
        {"similarity": "l2", "taper": "gaussian", "max_depth": 1, "min_len_s": 2.0},
        {"method": "kts", "penalty": 0.5, "half_width_s": 3.0},
        {"method": "eatr-compat", "padded_len": 20},
        {"method": "oneshot", "edges": "margin", "half_width_s": 3.0},
        {"method": "uniform", "max_events": 5},
    ]
    for options in given:
        row = plain(**options).process(Item(KEY), Rows({"clip": features}))
        expected = parse(features, 1.0, 12.3, **options)
        for name in ("boundaries_s", "spans_s", "depth", "boundary_parent"):
            np.testing.assert_array_equal(row[name], getattr(expected, name), err_msg=str(options))
        assert row["spans_s"][0, 0] == 0.0
        assert row["spans_s"][-1, 1] == 12.3


def test_options_that_mean_nothing_to_a_method_are_told_with_the_config(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text("store: s\nstages: {events: {method: uniform, max_depth: 2}}\n")
    with pytest.raises(UsageError, match=r"stages\.events.*max_depth means nothing to .*uniform"):
        load_pipeline_config(file)
    file.write_text("store: s\nstages: {events: {scales: []}}\n")
    with pytest.raises(UsageError, match=r"stages\.events\.scales"):
        load_pipeline_config(file)


def test_the_page_of_events_names_every_option_with_its_default_and_every_method() -> None:
    page = Path(__file__).parents[3].joinpath("docs", "events.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {row[0].strip("| `"): row[1].strip("`") for row in rows if len(row) > 2}
    assert set(METHODS) <= set(told)
    defaults = EventsOptions().model_dump(exclude=set(WorkerOptions.model_fields))
    assert set(told) - set(METHODS) == set(defaults)
    for name, value in defaults.items():
        shown = {"None": "none", "{'clip': 1.0}": "{clip: 1.0}"}.get(str(value), str(value))
        assert told[name] == shown


def test_how_many_videos_travel_together_is_no_part_of_the_recipe() -> None:
    assert stage(group_size=1).recipe({}).id == stage(group_size=99, cpus=2.0).recipe({}).id
    assert stage(group_size=7).group_size == 7
    others: list[dict[str, Any]] = [
        {},
        {"scales": (2.0, 4.0)},
        {"scales": (2.0, 4.0), "pool": "mean"},
        {"similarity": "sqeuclidean"},
        {"method": "kts"},
    ]
    assert len({plain(**each).recipe({}).id for each in others}) == len(others)


def test_streams_and_their_weights_are_part_of_the_recipe() -> None:
    weights = ({"clip": 1.0}, {"clip": 2.0, "i3d": 1.0}, {"clip": 1.0, "i3d": 1.0})
    assert len({stage(streams=each).recipe({}).id for each in weights}) == 3

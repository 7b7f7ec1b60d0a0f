"""What stands in a store is compared as the stage `events` does, or refused as it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import InputError, UsageError
from data.grid import Grid
from data.store import Store
from data.store.types import ItemKey, Recipe, Row, Schema, StreamSpec
from pipeline.events.changepoints import MAX_CLIPS, check_runs
from pipeline.events.stored import StoredClips
from pipeline.events.streams import compared

KEY = ItemKey("film", "0" * 64)


def row(name: str, features: Any, clip_len_s: float = 1.0) -> Row:
    array = np.asarray(features, np.float32)
    return Row(KEY, Grid(len(array) * clip_len_s, clip_len_s), {name: array})


def with_positions(n: int) -> np.ndarray:
    edges = np.arange(n + 1) / n
    content = np.random.default_rng(0).standard_normal((n, 3))
    return np.column_stack([content, edges[:-1], edges[1:]])


def stored(path: Path, rows: dict[str, Row]) -> Store:
    store = Store.create(path / "store", dataset="test", clip_len_s=1.0)
    current = {}
    for stage, one in rows.items():
        schema = Schema({stage: StreamSpec((one[stage].shape[1],), "float32", "clip")})
        recipe = Recipe(stage, 1, {}, {}, schema)
        with store.writer(recipe) as writer:
            writer.add(one)
        current[stage] = recipe.id
    store.set_current(current)
    return store


def test_positions_of_clips_are_refused_from_a_store_as_by_the_stage(tmp_path: Path) -> None:
    rows = {"tef": row("tef", with_positions(8))}
    with pytest.raises(InputError, match=r"film .*TEF") as refused:
        compared(rows, {"tef": 1.0})
    assert refused.value.reason == "clip-positions"
    with pytest.raises(UsageError) as told:
        StoredClips(stored(tmp_path, rows), {"tef": 1.0})("film")
    assert str(told.value) == str(refused.value)


def test_streams_of_other_clips_are_refused_and_named(tmp_path: Path) -> None:
    eye = np.eye(8)
    for other in (row("dinov2", eye[:4], 2.0), row("dinov2", eye[:7])):
        rows = {"clip": row("clip", eye), "dinov2": other}
        with pytest.raises(InputError, match=r"film are not of the same clips: .*'clip'.*'dinov2'"):
            compared(rows, {"clip": 1.0, "dinov2": 1.0})


def test_what_is_read_is_what_the_stage_compares(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = {name: row(name, rng.standard_normal((6, 4))) for name in ("clip", "dinov2")}
    weights = {"dinov2": 2.0, "clip": 0.5}
    clips = StoredClips(stored(tmp_path, rows), weights)
    features, grid = compared(rows, weights)
    found = clips("film")
    np.testing.assert_array_equal(found.features, features)
    assert (found.clip_len_s, found.duration_s) == (grid.clip_len_s, grid.duration_s)
    assert clips.clips("film") == 6
    unit = {n: r[n] / np.linalg.norm(r[n], axis=1, keepdims=True) for n, r in rows.items()}
    expected = sum(weights[n] * unit[n] @ unit[n].T for n in weights)
    np.testing.assert_allclose(features @ features.T, expected, atol=1e-6)


def test_a_film_too_long_for_kernel_cpd_is_told_before_any_is_read() -> None:
    pytest.importorskip("ruptures", reason="the extra `cpd` is optional")
    check_runs([3, MAX_CLIPS])
    with pytest.raises(UsageError, match=rf"\(here {MAX_CLIPS + 1:,}\).*--no-cpd"):
        check_runs([3, MAX_CLIPS + 1, 5])
